"""Small indexes for tests: known descriptors, no encoder, no pictures; and what may befall them."""

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from dinov2kit import ModelIdentity
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.records import FileStat
from dinov2kit.indexes.shards import Shard, write_shard
from dinov2kit.indexes.snapshot import Snapshot
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


def contents(directory: Path) -> dict[bytes, tuple[int, bytes, bytes]]:
    """Return path below ROOT -> (id, digest, descriptor) of the live items, as a reader sees them."""
    with Snapshot.open(directory) as snapshot:
        photos, rows = snapshot.photos(snapshot.ids), snapshot.descriptors(snapshot.ids)
        prefix = os.fsencode(ROOT) + b"/"
        return {
            os.fsencode(photo.path).removeprefix(prefix): (photo.id, photo.digest, row.tobytes())
            for photo, row in zip(photos, rows, strict=True)
        }


def expected(*seeds: int) -> dict[bytes, tuple[int, bytes, bytes]]:
    """Return what `contents` says of an index by `make_index` whose live items are these."""
    return {b"%d.jpg" % seed: (seed, content(seed), stored(seed).tobytes()) for seed in seeds}


def remove(store: Store, *seeds: int) -> None:
    """Remove photos that `make_index` made."""
    files = store.files(store.root_id(ROOT))
    store.remove([files[b"%d.jpg" % seed].id for seed in seeds])


def flip_bit(path: Path, dataset: str = "emb", *, at: float = 0.5) -> None:
    """Flip one bit in the middle of a dataset of a shard, as a bad disk does."""
    with h5py.File(path, "r", locking=False) as file:
        place = file[dataset].id.get_offset() + int(file[dataset].id.get_storage_size() * at)
    whole = bytearray(path.read_bytes())
    whole[place] ^= 0x01
    path.chmod(0o644)
    path.write_bytes(whole)


def make_damageable(directory: Path) -> Layout:
    """Make an index of six shards, 3.jpg changed in the fourth; beside it lie another index and a backup."""
    make_index(directory.with_name("other"), 15, per_shard=5)
    layout = Layout(make_index(directory, 15, per_shard=5))
    shutil.copy(layout.manifest, directory.with_name("backup.sqlite"))
    with Store.open(directory) as store:
        for relpath, seed in (("3.jpg", 103), ("17.jpg", 17), ("18.jpg", 18)):
            put(store, relpath, seed)
            store.commit()
    generation = layout.generation(1)
    generation.mkdir(parents=True)
    (generation / "index.faiss").write_bytes(b"faiss")
    facts = {"n": 15, "max_id": 15, "sha256": hashlib.sha256(b"faiss").hexdigest()}
    (generation / "meta.json").write_text(json.dumps(facts))
    layout.current.write_text("gen-000001\n")
    return layout


def sql(layout: Layout, *statements: str) -> None:
    """Change a manifest behind its back."""
    with closing(sqlite3.connect(layout.manifest, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


def rewrite_shard(layout: Layout, number: int, *, scale: float = 1.0, **stamp: object) -> None:
    """Write a shard again with other descriptors or another stamp, and right checksums."""
    shard = Shard(layout.shard(number))
    rows, descriptors = shard.rows(), (np.array(shard.descriptors) * np.float16(scale)).astype(np.float16)
    checksum = write_shard(
        shard.path, rows, descriptors, stamp=replace(shard.stamp, **stamp), tmp=layout.directory
    )
    sql(layout, f"UPDATE shards SET checksum = '{checksum}' WHERE number = {number}")


def _write(path: Path, content: bytes) -> None:
    if path.exists():
        path.chmod(0o644)
    path.write_bytes(content)


def _cut(path: Path) -> None:
    _write(path, path.read_bytes()[: path.stat().st_size // 2])


@dataclass(frozen=True)
class Damage:
    """Something that may befall an index made by `make_damageable`, and what `verify` says of it."""

    befall: Callable[[Layout], object]
    check: str
    said: str
    deep: bool = False  # only found by reading everything
    lost: tuple[int, ...] = ()  # shards whose descriptors are gone


_OTHER = ModelIdentity("tiny", "cd" * 32, DIM, "cls", {})
_S, _R, _LOST = r"shard-00000002\.h5", "manifest.sqlite", (2,)
DAMAGES = {
    "bit of a descriptor": Damage(lambda ix: flip_bit(ix.shard(2)), "checksums", _S, True, _LOST),
    "bit of a path": Damage(lambda ix: flip_bit(ix.shard(2), "paths"), "checksums", _S, True, _LOST),
    "bit of a hash": Damage(lambda ix: flip_bit(ix.shard(2), "hash"), "checksums", _S, True, _LOST),
    "cut shard": Damage(lambda ix: _cut(ix.shard(2)), "shards", f"{_S} is damaged", lost=_LOST),
    "empty shard": Damage(lambda ix: _write(ix.shard(2), b""), "shards", f"{_S} is damaged", lost=_LOST),
    "no shard": Damage(lambda ix: ix.shard(2).unlink(), "shards", f"{_S} is damaged", lost=_LOST),
    "garbage for a shard": Damage(
        lambda ix: _write(ix.shard(2), b"\x89HDF\r\n" * 999), "shards", f"{_S} is damaged", lost=_LOST
    ),
    "shard of another index": Damage(
        lambda ix: rewrite_shard(ix, 2, uuid="cafe"), "shards", f"{_S} belongs to another index", lost=_LOST
    ),
    "shard of another model": Damage(
        lambda ix: rewrite_shard(ix, 2, model=_OTHER), "shards", f"{_S} belongs to .* model", lost=_LOST
    ),
    "shard copied over another": Damage(
        lambda ix: _write(ix.shard(2), ix.shard(1).read_bytes()), "shards", f"{_S} is not the one", lost=_LOST
    ),
    "shard that nobody knows": Damage(
        lambda ix: (
            sql(ix, "UPDATE meta SET value = 12 WHERE key = 'next_shard'")
            or shutil.copy(ix.directory.with_name("other") / "features/000/shard-00000001.h5", ix.shard(9))
        ),
        "folder",
        r"does not know shard-00000009\.h5",
    ),
    "long descriptors": Damage(lambda ix: rewrite_shard(ix, 2, scale=2.0), "descriptors", f"{_S}: row 0 has"),
    "zero descriptors": Damage(lambda ix: rewrite_shard(ix, 2, scale=0.0), "descriptors", f"{_S}: row 0 has"),
    "no manifest": Damage(lambda ix: ix.manifest.unlink(), "manifest", f"{_R} .*it is missing"),
    "empty manifest": Damage(lambda ix: _write(ix.manifest, b""), "manifest", f"{_R} .*no such table"),
    "garbage manifest": Damage(
        lambda ix: _write(ix.manifest, b"no database " * 999), "manifest", f"{_R} .*not a database"
    ),
    "cut manifest": Damage(lambda ix: _cut(ix.manifest), "manifest", "."),
    "old manifest": Damage(
        lambda ix: shutil.copy(ix.directory.with_name("backup.sqlite"), ix.manifest),
        "folder",
        r"does not know shard-00000005\.h5; .*shard-00000006\.h5",
    ),
    "manifest of another index": Damage(
        lambda ix: shutil.copy(ix.directory.with_name("other") / _R, ix.manifest),
        "manifest",
        f"{_R} .*belongs to another index",
    ),
    "items forgotten": Damage(lambda ix: sql(ix, "DELETE FROM items WHERE id = 7"), "rows", _S),
    "rows mixed up": Damage(
        lambda ix: sql(ix, "UPDATE items SET row = 1 - row WHERE shard = 2 AND row < 2"), "rows", _S
    ),
    "files forgotten": Damage(
        lambda ix: sql(ix, "DELETE FROM files WHERE relpath = x'372e6a7067'"),
        "files",
        "1 live items have no file",
    ),
    "tombstones forgotten": Damage(
        lambda ix: sql(ix, "UPDATE items SET deleted_at = NULL"), "files", "1 live items have no file"
    ),
    "living buried": Damage(
        lambda ix: sql(ix, "UPDATE items SET deleted_at = 1 WHERE id = 7"),
        "files",
        "1 files have no live item",
    ),
    "counter of ids too low": Damage(
        lambda ix: sql(ix, "UPDATE meta SET value = 9 WHERE key = 'next_id'"), "ids", "id 18 is above"
    ),
    "counter of shards gone": Damage(
        lambda ix: sql(ix, "DELETE FROM meta WHERE key = 'next_shard'"), "manifest", "next_shard"
    ),
}
