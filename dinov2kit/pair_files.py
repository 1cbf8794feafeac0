"""What is written of a matched pair: JSON, CSV, text, NumPy and HDF5; every file whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

from dinov2kit.errors import ArgumentError
from dinov2kit.files import written_whole
from dinov2kit.hloc import write_pair_group
from dinov2kit.pairs import MatchedPair

SCHEMA = "dinokit.match/1"
COLUMNS = [
    *("id", "name", "x0", "y0", "x1", "y1", "score", "confidence", "cycle_error", "uncertainty", "ratio"),
    *("inlier", "kept"),
]


def pair_document(pair: MatchedPair) -> dict[str, object]:
    """Return the document that `--json` prints and a .json file holds."""
    sides = zip(pair.paths, pair.features, pair.digests, strict=True)
    images = [
        {
            "path": str(path),
            "width": side.grid.width,
            "height": side.grid.height,
            "sha256": digest,
            "patches": [side.grid.rows, side.grid.cols],
        }
        for path, side, digest in sides
    ]
    foreground = pair.foreground
    return {
        "schema": SCHEMA,
        "image0": images[0],
        "image1": images[1],
        "model": {"name": pair.model.name, "weights_sha256": pair.model.weights_sha256},
        "features": pair.spec.features.describe(),
        "matching": pair.spec.matching.describe(),
        "coords": "x right, y down, in pixels; (0, 0) is the centre of the first pixel",
        "matches": _rows(pair),
        "geometry": pair.geometry.to_json() if pair.geometry else None,
        "mask": {
            "mode": foreground.mode,
            "shares": [round(share, 4) for share in foreground.shares],
            "reason": foreground.reason,
        },
        "turns": pair.pose.turns,
        "mirrored": pair.pose.mirrored,
        "mirror_score": None if pair.mirror_score is None else round(pair.mirror_score, 4),
        "warnings": list(pair.warnings),
        "seconds": {step: round(seconds, 3) for step, seconds in pair.seconds.items()},
    }


def pair_csv(pair: MatchedPair) -> str:
    """Return one line per match with a heading; the columns are those of the matches in the document."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for row in _rows(pair):
        flags = {key: "" if row[key] is None else int(bool(row[key])) for key in ("inlier", "kept")}
        writer.writerow({**row, **flags})
    return text.getvalue()


def summary(pair: MatchedPair) -> list[str]:
    """Return lines for a person: the images, the matches, what was found of them, the model and its time."""
    sides = [
        f"{path.name} {grid.width}×{grid.height} ({grid.cols}×{grid.rows} patches)"
        for path, grid in zip(pair.paths, (side.grid for side in pair.features), strict=True)
    ]
    found, kept = pair.matches, int(pair.matches.kept.sum())
    lines = [" ↔ ".join(sides), f"{len(found)} matches, {kept} kept"]
    if len(found):
        medians = (
            f"confidence {np.median(found.confidence):.2f}",
            f"cosine {np.median(found.score):.3f}",
            f"cycle error {np.median(found.cycle_error):.2f} patches",
            f"uncertainty {np.median(found.uncertainty):.1f} px",
        )
        lines[1] += " · medians: " + ", ".join(medians)
    if pair.foreground.masks is not None:
        shares = " and ".join(f"{share:.0%}" for share in pair.foreground.shares)
        lines.append(f"foreground ({pair.foreground.mode}): {shares} of the images")
    if pair.geometry is not None:
        model, kind = pair.geometry, pair.geometry.kind
        lines.append(f"{model.n_inliers} of {kept} fit one {kind}" if model.reason is None else model.reason)
    seconds = pair.seconds
    lines.append(
        f"{pair.model.name} at {pair.spec.features.size} px · encoded in {seconds['encode']:.1f} s"
        f" · matched in {seconds['match']:.2f} s"
    )
    return lines


def write_pair(pair: MatchedPair, path: Path) -> None:
    """Write the matches of a pair; the file is complete or not there at all.

    Args:
        pair: what `match_images` returned.
        path: its suffix is the format, one of `TABLES`.

    Raises:
        ArgumentError: the suffix is unknown, or the folder cannot be written.
    """
    check_suffix(path, "matches", TABLES)
    with written_whole(path) as temporary:
        _WRITERS[path.suffix.lower()](pair, temporary)


def check_suffix(path: Path, content: str, suffixes: Sequence[str]) -> None:
    """Refuse a file whose name does not say a format that can be written."""
    if path.suffix.lower() not in suffixes:
        raise ArgumentError(f"cannot write {content} as {path.name!r}; wanted one of {', '.join(suffixes)}")


def _rows(pair: MatchedPair) -> list[dict[str, object]]:
    points, geometry = pair.points, pair.geometry
    return pair.matches.to_json(
        names=points.names if points else (),
        ids=points.ids if points else (),
        inliers=geometry.inliers if geometry and geometry.matrix is not None else None,
    )


def _write_json(pair: MatchedPair, path: Path) -> None:
    _write_text(path, json.dumps(pair_document(pair), indent=2) + "\n")


def _write_csv(pair: MatchedPair, path: Path) -> None:
    _write_text(path, pair_csv(pair))


def _write_lines(pair: MatchedPair, path: Path) -> None:
    """Write `x0 y0 x1 y1 confidence` of the kept matches, one a line."""
    found = pair.matches.take(np.flatnonzero(pair.matches.kept))
    columns = np.column_stack([found.keypoints0, found.keypoints1, found.confidence])
    _write_text(path, "".join(" ".join(f"{value:.4f}" for value in row) + "\n" for row in columns))


def _write_npz(pair: MatchedPair, path: Path) -> None:
    found = pair.matches
    columns = {name: getattr(found, name) for name in vars(found) if name != "alternatives"}
    if pair.geometry and pair.geometry.matrix is not None:
        columns |= {"inliers": pair.geometry.inliers, "matrix": pair.geometry.matrix}
    with path.open("wb") as file:  # by name, NumPy would add a suffix
        np.savez(file, **columns)


def _write_hdf5(pair: MatchedPair, path: Path) -> None:
    with h5py.File(path, "w") as file:
        write_pair_group(
            file, [str(each) for each in pair.paths], [side.grid for side in pair.features], pair.matches
        )
        file.attrs["schema"] = SCHEMA


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="\n")


_WRITERS: dict[str, Callable[[MatchedPair, Path], None]] = {
    ".json": _write_json,
    ".csv": _write_csv,
    ".txt": _write_lines,
    ".npz": _write_npz,
    ".h5": _write_hdf5,
}
TABLES = tuple(_WRITERS)
