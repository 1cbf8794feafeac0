"""What has changed in a folder since the index last saw it, told from names and stats alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dinov2kit.errors import ImageError

from .records import FileRecord, FileStat, Root
from .store import Store
from .walk import Walk, WalkRules


@dataclass(frozen=True)
class Sighting:
    """A file that has to be opened: it is new, or not as it was.

    Attributes:
        root: the scanned folder that it belongs to.
        relpath: its path below that folder.
        stat: how it looks now.
        record: how the index knows it; None when it does not.
    """

    root: Root
    relpath: bytes
    stat: FileStat
    record: FileRecord | None

    @property
    def path(self) -> Path:
        """The file."""
        return self.root.path / os.fsdecode(self.relpath)


@dataclass
class Changes:
    """What differs between a folder and the index; nothing is changed yet.

    Attributes:
        folder: what was looked at.
        root: the scanned folder that its files belong to; `folder` or one above it.
        walk: what was met on the way.
        known: files below the folder that the index knew.
        found: image files that are there.
        unchanged: how many of them need not be opened.
        failed: (path, reason) of untouched files that could not be read before.
        sightings: files to open.
        adopted: (record, new path) of files that belonged to a folder inside this one.
        gone: files that the index knows and that are not there, by path.
        met: the listed files that are there.
    """

    folder: Path
    root: Root
    walk: Walk
    known: int = 0
    found: int = 0
    unchanged: int = 0
    failed: list[tuple[Path, str]] = field(default_factory=list)
    sightings: list[Sighting] = field(default_factory=list)
    adopted: list[tuple[FileRecord, bytes]] = field(default_factory=list)
    gone: dict[bytes, FileRecord] = field(default_factory=dict)
    met: set[Path] = field(default_factory=set)


def check_folders(folders: list[Path]) -> list[Path]:
    """Return the folders as absolute paths, without those that lie inside another.

    Raises:
        ImageError: one does not exist, or is a file.
    """
    for folder in folders:
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            raise ImageError(
                f"{folder} {what}", hint="name folders; single files of a folder are chosen with --list"
            )
    whole = list(dict.fromkeys(folder.resolve() for folder in folders))
    return [folder for folder in whole if not any(other in folder.parents for other in whole)]


def find_changes(
    store: Store,
    folder: Path,
    rules: WalkRules,
    *,
    listed: frozenset[Path] | None = None,
    open_unchanged: bool = False,
    retry_errors: bool = False,
    seen: Callable[[int], None] | None = None,
) -> Changes:
    """Compare a folder with the index.

    Args:
        store: the index; only read, but for the note of a new root.
        folder: absolute path.
        rules: which files count; others are neither added nor removed.
        listed: if given, only these files count, and none is gone.
        open_unchanged: do not trust stats.
        retry_errors: open again what could not be read.
        seen: called with the number of files found so far.
    """
    roots = store.roots()
    owners = [root for root in roots if root.path == folder or root.path in folder.parents]
    owner = min(owners, key=lambda root: len(root.path.parts), default=None)
    root = owner or Root(store.root_id(folder), folder, folder.stat().st_dev)
    changes = Changes(folder, root, Walk(folder, rules))
    records = _known_below(store, roots, root, folder)
    changes.known = len(records)
    prefix = _prefix(root.path, folder)
    for below, stat in changes.walk.images():
        if listed is not None:
            if folder / os.fsdecode(below) not in listed:
                continue
            changes.met.add(folder / os.fsdecode(below))
        changes.found += 1
        if seen is not None and changes.found % 1000 == 0:
            seen(changes.found)
        relpath = prefix + below
        foreign, record = records.pop(relpath, (False, None))
        if record is not None and foreign:
            changes.adopted.append((record, relpath))
        if record is None or stat != FileStat(record.size, record.mtime_ns, record.inode) or open_unchanged:
            changes.sightings.append(Sighting(root, relpath, stat, record))
        elif record.error is None:
            changes.unchanged += 1
        elif retry_errors:
            changes.sightings.append(Sighting(root, relpath, stat, record))
        else:
            changes.failed.append((root.path / os.fsdecode(relpath), record.error))
    if listed is None:
        start = len(prefix)
        changes.gone = {
            relpath: record for relpath, (_, record) in records.items() if rules.takes(relpath[start:])
        }
    return changes


def _known_below(
    store: Store, roots: list[Root], root: Root, folder: Path
) -> dict[bytes, tuple[bool, FileRecord]]:
    """Return what the index knows below a folder, by path below `root`; True marks files of an inner root."""
    start = _prefix(root.path, folder)
    own = store.files(root.id).items()
    known = {relpath: (False, record) for relpath, record in own if relpath.startswith(start)}
    for inner in roots:
        if inner.id != root.id and root.path in inner.path.parents:
            prefix = _prefix(root.path, inner.path)
            if prefix.startswith(start) or start.startswith(prefix):
                files = store.files(inner.id).items()
                known |= {
                    prefix + relpath: (True, record)
                    for relpath, record in files
                    if (prefix + relpath).startswith(start)
                }
    return known


def _prefix(root: Path, folder: Path) -> bytes:
    """Return what the paths below `folder` begin with, seen from `root`."""
    below = os.fsencode(folder.relative_to(root))
    return b"" if below == b"." else below + b"/"
