"""Searching clustered vectors: exact search, the automatic faiss index under a memory limit, and plain faiss.

    python benchmarks/search.py [--n 500000] [--dim 384] [--memory 64000000] [--threads 1]

The vectors are clusters within clusters with noise, harder than most photo collections; the queries are drawn
from the same clusters and are not in the index. Recall is against the exact search. Random vectors without
clusters are left out: no index of this kind finds their neighbours, and photos do not look like them.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=500_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--memory", type=int, default=64_000_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--queries", type=int, default=200)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    measure(options)


def measure(options: argparse.Namespace) -> None:
    from setting import describe_setting

    from dinov2kit import recall_at_k
    from dinov2kit.indexes.ann import refresh
    from dinov2kit.indexes.search import Searcher
    from dinov2kit.indexes.snapshot import Snapshot
    from dinov2kit.indexes.store import Store

    print(describe_setting(), f"; {options.threads} threads, {options.n:,} x {options.dim}")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "ix"
        fill(directory, options.n, options.dim)
        queries = clusters(options.queries, options.dim, seed=10**9)
        with Snapshot.open(directory) as snapshot:
            searcher = Searcher(snapshot)
            started = time.perf_counter()
            searcher.search(queries[:1], 10)
            print(f"exact, first query (reads the store): {1000 * (time.perf_counter() - started):.0f} ms")
            true, milliseconds = timed(searcher, queries)
            print(f"exact, one query, warm: {milliseconds:.1f} ms, {megabytes(2 * options.n * options.dim)}")
            started = time.perf_counter()
            searcher.search(queries, 10)
            milliseconds = 1000 * (time.perf_counter() - started) / len(queries)
            print(f"exact, {len(queries)} queries at once: {milliseconds:.1f} ms each")
            milliseconds = time_flat(snapshot, queries[:50])
            size = megabytes(4 * options.n * options.dim)
            print(f"faiss IndexFlatIP, one query: {milliseconds:.1f} ms, {size}")
        with Store.open(directory) as store:
            facts = refresh(store, memory=options.memory)
        print(
            f"under {megabytes(options.memory)}: {facts.factory}, {megabytes(facts.nbytes)},"
            f" nprobe {facts.nprobe}, rerank {facts.rerank}, built in {facts.seconds:.0f} s;"
            f" recall@10 {facts.recall:.3f} +- {facts.recall_ci95:.3f} on its own items"
        )
        with Snapshot.open(directory) as snapshot:
            searcher = Searcher(snapshot)
            searcher.search(queries[:1], 10)
            found, milliseconds = timed(searcher, queries)
        recall = recall_at_k(found, true, 10)
        print(f"that index, one query, warm: {milliseconds:.2f} ms, recall@10 {recall:.3f} on new queries")


def megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f} MB"


def time_flat(snapshot, queries):
    """Return milliseconds per query of faiss with float32 vectors, one query at a time."""
    import faiss
    import numpy as np

    flat = faiss.IndexFlatIP(snapshot.dim)
    for _, rows in snapshot.blocks():
        flat.add(rows.astype(np.float32))
    flat.search(queries[:1], 10)
    started = time.perf_counter()
    for query in queries:
        flat.search(query[None], 10)
    return 1000 * (time.perf_counter() - started) / len(queries)


def clusters(count: int, dim: int, *, seed: int):
    """Return unit vectors: 300 clusters of about 60 smaller ones, then noise."""
    import numpy as np

    base = np.random.default_rng(0)
    coarse = base.normal(size=(300, dim)).astype(np.float32)
    fine = coarse[base.integers(0, 300, 20_000)] + 0.7 * base.normal(size=(20_000, dim)).astype(np.float32)
    rng = np.random.default_rng(seed)
    rows = fine[rng.integers(0, len(fine), count)] + 0.9 * rng.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def fill(directory: Path, n: int, dim: int) -> None:
    """Write an index of made-up descriptors, as `dinokit index` would."""
    from types import SimpleNamespace

    from dinov2kit import ModelIdentity
    from dinov2kit.indexes.records import FileStat
    from dinov2kit.indexes.store import Store

    Store.create(directory, ModelIdentity("made-up", "0" * 64, dim, "cls", {}))
    with Store.open(directory) as store:
        root = store.root_id(directory)
        for start in range(0, n, 65536):
            for number, row in enumerate(clusters(min(65536, n - start), dim, seed=start), start):
                described = SimpleNamespace(descriptor=row, width=4, height=3, orientation=1, taken_at=None)
                store.put(
                    root, b"%d.jpg" % number, FileStat(1, 1, number), number.to_bytes(16, "big"), described
                )
            store.commit()


def timed(searcher, queries):
    """Return the ids found one query at a time, and milliseconds per query."""
    import numpy as np

    started = time.perf_counter()
    found = [searcher.search(query[None], 10)[0] for query in queries]
    return np.concatenate(found), 1000 * (time.perf_counter() - started) / len(queries)


if __name__ == "__main__":
    main()
