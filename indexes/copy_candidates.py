"""Pairs that may be copies: near by the model, or near by their hashes. Both are proposals, no verdicts.

The model finds crops and edits that change the hash; the hash needs no good model. Photos with the same
content count as one here: what a pair names are places in a list of distinct contents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from .copy_check import Comparer
from .faiss_door import load_faiss
from .graph import Edges, all_pairs
from .records import Watch
from .search import Searcher
from .snapshot import Snapshot

HASH_REACH = 12  # bits within which a hash proposes; 10 pass on their own, the rest on their pixels
_QUERIES = 1024  # at a time

Pairs = Int64[np.ndarray, "_ 2"]


def near_by_model(
    snapshot: Snapshot,
    ids: Int64[np.ndarray, " n"],
    *,
    k: int,
    min_score: float,
    exact: bool | None,
    work: Path | None,
    watch: Watch,
) -> Edges:
    """Return the pairs among some items of which one is among the `k` nearest of the other.

    Args:
        snapshot: the index.
        ids: of the items, ascending.
        k: neighbours of each.
        min_score: lowest cosine.
        exact: compare all rows; None chooses.
        work: folder where finished parts of a graph of the whole index are kept.
        watch: called with the stage of the work.
    """
    if len(ids) > len(snapshot) / 2:
        edges = all_pairs(snapshot, k=k, min_score=min_score, exact=exact, work=work, watch=watch)
        inside = np.isin(edges.source, ids) & np.isin(edges.target, ids)
        return Edges(edges.source[inside], edges.target[inside], edges.score[inside])
    searcher = Searcher(snapshot)
    sources, targets, scores = [], [], []
    for start in range(0, len(ids), _QUERIES):
        watch("Comparing", start, len(ids))
        own = ids[start : start + _QUERIES]
        rows = snapshot.descriptors(own).astype(np.float32)
        found, cosines = searcher.search(rows, k + 1, allowed=ids, exact=bool(exact))
        rows_at, columns = np.nonzero((cosines >= min_score) & (found != own[:, None]))
        sources.append(own[rows_at])
        targets.append(found[rows_at, columns])
        scores.append(cosines[rows_at, columns])
    if not sources:
        return Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    source, target, score = (np.concatenate(parts) for parts in (sources, targets, scores))
    low, high = np.minimum(source, target), np.maximum(source, target)
    _, first = np.unique(np.stack([low, high]), axis=1, return_index=True)
    return Edges(low[first], high[first], score[first])


def near_by_hash(comparer: Comparer, *, k: int, advance: Callable[[int, int], None]) -> Pairs:
    """Return the pairs of photos whose hashes, or those of their mirror images, differ in few bits.

    Args:
        comparer: knows the signatures.
        k: neighbours of each photo.
        advance: called with how many photos have been compared, and how many there are.
    """
    rows, owners = _compared_rows(comparer)
    if not len(rows):
        return np.zeros((0, 2), np.int64)
    faiss = load_faiss()
    index = faiss.IndexBinaryFlat(64)
    index.add(_as_bytes(comparer.hashes[rows]))
    wide = min(k + 1, len(rows))
    asked = [comparer.hashes, comparer.mirrored_hashes] if comparer.flips else [comparer.hashes]
    parts = []
    for hashes in asked:
        for start in range(0, len(rows), _QUERIES):
            advance(start, len(rows))
            some = rows[start : start + _QUERIES]
            distances, found = index.search(_as_bytes(hashes[some]), wide)
            queries, columns = np.nonzero(distances <= HASH_REACH)
            pair = np.stack([owners[start + queries], owners[found[queries, columns]]], axis=1)
            parts.append(pair[pair[:, 0] != pair[:, 1]])
    return distinct_pairs(np.concatenate(parts))


def distinct_pairs(pairs: Pairs) -> Pairs:
    """Return each pair once, the lower place first, in ascending order."""
    return np.unique(np.sort(pairs, axis=1), axis=0)


def cosines(
    snapshot: Snapshot, one: Int64[np.ndarray, " p"], other: Int64[np.ndarray, " p"]
) -> Float64[np.ndarray, " p"]:
    """Return the cosines of pairs of items, in float64 from the stored descriptors."""
    found = np.zeros(len(one), np.float64)
    for start in range(0, len(one), _QUERIES):
        some = slice(start, start + _QUERIES)
        left, right = (snapshot.descriptors(ids[some]).astype(np.float64) for ids in (one, other))
        lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        found[some] = np.clip(np.einsum("pd,pd->p", left, right) / lengths, -1, 1)
    return found


def _compared_rows(comparer: Comparer) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Return the rows of signatures that show something, and whose they are."""
    signatures = comparer.signatures
    rows = np.concatenate([signatures.inner, signatures.whole])
    owners = np.tile(np.arange(len(signatures.inner)), 2)
    twice = np.concatenate([np.zeros(len(signatures.inner), bool), signatures.inner == signatures.whole])
    kept = (rows >= 0) & ~twice
    kept[kept] = ~comparer.plain[rows[kept]]
    return rows[kept], owners[kept]


def _as_bytes(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes).view(np.uint8).reshape(len(hashes), 8)
