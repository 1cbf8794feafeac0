"""What the writer takes and gives: files, roots and the descriptions of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float16

from dinov2kit.errors import ArgumentError

Watch = Callable[[str, int, int | None], None]
"""Called with the stage of a long work, how much is done, and how much there is in all, if known."""


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


def as_stored(descriptor: Float[np.ndarray, " n"] | None, dim: int) -> Float16[np.ndarray, " dim"]:
    """Return a copy of a descriptor as a shard keeps it: fp16 as it is, others normalised first.

    Raises:
        ArgumentError: it is missing, not finite, zero or of another length.
    """
    if descriptor is None or descriptor.shape != (dim,):
        got = "none" if descriptor is None else f"{descriptor.shape[0]} numbers"
        raise ArgumentError(f"a descriptor of this index has {dim} numbers, got {got}")
    length = float(np.linalg.norm(descriptor.astype(np.float32)))
    if not np.isfinite(length) or length == 0:
        raise ArgumentError("the descriptor is not finite, or zero")
    return descriptor.copy() if descriptor.dtype == np.float16 else (descriptor / length).astype(np.float16)
