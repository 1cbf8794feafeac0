"""Sets of queries whose matches are known: what they are, and how one's own are read.

A set knows places in its index, not scores: it is the same for every model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import ImageError
from dinov2kit.labelled_images import LabelledImage, read_class_folders, read_labelled_csv
from dinov2kit.retrieval_scores import Rule

Places = Int64[np.ndarray, " _"]
Box = tuple[float, float, float, float]

QUERY_NAMES, INDEX_NAMES = ("query", "queries"), ("index", "gallery", "database", "references")


class Setup(NamedTuple):
    """Which grades of match are asked for, and which count neither way; the rest of the index is wrong."""

    positive: tuple[str, ...]
    junk: tuple[str, ...]


ALL = {"all": Setup(("match",), ())}


@dataclass(frozen=True)
class Query:
    """An image that is looked for.

    Attributes:
        path: its file.
        matches: places in the index, ascending, by grade.
        own: its own place in the index, where it counts neither way; -1 when it is not there.
        box: left, top, right and bottom edge in pixels of the part that is shown; None is the whole image.
        group: what its scores are averaged with, besides all others.
    """

    path: Path
    matches: Mapping[str, Places]
    own: int = -1
    box: Box | None = None
    group: str = ""

    def truth(self, setup: Setup) -> tuple[Places, Places]:
        """Return the places of its positives and of its junk in a setup."""
        none = np.zeros(0, np.int64)
        positive, junk = (
            np.concatenate([none, *(self.matches.get(grade, none) for grade in grades)]) for grades in setup
        )
        if self.own < 0:
            return positive, junk
        return positive[positive != self.own], np.append(junk, self.own)


@dataclass(frozen=True)
class RetrievalSet:
    """Queries, and the index in which their matches are.

    Attributes:
        name: of the set.
        index: the files that are searched.
        queries: the queries.
        setups: by name.
        rule: of the average precision.
        ks: the k of recall@k that papers give.
    """

    name: str
    index: tuple[Path, ...]
    queries: tuple[Query, ...]
    setups: Mapping[str, Setup] = field(default_factory=lambda: dict(ALL))
    rule: Rule = "average"
    ks: tuple[int, ...] = (1, 5, 10)


def grouped(
    name: str,
    index: Sequence[LabelledImage],
    queries: Sequence[LabelledImage] | None = None,
    *,
    rule: Rule = "average",
    ks: tuple[int, ...] = (1, 5, 10),
) -> RetrievalSet:
    """Return a set in which images of one label match each other.

    Args:
        name: of the set.
        index: what is searched.
        queries: what is looked for; None asks with each image of the index, which is itself left out.
        rule: of the average precision.
        ks: the k of recall@k.
    """
    members: dict[str, list[int]] = {}
    places: dict[Path, int] = {}
    for place, image in enumerate(index):
        members.setdefault(image.label, []).append(place)
        places[image.path] = place
    matches = {label: {"match": np.array(found, np.int64)} for label, found in members.items()}
    nothing = {"match": np.zeros(0, np.int64)}
    asked = tuple(
        Query(image.path, matches.get(image.label, nothing), places.get(image.path, -1), group=image.label)
        for image in (index if queries is None else queries)
    )
    return RetrievalSet(name, tuple(image.path for image in index), asked, rule=rule, ks=ks)


def read_own_folders(root: Path) -> RetrievalSet:
    """Read class folders: images of one folder match each other.

    With folders `query/` and `index/` (or `gallery/`), which hold the class folders, the first asks and the
    second is searched; else every image asks for the others of its folder.

    Raises:
        ImageError: there are no images in folders.
    """
    asking, searched = (
        next((root / name for name in names if (root / name).is_dir()), None)
        for names in (QUERY_NAMES, INDEX_NAMES)
    )
    if asking is not None and searched is not None:
        return grouped("folders", read_class_folders(searched), read_class_folders(asking))
    return grouped("folders", read_class_folders(root))


def read_own_csv(file: Path) -> RetrievalSet:
    """Read a table with the columns path and label, and perhaps split: images of one label match each other.

    Where there is a split, rows of "query" ask and rows of "index" (or "gallery") are searched; else every
    image asks for the others of its label.

    Raises:
        ImageError: the table cannot be read, lacks a column, or has another word as a split.
    """
    rows = read_labelled_csv(file)
    if not any(row.split for row in rows):
        return grouped("csv", rows)
    other = next((row for row in rows if row.split not in QUERY_NAMES + INDEX_NAMES), None)
    if other is not None:
        raise ImageError(
            f"{file}: the split of {other.path} is {other.split!r}; wanted query or index in every row"
        )
    sides = [[row for row in rows if row.split in names] for names in (INDEX_NAMES, QUERY_NAMES)]
    return grouped("csv", *sides)
