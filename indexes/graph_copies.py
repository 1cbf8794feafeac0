"""Items with the same row: they count as one in the search for neighbours, and get their edges after it.

Photos that were copied have equal descriptors. Without care, 100 copies are each other's 64 nearest and hide
everything else; which 64 is chance; and the search does the same work 100 times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float16, Float32, Int64

from .snapshot import Snapshot

_BLOCK = 65536  # rows read at a time
_LINKS = 2**21  # edges of items built at a time


@dataclass(frozen=True)
class DistinctRows:
    """The rows of a snapshot, those that several items share once. They go by their position in `firsts`.

    Attributes:
        snapshot: where they lie.
        firsts: the lowest id of each row's items, ascending.
        members: all ids, row after row, ascending within each.
        starts: where each row's items start in `members`, and the end of all.
    """

    snapshot: Snapshot
    firsts: Int64[np.ndarray, " rows"]
    members: Int64[np.ndarray, " n"]
    starts: Int64[np.ndarray, " rows_and_1"]

    @classmethod
    def of(cls, snapshot: Snapshot) -> DistinctRows:
        """Find the rows that several items share, by a digest of their bytes."""
        digests = np.empty((len(snapshot), 2), np.int64)
        done = 0
        for ids, rows in snapshot.blocks():
            joined = b"".join(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
            digests[done : done + len(ids)] = np.frombuffer(joined, np.int64).reshape(-1, 2)
            done += len(ids)
        order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable: ids ascend within a row
        new = np.ones(len(order), bool)
        new[1:] = (np.diff(digests[order], axis=0) != 0).any(axis=1)
        lowest = snapshot.ids[order[new]][np.cumsum(new) - 1]  # of each item, the lowest id of its row
        members = snapshot.ids[order]
        grouped = np.lexsort((members, lowest))
        firsts, starts = np.unique(lowest[grouped], return_index=True)
        return cls(snapshot, firsts, members[grouped], np.append(starts, len(order)).astype(np.int64))

    def __len__(self) -> int:
        return len(self.firsts)

    def read(self, places: Int64[np.ndarray, " m"]) -> Float16[np.ndarray, "m dim"]:
        """Return some rows."""
        return self.snapshot.descriptors(self.firsts[places])

    def blocks(self) -> Iterator[tuple[int, Float16[np.ndarray, "m dim"]]]:
        """Yield all rows in their order, each block with the position of its first."""
        for start in range(0, len(self), _BLOCK):
            yield start, self.snapshot.descriptors(self.firsts[start : start + _BLOCK])


@dataclass(frozen=True)
class Near:
    """Which rows are near which, sorted by `row`: positions in two `DistinctRows`, and the cosines."""

    row: Int64[np.ndarray, " e"]
    place: Int64[np.ndarray, " e"]
    score: Float32[np.ndarray, " e"]


@dataclass(frozen=True)
class Links:
    """Which items are near which, each item's together: ids and cosines."""

    item: Int64[np.ndarray, " e"]
    other: Int64[np.ndarray, " e"]
    score: Float32[np.ndarray, " e"]


def link_items(
    near: Near, rows: range, queries: DistinctRows, gallery: DistinctRows, *, k: int
) -> Iterator[Links]:
    """Yield the edges of the items of some rows: to at most `k` others each, one of each row before copies.

    Where `queries` is `gallery`, an item is also linked to its own copies, and never to itself.

    Args:
        near: for each row, its nearest other rows.
        rows: which rows `near` is about.
        queries: what `rows` and `near.row` count.
        gallery: what `near.place` counts.
        k: most edges of an item.
    """
    same = queries is gallery
    row, place, score = near.row, near.place, near.score
    if same:
        counts = np.diff(queries.starts[rows.start : rows.stop + 1])
        copied = rows.start + np.flatnonzero(counts > 1)
        row, place = np.append(row, copied), np.append(place, copied)
        score = np.append(score, np.ones(len(copied), np.float32))
        order = np.argsort(row, kind="stable")
        row, place, score = row[order], place[order], score[order]
    sizes = np.minimum(np.diff(gallery.starts)[place], k + 1)
    first_link = np.searchsorted(row, np.arange(rows.start, rows.stop + 1))
    ends = np.append(0, np.cumsum(sizes))[first_link]
    items = queries.members[queries.starts[rows.start] : queries.starts[rows.stop]]
    own = np.repeat(np.arange(len(rows)), np.diff(queries.starts[rows.start : rows.stop + 1]))
    links = np.cumsum(np.diff(ends)[own])
    for some in np.split(
        np.arange(len(items)),
        np.searchsorted(links, np.arange(_LINKS, links[-1], _LINKS)) if len(items) else [],
    ):
        which, link = _ragged(first_link[own[some]], np.diff(first_link)[own[some]])
        entry, member = _ragged(gallery.starts[place[link]], sizes[link])
        item, other = items[some][which[entry]], gallery.members[member]
        nth = member - gallery.starts[place[link[entry]]]
        if same:
            nth -= (place[link[entry]] == row[link[entry]]) & (item < other)  # an item is no copy of itself
            real = item != other
            yield _best(item[real], other[real], score[link[entry[real]]], nth[real], k)
        else:
            yield _best(item, other, score[link[entry]], nth, k)


def _best(
    item: Int64[np.ndarray, " e"],
    other: Int64[np.ndarray, " e"],
    score: Float32[np.ndarray, " e"],
    nth: Int64[np.ndarray, " e"],
    k: int,
) -> Links:
    """Return the `k` best others of each item: first of their row, then by score, then by id."""
    order = np.lexsort((other, -score, nth > 0, item))
    item, other, score = item[order], other[order], score[order]
    kept = np.arange(len(item)) - np.searchsorted(item, item) < k
    return Links(item[kept], other[kept], score[kept])


def _ragged(
    starts: Int64[np.ndarray, " m"], counts: Int64[np.ndarray, " m"]
) -> tuple[Int64[np.ndarray, " e"], Int64[np.ndarray, " e"]]:
    """Return the numbers of all runs `starts` to `starts + counts`, each with the place of its run."""
    run = np.repeat(np.arange(len(counts)), counts)
    return run, np.arange(len(run)) + (starts - np.cumsum(counts) + counts)[run]
