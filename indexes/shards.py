"""Immutable HDF5 shards: descriptors and what is needed to rebuild the manifest from them.

A shard is made in memory, written by plain file calls under a temporary name, fsynced and renamed, so a full
disk or a crash never leaves half of one under its final name. Datasets are contiguous and uncompressed;
descriptors are read through a memory map at their offset in the file.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float16, Int64, UInt8

from dinov2kit.errors import StoreCorrupt, StoreError
from dinov2kit.identity import ModelIdentity

from .layout import SCHEMA, fill, move_durably
from .records import Row

_PAGE = 4096
_FACTS = (  # datasets beside the descriptors, in the order of their checksum
    "norm", "id", "hash", "size", "mtime_ns", "inode", "wh", "orient", "taken_at",
    "paths", "path_off", "root", "roots", "root_off",
)  # fmt: skip


@dataclass(frozen=True)
class Stamp:
    """Where a shard belongs.

    Attributes:
        uuid: of the index.
        model: what made the descriptors.
        next_id: the first id not yet used when the shard was written.
        replaces: numbers of the shards whose live rows this one took over.
    """

    uuid: str
    model: ModelIdentity
    next_id: int
    replaces: tuple[int, ...] = ()


def write_shard(
    path: Path,
    rows: Sequence[Row],
    descriptors: Float16[np.ndarray, "n dim"],
    *,
    stamp: Stamp,
    tmp: Path,
) -> str:
    """Write a shard so that it appears whole or not at all, and return its checksum.

    Args:
        path: the final name.
        rows: facts of the items, ids ascending.
        descriptors: L2-normalised rows.
        stamp: where it belongs.
        tmp: folder on the same file system for the unfinished file.

    Raises:
        OSError: the disk is full or fails; nothing is left behind.
    """
    arrays = _arrays(rows, descriptors)
    checksum = _digest(arrays["emb"])
    image = io.BytesIO()
    with h5py.File(image, "w", alignment_threshold=_PAGE, alignment_interval=_PAGE) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
        file.attrs["uuid"] = stamp.uuid
        file.attrs["fingerprint"] = stamp.model.fingerprint
        file.attrs["model"] = json.dumps(stamp.model.to_json())
        file.attrs["schema"] = SCHEMA
        file.attrs["n"] = len(rows)
        file.attrs["next_id"] = stamp.next_id
        file.attrs["replaces"] = np.asarray(stamp.replaces, "<i8")
        file.attrs["blake2b"] = checksum
        file.attrs["blake2b_facts"] = _digest(*(arrays[name] for name in _FACTS))
        file.attrs["complete"] = 1
    move_durably(fill(tmp / path.name, image.getbuffer(), mode=0o444), path)
    return checksum


class Shard:
    """An open shard; its descriptors stay readable after the file has been unlinked.

    Attributes:
        ids: item ids, ascending.
        descriptors: memory-mapped fp16 rows, in the order of `ids`.
        checksum: digest of the descriptors as recorded when they were written.
        stamp: where the shard belongs.
    """

    ids: Int64[np.ndarray, " n"]
    descriptors: Float16[np.ndarray, "n dim"]
    checksum: str
    stamp: Stamp

    def __init__(self, path: Path) -> None:
        """Open a shard.

        Raises:
            StoreCorrupt: it is missing, torn or not a shard.
        """
        self.path = path
        try:
            with h5py.File(path, "r", locking=False) as file:
                if int(file.attrs["complete"]) != 1 or int(file.attrs["n"]) != len(file["id"]):
                    raise ValueError("it is not complete")
                self.ids = file["id"][()]
                self.descriptors = _map(path, file["emb"])
                self.checksum = str(file.attrs["blake2b"])
                self.stamp = Stamp(
                    uuid=str(file.attrs["uuid"]),
                    model=ModelIdentity.from_json(json.loads(file.attrs["model"])),
                    next_id=int(file.attrs["next_id"]),
                    replaces=tuple(int(number) for number in file.attrs["replaces"]),
                )
            if len(self.descriptors) != len(self.ids):
                raise ValueError("rows and ids differ in number")
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            if getattr(error, "errno", None) == errno.EMFILE:
                raise StoreError(
                    f"too many open files: {error}", hint="run dinokit compact, or raise `ulimit -n`"
                ) from error
            raise StoreCorrupt(
                f"shard {path.name} is damaged: {error}", hint="see what is lost with: dinokit repair"
            ) from error

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, places: Sequence[int] | None = None) -> list[Row]:
        """Read the facts of the items at some places, or of all, in the order of `ids`."""
        with h5py.File(self.path, "r", locking=False) as file:
            facts: Mapping[str, np.ndarray] = {name: file[name][()] for name in _FACTS}
        roots = _cut(facts["roots"], facts["root_off"])
        relpaths = _cut(facts["paths"], facts["path_off"])
        return [
            Row(
                id=int(facts["id"][i]),
                digest=facts["hash"][i].tobytes(),
                size=int(facts["size"][i]),
                mtime_ns=int(facts["mtime_ns"][i]),
                inode=int(facts["inode"][i]),
                width=int(facts["wh"][i, 0]),
                height=int(facts["wh"][i, 1]),
                orientation=int(facts["orient"][i]),
                taken_at=bytes(facts["taken_at"][i]).decode("ascii", "replace") or None,
                root=roots[int(facts["root"][i])],
                relpath=relpaths[i],
            )
            for i in (range(len(self)) if places is None else places)
        ]

    def check(self) -> None:
        """Read everything.

        Raises:
            StoreCorrupt: it is not as it was written.
        """
        if not self.is_intact():
            raise StoreCorrupt(
                f"shard {self.path.name} is damaged: its checksum differs",
                hint="see what is lost with: dinokit repair",
            )

    def is_intact(self) -> bool:
        """Read everything and compare it with the checksums of the day it was written."""
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                recorded = str(file.attrs["blake2b_facts"])
                return _digest(file["emb"][()]) == self.checksum and recorded == _digest(
                    *(file[name][()] for name in _FACTS)
                )
        except (OSError, KeyError, ValueError, RuntimeError):
            return False


def _arrays(rows: Sequence[Row], descriptors: Float16[np.ndarray, "n dim"]) -> dict[str, np.ndarray]:
    roots = sorted({row.root for row in rows})
    root_number = {root: number for number, root in enumerate(roots)}
    root_blob, root_off = _join(roots)
    path_blob, path_off = _join([row.relpath for row in rows])
    return {
        "emb": np.ascontiguousarray(descriptors, "<f2"),
        "norm": np.linalg.norm(descriptors.astype(np.float32), axis=1).astype("<f4"),
        "id": np.array([row.id for row in rows], "<i8"),
        "hash": np.frombuffer(b"".join(row.digest for row in rows), np.uint8).reshape(len(rows), 16),
        "size": np.array([row.size for row in rows], "<i8"),
        "mtime_ns": np.array([row.mtime_ns for row in rows], "<i8"),
        "inode": np.array([row.inode for row in rows], "<u8"),
        "wh": np.array([(row.width, row.height) for row in rows], "<u4"),
        "orient": np.array([row.orientation for row in rows], np.uint8),
        "taken_at": np.array([(row.taken_at or "").encode("ascii", "replace") for row in rows], "S32"),
        "paths": path_blob,
        "path_off": path_off,
        "root": np.array([root_number[row.root] for row in rows], "<u4"),
        "roots": root_blob,
        "root_off": root_off,
    }


def _join(texts: Sequence[bytes]) -> tuple[UInt8[np.ndarray, " bytes"], Int64[np.ndarray, " n"]]:
    offsets = np.zeros(len(texts) + 1, "<i8")
    offsets[1:] = np.cumsum([len(text) for text in texts])
    return np.frombuffer(b"".join(texts), np.uint8), offsets


def _cut(blob: np.ndarray, offsets: np.ndarray) -> list[bytes]:
    whole = blob.tobytes()
    return [whole[start:end] for start, end in pairwise(offsets)]


def _digest(*arrays: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _map(path: Path, dataset: h5py.Dataset) -> Float16[np.ndarray, "n dim"]:
    """Map the rows of a contiguous dataset; read them where HDF5 knows no offset."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype != np.dtype("<f2"):
        return np.asarray(dataset[()], np.float16)
    if offset + dataset.size * 2 > path.stat().st_size:
        raise ValueError("it is cut short")
    return np.memmap(path, "<f2", "r", offset, dataset.shape)
