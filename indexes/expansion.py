"""Query expansion: a question that takes its best answers into itself."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float16, Float32

from dinov2kit.errors import ArgumentError

ALPHA = 3.0


def expand(
    descriptor: Float32[np.ndarray, " dim"],
    rows: Float16[np.ndarray, "n dim"],
    scores: Float32[np.ndarray, " n"],
    *,
    alpha: float = ALPHA,
) -> Float32[np.ndarray, " dim"]:
    """Add the best answers to a query, each with its score to the power of alpha; the query itself counts 1.

    Args:
        descriptor: of the query, L2-normalised.
        rows: stored descriptors of its best answers.
        scores: their cosines to the query; those below 0 count nothing.
        alpha: 0 counts every answer as much as the query; the higher, the less do distant ones count, until
            the query stays alone.

    Returns:
        The sum, L2-normalised.

    Raises:
        ArgumentError: alpha is below 0 or not finite.

    Source: alpha-weighted query expansion of Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval
        with No Human Annotation", TPAMI 2019, section 3.6; it takes alpha = 3 for descriptors like ours.
    """
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ArgumentError(f"alpha is {alpha:g}; wanted a finite number from 0 on")
    positive = scores > 0
    weights = scores[positive].astype(np.float64) ** alpha
    total: np.ndarray = descriptor + weights @ rows[positive].astype(np.float64)
    expanded: np.ndarray = (total / np.linalg.norm(total)).astype(np.float32)
    return expanded
