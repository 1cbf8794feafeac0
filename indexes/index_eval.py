"""How much of the exact answer an index gives, how fast, and in how much memory.

Items of the index ask for their neighbours and are themselves left out. What is measured is the whole search,
as `dinokit search` does it: the faiss index, what it does not know, and the scores from the store.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.errors import ArgumentError
from dinov2kit.metrics import recall_at_k

from .faiss_door import gpu_count, load_faiss
from .generation import read_facts
from .records import Watch
from .search import Searcher
from .snapshot import Snapshot

KS = (1, 10, 100)
QUERIES = 1000
_ALONE, _ALONE_S = 200, 10.0  # of the queries are also asked one by one, or fewer in so many seconds
_FULL_RECALL = 0.9999  # more probes than this needs are not measured


@dataclass(frozen=True)
class SearchFigures:
    """One way to search.

    Attributes:
        nprobe: clusters looked at; None for the exact search, 0 for an index without clusters.
        tuned: whether it is what the index does by itself.
        recall: recall@k against the exact search, by k.
        qps: queries per second, one at a time.
        qps_batch: queries per second, all at once.
        ms: median milliseconds of one query.
        ms_p95: what 95 % of single queries stay below, in milliseconds.
    """

    nprobe: int | None
    tuned: bool
    recall: dict[str, float]
    qps: float
    qps_batch: float
    ms: float
    ms_p95: float


def evaluate_index(
    directory: Path,
    *,
    ks: Sequence[int] = (),
    nprobes: Sequence[int] = (),
    count: int = 0,
    seed: int = 0,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Ask an index for the neighbours of some of its items, exactly and in every speed that it has.

    Args:
        directory: the index.
        ks: numbers of neighbours; empty takes those of 1, 10 and 100 that the index has.
        nprobes: clusters to look at; empty takes the powers of 2 up to full recall, and the tuned number.
        count: how many items ask; 0 takes 1,000, or all where there are fewer.
        seed: of which items ask.
        watch: called with the stage of the work.

    Returns: what the index is, `exact`, and `curve`, a list of `SearchFigures` by nprobe.

    Raises:
        StoreError: there is no index, or it is damaged.
        ArgumentError: a number is out of range, or the index has no clusters to choose from.
    """
    watch = watch or (lambda *_: None)
    with Snapshot.open(directory) as snapshot:
        ks = _checked(snapshot, ks, count)
        count = min(count or QUERIES, len(snapshot))
        own = np.sort(np.random.default_rng(seed).choice(snapshot.ids, count, replace=False))
        queries = snapshot.descriptors(own).astype(np.float32)
        searcher = Searcher(snapshot)
        plan = _plan(searcher, nprobes)
        watch("Measuring", 0, len(plan) + 1)
        asking = _Asking(searcher, queries, own, ks)
        exact = asking.measure(None, tuned=False)
        curve: list[SearchFigures] = []
        tuned = searcher.generation.nprobe if searcher.generation else None
        for done, nprobe in enumerate(plan, 1):
            watch("Measuring", done, len(plan) + 1)
            curve.append(asking.measure(nprobe, tuned=nprobe == tuned))
            full = min(curve[-1].recall.values()) >= _FULL_RECALL and nprobe >= (tuned or 0)
            if full and not nprobes:
                break
        watch("Measuring", len(plan) + 1, len(plan) + 1)
        return {
            **_about(snapshot, searcher),
            "ks": list(ks),
            "queries": count,
            "seed": seed,
            "exact": asdict(exact),
            "curve": [asdict(figures) for figures in curve],
        }


class _Asking:
    """Some queries, their true neighbours, and the clock."""

    def __init__(
        self,
        searcher: Searcher,
        queries: Float32[np.ndarray, "m dim"],
        own: Int64[np.ndarray, " m"],
        ks: Sequence[int],
    ) -> None:
        self._searcher, self._queries, self._own, self._ks = searcher, queries, own, ks
        self._k = max(ks) + 1  # the item itself is found, too
        self._truth = self._search(queries, None)

    def measure(self, nprobe: int | None, *, tuned: bool) -> SearchFigures:
        alone = self._queries[:_ALONE]
        self._search(alone[:1], nprobe)  # reads what is read once
        times = []
        for query in alone:
            started = time.perf_counter()
            self._search(query[None], nprobe)
            times.append(time.perf_counter() - started)
            if sum(times) > _ALONE_S:
                break
        started = time.perf_counter()
        found = self._search(self._queries, nprobe)
        batch = time.perf_counter() - started
        pairs = (_without(found, self._own), _without(self._truth, self._own))
        return SearchFigures(
            nprobe=nprobe,
            tuned=tuned,
            recall={str(k): recall_at_k(*pairs, k) for k in self._ks},
            qps=len(times) / sum(times),
            qps_batch=len(self._queries) / batch,
            ms=1000 * float(np.median(times)),
            ms_p95=1000 * float(np.quantile(times, 0.95)),
        )

    def _search(self, queries: Float32[np.ndarray, "b dim"], nprobe: int | None) -> Int64[np.ndarray, "b k"]:
        ids, _ = self._searcher.search(queries, self._k, exact=nprobe is None, nprobe=nprobe or None)
        return ids


def _checked(snapshot: Snapshot, ks: Sequence[int], count: int) -> tuple[int, ...]:
    """Return the k to measure.

    Raises:
        ArgumentError: there are too few items, or a number is out of range.
    """
    others = len(snapshot) - 1
    if others < 1:
        raise ArgumentError(f"the index has {len(snapshot)} photos; wanted 2 or more, to ask for neighbours")
    if count < 0:
        raise ArgumentError(f"{count} queries; wanted 0 or more")
    ks = tuple(sorted(set(ks))) or tuple(k for k in KS if k <= others)
    if not 1 <= ks[0] <= ks[-1] <= others:
        raise ArgumentError(
            f"k is {ks[-1] if ks[0] > 0 else ks[0]}; a photo of this index has {others} others"
        )
    return ks


def _plan(searcher: Searcher, nprobes: Sequence[int]) -> list[int]:
    """Return the nprobe to measure, ascending; 0 for an index without clusters, nothing without an index.

    Raises:
        ArgumentError: the index has not so many clusters.
    """
    generation = searcher.generation
    nlist = generation.nlist if generation else 0
    if nprobes:
        if not nlist or not 1 <= min(nprobes) <= max(nprobes) <= nlist:
            raise ArgumentError(
                f"nprobe is {max(nprobes)}; this index has {nlist} clusters",
                hint=None if nlist else "it is searched without clusters; leave --nprobe out",
            )
        return sorted(set(nprobes))
    if generation is None:
        return []
    powers = [2**power for power in range(nlist.bit_length()) if 2**power < nlist]
    return sorted({*powers, nlist, min(generation.nprobe, nlist)}) if nlist else [0]


def _about(snapshot: Snapshot, searcher: Searcher) -> dict[str, Any]:
    """Return what is searched, and what it takes in memory."""
    generation = searcher.generation
    facts = read_facts(snapshot.generation) if generation is not None and snapshot.generation else None
    known = len(generation.ids) if generation is not None else 0
    tail = (
        len(np.setdiff1d(snapshot.ids, generation.ids, assume_unique=True)) if generation else len(snapshot)
    )
    return {
        "index": str(snapshot.layout.directory),
        "model": snapshot.card.model.name,
        "n": len(snapshot),
        "dim": snapshot.dim,
        "factory": facts.factory if facts else "exact",
        "nlist": facts.nlist if facts else 0,
        "nprobe": facts.nprobe if facts else 0,
        "rerank": facts.rerank if facts else 1,
        "memory": (facts.nbytes if facts else 0) + 2 * snapshot.dim * tail,
        "memory_flat": 4 * snapshot.dim * len(snapshot),
        "indexed": known,
        "build_s": facts.seconds if facts else 0.0,
        "threads": int(load_faiss().omp_get_max_threads()),
        "gpus": gpu_count(),
    }


def _without(ids: Int64[np.ndarray, "m wide"], own: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "m k"]:
    """Leave the item itself out of each row, or the last where it was not found."""
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")
    left: Int64[np.ndarray, "m k"] = np.take_along_axis(ids, order, axis=1)[:, :-1]
    return left
