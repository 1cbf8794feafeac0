"""Where does a descriptor of image 0 lie in image 1: pure functions on tensors, on any device.

Everything here is in the cell frame and in fp32. A `Field` holds only cells whose centre lies on the image:
its border is that of the image, and nothing outside can be a target, be sampled, or bend a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

WINDOW_SHARE = 0.08  # window radius as a share of the longer grid side
TEMPERATURE = 0.04  # of the softmax inside the window
DUAL_TEMPERATURE = 0.1  # of the dual softmax
MAX_BYTES = 256 * 2**20  # for the temporary tensors of one chunk


@dataclass(frozen=True)
class Field:
    """Local descriptors of one image on their grid.

    Attributes:
        descriptors: one row of length one per cell, row-major.
        rows: cells from top to bottom.
        cols: cells from left to right.
    """

    descriptors: Float32[Tensor, "n_patches dim"]
    rows: int
    cols: int


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
        peak: row-major index of the cell with that similarity.
    """

    cells: Float32[Tensor, "n 2"]
    variance: Float32[Tensor, "n 2"]
    score: Float32[Tensor, " n"]
    peak: Int64[Tensor, " n"]


@dataclass(frozen=True)
class Columns:
    """What the other cells of image 0 want, for every cell of image 1.

    Attributes:
        total: sum over the cells of image 0 of exp((similarity - 1) / DUAL_TEMPERATURE).
        best: row-major index of the cell of image 0 that is most similar.
    """

    total: Float32[Tensor, " n_patches"]
    best: Int64[Tensor, " n_patches"]


@dataclass(frozen=True)
class Correspondence:
    """Answers in image 1 to queries in image 0, and how far they can be trusted.

    Attributes:
        reading: where the answers lie in image 1.
        cycle_error: distance between each query and the way back from its answer, in cells of image 0.
        confidence: dual softmax times the agreement of the cycle, in [0, 1].
        mutual: whether the answering cell has the cell of the query as its nearest neighbour.
    """

    reading: Reading
    cycle_error: Float32[Tensor, " n"]
    confidence: Float32[Tensor, " n"]
    mutual: Bool[Tensor, " n"]


def window_radius(rows: int, cols: int) -> int:
    """Return the radius of the read-out window for a grid, in cells."""
    return max(2, round(WINDOW_SHARE * max(rows, cols)))


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
    similarity: Float32[Tensor, "n n_patches"], rows: int, cols: int, *, temperature: float = TEMPERATURE
) -> Reading:
    """Locate each query: the most similar cell, refined by a softmax over the window around it.

    Args:
        similarity: cosine of every query to every cell of the grid, row-major; -inf forbids a cell.
        rows: cells from top to bottom.
        cols: cells from left to right.
        temperature: of the softmax; the smaller, the closer to the most similar cell.

    Source: the window soft-argmax of Zhang et al., "Telling Left from Right" (GeoAware-SC), CVPR 2024, with a
        window that closes symmetrically at borders.
    """
    score, peak = similarity.max(dim=1)
    window = window_around(peak, rows, cols, window_radius(rows, cols))
    votes = similarity.gather(1, window.cells).masked_fill(~window.open, -torch.inf)
    weights = torch.softmax(votes / temperature, dim=1)
    shift = weights @ window.steps
    variance = (weights @ window.steps.square() - shift.square()).clamp(min=0)
    center = torch.stack([peak % cols, peak // cols], dim=1).float()
    return Reading(cells=center + shift, variance=variance, score=score, peak=peak)


def summarise_columns(field0: Field, field1: Field, *, max_bytes: int = MAX_BYTES) -> Columns:
    """Return, for every cell of image 1, what the cells of image 0 want of it."""
    n_columns = len(field1.descriptors)
    total = field1.descriptors.new_zeros(n_columns)
    highest = field1.descriptors.new_full((n_columns,), -torch.inf)
    best = torch.zeros(n_columns, dtype=torch.int64, device=total.device)
    start = 0
    for chunk in torch.split(field0.descriptors, _chunk_rows(field0, field1, max_bytes)):
        similarity = chunk @ field1.descriptors.T
        peak, row = similarity.max(dim=0)
        better = peak > highest
        highest, best = torch.where(better, peak, highest), torch.where(better, row + start, best)
        total = total + ((similarity - 1) / DUAL_TEMPERATURE).exp().sum(dim=0)
        start += len(chunk)
    return Columns(total=total, best=best)


def correspond(
    cells0: Float32[Tensor, "n 2"], field0: Field, field1: Field, *, max_bytes: int = MAX_BYTES
) -> Correspondence:
    """Find the place in image 1 that looks like each place of image 0, and check the way back.

    Args:
        cells0: places in image 0, in its cell frame.
        field0: descriptors of image 0.
        field1: descriptors of image 1, on the same device and of the same dim.
        max_bytes: bound on the temporary tensors; the answer does not depend on it.
    """
    columns = summarise_columns(field0, field1, max_bytes=max_bytes)
    chunks = torch.split(cells0, _chunk_rows(field0, field1, max_bytes))
    parts = [_correspond_chunk(chunk, field0, field1, columns) for chunk in chunks]
    return Correspondence(
        reading=Reading(
            cells=torch.cat([part.reading.cells for part in parts]),
            variance=torch.cat([part.reading.variance for part in parts]),
            score=torch.cat([part.reading.score for part in parts]),
            peak=torch.cat([part.reading.peak for part in parts]),
        ),
        cycle_error=torch.cat([part.cycle_error for part in parts]),
        confidence=torch.cat([part.confidence for part in parts]),
        mutual=torch.cat([part.mutual for part in parts]),
    )


def _correspond_chunk(
    cells0: Float32[Tensor, "n 2"], field0: Field, field1: Field, columns: Columns
) -> Correspondence:
    similarity = sample(field0, cells0) @ field1.descriptors.T
    reading = read_out(similarity, field1.rows, field1.cols)
    home = _cell_of(cells0, field0)
    agreement = _dual_softmax(similarity, home, reading.peak, field0, field1, columns)
    del similarity
    back = read_out(sample(field1, reading.cells) @ field0.descriptors.T, field0.rows, field0.cols)
    cycle_error = torch.linalg.vector_norm(back.cells - cells0, dim=1)
    return Correspondence(
        reading=reading,
        cycle_error=cycle_error,
        confidence=agreement * torch.exp(-cycle_error.square() / 2),
        mutual=columns.best[reading.peak] == home,
    )


def _dual_softmax(
    similarity: Float32[Tensor, "n n_targets"],
    home: Int64[Tensor, " n"],
    peak: Int64[Tensor, " n"],
    field0: Field,
    field1: Field,
    columns: Columns,
) -> Float32[Tensor, " n"]:
    """Return the root of softmax over targets times softmax over sources, at its best in the window.

    In the second softmax each query takes the place of the cell it falls in, so that it does not compete with
    itself. Source: Sun et al., "LoFTR", CVPR 2021, equation 2, for queries between the cells.
    """
    window = window_around(peak, field1.rows, field1.cols, window_radius(field1.rows, field1.cols))
    own = (field0.descriptors[home] @ field1.descriptors.T).gather(1, window.cells)
    own = ((own - 1) / DUAL_TEMPERATURE).exp()
    row_total = ((similarity - 1) / DUAL_TEMPERATURE).exp().sum(dim=1, keepdim=True)
    mine = ((similarity.gather(1, window.cells) - 1) / DUAL_TEMPERATURE).exp()
    column_total = (columns.total[window.cells] - own).clamp(min=0) + mine
    joint = (mine / row_total) * (mine / column_total)
    return joint.masked_fill(~window.open, 0).amax(dim=1).clamp(max=1).sqrt()


def _cell_of(cells: Float32[Tensor, "n 2"], field: Field) -> Int64[Tensor, " n"]:
    """Return the row-major index of the cell that each place falls in."""
    nearest = cells.round().long()
    return nearest[:, 1].clamp(0, field.rows - 1) * field.cols + nearest[:, 0].clamp(0, field.cols - 1)


def _chunk_rows(field0: Field, field1: Field, max_bytes: int) -> int:
    """Return how many queries fit `max_bytes`, when each needs four similarity rows and eight descriptors."""
    n_patches, dim = max(len(field0.descriptors), len(field1.descriptors)), field0.descriptors.shape[1]
    return max(1, max_bytes // (4 * (4 * n_patches + 8 * dim)))
