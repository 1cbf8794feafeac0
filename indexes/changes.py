"""What has changed in a folder since the index last saw it, told from names and stats alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dinov2kit.archives import compressed_suffix
from dinov2kit.errors import ImageError

from .records import FileRecord, FileStat, Root
from .store import Store
from .walk import Walk, WalkRules, is_container

UNSCANNED = 0
"""Device of a root of which only listed files were ever looked at."""

Known = dict[bytes, tuple[bool, FileRecord]]
"""Files that the index knows, by path below a root; True marks those of a root inside it."""


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
        thinned: how many of these are frames of a video that is there, at times that are no longer asked for.
        listed: whether only listed files were looked at, so that nothing can be said of the others.
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
    thinned: int = 0
    listed: bool = False

    def note(self, known: Known, relpath: bytes, stat: FileStat, *, trust: bool, retry: bool) -> None:
        """Compare an image that is there with what the index knows, and take it out of that.

        Args:
            known: files that were not met yet.
            relpath: its path below the root.
            stat: how it looks.
            trust: it need not be opened when it looks as it did.
            retry: open it again when it could not be read.
        """
        self.found += 1
        foreign, record = known.pop(relpath, (False, None))
        if record is not None and foreign:
            self.adopted.append((record, relpath))
        same = record is not None and stat == FileStat(record.size, record.mtime_ns, record.inode)
        if record is None or not (same and trust) or (record.error is not None and retry):
            self.sightings.append(Sighting(self.root, relpath, stat, record))
        elif record.error is None:
            self.unchanged += 1
        else:
            self.failed.append((self.root.path / os.fsdecode(relpath), record.error))


def check_folders(folders: list[Path]) -> list[Path]:
    """Return folders, archives and videos as absolute paths, without those that lie inside another.

    Raises:
        ImageError: one does not exist, or is a file of another kind.
    """
    for folder in folders:
        if can_scan(folder):
            continue
        if compressed_suffix(folder.name) and folder.exists():
            raise ImageError(
                f"{folder} is compressed: what lies in it cannot be read in place",
                hint="decompress it to a .tar, or unpack it",
            )
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise ImageError(
            f"{folder} {what}", hint="name folders, tar archives or videos; single files go into --list"
        )
    whole = dict.fromkeys(folder.resolve() for folder in folders)
    return [folder for folder in whole if not any(parent in whole for parent in folder.parents)]


def can_scan(folder: Path) -> bool:
    """Say whether there is a folder, an archive or a video."""
    return folder.is_dir() or is_container(folder)


def find_changes(
    store: Store,
    roots: dict[Path, Root],
    folder: Path,
    rules: WalkRules,
    *,
    open_unchanged: bool = False,
    retry_errors: bool = False,
    seen: Callable[[int], None] | None = None,
) -> Changes:
    """Compare a folder with the index.

    Args:
        store: the index; only read, but for the note of a new root.
        roots: its scanned folders, by path; a new one is added.
        folder: absolute path; an archive or a video is one, too.
        rules: which files count; others are neither added nor removed.
        open_unchanged: do not trust stats.
        retry_errors: open again what could not be read.
        seen: called with the number of files found so far.
    """
    root = find_owner(roots, folder) or Root(store.root_id(folder), folder, folder.stat().st_dev)
    roots[root.path] = root
    changes = Changes(folder, root, Walk(folder, rules))
    known = known_below(store, roots, root, folder)
    changes.known = len(known)
    prefix = _prefix(root.path, folder)
    for below, stat in changes.walk.images():
        changes.note(known, prefix + below, stat, trust=not open_unchanged, retry=retry_errors)
        if seen is not None and changes.found % 1000 == 0:
            seen(changes.found)
    changes.failed += changes.walk.damaged
    start = len(prefix)
    changes.gone = {
        relpath: record
        for relpath, (_, record) in known.items()
        if rules.takes(relpath[start:]) and not changes.walk.may_hold(relpath[start:])
    }
    videos = {prefix + os.fsencode(video) + b"/" for video in changes.walk.videos}
    changes.thinned = sum(relpath[: relpath.rfind(b"/") + 1] in videos for relpath in changes.gone)
    return changes


def find_owner(roots: dict[Path, Root], folder: Path) -> Root | None:
    """Return the outermost root that a folder is or lies in."""
    return next((roots[place] for place in (*reversed(folder.parents), folder) if place in roots), None)


def known_below(store: Store, roots: dict[Path, Root], root: Root, folder: Path) -> Known:
    """Return what the index knows below a folder, by path below `root`."""
    start = _prefix(root.path, folder)
    own = store.files(root.id).items()
    known = {relpath: (False, record) for relpath, record in own if relpath.startswith(start)}
    inner_roots = () if is_container(root.path) else roots.values()
    for inner in inner_roots:
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
