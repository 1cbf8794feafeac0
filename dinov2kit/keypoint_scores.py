"""The percentage of correct keypoints (PCK), in all the ways in which papers count it.

A keypoint is correct when its error is below alpha times a length of its pair: the longer side of the box of
the target ("bbox"), of the target image ("img"), or of the extent of the target's keypoints ("bbox-kp").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from jaxtyping import Bool, Float32

from dinov2kit.errors import ArgumentError
from dinov2kit.shapes import Keypoints


@dataclass(frozen=True)
class PairScore:
    """How many keypoints of one pair were carried to the right place.

    Attributes:
        name: of the pair.
        category: what the images show.
        buckets: how the pair is classed otherwise, for instance {"viewpoint": "2"}.
        points: how many keypoints it has.
        kept: how many of them passed the checks of the matcher.
        correct: how many are correct, for each alpha.
        kept_correct: how many of the kept ones are correct, for each alpha.
        median_px: median error in pixels of the target image.
        mean_error: mean error over the length of the pair.
        extras: further measures of the pair.
    """

    name: str
    category: str
    buckets: Mapping[str, str]
    points: int
    kept: int
    correct: tuple[int, ...]
    kept_correct: tuple[int, ...]
    median_px: float
    mean_error: float
    extras: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes and `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, object]) -> PairScore:
        """Read what `to_json` wrote."""
        rows: dict[str, object] = dict(facts)
        for name in ("correct", "kept_correct"):
            counts = rows[name]
            assert isinstance(counts, list)
            rows[name] = tuple(int(count) for count in counts)
        return cls(**rows)  # type: ignore[arg-type]


def errors(predicted: Keypoints, truth: Keypoints) -> Float32[np.ndarray, " n"]:
    """Return the distance of each keypoint from where it should be; infinite where there is no answer."""
    distance: np.ndarray = np.linalg.norm(predicted - truth, axis=1)
    return np.where(np.isfinite(distance), distance, np.inf).astype(np.float32)


def pck(
    predicted: Keypoints, truth: Keypoints, threshold: float, *, inclusive: bool = False
) -> Bool[np.ndarray, " n"]:
    """Say of each keypoint whether it is closer to its truth than a threshold.

    Args:
        predicted: (x, y) in pixels.
        truth: (x, y) in the same pixels.
        threshold: alpha times the length of the pair, in pixels.
        inclusive: an error that equals the threshold is correct; papers differ.

    Source: Yang and Ramanan, "Articulated human detection with flexible mixtures of parts", PAMI 2013.
    """
    return within(errors(predicted, truth), threshold, inclusive=inclusive)


def within(
    distance: Float32[np.ndarray, " n"], threshold: float, *, inclusive: bool
) -> Bool[np.ndarray, " n"]:
    """Say of each error whether it is small enough."""
    found: np.ndarray = distance <= threshold if inclusive else distance < threshold
    return found


def score_pair(
    name: str,
    distance: Float32[np.ndarray, " n"],
    length: float,
    alphas: Sequence[float],
    *,
    kept: Bool[np.ndarray, " n"],
    inclusive: bool = False,
    category: str = "",
    buckets: Mapping[str, str] | None = None,
    extras: Mapping[str, float] | None = None,
) -> PairScore:
    """Count the correct keypoints of one pair.

    Args:
        name: of the pair.
        distance: errors in pixels of the target image, infinite where there is no answer.
        length: what alpha is a share of, in the same pixels.
        alphas: the shares.
        kept: which keypoints passed the checks of the matcher.
        inclusive: an error that equals the threshold is correct.
        category: what the images show.
        buckets: how the pair is classed otherwise.
        extras: further measures of the pair.
    """
    right = [within(distance, alpha * length, inclusive=inclusive) for alpha in alphas]
    known = distance[np.isfinite(distance)]
    return PairScore(
        name=name,
        category=category,
        buckets=buckets or {},
        points=len(distance),
        kept=int(kept.sum()),
        correct=tuple(int(row.sum()) for row in right),
        kept_correct=tuple(int(row[kept].sum()) for row in right),
        median_px=float(np.median(known)) if len(known) else float("inf"),
        mean_error=float(known.mean() / length) if len(known) else float("inf"),
        extras=extras or {},
    )


def summarise(scores: Sequence[PairScore], alphas: Sequence[float]) -> dict[str, object]:
    """Return every way of averaging, for each alpha, as a dict that `json.dumps` takes.

    `image` is the mean over the pairs of their shares of correct keypoints; `point` the share of all of them;
    `class_mean` the mean over the categories of their `point`; `class_weighted` the same weighted by their
    numbers of pairs (the headline of sd-dino); `class_mean_image` the mean over the categories of their
    `image` (the headline of TSS). `kept` counts only keypoints whose match passed the checks. A pair without
    a match counts as wrong; the errors are those of the pairs that have an answer.

    Raises:
        ArgumentError: there is no keypoint.
    """
    if not sum(score.points for score in scores):
        raise ArgumentError("no keypoint was scored")
    by_class = _grouped(scores, lambda score: [("", score.category)])
    answered = [score for score in scores if np.isfinite(score.mean_error)]
    return {
        "n_pairs": len(scores),
        "n_points": sum(score.points for score in scores),
        "kept_share": _ratio(sum(s.kept for s in scores), sum(s.points for s in scores)),
        "pck": {f"{alpha:g}": _at(scores, index, by_class) for index, alpha in enumerate(alphas)},
        "median_px": float(np.median([score.median_px for score in answered])) if answered else None,
        "mean_norm_error": float(np.mean([score.mean_error for score in answered])) if answered else None,
        "per_class": {name: _row(members, alphas) for (_, name), members in by_class.items()},
        "per_bucket": {
            f"{kind}={name}": _row(members, alphas)
            for (kind, name), members in _grouped(scores, lambda score: sorted(score.buckets.items())).items()
        },
    }


def _at(
    scores: Sequence[PairScore], index: int, by_class: Mapping[tuple[str, str], list[PairScore]]
) -> dict[str, float | None]:
    classes = {name: _point(members, index) for name, members in by_class.items()}
    weights = [len(by_class[name]) for name in classes]
    kept = sum(score.kept for score in scores)
    return {
        "image": _image(scores, index),
        "point": _point(scores, index),
        "class_mean": float(np.mean(list(classes.values()))),
        "class_weighted": float(np.average(list(classes.values()), weights=weights)),
        "class_mean_image": float(np.mean([_image(members, index) for members in by_class.values()])),
        "kept": _ratio(sum(score.kept_correct[index] for score in scores), kept) if kept else None,
    }


def _row(scores: Sequence[PairScore], alphas: Sequence[float]) -> dict[str, object]:
    return {
        "pairs": len(scores),
        "points": sum(score.points for score in scores),
        "pck_image": {f"{alpha:g}": _image(scores, index) for index, alpha in enumerate(alphas)},
        "pck_point": {f"{alpha:g}": _point(scores, index) for index, alpha in enumerate(alphas)},
    }


def _grouped(
    scores: Iterable[PairScore], keys: Callable[[PairScore], Iterable[tuple[str, str]]]
) -> dict[tuple[str, str], list[PairScore]]:
    groups: dict[tuple[str, str], list[PairScore]] = {}
    for score in scores:
        for key in keys(score):
            groups.setdefault(key, []).append(score)
    return dict(sorted(groups.items()))


def _image(scores: Sequence[PairScore], index: int) -> float:
    return float(np.mean([_ratio(score.correct[index], score.points) for score in scores]))


def _point(scores: Sequence[PairScore], index: int) -> float:
    return _ratio(sum(score.correct[index] for score in scores), sum(score.points for score in scores))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
