"""What an index is and holds, for people and for programs."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .layout import Card, Layout, read_card
from .manifest import count_items, damage_named, open_for_reading, place


@dataclass(frozen=True)
class FileError:
    """A file that could not be described, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Facts:
    """What an index is and holds.

    Attributes:
        directory: where it lies.
        card: its identity.
        roots: the scanned folders.
        items: live items.
        dead: tombstoned items that `compact` would drop.
        files: known files, errors included.
        errors: files that could not be described.
        reasons: how many errors have the same reason, most frequent first.
        shards: shards in use.
        bytes_on_disk: of the whole directory.
        generation: what its meta.json says of the faiss generation in use, and its name; None without one.
        last_run: when the last run ended, ISO 8601 in UTC, and what it did; None before the first.
    """

    directory: Path
    card: Card
    roots: tuple[Path, ...]
    items: int
    dead: int
    files: int
    errors: int
    reasons: tuple[tuple[str, int], ...]
    shards: int
    bytes_on_disk: int
    generation: dict[str, object] | None
    last_run: dict[str, object] | None

    def to_json(self) -> dict[str, object]:
        """Return the facts as `json.dumps` takes them."""
        model = self.card.model
        return {
            "index": str(self.directory),
            "uuid": self.card.uuid,
            "created": self.card.created,
            "schema_version": self.card.schema,
            "written_by": self.card.written_by,
            "model": {**model.to_json(), "fingerprint": model.fingerprint},
            "roots": [str(root) for root in self.roots],
            "items": self.items,
            "dead": self.dead,
            "files": self.files,
            "errors": self.errors,
            "reasons": dict(self.reasons),
            "shards": self.shards,
            "bytes_on_disk": self.bytes_on_disk,
            "faiss": self.generation,
            "last_run": self.last_run,
        }


def read_facts(directory: Path) -> Facts:
    """Gather what an index is and holds, from one snapshot of its manifest.

    Raises:
        StoreMissing: there is no index.
        StoreTooNew: a newer version wrote it.
        StoreCorrupt: the manifest is damaged.
    """
    layout = Layout(directory)
    card = read_card(layout)
    with damage_named(layout), closing(open_for_reading(layout, card.uuid)) as db:
        db.execute("BEGIN")
        roots = [Path(os.fsdecode(path)) for (path,) in db.execute("SELECT path FROM roots ORDER BY path")]
        items, dead = count_items(db, card)
        files, errors = db.execute("SELECT count(*), count(error) FROM files").fetchone()
        reasons = db.execute(
            "SELECT error, count(*) FROM files WHERE error IS NOT NULL GROUP BY error ORDER BY 2 DESC, 1"
        ).fetchall()
        shards = db.execute("SELECT count(*) FROM shards WHERE retired_at IS NULL").fetchone()[0]
        run = db.execute("SELECT ended, summary FROM runs ORDER BY id DESC LIMIT 1").fetchone()
    ended = datetime.fromtimestamp(run[0], UTC).isoformat(timespec="seconds") if run else None
    return Facts(
        directory=directory,
        card=card,
        roots=tuple(roots),
        items=items,
        dead=dead,
        files=files,
        errors=errors,
        reasons=tuple(reasons),
        shards=shards,
        bytes_on_disk=_size(directory),
        generation=_generation(layout),
        last_run={"ended": ended, **json.loads(run[1])} if run else None,
    )


def list_errors(directory: Path) -> list[FileError]:
    """Return the files that could not be described, by path.

    Raises:
        StoreMissing: there is no index.
        StoreTooNew: a newer version wrote it.
        StoreCorrupt: the manifest is damaged.
    """
    layout = Layout(directory)
    uuid = read_card(layout).uuid
    with damage_named(layout), closing(open_for_reading(layout, uuid)) as db:
        found = db.execute(
            "SELECT path, relpath, error FROM files JOIN roots ON roots.id = root_id WHERE error IS NOT NULL"
            " ORDER BY path, relpath"
        ).fetchall()
    return [FileError(place(root, relpath), reason) for root, relpath, reason in found]


def _size(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(folder) / name).stat().st_size
            except FileNotFoundError:  # a writer has just removed it
                continue
    return total


def _generation(layout: Layout) -> dict[str, object] | None:
    folder = layout.read_current()
    if folder is None:
        return None
    try:
        said = json.loads((folder / "meta.json").read_bytes())
    except (OSError, ValueError):
        said = {}
    return {"name": folder.name, **(said if isinstance(said, dict) else {})}
