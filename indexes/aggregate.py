"""The nearest items to several queries: to their mean, to any of them, to all of them, or by their ranks.

An item has a cosine to each query; "max", "min" and "rrf" make one number of them. None of them needs all
items to be compared: each query proposes its nearest items, and all proposals are compared with all queries.
How many proposals are enough is said at each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from .scan import FoundIds, FoundScores
from .snapshot import Snapshot

Aggregation = Literal["mean", "max", "min", "rrf"]
Ranked = tuple[Int64[np.ndarray, " r"], Float32[np.ndarray, " r"]]
Search = Callable[[Float32[np.ndarray, "m dim"], int], tuple[FoundIds, FoundScores]]
"""Finds the nearest items of each query, so many, as `Searcher.search`."""

RRF_RANK = 60  # what a rank is added to
RRF_DEPTH = 1000  # ranks below count nothing
_FIRST_DEPTH, _DEEPEST = 256, 4096  # proposals for "min" before all items are compared instead
_BLOCK = 16384  # items compared at a time


def nearest(
    snapshot: Snapshot,
    search: Search,
    queries: Float32[np.ndarray, "m dim"],
    count: int,
    agg: Aggregation,
    *,
    allowed: Int64[np.ndarray, " a"] | None = None,
    left_out: tuple[int, ...] = (),
) -> Ranked:
    """Return the `count` best items to several queries, best first, equal scores by id; fewer if there are.

    - "mean": by the cosine to the one query given.
    - "max": by the highest cosine. The `count` nearest of each query hold the answer: an item that is in none
      of these lists is further from every query than `count` others are from that query.
    - "min": by the lowest cosine. An item in none of the lists is not nearer to any query than the last of
      its list. So the answer is right when its last is better than the last of some list; until then the
      lists are made longer, and in the end all items are compared.
    - "rrf": by the sum of 1 / (60 + rank) over the queries, 1 for the nearest. An item deeper than 1,000 and
      `count` in a list gets nothing for it.

    Where the search is approximate, so are the lists, and with them what is said of "max" and "min".

    Args:
        snapshot: what is searched.
        search: proposes the nearest items of each query; of the allowed ones only.
        queries: L2-normalised; one for "mean".
        count: how many items.
        agg: how the queries count together.
        allowed: what may be found, ascending; all when not given.
        left_out: what may not be found.

    Source of "rrf": Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion outperforms Condorcet and
        individual Rank Learning Methods", SIGIR 2009. Of "min": Fagin, Lotem and Naor, "Optimal Aggregation
        Algorithms for Middleware", 2003, the threshold algorithm.
    """
    without = np.array(left_out, np.int64)
    if agg == "rrf":
        ids, scores = search(queries, max(count, RRF_DEPTH) + len(without))
        return _best(*_reciprocal_ranks(ids, without), count)
    if agg == "min":
        return _nearest_to_all(snapshot, search, queries, count, allowed, without)
    ids, scores = search(queries, count + len(without))
    if agg == "mean":
        kept = (ids[0] >= 0) & ~np.isin(ids[0], without)
        return ids[0][kept][:count], scores[0][kept][:count]
    proposed = _proposed(ids, without)
    return _best(proposed, cosines(snapshot, queries, proposed).max(axis=0), count)


def cosines(
    snapshot: Snapshot, queries: Float32[np.ndarray, "m dim"], ids: Int64[np.ndarray, " c"]
) -> Float64[np.ndarray, "m c"]:
    """Return the cosine of each query to the stored descriptor of each item, computed in float64."""
    found = np.empty((len(queries), len(ids)))
    for start in range(0, len(ids), _BLOCK):
        rows = snapshot.descriptors(ids[start : start + _BLOCK]).astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1)  # fp16 moved them a little
        found[:, start : start + _BLOCK] = queries.astype(np.float64) @ rows.T / lengths
    return found


def _nearest_to_all(
    snapshot: Snapshot,
    search: Search,
    queries: Float32[np.ndarray, "m dim"],
    count: int,
    allowed: Int64[np.ndarray, " a"] | None,
    without: Int64[np.ndarray, " w"],
) -> Ranked:
    everything = snapshot.ids if allowed is None else allowed
    depth = max(_FIRST_DEPTH, 4 * (count + len(without)))
    while depth <= _DEEPEST and depth < len(everything):
        ids, scores = search(queries, depth)
        proposed = _proposed(ids, without)
        found, lowest = _best(proposed, cosines(snapshot, queries, proposed).min(axis=0), count)
        if len(found) == count and lowest[-1] > scores[:, -1].min():
            return found, lowest
        depth *= 4
    found, lowest = np.zeros(0, np.int64), np.zeros(0, np.float32)
    for start in range(0, len(everything), _BLOCK):
        some = np.setdiff1d(everything[start : start + _BLOCK], without, assume_unique=True)
        scores_here = cosines(snapshot, queries, some).min(axis=0).astype(np.float32)
        found, lowest = _best(np.append(found, some), np.append(lowest, scores_here), count)
    return found, lowest


def _reciprocal_ranks(
    ids: FoundIds, without: Int64[np.ndarray, " w"]
) -> tuple[Int64[np.ndarray, " c"], Float64[np.ndarray, " c"]]:
    """Return the items of all lists and the sum of their reciprocal ranks among what may be found."""
    lists = [row[(row >= 0) & ~np.isin(row, without)] for row in ids]
    shares = [1 / (RRF_RANK + 1 + np.arange(len(row))) for row in lists]
    found, place = np.unique(np.concatenate(lists), return_inverse=True)
    return found, np.bincount(place, np.concatenate(shares), minlength=len(found))


def _proposed(ids: FoundIds, without: Int64[np.ndarray, " w"]) -> Int64[np.ndarray, " c"]:
    proposed = np.unique(ids)
    return np.setdiff1d(proposed[proposed >= 0], without, assume_unique=True)


def _best(ids: Int64[np.ndarray, " c"], scores: np.ndarray, count: int) -> Ranked:
    rounded = scores.astype(np.float32)
    order = np.lexsort((ids, -rounded))[:count]
    return ids[order], rounded[order]
