"""Sample-based retrieval: for each query its `k` nearest photos of a pool, and what several queries want.

Source: Oquab et al., "DINOv2", 2023, appendix A (k = 4 and 32, since more gives more collisions). What became
of collisions there is not said; the published counts are exactly k times the queries. Here it is a choice,
and the counts always add up: asked = returned + shortfall.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.errors import ArgumentError, check_choice

from .curate_spec import COLLISIONS
from .scan import FoundIds, FoundScores

Search = Callable[[Int64[np.ndarray, " m"], int], tuple[FoundIds, FoundScores]]
"""Returns, for some queries by their places, the nearest ids and cosines, best first; -1 where none is."""

_BREADTH, _DEEPER = 8, 4  # candidates per photo asked for; times more when they run out


@dataclass(frozen=True)
class Retrieved:
    """What was retrieved, ordered by query, then rank.

    Attributes:
        query: place of the query.
        ids: the photo.
        rank: which neighbour of its query the photo is; 1 is the nearest.
        score: cosine of photo and query.
        asked: k times the number of queries.
        collisions: how many of the k nearest of all queries name a photo that was named before; the same
            under every rule.
    """

    query: Int64[np.ndarray, " n"]
    ids: Int64[np.ndarray, " n"]
    rank: Int64[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    asked: int
    collisions: int

    @property
    def returned(self) -> int:
        """Rows; with the rule "keep" a photo may have several."""
        return len(self.ids)

    @property
    def unique(self) -> int:
        """Different photos."""
        return len(np.unique(self.ids))

    @property
    def shortfall(self) -> int:
        """How many rows are missing of those asked for."""
        return self.asked - self.returned


def retrieve(
    search: Search, queries: int, k: int, *, pool: int, on_collision: str = "next", max_depth: int = 4096
) -> Retrieved:
    """Return the `k` nearest photos of each query, with a rule for those that several queries want.

    "next" is greedy over all queries at once: the most similar pair of a query and a photo that nobody has is
    taken first, equal ones in the order of the queries; so a query whose photo goes to another gets its next
    one. "drop" gives such a photo to its most similar query, and the others get nothing instead. "keep" gives
    it to each.

    Args:
        search: looks up candidates.
        queries: how many queries there are.
        k: photos per query.
        pool: how many photos there are.
        on_collision: "next", "drop" or "keep".
        max_depth: the farthest neighbour that "next" looks at; a query that ends there has a shortfall.

    Raises:
        ArgumentError: unknown rule, or a number below 1.
    """
    check_choice("collision rule", on_collision, COLLISIONS)
    if min(queries, k, pool) < 1 or max_depth < k:
        raise ArgumentError(f"queries {queries}, k {k}, pool {pool}, max_depth {max_depth}: too small")
    limit = min(pool, max_depth)
    depth = min(_BREADTH * k if on_collision == "next" else k, limit)
    ids, scores = search(np.arange(queries), depth)
    best = ids[:, :k]
    collisions = int((best >= 0).sum()) - len(np.unique(best[best >= 0]))
    if on_collision == "next":
        query, rank, taken, score = _take_next(_Candidates(search, ids, scores, limit), k, pool)
    else:
        query, rank = np.nonzero(best >= 0)
        taken, score = best[query, rank], scores[query, rank]
        if on_collision == "drop":
            order = np.lexsort((query, -score, taken))
            first = order[np.r_[True, np.diff(taken[order]) > 0]] if len(order) else order
            query, rank, taken, score = (column[first] for column in (query, rank, taken, score))
    order = np.lexsort((rank, query))
    return Retrieved(
        query=query[order],
        ids=taken[order],
        rank=rank[order] + 1,
        score=score[order],
        asked=queries * k,
        collisions=collisions,
    )


def _take_next(
    lists: _Candidates, k: int, pool: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Take the best free pair again and again; return query, place in its list, photo and cosine of each."""
    heads = [head for query in range(lists.count) if (head := lists.head(query, 0))]
    heapq.heapify(heads)
    need = np.full(lists.count, k)
    owned: set[int] = set()
    pairs: list[tuple[int, int, int]] = []
    scores: list[float] = []
    while heads and len(owned) < pool:
        _, query, rank = heapq.heappop(heads)
        if rank >= lists.length(query):  # its last candidate is behind it, and there may be more
            lists.deepen(query, need)
            rank = lists.first_free(query, owned)
        else:
            photo, score = lists.at(query, rank)
            if photo not in owned:
                owned.add(photo)
                need[query] -= 1
                pairs.append((query, rank, photo))
                scores.append(score)
            rank += 1
        if need[query] and (head := lists.head(query, rank)):
            heapq.heappush(heads, head)
    columns = np.array(pairs, np.int64).reshape(-1, 3).T
    return columns[0], columns[1], columns[2], np.array(scores, np.float32)


class _Candidates:
    """The nearest photos of each query, more of them when a query has been through all."""

    def __init__(self, search: Search, ids: FoundIds, scores: FoundScores, limit: int) -> None:
        self.count = len(ids)
        self._search = search
        self._limit = limit
        self._ids, self._scores = list(ids), list(scores)  # rows; deeper ones replace them
        self._depths = np.full(self.count, ids.shape[1])
        self._lengths = (ids >= 0).sum(axis=1)
        self._places = np.zeros(self.count, np.int64)
        self._ended = np.zeros(self.count, bool)  # looking deeper found no more

    def length(self, query: int) -> int:
        return int(self._lengths[query])

    def at(self, query: int, rank: int) -> tuple[int, float]:
        return int(self._ids[query][rank]), float(self._scores[query][rank])

    def head(self, query: int, rank: int) -> tuple[float, int, int] | None:
        """Return what stands for a query in the heap; behind its last candidate, a bound for the next one."""
        self._places[query] = rank
        length = self._lengths[query]
        if rank < length:
            return -float(self._scores[query][rank]), query, rank
        if length and self._depths[query] < self._limit and not self._ended[query]:
            return -float(self._scores[query][length - 1]), query, rank
        return None

    def deepen(self, query: int, need: Int64[np.ndarray, " m"]) -> None:
        """Look further for a query, and in the same search for all that will soon need it."""
        depth = int(self._depths[query])
        soon = (self._depths == depth) & (2 * self._places >= depth) & (need > 0) & ~self._ended
        soon[query] = True
        wider = np.flatnonzero(soon)
        deeper = min(_DEEPER * depth, self._limit)
        ids, scores = self._search(wider, deeper)
        for place, other in enumerate(wider.tolist()):
            self._ids[other], self._scores[other] = ids[place], scores[place]
        self._depths[wider] = deeper
        lengths = (ids >= 0).sum(axis=1)
        self._ended[wider] = lengths <= self._lengths[wider]
        self._lengths[wider] = lengths

    def first_free(self, query: int, owned: set[int]) -> int:
        """Return the place of the first candidate that nobody has: what was tried before is owned by now."""
        row = self._ids[query][: self._lengths[query]].tolist()
        return next((rank for rank, photo in enumerate(row) if photo not in owned), len(row))
