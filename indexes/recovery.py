"""What a writer does first: clear away what a crash left and what was replaced long enough ago.

A crash before the end of a commit leaves at most one shard that the manifest does not know, with the number
that would have come next. It is deleted, never adopted: no caller was told that its rows are stored, and what
came with them (moves, removals, errors) is lost, so half of a commit would return.
"""

from __future__ import annotations

import logging
import shutil
import sqlite3
import time

from dinov2kit.errors import StoreCorrupt

from .layout import Layout
from .manifest import meta

logger = logging.getLogger(__name__)


def recover(layout: Layout, db: sqlite3.Connection, *, retire_after: float) -> None:
    """Delete what a crash left and what was replaced long enough ago; refuse what no crash explains."""
    layout.tmp.mkdir(exist_ok=True)
    for remnant in layout.tmp.iterdir():
        shutil.rmtree(remnant) if remnant.is_dir() else remnant.unlink()
    number = meta(db, "next_shard")
    on_disk = layout.shards()
    beyond = [other for other in on_disk if other > number]
    if beyond:
        raise StoreCorrupt(
            f"the manifest of {layout.directory} is older than its shards: it ends at shard {number - 1},"
            f" there is a shard {beyond[-1]}",
            hint="rebuild it from the descriptors with: dinokit repair",
        )
    if number in on_disk:
        logger.warning("deleted %s: its commit did not finish", on_disk[number].name)
        on_disk[number].unlink()
    before = time.time() - retire_after
    retired = db.execute(  # the newest stays: it alone tells a rebuilt manifest which ids have been used
        "SELECT number FROM shards WHERE retired_at < ? AND number < (SELECT max(number) FROM shards)",
        (before,),
    )
    for (old,) in retired.fetchall():
        layout.shard(old).unlink(missing_ok=True)
        db.execute("DELETE FROM shards WHERE number = ?", (old,))
    _forget_generations(layout, before)


def _forget_generations(layout: Layout, before: float) -> None:
    """Delete faiss generations that were replaced before a time."""
    current = layout.read_current()
    if current is None or layout.current.stat().st_mtime > before:
        return
    for folder in layout.ann.glob("gen-*"):
        if folder != current and folder.stat().st_mtime <= before:
            shutil.rmtree(folder)
