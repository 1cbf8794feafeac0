"""Filters in SQL, safe for expressions that come from a command line or a web page.

An expression can only compare the columns of one view: an authorizer refuses every other table, statement
and function while SQLite compiles it, and a deadline stops what runs too long.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from itertools import chain

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import ArgumentError

from .records import Row

VIEW = "photos"
COLUMNS = (
    "id", "path", "name", "ext", "width", "height", "bytes", "taken_at", "modified", "orientation",
)  # fmt: skip
_FUNCTIONS = frozenset(
    {
        *(
            "abs",
            "coalesce",
            "glob",
            "ifnull",
            "iif",
            "instr",
            "length",
            "like",
            "lower",
            "ltrim",
            "max",
            "min",
        ),
        *("nullif", "replace", "round", "rtrim", "substr", "substring", "trim", "typeof", "upper"),
        *("date", "datetime", "julianday", "strftime", "time", "unixepoch"),
    }
)
_MAX_BYTES = 1_000_000  # of any text on the way: functions like `replace` could make it grow without end
_MAKE_VIEW = f"""
CREATE TEMP VIEW {VIEW} AS SELECT
    item_id AS id, CAST(relpath AS TEXT) AS path, CAST(file_name(relpath) AS TEXT) AS name,
    CAST(file_ext(relpath) AS TEXT) AS ext, width, height, size AS bytes, taken_at,
    strftime('%Y-%m-%dT%H:%M:%S', mtime_ns / 1000000000, 'unixepoch') AS modified, orientation
FROM files WHERE item_id IS NOT NULL
"""


def add_view(db: sqlite3.Connection) -> None:
    """Give a connection the view that `select_ids` reads; outside a transaction."""
    db.create_function("file_name", 1, _name, deterministic=True)
    db.create_function("file_ext", 1, _ext, deterministic=True)
    db.execute(_MAKE_VIEW)


def select_ids(db: sqlite3.Connection, expression: str, *, seconds: float = 10.0) -> Int64[np.ndarray, " n"]:
    """Return the ids of the items for which an SQL expression is true, ascending.

    Args:
        db: a read-only connection with the view; no other statement may run on it meanwhile.
        expression: over `COLUMNS`, for instance ``width >= 2000 AND path GLOB '2020/*'``. `path` is relative
            to the scanned folder, `ext` has no dot, `taken_at` and `modified` (UTC) are ISO 8601.
        seconds: the longest it may take.

    Raises:
        ArgumentError: it is no such expression, or takes too long.
    """
    deadline = time.monotonic() + seconds
    longest = db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_BYTES)
    try:
        if "\0" in expression or not expression.strip():
            raise ArgumentError("the expression is empty")
        db.set_authorizer(_Guard())
        db.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
        found = db.execute(f"SELECT id FROM {VIEW} WHERE (\n{expression}\n) ORDER BY id").fetchall()
        return np.array([number for (number,) in found], np.int64)
    except (sqlite3.Error, sqlite3.Warning, ArgumentError, ValueError, OverflowError) as error:
        reason = f"takes longer than {seconds:g} s" if "interrupted" in str(error) else str(error)
        raise ArgumentError(
            f"cannot filter by {expression!r}: {reason}",
            hint=f"write an SQL expression over {', '.join(COLUMNS)};"
            " for instance: width >= 2000 AND ext = 'jpg'",
        ) from error
    finally:
        db.set_progress_handler(None, 0)
        db.set_authorizer(None)
        db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, longest)


def select_rows(shards: Iterable[list[Row]], expression: str) -> Int64[np.ndarray, " n"]:
    """Return the ids of the rows for which an SQL expression is true, ascending, for an index without files.

    Args:
        shards: the rows of one shard after the other.
        expression: as for `select_ids`; each shard may take as long as that allows.

    Raises:
        ArgumentError: it is no such expression, or takes too long.
    """
    found = [np.zeros(0, np.int64)]
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        db.execute(
            "CREATE TABLE files (item_id INTEGER PRIMARY KEY, relpath BLOB, width INTEGER, height INTEGER,"
            " size INTEGER, taken_at TEXT, mtime_ns INTEGER, orientation INTEGER)"
        )
        add_view(db)
        for rows in chain([[]], shards):
            db.execute("DELETE FROM files")
            facts = (
                (
                    row.id,
                    row.relpath,
                    row.width,
                    row.height,
                    row.size,
                    row.taken_at,
                    row.mtime_ns,
                    row.orientation,
                )
                for row in rows
            )
            db.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", facts)
            found.append(select_ids(db, expression))
    return np.sort(np.concatenate(found))


def _name(relpath: bytes) -> bytes:
    """Return what follows the last slash; SQL text functions stumble over names that are no UTF-8."""
    return relpath.rpartition(b"/")[2]


def _ext(relpath: bytes) -> bytes:
    """Return what follows the last dot, in lower case; a dot at the beginning only hides a file."""
    stem, _, ending = _name(relpath).rpartition(b".")
    return ending.lower() if stem else b""


class _Guard:
    """Allows one SELECT of the view; called by SQLite for everything that a statement wants to touch."""

    def __init__(self) -> None:
        self.selects = 0

    def __call__(
        self, action: int, first: str | None, second: str | None, database: str | None, source: str | None
    ) -> int:
        if action == sqlite3.SQLITE_SELECT:
            self.selects += source is None
            return sqlite3.SQLITE_OK if self.selects == 1 or source == VIEW else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_READ:
            through_view = source == VIEW or first == VIEW or (first == "files" and not second)
            return sqlite3.SQLITE_OK if through_view else sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION and (second in _FUNCTIONS or source == VIEW):
            return sqlite3.SQLITE_OK
        return sqlite3.SQLITE_DENY
