"""Searching clustered vectors beside other libraries, all in one run, at equal recall.

    python benchmarks/search_peers.py budget [--n 500000] [--memory 64000000]
    python benchmarks/search_peers.py speed [--n 1000000] [--memory 512000000]

`budget`: the automatic index beside the choice of autofaiss for the same memory. autofaiss 2.18 does not run
with faiss 1.15, so an environment of its own, named by --autofaiss, says which index it chooses: `pip install
--no-deps autofaiss embedding_reader fire termcolor pandas pyarrow fsspec tqdm numpy faiss-cpu==1.12.0`. It is
built here, and looks at as many clusters as autofaiss allows: those for which one query takes 10 ms. `speed`:
queries per second at the least setting whose recall@10 is 0.95 or more, beside faiss HNSW32 and usearch (`pip
install usearch`). The vectors are those of benchmarks/search.py, the queries are not in the index.
"""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

CHOOSE = (
    "import sys; from autofaiss.external.optimize import get_optimal_index_keys_v2 as choose;"
    "print(choose(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])[0])"
)
QUERY_MS = 10.0  # the time for one query up to which autofaiss looks at more clusters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("budget", "speed"))
    parser.add_argument("--n", type=int)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--memory", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--autofaiss", metavar="PYTHON", help="an interpreter that has autofaiss")
    parser.add_argument("--queries", type=int, default=1000)
    options = parser.parse_args()
    budget = options.what == "budget"
    options.n = options.n or (500_000 if budget else 1_000_000)
    options.memory = options.memory or (64_000_000 if budget else 512_000_000)
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
    measure(options, budget=budget)


def measure(options: argparse.Namespace, *, budget: bool) -> None:
    from search import clusters, fill
    from setting import describe_setting

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
            true, _ = Searcher(snapshot).search(queries, 10)
        with Store.open(directory) as store:
            facts = refresh(store, memory=options.memory)
        with Snapshot.open(directory) as snapshot:
            searcher = Searcher(snapshot)
            setting = f"{facts.factory}, nprobe {facts.nprobe}, rerank {facts.rerank}"
            rivals = [("dinokit", setting, facts.seconds, facts.nbytes, lambda q: searcher.search(q, 10)[0])]
            rivals += (
                beside_autofaiss(snapshot, options) if budget else beside_graphs(snapshot, queries, true)
            )
            compare(rivals, queries, true)


def compare(rivals, queries, true) -> None:
    """Print recall, queries per second and milliseconds of each, three rounds in turn, the best of each."""
    from dinov2kit import recall_at_k

    found = {name: search(queries) for name, _, _, _, search in rivals}
    batch = dict.fromkeys(found, 0.0)
    single = dict.fromkeys(found, 0.0)
    few = queries[:200]
    for _ in range(3):
        for name, _, _, _, search in rivals:
            started = time.perf_counter()
            search(queries)
            batch[name] = max(batch[name], len(queries) / (time.perf_counter() - started))
            started = time.perf_counter()
            for query in few:
                search(query[None])
            single[name] = max(single[name], len(few) / (time.perf_counter() - started))
    print("| | setting | built in | index | recall@10 | queries/s, all at once | queries/s, one by one |")
    print("|---|---|---|---|---|---|---|")
    for name, setting, seconds, nbytes, _ in rivals:
        recall = recall_at_k(found[name], true, 10)
        print(
            f"| {name} | `{setting}` | {seconds:.0f} s | {nbytes / 1e6:.0f} MB | {recall:.3f}"
            f" | {batch[name]:,.0f} | {single[name]:,.0f} |"
        )


def beside_autofaiss(snapshot, options):
    """Return the index that autofaiss chooses for the same memory; its ids are places, ours begin with 1."""
    import faiss
    import numpy as np

    if options.autofaiss is None:
        print("name an interpreter that has autofaiss with --autofaiss")
        return []
    memory = f"{options.memory // 10**6}MB"
    command = [options.autofaiss, "-c", CHOOSE, str(options.n), str(options.dim), memory]
    key = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    started = time.perf_counter()
    index = faiss.index_factory(options.dim, key, faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.extract_index_ivf(index)
    rows = np.concatenate([some for _, some in snapshot.blocks()])
    sample = np.sort(np.random.default_rng(0).choice(len(rows), min(len(rows), 64 * ivf.nlist), False))
    index.train(rows[sample].astype(np.float32))
    for start in range(0, len(rows), 65536):
        index.add(rows[start : start + 65536].astype(np.float32))
    seconds = time.perf_counter() - started
    queries = rows[sample[:20]].astype(np.float32)
    nprobe, nbytes = 1, len(faiss.serialize_index(index))
    while 2 * nprobe <= ivf.nlist:
        faiss.ParameterSpace().set_index_parameters(
            index, f"nprobe={2 * nprobe},quantizer_efSearch={4 * nprobe}"
        )
        begun = time.perf_counter()
        for query in queries:
            index.search(query[None], 10)
        if 1000 * (time.perf_counter() - begun) / len(queries) > QUERY_MS:
            break
        nprobe *= 2
    parameters = f"nprobe={nprobe},quantizer_efSearch={2 * nprobe}"
    faiss.ParameterSpace().set_index_parameters(index, parameters)
    return [("autofaiss", f"{key}, {parameters}", seconds, nbytes, lambda q: index.search(q, 10)[1] + 1)]


def beside_graphs(snapshot, queries, true):
    """Return HNSW of faiss and of usearch, each with the least effort that reaches a recall of 0.95."""
    import faiss
    import numpy as np

    rivals = []
    started = time.perf_counter()
    hnsw = faiss.IndexHNSWFlat(snapshot.dim, 32, faiss.METRIC_INNER_PRODUCT)
    for _, rows in snapshot.blocks():
        hnsw.add(rows.astype(np.float32))
    seconds = time.perf_counter() - started

    def search_hnsw(asked):
        return hnsw.search(asked, 10)[1] + 1

    effort = least_effort(lambda value: setattr(hnsw.hnsw, "efSearch", value), search_hnsw, queries, true)
    nbytes = 4 * snapshot.dim * hnsw.ntotal + 4 * hnsw.hnsw.neighbors.size()
    rivals.append(("faiss HNSW", f"HNSW32,Flat, efSearch {effort}", seconds, nbytes, search_hnsw))
    try:
        from usearch.index import Index
    except ImportError:
        print("usearch is not installed")
        return rivals
    started = time.perf_counter()
    graph = Index(ndim=snapshot.dim, metric="ip", dtype="f16")
    threads = faiss.omp_get_max_threads()
    for ids, rows in snapshot.blocks():
        graph.add(ids, rows, threads=threads)
    seconds = time.perf_counter() - started

    def search_graph(asked):
        return np.atleast_2d(graph.search(asked, 10, threads=threads).keys).astype(np.int64)

    effort = least_effort(
        lambda value: setattr(graph, "expansion_search", value), search_graph, queries, true
    )
    setting = f"f16, connectivity {graph.connectivity}, expansion_search {effort}"
    rivals.append(("usearch", setting, seconds, graph.memory_usage, search_graph))
    return rivals


def least_effort(set_effort, search, queries, true) -> int:
    """Set the least effort of a graph search that reaches a recall@10 of 0.95, and return it."""
    from dinov2kit import recall_at_k

    for effort in (10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024):
        set_effort(effort)
        if recall_at_k(search(queries), true, 10) >= 0.95:
            break
    return effort


if __name__ == "__main__":
    main()
