"""The images that training draws from, wherever they lie: one list, read by number in any order.

A set is opened in the main process and travels to worker processes as it is: names in compact blocks, no
open file. Each process opens files when it first reads from them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from dinov2kit.archives import COMPRESSED_SUFFIXES, TAR_SUFFIX, compressed_suffix
from dinov2kit.contents import is_there
from dinov2kit.errors import ImageError
from dinov2kit.formats import IMAGE_SUFFIXES

from .archive_images import tar_images, zip_images
from .array_images import ARRAY_SUFFIXES, array_images
from .drawn_shapes import DrawnShapes
from .file_images import folder_images, images_of_list, images_of_table, listed_images, scan_folder
from .parquet_images import PARQUET_SUFFIX, parquet_images
from .pixels import PixelRules, Pixels

BUILT_IN = "drawn-shapes"

_ZIP_SUFFIX, _LIST_SUFFIX, _TABLE_SUFFIX = ".zip", ".txt", ".csv"
_IN_FOLDERS = (TAR_SUFFIX, _ZIP_SUFFIX, PARQUET_SUFFIX)  # what a folder may hold beside images
_KEYED = re.compile(rf"(.+(?:{'|'.join(map(re.escape, (*ARRAY_SUFFIXES, PARQUET_SUFFIX)))})):(.+)", re.I)
_KINDS = (
    "wanted a folder, images, a list (.txt, .csv), or .tar, .zip, .h5, .parquet, .npy, .npz, "
    f"or the name {BUILT_IN}"
)


@runtime_checkable
class ImageSet(Protocol):
    """Images, read by number."""

    def __len__(self) -> int: ...

    def read(self, index: int, /) -> Pixels:
        """Return the pixels of an image, uint8, upright.

        Raises:
            ImageError: it cannot be read; the message names it.
        """

    def name(self, index: int, /) -> str:
        """Return where an image lies, for people."""

    @property
    def digest(self) -> str:
        """A hex digest that changes with the list of images; their contents are not read."""

    @property
    def labels(self) -> list[str] | None:
        """The class of each image, or None where nothing tells it."""


@dataclass(frozen=True)
class JoinedImages:
    """Several sets one after the other.

    Attributes:
        parts: the sets.
        ends: number at which each ends.
        digest: of their digests.
        labels: the class of each image; None where one of the sets has none.
    """

    parts: tuple[ImageSet, ...]
    ends: Int64[np.ndarray, " parts"]
    digest: str
    labels: list[str] | None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def name(self, index: int) -> str:
        """Return the name that the image has in its own set."""
        part, own = self._find(index)
        return part.name(own)

    def read(self, index: int) -> Pixels:
        """Return the pixels of an image.

        Raises:
            ImageError: it cannot be read, is damaged, or does not fit.
        """
        part, own = self._find(index)
        return part.read(own)

    def _find(self, index: int) -> tuple[ImageSet, int]:
        at = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[at], index - (int(self.ends[at - 1]) if at else 0)


def open_images(
    sources: Sequence[Path | str], *, channels: int = 3, window: tuple[float, float] | None = None
) -> ImageSet:
    """Find all the images that some sources hold; none is decoded.

    A source is a folder (with all folders, archives and Parquet files in it), an image, a list of paths (.txt
    with one a line, .csv with the column path and perhaps label), a .tar, a .zip, an HDF5 file of images or
    of encoded images, a Parquet file, an array (.npy, .npz) of images, or "drawn-shapes" (or
    "drawn-shapes:COUNT"), which are drawn as they are read. Where a file holds several arrays or columns of
    images, name one: `file.h5:images`, `file.parquet:image`.

    Args:
        sources: at least one.
        channels: of the pixels. 3 is RGB and 1 luminance, which every photo becomes; other numbers have to be
            those of the files.
        window: the values that become 0 and 255 in images of more than 8 bits; needed for floating point.

    Raises:
        ImageError: a source is not there, cannot be read, or holds no image.
        ArgumentError: the channels or the window make no sense.
        DependencyError: a package that a source needs is missing.
    """
    rules = PixelRules(channels, window)
    parts: list[ImageSet] = []
    single: list[str] = []  # images named one by one become one set
    for source in map(str, sources):
        opened = _open_source(source, rules)
        if not opened:
            single.append(source)
            continue
        parts += [listed_images(single, rules)] if single else []
        parts += opened
        single = []
    parts += [listed_images(single, rules)] if single else []
    if not parts:
        raise ImageError("no source of images is named", hint=_KINDS)
    return parts[0] if len(parts) == 1 else _join(parts)


def _join(parts: list[ImageSet]) -> JoinedImages:
    labels: list[str] = []
    for part in parts:
        labels += part.labels or []
    complete = len(labels) == sum(map(len, parts))
    joined = "\n".join(part.digest for part in parts)
    return JoinedImages(
        parts=tuple(parts),
        ends=np.cumsum([len(part) for part in parts], dtype=np.int64),
        digest=hashlib.blake2b(joined.encode(), digest_size=16).hexdigest(),
        labels=labels if complete else None,
    )


def _open_source(source: str, rules: PixelRules) -> list[ImageSet]:
    """Return the sets of a source; none for a single image, which is opened together with others."""
    name, _, count = source.partition(":")
    if name == BUILT_IN:
        return [_drawn(count, rules)]
    path, keyed = Path(source), _KEYED.fullmatch(source)
    if path.is_dir():
        return _open_folder(path, rules)
    if not is_there(path) and keyed is not None and Path(keyed[1]).is_file():
        return [_open_file(Path(keyed[1]), keyed[2], rules)]
    if not is_there(path):
        raise ImageError(
            f"no such image, folder or archive: {source}", hint="paths are relative to the current folder"
        )
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return []
    return [_open_file(path, "", rules)]


def _open_file(path: Path, key: str, rules: PixelRules) -> ImageSet:
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return array_images(path, key, rules)
    if suffix == PARQUET_SUFFIX:
        return parquet_images(path, key, rules)
    readers: dict[str, Callable[[Path, PixelRules], ImageSet]] = {
        TAR_SUFFIX: tar_images,
        _ZIP_SUFFIX: zip_images,
        _LIST_SUFFIX: images_of_list,
        _TABLE_SUFFIX: images_of_table,
    }
    if suffix in readers:
        return readers[suffix](path, rules)
    if compressed_suffix(path.name):
        raise ImageError(
            f"{path} is compressed as a whole and cannot be read in place",
            hint="decompress it to a .tar first",
        )
    raise ImageError(f"{path} is nothing that holds images", hint=_KINDS)


def _open_folder(folder: Path, rules: PixelRules) -> list[ImageSet]:
    found = scan_folder(folder, _IN_FOLDERS)
    parts: list[ImageSet] = [folder_images(folder, found, rules)] if len(found.images) else []
    parts += [_open_file(container, "", rules) for container in found.containers]
    if not parts:
        packed = [
            path.name for path in sorted(folder.iterdir()) if path.name.lower().endswith(COMPRESSED_SUFFIXES)
        ]
        hint = f"decompress {packed[0]} to a .tar first" if packed else _KINDS
        raise ImageError(f"no images in {folder}", hint=hint)
    return parts


def _drawn(count: str, rules: PixelRules) -> DrawnShapes:
    if count and not (count.isdecimal() and int(count)):
        raise ImageError(f"{count!r} {BUILT_IN}; wanted a number", hint=f"write {BUILT_IN}:10000")
    return DrawnShapes(int(count), channels=rules.channels) if count else DrawnShapes(channels=rules.channels)
