"""Which photos are compared, which of them are as the index knows them, and which must stay."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dinov2kit.contents import find_place, is_there
from dinov2kit.errors import ArgumentError

from .records import Watch
from .related import Related
from .snapshot import Photo, Snapshot

_READ = 4096  # photos at a time


@dataclass
class Scope:
    """The photos to compare.

    Attributes:
        considered: how many photos the rules let through, before a look at their files.
        photos: by ascending id; of several names of one file, one.
        protected: ids of those that are never proposed: in the reference folder, in an archive, or with other
            names on disk, so that removing one frees nothing.
        tied: ids of those with other names on disk.
        names: (other name, name that is compared) of one file.
        skipped: (path, reason) of photos that are left out.
    """

    considered: int = 0
    photos: list[Photo] = field(default_factory=list)
    protected: set[int] = field(default_factory=set)
    tied: set[int] = field(default_factory=set)
    names: list[Related] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)


def choose_photos(
    snapshot: Snapshot,
    *,
    within: Path | None,
    reference: Path | None,
    where: str | None,
    shared_only: bool,
    watch: Watch,
) -> Scope:
    """Return the photos to compare, after a look at each file.

    Args:
        snapshot: the index.
        within: only photos in this folder, and those of `reference`.
        reference: a folder whose photos are never proposed.
        where: an SQL expression that holds for the photos outside of `reference`.
        shared_only: only photos whose content other photos have too.
        watch: called with the stage of the work.

    Raises:
        ArgumentError: a folder holds no indexed photo, or the expression is not allowed.
    """
    whole = {name: _absolute(folder) for name, folder in (("within", within), ("reference", reference))}
    allowed = None if where is None else set(snapshot.where(where).tolist())
    met: set[str] = set()
    chosen: list[Photo] = []
    fixed: set[int] = set()
    for start in range(0, len(snapshot), _READ):
        for photo in snapshot.photos(snapshot.ids[start : start + _READ]):
            inside = {name for name, folder in whole.items() if folder and photo.path.is_relative_to(folder)}
            met |= inside
            if "reference" in inside:
                fixed.add(photo.id)
            elif (within is not None and "within" not in inside) or (
                allowed is not None and photo.id not in allowed
            ):
                continue
            chosen.append(photo)
    for name, folder in whole.items():
        if folder is not None and name not in met:
            raise ArgumentError(
                f"the index has no photo in {folder} (--{name})",
                hint="see what it scans with: dinokit info; add the folder with: dinokit index FOLDER",
            )
    considered = len(chosen)
    if shared_only:
        counts = Counter(photo.digest for photo in chosen)
        chosen = [photo for photo in chosen if counts[photo.digest] > 1]
    scope = Scope(considered)
    _look_at(scope, chosen, fixed, watch)
    return scope


def _look_at(scope: Scope, chosen: Sequence[Photo], fixed: set[int], watch: Watch) -> None:
    """Compare each file with what the index knows, and find the names that one file has."""
    names: dict[tuple[int, int], list[Photo]] = defaultdict(list)
    for done, photo in enumerate(chosen):
        if done % _READ == 0:
            watch("Looking", done, len(chosen))
        try:
            facts = photo.path.stat()
        except OSError:
            if find_place(photo.path) is not None and is_there(photo.path):
                scope.photos.append(photo)
                scope.protected.add(photo.id)
            else:
                scope.skipped.append((photo.path, "it is gone"))
            continue
        if (facts.st_size, facts.st_mtime_ns) != (photo.size, photo.mtime_ns):
            scope.skipped.append((photo.path, "it has changed; run dinokit index first"))
            continue
        names[facts.st_dev, facts.st_ino].append(photo)
    for same in names.values():
        first = min(same, key=lambda photo: (photo.id not in fixed, len(os.fsencode(photo.path)), photo.path))
        scope.photos.append(first)
        if len(same) > 1:
            scope.tied.add(first.id)
        others = [photo for photo in same if photo is not first]
        scope.names += [Related(photo.path, "hard link", first.path) for photo in others]
    scope.photos.sort(key=lambda photo: photo.id)
    scope.protected |= scope.tied | (fixed & {photo.id for photo in scope.photos})


def _absolute(folder: Path | None) -> Path | None:
    return None if folder is None else Path(os.path.abspath(folder))  # noqa: PTH100


def ids_of(photos: Sequence[Photo]) -> np.ndarray:
    """Return the item ids of photos."""
    return np.array([photo.id for photo in photos], np.int64)
