"""How well a model matches keypoints, by the protocols of the data sets; the report says all that counts.

A run that writes to `OUT` keeps what it has in `OUT.partial`, a line per pair, and goes on there.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from dinov2kit.animal_pairs import read_ap10k
from dinov2kit.errors import ArgumentError, ImageError, MatchError, check_choice
from dinov2kit.feature_cache import RecentEncoder
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.files import written_whole
from dinov2kit.grid import PatchGrid
from dinov2kit.keypoint_scores import PairScore, errors, score_pair, summarise
from dinov2kit.keypoint_sets import (
    SPLITS,
    KeypointPair,
    read_pairs_json,
    read_pf_pascal,
    read_pf_willow,
    read_spair,
    write_pairs_json,
)
from dinov2kit.matching import MatchSpec, match
from dinov2kit.pairs import LocalEncoder
from dinov2kit.scene_sets import (
    FlowPair,
    ScenePair,
    corner_summary,
    read_hpatches,
    read_tss,
    score_flow,
    score_scene,
)
from dinov2kit.score_file import ScoreFile
from dinov2kit.shapes import Keypoints

DataSet = Literal["spair", "pf-pascal", "pf-willow", "tss", "hpatches", "ap10k", "pairs"]
Length = Literal["auto", "bbox", "img", "bbox-kp"]
Pair = KeypointPair | FlowPair | ScenePair

ALPHAS: dict[str, tuple[float, ...]] = {
    "spair": (0.01, 0.05, 0.1),
    "pf-pascal": (0.05, 0.1, 0.15),
    "pf-willow": (0.05, 0.1, 0.15),
    "tss": (0.05,),
    "hpatches": tuple(float(px) for px in range(1, 11)),
    "ap10k": (0.01, 0.05, 0.1),
    "pairs": (0.05, 0.1),
}
LENGTHS: dict[str, str] = {
    "spair": "bbox",
    "pf-pascal": "img",
    "pf-willow": "bbox-kp",
    "tss": "img of the source",
    "hpatches": "px at a short side of 480",
    "ap10k": "bbox",
    "pairs": "auto",
}
INCLUSIVE = ("tss", "hpatches")
FAR = 0.1  # of the longer side of an image: a keypoint further outside belongs to another copy of it


@dataclass(frozen=True)
class EvalSpec:
    """What is evaluated, and how it is counted.

    Attributes:
        dataset: the set, see `read_pairs`.
        root: its folder; for "pairs" the folder or the file of the list.
        split: "test", "val" or "trn", where the set has them.
        alphas: shares of the length of a pair (pixels for "hpatches"); empty takes those of the protocol.
        length: what alpha is a share of, see `keypoint_scores.py`; "auto" takes what the protocol says, and
            for "pairs" the box where there is one, else the image.
        inclusive: an error that equals the threshold is correct.
        features: the local descriptors.
        matching: how matches are read and which are kept.
        limit: how many pairs to draw at random; 0 takes all, in order.
        seed: of what is drawn.
        drop_large: leave out the large scenes of HPatches.

    Raises:
        ArgumentError: a choice is unknown or out of range.
    """

    dataset: DataSet
    root: Path
    split: str = "test"
    alphas: tuple[float, ...] = ()
    length: Length = "auto"
    inclusive: bool = False
    features: FeatureSpec = field(default_factory=FeatureSpec)
    matching: MatchSpec = field(default_factory=MatchSpec)
    limit: int = 0
    seed: int = 0
    drop_large: bool = False

    def __post_init__(self) -> None:
        check_choice("data set", self.dataset, get_args(DataSet))
        check_choice("split", self.split, SPLITS)
        check_choice("length", self.length, get_args(Length))
        if any(not alpha > 0 for alpha in self.alphas):
            raise ArgumentError(f"alpha is {min(self.alphas)}; wanted numbers above 0")
        if self.limit < 0:
            raise ArgumentError(f"limit is {self.limit}; wanted 0 or more pairs")
        if self.length != "auto" and self.dataset in INCLUSIVE:
            raise ArgumentError(f"{self.dataset} has a length of its own: {LENGTHS[self.dataset]}")

    @property
    def shares(self) -> tuple[float, ...]:
        """The alphas in use."""
        return self.alphas or ALPHAS[self.dataset]

    def describe(self) -> dict[str, object]:
        """Return every choice, ready for JSON."""
        facts = asdict(self)
        length = LENGTHS[self.dataset] if self.length == "auto" else self.length
        return {
            **facts,
            "root": str(self.root),
            "alphas": list(self.shares),
            "length": length,
            "inclusive": self.inclusive or self.dataset in INCLUSIVE,
            "features": self.features.describe(),
            "matching": self.matching.describe(),
        }


def read_pairs(spec: EvalSpec) -> list[Pair]:
    """Return the pairs of a set, in its order, or those that are drawn.

    Raises:
        ImageError: a file of the layout is missing or damaged, or there is no pair.
        DependencyError: annotations are MATLAB files and scipy is missing.
    """
    readers: dict[str, Callable[[], Iterator[Pair]]] = {
        "spair": partial(read_spair, spec.root, spec.split),
        "pf-pascal": partial(read_pf_pascal, spec.root, spec.split),
        "pf-willow": partial(read_pf_willow, spec.root),
        "tss": partial(read_tss, spec.root),
        "hpatches": partial(read_hpatches, spec.root, drop_large=spec.drop_large),
        "ap10k": partial(read_ap10k, spec.root, spec.split, seed=spec.seed),
        "pairs": partial(read_pairs_json, spec.root),
    }
    pairs = list(readers[spec.dataset]())
    if not pairs:
        raise ImageError(f"{spec.root} holds no pairs of {spec.dataset}")
    if spec.limit and spec.limit < len(pairs):
        drawn = np.random.default_rng(spec.seed).choice(len(pairs), spec.limit, replace=False)
        return [pairs[index] for index in np.sort(drawn)]
    return pairs


def write_pairs(pairs: Sequence[Pair], path: Path, *, overwrite: bool = False) -> None:
    """Write pairs with keypoints as a list that is itself a set, "pairs".

    Raises:
        ArgumentError: the pairs have no keypoints, or the file exists or cannot be written.
    """
    listed = [pair for pair in pairs if isinstance(pair, KeypointPair)]
    if len(listed) < len(pairs):
        raise ArgumentError("the truth of these pairs is no list of keypoints, and cannot be written as one")
    if path.exists() and not overwrite:
        raise ArgumentError(f"{path} exists already", hint="name another file, or add --overwrite")
    write_pairs_json(path, listed)


def evaluate_correspondence(
    encoder: LocalEncoder,
    spec: EvalSpec,
    *,
    out: Path | None = None,
    pairs: Sequence[Pair] | None = None,
    overwrite: bool = False,
    advance: Callable[[str], None] | None = None,
) -> dict[str, object]:
    """Match every pair of a set and count what is right.

    Args:
        encoder: the model.
        spec: what is evaluated.
        out: where the report goes, .json; an interrupted run goes on from what is beside it.
        pairs: what `read_pairs` returned, where it is known already.
        overwrite: replace a report that is there.
        advance: called with the name of each pair.

    Returns:
        The report: every setting, `summarise` of all pairs, what was left out, and each pair.

    Raises:
        ImageError: the set cannot be read, or not one pair could be matched.
        ArgumentError: the report exists, or the unfinished one was made with other settings.
    """
    if out is not None and out.exists() and not overwrite:
        raise ArgumentError(f"{out} exists already", hint="name another file, or add --overwrite")
    pairs = read_pairs(spec) if pairs is None else pairs
    settings = {
        "model": {"name": encoder.identity.name, "weights_sha256": encoder.identity.weights_sha256},
        **spec.describe(),
        "pairs_sha256": pairs_digest(pairs),
    }
    done = ScoreFile(out, settings)
    skipped: list[dict[str, str]] = []
    recent = RecentEncoder(encoder)
    started = time.perf_counter()
    with done:
        for pair in pairs:
            if pair.name not in done.scores:
                try:
                    done.add(_score(pair, recent, spec))
                except (ImageError, MatchError) as error:
                    skipped.append({"pair": pair.name, "reason": error.message})
            if advance is not None:
                advance(pair.name)
    scores = [done.scores[pair.name] for pair in pairs if pair.name in done.scores]
    if not scores:
        raise ImageError(f"none of {len(pairs)} pairs could be scored; the first: {skipped[0]['reason']}")
    report = _report(settings, scores, skipped, spec, time.perf_counter() - started)
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(json.dumps({"schema": SCHEMA, **report}, indent=1) + "\n", encoding="utf-8")
        done.drop()
    return report


def pairs_digest(pairs: Sequence[Pair]) -> str:
    """Return a digest of the pairs and their truth, the same wherever the images lie."""
    digest = hashlib.sha256()
    for pair in pairs:
        told: list[object] = [pair.name, pair.category]
        if isinstance(pair, KeypointPair):
            told += [pair.box1, pair.keypoints0.tolist(), pair.keypoints1.tolist()]
        digest.update(json.dumps(told).encode())
    return digest.hexdigest()


SCHEMA = "dinokit.eval-correspondence/1"


def _report(
    settings: dict[str, object],
    scores: list[PairScore],
    skipped: list[dict[str, str]],
    spec: EvalSpec,
    seconds: float,
) -> dict[str, object]:
    from dinov2kit import __version__

    corners = corner_summary(scores) if spec.dataset == "hpatches" else None
    return {
        "version": __version__,
        **settings,
        **summarise(scores, spec.shares),
        **({"corners": corners} if corners else {}),
        "skipped": skipped,
        "runtime_s": round(seconds, 2),
        "pairs": [_finite_json(score) for score in scores],
    }


def _finite_json(score: PairScore) -> dict[str, object]:
    """Return a score for a report: what is infinite is null, which JSON can hold."""
    row = score.to_json()
    row["extras"] = {key: value if np.isfinite(value) else None for key, value in score.extras.items()}
    for key in ("median_px", "mean_error"):
        row[key] = row[key] if np.isfinite(float(str(row[key]))) else None
    return row


def _score(pair: Pair, encoder: LocalEncoder, spec: EvalSpec) -> PairScore:
    mirrored = isinstance(pair, FlowPair) and pair.mirrored
    features0 = encoder.encode(pair.path0, spec.features)
    features1 = encoder.encode(pair.path1, replace(spec.features, mirrored=mirrored))
    if isinstance(pair, FlowPair):
        return score_flow(pair, features0, features1, spec.shares, spec.matching)
    if isinstance(pair, ScenePair):
        return score_scene(pair, features0, features1, spec.shares, spec.matching)
    return _score_keypoints(pair, features0, features1, spec)


def _score_keypoints(
    pair: KeypointPair, features0: Features, features1: Features, spec: EvalSpec
) -> PairScore:
    """Score predictions in pixels of the target as it is stored, whatever the network saw."""
    if not len(pair.keypoints0):
        raise MatchError(f"{pair.name}: no keypoint is in both images")
    inside = _near(pair, features0.grid, pair.keypoints0)
    _near(pair, features1.grid, pair.keypoints1)
    length = _length(pair, features1, spec)
    if not length > 0:
        raise MatchError(f"{pair.name}: what alpha is a share of is {length:g} pixels long")
    found = match(features0, features1, points=inside, spec=spec.matching)
    return score_pair(
        pair.name,
        errors(found.keypoints1, pair.keypoints1),
        length,
        spec.shares,
        kept=found.kept,
        inclusive=spec.inclusive,
        category=pair.category,
        buckets=pair.buckets,
    )


def _near(pair: KeypointPair, grid: PatchGrid, keypoints: Keypoints) -> Keypoints:
    """Return keypoints moved onto their image: annotations may lie on its edge, but not far outside."""
    inside = keypoints.clip(0, np.array([grid.width - 1, grid.height - 1], np.float32))
    if np.abs(inside - keypoints).max() > FAR * max(grid.width, grid.height):
        size = f"{grid.width}x{grid.height}"
        raise MatchError(f"{pair.name}: keypoints lie far outside an image of {size} pixels; was it resized?")
    return inside


def _length(pair: KeypointPair, features1: Features, spec: EvalSpec) -> float:
    """Return what alpha is a share of, in pixels of the target."""
    kind = LENGTHS[spec.dataset] if spec.length == "auto" else spec.length
    if kind == "auto":
        kind = "img" if pair.box1 is None else "bbox"
    if kind == "img":
        return float(max(features1.grid.width, features1.grid.height))
    if kind == "bbox-kp":
        return float(np.ptp(pair.keypoints1, axis=0).max())
    if pair.box1 is None:
        raise MatchError(f"{pair.name} has no box of the target", hint="use --length img")
    left, top, right, bottom = pair.box1
    return max(right - left, bottom - top)
