"""Several indexes made into one: the descriptors are copied, no photo is opened."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import ArgumentError, StoreError

from .ann import refresh
from .layout import Layout, check_model
from .lean import Piece, write_lean
from .records import FileStat, Known, Row, Watch
from .snapshot import Snapshot
from .store import Store

LEAN_FROM = 10_000_000  # items from which a row of SQLite for each is too much: 190 bytes and 10 microseconds
_ROWS = 65_536


@dataclass(frozen=True)
class Merge:
    """What `merge_indexes` did.

    Attributes:
        directory: the new index.
        items: photos in it.
        dropped: photos left out, because another index had a newer state of the same file.
        lean: whether its manifest is lean.
    """

    directory: Path
    items: int
    dropped: int
    lean: bool


def merge_indexes(
    sources: Sequence[Path],
    directory: Path,
    *,
    lean: bool | None = None,
    memory: int | None = None,
    watch: Watch | None = None,
) -> Merge:
    """Make one index of several, in the order given. Ids are given anew, from 1; the sources stay.

    Of a file that several indexes have, the state with the newest modification time is taken; of equal ones
    the first. Files that could not be read are not taken over: the next `index_photos` meets them again.

    Args:
        sources: indexes that were made with the same model.
        directory: the new index, where there is none yet.
        lean: write no row per item into the manifest: it can be searched but not updated; by itself above ten
            million items.
        memory: bytes that the faiss index of the result may take.
        watch: called with the stage of the work.

    Raises:
        ArgumentError: there are fewer than two sources, or one is named twice.
        StoreMismatch: two were made with different models.
        StoreError: there is an index at the new place, or the disk is full or fails.
    """
    if len({source.resolve() for source in sources}) < 2:
        raise ArgumentError("a merge needs at least two different indexes")
    if Layout(directory).card.exists():
        raise StoreError(
            f"there is an index in {directory} already", hint="name a folder that does not exist yet"
        )
    with ExitStack() as stack:
        snapshots = [stack.enter_context(Snapshot.open(source)) for source in sources]
        model = snapshots[0].card.model
        for snapshot in snapshots[1:]:
            check_model(snapshots[0].card, snapshot.card.model)
        total = sum(len(snapshot) for snapshot in snapshots)
        pieces = _pieces(snapshots, _newest(snapshots, watch or (lambda *_: None)))
        if lean if lean is not None else total > LEAN_FROM:
            items = write_lean(directory, model, pieces, watch=watch)
            return Merge(directory, items, total - items, True)
        Store.create(directory, model)
        with Store.open(directory) as store:
            items = put_pieces(store, pieces, total=total, watch=watch)
            refresh(store, memory=memory, watch=watch)
    return Merge(directory, items, total - items, False)


def put_pieces(store: Store, pieces: Iterable[Piece], *, total: int | None, watch: Watch | None) -> int:
    """Put rows that are described already into a store, a commit for each piece; return how many."""
    roots: dict[bytes, int] = {}
    items = 0
    for rows, descriptors in pieces:
        for row, descriptor in zip(rows, descriptors, strict=True):
            if row.root not in roots:
                roots[row.root] = store.root_id(Path(os.fsdecode(row.root)))
            facts = (row.width, row.height, row.orientation, row.taken_at)
            known = Known(descriptor, *facts, file_id=0, item_id=row.id)
            stat = FileStat(row.size, row.mtime_ns, row.inode)
            store.put(roots[row.root], row.relpath, stat, row.digest, known)
        store.commit()
        items += len(rows)
        if watch is not None:
            watch("Storing", items, total)
    return items


def _pieces(snapshots: Sequence[Snapshot], kept: Sequence[Int64[np.ndarray, " _"]]) -> Iterator[Piece]:
    """Yield the items that are kept, index by index, in the order of their ids."""
    for snapshot, ids in zip(snapshots, kept, strict=True):
        for start in range(0, len(ids), _ROWS):
            some = ids[start : start + _ROWS]
            yield snapshot.rows(some), snapshot.descriptors(some)


def _newest(snapshots: Sequence[Snapshot], watch: Watch) -> list[Int64[np.ndarray, " _"]]:
    """Return the ids of each index that no other index has a newer state of, ascending."""
    keys, times, sources, ids = [], [], [], []
    for number, snapshot in enumerate(snapshots):
        watch("Comparing", number, len(snapshots))
        for some, _ in snapshot.blocks(_ROWS):
            rows = snapshot.rows(some)
            names = b"".join(_key(row) for row in rows)
            keys.append(np.frombuffer(names, np.uint64).reshape(-1, 2))
            times.append(np.array([row.mtime_ns for row in rows], np.int64))
            sources.append(np.full(len(some), number))
            ids.append(some)
    if not keys:
        return [np.zeros(0, np.int64) for _ in snapshots]
    key, time, source, item = (np.concatenate(part) for part in (keys, times, sources, ids))
    order = np.lexsort((source, -time, key[:, 1], key[:, 0]))
    first = np.r_[True, np.any(key[order][1:] != key[order][:-1], axis=1)]
    best = order[first]
    return [np.sort(item[best[source[best] == number]]) for number in range(len(snapshots))]


def _key(row: Row) -> bytes:
    """Return a digest of the path of a file; 16 bytes, so that a hundred million of them fit in memory."""
    path = row.root.rstrip(b"/") + b"/" + row.relpath
    return hashlib.blake2b(path, digest_size=16).digest()
