"""Cross-entropy with soft targets over many prototypes, without all logits in memory.

The gradients are computed with the loss, chunk by chunk: what is kept until the backward pass is as large as
the embeddings and the prototypes.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dinov2kit.errors import ArgumentError

from .targets import Targets, rows_at_once


def soft_cross_entropy(
    embeddings: Float[Tensor, "m b"],
    prototypes: Float[Tensor, "k b"],
    targets: Targets,
    pick: Int64[Tensor, "m t"],
    weights: Float[Tensor, " m"],
    *,
    temperature: float,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """Return the weighted sum over rows of the cross-entropy with the mean of their targets, in nats.

    Softmax and sums are in fp32 at least, products with prototypes in bf16 under an autocast to bf16. No rows
    give 0 and gradients of 0. It can be differentiated once.

    Args:
        embeddings: rows of the student, before the prototypes.
        prototypes: of the student.
        targets: of the teacher's rows.
        pick: for each row of the student, the t rows of the teacher whose targets are averaged.
        weights: of the rows.
        temperature: of the student.
        chunk: how many rows at a time; None chooses by memory. It changes nothing but rounding.

    Raises:
        ArgumentError: temperature or chunk are not above 0.

    Source: Caron et al., "DINO", 2021, equation 2; it is linear in the target, so the mean over targets is
        the mean of cross-entropies. Gradients with the loss as in Hsu et al., "Liger Kernel", 2024.
    """
    if not temperature > 0:
        raise ArgumentError(f"temperature is {temperature}; wanted above 0")
    if chunk is None:
        chunk = rows_at_once(prototypes)
    if chunk < 1:
        raise ArgumentError(f"chunk is {chunk}; wanted 1 row or more")
    loss: Tensor = _SoftCrossEntropy.apply(  # type: ignore[no-untyped-call]
        embeddings, prototypes, targets, pick, weights, temperature, chunk
    )
    return loss


class _SoftCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        prototypes: Tensor,
        targets: Targets,
        pick: Tensor,
        weights: Tensor,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        wide = torch.promote_types(torch.promote_types(embeddings.dtype, prototypes.dtype), torch.float32)
        narrow = _product_type(embeddings.device.type, wide)
        learns = any(ctx.needs_input_grad[:2])
        with torch.autocast(embeddings.device.type, enabled=False):
            rows = (embeddings.to(wide) / temperature).to(narrow)
            columns = prototypes.to(narrow)
            weights = weights.to(wide)
            loss = weights.new_zeros(())
            row_slopes = torch.zeros_like(embeddings, dtype=wide) if learns else None
            column_slopes = torch.zeros_like(prototypes, dtype=wide) if learns else None
            for start in range(0, len(rows), chunk):
                part = slice(start, start + chunk)
                wanted = _mean_targets(targets, pick[part]).to(wide)
                logits = (rows[part] @ columns.T).to(wide)
                logits -= logits.amax(dim=1, keepdim=True)
                agreement = torch.einsum("mk,mk->m", wanted, logits)
                total = logits.exp_().sum(dim=1)
                loss += weights[part] @ (total.log() - agreement)
                if row_slopes is None or column_slopes is None:
                    continue
                share, weight = (weights[part] / total)[:, None], weights[part][:, None]
                slopes = logits.mul_(share).addcmul_(wanted, weight, value=-1).to(narrow)
                row_slopes[part] = slopes @ columns
                column_slopes += slopes.T @ rows[part]
        if row_slopes is not None and column_slopes is not None:
            row_slopes /= temperature
            ctx.save_for_backward(row_slopes.to(embeddings.dtype), column_slopes.to(prototypes.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        row_slopes, column_slopes = ctx.saved_tensors
        return row_slopes * slope, column_slopes * slope, None, None, None, None, None


def _mean_targets(targets: Targets, pick: Int64[Tensor, "m t"]) -> Float[Tensor, "m k"]:
    first, *others = pick.unbind(dim=1)
    mean = targets.rows(first)
    for other in others:
        mean += targets.rows(other)
    return mean.div_(pick.shape[1]) if others else mean


def _product_type(device: str, wide: torch.dtype) -> torch.dtype:
    """Return the type of matrix products; fp16 would lose small slopes, so autocast to it does not count."""
    autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
    return torch.bfloat16 if autocast and wide == torch.float32 else wide
