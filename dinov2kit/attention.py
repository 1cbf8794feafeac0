"""Attention, exact, by the fastest kernel at hand: xformers on CUDA where it is installed, else torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor

from dinov2kit.packing import Groups


def attention(
    queries: Float[Tensor, "batch n_queries num_heads head_dim"],
    keys: Float[Tensor, "batch n_keys num_heads head_dim"],
    values: Float[Tensor, "batch n_keys num_heads head_dim"],
) -> Float[Tensor, "batch n_queries num_heads head_dim"]:
    """Return softmax(queries keysᵀ / sqrt(head_dim)) values, for every image and head.

    Source: Vaswani et al., "Attention is all you need", 2017, equation 1.
    """
    kernel = _xformers_kernel() if _takes_xformers(queries) else None
    if kernel is not None:
        return kernel(queries, keys, values)
    by_head = functional.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return by_head.transpose(1, 2)


def attention_by_group(
    queries: Float[Tensor, "total num_heads head_dim"],
    keys: Float[Tensor, "total num_heads head_dim"],
    values: Float[Tensor, "total num_heads head_dim"],
    groups: Groups,
) -> Float[Tensor, "total num_heads head_dim"]:
    """Return the attention of a packed sequence: every image sees itself alone.

    Args:
        queries: of all images, one after another.
        keys: in the same order.
        values: in the same order.
        groups: how many images there are, and how many tokens each has.
    """
    if len(groups) > 1 and _takes_xformers(queries) and _xformers_kernel() is not None:
        return _xformers_packed(queries, keys, values, groups)
    first, seen = 0, []
    for b, n in groups:
        of_group = (
            whole[first : first + b * n].view(b, n, *whole.shape[1:]) for whole in (queries, keys, values)
        )
        seen.append(attention(*of_group).flatten(0, 1))
        first += b * n
    return seen[0] if len(seen) == 1 else torch.cat(seen)


def _takes_xformers(queries: Tensor) -> bool:
    """Say whether xformers may compute; what is compiled takes the kernels that the compiler knows."""
    return queries.is_cuda and not torch.compiler.is_compiling()


def _xformers_packed(queries: Tensor, keys: Tensor, values: Tensor, groups: Groups) -> Tensor:
    from xformers.ops import memory_efficient_attention

    bias = _block_diagonal(groups, queries.device)
    seen: Tensor = memory_efficient_attention(queries[None], keys[None], values[None], attn_bias=bias)
    return seen[0]


@lru_cache(maxsize=256)
def _block_diagonal(groups: Groups, device: torch.device) -> object:
    """Return the mask by which no image sees another; kept, for making it waits for the GPU."""
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens([n for b, n in groups for _ in range(b)], device=device)


@cache
def _xformers_kernel() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return the kernel of xformers, or None where xformers is absent or was built for another torch."""
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError):
        return None
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] = memory_efficient_attention
    return kernel
