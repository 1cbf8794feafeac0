"""Setting a faiss index to the least work that reaches a recall, measured on items of the index itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.metrics import recall_at_k

from .generation import Generation
from .records import Watch
from .scan import rescore, scan
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

RECALL_K, RECALL_TARGET, TUNE_QUERIES = 10, 0.95, 512
_MOST_RERANK = 8  # times the planned candidates, when probing every cluster is not enough


@dataclass(frozen=True)
class _Truth:
    """What the exact search finds for some items of the index, themselves left out."""

    queries: Float32[np.ndarray, "m dim"]
    own: Int64[np.ndarray, " m"]
    nearest: Int64[np.ndarray, "m k"]


def tune(
    generation: Generation, snapshot: Snapshot, *, target: float = RECALL_TARGET, watch: Watch | None = None
) -> tuple[float, float, int]:
    """Set `nprobe`, and `rerank` if need be, to the least that surely reaches a recall@10.

    Surely: the lower end of the 95 % confidence interval reaches it. Re-ranking is included.

    Args:
        generation: changed in place.
        snapshot: what it was built from.
        target: recall@10 wanted.
        watch: called with the stage of the work.

    Returns: measured recall@10, half of its 95 % confidence interval, and the number of queries.
    """
    watch = watch or (lambda *_: None)
    watch("Tuning", 0, None)
    truth = _exact_answers(snapshot)
    if truth is None:
        return 1.0, 0.0, 0
    nlist, planned = generation.nlist, generation.rerank

    def measure(nprobe: int) -> tuple[float, float]:
        generation.nprobe = nprobe
        watch("Tuning", 0, None)
        shares = _recalls(generation, snapshot, truth)
        return float(shares.mean()), 1.96 * float(shares.std()) / len(shares) ** 0.5

    def reaches(found: tuple[float, float]) -> bool:
        return found[0] - found[1] >= target

    low, high = 0, 1 if nlist else 0
    found = measure(high)
    while not reaches(found) and high < nlist:
        low, high = high, min(2 * high, nlist)
        found = measure(high)
    while not reaches(found) and generation.rerank < _MOST_RERANK * planned:
        generation.rerank *= 2
        found = measure(high)
    while high - low > max(1, high // 16):  # a finer number would not show in the recall
        middle = (low + high) // 2
        tried = measure(middle)
        low, high, found = (low, middle, tried) if reaches(tried) else (middle, high, found)
    generation.nprobe = high
    if found[0] < target:
        logger.warning("faiss index: recall@%d is %.3f, below %.3f", RECALL_K, found[0], target)
    return *found, len(truth.own)


def _exact_answers(snapshot: Snapshot) -> _Truth | None:
    """Return the true neighbours of a seeded sample of items; None when there are too few to ask."""
    if len(snapshot) < 2:
        return None
    count = min(TUNE_QUERIES, len(snapshot))
    sample = np.random.default_rng(1).choice(len(snapshot), count, replace=False)
    own = snapshot.ids[np.sort(sample)]
    queries = snapshot.descriptors(own).astype(np.float32)
    ids, _ = scan(queries, snapshot.blocks(), RECALL_K + 6)
    ids, _ = rescore(queries, ids, snapshot.descriptors, RECALL_K + 1)
    return _Truth(queries, own, _without(ids, own))


def _recalls(generation: Generation, snapshot: Snapshot, truth: _Truth) -> Float32[np.ndarray, " m"]:
    """Return the recall@10 of each query."""
    ids, _ = generation.search(truth.queries, (RECALL_K + 1) * generation.rerank)
    ids, _ = rescore(truth.queries, ids, snapshot.descriptors, RECALL_K + 1)
    found = _without(ids, truth.own)
    k = truth.nearest.shape[1]
    pairs = zip(found, truth.nearest, strict=True)
    return np.array([recall_at_k(one[None], true[None], k) for one, true in pairs], np.float32)


def _without(ids: Int64[np.ndarray, "m wide"], own: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, "m k"]:
    """Leave one id out of each row."""
    order = np.argsort(ids == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1)[:, :-1]
