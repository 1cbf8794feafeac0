"""Dense flow from matches: what the answers of the patches of image 0 say about each of its pixels.

Answers are worked on as *drifts*: what is left of them when the overall change of scale between the images
is taken out. Drifts of neighbours are alike, whatever the sizes of the two images. Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float64

from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches
from dinov2kit.warping import DenseFlow, fold_over, interpolate, mesh_flow, parametric_flow

__all__ = ["DenseFlow", "Kind", "dense_flow", "mesh_flow", "parametric_flow"]

Kind = Literal["raw", "smooth", "mesh", "affine", "tps"]

JUMP = 4.0  # patches between the answers of neighbours, from which on they show different things
SPREAD = 1.0  # standard deviation of the smoothing, in patches
REACH = 3  # how far it looks, in patches
COMPANY = 2  # neighbours of eight that must agree with an answer, or it is an outlier
RIDGE = 1e-4  # keeps a slope that nothing tells at zero
SIDES = [(-1, 0), (0, -1), (0, 1), (1, 0)]
CORNERS = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
AROUND = SIDES + CORNERS


def dense_flow(
    matches: Matches,
    grid0: PatchGrid,
    *,
    kind: Kind = "smooth",
    mask0: Bool[np.ndarray, " n_patches"] | None = None,
) -> DenseFlow:
    """Return where every pixel of image 0 lies in image 1.

    Beyond the outermost patch centres the flow of "raw" and "smooth" goes on linearly for one patch, and then
    like there. Across an edge it passes from one side to the other between two patch centres. A pixel is
    valid where the patch it falls in is wanted and has an answer; a pixel that no patch covers is not. The
    certainty is the confidence of the patches, bilinear between their centres.

    Args:
        matches: one match per patch of `grid0`, row-major, as `match_all` returns them.
        grid0: the patches of image 0.
        kind: "raw": the answers, bilinear between the patch centres; "smooth": the same after outliers were
            replaced and the rest smoothed, weighted by confidence, but not across edges; "mesh": affine in
            each triangle between kept matches, none outside of them; "affine" and "tps": the map that fits
            the kept matches best, see `parametric_flow`.
        mask0: patches of `grid0` where flow is wanted; None: everywhere. "raw" and "smooth" do not look at
            `kept`: a patch that failed a check has an answer all the same, of low confidence.

    Raises:
        ArgumentError: the matches or the mask do not belong to the grid, or the kind is unknown.
        MatchError: there are no answers, or too few kept ones for a mesh or a map.
    """
    if kind not in get_args(Kind):
        raise ArgumentError(f"unknown kind {kind!r}; wanted one of {', '.join(get_args(Kind))}")
    if len(matches) != grid0.n_patches or (mask0 is not None and len(mask0) != grid0.n_patches):
        got = f"{len(matches)} matches" + ("" if mask0 is None else f" and a mask of {len(mask0)}")
        raise ArgumentError(f"{got} for a grid of {grid0.n_patches} patches; wanted one per patch")
    wanted = np.isfinite(matches.keypoints1).all(axis=1)
    if mask0 is not None:
        wanted &= mask0
    if not wanted.any():
        raise MatchError("no patch of image 0 has an answer", hint="widen its mask, or match without one")
    chosen = matches.take(np.flatnonzero(matches.kept & wanted))
    kept, size = (chosen.keypoints0, chosen.keypoints1), (grid0.width, grid0.height)
    if kind == "mesh":
        whole = mesh_flow(*kept, *size)
    elif kind == "affine" or kind == "tps":
        whole = parametric_flow(*kept, *size, kind=kind)
    else:
        whole = _patch_flow(matches, wanted, grid0, smooth=kind == "smooth")
    places = _Places.of(grid0)
    valid = whole.valid & places.falls_on(wanted.reshape(grid0.rows, grid0.cols))
    trust = np.where(wanted, matches.confidence, 0).reshape(grid0.rows, grid0.cols, 1).astype(np.float32)
    certainty = interpolate(trust, *places.within(0))[..., 0]
    whole.flow[~valid] = np.nan
    return DenseFlow(whole.flow, certainty * valid, valid, whole.fold_over)


@dataclass(frozen=True)
class _Places:
    """Where the columns and rows of pixels of image 0 lie in its patch grid, in the cell frame."""

    grid: PatchGrid
    x: Float64[np.ndarray, " width"]
    y: Float64[np.ndarray, " height"]

    @classmethod
    def of(cls, grid: PatchGrid) -> _Places:
        count = max(grid.width, grid.height)
        cells = grid.to_cells(np.repeat(np.arange(count, dtype=np.float32)[:, None], 2, axis=1))
        cells = cells.astype(np.float64)
        return cls(grid, cells[: grid.width, 0], cells[: grid.height, 1])

    def within(self, margin: int) -> tuple[np.ndarray, np.ndarray]:
        """Return x and y, moved to at most `margin` cells beyond the outermost centres."""
        return (
            self.x.clip(-margin, self.grid.cols - 1 + margin),
            self.y.clip(-margin, self.grid.rows - 1 + margin),
        )

    def falls_on(self, patches: Bool[np.ndarray, "rows cols"]) -> Bool[np.ndarray, "height width"]:
        """Say for every pixel whether some patch covers it and the nearest is one of these."""
        reach = max(1.0, self.grid.patch_size / 2 / self.grid.stride)
        x, y = self.within(0)
        covered_x, covered_y = np.abs(self.x - x) <= reach, np.abs(self.y - y) <= reach
        near = patches[np.rint(y).astype(int)][:, np.rint(x).astype(int)]
        return np.asarray(near & covered_y[:, None] & covered_x)


def _patch_flow(
    matches: Matches, wanted: Bool[np.ndarray, " n_patches"], grid: PatchGrid, *, smooth: bool
) -> DenseFlow:
    """Return the flow between the answers of the patches, valid everywhere."""
    shape = grid.rows, grid.cols
    answers = np.where(wanted[:, None], matches.keypoints1, np.nan).astype(np.float64).reshape(*shape, 2)
    centers = grid.centers().astype(np.float64).reshape(*shape, 2)
    confidence = np.where(wanted, matches.confidence, np.nan).astype(np.float64).reshape(shape)
    cell = float(np.sqrt(np.prod(grid.cell_px)))
    unit = _typical_step(answers, confidence, otherwise=cell)
    scale = unit / cell
    drift = answers - scale * centers
    if smooth:
        drift = _smoothed(drift, confidence, JUMP * unit)
    places = _Places.of(grid)
    x, y = places.within(1)
    flow = interpolate(_extended(drift, JUMP * unit).astype(np.float32), x + 1, y + 1)
    flow[..., 0] += ((scale - 1) * np.arange(grid.width)).astype(np.float32)
    flow[..., 1] += ((scale - 1) * np.arange(grid.height)).astype(np.float32)[:, None]
    everywhere = np.ones((grid.height, grid.width), bool)
    folded = fold_over((drift + scale * centers).astype(np.float32))
    return DenseFlow(flow, everywhere.astype(np.float32), everywhere, folded)


def _typical_step(
    answers: Float64[np.ndarray, "rows cols 2"],
    confidence: Float64[np.ndarray, "rows cols"],
    otherwise: float,
) -> float:
    """Return how far apart the answers of neighbouring patches lie: a patch of image 0 in pixels of image 1.

    It is the median, weighted by confidence; `otherwise` where no patch has a neighbour with an answer.
    """
    steps, weights = [], []
    for before, after in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        steps.append(_distance(answers[after], answers[before]).ravel())
        weights.append((confidence[after] * confidence[before]).ravel())
    step, weight = np.concatenate(steps), np.concatenate(weights)
    there = np.isfinite(step)
    step, weight = step[there], weight[there] + 1e-30  # where nothing is trusted, all count the same
    if not len(step):
        return otherwise
    order = np.argsort(step)
    total = np.cumsum(weight[order])
    return float(step[order][np.searchsorted(total, total[-1] / 2)])


def _smoothed(
    drift: Float64[np.ndarray, "rows cols 2"], confidence: Float64[np.ndarray, "rows cols"], limit: float
) -> Float64[np.ndarray, "rows cols 2"]:
    """Fit a plane around every patch, weighted by confidence and distance, and take its height there.

    A plane, unlike a weighted mean, is not pulled to the side that is trusted more or not cut off: an affine
    map stays what it is, up to the borders. Neighbours beyond a jump do not count, nor do outliers.

    Source: Cleveland, "Robust locally weighted regression and smoothing scatterplots", JASA 1979.
    """
    outlier = _outliers(drift, limit)[..., None]
    trusted = np.where(outlier, np.nan, drift)
    median = _median(np.stack([_shifted(trusted, dy, dx) for dy, dx in AROUND]))
    start = np.where(outlier & np.isfinite(median), median, drift)
    moments, sums = np.zeros((*outlier.shape[:2], 3, 3)), np.zeros((*outlier.shape[:2], 3, 2))
    steps = range(-REACH, REACH + 1)
    for dy, dx in product(steps, steps):
        near = _shifted(trusted, dy, dx)
        weight = _shifted(confidence[..., None], dy, dx) * np.exp(-(dx**2 + dy**2) / 2 / SPREAD**2)
        weight = np.where(_distance(near, start)[..., None] <= limit, weight, 0)[..., None]
        plane = np.array([1.0, dx, dy])
        moments += weight * np.outer(plane, plane)
        sums += weight * np.outer(plane, [1, 1]) * np.nan_to_num(near)[..., None, :]
    total = moments[..., :1, :1].copy()
    moments += total * np.diag([0, RIDGE, RIDGE]) + (total == 0) * np.eye(3)
    return np.where(total[..., 0] > 0, np.linalg.solve(moments, sums)[..., 0, :], start)


def _outliers(drift: Float64[np.ndarray, "rows cols 2"], limit: float) -> Bool[np.ndarray, "rows cols"]:
    """Find answers with which almost none of the eight neighbours agree; a corner of an object has three."""
    company = np.stack([_distance(_shifted(drift, dy, dx), drift) <= limit for dy, dx in AROUND])
    return np.asarray((company.sum(axis=0) < COMPANY) & np.isfinite(drift[..., 0]))


def _extended(
    drift: Float64[np.ndarray, "rows cols 2"], limit: float
) -> Float64[np.ndarray, "more_rows more_cols 2"]:
    """Add one patch on each side, and fill all without an answer whose neighbours have one; the others are 0.

    They go on linearly where two neighbours in a row agree, first those in the same row or column; else they
    are like the nearest.
    """
    filled = padded = np.pad(drift, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    for directions in (SIDES, CORNERS):
        nearest = np.stack([_shifted(padded, dy, dx) for dy, dx in directions])
        second = np.stack([_shifted(padded, 2 * dy, 2 * dx) for dy, dx in directions])
        agree = _distance(nearest, second)[..., None] <= limit
        filled = np.where(np.isnan(filled), _mean(np.where(agree, 2 * nearest - second, np.nan)), filled)
    nearest = np.stack([_shifted(padded, dy, dx) for dy, dx in AROUND])
    return np.nan_to_num(np.where(np.isnan(filled), _mean(nearest), filled))


def _shifted(values: np.ndarray, dy: int, dx: int) -> np.ndarray:
    """Return for every patch the values `dy` rows below and `dx` columns to the right of it; NaN for none."""
    rows, cols = values.shape[:2]
    padded = np.pad(values, [(abs(dy),) * 2, (abs(dx),) * 2, (0, 0)], constant_values=np.nan)
    top, left = abs(dy) + dy, abs(dx) + dx
    return padded[top : top + rows, left : left + cols]


def _distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.asarray(np.linalg.norm(first - second, axis=-1))


def _mean(values: Float64[np.ndarray, "n rows cols 2"]) -> Float64[np.ndarray, "rows cols 2"]:
    """Return the mean of those that are not NaN; NaN where all are."""
    there = np.isfinite(values)
    count = there.sum(axis=0)
    return np.asarray(np.where(there, values, 0).sum(axis=0) / np.where(count, count, np.nan))


def _median(values: Float64[np.ndarray, "n rows cols 2"]) -> Float64[np.ndarray, "rows cols 2"]:
    """Return the lower median of those that are not NaN; NaN where all are."""
    middle = np.maximum(np.isfinite(values).sum(axis=0) - 1, 0) // 2
    return np.asarray(np.take_along_axis(np.sort(values, axis=0), middle[None], axis=0)[0])
