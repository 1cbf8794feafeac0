"""Which index is meant: named, of the environment, beside the photos, or noted in the registry of the user.

The registry `indexes.json` in the data folder notes where indexes lie and which folders they scan. It only
helps to find them: an index works as well without it.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from dinov2kit.catalogue import data_folder
from dinov2kit.errors import ArgumentError, StoreMissing

from .layout import Layout, write_durably

BESIDE = ".dinokit"  # an index inside the folder that it scans
_NAMED = 5  # of several indexes


def find_index(index: Path | None = None, *, start: Path | None = None) -> Path:
    """Return the index directory that is meant.

    In this order: the one named; `$DINOKIT_INDEX`; `.dinokit` in the current folder or above it; a registered
    one that scans the current folder; the only registered one.

    Args:
        index: named by the user.
        start: instead of the current folder.

    Raises:
        StoreMissing: there is none there, or none at all.
        ArgumentError: there are several to choose from.
    """
    named = index or _from_environment()
    if named is not None:
        return _existing(named)
    here = (start or Path.cwd()).resolve()
    if (owner := _owner(here, _scanned())) is not None:
        return owner
    known = {directory: roots for directory, roots in read_registry().items() if _is_index(directory)}
    if not known:
        raise StoreMissing("there is no index yet", hint="make one with: dinokit index PHOTOS")
    if len(known) > 1:
        listed = "; ".join(
            f"{directory} ({', '.join(map(str, roots))})" for directory, roots in list(known.items())[:_NAMED]
        ) + ("; …" if len(known) > _NAMED else "")
        raise ArgumentError(
            f"{len(known)} indexes are known, and none scans {here}: {listed}",
            hint="name one with -i DIR, or go into one of these folders",
        )
    return next(iter(known))


def place_index(folders: Sequence[Path], index: Path | None = None, *, in_place: bool = False) -> Path:
    """Return the directory of the index that scans some folders, or where a new one for them belongs.

    Args:
        folders: absolute paths.
        index: named by the user; need not exist.
        in_place: a new one goes into the first folder (of an archive, beside it), as `.dinokit`, not into the
            data folder.

    Raises:
        ArgumentError: the folders belong to different indexes already.
    """
    named = index or _from_environment()
    if named is not None:
        return named.expanduser().absolute()
    scanned = _scanned()
    owners = [_owner(folder, scanned) for folder in folders]
    found = list(dict.fromkeys(owner for owner in owners if owner is not None))
    if len(found) > 1:
        raise ArgumentError(
            f"these folders belong to {len(found)} indexes: {', '.join(map(str, found))}",
            hint="index them one by one, or name the index with -i DIR",
        )
    if found:
        return found[0]
    if in_place:
        return (folders[0] if folders[0].is_dir() else folders[0].parent) / BESIDE
    slug = re.sub(r"[^a-z0-9]+", "-", folders[0].name.lower()).strip("-") or "photos"
    return data_folder() / "indexes" / f"{slug}-{uuid.uuid4().hex[:8]}"


def read_registry() -> dict[Path, list[Path]]:
    """Return the noted indexes and the folders that each scans; an unreadable registry counts as empty."""
    try:
        noted = json.loads(_registry().read_text("utf-8"))["indexes"]
        return {_path(directory): [_path(root) for root in roots] for directory, roots in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def register(directory: Path, roots: Sequence[Path]) -> None:
    """Note an index and the folders that it scans; indexes that are no longer there are forgotten."""
    registry = _registry()
    with suppress(OSError):  # a read-only home: the index can still be named with -i
        registry.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(registry.with_suffix(".lock"), timeout=10):
            known = {place: of for place, of in read_registry().items() if _is_index(place)}
            known[directory.absolute()] = list(roots)
            noted = {_text(place): [_text(root) for root in of] for place, of in sorted(known.items())}
            content = json.dumps({"schema": "dinokit.registry/1", "indexes": noted}, indent=2)
            write_durably(registry, content.encode() + b"\n")


def _owner(folder: Path, scanned: dict[Path, Path]) -> Path | None:
    """Return the index inside or above a folder, or the registered one that scans it; the nearest wins."""
    above = (folder, *folder.parents)
    beside = next((place / BESIDE for place in above if _is_index(place / BESIDE)), None)
    return beside or next((scanned[place] for place in above if place in scanned), None)


def _scanned() -> dict[Path, Path]:
    """Return which registered index scans a folder."""
    known = sorted(read_registry().items())
    return {root: directory for directory, roots in known if _is_index(directory) for root in roots}


def _from_environment() -> Path | None:
    value = os.environ.get("DINOKIT_INDEX")
    return Path(value) if value else None


def _existing(directory: Path) -> Path:
    directory = directory.expanduser().absolute()
    if not _is_index(directory) and not Layout(directory).shards():  # without its card it can be repaired
        raise StoreMissing(
            f"there is no index in {directory}",
            hint="make one with: dinokit index PHOTOS -i " + str(directory),
        )
    return directory


def _is_index(directory: Path) -> bool:
    return Layout(directory).card.is_file()


def _registry() -> Path:
    return data_folder() / "indexes.json"


def _text(path: Path) -> str:
    """Return a path as text that JSON can hold; bytes that are no UTF-8 survive."""
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def _path(text: str) -> Path:
    return Path(os.fsdecode(text.encode("utf-8", "surrogateescape")))
