"""What a network said of boxes in images, on disk: lessons for students, from any program that writes HDF5.

A file is complete in itself; several of them in a folder count as one, in the order of their names. The
layout is in docs/formats.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from jaxtyping import Bool, Float32, Int64, Shaped

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.files import written_whole

from .array_images import HDF5_SUFFIXES
from .image_names import Names
from .image_sets import ImageSet
from .teacher_file import SCHEMA, TOKENS, Rows, checked_head, read_head

_SEVERAL = -2
_OPEN = 128  # files that a process keeps open
_MORE_FOLDERS = "name the images by more of their folders"


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

    def __len__(self) -> int:
        return len(self.image_of)

    @classmethod
    def open(cls, path: Path) -> TeacherFeatures:
        """Open a file, or all files (.h5, .hdf5) of a folder.

        Raises:
            ImageError: there is none, one is damaged or holds something else, or they do not belong together.
        """
        paths = [path]
        if path.is_dir():
            paths = sorted(
                each
                for each in path.iterdir()
                if each.suffix.lower() in HDF5_SUFFIXES and not each.name.startswith(".")
            )
        if not paths:
            raise ImageError(f"{path} holds no teacher features", hint="wanted files that end in .h5")
        _open.cache_clear()  # a file may have been written anew under its name
        files = [read_head(each) for each in paths]
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
        if not 0 <= row < len(self):
            raise ImageError(f"{self.paths[0]}: there is no row {row}, but {len(self)} from 0 on")
        number = int(np.searchsorted(self.ends, row, side="right"))
        own = row - (int(self.ends[number - 1]) if number else 0)
        path = self.paths[number]
        try:
            tokens = {name: rows.read(own) for name, rows in _open(path, os.getpid()).items()}
        except (OSError, KeyError, ValueError, RuntimeError) as error:  # what h5py raises on damage
            raise ImageError(f"{path}, row {own}: it cannot be read: {error}") from error
        except ImageError as error:
            raise ImageError(f"{path}, row {own}: {error.message}") from error
        left, top, right, bottom = self.boxes[row].tolist()
        return Lesson(
            int(self.image_of[row]),
            (left, top, right, bottom),
            bool(self.flips[row]),
            tokens["class_token"],
            tokens.get("patch_tokens"),
        )


def match_images(features: TeacherFeatures, images: ImageSet) -> Int64[np.ndarray, " m"]:
    """Return the number in a set of each image of teacher features; -1 where it is not in the set.

    Equal names are one image. Else an image is known by the longest common end of two names that begins after
    a slash; a folder and the file have to agree at least, or one of the names has no folder:
    "../photos/a/b.jpg" is "/home/photos/a/b.jpg". Where several names fit one image so, the one that has more
    in common with it has it, and the others are not in the set.

    Raises:
        ImageError: several images of the set could be meant, or several names could mean one image.
    """
    own = [os.fsencode(images.name(number)) for number in range(len(images))]
    wholes = _numbered((name, number) for number, name in enumerate(own))
    ends, files = wholes, wholes
    if any(name not in wholes for name in features.names):
        ends = _numbered((end, number) for number, name in enumerate(own) for end in _ends(name))
        files = _numbered((_file(name), number) for number, name in enumerate(own))
    found = np.full(len(features.names), -1, np.int64)
    shared = np.zeros(len(found), np.int64)
    unclear: dict[int, bytes] = {}
    for at, name in enumerate(features.names):
        found[at], end = _place(name, wholes, ends, files)
        shared[at] = len(end) + (name in wholes)  # an equal name has more in common than any end
        if found[at] == _SEVERAL:
            unclear[at] = end
    most = np.zeros(len(own), np.int64)
    there = found >= 0
    np.maximum.at(most, found[there], shared[there])
    _refuse_unclear(features, unclear, shared, own, most)
    there[there] = shared[there] == most[found[there]]
    found[~there] = -1
    if len(twice := np.flatnonzero(np.bincount(found[there], minlength=len(own)) > 1)):
        one, other = np.flatnonzero(found == twice[0])[:2].tolist()
        raise ImageError(
            f"{os.fsdecode(features.names[one])} and {os.fsdecode(features.names[other])} of the teacher "
            f"features could both be {images.name(int(twice[0]))}",
            hint=_MORE_FOLDERS,
        )
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
    scales: Mapping[str, float] | None = None,
) -> None:
    """Write a file of teacher features, whole or not at all; tokens are kept in half precision or in bytes.

    Args:
        path: the file.
        teacher: who speaks, for people.
        digest: of the teacher and of how it was asked; "" where nothing tells it.
        names: of the images.
        image: which of the names each row is of.
        box: of each row, as in `Lesson`.
        flip: of each row, as in `Lesson`.
        class_token: of each row; floating point, or uint8 with a scale.
        patch_tokens: the same; None where the teacher says nothing of places.
        scales: what a step of uint8 tokens is worth, by "class_token" and "patch_tokens".

    Raises:
        ArgumentError: tokens are not finite in half precision, `TeacherFeatures.open` would refuse the file,
            or it cannot be written.
    """
    tokens = {"class_token": class_token, "patch_tokens": patch_tokens}
    with np.errstate(over="ignore"):
        kept = {
            name: each.astype(np.float16) if each.dtype.kind == "f" else each
            for name, each in tokens.items()
            if each is not None
        }
    if bad := [name for name, each in kept.items() if not np.isfinite(each).all()]:
        raise ArgumentError(f"{' and '.join(bad)} of {teacher} cannot be kept in half precision")
    try:
        with written_whole(path) as temporary, h5py.File(temporary, "w") as file:
            file.attrs.update({"schema": SCHEMA, "teacher": teacher, "digest": digest})
            file.create_dataset(
                "names", data=[os.fsencode(name) for name in names], dtype=h5py.string_dtype()
            )
            for name, values in {"image": image, "box": box, "flip": flip, **kept}.items():
                file.create_dataset(name, data=values)
            for name, scale in (scales or {}).items():
                file[name].attrs["scale"] = scale
            checked_head(path, file)
    except ImageError as error:  # here it is the caller who made the file so
        raise ArgumentError(error.message, hint=error.hint) from error
    except OSError as error:
        raise ArgumentError(f"cannot write {path}: {error.strerror or error}") from error


def _place(
    name: bytes, wholes: dict[bytes, int], ends: dict[bytes, int], files: dict[bytes, int]
) -> tuple[int, bytes]:
    """Return the number of the image of a name, -1 or `_SEVERAL`, and what both names share."""
    if name in wholes:
        return wholes[name], name
    if b"/" not in name:
        return files.get(name, -1), name
    end = next((end for end in (*_ends(name), _file(name)) if end in ends), b"")
    return ends.get(end, -1), end


def _refuse_unclear(
    features: TeacherFeatures,
    unclear: dict[int, bytes],
    shared: Int64[np.ndarray, " m"],
    own: Sequence[bytes],
    most: Int64[np.ndarray, " images"],
) -> None:
    """Refuse names that could be several images, unless all of these have a name of their own."""
    lowest: dict[bytes, int] = {}
    for number, name in enumerate(own if unclear else ()):
        for end in (*_ends(name), _file(name)):
            lowest[end] = min(lowest.get(end, int(most[number])), int(most[number]))
    for at, end in unclear.items():
        if lowest[end] <= shared[at]:
            raise ImageError(
                f"{os.fsdecode(features.names[at])} of the teacher features could be several images",
                hint=_MORE_FOLDERS,
            )


def _numbered(pairs: Iterable[tuple[bytes, int]]) -> dict[bytes, int]:
    """Return the number of each name; `_SEVERAL` for a name that comes again."""
    numbers: dict[bytes, int] = {}
    for name, number in pairs:
        numbers[name] = _SEVERAL if name in numbers else number
    return numbers


def _file(name: bytes) -> bytes:
    return name.rpartition(b"/")[2]


def _ends(name: bytes) -> list[bytes]:
    """Return a name and its ends after a slash, the longest first, down to a folder and the file."""
    parts = name.split(b"/")
    return [b"/".join(parts[at:]) for at in range(max(len(parts) - 1, 1))]


@lru_cache(_OPEN)
def _open(path: Path, process: int) -> dict[str, Rows]:
    """Open the tokens of a file; once in each process, for HDF5 must not cross a fork."""
    file = h5py.File(path, "r")
    return {name: Rows(file[name]) for name in TOKENS if name in file}
