"""Attention, exact, by the fastest kernel at hand: xformers on CUDA where it is installed, else torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor


def attention(
    queries: Float[Tensor, "batch n_queries num_heads head_dim"],
    keys: Float[Tensor, "batch n_keys num_heads head_dim"],
    values: Float[Tensor, "batch n_keys num_heads head_dim"],
) -> Float[Tensor, "batch n_queries num_heads head_dim"]:
    """Return softmax(queries keysᵀ / sqrt(head_dim)) values, for every image and head.

    Source: Vaswani et al., "Attention is all you need", 2017, equation 1.
    """
    kernel = _xformers_kernel() if queries.is_cuda else None
    if kernel is not None:
        return kernel(queries, keys, values)
    by_head = functional.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return by_head.transpose(1, 2)


@cache
def _xformers_kernel() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """Return the kernel of xformers, or None where xformers is absent or was built for another torch."""
    try:
        from xformers.ops import memory_efficient_attention
    except (ImportError, OSError):
        return None
    kernel: Callable[[Tensor, Tensor, Tensor], Tensor] = memory_efficient_attention
    return kernel
