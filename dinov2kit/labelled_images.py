"""Images with one label each: class folders, tables, and ImageNet as it is distributed."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from dinov2kit.errors import DependencyError, ImageError
from dinov2kit.images import IMAGE_SUFFIXES

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "validation", "test")}
_IMAGENET = "Data/CLS-LOC"  # where the official archives have train/ and val/


class LabelledImage(NamedTuple):
    """A file, what it shows, and to which part of its set it belongs ("" where there are none)."""

    path: Path
    label: str
    split: str = ""


def read_labelled(source: Path, split: str) -> list[LabelledImage]:
    """Read one split of labelled images.

    `source` may be a table (.csv) with the columns path and label, and perhaps split; a folder with the
    folders of the splits (`train/`, `val/`); ImageNet as it is distributed, see `read_imagenet_val`; or a
    folder of class folders, which is taken for whatever split is asked for.

    Args:
        source: the table or the folder.
        split: "train" or "val".

    Raises:
        ImageError: there is nothing of that kind, or no image in it.
    """
    names = SPLIT_FOLDERS.get(split, (split,))
    if source.suffix.lower() == ".csv":
        rows = read_labelled_csv(source)
        if not any(row.split for row in rows):
            return rows
        chosen = [row for row in rows if row.split in names]
        if not chosen:
            raise ImageError(f"{source} has no row with the split {' or '.join(names)}")
        return chosen
    if not source.is_dir():
        hint = "unpack it first" if source.suffix.lower() == ".zip" else None
        raise ImageError(f"no such folder of classes or table (.csv): {source}", hint=hint)
    for base in (source, source / _IMAGENET, source / "ILSVRC" / _IMAGENET):
        for name in names:
            folder = base / name
            if _folders(folder):
                return read_class_folders(folder)
            if folder.is_dir() and any(folder.glob("ILSVRC2012_val_*")):
                return read_imagenet_val(folder)
    return read_class_folders(source)


def read_class_folders(root: Path) -> list[LabelledImage]:
    """Read a folder whose folders are the classes; images may lie deeper in them. Sorted by path.

    Raises:
        ImageError: there is no such folder, or no image in its folders.
    """
    if not root.is_dir():
        raise ImageError(f"no such folder: {root}", hint="wanted a folder that holds a folder for each class")
    found = [
        LabelledImage(path, folder.name)
        for folder in _folders(root)
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    ]
    if not found:
        raise ImageError(
            f"{root} has no folders with images in them",
            hint="wanted a folder for each class, named by it: ROOT/cat/1.jpg",
        )
    return found


def read_labelled_csv(file: Path) -> list[LabelledImage]:
    """Read a table with a header: the columns path and label, and perhaps split. Paths start at its folder.

    Raises:
        ImageError: it cannot be read, or a column or a field is missing.
    """
    try:
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
            table = csv.DictReader(opened)
            table.fieldnames = [name.strip().lower() for name in table.fieldnames or ()]
            rows = list(table)
    except (OSError, csv.Error) as error:
        raise ImageError(f"cannot read {file}: {error}") from error
    missing = {"path", "label"} - set(table.fieldnames)
    if missing:
        raise ImageError(
            f"{file} has no column {' and no '.join(sorted(missing))}",
            hint="its first line has to be path,label or path,label,split",
        )
    found = []
    for number, row in enumerate(rows, 2):
        name, label, split = ((row.get(key) or "").strip() for key in ("path", "label", "split"))
        if not name or not label:
            raise ImageError(f"{file}, line {number}: path or label is empty")
        found.append(LabelledImage(file.parent / name, label, split.lower()))
    if not found:
        raise ImageError(f"{file} has no rows")
    return found


def read_imagenet_val(folder: Path) -> list[LabelledImage]:
    """Read the 50,000 validation images of ImageNet, flat in one folder as they are distributed.

    Their synsets are taken from `LOC_val_solution.csv` (as Kaggle has it), from the development kit
    (`ILSVRC2012_devkit_t12/data/`, needs scipy) or from `Annotations/CLS-LOC/val/*.xml`, wherever one of them
    lies beside or above the folder.

    Raises:
        ImageError: none of them is there, or one is damaged or lacks an image.
        DependencyError: the development kit is read and scipy is missing.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015.
    """
    paths = sorted(folder.glob("ILSVRC2012_val_*"))
    for above in (folder, *folder.absolute().parents[:4]):
        table = above / "LOC_val_solution.csv"
        if table.exists():
            return _labelled(paths, _kaggle_synsets(table), table)
        kit = above / "ILSVRC2012_devkit_t12" / "data"
        if kit.is_dir():
            return _labelled(paths, _kit_synsets(kit), kit)
        notes = above / "Annotations" / "CLS-LOC" / "val"
        if notes.is_dir():
            return _labelled(paths, {path.stem: _noted_synset(notes, path.stem) for path in paths}, notes)
    raise ImageError(
        f"{folder} holds validation images of ImageNet, but nothing says what they show",
        hint="put LOC_val_solution.csv or ILSVRC2012_devkit_t12 beside it, or sort them into class folders",
    )


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by the bytes of their names; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir()), key=os.fsencode)


def _labelled(paths: Sequence[Path], synsets: dict[str, str], origin: Path) -> list[LabelledImage]:
    unknown = next((path for path in paths if path.stem not in synsets), None)
    if unknown is not None:
        raise ImageError(f"{origin} does not say what {unknown.name} shows")
    return [LabelledImage(path, synsets[path.stem]) for path in paths]


def _kaggle_synsets(table: Path) -> dict[str, str]:
    """Return the synset of each image; the first word of a prediction string is the class."""
    try:
        with table.open(encoding="utf-8", newline="") as opened:
            return {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(opened)}
    except (OSError, csv.Error, KeyError, IndexError, AttributeError, UnicodeDecodeError) as error:
        raise ImageError(f"{table} cannot be read: {error!r}") from error


def _kit_synsets(kit: Path) -> dict[str, str]:
    """Return the synset of each image: line i of the ground truth numbers that of image i."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DependencyError("meta.mat needs scipy", hint="pip install 'dinov2kit[eval]'") from error
    try:
        rows = loadmat(kit / "meta.mat", squeeze_me=True)["synsets"]
        names = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in rows}
        numbers = (kit / "ILSVRC2012_validation_ground_truth.txt").read_text().split()
        return {f"ILSVRC2012_val_{at:08}": names[int(number)] for at, number in enumerate(numbers, 1)}
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise ImageError(f"{kit} cannot be read: {error!r}") from error


def _noted_synset(notes: Path, stem: str) -> str:
    try:
        name = ElementTree.parse(notes / f"{stem}.xml").findtext("object/name")
    except (OSError, ElementTree.ParseError) as error:
        raise ImageError(f"{notes / stem}.xml cannot be read: {error}") from error
    if not name:
        raise ImageError(f"{notes / stem}.xml names no object")
    return name
