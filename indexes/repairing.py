"""Bring a damaged index back: the shards are the truth, the manifest can be made again from them.

What only the manifest knew is lost then: removals, moves and the list of unreadable files. The next
`dinokit index` finds them again without computing a descriptor twice.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from dinov2kit import __version__
from dinov2kit.errors import StoreCorrupt, StoreMissing

from .layout import SCHEMA, SHARD_ROWS, Card, Layout, move_durably, read_card, sync_folder, write_card
from .lock import WriterLock
from .manifest import count_items, create_manifest, meta, open_for_writing, place, set_meta, signed
from .records import Row
from .shards import Shard
from .verifying import bad_values, check_files, check_ids, rows_agree

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Repair:
    """What `repair` did.

    Attributes:
        rebuilt: whether the manifest was made again from the shards.
        backup: where the old manifest lies now.
        items: live items after the repair.
        torn: damaged shards, set aside with the ending `.bak`.
        lost: paths whose descriptors are lost, as far as they are known; the next index run makes them again.
    """

    rebuilt: bool
    backup: Path | None
    items: int
    torn: tuple[str, ...]
    lost: tuple[Path, ...]


def repair(directory: Path, *, wait: float = 0.0) -> Repair:
    """Set damaged shards aside, and rebuild the manifest where it is damaged or does not agree.

    Args:
        directory: the index.
        wait: seconds to wait for a writer.

    Raises:
        StoreMissing: there is no index, and nothing to make one from.
        StoreLocked: another process writes.
        StoreTooNew: a newer version wrote it.
    """
    layout = Layout(directory)
    if not layout.card.exists() and not layout.shards():
        raise StoreMissing(f"there is no index in {directory}", hint="make one with: dinokit index PHOTOS")
    layout.tmp.mkdir(exist_ok=True)
    with WriterLock(layout, wait=wait):
        card = _card(layout)
        intact, torn = _sort_shards(layout, card)
        db = _sound_manifest(layout, card, intact)
        rebuilt, backup, lost = db is None, None, set[Path]()
        if db is None or card.lean:
            lost = {path for shard in torn for path in _readable_paths(shard, card)}
        if db is None:
            backup = _rebuild(layout, card, intact, torn)
            db = open_for_writing(layout, card.uuid)
        try:
            lost |= _drop_missing(db, intact)
            torn += _strays(db, intact)
            items = count_items(db, card)[0]
            lost -= _paths(db, "1")
        finally:
            db.close()
        for path in torn:
            path.replace(path.with_name(path.name + ".bak"))
            sync_folder(path.parent)
    return Repair(rebuilt, backup, items, tuple(path.name for path in torn), tuple(sorted(lost)))


def _card(layout: Layout) -> Card:
    """Read the identity; make it again from a shard when its file is gone or damaged."""
    try:
        return read_card(layout)
    except (StoreMissing, StoreCorrupt):
        for path in layout.shards().values():
            try:
                stamp = Shard(path).stamp
            except StoreCorrupt:
                continue
            created = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat(timespec="seconds")
            card = Card(stamp.uuid, created, SCHEMA, stamp.model, SHARD_ROWS, __version__)
            write_card(layout, card)
            return card
        raise


def _sort_shards(layout: Layout, card: Card) -> tuple[dict[int, Shard], list[Path]]:
    """Read every byte of every shard; return the sound ones by number, and the paths of the others."""
    intact: dict[int, Shard] = {}
    torn: list[Path] = []
    for number, path in layout.shards().items():
        shard = _open_ours(path, card)
        if shard is not None and shard.is_intact() and not bad_values(shard, deep=True):
            intact[number] = shard
        else:
            torn.append(path)
    seen = np.zeros(0, np.int64)
    for number in sorted(intact.keys() - _replaced(intact)):
        if np.isin(intact[number].ids, seen).any():  # a copy under another name
            torn.append(intact.pop(number).path)
        else:
            seen = np.concatenate([seen, intact[number].ids])
    for path in torn:
        logger.warning("%s is damaged or not of this index", path)
    return intact, torn


def _open_ours(path: Path, card: Card) -> Shard | None:
    """Open a shard if it can be opened and belongs to this index and model."""
    try:
        shard = Shard(path)
    except StoreCorrupt:
        return None
    ours = (shard.stamp.uuid, shard.stamp.model.fingerprint) == (card.uuid, card.model.fingerprint)
    return shard if ours else None


def _replaced(shards: dict[int, Shard]) -> set[int]:
    return {number for shard in shards.values() for number in shard.stamp.replaces}


def _readable_paths(path: Path, card: Card) -> list[Path]:
    shard = _open_ours(path, card)
    try:
        return [place(row.root, row.relpath) for row in shard.rows()] if shard else []
    except (OSError, KeyError, ValueError, IndexError, RuntimeError):
        return []


def _sound_manifest(layout: Layout, card: Card, intact: dict[int, Shard]) -> sqlite3.Connection | None:
    """Open the manifest if it is sound and agrees with the sound shards."""
    try:
        db = open_for_writing(layout, card.uuid)
    except (StoreCorrupt, sqlite3.DatabaseError):
        return None
    try:
        sound = db.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        sound = sound and all(number <= meta(db, "next_shard") for number in layout.shards())
        used = {number: intact[number] for number in _listed(db) if number in intact}
        if not card.lean:
            sound = sound and all(rows_agree(db, number, shard) for number, shard in used.items())
            sound = sound and check_files(db).ok
        sound = sound and check_ids(db, used).ok
    except sqlite3.DatabaseError:
        sound = False
    if not sound:
        db.close()
    return db if sound else None


def _listed(db: sqlite3.Connection) -> list[int]:
    return [number for (number,) in db.execute("SELECT number FROM shards WHERE retired_at IS NULL")]


def _paths(db: sqlite3.Connection, condition: str) -> set[Path]:
    found = db.execute(
        "SELECT path, relpath FROM files JOIN roots ON roots.id = root_id JOIN items ON items.id = item_id"
        f" WHERE {condition}"
    )
    return {place(root, relpath) for root, relpath in found}


def _drop_missing(db: sqlite3.Connection, intact: dict[int, Shard]) -> set[Path]:
    """Forget the shards that are gone and their files, so that these are new to the next index run."""
    lost: set[Path] = set()
    db.execute("BEGIN IMMEDIATE")
    for number in set(_listed(db)) - intact.keys():
        lost |= _paths(db, f"shard = {number:d}")
        db.execute("DELETE FROM files WHERE item_id IN (SELECT id FROM items WHERE shard = ?)", (number,))
        db.execute("DELETE FROM items WHERE shard = ?", (number,))
        db.execute("DELETE FROM shards WHERE number = ?", (number,))
    db.execute("COMMIT")
    return lost


def _strays(db: sqlite3.Connection, intact: dict[int, Shard]) -> list[Path]:
    """Return the sound shards that the manifest does not know, but for one of an unfinished commit."""
    known = {number for (number,) in db.execute("SELECT number FROM shards")} | {meta(db, "next_shard")}
    return [shard.path for number, shard in intact.items() if number not in known]


def _rebuild(layout: Layout, card: Card, intact: dict[int, Shard], torn: list[Path]) -> Path | None:
    """Write a new manifest from the shards and keep the old one; return where it lies."""
    fresh = layout.tmp / layout.manifest.name
    for remnant in layout.tmp.glob(f"{fresh.name}*"):
        remnant.unlink()
    create_manifest(fresh, card.uuid, card.schema)
    db = sqlite3.connect(fresh, isolation_level=None)
    try:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        _fill(db, layout, intact, lean=card.lean)
        set_meta(
            db, "next_id", _next_id(layout, [*intact.values(), *(_open_ours(path, card) for path in torn)])
        )
        set_meta(db, "next_shard", max([0, *layout.shards()]) + 1)
        db.execute("COMMIT")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        db.close()
    backup = _set_aside(layout.manifest)
    move_durably(fresh, layout.manifest)
    return backup


def _set_aside(manifest: Path) -> Path | None:
    """Rename a manifest and what belongs to it to the first free `.bak`; return its new path."""
    count = 1
    while (backup := manifest.with_name(f"{manifest.name}.bak{count if count > 1 else ''}")).exists():
        count += 1
    existed = manifest.exists()
    for ending in ("", "-wal", "-shm"):
        part = manifest.with_name(manifest.name + ending)
        if part.exists():
            part.replace(backup.with_name(backup.name + ending))
    return backup if existed else None


def _fill(db: sqlite3.Connection, layout: Layout, intact: dict[int, Shard], *, lean: bool) -> None:
    """Enter all shards and, but for a lean index, their items; of several for a path the newest is alive."""
    replaced = _replaced(intact)
    now = time.time()
    roots: dict[bytes, int] = {}
    alive: dict[tuple[int, bytes], tuple[int, Row]] = {}
    for number, shard in intact.items():
        retired = now if number in replaced else None
        size = shard.path.stat().st_size
        db.execute(
            "INSERT INTO shards VALUES (?, ?, ?, ?, ?)", (number, len(shard), size, shard.checksum, retired)
        )
        if retired or lean:
            continue
        for position, row in enumerate(shard.rows()):
            root = roots.setdefault(row.root, len(roots) + 1)
            db.execute(
                "INSERT INTO items (id, file_id, shard, row, deleted_at) VALUES (?, 0, ?, ?, ?)",
                (row.id, number, position, now),
            )
            if row.id > alive.get((root, row.relpath), (0, row))[0]:
                alive[root, row.relpath] = (row.id, row)
    for path, root in roots.items():
        folder = Path(os.fsdecode(path))
        device = folder.stat().st_dev if folder.exists() else 0
        db.execute("INSERT INTO roots VALUES (?, ?, ?)", (root, path, signed(device)))
    for file, ((root, relpath), (item, row)) in enumerate(alive.items(), start=1):
        stat = (row.size, row.mtime_ns, signed(row.inode))
        facts = (row.width, row.height, row.orientation, row.taken_at)
        db.execute(
            "INSERT INTO files (id, root_id, relpath, size, mtime_ns, inode, hash, status, item_id,"
            " width, height, orientation, taken_at) VALUES (?, ?, ?, ?, ?, ?, ?, 'ok', ?, ?, ?, ?, ?)",
            (file, root, relpath, *stat, row.digest, item, *facts),
        )
        db.execute("UPDATE items SET file_id = ?, deleted_at = NULL WHERE id = ?", (file, item))


def _next_id(layout: Layout, shards: list[Shard | None]) -> int:
    """Return an id above all that a shard, even a damaged one, or the faiss index has ever seen."""
    used = [0]
    for shard in shards:
        if shard is not None:
            used += [shard.stamp.next_id - 1, *shard.ids[-1:].tolist()]
    generation = layout.read_current()
    if generation is not None:
        with suppress(OSError, ValueError, TypeError, AttributeError):  # a cache; nobody needs it
            used.append(int(json.loads((generation / "meta.json").read_bytes()).get("max_id", 0)))
    return max(used) + 1
