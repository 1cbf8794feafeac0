"""Which places of two images show the same thing: keypoints carried from image 0 to image 1.

Keypoints are (x, y) in pixels of the original images; the arithmetic in cells is in `readout.py` and
`correspondence.py`, the choice of keypoints in `selection.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy.typing import ArrayLike
from torch import Tensor

from dinov2kit.correspondence import Correspondence, correspond
from dinov2kit.errors import ArgumentError, MatchError, check_choice
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches
from dinov2kit.readout import Field, Reading, ReadOut, Refine, sample
from dinov2kit.selection import Keypointing, choose
from dinov2kit.shapes import Keypoints

__all__ = ["MatchSpec", "Matches", "match", "match_all", "similarity_map"]

SHOWN_INDEXES = 10  # how many offending points an error names
ARTEFACT_DEVIATIONS, ARTEFACT_FACTOR = 5.0, 1.5  # a token is an artefact when longer than both say

PatchMask = Bool[np.ndarray, " n_patches"]


@dataclass(frozen=True)
class MatchSpec:
    """How matches are read and which of them are kept.

    Attributes:
        max_cycle: largest cycle error of a match that is kept, in patches of image 0.
        mutual: also want the patch of image 1 to have the patch of image 0 as its nearest neighbour.
        max_ratio: largest ratio of a match that is kept; None: any. What is right differs between models.
        min_score: lowest cosine of a match that is kept; None: any.
        refine: "window" soft-argmax, "parabola" or "none", see `readout.ReadOut`.
        window: radius of the read-out window in patches; 0 takes 8 % of the longer grid side, at least 2.
        temperature: of the softmax in the window.
        modes: how many peaks of each similarity to report, for repeated structure; 1: only the match.

    Raises:
        ArgumentError: a value is out of range.
    """

    max_cycle: float = 1.0
    mutual: bool = False
    max_ratio: float | None = None
    min_score: float | None = None
    refine: Refine = "window"
    window: int = 0
    temperature: float = 0.04
    modes: int = 1

    def __post_init__(self) -> None:
        check_choice("refine", self.refine, get_args(Refine))
        wanted = {
            "max_cycle": (self.max_cycle >= 0, "0 patches or more"),
            "window": (self.window >= 0, "0 or more patches"),
            "temperature": (0 < self.temperature < float("inf"), "a number above 0"),
            "modes": (self.modes >= 1, "1 or more"),
            "max_ratio": (self.max_ratio is None or self.max_ratio > 0, "a number above 0"),
            "min_score": (self.min_score is None or -1 <= self.min_score <= 1, "a cosine, -1 to 1"),
        }
        for name, (fits, range_) in wanted.items():
            if not fits:
                raise ArgumentError(f"{name} is {getattr(self, name)}; wanted {range_}")

    def describe(self) -> dict[str, object]:
        """Return every choice, ready for JSON."""
        return asdict(self)


def match(
    features0: Features,
    features1: Features,
    *,
    points: ArrayLike | None = None,
    num: int = 50,
    keypoints: Keypointing = "spread",
    mask0: Bool[np.ndarray, " n_patches0"] | None = None,
    mask1: Bool[np.ndarray, " n_patches1"] | None = None,
    spec: MatchSpec | None = None,
) -> Matches:
    """Find the places of image 1 that show what places of image 0 show.

    Args:
        features0: features of image 0.
        features1: features of image 1, from the same model.
        points: (n, 2) pixels (x, y) of image 0 to carry over. Their order and count are kept; a match that
            fails a check is only marked, by `kept`. Without them, up to `num` patch centres that pass all
            checks are chosen, the most confident first.
        num: how many keypoints to choose when `points` is not given.
        keypoints: how they are chosen, see `selection.choose`.
        mask0: patches of `features0.grid` that show what is looked for; no other is chosen or kept.
        mask1: patches of `features1.grid` that may be answers.
        spec: how matches are read and which are kept.

    Raises:
        ArgumentError: `points` is not (n, 2), not finite or outside image 0, or an option is out of range.
        MatchError: the features come from different models or hold values that are not finite, or a mask
            leaves no patch.

    Source: Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021 (nearest patch features); the
        read-out and the checks are those of `correspondence.correspond`.
    """
    if num < 1:
        raise ArgumentError(f"num is {num}; wanted at least 1")
    side0, side1 = _fields(features0, features1, mask0, mask1)
    spec = spec or MatchSpec()
    if points is not None:
        return _carry(_checked_points(points, side0[1]), side0, side1, spec)
    matches = _carry(side0[1].centers(), side0, side1, spec)
    pairs = _paired_descriptors(matches, side0, side1) if keypoints == "kmeans" else None
    return matches.take(choose(matches, side0[1], num, keypoints, descriptors=pairs))


def match_all(
    features0: Features,
    features1: Features,
    *,
    mask0: Bool[np.ndarray, " n_patches0"] | None = None,
    mask1: Bool[np.ndarray, " n_patches1"] | None = None,
    spec: MatchSpec | None = None,
) -> tuple[Matches, PatchGrid]:
    """Match the centre of every patch of image 0 that lies on the image.

    Returns:
        One match per patch, row-major, and the grid of these patches: that of `features0` without padding.
        Patches that a mask closes, and artefacts, have `kept` False.

    Raises:
        MatchError: as `match`.
    """
    (field0, grid0), (field1, grid1) = _fields(features0, features1, mask0, mask1)
    return _carry(grid0.centers(), (field0, grid0), (field1, grid1), spec or MatchSpec()), grid0


def similarity_map(
    features0: Features, features1: Features, point: Float32[np.ndarray, " 2"]
) -> tuple[Float32[np.ndarray, "rows cols"], PatchGrid]:
    """Return the cosine of one point of image 0 to every patch of image 1 that lies on the image.

    Args:
        features0: features of image 0.
        features1: features of image 1, from the same model.
        point: (x, y) in pixels of image 0.

    Raises:
        ArgumentError: the point is not on image 0.
        MatchError: as `match`.
    """
    (field0, grid0), (field1, grid1) = _fields(features0, features1, None, None)
    cell = torch.from_numpy(grid0.to_cells(_checked_points(point[None], grid0))).to(field0.descriptors.device)
    cosine = sample(field0, cell) @ field1.descriptors.T
    return cosine.view(grid1.rows, grid1.cols).cpu().numpy(), grid1


def _carry(
    pixels: Keypoints, side0: tuple[Field, PatchGrid], side1: tuple[Field, PatchGrid], spec: MatchSpec
) -> Matches:
    """Carry points of image 0 over and mark the matches that pass the checks."""
    (field0, grid0), (field1, grid1) = side0, side1
    device = field0.descriptors.device
    cells0 = grid0.to_cells(pixels)
    how = ReadOut(refine=spec.refine, radius=spec.window, temperature=spec.temperature)
    with torch.no_grad():
        found = correspond(torch.from_numpy(cells0).to(device), field0, field1, how=how, modes=spec.modes)
        reading = found.reading
        ratio = (1 - reading.score) / (1 - reading.second).clamp(min=1e-6)
        kept = found.cycle_error <= spec.max_cycle
        if spec.mutual:
            kept = kept & found.mutual
        if spec.max_ratio is not None:
            kept = kept & (ratio <= spec.max_ratio)
        if spec.min_score is not None:
            kept = kept & (reading.score >= spec.min_score)
        spread_px = (reading.variance * torch.tensor(grid1.cell_px, device=device).square()).sum(dim=1)
    marked = kept.cpu().numpy()
    if field0.open is not None:
        marked &= field0.open.cpu().numpy()[grid0.cell_of(cells0)]
    return Matches(
        keypoints0=pixels,
        keypoints1=grid1.to_pixels(reading.cells.cpu().numpy()),
        score=reading.score.cpu().numpy(),
        confidence=found.confidence.cpu().numpy(),
        cycle_error=found.cycle_error.cpu().numpy(),
        uncertainty=spread_px.div(2).sqrt().cpu().numpy(),
        ratio=ratio.cpu().numpy(),
        kept=marked,
        alternatives=_alternatives(found, grid1),
    )


def _paired_descriptors(
    matches: Matches, side0: tuple[Field, PatchGrid], side1: tuple[Field, PatchGrid]
) -> Float32[np.ndarray, "n pair_dim"]:
    """Return the descriptors of both ends of each match, side by side."""
    ends = [
        sample(field, torch.from_numpy(grid.to_cells(pixels)).to(field.descriptors.device)).cpu().numpy()
        for (field, grid), pixels in ((side0, matches.keypoints0), (side1, matches.keypoints1))
    ]
    return np.concatenate(ends, axis=1)


def _alternatives(
    found: Correspondence, grid1: PatchGrid
) -> tuple[tuple[tuple[float, float, float], ...], ...]:
    """Return for every match its other peaks as (x, y, score), those that exist."""
    if not found.others:
        return ()

    def rows(reading: Reading) -> list[tuple[float, float, float]]:
        pixels = grid1.to_pixels(reading.cells.cpu().numpy())
        return [(float(x), float(y), float(s)) for (x, y), s in zip(pixels, reading.score.cpu(), strict=True)]

    ranks = [rows(reading) for reading in found.others]
    return tuple(
        tuple(peak for peak in peaks if np.isfinite(peak).all()) for peaks in zip(*ranks, strict=True)
    )


def _fields(
    features0: Features,
    features1: Features,
    mask0: Bool[np.ndarray, " n_patches0"] | None,
    mask1: Bool[np.ndarray, " n_patches1"] | None,
) -> tuple[tuple[Field, PatchGrid], tuple[Field, PatchGrid]]:
    """Return the visible field and its grid of both images, on the device of image 0."""
    if features0.patch_tokens.shape[1] != features1.patch_tokens.shape[1]:
        dims = f"{features0.patch_tokens.shape[1]} and {features1.patch_tokens.shape[1]}"
        raise MatchError(
            f"the two images have descriptors of different length: {dims}",
            hint="encode both images with the same model",
        )
    device = features0.patch_tokens.device
    return _visible_field(features0, mask0, 0, device), _visible_field(features1, mask1, 1, device)


def _visible_field(
    features: Features, mask: PatchMask | None, side: int, device: torch.device
) -> tuple[Field, PatchGrid]:
    """Return the cells whose centre lies on the image, as a smaller field and the grid that belongs to it."""
    grid, descriptors = features.grid, features.local_descriptors.to(device)
    if not bool(torch.isfinite(descriptors).all()):
        raise MatchError("the features hold values that are not finite", hint="use --precision fp32")
    seen, inside = grid.visible(), grid.inside()
    open_ = _open_cells(features, mask, side)[inside]
    if not open_.any():
        raise MatchError(
            f"no patch of image {side} is left to match", hint="widen its mask, or match without one"
        )
    field = Field(
        descriptors=descriptors if inside.all() else descriptors[torch.from_numpy(inside).to(device)],
        rows=seen.rows,
        cols=seen.cols,
        open=None if open_.all() else torch.from_numpy(open_).to(device),
    )
    return field, seen


def _open_cells(features: Features, mask: PatchMask | None, side: int) -> PatchMask:
    """Say of each patch whether it may be matched: the mask wants it, and it is no artefact.

    Artefact tokens have a far larger norm than their neighbours and do not describe their place.
    Source: Darcet et al., "Vision transformers need registers", 2023.
    """
    open_ = np.ones(features.grid.n_patches, bool) if mask is None else mask.copy()
    if len(open_) != features.grid.n_patches:
        raise ArgumentError(f"mask{side} has {len(open_)} patches; wanted {features.grid.n_patches}")
    if features.magnitudes is not None:
        open_ &= ~_artefacts(features.magnitudes)
    return open_


def _artefacts(magnitudes: Tensor) -> PatchMask:
    lengths = magnitudes.cpu().numpy()
    median = np.median(lengths)
    deviation = np.median(np.abs(lengths - median))
    limit = max(median + ARTEFACT_DEVIATIONS * deviation, ARTEFACT_FACTOR * median)
    return np.asarray(lengths > limit)


def _checked_points(points: ArrayLike, grid: PatchGrid) -> Keypoints:
    try:
        pixels = np.array(points, np.float32)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"the points are not numbers: {error}") from error
    if pixels.ndim != 2 or pixels.shape[1] != 2 or not len(pixels):
        raise ArgumentError(f"the points have shape {pixels.shape}; wanted one row (x, y) per point")
    outside = np.flatnonzero(~grid.contains(pixels))
    if len(outside):
        named = ", ".join(str(i) for i in outside[:SHOWN_INDEXES]) + (
            ", ..." * (len(outside) > SHOWN_INDEXES)
        )
        raise ArgumentError(
            f"{len(outside)} of {len(pixels)} points are not on image 0, which has "
            f"{grid.width}x{grid.height} pixels: points {named} (counted from 0)",
            hint="points are x,y in pixels of the upright original; --outside clip or skip goes on",
        )
    return pixels
