"""Copies of faiss indexes on a GPU, searched there; the originals stay as they are."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from jaxtyping import Float16

from .faiss_door import gpu_count, load_faiss
from .scan import FoundIds, FoundScores, Queries

logger = logging.getLogger(__name__)

MOST_ON_GPU = 2048  # neighbours and probes per query that faiss allows on a GPU
_SHARE = 0.8  # of the free memory of the GPU that a copy may take


class GpuIndex:
    """A faiss index on a GPU. Threads may share it: they take turns.

    Item ids are those of the original. It cannot leave items out: a search with a selector stays on the CPU.
    """

    def __init__(self, index: Any, resources: Any) -> None:
        """Keep an index and the GPU memory that it works in; use `on_gpu` or `rows_on_gpu`."""
        self.index = index
        self._resources = resources
        self._turn = threading.Lock()

    def search(self, queries: Queries, k: int, *, nprobe: int | None = None) -> tuple[FoundIds, FoundScores]:
        """Return the `k` nearest items of each query by the codes of the index; -1 where there are fewer.

        Args:
            queries: L2-normalised.
            k: how many, at most `MOST_ON_GPU`.
            nprobe: clusters to look at, at most `MOST_ON_GPU`; only for an inverted file.
        """
        parameters = load_faiss().SearchParametersIVF(nprobe=nprobe) if nprobe else None
        with self._turn:
            scores, ids = self.index.search(np.ascontiguousarray(queries), k, params=parameters)
        return ids, scores


def on_gpu(index: Any) -> GpuIndex | None:
    """Copy a faiss index to the first GPU.

    Flat indexes and inverted files with flat, fp16 or 8-bit codes have a GPU version; RaBitQ, HNSW and others
    have none.

    Returns: the copy; None without a GPU, for another kind, or when it does not fit its free memory.
    """
    if not gpu_count():
        return None
    faiss = load_faiss()
    core = faiss.downcast_index(index)
    while isinstance(core, faiss.IndexIDMap):
        core = faiss.downcast_index(core.index)
    if type(core) not in (
        faiss.IndexFlat,
        faiss.IndexFlatIP,
        faiss.IndexIVFFlat,
        faiss.IndexIVFScalarQuantizer,
    ):
        return None
    nbytes = core.ntotal * (core.code_size + 8)
    resources = _room_for(nbytes)
    if resources is None:
        return None
    try:
        return GpuIndex(faiss.index_cpu_to_gpu(resources, 0, index), resources)
    except RuntimeError as error:  # a kind of codes without a GPU version, or the memory went meanwhile
        logger.warning("the faiss index stays on the CPU: %s", error)
        return None


def rows_on_gpu(dim: int, count: int, blocks: Iterable[Float16[np.ndarray, "_ dim"]]) -> GpuIndex | None:
    """Hold rows on the first GPU as fp16, each compared with every query; ids are positions.

    Returns: None without a GPU, or when the rows do not fit its free memory.
    """
    if not gpu_count():
        return None
    resources = _room_for(2 * dim * count)
    if resources is None:
        return None
    faiss = load_faiss()
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    index = faiss.GpuIndexFlatIP(resources, dim, config)
    try:
        for rows in blocks:
            index.add(rows.astype(np.float32))
    except RuntimeError as error:
        logger.warning("the descriptors stay on the CPU: %s", error)
        return None
    return GpuIndex(index, resources)


def _room_for(nbytes: int) -> Any:
    """Return the working memory of the first GPU; None where `nbytes` more do not fit beside it."""
    import torch  # only where there is a GPU: searching by id needs no torch

    resources = load_faiss().StandardGpuResources()
    free, _ = torch.cuda.mem_get_info(0)
    if nbytes <= _SHARE * free:
        return resources
    logger.info("%.1f GB do not fit the GPU, which has %.1f GB free", nbytes / 1e9, free / 1e9)
    return None
