"""The SQLite manifest: which files are known, which item of which shard row describes them, what happened.

Writers hold one open transaction from commit to commit; in WAL mode readers see the last commit meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from dinov2kit.errors import StoreCorrupt

from .layout import SCHEMA, Card, Layout, check_schema
from .records import FileRecord, FileStat, Root, Row

T = TypeVar("T")

TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE roots (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, fs_id INTEGER NOT NULL);
CREATE TABLE files (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    root_id INTEGER NOT NULL REFERENCES roots(id), relpath BLOB NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, inode INTEGER NOT NULL, hash BLOB,
    status TEXT NOT NULL, error TEXT, item_id INTEGER,
    width INTEGER, height INTEGER, orientation INTEGER, taken_at TEXT,
    UNIQUE (root_id, relpath)
);
CREATE INDEX files_by_hash ON files(hash) WHERE item_id IS NOT NULL;
CREATE TABLE items (
    id INTEGER PRIMARY KEY, file_id INTEGER NOT NULL, shard INTEGER NOT NULL, row INTEGER NOT NULL,
    deleted_at REAL
);
CREATE INDEX items_dead ON items(id) WHERE deleted_at IS NOT NULL;
CREATE INDEX items_by_shard ON items(shard);
CREATE TABLE shards (
    number INTEGER PRIMARY KEY, n INTEGER NOT NULL, bytes INTEGER NOT NULL, checksum TEXT NOT NULL,
    retired_at REAL
);
CREATE TABLE runs (id INTEGER PRIMARY KEY, started REAL NOT NULL, ended REAL NOT NULL, summary TEXT NOT NULL);
"""


def create_manifest(path: Path, uuid: str, schema: int = SCHEMA) -> None:
    """Make an empty manifest at a path where there is none."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {schema}; COMMIT;")
        set_meta(db, "uuid", uuid)
        set_meta(db, "next_id", 1)
        set_meta(db, "next_shard", 1)
    finally:
        db.close()


def open_for_writing(layout: Layout, uuid: str) -> sqlite3.Connection:
    """Open the manifest for the one writer, outside any transaction.

    Raises:
        StoreTooNew: a newer version wrote it.
        StoreCorrupt: it is missing, damaged or of another index.
    """
    if not layout.manifest.is_file():
        raise _corrupt(layout, "it is missing")
    db = sqlite3.connect(layout.manifest, isolation_level=None, timeout=60.0, check_same_thread=False)
    try:
        _check(db, layout, uuid)
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def open_for_reading(layout: Layout, uuid: str) -> sqlite3.Connection:
    """Open the manifest read-only; also where the medium itself cannot be written.

    Raises:
        StoreTooNew: a newer version wrote it.
        StoreCorrupt: it is missing, damaged or of another index.
    """
    if not layout.manifest.is_file():
        raise _corrupt(layout, "it is missing")
    address = layout.manifest.absolute().as_uri()
    for mode in ("mode=ro", "mode=ro&immutable=1"):  # without its -shm file WAL needs a writable folder
        db = sqlite3.connect(
            f"{address}?{mode}", uri=True, isolation_level=None, timeout=60.0, check_same_thread=False
        )
        try:
            _check(db, layout, uuid)
        except sqlite3.OperationalError as error:
            db.close()
            frozen = "unable to open" in str(error) or "readonly" in str(error)
            if frozen and mode == "mode=ro" and not layout.manifest.with_name("manifest.sqlite-wal").exists():
                continue
            raise _corrupt(layout, str(error)) from error
        except BaseException:
            db.close()
            raise
        return db
    raise AssertionError("the second mode returns or raises")


@contextmanager
def damage_named(layout: Layout) -> Iterator[None]:
    """Turn what SQLite says of a damaged file into the error of an index.

    Raises:
        StoreCorrupt: the block met a damaged page, a missing table, or a manifest of something else.
    """
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _corrupt(layout, str(error)) from error


def meta(db: sqlite3.Connection, key: str) -> int:
    """Read a counter."""
    found = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if found is None:
        raise sqlite3.DatabaseError(f"the counter {key} is missing")
    return int(found[0])


def set_meta(db: sqlite3.Connection, key: str, value: int | str) -> None:
    """Write a counter or a name."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def signed(number: int) -> int:
    """Return a 64-bit inode or device number as SQLite can keep it."""
    return number - 2**64 if number >= 2**63 else number


def unsigned(number: int) -> int:
    """Undo `signed`."""
    return number + 2**64 if number < 0 else number


def chunks(items: Iterable[T], size: int = 500) -> Iterator[list[T]]:
    """Cut a list into pieces that fit one SQL statement."""
    rest = iter(items)
    while piece := list(islice(rest, size)):
        yield piece


def marks(items: list[T]) -> str:
    """Return the placeholders for a list of bound values."""
    return "(" + ",".join("?" * len(items)) + ")"


def place(root: bytes, relpath: bytes) -> Path:
    """Return the absolute path of a file; bytes that are no text survive."""
    return Path(os.fsdecode(root)) / os.fsdecode(relpath)


def read_roots(db: sqlite3.Connection) -> list[Root]:
    """Return the scanned folders."""
    found = db.execute("SELECT id, path, fs_id FROM roots ORDER BY id")
    return [Root(number, Path(os.fsdecode(path)), unsigned(fs_id)) for number, path, fs_id in found]


def write_root(db: sqlite3.Connection, path: Path) -> int:
    """Return the number of a scanned folder; the first time, note it and the device it is on."""
    name = os.fsencode(path)
    found = db.execute("SELECT id FROM roots WHERE path = ?", (name,)).fetchone()
    if found:
        return int(found[0])
    device = path.stat().st_dev if path.exists() else 0
    made = db.execute("INSERT INTO roots (path, fs_id) VALUES (?, ?)", (name, signed(device)))
    return int(made.lastrowid or 0)


def read_files(db: sqlite3.Connection, root_id: int) -> dict[bytes, FileRecord]:
    """Return the files below a root by relative path, in its order."""
    found = db.execute(
        "SELECT id, relpath, size, mtime_ns, inode, hash, status, error, item_id FROM files"
        " WHERE root_id = ? ORDER BY relpath",
        (root_id,),
    )
    return {
        relpath: FileRecord(number, relpath, size, mtime_ns, unsigned(inode), digest, status, error, item)
        for number, relpath, size, mtime_ns, inode, digest, status, error, item in found
    }


def find_live(db: sqlite3.Connection, digest: bytes) -> tuple[Any, ...] | None:
    """Find the first live item with a content; return what `Known` takes after the descriptor, shard, row."""
    found: tuple[Any, ...] | None = db.execute(
        "SELECT width, height, orientation, taken_at, files.id, items.id, shard, row"
        " FROM files JOIN items ON items.id = files.item_id WHERE hash = ? ORDER BY items.id LIMIT 1",
        (digest,),
    ).fetchone()
    return found


def write_file(
    db: sqlite3.Connection,
    root_id: int,
    relpath: bytes,
    stat: FileStat,
    digest: bytes | None,
    *,
    error: str | None,
    item: int | None,
    facts: Sequence[object],
) -> int:
    """Insert or overwrite the record of a path, tombstone the item it had, and return its id.

    Args:
        db: the manifest, inside a transaction.
        root_id: the scanned folder.
        relpath: the path below it.
        stat: how the file looked.
        digest: of its content, when it could be read.
        error: why it has no item, or None.
        item: its item, or None.
        facts: width, height, orientation, taken_at.
    """
    old = db.execute(
        "SELECT id, item_id FROM files WHERE root_id = ? AND relpath = ?", (root_id, relpath)
    ).fetchone()
    if old and old[1] is not None:
        db.execute("UPDATE items SET deleted_at = ? WHERE id = ?", (time.time(), old[1]))
    known = (old[0] if old else None, root_id, relpath, stat.size, stat.mtime_ns, signed(stat.inode), digest)
    made = db.execute(
        "INSERT OR REPLACE INTO files (id, root_id, relpath, size, mtime_ns, inode, hash, status, error,"
        " item_id, width, height, orientation, taken_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*known, "ok" if error is None else "error", error, item, *facts),
    )
    return int(made.lastrowid or 0)


def remove_files(db: sqlite3.Connection, file_ids: Iterable[int]) -> None:
    """Forget files and tombstone their items."""
    for piece in chunks(file_ids):
        db.execute(
            "UPDATE items SET deleted_at = ? WHERE id IN"
            f" (SELECT item_id FROM files WHERE id IN {marks(piece)})",
            (time.time(), *piece),
        )
        db.execute(f"DELETE FROM files WHERE id IN {marks(piece)}", piece)


def count_items(db: sqlite3.Connection, card: Card) -> tuple[int, int]:
    """Return the number of live items and of tombstoned ones."""
    if card.lean:
        return int(db.execute("SELECT coalesce(sum(n), 0) FROM shards").fetchone()[0]), 0
    items, dead = db.execute("SELECT count(*), count(deleted_at) FROM items").fetchone()
    return int(items - dead), int(dead)


def read_shard_uses(db: sqlite3.Connection) -> list[tuple[int, int, int]]:
    """Return (number, rows, live rows) of the shards in use, in the order of their ids."""
    found = db.execute(
        "SELECT shard, count(*), sum(deleted_at IS NULL) FROM items GROUP BY shard ORDER BY min(id)"
    )
    return [(int(number), int(rows), int(live)) for number, rows, live in found]


def read_live_rows(db: sqlite3.Connection, shards: list[int]) -> list[tuple[Row, int, int]]:
    """Return the live items of some shards with their present shard and row, ids ascending."""
    found = db.execute(
        "SELECT shard, row, items.id, hash, size, mtime_ns, inode, width, height, orientation, taken_at,"
        " path, relpath FROM items JOIN files ON files.item_id = items.id"
        f" JOIN roots ON roots.id = files.root_id WHERE shard IN {marks(shards)} ORDER BY items.id",
        shards,
    )
    return [
        (Row(item, digest, size, mtime_ns, unsigned(inode), *facts), shard, row)
        for shard, row, item, digest, size, mtime_ns, inode, *facts in found
    ]


def read_rows(db: sqlite3.Connection, ids: list[int]) -> list[Row]:
    """Return what is known of some live items, in no order; at most as many as one statement takes."""
    found = db.execute(
        "SELECT item_id, hash, size, mtime_ns, inode, width, height, orientation, taken_at, path, relpath"
        f" FROM files JOIN roots ON roots.id = root_id WHERE item_id IN {marks(ids)}",
        ids,
    )
    return [
        Row(item, digest, size, mtime_ns, unsigned(inode), *facts)
        for item, digest, size, mtime_ns, inode, *facts in found
    ]


def retire(db: sqlite3.Connection, shards: list[int]) -> None:
    """Take shards out of use together with the items that still point to them."""
    db.execute(f"DELETE FROM items WHERE shard IN {marks(shards)}", shards)
    db.execute(f"UPDATE shards SET retired_at = ? WHERE number IN {marks(shards)}", (time.time(), *shards))


def _check(db: sqlite3.Connection, layout: Layout, uuid: str) -> None:
    try:
        check_schema(int(db.execute("PRAGMA user_version").fetchone()[0]), layout)
        found = db.execute("SELECT value FROM meta WHERE key = 'uuid'").fetchone()
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            raise _corrupt(layout, str(error)) from error
        raise
    except sqlite3.DatabaseError as error:
        raise _corrupt(layout, str(error)) from error
    if found is None or found[0] != uuid:
        raise _corrupt(layout, "it belongs to another index")


def _corrupt(layout: Layout, reason: str) -> StoreCorrupt:
    return StoreCorrupt(
        f"the manifest {layout.manifest} cannot be used: {reason}",
        hint="rebuild it from the descriptors with: dinokit repair",
    )
