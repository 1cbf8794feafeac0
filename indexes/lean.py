"""Writing a lean index: shards, and a manifest that knows only them. It is written once and never changed.

A row of SQLite for each file and each item is what makes updates cheap; at a hundred million photos that is
20 GB that few questions need. A lean index answers them from the facts that every shard carries.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float16

from dinov2kit.identity import ModelIdentity

from .layout import SHARD_ROWS, Layout, make_folders, new_card, write_card
from .lock import WriterLock
from .manifest import create_manifest, open_for_writing, set_meta, write_root
from .records import Row, Watch
from .shards import Stamp, write_shard

Piece = tuple[list[Row], Float16[np.ndarray, "_ dim"]]


def write_lean(
    directory: Path,
    model: ModelIdentity,
    pieces: Iterable[Piece],
    *,
    shard_rows: int = SHARD_ROWS,
    watch: Watch | None = None,
) -> int:
    """Write a lean index; it becomes one with its last file, so that a crash leaves none.

    Args:
        directory: where there is no index yet.
        model: what made the descriptors.
        pieces: rows with their descriptors, as stores keep them, in any portions. Ids are given anew, from 1.
        shard_rows: rows per shard.
        watch: called with the items written.

    Returns: the number of items.

    Raises:
        StoreError: there is an index already, or the folder holds other things or cannot be written.
        OSError: the disk is full or fails.
    """
    layout = Layout(directory)
    make_folders(layout)
    with WriterLock(layout):
        shutil.rmtree(layout.features)  # of a run that did not come to its end
        layout.features.mkdir()
        for remnant in directory.glob(f"{layout.manifest.name}*"):
            remnant.unlink()
        card = new_card(model, shard_rows=shard_rows, lean=True)
        create_manifest(layout.manifest, card.uuid, card.schema)
        with closing(open_for_writing(layout, card.uuid)) as db:
            db.execute("BEGIN IMMEDIATE")
            items = 0
            for number, (rows, descriptors) in enumerate(_full(pieces, shard_rows), 1):
                numbered = [replace(row, id=items + place) for place, row in enumerate(rows, 1)]
                items += len(rows)
                stamp = Stamp(card.uuid, model, items + 1)
                path = layout.shard(number)
                checksum = write_shard(path, numbered, descriptors, stamp=stamp, tmp=layout.tmp)
                _enter(db, number, path, rows, checksum)
                set_meta(db, "next_shard", number + 1)
                set_meta(db, "next_id", items + 1)
                if watch is not None:
                    watch("Merging", items, None)
            db.execute("COMMIT")
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        write_card(layout, card)
    return items


def _full(pieces: Iterable[Piece], shard_rows: int) -> Iterable[Piece]:
    """Cut and join pieces so that all but the last have the rows of a shard."""
    rows: list[Row] = []
    parts: list[np.ndarray] = []
    for more, descriptors in pieces:
        taken = 0
        while taken < len(more):
            room = shard_rows - len(rows)
            rows += more[taken : taken + room]
            parts.append(descriptors[taken : taken + room])
            taken += room
            if len(rows) == shard_rows:
                yield rows, np.concatenate(parts)
                rows, parts = [], []
    if rows:
        yield rows, np.concatenate(parts)


def _enter(db: sqlite3.Connection, number: int, path: Path, rows: list[Row], checksum: str) -> None:
    for root in sorted({row.root for row in rows}):
        write_root(db, Path(os.fsdecode(root)))
    db.execute(
        "INSERT INTO shards (number, n, bytes, checksum) VALUES (?, ?, ?, ?)",
        (number, len(rows), path.stat().st_size, checksum),
    )
