"""The one writer of an index: files come, change, move and go; a commit makes all of it last.

Order of a commit: shard to a temporary name, fsync, rename, fsync of its folder, then one SQLite transaction.
A crash costs at most what came after the last commit; `recovery.py` says what happens to its remains.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float16

from dinov2kit.errors import ArgumentError, StoreError
from dinov2kit.identity import ModelIdentity

from .layout import SHARD_ROWS, Card, Layout, make_folders, new_card, read_card, write_card
from .lock import WriterLock
from .manifest import (
    create_manifest,
    damage_named,
    find_live,
    meta,
    open_for_writing,
    read_files,
    read_live_rows,
    read_roots,
    read_shard_uses,
    remove_files,
    retire,
    set_meta,
    signed,
    write_file,
    write_root,
)
from .records import Described, FileRecord, FileStat, Known, Root, Row, as_stored
from .recovery import recover
from .shards import Shard, Stamp, write_shard

logger = logging.getLogger(__name__)

RETIRE_AFTER = 3600.0  # seconds that replaced files stay for readers that are about to open them


class Store:
    """The writer; a context manager. Leaving the block without `commit` drops what is not committed.

    Any change may raise `StoreError` when the disk is full or fails. Then the last commit stands, what came
    after it is dropped, and the store can be used on.

    Attributes:
        layout: the paths of the index.
        card: its identity.
    """

    def __init__(self, layout: Layout, card: Card, db: sqlite3.Connection, lock: WriterLock) -> None:
        """Take over an open manifest and a held lock; use `Store.open`."""
        self.layout = layout
        self.card = card
        self._db = db
        self._lock = lock
        self._stack = ExitStack()
        self._rows: list[Row] = []
        self._descriptors: list[Float16[np.ndarray, " dim"]] = []
        self._open_shards: dict[int, Shard] = {}
        self._stored = 0
        self._begin()

    @classmethod
    def create(cls, directory: Path, model: ModelIdentity, *, shard_rows: int = SHARD_ROWS) -> None:
        """Make an empty index.

        Raises:
            StoreError: there is an index already, or the folder holds other things or cannot be written.
        """
        layout = Layout(directory)
        make_folders(layout)
        with WriterLock(layout):
            card = new_card(model, shard_rows=shard_rows)
            for remnant in directory.glob(f"{layout.manifest.name}*"):
                remnant.unlink()
            create_manifest(layout.manifest, card.uuid)
            write_card(layout, card)

    @classmethod
    def open(cls, directory: Path, *, wait: float = 0.0, retire_after: float = RETIRE_AFTER) -> Store:
        """Take the lock, finish what a crash left, and begin.

        Args:
            directory: the index.
            wait: seconds to wait for another writer.
            retire_after: seconds after which replaced shards and generations are deleted.

        Raises:
            StoreError: it is lean.
            StoreMissing: there is no index.
            StoreLocked: another process writes.
            StoreTooNew: a newer version wrote it.
            StoreCorrupt: manifest or shards are damaged; see `repair`.
        """
        layout = Layout(directory)
        card = read_card(layout)
        if card.lean:
            raise StoreError(
                f"the index {directory} is lean: it cannot be changed photo by photo",
                hint="update the indexes that it was merged from, and merge them again",
            )
        with damage_named(layout), ExitStack() as stack:
            lock = stack.enter_context(WriterLock(layout, wait=wait))
            db = open_for_writing(layout, card.uuid)
            stack.callback(db.close)
            recover(layout, db, retire_after=retire_after)
            store = cls(layout, card, db, lock)
            store._stack = stack.pop_all()
        return store

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop what is not committed and give the lock back."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._stack.close()

    @property
    def pending(self) -> int:
        """Rows that wait for the next commit."""
        return len(self._rows)

    def roots(self) -> list[Root]:
        """Return the scanned folders."""
        return read_roots(self._db)

    def root_id(self, path: Path) -> int:
        """Return the number of a scanned folder; the first time, note it and the device it is on."""
        with self._all_or_nothing():
            return write_root(self._db, path.absolute())

    def set_device(self, root_id: int, fs_id: int) -> None:
        """Accept that a root now lies on another device."""
        with self._all_or_nothing():
            self._db.execute("UPDATE roots SET fs_id = ? WHERE id = ?", (signed(fs_id), root_id))

    def files(self, root_id: int) -> dict[bytes, FileRecord]:
        """Return all files known below a root, by path relative to it, uncommitted changes included."""
        return read_files(self._db, root_id)

    def find_hash(self, digest: bytes) -> Known | None:
        """Return the description of this content when a live item has it, uncommitted ones included."""
        found = find_live(self._db, digest)
        if found is None:
            return None
        *facts, shard, row = found
        return Known(self._descriptor(shard, row), *facts)

    def put(self, root_id: int, relpath: bytes, stat: FileStat, digest: bytes, description: Described) -> int:
        """Store a new or changed file as a new item and return the id; an older item of it is tombstoned.

        Raises:
            ArgumentError: the descriptor is missing, not finite, zero or of another length.
        """
        descriptor = as_stored(description.descriptor, self.card.model.dim)
        item = self._next_id
        self._next_id += 1
        facts = (description.width, description.height, description.orientation, description.taken_at)
        with self._all_or_nothing():
            file = write_file(self._db, root_id, relpath, stat, digest, error=None, item=item, facts=facts)
            self._db.execute(
                "INSERT INTO items (id, file_id, shard, row) VALUES (?, ?, ?, ?)",
                (item, file, self._next_shard, len(self._rows)),
            )
        root = self._db.execute("SELECT path FROM roots WHERE id = ?", (root_id,)).fetchone()[0]
        self._rows.append(
            Row(item, digest, stat.size, stat.mtime_ns, stat.inode, *facts, root=root, relpath=relpath)
        )
        self._descriptors.append(descriptor)
        return item

    def put_error(
        self, root_id: int, relpath: bytes, stat: FileStat, digest: bytes | None, reason: str
    ) -> None:
        """Note why a file has no descriptor; an older item of it is tombstoned."""
        with self._all_or_nothing():
            write_file(self._db, root_id, relpath, stat, digest, error=reason, item=None, facts=(None,) * 4)

    def move(self, file_id: int, root_id: int, relpath: bytes, stat: FileStat) -> None:
        """Give a file another place; its item stays. What was known at that place is removed."""
        taken = self._db.execute(
            "SELECT id FROM files WHERE root_id = ? AND relpath = ? AND id != ?", (root_id, relpath, file_id)
        )
        self.remove([row[0] for row in taken.fetchall()])
        with self._all_or_nothing():
            self._db.execute(
                "UPDATE files SET root_id = ?, relpath = ? WHERE id = ?", (root_id, relpath, file_id)
            )
        self.touch(file_id, stat)

    def touch(self, file_id: int, stat: FileStat) -> None:
        """Note a new stat of a file whose content is the same."""
        facts = (stat.size, stat.mtime_ns, signed(stat.inode), file_id)
        with self._all_or_nothing():
            self._db.execute("UPDATE files SET size = ?, mtime_ns = ?, inode = ? WHERE id = ?", facts)

    def remove(self, file_ids: Iterable[int]) -> None:
        """Forget files and tombstone their items."""
        with self._all_or_nothing():
            remove_files(self._db, file_ids)

    def record_run(self, started: float, summary: Mapping[str, object]) -> None:
        """Note a finished run, with the time it began and what it did, for `dinokit info`."""
        with self._all_or_nothing():
            self._db.execute(
                "INSERT INTO runs (started, ended, summary) VALUES (?, ?, ?)",
                (started, time.time(), json.dumps(dict(summary), default=str)),
            )

    def commit(self) -> None:
        """Make everything since the last commit last: it survives a crash once this returns.

        Raises:
            StoreError: the disk is full or fails.
        """
        with self._all_or_nothing():
            if self._rows:
                number = self._add_shard(self._rows, np.stack(self._descriptors))
                logger.debug("shard %d holds %d rows", number, len(self._rows))
            self._db.execute("COMMIT")
        self._stored += len(self._rows)
        self._begin()
        self._lock.report(self._stored)

    def shard_uses(self) -> list[tuple[int, int, int]]:
        """Return (number, rows, live rows) of the shards in use, in the order of their ids."""
        return read_shard_uses(self._db)

    def replace_shards(self, numbers: Sequence[int]) -> int | None:
        """Rewrite the live rows of some shards as one new shard, and commit.

        Ids stay, tombstoned rows go, paths are refreshed. The old shards are retired: readers that know them
        can still open them until they are deleted.

        Returns: the number of the new shard, or None when no row was alive.

        Raises:
            ArgumentError: there are uncommitted rows.
            StoreCorrupt: an old shard is damaged; its damage must not get a fresh checksum.
            StoreError: the disk is full or fails; nothing has changed.
        """
        if self._rows:
            raise ArgumentError("commit before rewriting shards")
        old = list(numbers)
        live = read_live_rows(self._db, old)
        rows = [row for row, _, _ in live]
        for number in {shard for _, shard, _ in live}:
            self._shard(number).check()
        new = None
        with self._all_or_nothing(len(rows)):
            if rows:
                gathered = [self._descriptor(shard, row) for _, shard, row in live]
                new = self._add_shard(rows, np.stack(gathered), replaces=tuple(old))
                places = [(new, place, row.id) for place, row in enumerate(rows)]
                self._db.executemany("UPDATE items SET shard = ?, row = ? WHERE id = ?", places)
            retire(self._db, old)
            self._db.execute("COMMIT")
        self._begin()
        return new

    def _begin(self) -> None:
        self._rows, self._descriptors = [], []
        self._next_id, self._next_shard = meta(self._db, "next_id"), meta(self._db, "next_shard")
        self._db.execute("BEGIN IMMEDIATE")

    def _add_shard(
        self, rows: list[Row], descriptors: Float16[np.ndarray, "n dim"], replaces: tuple[int, ...] = ()
    ) -> int:
        number = self._next_shard
        path = self.layout.shard(number)
        if shutil.disk_usage(self.layout.directory).free < self._needed(len(rows)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        stamp = Stamp(self.card.uuid, self.card.model, self._next_id, replaces)
        checksum = write_shard(path, rows, descriptors, stamp=stamp, tmp=self.layout.tmp)
        self._db.execute(
            "INSERT INTO shards (number, n, bytes, checksum) VALUES (?, ?, ?, ?)",
            (number, len(rows), path.stat().st_size, checksum),
        )
        set_meta(self._db, "next_shard", number + 1)
        set_meta(self._db, "next_id", self._next_id)
        return number

    @contextmanager
    def _all_or_nothing(self, rows: int | None = None) -> Iterator[None]:
        """Go back to the last commit when the disk is full or fails; `rows` were to be written."""
        try:
            yield
        except (OSError, sqlite3.DatabaseError) as error:
            raise self._give_up(error, len(self._rows) if rows is None else rows) from error

    def _needed(self, rows: int) -> int:
        """Return the free bytes that a commit of some rows wants: twice what it writes."""
        return 2 * rows * (2 * self.card.model.dim + 300)

    def _give_up(self, error: Exception, rows: int) -> StoreError:
        """Go back to the last commit and say why the next one failed."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        self._begin()
        self.layout.shard(self._next_shard).unlink(missing_ok=True)
        free = shutil.disk_usage(self.layout.directory).free
        full = getattr(error, "errno", None) == errno.ENOSPC or "disk is full" in str(error)
        what = "the disk is full" if full else f"the disk fails ({error})"
        return StoreError(
            f"{what}: {rows:,} images need {self._needed(rows) / 1e6:,.1f} MB in {self.layout.directory},"
            f" {free / 1e6:,.1f} MB are free; everything up to the last commit is kept",
            hint="free some space and run the same command again; it goes on where it stopped",
        )

    def _descriptor(self, shard: int, row: int) -> Float16[np.ndarray, " dim"]:
        if shard == self._next_shard:
            return self._descriptors[row].copy()
        return np.array(self._shard(shard).descriptors[row])

    def _shard(self, number: int) -> Shard:
        if number not in self._open_shards:
            self._open_shards[number] = Shard(self.layout.shard(number))
        return self._open_shards[number]
