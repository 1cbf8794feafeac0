"""Keypoints that a user gives: as text, or in a CSV, JSON, COCO or HDF5 file."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinov2kit.errors import ArgumentError
from dinov2kit.shapes import Keypoints

Outside = Literal["error", "clip", "skip"]

_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*"
_INLINE = re.compile(rf"{_NUMBER},{_NUMBER}(?:;{_NUMBER},{_NUMBER})*;?\s*")
_COLUMNS = ["x", "y", "name", "id"]
_WANTED = 'wanted "x,y;x,y", a .csv with lines x,y[,name[,id]], a .json with [[x, y], ...] or COCO, or an .h5'

Row = tuple[object, object, object, object]  # x, y, name, id


@dataclass(frozen=True)
class NamedPoints:
    """Keypoints in the order they were given.

    Attributes:
        pixels: (x, y) in pixels of the image they belong to.
        names: one name per keypoint, None where it has none.
        ids: what identifies each; its place in the list where nothing else was given.
    """

    pixels: Keypoints
    names: tuple[str | None, ...]
    ids: tuple[int | str, ...]

    def fitted(self, width: int, height: int, outside: Outside = "error") -> NamedPoints:
        """Return the keypoints on an image of this size.

        Args:
            width: of the image, in pixels.
            height: of the image, in pixels.
            outside: what becomes of points that are not on it: "clip" moves them to the nearest pixel, "skip"
                leaves them out, "error" leaves all as they are for `match` to refuse.

        Raises:
            ArgumentError: no point is left.
        """
        if outside == "error":
            return self
        pixels = self.pixels
        if outside == "clip":
            pixels = pixels.clip(0, np.array([width - 1, height - 1], np.float32))
        x, y = pixels.T
        rows = np.flatnonzero(
            (x > -0.5) & (y > -0.5) & (x < width - 0.5) & (y < height - 0.5)
        )  # NaN is nowhere
        if not len(rows):
            raise ArgumentError(f"none of {len(x)} points is on image 0, which has {width}x{height} pixels")
        names, ids = tuple(self.names[row] for row in rows), tuple(self.ids[row] for row in rows)
        return NamedPoints(pixels[rows], names, ids)


def read_points(source: str, image: Path | None = None) -> NamedPoints:
    """Read keypoints from text such as "120,80;300,210", or from a file.

    Args:
        source: the text itself, or the path of a file. CSV: one line `x,y[,name[,id]]` per keypoint; a first
            line of these words, in any order, is a heading. JSON: a list of [x, y], or of objects with "x",
            "y" and perhaps "name" and "id"; or a COCO document, whose labelled keypoints of `image` are read.
            HDF5: the `keypoints` of the group of `image`, as hloc writes them.
        image: the image that the keypoints belong to; needed where a file holds those of several.

    Raises:
        ArgumentError: the file cannot be read, or holds something else.
    """
    if _INLINE.fullmatch(source):
        pairs = [part.split(",") for part in source.split(";") if part.strip()]
        return _named([(x, y, None, None) for x, y in pairs], source)
    path = Path(source)
    if path.suffix.lower() in (".h5", ".hdf5"):
        return _named(_hdf5_rows(path, image), source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read points from {source!r}: {error}", hint=_WANTED) from error
    is_json = path.suffix.lower() == ".json"
    return _named(_json_rows(text, source, image) if is_json else _csv_rows(text, source), source)


def _csv_rows(text: str, source: str) -> list[Row]:
    rows: list[Row] = []
    columns = _COLUMNS
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        fields = [field.strip() for field in row]
        if not any(fields):
            continue
        words = [field.lower() for field in fields]
        if number == 1 and {"x", "y"} <= set(words):
            columns = words
            continue
        if not 2 <= len(fields) <= len(columns):
            raise ArgumentError(
                f"{source}, line {number}: got {len(fields)} fields; wanted {','.join(columns)}"
            )
        said = dict(zip(columns, fields, strict=False))
        rows.append((said.get("x"), said.get("y"), said.get("name"), said.get("id")))
    return rows


def _json_rows(text: str, source: str, image: Path | None) -> list[Row]:
    try:
        document = json.loads(text)
        if isinstance(document, dict):
            return _coco_rows(document, image)
        return [
            (entry["x"], entry["y"], entry.get("name"), entry.get("id"))
            if isinstance(entry, dict)
            else (entry[0], entry[1], entry[2] if len(entry) > 2 else None, None)
            for entry in document
        ]
    except (ValueError, TypeError, LookupError) as error:
        raise ArgumentError(f"{source} holds no list of points: {error!r}", hint=_WANTED) from error


def _coco_rows(document: dict[str, Any], image: Path | None) -> list[Row]:
    """Return the labelled keypoints of one image of a COCO document, with the names of their categories."""
    named = {
        entry["id"] for entry in document["images"] if image and Path(entry["file_name"]).name == image.name
    }
    categories = {entry["id"]: entry.get("keypoints", []) for entry in document.get("categories", [])}
    rows: list[Row] = []
    for annotation in document["annotations"]:
        if annotation["image_id"] not in named:
            continue
        names = categories.get(annotation.get("category_id"), [])
        flat = annotation["keypoints"]
        for index, (x, y, visible) in enumerate(zip(flat[::3], flat[1::3], flat[2::3], strict=True)):
            if visible:  # 0: not labelled, and then x and y mean nothing
                rows.append((x, y, names[index] if index < len(names) else None, None))
    return rows


def _hdf5_rows(path: Path, image: Path | None) -> list[Row]:
    import h5py

    wanted = image.name if image else ""
    try:
        with h5py.File(path) as file:
            found: list[str] = []
            file.visit(lambda name: found.append(name) if name.endswith("keypoints") else None)
            mine = [name for name in found if name.split("/")[-2:-1] == [wanted]]
            if not mine:
                raise ArgumentError(
                    f"{path} has no keypoints of {wanted!r}", hint="groups are named as their images"
                )
            return [(x, y, None, None) for x, y in np.asarray(file[mine[0]])[:, :2].tolist()]
    except OSError as error:
        raise ArgumentError(f"cannot read points from {path}: {error}", hint=_WANTED) from error


def _named(rows: list[Row], source: str) -> NamedPoints:
    if not rows:
        raise ArgumentError(f"{source} holds no points", hint=_WANTED)
    try:
        pixels = np.array([(float(str(x)), float(str(y))) for x, y, *_ in rows], np.float32)
    except ValueError as error:
        raise ArgumentError(f"the points of {source} are not all numbers: {error}", hint=_WANTED) from error
    return NamedPoints(
        pixels=pixels,
        names=tuple(str(name) if name else None for _, _, name, _ in rows),
        ids=tuple(_identifier(given, place) for place, (*_, given) in enumerate(rows)),
    )


def _identifier(given: object, place: int) -> int | str:
    if given in (None, ""):
        return place
    return int(str(given)) if str(given).lstrip("-").isdecimal() else str(given)
