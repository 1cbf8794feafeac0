"""Where does a descriptor of image 0 lie in image 1: pure functions on tensors, on any device.

Everything here is in the cell frame and in fp32. A `Field` holds only cells whose centre lies on the image:
its border is that of the image, and nothing outside can be a target, be sampled, or bend a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

WINDOW_SHARE = 0.08  # window radius as a share of the longer grid side

Refine = Literal["window", "parabola", "none"]


@dataclass(frozen=True)
class Field:
    """Local descriptors of one image on their grid.

    Attributes:
        descriptors: one row of length one per cell, row-major.
        rows: cells from top to bottom.
        cols: cells from left to right.
        open: cells that may be an answer; None is all of them. The others can still be sampled.
    """

    descriptors: Float32[Tensor, "n_patches dim"]
    rows: int
    cols: int
    open: Bool[Tensor, " n_patches"] | None = None

    def similarity(self, descriptors: Float32[Tensor, "n dim"]) -> Float32[Tensor, "n n_patches"]:
        """Return the cosine of descriptors of length one to every cell; -inf where a cell may not answer."""
        cosine = descriptors @ self.descriptors.T
        return cosine if self.open is None else cosine.masked_fill_(~self.open, -torch.inf)


@dataclass(frozen=True)
class ReadOut:
    """How a place between the cells is read from similarities at the cells.

    Attributes:
        refine: "window": the mean of the window around the peak, weighted by a softmax; "parabola": the top
            of the parabola through the peak and its two neighbours, in x and in y; "none": the peak.
        radius: of the window in cells; 0 takes 8 % of the longer grid side, at least 2.
        temperature: of the softmax in the window; the smaller, the closer to the peak.
    """

    refine: Refine = "window"
    radius: int = 0
    temperature: float = 0.04

    def radius_in(self, rows: int, cols: int) -> int:
        """Return the radius of the window in a grid, in cells."""
        return self.radius or max(2, round(WINDOW_SHARE * max(rows, cols)))


@dataclass(frozen=True)
class Window:
    """The cells around each peak that vote for the position; the same size on both sides of the peak.

    Attributes:
        cells: row-major index of every cell of a full window, clamped to the grid.
        open: False where the window was shrunk; such a place has no vote.
        steps: (x, y) from the peak to every place of a full window.
    """

    cells: Int64[Tensor, "n places"]
    open: Bool[Tensor, "n places"]
    steps: Float32[Tensor, "places 2"]


@dataclass(frozen=True)
class Reading:
    """Where the best answer to each query lies.

    Attributes:
        cells: (x, y) of the answer, between cells, in the cell frame.
        variance: how far the votes scatter in x and y, in squared cells.
        score: highest cosine similarity.
        second: highest cosine similarity outside the full window around the peak; -inf where there is none.
        peak: row-major index of the cell with the highest similarity.
    """

    cells: Float32[Tensor, "n 2"]
    variance: Float32[Tensor, "n 2"]
    score: Float32[Tensor, " n"]
    second: Float32[Tensor, " n"]
    peak: Int64[Tensor, " n"]


def sample(field: Field, cells: Float32[Tensor, "n 2"]) -> Float32[Tensor, "n dim"]:
    """Read the field between its cells: bilinear, re-normalised, the border replicated."""
    x, y = cells[:, 0].clamp(0, field.cols - 1), cells[:, 1].clamp(0, field.rows - 1)
    left, top = x.floor(), y.floor()
    right_share, low_share = (x - left)[:, None], (y - top)[:, None]
    left, top = left.long(), top.long()
    right, low = (left + 1).clamp(max=field.cols - 1), (top + 1).clamp(max=field.rows - 1)
    grid = field.descriptors.view(field.rows, field.cols, -1)
    upper = torch.lerp(grid[top, left], grid[top, right], right_share)
    lower = torch.lerp(grid[low, left], grid[low, right], right_share)
    return torch.nn.functional.normalize(torch.lerp(upper, lower, low_share), dim=1)


def window_around(peak: Int64[Tensor, " n"], rows: int, cols: int, radius: int) -> Window:
    """Return the window around each peak, shrunk on both sides where a border cuts one side.

    A window that a border cuts on one side only pulls the mean inwards, by up to half a patch.
    """
    side = torch.arange(-radius, radius + 1, device=peak.device)
    dy, dx = (step.flatten() for step in torch.meshgrid(side, side, indexing="ij"))
    x, y = (peak % cols)[:, None], (peak // cols)[:, None]
    reach_x = torch.minimum(x, cols - 1 - x)
    reach_y = torch.minimum(y, rows - 1 - y)
    cells = (y + dy).clamp(0, rows - 1) * cols + (x + dx).clamp(0, cols - 1)
    return Window(
        cells=cells,
        open=(dx.abs() <= reach_x) & (dy.abs() <= reach_y),
        steps=torch.stack([dx, dy], dim=1).float(),
    )


def read_out(
    similarity: Float32[Tensor, "n n_patches"], rows: int, cols: int, how: ReadOut | None = None
) -> Reading:
    """Locate each query: the most similar cell, refined by its neighbours.

    Args:
        similarity: cosine of every query to every cell of the grid, row-major; -inf forbids a cell.
        rows: cells from top to bottom.
        cols: cells from left to right.
        how: window, temperature and refinement.

    Source: the window soft-argmax of Zhang et al., "Telling Left from Right" (GeoAware-SC), CVPR 2024, with
        -inf outside the window, and a window that closes symmetrically at borders.
    """
    how = how or ReadOut()
    score, peak = similarity.max(dim=1)
    window = window_around(peak, rows, cols, how.radius_in(rows, cols))
    votes = similarity.gather(1, window.cells).masked_fill(~window.open, -torch.inf)
    weights = torch.softmax(votes / how.temperature, dim=1)
    mean = weights @ window.steps
    variance = (weights @ window.steps.square() - mean.square()).clamp(min=0)
    center = torch.stack([peak % cols, peak // cols], dim=1).float()
    if how.refine == "window":
        center = center + mean
    elif how.refine == "parabola":
        center = center + _parabola_tops(similarity, peak, rows, cols)
    second = similarity.scatter(1, window.cells, -torch.inf).amax(dim=1)
    return Reading(cells=center, variance=variance, score=score, second=second, peak=peak)


def read_peaks(
    similarity: Float32[Tensor, "n n_patches"], rows: int, cols: int, count: int, how: ReadOut | None = None
) -> list[Reading]:
    """Locate each query at its `count` highest peaks, best first, each outside the windows of those before.

    A peak that does not exist, because the windows cover the grid, has the score -inf.
    """
    how = how or ReadOut()
    readings: list[Reading] = []
    for _ in range(count):
        reading = read_out(similarity, rows, cols, how)
        readings.append(reading)
        window = window_around(reading.peak, rows, cols, how.radius_in(rows, cols))
        similarity = similarity.scatter(1, window.cells, -torch.inf)
    return readings


def _parabola_tops(
    similarity: Float32[Tensor, "n n_patches"], peak: Int64[Tensor, " n"], rows: int, cols: int
) -> Float32[Tensor, "n 2"]:
    """Return how far from the peak a parabola through it and its neighbours is highest, in x and y.

    At a border, beside a forbidden cell, or on a plateau it is the peak itself.
    """
    shifts = []
    for place, side, step in ((peak % cols, cols, 1), (peak // cols, rows, cols)):
        inner = (place > 0) & (place < side - 1)
        around = torch.stack(
            [(peak - step) * inner + peak * ~inner, peak, (peak + step) * inner + peak * ~inner], 1
        )
        before, top, after = similarity.gather(1, around).unbind(dim=1)
        bend = before - 2 * top + after
        shift = ((before - after) / (2 * bend)).clamp(-0.5, 0.5)
        shifts.append(torch.where(torch.isfinite(bend) & (bend < 0), shift, torch.zeros_like(shift)))
    return torch.stack(shifts, dim=1)
