"""From two image files to their matches and all that is said of them: what `dinokit match` does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

import numpy as np

from dinov2kit.errors import ArgumentError, check_choice
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.foreground import Foreground, find_foreground, read_foreground
from dinov2kit.geometry import Geometry, GeometryKind, mirror_score, verify
from dinov2kit.identity import ModelIdentity
from dinov2kit.images import image_digest, read_image
from dinov2kit.matches import Matches
from dinov2kit.matching import MatchSpec, match, match_all
from dinov2kit.points import NamedPoints, Outside
from dinov2kit.selection import Keypointing, sift_keypoints

FEW, LONG, ENLARGED = 4, 4.0, 4.0  # fewer kept, longer sides and larger scales than these deserve a warning
MIRRORED = 0.8  # share of reversed triangles above which two images look mirrored
SIFT_CANDIDATES = 10  # for each keypoint wanted: most have no good match

Masking = Literal["auto", "pca", "none"] | tuple[Path, Path]


@runtime_checkable
class LocalEncoder(Protocol):
    """What turns an image file into features."""

    @property
    def identity(self) -> ModelIdentity:
        """The model behind it."""

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        """Return the features of one whole image, as `spec` wants them."""


@dataclass(frozen=True)
class PairSpec:
    """Everything that is wanted of a pair but the keypoints of the user.

    Attributes:
        features: the local descriptors.
        matching: how matches are read and which are kept.
        num: how many keypoints to choose when none are given.
        keypoints: how they are chosen.
        mask: where both images show something: "pca" finds it, "none" takes all, two files say it; "auto" is
            "none" for given keypoints, else "pca".
        geometry: the model that `verify` looks for; None: none.
        threshold: largest error of an inlier, in pixels of image 1; None chooses.
        rotations: 4 tries image 1 at four quarter turns and takes the one that matches best; 1: as it is.
        allow_mirror: also try image 1 mirrored left to right; left and right are then confused by intent.
        outside: what becomes of given keypoints that are not on image 0.

    Raises:
        ArgumentError: a choice is unknown, or `num` or `rotations` is out of range.
    """

    features: FeatureSpec = field(default_factory=FeatureSpec)
    matching: MatchSpec = field(default_factory=MatchSpec)
    num: int = 50
    keypoints: Keypointing = "spread"
    mask: Masking = "auto"
    geometry: GeometryKind | None = None
    threshold: float | None = None
    rotations: int = 1
    allow_mirror: bool = False
    outside: Outside = "error"

    def __post_init__(self) -> None:
        check_choice("keypoints", self.keypoints, get_args(Keypointing))
        check_choice("outside", self.outside, get_args(Outside))
        if self.geometry is not None:
            check_choice("geometry", self.geometry, get_args(GeometryKind))
        if self.num < 1:
            raise ArgumentError(f"num is {self.num}; wanted at least 1")
        if self.rotations not in (1, 4):
            raise ArgumentError(f"rotations is {self.rotations}; wanted 1 or 4")

    def poses(self) -> Iterator[FeatureSpec]:
        """Yield how image 1 is to be seen, one after the other; upright comes first."""
        for mirrored in (False, True) if self.allow_mirror else (self.features.mirrored,):
            for turns in range(4) if self.rotations == 4 else (self.features.turns,):
                yield replace(self.features, turns=turns, mirrored=mirrored)


@dataclass(frozen=True)
class MatchedPair:
    """Two image files, their matches, and how these were made.

    Attributes:
        paths: the files of image 0 and image 1.
        features: of each.
        digests: sha256 of each file.
        model: what encoded them.
        spec: what was wanted.
        pose: how image 1 was seen.
        matches: their matches.
        points: the keypoints of the user, one per match; None where they were chosen.
        geometry: what `verify` found; None when it was not asked.
        foreground: where the mask came from, and the masks.
        mirror_score: share of triangles whose orientation is reversed; None with too few matches.
        warnings: what may be wrong with the answer, in words.
        seconds: time to encode, match and verify.
    """

    paths: tuple[Path, Path]
    features: tuple[Features, Features]
    digests: tuple[str, str]
    model: ModelIdentity
    spec: PairSpec
    pose: FeatureSpec
    matches: Matches
    points: NamedPoints | None
    geometry: Geometry | None
    foreground: Foreground
    mirror_score: float | None
    warnings: tuple[str, ...]
    seconds: dict[str, float]

    @property
    def masks(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The foreground patches of each image; None where all count."""
        if self.foreground.masks is None:
            return None, None
        mask0, mask1 = self.foreground.masks
        return mask0, mask1

    @property
    def title(self) -> str:
        """One line: the two files, how many matches were kept, the model."""
        kept = f"{int(self.matches.kept.sum())}/{len(self.matches)} kept"
        names = f"{self.paths[0].name} ↔ {self.paths[1].name}"
        return f"{names} · {kept} · {self.model.name} at {self.spec.features.size} px"


def match_images(
    encoder: LocalEncoder,
    path0: Path,
    path1: Path,
    *,
    points: NamedPoints | None = None,
    spec: PairSpec | None = None,
    features0: Features | None = None,
) -> MatchedPair:
    """Encode two image files and match them.

    Args:
        encoder: the model.
        path0: file of image 0, where keypoints come from.
        path1: file of image 1, where they are looked for.
        points: keypoints of image 0 to carry over, kept in order and number; without them they are chosen.
        spec: what is wanted.
        features0: of image 0 where they are known already, made with the same `spec.features`.

    Raises:
        ImageError: an image or mask cannot be read.
        ArgumentError: a point is not on image 0, or an option is out of range.
        MatchError: the two cannot be matched.
    """
    spec = spec or PairSpec()
    start = time.perf_counter()
    features0 = encoder.encode(path0, spec.features) if features0 is None else features0
    pose, features1 = _best_pose(encoder, path1, features0, spec)
    encoded = time.perf_counter()
    if points is not None:
        points = points.fitted(features0.grid.width, features0.grid.height, spec.outside)
    foreground = _foreground(features0, features1, spec, given=points is not None)
    matches = _matches(path0, features0, features1, points, spec, foreground)
    matched = time.perf_counter()
    geometry = None
    if spec.geometry:
        spacing = max(features1.grid.cell_px)
        geometry = verify(matches, spec.geometry, cell_px=spacing, threshold=spec.threshold)
    seconds = {"encode": encoded - start, "match": matched - encoded, "verify": time.perf_counter() - matched}
    pair = MatchedPair(
        paths=(path0, path1),
        features=(features0, features1),
        digests=(image_digest(path0), image_digest(path1)),
        model=encoder.identity,
        spec=spec,
        pose=pose,
        matches=matches,
        points=points,
        geometry=geometry,
        foreground=foreground,
        mirror_score=mirror_score(matches),
        warnings=(),
        seconds=seconds,
    )
    return replace(pair, warnings=tuple(_doubts(pair)))


def _best_pose(
    encoder: LocalEncoder, path1: Path, features0: Features, spec: PairSpec
) -> tuple[FeatureSpec, Features]:
    """Return how image 1 has to be seen, and its features.

    That is the pose whose patches of image 0 match best: the mean of their cosines, those that do not find
    back counted as 0.
    """
    poses = list(spec.poses())
    seen = [encoder.encode(path1, pose) for pose in poses]
    if len(poses) == 1:
        return poses[0], seen[0]
    rated = []
    for features1 in seen:
        matches, _ = match_all(features0, features1, spec=spec.matching)
        rated.append(float((matches.score * matches.kept).mean()))
    best = int(np.argmax(rated))  # of equals the first, which is nearest to upright
    return poses[best], seen[best]


def _foreground(features0: Features, features1: Features, spec: PairSpec, *, given: bool) -> Foreground:
    mask = spec.mask
    if isinstance(mask, tuple):
        return read_foreground(mask, [features0.grid, features1.grid])
    if mask == "none" or (mask == "auto" and given):
        return Foreground(masks=None, mode="none", shares=(), reason=None)
    return find_foreground([features0, features1])


def _matches(
    path0: Path,
    features0: Features,
    features1: Features,
    points: NamedPoints | None,
    spec: PairSpec,
    foreground: Foreground,
) -> Matches:
    mask0, mask1 = foreground.masks or (None, None)
    find = partial(match, features0, features1, mask0=mask0, mask1=mask1, spec=spec.matching)
    if points is not None:
        return find(points=points.pixels)
    if spec.keypoints != "sift":
        return find(num=spec.num, keypoints=spec.keypoints)
    found = sift_keypoints(read_image(path0), SIFT_CANDIDATES * spec.num)
    if not len(found):
        raise ArgumentError(f"{path0} has no SIFT keypoints", hint="use --keypoints spread")
    matches = find(points=found)
    ranked = np.argsort(-matches.confidence, kind="stable")
    return matches.take(ranked[matches.kept[ranked]][: spec.num])


def _doubts(pair: MatchedPair) -> Iterator[str]:
    """Yield what may be wrong with an answer, in words."""
    name, kept = pair.model.name, int(pair.matches.kept.sum())
    asked = pair.spec.num if pair.points is None else len(pair.matches)
    if name.startswith("untrained"):
        yield f"{name} has random weights: these matches show that the program runs, not what it can do"
    if pair.digests[0] == pair.digests[1]:
        yield "both files hold the same image"
    for index, grid in enumerate(side.grid for side in pair.features):
        if max(grid.width, grid.height) > LONG * min(grid.width, grid.height):
            yield f"image {index} is {grid.width}×{grid.height}: so long a shape leaves few patches across"
        if max(grid.scale_x, grid.scale_y) > ENLARGED:
            times = f"{max(grid.scale_x, grid.scale_y):.1f} times"
            yield f"image {index} was enlarged {times}; a smaller size would do"
    if kept < min(FEW, asked):
        yield f"only {kept} matches were kept: the two may show nothing in common"
    if pair.foreground.reason and pair.foreground.masks is None:
        yield f"no foreground was found, so all of both images counts: {pair.foreground.reason}"
    if pair.pose.mirrored:
        yield "image 1 matches better mirrored: what is left in one is right in the other"
    elif pair.mirror_score is not None and pair.mirror_score > MIRRORED:
        yield "image 1 looks mirrored: left and right may be swapped; --allow-mirror matches it as it looks"
    if pair.pose.turns:
        yield f"image 1 matches better turned by {90 * pair.pose.turns} degrees counter-clockwise"
