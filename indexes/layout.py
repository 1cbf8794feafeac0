"""Where things lie in an index directory, and its identity card `dinokit.json`.

    <index>/dinokit.json                        identity, written once
    <index>/manifest.sqlite                     files, items, shards, runs
    <index>/features/000/shard-00000012.h5      descriptors, immutable; the truth
    <index>/ann/gen-000007/, CURRENT            a faiss index and the name of the one in use; a cache
    <index>/tmp/, lock, lock.json               work in progress and who writes
    <index>/incoming/                           what remote workers have read, see incoming.py

A file appears under its final name whole or not at all.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from dinov2kit import __version__
from dinov2kit.errors import StoreCorrupt, StoreError, StoreMismatch, StoreMissing, StoreTooNew
from dinov2kit.identity import ModelIdentity

SCHEMA, LEAN_SCHEMA = 1, 2  # older versions must not take a lean manifest for an empty one
SHARD_ROWS = 65536
_FORMAT = "dinokit-index"
_SHARD = re.compile(r"shard-(\d{8,})\.h5")  # not the copies that people and sync programs make


@dataclass(frozen=True)
class Layout:
    """The paths inside one index directory."""

    directory: Path

    @property
    def card(self) -> Path:
        """The identity card."""
        return self.directory / "dinokit.json"

    @property
    def manifest(self) -> Path:
        """The SQLite database."""
        return self.directory / "manifest.sqlite"

    @property
    def features(self) -> Path:
        """The folder of the shards."""
        return self.directory / "features"

    @property
    def ann(self) -> Path:
        """The folder of the faiss generations."""
        return self.directory / "ann"

    @property
    def current(self) -> Path:
        """The file that names the generation in use."""
        return self.directory / "CURRENT"

    @property
    def tmp(self) -> Path:
        """Work in progress; emptied when a writer opens the index."""
        return self.directory / "tmp"

    @property
    def lock(self) -> Path:
        """The file that the one writer locks."""
        return self.directory / "lock"

    @property
    def lock_facts(self) -> Path:
        """Who holds the lock, for the message to others."""
        return self.directory / "lock.json"

    def shard(self, number: int) -> Path:
        """Return the path of a shard; a thousand of them share a folder."""
        return self.features / f"{number // 1000:03d}" / f"shard-{number:08d}.h5"

    def shards(self) -> dict[int, Path]:
        """Return the shards that lie on disk, by number, known to the manifest or not."""
        found = [(_SHARD.fullmatch(path.name), path) for path in self.features.glob("*/shard-*.h5")]
        return dict(sorted((int(match[1]), path) for match, path in found if match))

    def generation(self, number: int) -> Path:
        """Return the folder of a faiss generation."""
        return self.ann / f"gen-{number:06d}"

    def read_current(self) -> Path | None:
        """Return the folder of the faiss generation in use, or None when there is none."""
        try:
            name = self.current.read_text("utf-8").strip()
        except FileNotFoundError:
            return None
        folder = self.ann / name
        return folder if name.startswith("gen-") and folder.parent == self.ann and folder.is_dir() else None


@dataclass(frozen=True)
class Card:
    """The identity of an index.

    Attributes:
        uuid: made at random when the index was created; every shard carries it.
        created: when, ISO 8601 in UTC.
        schema: version of the layout.
        model: what made the descriptors.
        shard_rows: rows to which small shards are merged.
        written_by: the version of this project that created the index.
    """

    uuid: str
    created: str
    schema: int
    model: ModelIdentity
    shard_rows: int
    written_by: str

    @property
    def lean(self) -> bool:
        """Whether the manifest has shards only; then what is known of each item stands in its shard."""
        return self.schema == LEAN_SCHEMA


def make_folders(layout: Layout) -> None:
    """Make the folders of a new index.

    Raises:
        StoreError: there is an index already, or the folder holds other things or cannot be written.
    """
    directory = layout.directory
    ours = {layout.manifest.name, "features", "ann", "tmp", "lock", "lock.json"}
    strangers = []
    if directory.is_dir():
        strangers = [path for path in directory.iterdir() if path.name.split("-")[0] not in ours]
    if layout.card.exists():
        raise StoreError(f"there is an index in {directory} already", hint="use it, or name another folder")
    if strangers:
        raise StoreError(
            f"{directory} is no index and not empty: it has {strangers[0].name}",
            hint="name a folder that is empty or does not exist",
        )
    try:
        for folder in (layout.features, layout.ann, layout.tmp):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make an index in {directory}: {error.strerror or error}",
            hint="name a folder that can be written with -i DIR",
        ) from error


def new_card(model: ModelIdentity, *, shard_rows: int = SHARD_ROWS, lean: bool = False) -> Card:
    """Make the card of a new index."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return Card(uuid.uuid4().hex, created, LEAN_SCHEMA if lean else SCHEMA, model, shard_rows, __version__)


def write_card(layout: Layout, card: Card) -> None:
    """Write the card; the directory is an index from then on."""
    facts = {
        "format": _FORMAT,
        "schema": card.schema,
        "uuid": card.uuid,
        "created": card.created,
        "written_by": card.written_by,
        "model": card.model.to_json(),
        "store": {"dtype": "f2", "normalized": True, "shard_rows": card.shard_rows},
        "metric": "ip",
    }
    write_durably(layout.card, json.dumps(facts, indent=2).encode() + b"\n")


def read_card(layout: Layout) -> Card:
    """Read the card of an index.

    Raises:
        StoreMissing: there is no index here.
        StoreTooNew: a newer version wrote it.
        StoreCorrupt: the card cannot be understood.
    """
    try:
        facts = json.loads(layout.card.read_bytes())
        if facts["format"] != _FORMAT:
            raise ValueError(f"format is {facts['format']!r}")
        check_schema(int(facts["schema"]), layout, written_by=str(facts["written_by"]))
        return Card(
            uuid=str(facts["uuid"]),
            created=str(facts["created"]),
            schema=int(facts["schema"]),
            model=ModelIdentity.from_json(facts["model"]),
            shard_rows=int(facts["store"]["shard_rows"]),
            written_by=str(facts["written_by"]),
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "make it again from the descriptors with: dinokit repair"
        raise StoreMissing(
            f"there is no index in {layout.directory}",
            hint=hint if layout.shards() else "make one with: dinokit index PHOTOS",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise StoreCorrupt(
            f"{layout.card} cannot be understood: {error}",
            hint="make it again from the descriptors with: dinokit repair",
        ) from error


def check_schema(schema: int, layout: Layout, *, written_by: str = "") -> None:
    """Refuse an index that a newer version wrote.

    Raises:
        StoreTooNew: its schema is newer than this version knows.
    """
    if schema > LEAN_SCHEMA:
        writer = f" (written by dinov2kit {written_by})" if written_by else ""
        raise StoreTooNew(
            f"index {layout.directory} has schema {schema}{writer};"
            f" dinov2kit {__version__} reads up to {LEAN_SCHEMA}",
            hint=f"upgrade to dinov2kit {written_by or 'with schema ' + str(schema)} or newer",
        )


def check_model(card: Card, model: ModelIdentity) -> None:
    """Refuse descriptors that cannot be compared with those of the index.

    Raises:
        StoreMismatch: model, weights, pooling or preprocessing differ.
    """
    if card.model.fingerprint == model.fingerprint:
        return
    kept, asked = card.model, model
    if (kept.name, kept.dim) != (asked.name, asked.dim):
        differ = f"with {kept.name} ({kept.dim} dims), not {asked.name} ({asked.dim} dims)"
    elif kept.weights_sha256 != asked.weights_sha256:
        differ = f"with weights {kept.weights_sha256[:12]} of {kept.name}, not {asked.weights_sha256[:12]}"
    elif kept.pooling != asked.pooling:
        differ = f"with pooling {kept.pooling}, not {asked.pooling}"
    else:
        keys = sorted(kept.preprocess.keys() | asked.preprocess.keys())
        pairs = [(key, kept.preprocess.get(key), asked.preprocess.get(key)) for key in keys]
        differ = "with " + ", ".join(f"{key} {old}, not {new}" for key, old, new in pairs if old != new)
    raise StoreMismatch(
        f"index was built {differ}",
        hint="drop --model to use the model of the index, or make another index with -i OTHER_DIR",
    )


def write_durably(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file whole: temporary name, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    move_durably(fill(temporary, content, mode=mode), path)


def fill(path: Path, content: bytes | memoryview, *, mode: int = 0o644) -> Path:
    """Write `content` to `path` and wait until the disk has it; leave no half file behind."""
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def move_durably(source: Path, target: Path) -> None:
    """Rename a file and wait until the disk has the name."""
    if not target.parent.is_dir():
        target.parent.mkdir(parents=True)
        sync_folder(target.parent.parent)
    source.replace(target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
