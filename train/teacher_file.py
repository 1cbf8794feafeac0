"""A file of teacher features: what it says without its tokens, whether it agrees with itself, and its rows.

Any program may have written the file, so every fault is named before a token is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Bool, Float32, Int64

from dinov2kit.errors import ImageError

SCHEMA = "dinokit.teacher-features/1"
TOKENS = ("class_token", "patch_tokens")

_HINT = "see Teacher features in docs/formats.md"
_NEEDED = ("names", "image", "class_token")
_AXES = {"names": 1, "image": 1, "box": 2, "flip": 1, "class_token": 2, "patch_tokens": 4}
_KINDS = {"image": "iu", "box": "fiu", "flip": "biu"}  # as NumPy names kinds of numbers
_TYPES = ("float16", "float32", "uint8")  # of tokens


class Head(NamedTuple):
    """What a file says without its tokens.

    Attributes:
        common: what all files of one teacher share: its name, its digest, the lengths of class and patch
            tokens, and rows and columns of patches; None where there are no patch tokens.
        names: the images.
        image: number of the name of each row.
        box: left, top, right and bottom of each row, as shares of the image.
        flip: whether each row was seen mirrored.
    """

    common: tuple[str, str, int, int | None, tuple[int, int] | None]
    names: list[bytes]
    image: Int64[np.ndarray, " n"]
    box: Float32[np.ndarray, "n 4"]
    flip: Bool[np.ndarray, " n"]


class Rows:
    """The tokens of one dataset, open for reading row by row.

    Args:
        dataset: of tokens.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._in_bytes = dataset.dtype == np.uint8
        self._scale, self._zero = np.float32(1), np.float32(0)
        if self._in_bytes:
            self._scale = np.float32(_number(dataset, "scale", None))
            self._zero = np.float32(_number(dataset, "zero_point", 0.0))

    def read(self, row: int) -> Float32[np.ndarray, "*shape"]:
        """Return the tokens of a row; bytes are turned into what they mean.

        Raises:
            ImageError: a value is not finite.
        """
        values = np.asarray(self._dataset[row], np.float32)
        if self._in_bytes:
            return np.asarray((values - self._zero if self._zero else values) * self._scale)
        if not np.isfinite(values).all():
            raise ImageError("a token is not finite")
        return values


def read_head(path: Path) -> Head:
    """Return what a file says without its tokens.

    Raises:
        ImageError: it is not there, is damaged, holds something else, or does not agree with itself.
    """
    try:
        with h5py.File(path, "r") as file:
            return checked_head(path, file)
    except FileNotFoundError as error:
        raise ImageError(f"no such file: {path}") from error
    except (OSError, RuntimeError) as error:  # what h5py raises on damage
        raise ImageError(f"{path} cannot be read: {error}") from error


def checked_head(path: Path, file: h5py.File) -> Head:
    """Return what an open file says without its tokens.

    Args:
        path: what the file is called in errors.
        file: open for reading or for writing.

    Raises:
        ImageError: it holds something else, or does not agree with itself.
    """
    if _text(file, "schema") != SCHEMA:
        raise ImageError(
            f"{path} holds no teacher features that this version knows",
            hint=f'wanted the attribute schema "{SCHEMA}"',
        )
    if missing := [name for name in _NEEDED if name not in file]:
        raise ImageError(f"{path} lacks {', '.join(missing)}", hint=_HINT)
    faults = [fault for name in _AXES if name in file for fault in _layout_faults(file[name], name)]
    _refuse(path, faults)
    names = [bytes(name) for name in file["names"][()]]
    image = file["image"][()]
    count = len(image)
    _refuse(path, [] if count else ["no rows"])
    lengths = {name: len(file[name]) for name in _AXES if name in file and name != "names"}
    faults = [f"{length} rows of {name}" for name, length in lengths.items() if length != count]
    _refuse(path, faults, f"for {count} rows of image; ")
    box = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    if "box" in file:
        box = np.asarray(file["box"][()], np.float32)
    if image.min() < 0 or image.max() >= len(names):
        faults.append(f"images {image.min()} to {image.max()} of {len(names)} names")
    if not ((box[:, :2] < box[:, 2:]).all() and box.min() >= 0 and box.max() <= 1):
        faults.append("boxes that are not left, top, right, bottom from 0 to 1")
    _refuse(path, faults)
    flip = np.asarray(file["flip"][()]).astype(bool) if "flip" in file else np.zeros(count, bool)
    grid, patch_dim = None, None
    if "patch_tokens" in file:
        _, rows, cols, patch_dim = file["patch_tokens"].shape
        grid = (rows, cols)
    common = (_text(file, "teacher"), _text(file, "digest"), file["class_token"].shape[1], patch_dim, grid)
    return Head(common, names, image.astype(np.int64), box, flip)


def _refuse(path: Path, faults: list[str], wanted: str = "") -> None:
    if faults:
        raise ImageError(f"{path} holds {' and '.join(faults)}", hint=wanted + _HINT)


def _layout_faults(item: Any, name: str) -> list[str]:
    """Say what is wrong with the shape and the type of a dataset."""
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        return [f"{name} that is no array"]
    shape, dtype = item.shape, item.dtype
    if len(shape) != _AXES[name] or 0 in shape[1:] or (name == "box" and shape[1] != 4):
        return [f"{name} of shape {shape}"]
    if name == "names":
        fits = dtype.kind == "S" or h5py.check_string_dtype(dtype) is not None
    elif name in TOKENS:
        fits = dtype.name in _TYPES
    else:
        fits = dtype.kind in _KINDS[name]
    if not fits:
        return [f"{name} of type {dtype}"]
    if dtype.name == "uint8" and name in TOKENS:
        return _scale_faults(item, name)
    return []


def _scale_faults(item: h5py.Dataset, name: str) -> list[str]:
    if "scale" not in item.attrs:
        return [f"{name} in bytes without the attribute scale"]
    scale, zero = _number(item, "scale", None), _number(item, "zero_point", 0.0)
    if not (np.isfinite(np.array([scale, zero], np.float32)).all() and np.float32(scale) > 0):
        return [f"{name} of scale {item.attrs['scale']} and zero point {zero:g}"]
    return []


def _number(item: h5py.Dataset, name: str, default: float | None) -> float:
    """Return an attribute that is a number; NaN where it is none."""
    stored = np.asarray(item.attrs.get(name, default))
    return float(stored.item()) if stored.size == 1 and stored.dtype.kind in "fiu" else float("nan")


def _text(file: h5py.File, name: str) -> str:
    """Return an attribute that is text; "" where there is none."""
    stored = file.attrs.get(name, "")
    return stored.decode("utf-8", "replace") if isinstance(stored, bytes) else str(stored)
