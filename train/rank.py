"""How many directions descriptors really use: the effective rank, measured without labels.

A backbone whose descriptors collapse onto few directions loses rank long before its loss says so. The reverse
does not hold: KoLeo may spread descriptors that mean nothing, so that the rank alone proves no health.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def rank_me(features: Float[Tensor, "n d"]) -> float:
    """Return the effective rank of rows (RankMe): from 1, all on one line, to the smaller of n and d.

    It is the exponential of the entropy of the singular values, which are divided by their sum. It does not
    change when all rows are scaled or turned alike. The arithmetic is float64 on the CPU.

    Args:
        features: one descriptor per row, as the backbone gives it: neither centred nor normalised.

    Returns: the rank; 0 where every number is 0, NaN where one is not finite.

    Source: Garrido et al., "RankMe", ICML 2023, equations 1 and 2; their epsilon of 1e-7, which bounds the
        logarithm of 0, is left out, because the limit of p log p at 0 is 0.
    """
    values = features.detach().cpu().double()
    if not torch.isfinite(values).all():
        return math.nan
    sizes = torch.linalg.svdvals(values)
    total = sizes.sum()
    if not total > 0:
        return 0.0
    return float(torch.special.entr(sizes / total).sum().exp())
