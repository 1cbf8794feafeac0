"""How good an answer is: measures with their definition and its source."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import ArgumentError


def recall_at_k(found: Int64[np.ndarray, "n found_k"], true: Int64[np.ndarray, "n true_k"], k: int) -> float:
    """Return the share of the true k nearest neighbours that are among the first k found, over all queries.

    Args:
        found: ids that a search returned for each query, best first; -1 where it returned fewer.
        true: ids of the exact search, best first; -1 where the collection holds fewer.
        k: how many of each to compare; of a row with fewer true ids, those there are.

    Returns:
        The mean over the queries, in [0, 1]; queries without a true id do not count.

    Raises:
        ArgumentError: k is below 1 or above the length of the rows, or no query has a true id.

    Source: the intersection criterion of faiss (`IntersectionCriterion` in AutoTune.h), by ids; not its
        "1-recall@k", which asks only for the nearest neighbour.
    """
    if not 1 <= k <= min(found.shape[1], true.shape[1]):
        raise ArgumentError(
            f"k is {k}; wanted 1 to {min(found.shape[1], true.shape[1])}, the ids given per query"
        )
    wanted = true[:, :k]
    hit = (wanted[:, :, None] == found[:, None, :k]).any(axis=2) & (wanted >= 0)
    counts = (wanted >= 0).sum(axis=1)
    asked = counts > 0
    if not asked.any():
        raise ArgumentError("no query has a true id to recall")
    return float((hit.sum(axis=1)[asked] / counts[asked]).mean())
