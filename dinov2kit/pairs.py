"""From two image files to their matches, and to the files that hold them: what `dinokit match` does."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from dinov2kit.draw import FORMATS, draw_matches, write_image
from dinov2kit.errors import ArgumentError
from dinov2kit.features import Features
from dinov2kit.files import written_whole
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.matches import Matches
from dinov2kit.matching import match
from dinov2kit.points import NamedPoints

SCHEMA = "dinokit.match/1"
COLUMNS = ["id", "name", "x0", "y0", "x1", "y1", "score", "confidence", "cycle_error", "uncertainty", "kept"]
TABLES = (".json", ".csv")
FEW, LONG, ENLARGED = 4, 4.0, 4.0  # fewer kept, longer sides and larger scales than these deserve a warning


@runtime_checkable
class LocalEncoder(Protocol):
    """What turns an image file into features."""

    @property
    def identity(self) -> ModelIdentity:
        """The model behind it."""

    def encode(self, source: Path, *, size: int = 518) -> Features:
        """Return the features of one whole image, its longer side at `size` network pixels."""


@dataclass(frozen=True)
class MatchedPair:
    """Two image files, their matches, and how these were made.

    Attributes:
        paths: the files of image 0 and image 1.
        grids: where the patches of each lie in it.
        digests: sha256 of each file.
        model: what encoded them.
        size: longer side of the network input, in pixels.
        matches: their matches.
        names: names of the keypoints, one per match, or none at all.
        warnings: what may be wrong with the answer, in words.
        encode_seconds: time to encode both.
        match_seconds: time to match them.
    """

    paths: tuple[Path, Path]
    grids: tuple[PatchGrid, PatchGrid]
    digests: tuple[str, str]
    model: ModelIdentity
    size: int
    matches: Matches
    names: tuple[str | None, ...]
    warnings: tuple[str, ...]
    encode_seconds: float
    match_seconds: float

    @property
    def title(self) -> str:
        """One line: the two files, how many matches were kept, the model."""
        kept = f"{int(self.matches.kept.sum())}/{len(self.matches)} kept"
        names = f"{self.paths[0].name} ↔ {self.paths[1].name}"
        return f"{names} · {kept} · {self.model.name} at {self.size} px"

    def summary(self) -> list[str]:
        """Return three lines for a person: the images, the matches, the model and its time."""
        sides = [
            f"{path.name} {grid.width}×{grid.height} ({grid.cols}×{grid.rows} patches)"
            for path, grid in zip(self.paths, self.grids, strict=True)
        ]
        found, kept = self.matches, int(self.matches.kept.sum())
        lines = [" ↔ ".join(sides), f"{len(found)} matches, {kept} kept"]
        if len(found):
            medians = (
                f"confidence {np.median(found.confidence):.2f}",
                f"cosine {np.median(found.score):.3f}",
                f"cycle error {np.median(found.cycle_error):.2f} patches",
                f"uncertainty {np.median(found.uncertainty):.1f} px",
            )
            lines[1] += " · medians: " + ", ".join(medians)
        lines.append(
            f"{self.model.name} at {self.size} px · encoded in {self.encode_seconds:.1f} s"
            f" · matched in {self.match_seconds:.2f} s"
        )
        return lines

    def to_json(self) -> dict[str, object]:
        """Return the document that `--json` prints and a .json file holds."""
        images = [
            {"path": str(path), "width": grid.width, "height": grid.height, "sha256": digest}
            for path, grid, digest in zip(self.paths, self.grids, self.digests, strict=True)
        ]
        return {
            "schema": SCHEMA,
            "image0": images[0],
            "image1": images[1],
            "model": {
                "name": self.model.name,
                "weights_sha256": self.model.weights_sha256,
                "size": self.size,
            },
            **self.matches.to_json(names=self.names),
            "warnings": list(self.warnings),
            "seconds": {"encode": round(self.encode_seconds, 3), "match": round(self.match_seconds, 3)},
        }

    def to_csv(self) -> str:
        """Return one line per match with a heading; the columns are those of the matches in `to_json`."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        rows = self.matches.to_json(names=self.names)["matches"]
        assert isinstance(rows, list)
        writer.writerows({**row, "kept": int(row["kept"])} for row in rows)
        return text.getvalue()


def match_images(
    encoder: LocalEncoder,
    path0: Path,
    path1: Path,
    *,
    size: int = 518,
    points: NamedPoints | None = None,
    num: int = 50,
    mutual: bool = False,
    max_cycle: float = 1.0,
) -> MatchedPair:
    """Encode two image files and match them.

    Args:
        encoder: the model.
        path0: file of image 0, where keypoints come from.
        path1: file of image 1, where they are looked for.
        size: longer side of the network input, in pixels.
        points: keypoints of image 0 to carry over, kept in order and number; without them they are chosen.
        num: how many keypoints to choose.
        mutual: also want nearest neighbours both ways.
        max_cycle: largest cycle error of a kept match, in patches of image 0.

    Raises:
        ImageError: an image cannot be read.
        ArgumentError: a point is not on image 0, or an option is out of range.
        MatchError: the two cannot be matched.
    """
    start = time.perf_counter()
    features0, features1 = encoder.encode(path0, size=size), encoder.encode(path1, size=size)
    encoded = time.perf_counter()
    pixels = None if points is None else points.pixels
    matches = match(features0, features1, points=pixels, num=num, mutual=mutual, max_cycle=max_cycle)
    matched = time.perf_counter()
    digests = (_digest(path0), _digest(path1))
    grids = (features0.grid, features1.grid)
    asked = num if points is None else len(points.pixels)
    return MatchedPair(
        paths=(path0, path1),
        grids=grids,
        digests=digests,
        model=encoder.identity,
        size=size,
        matches=matches,
        names=() if points is None else points.names,
        warnings=tuple(_doubts(encoder.identity.name, grids, digests, int(matches.kept.sum()), asked)),
        encode_seconds=encoded - start,
        match_seconds=matched - encoded,
    )


def check_outputs(table: Path | None, picture: Path | None, *, overwrite: bool) -> None:
    """Refuse, before any work, files that could not be written after it.

    Args:
        table: where `write_pair` will write, if anywhere.
        picture: where `draw_pair` will write, if anywhere.
        overwrite: whether existing files may be replaced.

    Raises:
        ArgumentError: a file exists, its folder does not, or its suffix is no format for it.
    """
    for path, content, suffixes in ((table, "matches", TABLES), (picture, "a picture", tuple(FORMATS))):
        if path is None:
            continue
        _check_suffix(path, content, suffixes)
        if path.exists() and not overwrite:
            raise ArgumentError(f"{path} exists already", hint="name another file, or add --overwrite")
        if not path.parent.is_dir():
            raise ArgumentError(f"cannot write {path}: there is no folder {path.parent}")


def write_pair(pair: MatchedPair, path: Path) -> None:
    """Write the matches of a pair; the file is complete or not there at all.

    Args:
        pair: what `match_images` returned.
        path: its suffix is the format: .json or .csv.

    Raises:
        ArgumentError: the suffix is neither, or the folder cannot be written.
    """
    _check_suffix(path, "matches", TABLES)
    text = pair.to_csv() if path.suffix.lower() == ".csv" else json.dumps(pair.to_json(), indent=2) + "\n"
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


def draw_pair(pair: MatchedPair, path: Path, *, num: int = 15) -> None:
    """Draw the two images of a pair with up to `num` matches between them, and write the picture.

    Raises:
        ImageError: an image cannot be read any more.
        ArgumentError: the suffix of `path` is no image format, or the folder cannot be written.
    """
    from dinov2kit.images import read_image

    image0, image1 = (read_image(source) for source in pair.paths)
    write_image(path, draw_matches(image0, image1, pair.matches, num=num, title=pair.title))


def _doubts(
    model: str, grids: tuple[PatchGrid, PatchGrid], digests: tuple[str, str], kept: int, asked: int
) -> list[str]:
    """Return what may be wrong with an answer, in words."""
    doubts = []
    if model.startswith("untrained"):
        doubts.append(
            f"{model} has random weights: these matches show that the program runs, not what it can do"
        )
    if digests[0] == digests[1]:
        doubts.append("both files hold the same image")
    for index, grid in enumerate(grids):
        if max(grid.width, grid.height) > LONG * min(grid.width, grid.height):
            doubts.append(
                f"image {index} is {grid.width}×{grid.height}: so long a shape leaves few patches across"
            )
        if max(grid.scale_x, grid.scale_y) > ENLARGED:
            times = f"{max(grid.scale_x, grid.scale_y):.1f} times"
            doubts.append(f"image {index} was enlarged {times}; a smaller size would do")
    if kept < min(FEW, asked):
        doubts.append(f"only {kept} matches were kept: the two may show nothing in common")
    return doubts


def _check_suffix(path: Path, content: str, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise ArgumentError(f"cannot write {content} as {path.name!r}; wanted one of {', '.join(suffixes)}")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
