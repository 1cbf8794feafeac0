"""Exact search by comparing every row, block by block: the truth that every other search is measured by."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float16, Float32, Int64

Queries = Float32[np.ndarray, "m dim"]
Block = tuple[Int64[np.ndarray, " n"], Float16[np.ndarray, "n dim"]]
FoundIds = Int64[np.ndarray, "m k"]
FoundScores = Float32[np.ndarray, "m k"]

_RESCORED_VALUES = 2**21  # numbers of candidates in float64 at a time: 16 MB


def scan(
    queries: Queries,
    blocks: Iterable[Block],
    k: int,
) -> tuple[FoundIds, FoundScores]:
    """Return the `k` best rows of all blocks for every query, best first, equal scores by id.

    Where there are fewer than `k` rows, the rest has the id -1 and the score -inf.
    """
    ids, scores = nothing(len(queries), k)
    for block_ids, rows in blocks:
        if len(block_ids):
            block_scores = queries @ rows.astype(np.float32).T
            shared = np.broadcast_to(block_ids, block_scores.shape)
            if len(block_ids) > 4 * k:  # only the best of a block can be among the best of all
                cut = np.partition(block_scores, -k, axis=1)[:, -k, None]
                place = np.argsort(block_scores < cut, axis=1, kind="stable")
                keep = place[:, : max(k, int((block_scores >= cut).sum(axis=1).max()))]
                block_scores = np.take_along_axis(block_scores, keep, axis=1)
                shared = np.take_along_axis(shared, keep, axis=1)
            ids, scores = merge([(ids, scores), (shared, block_scores)], k)
    return ids, scores


def nothing(m: int, k: int) -> tuple[FoundIds, FoundScores]:
    """Return an empty answer to `m` queries."""
    return np.full((m, k), -1, np.int64), np.full((m, k), -np.inf, np.float32)


def merge(
    parts: list[tuple[Int64[np.ndarray, "m _"], Float32[np.ndarray, "m _"]]], k: int
) -> tuple[FoundIds, FoundScores]:
    """Return the `k` best of several answers to the same queries, best first, equal scores by id."""
    ids = np.concatenate([part[0] for part in parts], axis=1)
    scores = np.concatenate([part[1] for part in parts], axis=1).astype(np.float32)
    scores = np.where(ids < 0, np.float32(-np.inf), scores)
    order = np.lexsort((np.where(ids < 0, np.iinfo(np.int64).max, ids), -scores), axis=1)[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(scores, order, axis=1)


def rescore(
    queries: Queries,
    ids: Int64[np.ndarray, "m candidates"],
    read: Callable[[Int64[np.ndarray, " c"]], Float16[np.ndarray, "c dim"]],
    k: int,
) -> tuple[FoundIds, FoundScores]:
    """Return the `k` best of the candidates by their stored descriptors, best first, equal scores by id.

    The cosines are computed in float64: a score does not depend on how its candidate was found.

    Args:
        queries: L2-normalised.
        ids: candidates of each query; -1 is none.
        read: returns the stored descriptors of some ids.
        k: how many to keep.
    """
    scores = np.full(ids.shape, -np.inf, np.float32)
    step = max(1, _RESCORED_VALUES // max(1, ids.shape[1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        known = ids[part] >= 0
        rows = read(ids[part][known]).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1)  # fp16 moved them a little
        owner = np.nonzero(known)[0]
        asked = queries[part].astype(np.float64)[owner]
        scores[part][known] = np.einsum("cd,cd->c", rows, asked) / lengths
    return merge([(ids, scores)], k)
