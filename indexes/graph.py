"""Pairs of items that are alike, and what they join together.

Each item's nearest others are searched block by block and scored from the stored descriptors in float64, so a
score depends on two descriptors only. Items with the same descriptor count as one in the search
(`graph_copies`), and finished blocks can be kept on disk (`graph_blocks`).

Source: Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", 2023, appendix A: a graph
of 64 neighbours per image, cut at a cosine, and its connected components.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int64

from dinov2kit.errors import ArgumentError

from .graph_blocks import BlockEdges, BlockFolder
from .graph_copies import DistinctRows, Near, link_items
from .graph_search import BLOCK, PairsPlan, Proposer, plan_pairs
from .layout import check_model
from .records import Watch
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

_VALUES = 2**23  # float64 numbers of candidates read at a time


@dataclass(frozen=True)
class Edges:
    """Pairs of items that are alike, sorted by (source, target), each once.

    Attributes:
        source: item ids.
        target: item ids; those of the reference for `cross_pairs`, else above `source`.
        score: their cosines.
    """

    source: Int64[np.ndarray, " e"]
    target: Int64[np.ndarray, " e"]
    score: Float32[np.ndarray, " e"]


def all_pairs(
    snapshot: Snapshot,
    *,
    k: int = 64,
    min_score: float,
    exact: bool | None = None,
    memory: int | None = None,
    work: Path | None = None,
    watch: Watch | None = None,
) -> Edges:
    """Return the pairs of each item and its `k` nearest others that score at least `min_score`.

    A pair is there if one of the two is among the nearest of the other. Items with the same descriptor do not
    push others out: of each descriptor one item comes before any second one, so `k` others are enough to join
    any number of copies. Ties go by id.

    Args:
        snapshot: the items.
        k: neighbours per item.
        min_score: the lowest cosine of a pair.
        exact: compare every pair, or never; up to 45,000 items when not given. Otherwise an inverted file is
            made for this graph, and a pair may be missed: about 2 in 1,000 at a cosine of 0.9, fewer above.
        memory: bytes that the inverted file may take; a quarter of what is free when not given.
        work: folder for finished blocks: an interrupted run that is started again with the same arguments
            goes on with them. Nothing in it is deleted.
        watch: called with the stage of the work.

    Raises:
        ArgumentError: `k` or `min_score` make no sense.
        StoreError: `work` cannot be written.
    """
    return _edges(snapshot, snapshot, k, min_score, exact, memory, work, watch)


def cross_pairs(
    snapshot: Snapshot,
    reference: Snapshot,
    *,
    k: int = 64,
    min_score: float,
    exact: bool | None = None,
    memory: int | None = None,
    work: Path | None = None,
    watch: Watch | None = None,
) -> Edges:
    """Return the pairs of each item and its `k` nearest items of another index; else as `all_pairs`.

    Raises:
        ArgumentError: `k` or `min_score` make no sense.
        StoreError: `work` cannot be written.
        StoreMismatch: the two indexes were made with different models or preprocessing.
    """
    check_model(reference.card, snapshot.card.model)
    return _edges(snapshot, reference, k, min_score, exact, memory, work, watch)


def expect_cost(
    n: int, dim: int, k: int = 64, *, others: int | None = None, min_score: float = 0.9
) -> PairsPlan:
    """Say what the pairs of `n` items cost on this machine, roughly: `seconds`, `nbytes`, and `text` of both.

    Args:
        n: items.
        dim: length of a descriptor.
        k: neighbours per item.
        others: items of the reference; `n` when not given.
        min_score: the lowest cosine of a pair.
    """
    return plan_pairs(n, n if others is None else others, dim, k, min_score=min_score)


def components(ids: Int64[np.ndarray, " n"], edges: Edges) -> Int64[np.ndarray, " n"]:
    """Return for each item the lowest id of all items that a chain of edges joins to it.

    The root of the higher end of every edge is hung below the root of its lower end, all edges at once, and
    all paths are cut short to their roots, until no edge joins two roots.

    Args:
        ids: items, each once.
        edges: their ends are among `ids`.

    Raises:
        ArgumentError: an edge names an item that is not among `ids`.
    """
    known = np.sort(ids)
    source, target = _places(known, edges.source), _places(known, edges.target)
    root = np.arange(len(known))
    while len(source):
        np.minimum.at(root, np.maximum(source, target), np.minimum(source, target))
        while not np.array_equal(shorter := root[root], root):
            root = shorter
        source, target = root[source], root[target]
        apart = source != target
        source, target = source[apart], target[apart]
    return known[root[np.searchsorted(known, ids)]]


def _places(known: Int64[np.ndarray, " n"], ends: Int64[np.ndarray, " e"]) -> Int64[np.ndarray, " e"]:
    strange = ~np.isin(ends, known)
    if strange.any():
        raise ArgumentError(f"an edge names item {int(ends[strange][0])}, which is not among the items")
    return np.searchsorted(known, ends)


def _edges(
    snapshot: Snapshot,
    reference: Snapshot,
    k: int,
    min_score: float,
    exact: bool | None,
    memory: int | None,
    work: Path | None,
    watch: Watch | None,
) -> Edges:
    if k < 1 or not -1 <= min_score <= 1:
        raise ArgumentError(f"k is {k}, min_score {min_score}; wanted 1 or more, and a cosine from -1 to 1")
    watch = watch or (lambda *_: None)
    kept = BlockFolder(work, (snapshot, reference), k=k, min_score=min_score, exact=exact, memory=memory)
    watch("Reading", 0, None)
    queries = DistinctRows.of(snapshot)
    gallery = queries if reference is snapshot else DistinctRows.of(reference)
    plan = kept.plan(
        lambda: plan_pairs(
            len(queries),
            len(gallery),
            snapshot.dim,
            k,
            min_score=min_score,
            exact=exact,
            memory=memory,
        )
    )
    logger.info("%s", plan.text)
    proposer: Proposer | None = None
    blocks = []
    for number, start in enumerate(range(0, len(queries), BLOCK)):
        rows = range(start, min(start + BLOCK, len(queries)))
        block = kept.read(number)
        if block is None:
            proposer = proposer or Proposer(gallery, plan, cache=kept.index, watch=watch)
            near = _nearest(queries, rows, proposer, k, min_score)
            block = _linked(near, rows, queries, gallery, k)
            kept.write(number, block)
        blocks.append(block)
        watch("Comparing", rows.stop, len(queries))
    saturated = sum(block.saturated for block in blocks)
    if saturated:
        logger.info("%d of %d items have %d neighbours or more; the rest is cut", saturated, len(snapshot), k)
    return _joined(blocks)


def _nearest(queries: DistinctRows, rows: range, proposer: Proposer, k: int, min_score: float) -> Near:
    """Return the `k` nearest other rows of some rows by their stored descriptors, ties by position."""
    gallery = proposer.gallery
    own = _unit(queries.read(np.arange(rows.start, rows.stop)))
    places, rough = proposer.search(own.astype(np.float32))
    row, column = np.nonzero((places >= 0) & (rough >= min_score - proposer.plan.margin))
    place = places[row, column]
    if gallery is queries:
        others = place != row + rows.start
        row, place = row[others], place[others]
    score = np.empty(len(row), np.float32)
    step = max(1, _VALUES // queries.snapshot.dim)
    for start in range(0, len(row), step):
        some = slice(start, start + step)
        score[some] = np.einsum("ed,ed->e", own[row[some]], _unit(gallery.read(place[some])))
    alike = score >= min_score
    row, place, score = row[alike], place[alike], score[alike]
    order = np.lexsort((place, -score, row))
    row, place, score = row[order], place[order], score[order]
    best = np.arange(len(row)) - np.searchsorted(row, row) < k
    return Near(row[best] + rows.start, place[best], score[best])


def _linked(near: Near, rows: range, queries: DistinctRows, gallery: DistinctRows, k: int) -> BlockEdges:
    """Return the edges of the items of some rows."""
    parts, saturated = [], 0
    for links in link_items(near, rows, queries, gallery, k=k):
        saturated += int((np.unique(links.item, return_counts=True)[1] == k).sum())
        source, target = links.item, links.other
        if queries is gallery:
            source, target = np.minimum(source, target), np.maximum(source, target)
        parts.append(BlockEdges(source, target, links.score, 0))
    edges = _joined(parts)
    return BlockEdges(edges.source, edges.target, edges.score, saturated)


def _joined(parts: list[BlockEdges]) -> Edges:
    """Return the edges of all parts, sorted, each once."""
    source = np.concatenate([part.source for part in parts] or [np.zeros(0, np.int64)])
    target = np.concatenate([part.target for part in parts] or [np.zeros(0, np.int64)])
    score = np.concatenate([part.score for part in parts] or [np.zeros(0, np.float32)])
    order = np.lexsort((target, source))
    source, target, score = source[order], target[order], score[order]
    first = np.ones(len(source), bool)
    first[1:] = (np.diff(source) != 0) | (np.diff(target) != 0)
    return Edges(source[first], target[first], score[first])


def _unit(rows: Float16[np.ndarray, "m dim"]) -> Float64[np.ndarray, "m dim"]:
    """Return the rows as float64 of length 1: fp16 moved the lengths a little."""
    unit: Float64[np.ndarray, "m dim"] = rows.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit
