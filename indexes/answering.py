"""From a question to the items that answer it: several queries, query expansion, and filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.errors import ArgumentError, check_choice
from dinov2kit.images import is_there

from .aggregate import Aggregation, Ranked, nearest
from .query import Question
from .search import Searcher
from .snapshot import Snapshot

NEAR_DUPLICATE = 0.97  # cosine from which `unique` takes two photos for one


@dataclass(frozen=True)
class Filters:
    """Which of the items that are near are left out after all.

    Attributes:
        min_score: those with lower scores; None: none.
        unique: those with a cosine of 0.97 or more to a better one.
        existing: those whose file is gone.
    """

    min_score: float | None = None
    unique: bool = False
    existing: bool = False

    def kept(
        self, snapshot: Snapshot, ids: Int64[np.ndarray, " n"], scores: Float32[np.ndarray, " n"]
    ) -> Ranked:
        """Return what is left of some items, best first."""
        if self.min_score is not None:
            good = scores >= self.min_score
            ids, scores = ids[good], scores[good]
        if self.existing:
            here = [is_there(photo.path) for photo in snapshot.photos(ids)]
            ids, scores = ids[here], scores[here]
        if self.unique:
            first = _first_of_each(snapshot, ids)
            ids, scores = ids[first], scores[first]
        return ids, scores

    def ends(self, found: Ranked) -> bool:
        """Say whether nothing better than `min_score` comes after these."""
        return self.min_score is not None and bool((found[1] < self.min_score).any())


def answer(
    searcher: Searcher,
    question: Question,
    k: int,
    *,
    agg: Aggregation,
    expansion: int,
    alpha: float,
    where: str | None,
    filters: Filters,
    include_self: bool,
    exact: bool,
    nprobe: int | None,
) -> Ranked:
    """Return the items nearest to a question and their scores; arguments and errors as `Index.search`."""
    if k < 1 or expansion < 0:
        raise ArgumentError(f"k is {k} and expand {expansion}; wanted at least 1 and 0")
    _check_aggregation(question, agg, expansion)
    snapshot = searcher.snapshot
    allowed = None if where is None else snapshot.where(where)
    most = len(snapshot) if allowed is None else len(allowed)
    look = partial(searcher.search, allowed=allowed, exact=exact, nprobe=nprobe)
    find = partial(nearest, snapshot, look, agg=agg, allowed=allowed)
    first = partial(_first, snapshot, filters, most)
    known = question.unwanted_ids + question.ids
    if expansion:
        ids, scores = first(partial(find, question.descriptor[None], left_out=known), expansion)
        question = question.expanded(snapshot.descriptors(ids), scores, alpha)
    queries = question.descriptor[None] if agg == "mean" else question.descriptors
    return first(partial(find, queries, left_out=question.unwanted_ids if include_self else known), k)


def _check_aggregation(question: Question, agg: Aggregation, expansion: int) -> None:
    check_choice("aggregation", agg, get_args(Aggregation))
    if agg != "mean" and (expansion or any(part.weight != 1 for part in question.parts)):
        raise ArgumentError(
            f"weights, negative queries and expansion go with the mean of several queries, not with {agg!r}"
        )


def _first(snapshot: Snapshot, filters: Filters, most: int, find: Callable[..., Ranked], k: int) -> Ranked:
    """Return the best `k` items that pass the filters: more are looked for until there are so many."""
    wanted = k
    while True:
        found = find(count=wanted)
        ids, scores = filters.kept(snapshot, *found)
        if len(ids) >= k or len(found[0]) < wanted or wanted >= most or filters.ends(found):
            return ids[:k], scores[:k]
        wanted = min(4 * wanted, most)


def _first_of_each(snapshot: Snapshot, ids: Int64[np.ndarray, " n"]) -> list[int]:
    """Return the places of the items that are no near-duplicate of one before them."""
    rows = snapshot.descriptors(ids).astype(np.float32)
    kept: list[int] = []
    for place in range(len(ids)):
        if not kept or float((rows[kept] @ rows[place]).max()) < NEAR_DUPLICATE:
            kept.append(place)
    return kept
