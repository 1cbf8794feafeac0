"""Which places of two images show the same thing: keypoints carried from image 0 to image 1.

Keypoints are (x, y) in pixels of the original images; the arithmetic in cells is in `readout.py`.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Int64
from numpy.typing import ArrayLike

from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches
from dinov2kit.readout import Field, correspond
from dinov2kit.shapes import Keypoints

__all__ = ["Matches", "match", "spread_out"]

SHOWN_INDEXES = 10  # how many offending points an error names


def match(
    features0: Features,
    features1: Features,
    *,
    points: ArrayLike | None = None,
    num: int = 50,
    mutual: bool = False,
    max_cycle: float = 1.0,
) -> Matches:
    """Find the places of image 1 that show what places of image 0 show.

    Args:
        features0: features of image 0.
        features1: features of image 1, from the same model.
        points: (n, 2) pixels (x, y) of image 0 to carry over. Their order and count are kept; a match that
            fails a check is only marked, by `kept`. Without them, up to `num` patch centres that pass all
            checks are chosen, spread over the image, the most confident first.
        num: how many keypoints to choose when `points` is not given.
        mutual: also want the patch of image 1 to have the patch of image 0 as its nearest neighbour.
        max_cycle: largest cycle error of a match that is kept, in patches of image 0.

    Raises:
        ArgumentError: `points` is not (n, 2), not finite or outside image 0, or an option is out of range.
        MatchError: the features come from different models, or hold values that are not finite.

    Source: Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021 (nearest patch features); the
        read-out and the checks are those of `readout.correspond`.
    """
    if num < 1:
        raise ArgumentError(f"num is {num}; wanted at least 1")
    if not max_cycle >= 0:
        raise ArgumentError(f"max_cycle is {max_cycle}; wanted 0 patches or more")
    if features0.patch_tokens.shape[1] != features1.patch_tokens.shape[1]:
        dims = f"{features0.patch_tokens.shape[1]} and {features1.patch_tokens.shape[1]}"
        raise MatchError(
            f"the two images have descriptors of different length: {dims}",
            hint="encode both images with the same model",
        )
    (field0, grid0), (field1, grid1) = _visible_field(features0), _visible_field(features1)
    pixels = grid0.centers() if points is None else _checked_points(points, grid0)
    device = field0.descriptors.device
    field1 = replace(field1, descriptors=field1.descriptors.to(device))
    with torch.no_grad():
        found = correspond(torch.from_numpy(grid0.to_cells(pixels)).to(device), field0, field1)
    kept = found.cycle_error <= max_cycle
    if mutual:
        kept = kept & found.mutual
    patch_px = torch.tensor(grid1.patch_px, device=device)
    spread_px = (found.reading.variance * patch_px.square()).sum(dim=1).div(2).sqrt()
    matches = Matches(
        keypoints0=pixels,
        keypoints1=grid1.to_pixels(found.reading.cells.cpu().numpy()),
        score=found.reading.score.cpu().numpy(),
        confidence=found.confidence.cpu().numpy(),
        cycle_error=found.cycle_error.cpu().numpy(),
        uncertainty=spread_px.cpu().numpy(),
        kept=kept.cpu().numpy(),
    )
    return matches if points is not None else matches.take(spread_out(matches, grid0, num))


def spread_out(matches: Matches, grid: PatchGrid, num: int) -> Int64[np.ndarray, " k"]:
    """Choose up to `num` kept matches, confident and spread over image 0; the most confident first.

    Args:
        matches: one match per cell of `grid`, row-major.
        grid: the grid of image 0.
        num: how many to choose.

    Greedy: the most confident match that is at least `spacing` cells from all chosen ones is next. The
    spacing starts at the one that would share the kept cells evenly and shrinks until `num` are found.
    """
    ranked = np.argsort(-matches.confidence, kind="stable")
    ranked = ranked[matches.kept[ranked]]
    spacing = max(1, round(math.sqrt(len(ranked) / num)))
    while True:
        taken = np.zeros((grid.rows, grid.cols), bool)
        chosen: list[int] = []
        for index in ranked:
            row, col = divmod(int(index), grid.cols)
            if taken[row, col]:
                continue
            chosen.append(int(index))
            if len(chosen) == num:
                break
            taken[
                max(0, row - spacing + 1) : row + spacing,
                max(0, col - spacing + 1) : col + spacing,
            ] = True
        if len(chosen) == num or spacing == 1:
            return np.asarray(chosen, np.int64)
        spacing -= 1


def _visible_field(features: Features) -> tuple[Field, PatchGrid]:
    """Return the cells whose centre lies on the image, as a smaller field and the grid that belongs to it."""
    grid, descriptors = features.grid, features.local_descriptors
    if not bool(torch.isfinite(descriptors).all()):
        raise MatchError("the features hold values that are not finite", hint="use --precision fp32")
    inside = grid.inside().reshape(grid.rows, grid.cols)
    rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    if not len(rows):
        raise MatchError(f"no patch of the {grid.rows}x{grid.cols} grid has its centre on the image")
    top, left, n_rows, n_cols = int(rows[0]), int(cols[0]), len(rows), len(cols)
    visible = descriptors.view(grid.rows, grid.cols, -1)[top : top + n_rows, left : left + n_cols]
    field = Field(descriptors=visible.flatten(0, 1).contiguous(), rows=n_rows, cols=n_cols)
    return field, replace(
        grid,
        rows=n_rows,
        cols=n_cols,
        offset_x=grid.offset_x - left * grid.patch_size,
        offset_y=grid.offset_y - top * grid.patch_size,
    )


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
            hint="points are x,y in pixels of the upright original image",
        )
    return pixels
