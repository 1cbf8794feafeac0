"""The photos that curation looks for or keeps away from: an index, or a folder that becomes one.

A folder is described with the model of the pool, into an index of its own that later runs bring up to date:
only what is new or changed is opened. That index is noted in no registry; nothing else finds it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Int64

from dinov2kit.errors import ImageError, StoreError, StoreMismatch
from dinov2kit.pipeline import GlobalEncoder

from .changes import check_folders
from .layout import Layout, check_model
from .records import Watch
from .snapshot import Snapshot
from .store import Store
from .update import UpdateRules, update

LoadEncoder = Callable[[], GlobalEncoder]


@dataclass(frozen=True)
class PhotoSet:
    """Some photos that are described.

    Attributes:
        name: the folder or index, as it was named.
        snapshot: the index that describes them.
        ids: its items; of a folder by path, so that their order does not depend on when each was added.
        is_index: whether an index was named; the items of another have no meaning outside.
        unreadable: (path, reason) of files of a folder that could not be described.
    """

    name: str
    snapshot: Snapshot
    ids: Int64[np.ndarray, " n"]
    is_index: bool
    unreadable: tuple[tuple[Path, str], ...] = ()

    @property
    def state(self) -> list[object]:
        """What tells this set from another one, or from itself at another time."""
        return [self.snapshot.card.uuid, hashlib.sha256(self.ids.tobytes()).hexdigest()]


class Queries:
    """The photos of some sets, one after the other.

    Attributes:
        sets: the sets.
    """

    def __init__(self, sets: Sequence[PhotoSet]) -> None:
        self.sets = tuple(sets)
        self._ids = np.concatenate([np.zeros(0, np.int64), *(one.ids for one in sets)])
        self._set = np.repeat(np.arange(len(sets)), [len(one.ids) for one in sets])

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def set_of(self) -> Int64[np.ndarray, " n"]:
        """The set of each query."""
        return self._set

    def descriptors(self, places: Int64[np.ndarray, " k"]) -> Float16[np.ndarray, "k dim"]:
        """Read the descriptors of some queries."""
        rows = np.empty((len(places), self.sets[0].snapshot.dim), np.float16)
        for number, one in enumerate(self.sets):
            here = self._set[places] == number
            rows[here] = one.snapshot.descriptors(self._ids[places[here]])
        return rows

    def names(self, places: Int64[np.ndarray, " k"]) -> list[tuple[int | None, Path]]:
        """Return the item, where it means something, and the path of some queries."""
        found: list[tuple[int | None, Path]] = [(None, Path())] * len(places)
        for number, one in enumerate(self.sets):
            here = np.flatnonzero(self._set[places] == number)
            photos = one.snapshot.photos(self._ids[places[here]])
            for place, photo in zip(here, photos, strict=True):
                found[place] = (photo.id if one.is_index else None, photo.path)
        return found


def open_set(
    path: Path,
    pool: Snapshot,
    work: Path,
    load_encoder: LoadEncoder,
    stack: ExitStack,
    *,
    rules: UpdateRules,
    watch: Watch,
) -> PhotoSet:
    """Open an index, or describe a folder with the model of the pool.

    Args:
        path: the index or folder.
        pool: whose model it must have.
        work: where the indexes of folders are kept.
        load_encoder: called when a photo has to be described.
        stack: closes what is opened here.
        rules: how a folder is read.
        watch: called with the stage of the work.

    Raises:
        StoreMismatch: the index has another model.
        ImageError: there is no photo.
        StoreError: `work` cannot be written, or the index is damaged.
    """
    is_index = Layout(path).card.is_file()
    directory, unreadable = path, list[tuple[Path, str]]()
    if not is_index:
        directory, unreadable = _describe(path, pool, work, load_encoder, rules, watch)
    snapshot = stack.enter_context(Snapshot.open(directory))
    try:
        check_model(pool.card, snapshot.card.model)
    except StoreMismatch as error:
        raise StoreMismatch(
            f"{path} cannot be compared with the pool, whose {error.message}",
            hint="name the folder of its photos instead; they are described with the right model",
        ) from error
    if not len(snapshot):
        raise ImageError(f"there is no photo that can be read in {path}")
    ids = snapshot.ids
    if not is_index:
        paths = [os.fsencode(photo.path) for photo in snapshot.photos(ids)]
        ids = ids[sorted(range(len(paths)), key=paths.__getitem__)]
    return PhotoSet(os.fspath(path), snapshot, ids, is_index, tuple(unreadable))


def find_own(pool: Snapshot, sets: Sequence[PhotoSet]) -> Int64[np.ndarray, " n"]:
    """Return the items of the pool that are photos of the sets themselves: the same files."""
    own: set[int] = set()
    for one in sets:
        if one.snapshot.card.uuid == pool.card.uuid:
            own.update(one.ids.tolist())
            continue
        for photo in one.snapshot.photos(one.ids):
            if (item := pool.find(photo.path)) is not None:
                own.add(item)
    return np.array(sorted(own), np.int64)


def _describe(
    folder: Path, pool: Snapshot, work: Path, load_encoder: LoadEncoder, rules: UpdateRules, watch: Watch
) -> tuple[Path, list[tuple[Path, str]]]:
    """Bring the index of a folder up to date; return where it lies, and what could not be read."""
    (whole,) = check_folders([folder])
    name = hashlib.sha256(os.fsencode(whole) + pool.card.model.fingerprint.encode()).hexdigest()[:16]
    directory = work / f"photos-{name}"
    if not Layout(directory).card.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{folder} cannot be described into {work}: {error.strerror or error}",
                hint="name a folder that can be written with --work DIR",
            ) from error
        Store.create(directory, pool.card.model)
    with Store.open(directory) as store:
        mirror = replace(rules, prune="force")  # it follows its folder, whatever happens there
        report = update(store, [whole], load_encoder, mirror, watch=watch, stop=lambda: False)
    return directory, [*report.errors, *report.unread]
