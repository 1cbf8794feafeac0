"""Many images in one array: HDF5 datasets, .npy files (read in place) and .npz files (held in memory)."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dinov2kit.errors import ImageError

from .pixels import PixelRules, Pixels

HDF5_SUFFIXES = (".h5", ".hdf5")
ARRAY_SUFFIXES = (*HDF5_SUFFIXES, ".npy", ".npz")

_OPEN = 64  # files that a process keeps open
_LAYOUT = "wanted (n, height, width) or (n, height, width, channels), or encoded images"


@dataclass(frozen=True)
class ArrayImages:
    """Images along the first axis of an array, or encoded images in an array of blocks of bytes.

    Attributes:
        file: the file.
        key: which array in it; empty where there is but one.
        count: how many images there are.
        rules: what becomes of their pixels.
        digest: of the name, the size and the shape of the array.
        labels: None; arrays have none.
    """

    file: Path
    key: str
    count: int
    rules: PixelRules
    digest: str
    labels: None = None

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Return file[index]."""
        return f"{self.file}{f':{self.key}' if self.key else ''}[{index}]"

    def read(self, index: int) -> Pixels:
        """Return the pixels of an image.

        Raises:
            ImageError: it cannot be read, is damaged, or does not fit.
        """
        if not 0 <= index < self.count:
            raise ImageError(f"{self.name(index)}: there are only {self.count} images")
        try:
            stored = np.asarray(_open(self.file, self.key, os.getpid())[index])
            if stored.ndim == 1:
                return self.rules.decode(stored.tobytes())
            return self.rules.convert(stored)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:  # what h5py raises on damage
            raise ImageError(f"{self.name(index)}: it cannot be read: {error}") from error
        except ImageError as error:
            raise ImageError(f"{self.name(index)}: {error.message}", hint=error.hint) from error


def array_images(file: Path, key: str, rules: PixelRules) -> ArrayImages:
    """Return the images of an array file.

    Args:
        file: .h5, .hdf5, .npy or .npz.
        key: which dataset or array; empty for the only one that can hold images.
        rules: what becomes of the pixels.

    Raises:
        ImageError: the file cannot be read, no array or none of this name holds images, or several do.
    """
    try:
        shapes = _shapes(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ImageError(f"{file}: it cannot be read: {error}") from error
    fitting = {name: shape for name, (shape, dtype) in shapes.items() if _fits(shape, dtype)}
    if key and key not in shapes:
        raise ImageError(f"{file} has no {key}; it has {', '.join(shapes) or 'nothing'}")
    if key and key not in fitting:
        shape, dtype = shapes[key]
        raise ImageError(f"{file}:{key} is {dtype} {shape}; {_LAYOUT}")
    if not fitting:
        found = ", ".join(f"{name} {dtype} {shape}".strip() for name, (shape, dtype) in shapes.items())
        raise ImageError(f"{file} holds no images, but {found or 'nothing'}", hint=_LAYOUT)
    if not key and len(fitting) > 1:
        raise ImageError(
            f"{file} has several arrays of images: {', '.join(fitting)}",
            hint=f"name one: {file}:{next(iter(fitting))}",
        )
    chosen = key or next(iter(fitting))
    facts = f"{file.name}:{chosen} {shapes[chosen]} {file.stat().st_size}"
    digest = hashlib.blake2b(facts.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return ArrayImages(file, chosen, fitting[chosen][0], rules, digest)


def _fits(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    if len(shape) == 1:
        return _is_encoded(dtype) and shape[0] > 0
    return len(shape) in (3, 4) and dtype.kind in "uif" and 0 not in shape


def _is_encoded(dtype: np.dtype[Any]) -> bool:
    """Say whether the items of an HDF5 dataset are blocks of bytes of any length."""
    import h5py

    return bool(h5py.check_vlen_dtype(dtype) == np.uint8)


def _shapes(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Return shape and type of every array in a file, without reading any."""
    suffix = file.suffix.lower()
    if suffix == ".npy":
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        return {"": (array.shape, array.dtype)}
    if suffix == ".npz":
        return _npz_shapes(file)
    import h5py

    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def note(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            found[name] = (item.shape, item.dtype)

    with h5py.File(file, "r") as opened:
        opened.visititems(note)
    return found


def _npz_shapes(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    found = {}
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, dtype = read(member)
            found[name.removesuffix(".npy")] = (shape, dtype)
    return found


@lru_cache(_OPEN)
def _open(file: Path, key: str, process: int) -> Any:
    """Return an array that is read by index; once in each process, for HDF5 must not cross a fork."""
    suffix = file.suffix.lower()
    if suffix == ".npy":
        return np.load(file, mmap_mode="r", allow_pickle=False)
    if suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return arrays[key]
    import h5py

    return h5py.File(file, "r")[key]
