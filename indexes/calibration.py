"""`calibrate`: which score means a copy, for the model and the photos at hand.

Cosines of one model say nothing about another: a copy scores 0.9 with one, two unlike photos 0.99 with the
next. So copies of known origin are made of indexed photos and described, and their scores are set against
those of each photo with the nearest other photo. What is recommended stands in `dedup.json` of the index.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float64

from dinov2kit.copies import KINDS, make_copy
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import load_picture, read_image

from .contents import read_stat
from .copy_check import compare
from .index import Index
from .layout import write_durably
from .records import Watch, as_stored
from .search import Searcher
from .snapshot import Photo, Snapshot

SCHEMA = "dinokit.dedup-calibration/1"
FILE = "dedup.json"
PHOTOS, PRECISION = 500, 0.99
SHOWN = tuple(1 - step for step in (
    *(0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.04, 0.03, 0.02, 0.01),
    *(0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001),
))  # fmt: skip
_NEIGHBOURS = 16  # looked at until one is no copy


@dataclass(frozen=True)
class ThresholdRow:
    """What one threshold does to the pairs that were made.

    Attributes:
        threshold: pairs count as copies from this cosine on.
        precision: share of copies among the pairs that count, if each photo had one copy; None without any.
        recall: share of all copies that count.
        kinds: the same for each kind of copy.
        false: share of photos whose nearest other photo counts.
    """

    threshold: float
    precision: float | None
    recall: float
    kinds: dict[str, float]
    false: float

    def to_json(self) -> dict[str, object]:
        """Return the row as `json.dumps` takes it."""
        return {
            "threshold": self.threshold,
            "precision": None if self.precision is None else round(self.precision, 6),
            "recall": round(self.recall, 6),
            "kinds": {kind: round(share, 6) for kind, share in self.kinds.items()},
            "false": round(self.false, 6),
        }


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found.

    Attributes:
        model: name of the model.
        fingerprint: of the model; with another one the numbers mean nothing.
        seed: chose the photos and how their copies look.
        photos: of how many photos copies were made.
        wanted: the precision that the recommended threshold keeps.
        best: the row of the recommended threshold; None when no threshold is that precise.
        rows: by rising thresholds.
        left_out: neighbours that are copies themselves, so that they say nothing about other photos.
        unreadable: (path, reason) of photos that were drawn and could not be used.
    """

    model: str
    fingerprint: str
    seed: int
    photos: int
    wanted: float
    best: ThresholdRow | None
    rows: tuple[ThresholdRow, ...]
    left_out: int
    unreadable: tuple[tuple[Path, str], ...]

    def to_json(self) -> dict[str, object]:
        """Return the calibration as `json.dumps` takes it."""
        return {
            "threshold": None if self.best is None else self.best.threshold,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "photos": self.photos,
            "wanted_precision": self.wanted,
            "best": None if self.best is None else self.best.to_json(),
            "rows": [row.to_json() for row in self.rows],
            "left_out": self.left_out,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
        }


def calibrate(
    index: Index,
    *,
    photos: int = PHOTOS,
    seed: int = 0,
    precision: float = PRECISION,
    watch: Watch | None = None,
) -> Calibration:
    """Find the lowest threshold at which pairs that count as copies are copies.

    Of some indexed photos copies are made and described with the model of the index. Against them stand the
    scores of the same photos with their nearest other photos; neighbours of equal content, or that pass the
    comparison of pixels, are copies and left out. Precision is that of a collection in which each photo has
    one copy and one nearest other photo: recall / (recall + false). In a collection with fewer copies it is
    lower, and the comparison of pixels, which `dinokit dedup` does after this, makes it higher.

    Args:
        index: opened, with its model at hand.
        photos: how many are drawn, at most.
        seed: of the draw and of the copies.
        precision: that the recommended threshold keeps on these pairs.
        watch: called with the stage of the work.

    Raises:
        ArgumentError: a number is out of range, or no two photos of the index could be read.
        WeightsError: the model cannot be loaded.
        StoreMismatch: it is not that of the index.
    """
    if photos < 2 or not 0 < precision <= 1:
        raise ArgumentError(f"{photos} photos, precision {precision}; wanted 2 or more, and above 0 to 1")
    watch, snapshot = watch or (lambda *_: None), index.snapshot
    draw = np.random.default_rng(seed).permutation(snapshot.ids)[:photos]
    drawn = snapshot.photos(np.sort(draw))
    scores: dict[int, Float64[np.ndarray, " kinds"]] = {}
    unreadable: list[tuple[Path, str]] = []
    for done, photo in enumerate(drawn):
        watch("Copying", done, len(drawn))
        try:
            scores[photo.id] = _copy_scores(index, photo, seed)
        except ImageError as error:
            unreadable.append((photo.path, error.message.removeprefix(f"{photo.path}: ")))
    nearest, left_out = _nearest_scores(snapshot, [photo for photo in drawn if photo.id in scores], watch)
    if len(scores) < 2 or not len(nearest):
        raise ArgumentError(
            f"{len(scores)} of {len(drawn)} photos can be read, {len(nearest)} have another photo beside"
            " them; wanted 2 or more",
            hint="index more photos, or bring the index up to date: dinokit index",
        )
    pairs = np.stack(list(scores.values()))
    best = _best_row(pairs, nearest, precision)
    rows = tuple(_row(pairs, nearest, threshold) for threshold in SHOWN)
    card = snapshot.card.model
    return Calibration(
        card.name, card.fingerprint, seed, len(scores), precision, best, rows, left_out, tuple(unreadable)
    )


def write_calibration(directory: Path, calibration: Calibration) -> Path:
    """Write a calibration into its index; `dinokit dedup` takes its threshold from there.

    Raises:
        ArgumentError: it recommends no threshold, or the index cannot be written.
    """
    if calibration.best is None:
        raise ArgumentError(
            f"no threshold reaches a precision of {calibration.wanted} with {calibration.model}",
            hint="ask for less precision, or index the photos with another model",
        )
    path = directory / FILE
    content = json.dumps({"schema": SCHEMA, **calibration.to_json()}, indent=2)
    try:
        write_durably(path, content.encode() + b"\n")
    except OSError as error:
        raise ArgumentError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_threshold(snapshot: Snapshot) -> float | None:
    """Return the threshold that was found for an index; None without one for its model.

    Raises:
        ArgumentError: `dedup.json` cannot be understood.
    """
    path = snapshot.layout.directory / FILE
    try:
        found = json.loads(path.read_bytes())
        if found["schema"] != SCHEMA:
            raise ValueError(f"its schema is {found['schema']}, wanted {SCHEMA}")
        threshold = float(found["threshold"])
        return threshold if found["fingerprint"] == snapshot.card.model.fingerprint else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{path} cannot be understood: {error}",
            hint="delete it, or write it again: dinokit dedup calibrate --write",
        ) from error


def _copy_scores(index: Index, photo: Photo, seed: int) -> Float64[np.ndarray, " kinds"]:
    """Return the cosine of a photo with a copy of each kind.

    Raises:
        ImageError: the photo cannot be read, is another than the one indexed, or a copy has no descriptor.
    """
    stat = read_stat(photo.path)
    if stat is not None and (stat.size, stat.mtime_ns) != (photo.size, photo.mtime_ns):
        raise ImageError("it has changed since it was indexed")
    encoder, image = index.encoder, read_image(photo.path)
    copies = [make_copy(image, kind, seed=seed + photo.id) for kind in KINDS]
    pixels = np.stack([load_picture(copy, encoder.view).pixels for copy in copies])
    try:
        rows = [as_stored(row, index.snapshot.dim) for row in encoder.embed(pixels)]
    except ArgumentError as error:
        raise ImageError("the model gave no finite descriptor of a copy") from error
    return _cosines(index.descriptors(np.array([photo.id]))[0], np.stack(rows))


def _nearest_scores(
    snapshot: Snapshot, photos: list[Photo], watch: Watch
) -> tuple[Float64[np.ndarray, " m"], int]:
    """Return the cosine of each photo with the nearest one that is no copy, and how many copies were met."""
    ids = np.array([photo.id for photo in photos], np.int64)
    rows = snapshot.descriptors(ids)
    count = min(_NEIGHBOURS + 1, len(snapshot))
    found, scores = Searcher(snapshot).search(rows.astype(np.float32), count)
    nearest, left_out = [], 0
    for place, photo in enumerate(photos):
        watch("Comparing", place, len(photos))
        near = [
            (number, score) for number, score in zip(found[place], scores[place], strict=True) if number >= 0
        ]
        others = snapshot.photos(np.array([number for number, _ in near], np.int64))
        for (_, score), other in zip(near, others, strict=True):
            if other.id == photo.id:
                continue
            if not _is_copy(photo, other):
                nearest.append(float(score))
                break
            left_out += 1
    return np.array(nearest, np.float64), left_out


def _is_copy(photo: Photo, other: Photo) -> bool:
    if photo.digest == other.digest:
        return True
    try:
        return compare(photo.path, other.path, flips=True).passed
    except ImageError:
        return False


def _cosines(
    one: Float16[np.ndarray, " dim"], others: Float16[np.ndarray, "m dim"]
) -> Float64[np.ndarray, " m"]:
    single, many = one.astype(np.float64), others.astype(np.float64)
    lengths = np.linalg.norm(many, axis=1) * np.linalg.norm(single)
    cosines: np.ndarray = many @ single / lengths
    return cosines


def _row(
    pairs: Float64[np.ndarray, "n kinds"], nearest: Float64[np.ndarray, " m"], threshold: float
) -> ThresholdRow:
    found = pairs >= threshold
    recall, false = float(found.mean()), float((nearest >= threshold).mean())
    precision = recall / (recall + false) if recall + false else None
    shares = {kind: float(found[:, place].mean()) for place, kind in enumerate(KINDS)}
    return ThresholdRow(round(threshold, 6), precision, recall, shares, false)


def _best_row(
    pairs: Float64[np.ndarray, "n kinds"], nearest: Float64[np.ndarray, " m"], wanted: float
) -> ThresholdRow | None:
    """Return the row of the highest recall that is precise enough; it lies on the score of a copy."""
    for threshold in np.unique(np.floor(pairs * 1e6) / 1e6):
        row = _row(pairs, nearest, float(threshold))
        if row.precision is not None and row.precision >= wanted:
            return row
    return None
