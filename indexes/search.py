"""Nearest items of one snapshot: the faiss index, what it does not know yet, and filters.

Where there is no faiss index, every row is compared. Where there is one, it proposes candidates, the items
that it does not know are compared one by one, those that are gone are left out, and the best are scored again
from the store. So a score depends on two descriptors only, and equal scores come in the order of their ids.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float16, Int64

from dinov2kit.errors import ArgumentError, StoreCorrupt

from .faiss_door import gpu_count, load_faiss
from .generation import Generation
from .gpu import MOST_ON_GPU, rows_on_gpu
from .scan import Block, FoundIds, FoundScores, Queries, nothing, rescore, scan
from .snapshot import Snapshot

logger = logging.getLogger(__name__)

SCAN_QUERIES = 32  # from so many queries at once, one matrix product over all rows beats a search for each
FEW_ROWS, FEW_SHARE = 200_000, 0.02  # a filter that leaves so few is searched exactly
_MOST_PROBES = 8  # times the tuned nprobe, for a filter that leaves few per cluster
_BLOCK = 65536  # rows read at a time
_RESERVE = 16  # candidates beyond k, so that rounding at the cut does not decide


class Searcher:
    """Searches one snapshot. Threads may share it.

    Attributes:
        snapshot: what is searched.
        generation: the faiss index; None when every row is compared.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.generation = _open_generation(snapshot)
        known = self.generation.ids if self.generation else np.zeros(0, np.int64)
        self._tail = np.setdiff1d(snapshot.ids, known, assume_unique=True)
        self._dead = np.setdiff1d(known, snapshot.ids, assume_unique=True)
        self._on_gpu = self.generation is None and gpu_count() > 0
        self._guard = threading.Lock()
        self._rows: _Rows | None = None

    def search(
        self,
        queries: Float[np.ndarray, "m dim"],
        k: int,
        *,
        allowed: Int64[np.ndarray, " a"] | None = None,
        exact: bool = False,
        nprobe: int | None = None,
    ) -> tuple[FoundIds, FoundScores]:
        """Return the `k` nearest items of each query, best first, equal scores by id.

        Args:
            queries: descriptors of any length above 0.
            k: how many; where there are fewer, the rest has the id -1 and the score -inf.
            allowed: ids that may be found, ascending; all when not given.
            exact: compare every row, whatever faiss index there is.
            nprobe: clusters to look at, instead of the tuned number.

        Raises:
            ArgumentError: `k` or `nprobe` is below 1, or the queries do not fit the index.
        """
        unit = self._checked(queries, k, nprobe)
        if not len(unit):
            return nothing(0, k)
        if allowed is not None:
            allowed = np.intersect1d(allowed, self.snapshot.ids, assume_unique=True)
        if self._scans(len(unit), k, allowed, exact=exact):
            blocks = self.snapshot.blocks() if allowed is None else self._blocks_of(allowed)
            ids, _ = scan(unit, blocks, k + _RESERVE)
        else:
            ids = self._candidates(unit, k, allowed, nprobe)
        return rescore(unit, ids, self.snapshot.descriptors, k)

    def _scans(self, count: int, k: int, allowed: Int64[np.ndarray, " a"] | None, *, exact: bool) -> bool:
        """Say whether to read all rows from the store instead of asking an index in memory."""
        if allowed is not None and len(allowed) <= max(FEW_ROWS, FEW_SHARE * len(self.snapshot)):
            return True
        if self.generation is not None:
            return exact
        if self._on_gpu:
            return allowed is not None or k + _RESERVE > MOST_ON_GPU  # there is no selector on a GPU
        return count >= SCAN_QUERIES

    def _candidates(
        self, queries: Queries, k: int, allowed: Int64[np.ndarray, " a"] | None, nprobe: int | None
    ) -> FoundIds:
        """Return what may be nearest: proposals of the faiss index, and the best of what it does not know."""
        parts = []
        if self.generation is not None:
            selector = self._selector(allowed)
            probes = nprobe or self.generation.nprobe
            if allowed is not None and nprobe is None:
                probes = int(probes * min(_MOST_PROBES, len(self.generation.ids) / max(len(allowed), 1)))
            wide = k * self.generation.rerank + _RESERVE
            found, _ = self.generation.search(queries, wide, selector=selector, nprobe=probes)
            parts.append(found)
        if len(self._tail):
            parts.append(self._tail_rows().search(queries, k + _RESERVE, allowed))
        return np.concatenate(parts, axis=1) if parts else nothing(len(queries), k)[0]

    def _selector(self, allowed: Int64[np.ndarray, " a"] | None) -> Any:
        """Return the faiss selector of what may be found, or None when that is everything."""
        faiss = load_faiss()
        if allowed is not None:
            bits = np.zeros(int(self.snapshot.ids[-1]) + 1, np.bool_)
            bits[allowed] = True
            return _bitmap(bits)
        return faiss.IDSelectorNot(faiss.IDSelectorBatch(self._dead)) if len(self._dead) else None

    def _tail_rows(self) -> _Rows:
        with self._guard:
            if self._rows is None:
                self._rows = _Rows(self.snapshot, self._tail, on_gpu=self._on_gpu)
            return self._rows

    def _blocks_of(self, ids: Int64[np.ndarray, " a"]) -> Iterator[Block]:
        for start in range(0, len(ids), _BLOCK):
            some = ids[start : start + _BLOCK]
            yield some, self.snapshot.descriptors(some)

    def _checked(self, queries: Float[np.ndarray, "m dim"], k: int, nprobe: int | None) -> Queries:
        if k < 1 or (nprobe is not None and nprobe < 1):
            raise ArgumentError(f"k is {k}, nprobe {nprobe}; wanted 1 or more")
        if queries.shape[1] != self.snapshot.dim:
            raise ArgumentError(
                f"the query has {queries.shape[1]} numbers, the index {self.snapshot.dim} per photo",
                hint="describe the query with the model of the index",
            )
        unit: Queries = queries.astype(np.float32)
        lengths = np.linalg.norm(unit, axis=1, keepdims=True)
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise ArgumentError("a query is not finite, or zero")
        unit /= lengths
        return unit


class _Rows:
    """Items held in memory as the fp16 rows of the store, each compared with the query."""

    def __init__(self, snapshot: Snapshot, ids: Int64[np.ndarray, " n"], *, on_gpu: bool) -> None:
        self.ids = ids
        rows = (rows for _, rows in self._blocks(snapshot))
        self._gpu = rows_on_gpu(snapshot.dim, len(ids), rows) if on_gpu else None
        self.index: Any = None if self._gpu is not None else self._on_cpu(snapshot)

    def search(self, queries: Queries, k: int, allowed: Int64[np.ndarray, " a"] | None) -> FoundIds:
        wide = min(k, len(self.ids))
        if self._gpu is not None:
            rows, _ = self._gpu.search(queries, wide)
        else:
            selector = None if allowed is None else _bitmap(np.isin(self.ids, allowed, assume_unique=True))
            parameters = load_faiss().SearchParameters(sel=selector)
            _, rows = self.index.search(np.ascontiguousarray(queries), wide, params=parameters)
        ids: FoundIds = self.ids[rows]  # where there is no row, -1 names the last
        ids[rows < 0] = -1
        return ids

    def _on_cpu(self, snapshot: Snapshot) -> Any:
        """Fill the codes of an fp16 index with the bytes of the store."""
        faiss = load_faiss()
        kind = faiss.ScalarQuantizer.QT_fp16
        index = faiss.IndexScalarQuantizer(snapshot.dim, kind, faiss.METRIC_INNER_PRODUCT)
        nbytes = 2 * snapshot.dim * len(self.ids)
        index.codes.resize(nbytes)
        if nbytes:
            memory = faiss.rev_swig_ptr(index.codes.data(), nbytes).view(np.float16)
            for start, rows in self._blocks(snapshot):
                memory[start * snapshot.dim : start * snapshot.dim + rows.size] = rows.ravel()
        index.ntotal, index.is_trained = len(self.ids), True
        return index

    def _blocks(self, snapshot: Snapshot) -> Iterator[tuple[int, Float16[np.ndarray, "b dim"]]]:
        for start in range(0, len(self.ids), _BLOCK):
            yield start, snapshot.descriptors(self.ids[start : start + _BLOCK])


def _bitmap(allowed: Bool[np.ndarray, " n"]) -> Any:
    """Return a faiss selector of the numbers whose bit is set."""
    return load_faiss().IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


def _open_generation(snapshot: Snapshot) -> Generation | None:
    if snapshot.generation is None:
        return None
    try:
        return Generation.open(snapshot.generation)
    except StoreCorrupt as error:
        logger.warning("%s; every row is compared instead", error.message)
        return None
