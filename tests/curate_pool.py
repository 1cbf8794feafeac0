"""Pools with known descriptors, for tests of curation; no pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from small_index import ROOT, Shot, content, stat

from dinov2kit import ModelIdentity
from dinov2kit.indexes.store import Store

MODEL = ModelIdentity("tiny", "ab" * 32, 4, "cls", {"resize": 256, "crop": 224})


def make_pool(
    directory: Path,
    rows: np.ndarray,
    *,
    sizes: Sequence[tuple[int, int]] | None = None,
    root: Path = ROOT,
    model: ModelIdentity = MODEL,
) -> Path:
    """Make an index whose item i + 1 has row i and is the photo `root`/i.jpg."""
    Store.create(directory, model)
    with Store.open(directory) as store:
        for place, row in enumerate(np.asarray(rows, np.float32)):
            width, height = sizes[place] if sizes else (640, 480)
            number = hash_of(root) + place
            shot = Shot(row, width=width, height=height)
            store.put(store.root_id(root), b"%d.jpg" % place, stat(number), content(number), shot)
        store.commit()
    return directory


def hash_of(root: Path) -> int:
    """Return a number that keeps the contents of different folders apart."""
    return sum(map(ord, str(root))) * 100_000


def blobs(count: int, each: int, *, dim: int = 4, spread: float = 0.02, seed: int = 0) -> np.ndarray:
    """Return `count` groups of `each` rows around directions that are far apart, group after group."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(count, dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = np.repeat(centres, each, axis=0) + spread * rng.normal(size=(count * each, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
