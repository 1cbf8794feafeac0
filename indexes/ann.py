"""Building the faiss index of a store: choose, train, fill, tune to a measured recall, put in use.

The descriptors of the store are the truth; what is built here only makes large collections fast. A collection
that is small enough to compare every row has no faiss index on disk at all.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from dinov2kit.errors import ArgumentError, StoreCorrupt, StoreError

from .faiss_door import gpu_count, load_faiss
from .generation import AnnFacts, Generation, read_facts
from .layout import Layout, move_durably, sync_folder, write_durably
from .plan import AnnPlan, default_memory, plan_ann
from .records import Watch
from .snapshot import Snapshot
from .store import Store
from .tune import RECALL_TARGET, tune

logger = logging.getLogger(__name__)

TAIL_ROWS, TAIL_SHARE = 50_000, 0.05  # items that the faiss index may lag behind


def refresh(
    store: Store,
    *,
    memory: int | None = None,
    factory: str | None = None,
    target: float = RECALL_TARGET,
    rebuild: bool = False,
    watch: Watch | None = None,
) -> AnnFacts | None:
    """Bring the faiss index of a store up to date where that is worth it, and put it in use.

    It may lag behind by 50,000 items or 5 %, whichever is more: what it does not know is searched exactly.
    Without new orders a later call keeps to the memory or the factory string of the earlier one.

    Args:
        store: with nothing uncommitted.
        memory: bytes that the index may take; a quarter of what is free when not given.
        factory: a faiss factory string instead of the automatic choice; "auto" returns to it.
        target: recall@10 to tune to.
        rebuild: train and fill it anew.
        watch: called with the stage of the work.

    Returns: what is in use now; None when the search is exact.

    Raises:
        ArgumentError: faiss does not know the factory string, or its index cannot leave out removed photos.
        StoreError: the index cannot be written; the former one stays in use.
    """
    watch = watch or (lambda *_: None)
    layout = store.layout
    folder = layout.read_current()
    present = _present(folder)
    if present is not None:
        memory = memory or present.memory
        factory = factory or (present.factory if present.kind == "custom" else None)
    factory = None if factory == "auto" else factory
    with Snapshot.open(layout.directory) as snapshot:
        asked = rebuild or (present is not None and _differs(present, snapshot, memory, factory))
        if folder and present and not asked and not _lags(folder, snapshot):
            return present
        plan = plan_ann(
            len(snapshot), snapshot.dim, memory or default_memory(), gpus=gpu_count(), factory=factory
        )
        if plan.kind == "exact" or not len(snapshot):
            if present is not None:
                layout.current.unlink()
                sync_folder(layout.directory)
            return None
        logger.info("faiss index %s: %s", plan.factory, plan.reason)
        started = time.time()
        generation, trained_n = _build(snapshot, plan, None if rebuild else present, watch)
        recall, ci95, asked_n = tune(generation, snapshot, target=target, watch=watch)
        facts = {
            "kind": plan.kind,
            "factory": factory or _with_lists(plan, generation.nlist),
            "nlist": generation.nlist,
            "recall": recall,
            "recall_ci95": ci95,
            "recall_queries": asked_n,
            "trained_n": trained_n,
            "seconds": round(time.time() - started, 1),
            "memory": memory,
        }
        return _put_in_use(layout, generation, facts)


def check_factory(dim: int, factory: str | None) -> None:
    """Refuse a factory string that faiss does not know, before any work.

    Raises:
        ArgumentError: faiss does not know it, or it does not fit the length of the descriptors.
    """
    if factory in (None, "auto"):
        return
    _make_index(dim, plan_ann(0, dim, 0, factory=factory).factory)


def _present(folder: Path | None) -> AnnFacts | None:
    """Return what the generation in use says of itself; None without one, or when it is damaged."""
    if folder is None:
        return None
    try:
        return read_facts(folder)
    except (OSError, ValueError, TypeError) as error:
        logger.warning("the faiss index %s cannot be used: %s", folder.name, error)
        return None


def _differs(present: AnnFacts, snapshot: Snapshot, memory: int | None, factory: str | None) -> bool:
    """Say whether the user now asks for something else than what is in use."""
    if factory is not None or present.kind == "custom":
        return factory != present.factory
    if memory == present.memory:
        return False
    plan = plan_ann(len(snapshot), snapshot.dim, memory or default_memory())
    return codes(plan.factory) != codes(present.factory)


def _lags(folder: Path, snapshot: Snapshot) -> bool:
    """Say whether too many items are missing from the faiss index, or dead in it, or it is damaged."""
    try:
        known = Generation.open(folder).ids
    except StoreCorrupt as error:
        logger.warning("%s; it is built anew", error.message)
        return True
    lag = len(np.setxor1d(known, snapshot.ids, assume_unique=True))
    return lag > max(TAIL_ROWS, TAIL_SHARE * len(snapshot))


def codes(factory: str) -> str:
    """Return a factory string without the number of clusters."""
    head, ivf, rest = factory.partition("IVF")
    return head + ivf + rest.lstrip("0123456789")


def _with_lists(plan: AnnPlan, nlist: int) -> str:
    """Return the factory string with the number of clusters that the index really has."""
    return plan.factory.replace(f"IVF{plan.nlist}", f"IVF{nlist}")


def _build(
    snapshot: Snapshot, plan: AnnPlan, present: AnnFacts | None, watch: Watch
) -> tuple[Generation, int]:
    """Return an index of all items, grown from the present one where that fits, and its `trained_n`."""
    n = len(snapshot)
    if (
        present is not None
        and codes(present.factory) == codes(plan.factory)
        and present.trained_n / 2 < n < present.trained_n * 2
    ):
        try:
            grown = Generation.open(snapshot.layout.read_current() or Path(), mapped=False)
            grown.rerank = plan.rerank
            return _grow(grown, snapshot, watch), present.trained_n
        except (StoreCorrupt, RuntimeError) as error:
            logger.warning("the faiss index is trained anew: %s", error)
    index = train_empty(snapshot, plan, watch)
    empty = Generation(index, np.zeros(0, np.int64), nprobe=1, rerank=plan.rerank)
    whole = _grow(empty, snapshot, watch)
    if plan.kind == "custom":
        _check_selectors(whole, snapshot)
    return whole, n


def train_empty(snapshot: Snapshot, plan: AnnPlan, watch: Watch) -> Any:
    """Return an empty faiss index whose clusters and codes fit a seeded sample of the items."""
    faiss = load_faiss()
    index = _make_index(snapshot.dim, plan.factory)
    try:
        ivf = faiss.try_extract_index_ivf(index)
        if ivf is not None and gpu_count():
            ivf.clustering_index = faiss.index_cpu_to_all_gpus(faiss.IndexFlatIP(ivf.d))
        watch("Training", 0, None)
        sample = np.random.default_rng(0).choice(len(snapshot), plan.train_rows, replace=False)
        index.train(snapshot.descriptors(snapshot.ids[np.sort(sample)]).astype(np.float32))
        if ivf is not None:
            ivf.clustering_index = None  # it may live on a GPU, and is never needed again
    except RuntimeError as error:
        raise ArgumentError(
            f"faiss cannot train {plan.factory!r} with {plan.train_rows:,} items: {_reason(error)}",
            hint="use another --factory, for instance IVF1024,SQ8, or leave it out",
        ) from error
    return index


def _make_index(dim: int, factory: str) -> Any:
    faiss = load_faiss()
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ArgumentError(
            f"faiss cannot make {factory!r} for descriptors of {dim} numbers: {_reason(error)}",
            hint="use another --factory, for instance IVF1024,SQ8 or HNSW32, or leave it out",
        ) from error


def _grow(generation: Generation, snapshot: Snapshot, watch: Watch) -> Generation:
    """Remove from an index what the snapshot does not have, and add what it does not know."""
    faiss, index = load_faiss(), generation.index
    dead = np.setdiff1d(generation.ids, snapshot.ids, assume_unique=True)
    if len(dead):
        index.remove_ids(faiss.IDSelectorBatch(dead))
    done = 0
    for ids, rows in snapshot.blocks():
        fresh = ~np.isin(ids, generation.ids, assume_unique=True)
        if fresh.any():
            index.add_with_ids(rows[fresh].astype(np.float32), ids[fresh])
        done += len(ids)
        watch("Building", done, len(snapshot))
    generation.ids = snapshot.ids
    return generation


def _check_selectors(generation: Generation, snapshot: Snapshot) -> None:
    """Refuse a kind of index that cannot leave out items: removed photos would come back.

    Raises:
        ArgumentError: it finds what it must not find, or refuses to search at all.
    """
    allowed = snapshot.ids[::2]
    queries = snapshot.descriptors(snapshot.ids[:16]).astype(np.float32)
    try:
        found, _ = generation.search(
            queries, 5, selector=load_faiss().IDSelectorBatch(allowed), nprobe=generation.nlist or None
        )
        wrong = "it finds what it was told to leave out" * bool(np.setdiff1d(found, [*allowed, -1]).size)
    except RuntimeError as error:
        wrong = _reason(error)
    if wrong:
        raise ArgumentError(
            f"this kind of faiss index cannot leave out removed photos: {wrong}",
            hint="use IVF…, HNSW… or SQ… alone, for instance --factory IVF1024,PQ48 or HNSW32",
        )


def _put_in_use(layout: Layout, generation: Generation, facts: dict[str, Any]) -> AnnFacts:
    """Write a generation beside the others and let `CURRENT` name it."""
    numbers = [int(folder.name.removeprefix("gen-")) for folder in layout.ann.glob("gen-*")]
    target = layout.generation(max(numbers, default=0) + 1)
    try:
        known = generation.save(layout.tmp / target.name, facts)
        move_durably(layout.tmp / target.name, target)
        write_durably(layout.current, f"{target.name}\n".encode())
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"the faiss index cannot be written in {layout.directory}: {_reason(error)}",
            hint="all descriptors are stored and found; free some space and run: dinokit index --rebuild",
        ) from error
    return known


def _reason(error: Exception) -> str:
    """Return what faiss says without where in its sources it says so."""
    return str(error).rpartition("Error: ")[2].strip() or str(error)
