"""KoLeo: push every descriptor away from its nearest neighbour, so that descriptors fill the sphere."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from dinov2kit.errors import ArgumentError

_EPS = 1e-8  # as released; fp32 can hold it, fp16 cannot


def koleo(
    tokens: Float[Tensor, "n dim"], *, group: ProcessGroup | None = None, top_k: int = 1
) -> Float[Tensor, ""]:
    """Return minus the mean logarithm of the distance to the nearest other row, on the unit sphere.

    It is computed in fp32 at least, whatever the input and autocast are. Rows that are alike give a large but
    finite loss. Fewer than two rows in all have no neighbours: 0.

    With a group, neighbours are looked for among the rows of all processes, and gradients reach the
    neighbours wherever they are: the mean of the losses over processes has the value and the gradients of the
    loss on all rows together.

    Args:
        tokens: class tokens of the student; the same number in all processes.
        group: processes that look together; all must call this. None for this one alone.
        top_k: the mean over so many nearest rows, fewer where there are fewer.

    Raises:
        ArgumentError: top_k is below 1.

    Source: Sablayrolles et al., "Spreading vectors for similarity search", 2019, equation 2; Oquab et al.,
        "DINOv2", 2023, appendix A; top_k and group as in DINOv3.
    """
    if top_k < 1:
        raise ArgumentError(f"top_k is {top_k}; wanted 1 or more")
    with torch.autocast(tokens.device.type, enabled=False):
        rows = functional.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), eps=_EPS)
        everyone: Tensor = rows
        first = 0
        if group is not None:
            everyone = _Gather.apply(rows, group)  # type: ignore[no-untyped-call]
            first = distributed.get_rank(group) * len(rows)
        if len(everyone) < 2:
            return rows.sum() * 0
        with torch.no_grad():
            cosines = rows @ everyone.T
            cosines.diagonal(first).fill_(-2)  # below every cosine: no row is its own neighbour
            nearest = cosines.topk(min(top_k, len(everyone) - 1), dim=1).indices
        distances: Tensor = torch.linalg.vector_norm(rows[:, None] - everyone[nearest] + _EPS, dim=2)
        return -(distances + _EPS).log().mean()


class _Gather(Function):
    """Put the rows of all processes below each other, in their order."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group, ctx.count = group, len(rows)
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size(group))]
        distributed.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None]:
        slopes = slopes.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(slopes, group=ctx.group)
        first = distributed.get_rank(ctx.group) * ctx.count
        return slopes[first : first + ctx.count], None
