"""Image files in folders and in lists: found once, read one by one."""

from __future__ import annotations

import csv
import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dinov2kit.contents import open_content, stat_content
from dinov2kit.errors import ImageError
from dinov2kit.formats import IMAGE_SUFFIXES
from dinov2kit.labelled_images import read_labelled_csv

from .image_names import Names, class_labels, digest_names, is_wanted
from .pixels import PixelRules, Pixels

ARRAY_SUFFIX = ".npy"

_WANTED = tuple(os.fsencode(suffix) for suffix in sorted(IMAGE_SUFFIXES | {ARRAY_SUFFIX}))


@dataclass(frozen=True)
class FileImages:
    """Images in files of their own.

    Attributes:
        root: the folder from which the names count.
        names: paths of the files.
        rules: what becomes of their pixels.
        digest: of names and sizes.
        labels: the class of each, or None.
    """

    root: str
    names: Names
    rules: PixelRules
    digest: str
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, os.fsdecode(self.names[index]))  # noqa: PTH118 - a Path takes longer

    def read(self, index: int) -> Pixels:
        """Return the pixels of an image.

        Raises:
            ImageError: the file cannot be read, is damaged, or does not fit.
        """
        name = self.name(index)
        try:
            with open_content(Path(name)) as file:
                encoded = file.read()
            return self.rules.decode(encoded)
        except OSError as error:
            raise ImageError(f"{name}: it cannot be read: {error.strerror or error}") from error
        except ImageError as error:
            raise ImageError(f"{name}: {error.message}", hint=error.hint) from error


@dataclass(frozen=True)
class Found:
    """What a folder holds.

    Attributes:
        images: names of the image files below the folder, in the order of their bytes within each folder.
        sizes: of these, in bytes.
        containers: archives and tables among them, which are read as sources of their own.
    """

    images: Names
    sizes: Int64[np.ndarray, " n"]
    containers: list[Path]


def scan_folder(root: Path, container_suffixes: Sequence[str]) -> Found:
    """Find the images below a folder, those in linked folders too; hidden files and folders are left out.

    Each file is asked for its size once.

    Raises:
        ImageError: a folder cannot be read.
    """
    wanted = (*_WANTED, *(os.fsencode(suffix) for suffix in container_suffixes))
    containers, sizes = [], array("q")
    base = os.fsencode(root)

    def images() -> Iterator[bytes]:
        for entry in _files(base, wanted):
            facts = _stat(entry)
            if facts is None:
                continue
            if entry.name.lower().endswith(_WANTED):
                sizes.append(facts.st_size)
                yield entry.path[len(base) :].lstrip(b"/")
            else:
                containers.append(Path(os.fsdecode(entry.path)))

    try:
        names = Names.collect(images())
    except OSError as error:
        raise ImageError(
            f"{root}: it cannot be read: {error.strerror or error} ({error.filename})"
        ) from error
    return Found(names, np.array(sizes, np.int64), containers)


def folder_images(root: Path, found: Found, rules: PixelRules) -> FileImages:
    """Return the image files that a scan has found."""
    digest = digest_names(found.images, found.sizes)
    return FileImages(str(root), found.images, rules, digest, class_labels(found.images))


def listed_images(paths: Sequence[str], rules: PixelRules) -> FileImages:
    """Return images named one by one.

    Raises:
        ImageError: one of them is not there.
    """
    return _collected("", paths, rules, origin="")


def images_of_list(file: Path, rules: PixelRules) -> FileImages:
    """Return the images that a text file names, one a line, beginning at its folder; "#" begins a comment.

    Raises:
        ImageError: it cannot be read, names nothing, or names what is not there.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise ImageError(f"{file}: it cannot be read: {error.strerror or error}") from error
    named = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return _collected(str(file.parent), named, rules, origin=f"{file} names ")


def images_of_table(file: Path, rules: PixelRules) -> FileImages:
    """Return the images of a table (.csv) with the column path, beginning at its folder, perhaps with label.

    Raises:
        ImageError: it cannot be read, has no such column, names nothing, or names what is not there.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            table = csv.DictReader(opened)
            table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
            paths = [(row.get("path") or "").strip() for row in table]
    except (OSError, csv.Error) as error:
        raise ImageError(f"{file}: it cannot be read: {error}") from error
    if "path" not in table.fieldnames:
        raise ImageError(f"{file} has no column path", hint="its first line has to be path or path,label")
    if not all(paths):
        raise ImageError(f"{file}, row {paths.index('') + 1}: path is empty")
    labels = [row.label for row in read_labelled_csv(file)] if "label" in table.fieldnames else None
    return _collected(str(file.parent), paths, rules, origin=f"{file} names ", labels=labels)


def _collected(
    root: str, paths: Sequence[str], rules: PixelRules, *, origin: str, labels: list[str] | None = None
) -> FileImages:
    if not paths:
        raise ImageError(f"{origin}no images")
    sizes, missing = array("q"), []
    for path in paths:
        try:
            sizes.append(stat_content(Path(root, path)).size)
        except (OSError, ImageError):
            missing.append(path)
    if missing:
        raise ImageError(
            f"{origin}{len(missing)} of {len(paths)} images that are not there; the first is {missing[0]}",
            hint="paths in a list begin at the folder of the list",
        )
    names = Names.collect(os.fsencode(path) for path in paths)
    return FileImages(root, names, rules, digest_names(names, np.array(sizes, np.int64)), labels)


def _files(root: bytes, suffixes: tuple[bytes, ...]) -> Iterator[os.DirEntry[bytes]]:
    """Yield the entries with such names below a folder; a folder with several ways to it is entered once."""
    entered: set[tuple[int, int]] = set()
    stack = [root]
    while stack:
        folder = stack.pop()
        facts = os.stat(folder)  # noqa: PTH116 - names are bytes here
        if (facts.st_dev, facts.st_ino) in entered:
            continue
        entered.add((facts.st_dev, facts.st_ino))
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
        folders = []
        for entry in inside:
            if is_wanted(entry.name, suffixes) and not entry.is_dir():
                yield entry
            elif not entry.name.startswith(b".") and entry.is_dir():
                folders.append(entry.path)
        stack += reversed(folders)


def _stat(entry: os.DirEntry[bytes]) -> os.stat_result | None:
    """Return the facts of a regular file, or None of what is none, or is a link that leads nowhere."""
    try:
        facts = entry.stat()
    except FileNotFoundError:
        return None
    return facts if stat.S_ISREG(facts.st_mode) else None
