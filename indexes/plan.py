"""Which faiss index suits a collection: a pure function of its size and of the memory allowed."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EXACT_VALUES = 4e8  # n * dim up to which every row is compared: about 50 ms a query on one core
ID_BYTES = 8
TRAIN_PER_LIST = 64  # rows per cluster that k-means sees
CUSTOM_TRAIN_ROWS, CUSTOM_RERANK = 2**18, 4  # for the codes of a factory string that is not ours
MAX_LISTS_CPU, MAX_LISTS_GPU = 16384, 65536  # k-means beyond takes over half an hour


@dataclass(frozen=True)
class AnnPlan:
    """How to build the faiss index of a collection.

    Attributes:
        kind: "exact" compares every row, "ivf" only those of the nearest clusters, "custom" is a factory
            string of the user.
        factory: faiss factory string.
        nlist: clusters of an inverted file; 0 without one.
        rerank: how many candidates per wanted hit are scored again from the store; 1 is none.
        train_rows: rows that k-means sees.
        nbytes: expected size of the index in memory.
        reason: why this one, in one sentence.
    """

    kind: Literal["exact", "ivf", "custom"]
    factory: str
    nlist: int
    rerank: int
    train_rows: int
    nbytes: int
    reason: str


def plan_ann(n: int, dim: int, memory: int, *, gpus: int = 0, factory: str | None = None) -> AnnPlan:
    """Choose the index for `n` descriptors of length `dim`.

    Exact search up to n * dim = 4e8 if it fits `memory`; else the first that fits of IVF with fp16 codes,
    8-bit codes, 1-bit RaBitQ codes. The last two are scored again from the store.

    Args:
        n: descriptors.
        dim: length of a descriptor.
        memory: bytes that the index may take.
        gpus: GPUs at hand; they allow more clusters.
        factory: a faiss factory string to take instead.
    """
    nlist = _lists(n, gpus)
    trained = min(n, TRAIN_PER_LIST * nlist)
    size, budget = f"{n:,} x {dim}", _megabytes(memory)
    if factory is not None:
        return _as_asked(factory, n)
    exact = n * (2 * dim + ID_BYTES)
    if n * dim <= EXACT_VALUES and exact <= memory:
        reason = f"{size} is small enough to compare every row, and {_megabytes(exact)} fit {budget}"
        return AnnPlan("exact", "SQfp16", 0, 1, 0, exact, reason)
    lists = nlist * (4 * dim + ID_BYTES)
    candidates = (
        (f"IVF{nlist},SQfp16", 1, n * (2 * dim + ID_BYTES) + lists),
        (f"IVF{nlist},SQ8", 4, n * (dim + ID_BYTES) + lists),
        (f"RR{dim},IVF{nlist},RaBitQ", 20, n * (math.ceil(dim / 8) + 8 + ID_BYTES) + lists + 4 * dim * dim),
    )
    for name, rerank, nbytes in candidates:
        if nbytes <= memory:
            reason = f"{size} in {_megabytes(nbytes)}: the most exact that fits {budget}"
            return AnnPlan("ivf", name, nlist, rerank, trained, nbytes, reason)
    name, rerank, nbytes = candidates[-1]
    reason = f"{size} needs at least {_megabytes(nbytes)}, more than {budget}; it is mapped from disk"
    return AnnPlan("ivf", name, nlist, rerank, trained, nbytes, reason)


def available_memory() -> int:
    """Return the bytes of memory that this process may still take, its control group considered."""
    free = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")))
    group = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            free.append(int((group / limit).read_text()) - int((group / used).read_text()))
    return max(0, min(free))


def default_memory() -> int:
    """Return the bytes that an index may take when the user says nothing: a quarter of what is free."""
    return available_memory() // 4


def _lists(n: int, gpus: int) -> int:
    """Return the number of clusters: about four times the root of n, a power of two.

    Source: faiss wiki, "Guidelines to choose an index".
    """
    wanted = 1 << max(0, round(math.log2(4 * math.sqrt(max(n, 1)))))
    return max(1, min(wanted, n // 39, MAX_LISTS_GPU if gpus else MAX_LISTS_CPU))


def _as_asked(factory: str, n: int) -> AnnPlan:
    """Return the plan of a factory string; only inverted files have ids of their own."""
    lists = re.search(r"IVF(\d+)", factory)
    nlist = int(lists[1]) if lists else 0
    name = factory if nlist or factory.startswith("IDMap") else f"IDMap,{factory}"
    trained = min(n, max(CUSTOM_TRAIN_ROWS, TRAIN_PER_LIST * nlist))
    return AnnPlan("custom", name, nlist, CUSTOM_RERANK, trained, 0, "as asked")


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.0f} MB"
