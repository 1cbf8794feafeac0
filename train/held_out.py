"""Does an adapter help? Keypoints that training never saw, carried with raw and with adapted tokens."""

from __future__ import annotations

import json
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
            is the view, or the box around the thing for "pairs".
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


@dataclass(frozen=True)
class KeypointPair:
    """Two photos with keypoints that show the same, marked by people.

    Attributes:
        paths: the photos.
        points0: (x, y) in pixels of photo 0.
        points1: the same in pixels of photo 1.
        extent: longer side of the box around the thing in photo 1, in pixels.
    """

    paths: tuple[Path, Path]
    points0: Keypoints
    points1: Keypoints
    extent: float


def read_keypoint_pairs(path: Path) -> list[KeypointPair]:
    """Read a JSON list of pairs: `src`, `trg`, `src_kps`, `trg_kps` and `trg_bbox`.

    A box is left, top, right, bottom. Photos lie beside the file, or in a folder `images` beside it.

    Raises:
        ArgumentError: the file cannot be read, or holds something else.
    """
    folder = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        pairs = []
        for entry in entries:
            left, top, right, bottom = entry["trg_bbox"]
            pairs.append(
                KeypointPair(
                    paths=(folder / entry["src"], folder / entry["trg"]),
                    points0=np.array(entry["src_kps"], np.float32).reshape(-1, 2),
                    points1=np.array(entry["trg_kps"], np.float32).reshape(-1, 2),
                    extent=float(max(right - left, bottom - top)),
                )
            )
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise ArgumentError(
            f"{path} holds no keypoint pairs: {error!r}",
            hint='wanted a JSON list of {"src", "trg", "src_kps", "trg_kps", "trg_bbox"}',
        ) from error
    if not any(len(pair.points0) for pair in pairs):
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
        self, source0: Source, source1: Source, points0: Keypoints, points1: Keypoints
    ) -> Float[np.ndarray, "2 n"]:
        """Return how far from the truth the keypoints land: raw, then adapted, in pixels of image 1."""
        raw, adapted = zip(self._encode(source0), self._encode(source1), strict=True)
        landed = [match(*features, points=points0).keypoints1 for features in (raw, adapted)]
        return np.asarray(np.linalg.norm(np.stack(landed) - points1, axis=2))

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
    errors: dict[str, list[np.ndarray]] = {"warped": [], "mirrored": [], "pairs": []}
    for number in range(len(photos.paths)):
        _, photo = photos.read(number)
        for name in ("warped", "mirrored"):
            made = make_pair(
                photo, judge.size, seed=photos.seed, index=number, num=_POINTS, mirrored=name == "mirrored"
            )
            found = judge.errors(made.view0, made.view1, made.points0, made.points1)
            errors[name].append(found / judge.size)
            advance()
    for pair in pairs:
        if len(pair.points0):
            found = judge.errors(*pair.paths, pair.points0, pair.points1)
            errors["pairs"].append(found / pair.extent)
        advance()
    return tuple(
        _share(name, alpha, np.concatenate(parts, axis=1))
        for name, parts in errors.items()
        if parts
        for alpha in ALPHAS
    )


def _share(name: str, alpha: float, errors: np.ndarray) -> Measure:
    raw, adapted = (errors < alpha).mean(axis=1)
    return Measure(name, alpha, float(raw), float(adapted), errors.shape[1])
