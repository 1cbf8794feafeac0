"""What a network said of boxes in images, on disk: lessons for students, from any program that writes HDF5.

A file is complete in itself; several of them in a folder count as one, in the order of their names. The
layout is in docs/formats.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.files import written_whole

from .image_names import Names
from .image_sets import ImageSet

SCHEMA = "dinokit.teacher-features/1"

_SEVERAL = -2
_KINDS = ("float16", "float32", "uint8")
_TOKENS = ("class_token", "patch_tokens")


class Lesson(NamedTuple):
    """What a teacher said of a box in an image.

    Attributes:
        image: number of the name of the image.
        box: left, top, right and bottom, as shares of the width and height of the upright image.
        flip: whether the teacher saw it mirrored.
        class_token: of the box.
        patch_tokens: of its places, row-major as the teacher saw it; None where it says nothing of places.
    """

    image: int
    box: tuple[float, float, float, float]
    flip: bool
    class_token: Float32[np.ndarray, " dim"]
    patch_tokens: Float32[np.ndarray, "rows cols patch_dim"] | None


@dataclass(frozen=True)
class TeacherFeatures:
    """Lessons, read by number in any order.

    Files are opened when a process first reads from them; the object travels to others without.

    Attributes:
        paths: the files.
        teacher: who spoke, for people.
        digest: of the teacher and of how it was asked; "" where the writer left none.
        class_dim: length of a class token.
        patch_dim: length of a patch token; None where there are none.
        grid: rows and columns of patches; None where there are none.
        names: the images.
        image_of: number of the name of each lesson.
        ends: number of the lesson at which each file ends.
        boxes: as in `Lesson`.
        flips: as in `Lesson`.
    """

    paths: tuple[Path, ...]
    teacher: str
    digest: str
    class_dim: int
    patch_dim: int | None
    grid: tuple[int, int] | None
    names: Names
    image_of: Int64[np.ndarray, " n"]
    ends: Int64[np.ndarray, " files"]
    boxes: Float32[np.ndarray, "n 4"]
    flips: Bool[np.ndarray, " n"]
    _opened: dict[int, h5py.File] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.image_of)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    @classmethod
    def open(cls, path: Path) -> TeacherFeatures:
        """Open a file, or all files (.h5, .hdf5) of a folder.

        Raises:
            ImageError: there is none, one is damaged or holds something else, or they do not belong together.
        """
        paths = [path]
        if path.is_dir():
            paths = sorted(each for each in path.iterdir() if each.suffix.lower() in (".h5", ".hdf5"))
        if not paths:
            raise ImageError(f"{path} holds no teacher features", hint="wanted files that end in .h5")
        files = [_read_head(each) for each in paths]
        first = files[0]
        for each, other in zip(paths, files, strict=True):
            if other.common != first.common:
                raise ImageError(
                    f"{each} does not belong to {paths[0]}: they hold {other.common} and {first.common}",
                    hint="keep the features of each teacher in a folder of their own",
                )
        numbers: dict[bytes, int] = {}
        image_of = []
        for other in files:
            own = np.array([numbers.setdefault(name, len(numbers)) for name in other.names], np.int64)
            image_of.append(own[other.image])
        return cls(
            tuple(paths),
            *first.common,
            Names.collect(numbers),
            np.concatenate(image_of),
            np.cumsum([len(other.image) for other in files]).astype(np.int64),
            np.concatenate([other.box for other in files]),
            np.concatenate([other.flip for other in files]),
        )

    def read(self, row: int) -> Lesson:
        """Return a lesson.

        Raises:
            ImageError: it cannot be read, or is not finite.
        """
        number = int(np.searchsorted(self.ends, row, side="right"))
        own = row - (int(self.ends[number - 1]) if number else 0)
        path = self.paths[number]
        try:
            if number not in self._opened:
                self._opened[number] = h5py.File(path, "r")
            tokens = [_values(self._opened[number], name, own) for name in _TOKENS]
        except (OSError, KeyError, ValueError) as error:
            raise ImageError(f"{path}, row {own}: it cannot be read: {error}") from error
        if not all(np.isfinite(each).all() for each in tokens if each is not None):
            raise ImageError(f"{path}, row {own}: a token is not finite")
        left, top, right, bottom = self.boxes[row].tolist()
        class_token, patch_tokens = tokens
        assert class_token is not None
        box = (left, top, right, bottom)
        return Lesson(int(self.image_of[row]), box, bool(self.flips[row]), class_token, patch_tokens)


class _Head(NamedTuple):
    """What a file says without its tokens."""

    common: tuple[str, str, int, int | None, tuple[int, int] | None]
    names: list[bytes]
    image: Int64[np.ndarray, " n"]
    box: Float32[np.ndarray, "n 4"]
    flip: Bool[np.ndarray, " n"]


def match_images(features: TeacherFeatures, images: ImageSet) -> Int64[np.ndarray, " m"]:
    """Return the number in a set of each image of teacher features; -1 where it is not in the set.

    An image is known by the longest common end of two names that begins after a slash; a folder and the file
    have to agree at least, or one of the names has no folder: "../photos/a/b.jpg" is "/home/photos/a/b.jpg".

    Raises:
        ImageError: several images of the set could be meant.
    """
    known: dict[bytes, int] = {}
    for number in range(len(images)):
        for tail in _tails(os.fsencode(images.name(number))):
            known[tail] = number if tail not in known else _SEVERAL
    found = np.full(len(features.names), -1, np.int64)
    for at, name in enumerate(features.names):
        number = next((known[tail] for tail in _tails(name) if tail in known), -1)
        if number == _SEVERAL:
            raise ImageError(
                f"{os.fsdecode(name)} of the teacher features could be several images",
                hint="name the images by more of their folders",
            )
        found[at] = number
    return found


def write_teacher_features(
    path: Path,
    *,
    teacher: str,
    digest: str,
    names: Sequence[str],
    image: Int64[np.ndarray, " n"],
    box: Float32[np.ndarray, "n 4"],
    flip: Bool[np.ndarray, " n"],
    class_token: Shaped[np.ndarray, "n dim"],
    patch_tokens: Shaped[np.ndarray, "n rows cols patch_dim"] | None,
) -> None:
    """Write a file of teacher features, whole or not at all; tokens are kept in half precision.

    Raises:
        ArgumentError: tokens are not finite in half precision, or the file cannot be written.
    """
    tokens = {"class_token": class_token, "patch_tokens": patch_tokens}
    with np.errstate(over="ignore"):
        halves = {name: each.astype(np.float16) for name, each in tokens.items() if each is not None}
    if bad := [name for name, each in halves.items() if not np.isfinite(each).all()]:
        raise ArgumentError(f"{' and '.join(bad)} of {teacher} cannot be kept in half precision")
    try:
        with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update({"schema": SCHEMA, "teacher": teacher, "digest": digest})
            file.create_dataset(
                "names", data=[os.fsencode(name) for name in names], dtype=h5py.string_dtype()
            )
            for name, values in {"image": image, "box": box, "flip": flip, **halves}.items():
                file.create_dataset(name, data=values)
    except OSError as error:
        raise ArgumentError(f"cannot write {path}: {error.strerror or error}") from error


def _tails(name: bytes) -> list[bytes]:
    """Return a name and its ends after a slash, the longest first, down to a folder and the file."""
    parts = name.split(b"/")
    return [b"/".join(parts[at:]) for at in range(max(len(parts) - 1, 1))]


def _read_head(path: Path) -> _Head:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("schema") != SCHEMA:
                raise ImageError(
                    f"{path} holds no teacher features that this version knows",
                    hint=f'wanted the attribute schema "{SCHEMA}"',
                )
            missing = [name for name in ("names", "image", "class_token") if name not in file]
            if missing:
                raise ImageError(f"{path} lacks {', '.join(missing)}")
            return _checked(path, file)
    except FileNotFoundError as error:
        raise ImageError(f"no such file: {path}") from error
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error}") from error


def _checked(path: Path, file: h5py.File) -> _Head:
    names = [
        name.encode("utf-8", "surrogateescape") if isinstance(name, str) else name
        for name in file["names"][()]
    ]
    image = np.asarray(file["image"][()]).astype(np.int64)
    count = len(image)
    box = np.tile(np.array([0, 0, 1, 1], np.float32), (count, 1))
    if "box" in file:
        box = np.asarray(file["box"][()], np.float32)
    flip = np.asarray(file["flip"][()]).astype(bool) if "flip" in file else np.zeros(count, bool)
    shapes = {name: file[name].shape for name in _TOKENS if name in file}
    faults = [
        *(f"{name} of type {file[name].dtype}" for name in shapes if file[name].dtype.name not in _KINDS),
        *(
            f"{name} in bytes without the attribute scale"
            for name in shapes
            if file[name].dtype.name == "uint8" and "scale" not in file[name].attrs
        ),
    ]
    lengths = {"box": len(box), "flip": len(flip), **{name: shape[0] for name, shape in shapes.items()}}
    faults += [f"{length} rows of {name}" for name, length in lengths.items() if length != count]
    if not count:
        faults.append("no rows")
    elif not (image.min() >= 0 and image.max() < len(names)):
        faults.append(f"images {image.min()} to {image.max()} of {len(names)} names")
    if box.shape[1:] != (4,) or not ((box[:, :2] < box[:, 2:]).all() and box.min() >= 0 and box.max() <= 1):
        faults.append("boxes that are not left, top, right, bottom from 0 to 1")
    if len(shapes["class_token"]) != 2 or len(shapes.get("patch_tokens", (0, 0, 0, 0))) != 4:
        faults.append(f"tokens of shape {', '.join(map(str, shapes.values()))}")
    if faults:
        raise ImageError(
            f"{path} holds {' and '.join(faults)}", hint=f"for {count} rows; see docs/formats.md"
        )
    grid, patch_dim = None, None
    if "patch_tokens" in shapes:
        _, rows, cols, patch_dim = shapes["patch_tokens"]
        grid = (rows, cols)
    said = (str(file.attrs.get("teacher", "")), str(file.attrs.get("digest", "")))
    return _Head((*said, shapes["class_token"][1], patch_dim, grid), names, image, box, flip)


def _values(file: h5py.File, name: str, row: int) -> Float32[np.ndarray, ...] | None:
    """Return the tokens of a row; bytes are turned into what they mean."""
    if name not in file:
        return None
    values = np.asarray(file[name][row], np.float32)
    if file[name].dtype.name != "uint8":
        return values
    facts = file[name].attrs
    zero = np.float32(facts.get("zero_point", 0))
    return np.asarray((values - zero) * np.float32(facts["scale"]), np.float32)
