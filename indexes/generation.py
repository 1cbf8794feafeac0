"""One faiss index of a store as it lies on disk: opened, searched, described. It may be deleted any time."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import StoreCorrupt

from .faiss_door import load_faiss
from .gpu import MOST_ON_GPU, GpuIndex, on_gpu
from .layout import fill
from .scan import FoundIds, FoundScores, Queries

INDEX, META, IDS = "index.faiss", "meta.json", "ids.npy"


@dataclass(frozen=True)
class AnnFacts:
    """What `meta.json` says of a generation.

    Attributes:
        kind: as `AnnPlan.kind`.
        factory: faiss factory string.
        nlist: clusters of an inverted file; 0 without one.
        nprobe: clusters looked at per query; 0 without an inverted file.
        rerank: candidates per wanted hit that are scored again from the store.
        recall: measured recall@10 against the exact search, re-ranking included.
        recall_ci95: half the width of its 95 % confidence interval.
        recall_queries: how many items of the index were asked.
        n: items.
        trained_n: items when it was trained.
        min_id: lowest item id; 0 when empty.
        max_id: highest item id; 0 when empty.
        nbytes: size of the index file.
        sha256: of the index file.
        faiss: version that wrote it.
        seconds: how long building and tuning took.
        memory: bytes that the user allowed; None when nothing was said. Later runs keep to it.
    """

    kind: Literal["ivf", "custom"]
    factory: str
    nlist: int
    nprobe: int
    rerank: int
    recall: float
    recall_ci95: float
    recall_queries: int
    n: int
    trained_n: int
    min_id: int
    max_id: int
    nbytes: int
    sha256: str
    faiss: str
    seconds: float
    memory: int | None


class Generation:
    """A faiss index whose ids are item ids. Threads may share it for searching.

    Attributes:
        index: the faiss index.
        ids: the ids in it, ascending.
        nprobe: clusters looked at per query; 0 without an inverted file.
        rerank: candidates wanted per hit.
    """

    def __init__(self, index: Any, ids: Int64[np.ndarray, " n"], *, nprobe: int, rerank: int) -> None:
        self.index = index
        self.ids = ids
        self.nprobe = nprobe
        self.rerank = rerank
        self._on_gpu: GpuIndex | None = None

    @classmethod
    def open(cls, folder: Path, *, mapped: bool = True) -> Generation:
        """Open a generation.

        Args:
            folder: where it lies.
            mapped: leave the codes on disk; a mapped index cannot be changed.

        Raises:
            StoreCorrupt: a file is missing, cut off, or does not fit the others.
        """
        faiss = load_faiss()
        try:
            facts = read_facts(folder)
            ids = np.load(folder / IDS, allow_pickle=False)
            nbytes = (folder / INDEX).stat().st_size
            if nbytes != facts.nbytes:
                raise ValueError(f"{INDEX} has {nbytes:,} bytes, not {facts.nbytes:,}")
            index = faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
            if not index.ntotal == len(ids) == facts.n:
                raise ValueError(
                    f"{INDEX} has {index.ntotal:,} items, {IDS} {len(ids):,}, {META} {facts.n:,}"
                )
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            raise StoreCorrupt(
                f"the faiss index {folder.name} cannot be used: {error}",
                hint="the next run of dinokit index builds it anew",
            ) from error
        opened = cls(index, ids, nprobe=facts.nprobe, rerank=facts.rerank)
        opened._on_gpu = on_gpu(index) if mapped else None
        return opened

    def save(self, folder: Path, facts: dict[str, Any]) -> AnnFacts:
        """Write the index into an empty folder and wait until the disk has it.

        Args:
            folder: where; not yet in use.
            facts: the fields of `AnnFacts` that the index does not know.
        """
        faiss = load_faiss()
        folder.mkdir(parents=True)
        file = folder / INDEX
        faiss.write_index(self.index, str(file))
        with file.open("rb+") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
            os.fsync(written.fileno())
        with (folder / IDS).open("wb") as written:
            np.save(written, self.ids)
            written.flush()
            os.fsync(written.fileno())
        known = AnnFacts(
            nprobe=self.nprobe,
            rerank=self.rerank,
            n=len(self.ids),
            min_id=int(self.ids[0]) if len(self.ids) else 0,
            max_id=int(self.ids[-1]) if len(self.ids) else 0,
            nbytes=file.stat().st_size,
            sha256=digest,
            faiss=faiss.__version__,
            **facts,
        )
        fill(folder / META, json.dumps(asdict(known), indent=2).encode() + b"\n")
        return known

    def search(
        self, queries: Queries, k: int, *, selector: Any = None, nprobe: int | None = None
    ) -> tuple[FoundIds, FoundScores]:
        """Return about the `k` nearest items of each query, with the scores of the stored codes.

        Args:
            queries: L2-normalised.
            k: how many.
            selector: a faiss `IDSelector` of the item ids that may be found.
            nprobe: clusters to look at instead of the tuned number.
        """
        probes = max(1, min(nprobe or self.nprobe, self.nlist)) if self.nlist else 0
        if self._on_gpu is not None and selector is None and max(k, probes) <= MOST_ON_GPU:
            return self._on_gpu.search(queries, k, nprobe=probes or None)
        parameters = _parameters(self.index, probes, selector)
        scores, ids = self.index.search(np.ascontiguousarray(queries), k, params=parameters)
        return ids, scores

    @property
    def nlist(self) -> int:
        """Clusters of the inverted file; 0 without one."""
        ivf = load_faiss().try_extract_index_ivf(self.index)
        return int(ivf.nlist) if ivf is not None else 0


def read_facts(folder: Path) -> AnnFacts:
    """Read what a generation says of itself.

    Raises:
        OSError: there is no `meta.json`.
        ValueError: it is no JSON.
        TypeError: it has other keys than `AnnFacts`.
    """
    return AnnFacts(**json.loads((folder / META).read_bytes()))


def _parameters(index: Any, nprobe: int, selector: Any) -> Any:
    """Return the search parameters that fit the layers of a faiss index."""
    faiss = load_faiss()
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return faiss.SearchParametersPreTransform(index_params=_parameters(index.index, nprobe, selector))
    if isinstance(index, faiss.IndexIDMap):
        return _parameters(index.index, nprobe, selector)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=index.hnsw.efSearch, sel=selector)
    return faiss.SearchParameters(sel=selector)
