"""The scores of a whole set: every query ranks the index by cosine, and what is right is counted.

Scores are computed for blocks of queries, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from dinov2kit.described_images import Described
from dinov2kit.errors import ImageError
from dinov2kit.retrieval_scores import (
    average_precision,
    average_precision_at_r,
    found_within_k,
    micro_average_precision,
    positive_ranks,
    precision_at_k,
)
from dinov2kit.retrieval_sets import Places, RetrievalSet
from dinov2kit.shapes import Descriptors

MOST_PAIRS = (
    4_000_000  # of a query and an image that are ranked together; those that score lower are not found
)
PRECISION_KS = (1, 5, 10)

_MEMORY = 1 << 27  # bytes of scores at a time

Row = dict[str, Any]


def score_set(chosen: RetrievalSet, described: Described, *, ks: Sequence[int]) -> dict[str, Any]:
    """Count what is right in the rankings of all queries.

    What could not be read neither asks nor is searched, and is no positive of any query.

    Args:
        chosen: the set.
        described: its queries first, then its index.
        ks: the k of recall@k.

    Returns: `n_queries` and `n_index`, as far as they could be read; `setups`, the means of each setup;
        `micro`, the scores of all pairs ranked together, where there is one setup; `per_group`, the means of
        each group; `queries`, the scores of each query that has a positive.

    Raises:
        ImageError: no query with a positive is left.
    """
    count = len(chosen.queries)
    asked, there = described.known[:count], described.known[count:]
    gone = np.flatnonzero(~there)
    rows: list[Row] = []
    pairs = _Pairs()
    for place, scores in _scores(described.rows[:count], described.rows[count:]):
        query = chosen.queries[place]
        for name, setup in chosen.setups.items() if asked[place] else ():
            positive, junk = query.truth(setup)
            positive, junk = positive[there[positive]], np.append(junk, gone)
            if len(chosen.setups) == 1:
                pairs.add(scores, positive, junk)
            if len(positive):
                ranks = positive_ranks(scores, positive, junk)
                facts = {"path": str(query.path), "group": query.group, "setup": name}
                rows.append({**facts, **_query_scores(ranks, chosen, ks)})
    if not rows:
        raise ImageError(
            f"no query of {chosen.name} has a match that could be read: there is nothing to find"
        )
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    return {
        "n_queries": int(asked.sum()),
        "n_index": int(there.sum()),
        "setups": _by_setup(rows, chosen),
        "micro": pairs.score() if len(chosen.setups) == 1 else None,
        "per_group": {group: _by_setup(members, chosen) for group, members in sorted(groups.items())},
        "queries": [
            {key: row[key] for key in ("path", "group", "setup", "ap", "first_rank")} for row in rows
        ],
    }


def _scores(
    queries: Descriptors, index: Float32[np.ndarray, "items dim"]
) -> Iterator[tuple[int, Float32[np.ndarray, " items"]]]:
    """Yield the cosines of each query, in their order."""
    step = max(1, _MEMORY // (4 * max(1, len(index))))
    for start in range(0, len(queries), step):
        yield from enumerate(queries[start : start + step] @ index.T, start)


def _query_scores(ranks: Int64[np.ndarray, " p"], chosen: RetrievalSet, ks: Sequence[int]) -> Row:
    facts: Row = {
        "ap": average_precision(ranks, rule=chosen.rule),
        "ap_at_r": average_precision_at_r(ranks),
        "recall": {str(k): float(found_within_k(ranks, k)) for k in ks},
        "first_rank": int(ranks[0]) + 1,
    }
    if len(chosen.setups) > 1:
        facts["precision"] = {str(k): precision_at_k(ranks, k) for k in PRECISION_KS}
    return facts


def _by_setup(rows: Sequence[Row], chosen: RetrievalSet) -> dict[str, Row]:
    named = {name: [row for row in rows if row["setup"] == name] for name in chosen.setups}
    return {name: _means(members) for name, members in named.items() if members}


def _means(rows: Sequence[Row]) -> Row:
    means: Row = {
        "n": len(rows),
        "map": float(np.mean([row["ap"] for row in rows])),
        "map_at_r": float(np.mean([row["ap_at_r"] for row in rows])),
    }
    for key in ("recall", "precision"):
        if key in rows[0]:
            means[key] = {k: float(np.mean([row[key][k] for row in rows])) for k in rows[0][key]}
    return means


class _Pairs:
    """The best pairs of all queries so far."""

    def __init__(self) -> None:
        self._scores: list[Float32[np.ndarray, " _"]] = []
        self._right: list[Bool[np.ndarray, " _"]] = []
        self._held = self._wanted = 0
        self._cut = -np.inf

    def add(self, scores: Float32[np.ndarray, " n"], positive: Places, junk: Places) -> None:
        """Take the pairs of one query; junk counts neither way."""
        counts = scores >= self._cut
        counts[junk] = False
        right = np.zeros(len(scores), np.bool_)
        right[positive] = True
        self._scores.append(scores[counts])
        self._right.append(right[counts])
        self._held += len(self._scores[-1])
        self._wanted += len(positive)
        if self._held > 2 * MOST_PAIRS:
            self._shrink()

    def score(self) -> Row:
        """Return the micro average precision and the recall at a precision of 90 %."""
        if self._held > MOST_PAIRS:
            self._shrink()
        found = micro_average_precision(
            np.concatenate(self._scores), np.concatenate(self._right), self._wanted
        )
        return {
            "ap": found.average_precision,
            "recall_at_p90": found.recall,
            "threshold": found.threshold,
            "pairs": self._held,
            "matches": self._wanted,
        }

    def _shrink(self) -> None:
        """Forget all but the best; of equal scores the matches go first, as if they had come last."""
        scores, right = np.concatenate(self._scores), np.concatenate(self._right)
        best = np.sort(np.lexsort((right, -scores))[:MOST_PAIRS])
        self._scores, self._right = [scores[best]], [right[best]]
        self._held, self._cut = len(best), float(scores[best].min())
