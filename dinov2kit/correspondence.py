"""Two fields of local descriptors: the answers in one to queries in the other, and how far to trust them.

Everything is in the cell frame and in fp32, on any device, in chunks of bounded memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from dinov2kit.readout import Field, Reading, ReadOut, read_out, read_peaks, sample, window_around

DUAL_TEMPERATURE = 0.1  # of the dual softmax
MAX_BYTES = 128 * 2**20  # for the temporary tensors of one chunk


@dataclass(frozen=True)
class Columns:
    """What the cells of image 0 want, for every cell of image 1.

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
        others: the next peaks of each query, best first.
    """

    reading: Reading
    cycle_error: Float32[Tensor, " n"]
    confidence: Float32[Tensor, " n"]
    mutual: Bool[Tensor, " n"]
    others: tuple[Reading, ...] = ()


def summarise_columns(field0: Field, field1: Field, *, max_bytes: int = MAX_BYTES) -> Columns:
    """Return, for every cell of image 1, what the open cells of image 0 want of it."""
    n_columns = len(field1.descriptors)
    total = field1.descriptors.new_zeros(n_columns)
    highest = field1.descriptors.new_full((n_columns,), -torch.inf)
    best = torch.zeros(n_columns, dtype=torch.int64, device=total.device)
    start = 0
    for chunk in torch.split(field0.descriptors, _chunk_rows(field0, field1, max_bytes)):
        similarity = chunk @ field1.descriptors.T
        if field0.open is not None:
            similarity.masked_fill_(~field0.open[start : start + len(chunk), None], -torch.inf)
        peak, row = similarity.max(dim=0)
        better = peak > highest
        highest, best = torch.where(better, peak, highest), torch.where(better, row + start, best)
        total = total + similarity.sub_(1).div_(DUAL_TEMPERATURE).exp_().sum(dim=0)
        start += len(chunk)
    return Columns(total=total, best=best)


def correspond(
    cells0: Float32[Tensor, "n 2"],
    field0: Field,
    field1: Field,
    *,
    how: ReadOut | None = None,
    modes: int = 1,
    max_bytes: int = MAX_BYTES,
) -> Correspondence:
    """Find the place in image 1 that looks like each place of image 0, and check the way back.

    Args:
        cells0: places in image 0, in its cell frame.
        field0: descriptors of image 0.
        field1: descriptors of image 1, on the same device and of the same dim.
        how: how a place between the cells is read.
        modes: how many peaks of each query to read; the first is the answer.
        max_bytes: bound on the temporary tensors; the answer does not depend on it.
    """
    how = how or ReadOut()
    columns = summarise_columns(field0, field1, max_bytes=max_bytes)
    chunks = torch.split(cells0, _chunk_rows(field0, field1, max_bytes))
    parts = [_correspond_chunk(chunk, field0, field1, columns, how, modes) for chunk in chunks]
    return Correspondence(
        reading=_joined([part.reading for part in parts]),
        cycle_error=torch.cat([part.cycle_error for part in parts]),
        confidence=torch.cat([part.confidence for part in parts]),
        mutual=torch.cat([part.mutual for part in parts]),
        others=tuple(_joined(list(rank)) for rank in zip(*(part.others for part in parts), strict=True)),
    )


def _correspond_chunk(
    cells0: Float32[Tensor, "n 2"], field0: Field, field1: Field, columns: Columns, how: ReadOut, modes: int
) -> Correspondence:
    similarity = field1.similarity(sample(field0, cells0))
    reading = read_out(similarity, field1.rows, field1.cols, how)
    others = read_peaks(similarity, field1.rows, field1.cols, modes, how)[1:] if modes > 1 else []
    home = _cell_of(cells0, field0)
    agreement = _dual_softmax(cells0, similarity, home, reading.peak, field0, field1, columns, how)
    del similarity
    way_back = field0.similarity(sample(field1, reading.cells))
    back = read_out(way_back, field0.rows, field0.cols, how)
    cycle_error = torch.linalg.vector_norm(back.cells - cells0, dim=1)
    return Correspondence(
        reading=reading,
        cycle_error=cycle_error,
        confidence=agreement * torch.exp(-cycle_error.square() / 2),
        mutual=columns.best[reading.peak] == home,
        others=tuple(others),
    )


def _dual_softmax(
    cells0: Float32[Tensor, "n 2"],
    similarity: Float32[Tensor, "n n_targets"],
    home: Int64[Tensor, " n"],
    peak: Int64[Tensor, " n"],
    field0: Field,
    field1: Field,
    columns: Columns,
    how: ReadOut,
) -> Float32[Tensor, " n"]:
    """Return the root of softmax over targets times softmax over sources, at its best in the window.

    In the second softmax each query takes the place of the cell it falls in, so that it does not compete with
    itself. Source: Sun et al., "LoFTR", CVPR 2021, equation 2, for queries between the cells.
    """
    window = window_around(peak, field1.rows, field1.cols, how.radius_in(field1.rows, field1.cols))
    near = similarity.gather(1, window.cells)
    on_cells = torch.equal(cells0, torch.stack([home % field0.cols, home // field0.cols], dim=1).float())
    own = near if on_cells else field1.similarity(field0.descriptors[home]).gather(1, window.cells)
    own, mine = (((cosine - 1) / DUAL_TEMPERATURE).exp() for cosine in (own, near))
    if field0.open is not None:
        own = own * field0.open[home][:, None]  # a closed cell does not compete in the first place
    row_total = ((similarity - 1) / DUAL_TEMPERATURE).exp_().sum(dim=1, keepdim=True)
    column_total = (columns.total[window.cells] - own).clamp(min=0) + mine
    joint = (mine / row_total) * (mine / column_total)
    return joint.masked_fill(~window.open | (near == -torch.inf), 0).amax(dim=1).clamp(max=1).sqrt()


def _joined(parts: list[Reading]) -> Reading:
    return Reading(
        cells=torch.cat([part.cells for part in parts]),
        variance=torch.cat([part.variance for part in parts]),
        score=torch.cat([part.score for part in parts]),
        second=torch.cat([part.second for part in parts]),
        peak=torch.cat([part.peak for part in parts]),
    )


def _cell_of(cells: Float32[Tensor, "n 2"], field: Field) -> Int64[Tensor, " n"]:
    """Return the row-major index of the cell that each place falls in."""
    nearest = cells.round().long()
    return nearest[:, 1].clamp(0, field.rows - 1) * field.cols + nearest[:, 0].clamp(0, field.cols - 1)


def _chunk_rows(field0: Field, field1: Field, max_bytes: int) -> int:
    """Return how many queries fit `max_bytes`, when each needs four similarity rows and eight descriptors."""
    n_patches, dim = max(len(field0.descriptors), len(field1.descriptors)), field0.descriptors.shape[1]
    return max(1, max_bytes // (4 * (4 * n_patches + 8 * dim)))
