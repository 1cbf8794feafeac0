"""All pairs of alike items: seconds, memory, planted pairs found, and a run that is killed and goes on.

    python benchmarks/allpairs.py [--n 200000] [--dim 384] [--memory 1000000000] [--exact]

The vectors are clusters within clusters with noise (`search.py`); 1 % of them have a partner planted at a
cosine of 0.99, 0.96 or 0.90, as edited copies of photos have. Each run is a process of its own, so that its
memory can be told.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COSINES, MIN_SCORE = (0.99, 0.96, 0.90), 0.88


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--memory", type=int, default=10**9)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        find(options, *map(Path, options.child))
    else:
        measure(options)


def measure(options: argparse.Namespace) -> None:
    import numpy as np
    from setting import describe_setting

    from dinov2kit.indexes.graph import expect_cost

    print(describe_setting(), f"; {options.n:,} x {options.dim}")
    print("expected:", expect_cost(options.n, options.dim, min_score=MIN_SCORE).text)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        planted = fill(folder / "ix", options.n, options.dim)
        straight = run(options, folder / "ix", folder / "straight", folder / "straight.npz").communicate()[0]
        print("straight run:", straight.strip())
        edges = np.load(folder / "straight.npz")
        keys = edges["source"] * 2**32 + edges["target"]
        for cosine, pairs in planted.items():
            share = np.isin(pairs[:, 0] * 2**32 + pairs[:, 1], keys).mean()
            print(f"planted at {cosine:.2f}: {share:.4f} of {len(pairs):,} pairs found")
        print(f"pairs in all: {len(keys):,}")
        blocks = len(list((folder / "straight").glob("*/block-*.npz")))
        child = run(options, folder / "ix", folder / "killed", folder / "killed.npz")
        while len(list((folder / "killed").glob("*/block-*.npz"))) < blocks // 2 and child.poll() is None:
            time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
        done = len(list((folder / "killed").glob("*/block-*.npz")))
        said = run(options, folder / "ix", folder / "killed", folder / "killed.npz").communicate()[0]
        print(f"killed with {done} of {blocks} blocks done, then resumed:", said.strip())
        again = np.load(folder / "killed.npz")
        same = all(np.array_equal(edges[key], again[key]) for key in ("source", "target", "score"))
        print("the resumed run", "equals" if same else "DIFFERS FROM", "the straight run")


def run(options: argparse.Namespace, index: Path, work: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, "--memory", str(options.memory), *["--exact"] * options.exact]
    command += ["--child", str(index), str(work), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def find(options: argparse.Namespace, index: Path, work: Path, out: Path) -> None:
    """Find all pairs, write them, and say how long it took and how much memory."""
    import numpy as np

    from dinov2kit.indexes.graph import all_pairs
    from dinov2kit.indexes.snapshot import Snapshot

    started = time.perf_counter()
    with Snapshot.open(index) as snapshot:
        edges = all_pairs(
            snapshot, min_score=MIN_SCORE, exact=options.exact or None, memory=options.memory, work=work
        )
    seconds = time.perf_counter() - started
    np.savez(out, source=edges.source, target=edges.target, score=edges.score)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{seconds:.1f} s, {time.process_time():.1f} s of all cores, peak {peak / 1e6:.0f} MB")


def fill(directory: Path, n: int, dim: int):
    """Write an index with planted pairs, the item of row i being i + 1; return the pairs of each cosine."""
    from types import SimpleNamespace

    import numpy as np
    from search import clusters

    from dinov2kit import ModelIdentity
    from dinov2kit.indexes.records import FileStat
    from dinov2kit.indexes.store import Store

    rng = np.random.default_rng(7)
    copies, step = n // 100, 65536
    originals = np.sort(rng.choice(n - copies, copies, replace=False))
    cosines = np.array(COSINES)[np.arange(copies) % len(COSINES)]
    kept = []
    Store.create(directory, ModelIdentity("made-up", "0" * 64, dim, "cls", {}))
    with Store.open(directory) as store:
        root, number = store.root_id(directory), 0
        for start in range(0, n, step):
            rows = clusters(min(step, n - copies - start), dim, seed=start) if start < n - copies else None
            if rows is not None:
                kept.append(rows[originals[(originals >= start) & (originals < start + step)] - start])
            for row in [] if rows is None else rows:
                put(store, root, number, row, SimpleNamespace, FileStat)
                number += 1
            store.commit()
        old = np.concatenate(kept)
        noise = rng.normal(size=old.shape)
        noise -= (noise * old).sum(axis=1, keepdims=True) * old
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        for row in cosines[:, None] * old + np.sqrt(1 - cosines**2)[:, None] * noise:
            put(store, root, number, row.astype(np.float32), SimpleNamespace, FileStat)
            number += 1
        store.commit()
    pairs = np.stack([originals + 1, np.arange(n - copies, n) + 1], axis=1)
    return {cosine: pairs[cosines == cosine] for cosine in COSINES}


def put(store, root, number, row, described, stat) -> None:
    photo = described(descriptor=row, width=4, height=3, orientation=1, taken_at=None)
    store.put(root, b"%d.jpg" % number, stat(1, 1, number), number.to_bytes(16, "big"), photo)


if __name__ == "__main__":
    main()
