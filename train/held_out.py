"""Does an adapter help? Keypoints that training never saw, carried with raw and with adapted tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from dinov2kit.adapter import Adapter
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.images import Source
from dinov2kit.keypoint_scores import errors
from dinov2kit.keypoint_sets import KeypointPair, read_pairs_json
from dinov2kit.matching import match
from dinov2kit.shapes import Keypoints

from .photo_split import PhotoStream
from .synthetic_pairs import make_pair

ALPHAS = (0.1, 0.05)  # share of the size of the target that a correct keypoint may be away

_POINTS = 32  # of a synthetic pair


@dataclass(frozen=True)
class Measure:
    """The share of correct keypoints (PCK) with raw and with adapted tokens.

    Attributes:
        name: "warped", "mirrored" or "pairs": what was measured on.
        alpha: a keypoint is correct when it is closer than this share of the longer side of the target, which
            is the view; for "pairs" the box around the thing, or the image where there is no box.
        raw: share with the tokens that `dinokit match` reads without an adapter, 0 to 1.
        adapted: share with the adapter.
        points: how many keypoints.
    """

    name: str
    alpha: float
    raw: float
    adapted: float
    points: int

    @property
    def lost(self) -> bool:
        """Whether the adapter is worse."""
        return self.adapted < self.raw


def read_marked(path: Path) -> list[KeypointPair]:
    """Read keypoints that people marked, as `read_pairs_json` does.

    Raises:
        ImageError: the file is missing or damaged.
        ArgumentError: there are no keypoints in it.
    """
    pairs = [pair for pair in read_pairs_json(path) if len(pair.keypoints0)]
    if not pairs:
        raise ArgumentError(f"{path} holds no keypoints")
    return pairs


@dataclass(frozen=True)
class Judge:
    """Carries keypoints between two images, with raw and with adapted tokens.

    Attributes:
        encoder: the backbone.
        adapter: what is judged.
        size: longer side of the network input, in pixels.
    """

    encoder: Encoder
    adapter: Adapter
    size: int

    def errors(
        self,
        source0: Source,
        source1: Source,
        points0: Keypoints,
        points1: Keypoints,
        *,
        length: float | None = None,
    ) -> Float[np.ndarray, "2 shown"]:
        """Return how far from the truth the keypoints on image 0 land: raw, then adapted.

        Args:
            source0: image 0.
            source1: image 1.
            points0: (x, y) in pixels of image 0.
            points1: the same places in pixels of image 1.
            length: what errors are a share of, in pixels of image 1; None: its longer side.
        """
        raw, adapted = zip(self._encode(source0), self._encode(source1), strict=True)
        grid0, grid1 = (features.grid for features in raw)
        shown = grid0.contains(points0)
        if not shown.any():
            return np.empty((2, 0))
        landed = [match(*features, points=points0[shown]).keypoints1 for features in (raw, adapted)]
        found = np.stack([errors(places, points1[shown]) for places in landed])
        return found / (length or max(grid1.width, grid1.height))

    def _encode(self, source: Source) -> tuple[Features, Features]:
        plain = FeatureSpec(size=self.size)
        read = self.adapter.card.expects(plain)
        raw = self.encoder.encode(source, plain)
        tokens = raw if read == plain else self.encoder.encode(source, read)
        return raw, self.adapter.adapt(tokens, read)


def measure(
    judge: Judge,
    photos: PhotoStream,
    pairs: Sequence[KeypointPair] = (),
    *,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Measure, ...]:
    """Compare raw and adapted tokens on photos held out, on their mirrored views, and on marked pairs.

    Args:
        judge: the backbone and the adapter.
        photos: held out; a synthetic pair is made of each, plain and mirrored.
        pairs: keypoints that people marked.
        advance: called after each pair.
    """
    found: dict[str, list[np.ndarray]] = {"warped": [], "mirrored": [], "pairs": []}
    for number in range(len(photos.paths)):
        _, photo = photos.read(number)
        for name in ("warped", "mirrored"):
            made = make_pair(
                photo, judge.size, seed=photos.seed, index=number, num=_POINTS, mirrored=name == "mirrored"
            )
            found[name].append(judge.errors(made.view0, made.view1, made.points0, made.points1))
            advance()
    for pair in pairs:
        left, top, right, bottom = pair.box1 or (0.0, 0.0, 0.0, 0.0)
        length = max(right - left, bottom - top) or None
        found["pairs"].append(
            judge.errors(pair.path0, pair.path1, pair.keypoints0, pair.keypoints1, length=length)
        )
        advance()
    return tuple(
        _share(name, alpha, np.concatenate(parts, axis=1))
        for name, parts in found.items()
        if parts
        for alpha in ALPHAS
    )


def _share(name: str, alpha: float, distances: np.ndarray) -> Measure:
    raw, adapted = (distances < alpha).mean(axis=1)
    return Measure(name, alpha, float(raw), float(adapted), distances.shape[1])
