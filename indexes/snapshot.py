"""What a reader sees: one moment of an index, whole, whatever writers do meanwhile. It never locks.

A snapshot is the faiss generation that `CURRENT` names, then one SQLite read transaction, then all shards of
that transaction mapped. `CURRENT` is read first, so a generation never knows more items than the snapshot.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from jaxtyping import Float16, Int, Int32, Int64

from dinov2kit.errors import ArgumentError

from .layout import Card, Layout, read_card
from .manifest import chunks, damage_named, open_for_reading, place, read_rows
from .records import Row
from .shards import Shard
from .where import add_view, select_ids, select_rows


@dataclass(frozen=True)
class Photo:
    """What the index knows of one item beside its descriptor.

    Attributes:
        id: item id.
        path: absolute path of the file when it was last seen.
        width: of the upright original, in pixels.
        height: of the upright original, in pixels.
        size: bytes of the file.
        mtime_ns: modification time of the file.
        taken_at: when the photo was taken, ISO 8601, as its EXIF data says.
        digest: blake2b-128 of the content.
    """

    id: int
    path: Path
    width: int
    height: int
    size: int
    mtime_ns: int
    taken_at: str | None
    digest: bytes


class Snapshot:
    """One consistent moment of an index; a context manager. Threads may share it.

    Attributes:
        layout: the paths of the index.
        card: its identity.
        ids: the ids of all live items, ascending.
        generation: folder of the faiss generation to use, or None.
    """

    ids: Int64[np.ndarray, " n"]

    def __init__(self, layout: Layout, card: Card, generation: Path | None, db: sqlite3.Connection) -> None:
        """Read the state of an open transaction; use `Snapshot.open`."""
        self.layout = layout
        self.card = card
        self.generation = generation
        self._db = db
        self._stack = ExitStack()
        self._guard = threading.Lock()
        numbers = [
            number
            for (number,) in db.execute("SELECT number FROM shards WHERE retired_at IS NULL ORDER BY number")
        ]
        self._shards = [Shard(layout.shard(number)) for number in numbers]
        dead = [number for (number,) in db.execute("SELECT id FROM items WHERE deleted_at IS NOT NULL")]
        self.ids, self._shard, self._row = _live(self._shards, np.array(dead, np.int64))

    @classmethod
    def open(cls, directory: Path) -> Snapshot:
        """Open the present state of an index.

        Raises:
            StoreMissing: there is no index.
            StoreTooNew: a newer version wrote it.
            StoreCorrupt: manifest or shards are damaged.
        """
        layout = Layout(directory)
        card = read_card(layout)
        generation = layout.read_current()
        with damage_named(layout), ExitStack() as stack:
            db = open_for_reading(layout, card.uuid)
            stack.callback(db.close)
            add_view(db)
            db.execute("BEGIN")
            snapshot = cls(layout, card, generation, db)
            snapshot._stack = stack.pop_all()
        return snapshot

    def __enter__(self) -> Snapshot:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        """End the read transaction. Arrays that were handed out stay valid."""
        self._stack.close()

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return self.card.model.dim

    def descriptors(self, ids: Int[np.ndarray, " k"]) -> Float16[np.ndarray, "k dim"]:
        """Read descriptors of live items, in the order of `ids`.

        Raises:
            ArgumentError: there is no such item.
        """
        return self._gather(self._places(ids))

    def blocks(
        self, rows: int = 65536
    ) -> Iterator[tuple[Int64[np.ndarray, " m"], Float16[np.ndarray, "m dim"]]]:
        """Yield all live items in the order of their ids, at most `rows` at a time."""
        for start in range(0, len(self.ids), rows):
            places = np.arange(start, min(start + rows, len(self.ids)))
            yield self.ids[places], self._gather(places)

    def photos(self, ids: Int[np.ndarray, " k"]) -> list[Photo]:
        """Return what is known of live items, in the order of `ids`.

        Raises:
            ArgumentError: there is no such item.
        """
        return [
            Photo(
                row.id,
                place(row.root, row.relpath),
                row.width,
                row.height,
                row.size,
                row.mtime_ns,
                row.taken_at,
                row.digest,
            )
            for row in self.rows(ids)
        ]

    def rows(self, ids: Int[np.ndarray, " k"]) -> list[Row]:
        """Return all that is kept of live items beside their descriptors, in the order of `ids`.

        Raises:
            ArgumentError: there is no such item.
        """
        places = self._places(ids)
        found: dict[int, Row] = {}
        if self.card.lean:
            for number in np.unique(self._shard[places]):
                here = np.unique(self._row[places[self._shard[places] == number]])
                found |= {row.id: row for row in self._shards[number].rows(here.tolist())}
        else:
            for piece in chunks(dict.fromkeys(int(number) for number in ids)):
                with self._guard:
                    found |= {row.id: row for row in read_rows(self._db, piece)}
        return [found[int(number)] for number in ids]

    def where(self, expression: str) -> Int64[np.ndarray, " m"]:
        """Return the ids of the items that an SQL expression selects, ascending; see `where.select_ids`.

        Raises:
            ArgumentError: the expression is not allowed or takes too long.
        """
        if self.card.lean:
            return select_rows((shard.rows() for shard in self._shards), expression)
        with self._guard:
            return np.intersect1d(select_ids(self._db, expression), self.ids)

    def find(self, path: Path) -> int | None:
        """Return the item of a file, or None when the index does not have it, or is lean."""
        whole = os.fsencode(path.absolute())
        with self._guard:
            for number, root in self._db.execute("SELECT id, path FROM roots").fetchall():
                prefix = root.rstrip(b"/") + b"/"
                if whole.startswith(prefix):
                    row = self._db.execute(
                        "SELECT item_id FROM files WHERE root_id = ? AND relpath = ?",
                        (number, whole[len(prefix) :]),
                    ).fetchone()
                    if row and row[0] is not None:
                        return int(row[0])
        return None

    def _places(self, ids: Int[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        places = np.searchsorted(self.ids, ids)
        inside = np.minimum(places, max(len(self.ids) - 1, 0))
        known = self.ids[inside] == ids if len(self.ids) else np.zeros(len(ids), bool)
        if not known.all():
            raise ArgumentError(
                f"the index has no item {int(np.asarray(ids)[~known][0])}",
                hint="list the items with: dinokit export",
            )
        return places

    def _gather(self, places: Int64[np.ndarray, " k"]) -> Float16[np.ndarray, "k dim"]:
        gathered = np.empty((len(places), self.dim), np.float16)
        shards, rows = self._shard[places], self._row[places]
        for number in np.unique(shards):
            here = shards == number
            gathered[here] = self._shards[number].descriptors[rows[here]]
        return gathered


def _live(
    shards: list[Shard], dead: Int64[np.ndarray, " d"]
) -> tuple[Int64[np.ndarray, " n"], Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """Return id, shard and row of all items that are not tombstoned, by ascending id."""
    ids = np.concatenate([shard.ids for shard in shards] or [np.zeros(0, np.int64)])
    numbers = np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard) for shard in shards])
    rows = np.concatenate(
        [np.arange(len(shard), dtype=np.int32) for shard in shards] or [np.zeros(0, np.int32)]
    )
    order = np.argsort(ids, kind="stable")
    order = order[~np.isin(ids[order], dead, assume_unique=True)]
    return ids[order], numbers[order], rows[order]
