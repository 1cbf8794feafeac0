"""Does an index agree with itself: manifest, shards, values and the faiss generation.

Nothing is changed, and nothing is locked: the checks look at one snapshot.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinov2kit.errors import StoreCorrupt

from .layout import Card, Layout, read_card
from .manifest import meta, open_for_reading
from .shards import Shard

NORM_TOLERANCE = 2e-3  # fp16 rounding moves the length of a unit row by less than 5e-4
_SAMPLE = 256  # rows per shard whose values are looked at when not deep


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """What `verify` found; `ok` when every check passed."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether the index agrees with itself."""
        return all(check.ok for check in self.checks)


def verify(
    directory: Path, *, deep: bool = False, advance: Callable[[int, int], None] | None = None
) -> Verification:
    """Check that an index agrees with itself.

    Args:
        directory: the index.
        deep: read every byte and compare checksums; otherwise samples.
        advance: called with shards done and shards in all.

    Raises:
        StoreMissing: there is no index.
        StoreTooNew: a newer version wrote it.
        StoreCorrupt: its card cannot be understood.
    """
    layout = Layout(directory)
    card = read_card(layout)
    try:
        db = open_for_reading(layout, card.uuid)
    except StoreCorrupt as error:
        return Verification((Check("manifest", False, error.message),))
    try:
        db.execute("BEGIN")
        checks = [_manifest(db, deep=deep), _unknown_shards(db, layout)]
        shards, check = _open_all(db, layout, card)
        checks += [check, check_ids(db, shards)] + [check_files(db)] * (not card.lean)
        wrong_rows, wrong_values, torn = [], [], []
        for done, (number, shard) in enumerate(shards.items()):
            if not (card.lean or rows_agree(db, number, shard)):
                wrong_rows.append(shard.path.name)
            if reason := bad_values(shard, deep=deep):
                wrong_values.append(f"{shard.path.name}: {reason}")
            if deep and not shard.is_intact():
                torn.append(shard.path.name)
            if advance:
                advance(done + 1, len(shards))
        total = sum(len(shard) for shard in shards.values())
        where = "stand there alone; the manifest is lean" if card.lean else "are in the manifest"
        checks.append(_check("rows", wrong_rows, f"{total:,} rows in {len(shards)} shards {where}"))
        looked = "all rows" if deep else f"up to {_SAMPLE} rows per shard"
        checks.append(_check("descriptors", wrong_values, f"{looked} are finite and of length 1"))
        if deep:
            checks.append(_check("checksums", torn, f"{len(shards)} shards are as they were written"))
        return Verification((*checks, *_generation(db, layout, deep=deep)))
    except sqlite3.DatabaseError as error:
        return Verification((Check("manifest", False, f"{layout.manifest}: {error}"),))
    finally:
        db.close()


def rows_agree(db: sqlite3.Connection, number: int, shard: Shard) -> bool:
    """Say whether the manifest has exactly the items of a shard, each at its row."""
    found = db.execute("SELECT id, row FROM items WHERE shard = ? ORDER BY row", (number,)).fetchall()
    expected = zip(shard.ids.tolist(), range(len(shard)), strict=True)
    return found == list(expected)


def _check(name: str, wrong: list[str], right: str) -> Check:
    """Make a check that fails when something is wrong, naming the first three."""
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return Check(name, not wrong, "; ".join(wrong[:3]) + more if wrong else right)


def _manifest(db: sqlite3.Connection, *, deep: bool) -> Check:
    answer = db.execute("PRAGMA integrity_check(3)" if deep else "PRAGMA quick_check(3)").fetchall()
    wrong = [str(line) for (line,) in answer if line != "ok"]
    files = db.execute("SELECT count(*) FROM files").fetchone()[0] if not wrong else 0
    return _check("manifest", wrong, f"SQLite finds it sound; {files:,} files")


def _unknown_shards(db: sqlite3.Connection, layout: Layout) -> Check:
    known = {number for (number,) in db.execute("SELECT number FROM shards")}
    unfinished = meta(db, "next_shard")
    unknown = [path.name for number, path in layout.shards().items() if number not in known]
    strange = [name for name in unknown if name != layout.shard(unfinished).name]
    note = " (one unfinished; the next run deletes it)" if len(unknown) > len(strange) else ""
    return _check(
        "folder", [f"the manifest does not know {name}" for name in strange], f"no unknown shards{note}"
    )


def _open_all(db: sqlite3.Connection, layout: Layout, card: Card) -> tuple[dict[int, Shard], Check]:
    shards: dict[int, Shard] = {}
    wrong = []
    listed = db.execute("SELECT number, n, checksum FROM shards WHERE retired_at IS NULL ORDER BY number")
    for number, n, checksum in listed.fetchall():
        try:
            shard = Shard(layout.shard(number))
        except StoreCorrupt as error:
            wrong.append(error.message)
            continue
        shards[number] = shard
        if shard.stamp.uuid != card.uuid or shard.stamp.model.fingerprint != card.model.fingerprint:
            wrong.append(f"{shard.path.name} belongs to another index or model")
        elif (len(shard), shard.checksum) != (n, checksum):
            wrong.append(f"{shard.path.name} is not the one the manifest knows")
    return shards, _check("shards", wrong, f"{len(shards)} open and belong here")


def check_ids(db: sqlite3.Connection, shards: dict[int, Shard]) -> Check:
    """Look at the ids of the shards in use: ascending, unique, below the counter."""
    wrong = [shard.path.name for shard in shards.values() if np.any(np.diff(shard.ids) <= 0)]
    wrong = [f"{name}: ids do not ascend" for name in wrong]
    ids = np.concatenate([shard.ids for shard in shards.values()] or [np.zeros(0, np.int64)])
    if len(np.unique(ids)) < len(ids):
        wrong.append("an id is in two shards")
    if len(ids) and ids.max() >= meta(db, "next_id"):
        wrong.append(f"id {ids.max()} is above the counter of the manifest")
    return _check("ids", wrong, f"{len(ids):,} are unique and ascend")


def check_files(db: sqlite3.Connection) -> Check:
    """Look whether each live item has a file and each described file a live item."""
    homeless = db.execute(
        "SELECT count(*) FROM items LEFT JOIN files ON files.item_id = items.id"
        " WHERE deleted_at IS NULL AND files.id IS NULL"
    ).fetchone()[0]
    empty = db.execute(
        "SELECT count(*) FROM files LEFT JOIN items ON items.id = files.item_id"
        " WHERE item_id IS NOT NULL AND (items.id IS NULL OR deleted_at IS NOT NULL)"
    ).fetchone()[0]
    wrong = [f"{homeless} live items have no file"] * bool(homeless)
    wrong += [f"{empty} files have no live item"] * bool(empty)
    return _check("files", wrong, "each live item has its file")


def bad_values(shard: Shard, *, deep: bool) -> str:
    """Say what is wrong with the descriptors of a shard, or return an empty text."""
    if shard.descriptors.shape[1] != shard.stamp.model.dim:
        return f"{shard.descriptors.shape[1]} numbers per row, not {shard.stamp.model.dim}"
    step = 1 if deep else max(1, len(shard) // _SAMPLE)
    for start in range(0, len(shard), 8192 * step):
        rows = shard.descriptors[start : start + 8192 * step : step].astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1)
        wrong = ~(np.abs(lengths - 1.0) <= NORM_TOLERANCE)  # also true for NaN
        if wrong.any():
            first = int(np.argmax(wrong))
            return f"row {start + first * step} has length {lengths[first]:.4g}"
    return ""


def _generation(db: sqlite3.Connection, layout: Layout, *, deep: bool) -> list[Check]:
    folder = layout.read_current()
    if folder is None:
        wrong = ["CURRENT names no generation that is there"] * layout.current.exists()
        return [_check("faiss", wrong, "none; search is exact")]
    try:
        facts = json.loads((folder / "meta.json").read_bytes())
        wrong = []
        if int(facts.get("max_id", 0)) >= meta(db, "next_id"):
            wrong.append(f"it knows id {facts['max_id']}, the manifest does not")
        if int(facts.get("n", 0)) >= meta(db, "next_id"):
            wrong.append(f"it has {facts['n']} items, more than there ever were")
        index = folder / "index.faiss"
        if not index.is_file():
            wrong.append(f"{index} is missing")
        elif deep and "sha256" in facts and _sha256(index) != facts["sha256"]:
            wrong.append(f"{index} is not as it was written")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        wrong = [f"{folder / 'meta.json'} cannot be read: {error}"]
    return [_check("faiss", wrong, f"{folder.name} agrees")]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
