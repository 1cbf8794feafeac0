"""Small indexes for tests: known descriptors, known files, no encoder and no pictures."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinov2kit import ModelIdentity
from dinov2kit.indexes.records import FileStat
from dinov2kit.indexes.store import Store

DIM = 8
MODEL = ModelIdentity("tiny", "ab" * 32, DIM, "cls", {"resize": 256, "crop": 224})
ROOT = Path("/photos")  # need not exist: the store opens no picture


@dataclass(frozen=True)
class Shot:
    """A description as the pipeline gives it."""

    descriptor: np.ndarray | None
    width: int = 640
    height: int = 480
    orientation: int = 1
    taken_at: str | None = None


def content(seed: int) -> bytes:
    """Return the digest of a made-up file."""
    return hashlib.blake2b(str(seed).encode(), digest_size=16).digest()


def direction(seed: int, dim: int = DIM) -> np.ndarray:
    """Return a unit descriptor that only depends on the seed."""
    row = np.random.default_rng(seed).normal(size=dim).astype(np.float32)
    return row / np.linalg.norm(row)


def stored(seed: int) -> np.ndarray:
    """Return the descriptor as a store keeps it."""
    row = direction(seed)
    return (row / np.linalg.norm(row.astype(np.float32))).astype(np.float16)


def stat(seed: int = 1) -> FileStat:
    """Return a stat that only depends on the seed."""
    return FileStat(size=1000 + seed, mtime_ns=1_600_000_000_000_000_000 + seed, inode=seed)


def put(store: Store, relpath: str | bytes, seed: int, **facts: object) -> int:
    """Store a made-up photo below ROOT."""
    name = relpath if isinstance(relpath, bytes) else relpath.encode()
    shot = Shot(direction(seed), **facts)
    return store.put(store.root_id(ROOT), name, stat(seed), content(seed), shot)


def make_index(directory: Path, count: int = 0, *, per_shard: int = 1000, shard_rows: int = 65536) -> Path:
    """Make an index of `count` photos: item i is photo i.jpg made from seed i."""
    Store.create(directory, MODEL, shard_rows=shard_rows)
    with Store.open(directory) as store:
        for seed in range(1, count + 1):
            put(store, f"{seed}.jpg", seed)
            if store.pending == per_shard:
                store.commit()
        store.commit()
    return directory
