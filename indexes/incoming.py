"""Blocks of finished readings that wait for the committer: `<index>/incoming/KEY.npz`.

Its key is made from the model and from the files as they looked when they were met: whoever reads them writes
the same content under the same name. A block appears whole or not at all, and is deleted when all of it is
committed. What a committer that died left behind is used by the next one, file by file.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .engine import Digests, Reading
from .layout import Card, Layout, fill, move_durably
from .records import FileStat

if TYPE_CHECKING:
    from .changes import Sighting

File = tuple[str, FileStat]
MOST_TRIES = 3


class Incoming:
    """The blocks of one index.

    Args:
        directory: the index.
        card: its identity.
    """

    def __init__(self, directory: Path, card: Card) -> None:
        self.folder = Layout(directory).directory / "incoming"
        self._fingerprint = card.model.fingerprint

    @property
    def stop_sign(self) -> Path:
        """A file whose presence asks all workers to finish what they have begun, and begin nothing more."""
        return self.folder / "stop"

    def open(self, known: Digests, files: Iterable[Sighting]) -> dict[File, Reading]:
        """Return what earlier runs have read of some files, and delete the blocks that are of no use.

        What could not be read then is not among it: it is tried again.

        Args:
            known: contents that the index has; a reading without descriptor needs its content there.
            files: that have to be read.
        """
        self.folder.mkdir(exist_ok=True)
        wanted = {file_key(sighting) for sighting in files}
        found: dict[File, Reading] = {}
        for path in sorted(self.folder.iterdir()):
            if path.suffix == ".npz":
                useful = {
                    file: reading
                    for file, reading in self._read(path)
                    if file in wanted
                    and reading.digest is not None
                    and reading.error is None
                    and (reading.descriptor is not None or reading.digest in known)
                }
                found |= useful
                if useful:
                    continue
            path.unlink()
        return found

    def clear(self) -> None:
        """Delete everything: all of it has been committed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def key(self, files: Sequence[Sighting]) -> str:
        """Return the name of a block."""
        digest = hashlib.blake2b(self._fingerprint.encode(), digest_size=16)
        for path, stat in map(file_key, files):
            digest.update(os.fsencode(path) + b"\0" + repr(astuple(stat)).encode())
        return digest.hexdigest()

    def path(self, key: str) -> Path:
        """Return the file of a block."""
        return self.folder / f"{key}.npz"

    def begin(self, key: str) -> bool:
        """Note that a worker begins a block; False when too many have died on it."""
        note = self.folder / f"{key}.tries"
        tries = len(note.read_bytes()) if note.exists() else 0
        note.write_bytes(b"." * (tries + 1))
        return tries < MOST_TRIES

    def write(self, key: str, files: Sequence[Sighting], readings: Sequence[Reading]) -> None:
        """Write a block; the readings may be fewer than the files, when the worker was stopped."""
        facts = []
        rows = []
        for sighting, reading in zip(files, readings, strict=False):
            path, stat = file_key(sighting)
            if reading.descriptor is not None:
                rows.append(reading.descriptor)
            digest = reading.digest.hex() if reading.digest is not None else None
            size = (reading.width, reading.height, reading.orientation, reading.taken_at)
            described = reading.descriptor is not None
            facts.append((path, astuple(stat), digest, described, reading.error, *size))
        text = json.dumps({"fingerprint": self._fingerprint, "files": facts}).encode()
        content = io.BytesIO()
        np.savez(
            content,
            facts=np.frombuffer(text, np.uint8),
            descriptors=np.stack(rows) if rows else np.empty((0, 0), np.float16),
        )
        temporary = self.folder / f".{key}.{uuid.uuid4().hex}.tmp"
        move_durably(fill(temporary, content.getbuffer()), self.path(key))
        (self.folder / f"{key}.tries").unlink(missing_ok=True)

    def read(self, key: str) -> list[Reading]:
        """Return the readings of a block.

        Raises:
            OSError: it is not there, or damaged.
        """
        readings = [reading for _, reading in self._read(self.path(key))]
        if not readings:
            raise FileNotFoundError(f"{self.path(key)} is missing or damaged")
        return readings

    def _read(self, path: Path) -> list[tuple[File, Reading]]:
        """Return the files of a block with their readings; none when it is damaged, or of another model."""
        try:
            with np.load(path, allow_pickle=False) as block:
                facts, rows = json.loads(block["facts"].tobytes()), iter(block["descriptors"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return []
        if facts["fingerprint"] != self._fingerprint:
            return []
        found = []
        for name, stat, digest, described, error, *size in facts["files"]:
            row = np.array(next(rows)) if described else None
            content = None if digest is None else bytes.fromhex(digest)
            found.append(((name, FileStat(*stat)), Reading(content, row, error, *size)))
        return found


def file_key(sighting: Sighting) -> File:
    """Return what tells a file as it looked when it was met: its path and stat."""
    return os.fspath(sighting.path), sighting.stat
