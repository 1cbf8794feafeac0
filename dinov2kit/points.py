"""Keypoints that a user gives: as text, or in a CSV or JSON file."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinov2kit.errors import ArgumentError
from dinov2kit.shapes import Keypoints

_NUMBER = r"\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*"
_INLINE = re.compile(rf"{_NUMBER},{_NUMBER}(?:;{_NUMBER},{_NUMBER})*;?\s*")
_WANTED = 'wanted "x,y;x,y", a .csv file with lines x,y[,name], or a .json file with [[x, y], ...]'


@dataclass(frozen=True)
class NamedPoints:
    """Keypoints in the order they were given.

    Attributes:
        pixels: (x, y) in pixels of the image they belong to.
        names: one name per keypoint, None where it has none.
    """

    pixels: Keypoints
    names: tuple[str | None, ...]


def read_points(source: str) -> NamedPoints:
    """Read keypoints from text such as "120,80;300,210", or from a file.

    Args:
        source: the text itself, or the path of a file. CSV: one line `x,y` or `x,y,name` per keypoint; a
            first line that starts with "x" is a heading. JSON: a list of [x, y], or of objects with "x", "y"
            and perhaps "name".

    Raises:
        ArgumentError: the file cannot be read, or holds something else.
    """
    if _INLINE.fullmatch(source):
        pairs = [part.split(",") for part in source.split(";") if part.strip()]
        return _named([(x, y, None) for x, y in pairs], source)
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read points from {source!r}: {error}", hint=_WANTED) from error
    return _named(
        _json_rows(text, source) if path.suffix.lower() == ".json" else _csv_rows(text, source), source
    )


def _csv_rows(text: str, source: str) -> list[tuple[object, object, object]]:
    rows: list[tuple[object, object, object]] = []
    for number, row in enumerate(csv.reader(text.splitlines()), start=1):
        fields = [field.strip() for field in row]
        if not any(fields) or (number == 1 and fields[0].lower() == "x"):
            continue
        if len(fields) not in (2, 3):
            raise ArgumentError(f"{source}, line {number}: got {len(fields)} fields; wanted x,y or x,y,name")
        rows.append((fields[0], fields[1], fields[2] if len(fields) == 3 else None))
    return rows


def _json_rows(text: str, source: str) -> list[tuple[object, object, object]]:
    try:
        entries = json.loads(text)
        return [
            (entry["x"], entry["y"], entry.get("name"))
            if isinstance(entry, dict)
            else (entry[0], entry[1], entry[2] if len(entry) > 2 else None)
            for entry in entries
        ]
    except (ValueError, TypeError, LookupError) as error:
        raise ArgumentError(f"{source} holds no list of points: {error!r}", hint=_WANTED) from error


def _named(rows: list[tuple[object, object, object]], source: str) -> NamedPoints:
    if not rows:
        raise ArgumentError(f"{source} holds no points", hint=_WANTED)
    try:
        pixels = np.array([(float(str(x)), float(str(y))) for x, y, _ in rows], np.float32)
    except ValueError as error:
        raise ArgumentError(f"the points of {source} are not all numbers: {error}", hint=_WANTED) from error
    return NamedPoints(pixels=pixels, names=tuple(str(name) if name else None for *_, name in rows))
