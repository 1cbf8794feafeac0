"""What the writer takes and gives: files, roots and the descriptions of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float16


@dataclass(frozen=True)
class FileStat:
    """What tells an untouched file without opening it: bytes, modification time in ns, inode."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class FileRecord:
    """A file as the index knows it; `item_id` is None when it has no descriptor."""

    id: int
    relpath: bytes
    size: int
    mtime_ns: int
    inode: int
    hash: bytes | None
    status: str
    error: str | None
    item_id: int | None


@dataclass(frozen=True)
class Row:
    """What a shard keeps of one item beside its descriptor: enough to restore its file in the manifest."""

    id: int
    digest: bytes
    size: int
    mtime_ns: int
    inode: int
    width: int
    height: int
    orientation: int
    taken_at: str | None
    root: bytes
    relpath: bytes


@dataclass(frozen=True)
class Root:
    """A scanned folder and the device it was on when it was first seen."""

    id: int
    path: Path
    fs_id: int


@dataclass(frozen=True)
class Known:
    """The description of a content that the index already has; `Store.put` takes it as one."""

    descriptor: Float16[np.ndarray, " dim"]
    width: int
    height: int
    orientation: int
    taken_at: str | None
    file_id: int
    item_id: int


@runtime_checkable
class Described(Protocol):
    """What `Store.put` needs to know of an image: a `Description` or a `Known`."""

    @property
    def descriptor(self) -> Float[np.ndarray, " dim"] | None:
        """The global descriptor; fp16 rows are stored as they are, others are normalised first."""

    @property
    def width(self) -> int:
        """Width of the upright original, in pixels."""

    @property
    def height(self) -> int:
        """Height of the upright original, in pixels."""

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""

    @property
    def taken_at(self) -> str | None:
        """When the photo was taken, ISO 8601."""
