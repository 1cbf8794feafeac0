"""Candidates for the neighbours of every item: which way, what it costs, and the search itself.

Few items are compared each with each. More go through an inverted file made for this one graph: alike items
lie in the same cluster or the next, so few probes find them. Either way the scores are only good enough to
tell who is a candidate.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinov2kit.errors import StoreError

from .ann import train_empty
from .faiss_door import gpu_count, load_faiss
from .generation import Generation
from .gpu import MOST_ON_GPU, on_gpu, rows_on_gpu
from .graph_copies import DistinctRows
from .layout import move_durably
from .plan import TRAIN_PER_LIST, AnnPlan, default_memory, plan_ann
from .records import Watch
from .scan import FoundIds, FoundScores, Queries, merge, nothing

logger = logging.getLogger(__name__)

EXACT_PAIRS, EXACT_PAIRS_GPU = 2e9, 1e12  # comparisons up to which nothing is worth training
BLOCK = 4096  # rows whose neighbours are searched at a time
RESERVE = 16  # candidates beyond k, so that rounding at the cut does not decide
NEAR_SCORE, NEAR_PROBES, PROBES = 0.9, 8, 16  # near-duplicates need fewer probes
MOST_RERANK = 4  # candidates per neighbour: what is alike stands out even in coarse codes
MULTIPLY, LOOK_UP, ON_GPU = 5e10, 4e9, 2e13  # multiplications a second: matrix product per core, lists, GPU


@dataclass(frozen=True)
class PairsPlan:
    """How the neighbours of every item are found, and what that costs on this machine, roughly.

    Attributes:
        ann: the inverted file; None when every item is compared with every other.
        nprobe: clusters looked at per item; 0 when everything is compared.
        wide: candidates per item.
        margin: how much the score of a candidate may be too low.
        seconds: how long it takes.
        nbytes: memory that it takes.
        text: the costs in one line.
    """

    ann: AnnPlan | None
    nprobe: int
    wide: int
    margin: float
    seconds: float
    nbytes: int
    text: str


def plan_pairs(
    n: int,
    others: int,
    dim: int,
    k: int,
    *,
    min_score: float = NEAR_SCORE,
    exact: bool | None = None,
    memory: int | None = None,
) -> PairsPlan:
    """Choose how to find the `k` nearest of `others` items for each of `n`.

    Args:
        n: items.
        others: items to find neighbours among.
        dim: length of a descriptor.
        k: neighbours.
        min_score: the lowest cosine of a neighbour.
        exact: compare everything, or never; up to 2e9 comparisons (1e12 on a GPU) when not given.
        memory: bytes that the inverted file may take.
    """
    gpus, cores = (
        gpu_count(),
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
    )
    rate = ON_GPU if gpus else MULTIPLY * cores
    wide = k + 1 + RESERVE
    buffers = BLOCK * (65536 * 4 // 16 + wide * 40) + 65536 * dim * 8 + 60 * (n + others)
    if exact is None:
        exact = n * others <= (EXACT_PAIRS_GPU if gpus else EXACT_PAIRS)
    if exact:
        seconds = n * others * dim / rate
        return PairsPlan(
            None, 0, wide, 2e-3, seconds, buffers, _say(n, seconds, buffers, "every pair", cores)
        )
    ann = _plan_ivf(others, dim, default_memory() if memory is None else memory, gpus)
    probes = min(NEAR_PROBES if min_score >= NEAR_SCORE else PROBES, ann.nlist)
    training = 25 * ann.train_rows * ann.nlist * dim / rate
    filling = (others + n) * ann.nlist * dim / rate
    looking = n * probes * others / ann.nlist * dim / (ON_GPU if gpus else LOOK_UP * cores)
    seconds, nbytes = training + filling + looking, ann.nbytes + buffers
    text = _say(n, seconds, nbytes, f"{ann.factory}, nprobe {probes}", cores)
    wide = (k + 1) * min(ann.rerank, MOST_RERANK) + RESERVE
    return PairsPlan(ann, probes, wide, _margin(ann.factory, dim), seconds, nbytes, text)


class Proposer:
    """Proposes the nearest distinct rows of some queries, by positions in `gallery.firsts`."""

    def __init__(self, gallery: DistinctRows, plan: PairsPlan, *, cache: Path | None, watch: Watch) -> None:
        """Train and fill what the plan wants, or take it from `cache`."""
        self.gallery = gallery
        self.plan = plan
        self._index: Generation | None = None
        self._gpu = None
        if plan.ann is not None:
            self._index = _inverted_file(gallery, plan.ann, cache, watch)
            self._gpu = on_gpu(self._index.index)
        elif gpu_count():
            rows = (block for _, block in gallery.blocks())
            self._gpu = rows_on_gpu(gallery.snapshot.dim, len(gallery), rows)

    def search(self, queries: Queries) -> tuple[FoundIds, FoundScores]:
        """Return positions of about the nearest rows, -1 for none, and their scores within the margin."""
        wide, probes = self.plan.wide, self.plan.nprobe
        if self._gpu is not None and max(wide, probes) <= MOST_ON_GPU:
            return self._gpu.search(queries, wide, nprobe=probes or None)
        if self._index is not None:
            return self._index.search(queries, wide, nprobe=probes)
        faiss = load_faiss()
        places, scores = nothing(len(queries), wide)
        for start, rows in self.gallery.blocks():
            some, here = faiss.knn(
                queries, rows.astype(np.float32), min(wide, len(rows)), metric=faiss.METRIC_INNER_PRODUCT
            )
            places, scores = merge([(places, scores), (here + start, some)], wide)
        return places, scores


def _plan_ivf(n: int, dim: int, memory: int, gpus: int) -> AnnPlan:
    """Return the inverted file for `n` rows whose clusters cost as much to find as to look through."""
    plan = plan_ann(n, dim, memory, gpus=gpus)
    if plan.kind != "exact":
        return plan
    nlist = max(1, min(1 << round(math.log2(math.sqrt(NEAR_PROBES * max(n, 1)))), n // 39))
    nbytes = plan.nbytes + nlist * 4 * dim
    trained = min(n, TRAIN_PER_LIST * nlist)
    return replace(
        plan, kind="ivf", factory=f"IVF{nlist},SQfp16", nlist=nlist, train_rows=trained, nbytes=nbytes
    )


def _margin(factory: str, dim: int) -> float:
    """Return how far the score of a code may lie from the true cosine: about six standard deviations."""
    if factory.endswith("SQfp16"):
        return 2e-3
    return 0.02 if factory.endswith("SQ8") else min(2.0, 3 / math.sqrt(dim))


def _say(n: int, seconds: float, nbytes: int, way: str, cores: int) -> str:
    took = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
    took = f"{math.ceil(seconds)} s" if seconds < 90 else took
    return f"pairs of {n:,} items: about {took} on {cores} cores, {nbytes / 1e9:.1f} GB ({way})"


def _inverted_file(gallery: DistinctRows, plan: AnnPlan, cache: Path | None, watch: Watch) -> Generation:
    """Return the faiss index of the rows, from its file where there is one."""
    faiss = load_faiss()
    places = np.arange(len(gallery))
    if cache is not None and cache.exists():
        try:
            index = faiss.read_index(str(cache), faiss.IO_FLAG_MMAP_IFC)
            if index.ntotal == len(gallery):
                return Generation(index, places, nprobe=1, rerank=1)
        except RuntimeError as error:
            logger.warning("%s cannot be used, it is made anew: %s", cache, error)
    index = train_empty(gallery.snapshot, plan, watch)
    for start, rows in gallery.blocks():
        index.add(rows.astype(np.float32))
        watch("Building", start + len(rows), len(gallery))
    if cache is not None:
        _write(index, cache)
    return Generation(index, places, nprobe=1, rerank=1)


def _write(index: Any, path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        load_faiss().write_index(index, str(temporary))
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        move_durably(temporary, path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise StoreError(
            f"cannot write {path}: {error}", hint="free some space, or name another folder"
        ) from error
