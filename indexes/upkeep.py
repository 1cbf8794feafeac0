"""Fewer, fuller shards: small ones are merged, tombstoned rows dropped. Ids never change.

Each new shard is one commit of its own, so that a crash costs at most one. The shards it replaces stay for an
hour for readers that are about to open them; the next writer after that deletes them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .store import Store

SMALL_SHARDS = 8  # so many small shards are worth a rewrite at the end of a run
DEAD_SHARE = 0.2  # so much of a shard dead makes it worth a rewrite


@dataclass(frozen=True)
class Compaction:
    """What `compact` did.

    Attributes:
        shards_before: shards in use before.
        shards_after: shards in use after.
        rows_dropped: tombstoned rows that are gone.
        bytes_retired: size of the replaced shards; free after an hour, when the next writer opens the index.
    """

    shards_before: int
    shards_after: int
    rows_dropped: int
    bytes_retired: int


@dataclass(frozen=True)
class _Use:
    """How full a shard is."""

    number: int
    rows: int
    live: int


def compact(directory: Path, *, wait: float = 0.0) -> Compaction:
    """Drop all tombstoned rows and merge small shards.

    Args:
        directory: the index.
        wait: seconds to wait for another writer.

    Raises:
        StoreError: as `Store.open`, or the disk is full; what was rewritten so far stays.
    """
    with Store.open(directory, wait=wait) as store:
        before = _uses(store)
        rewritten: list[int] = []
        for group in _groups(before, store.card.shard_rows):
            if len(group) > 1 or group[0].live < group[0].rows:
                store.replace_shards([use.number for use in group])
                rewritten += [use.number for use in group]
        after = _uses(store)
        return Compaction(
            shards_before=len(before),
            shards_after=len(after),
            rows_dropped=sum(use.rows for use in before) - sum(use.rows for use in after),
            bytes_retired=sum(store.layout.shard(number).stat().st_size for number in rewritten),
        )


def merge_small(store: Store, *, small_shards: int = SMALL_SHARDS) -> int:
    """Tidy up at the end of a run, where it is worth the writing; return how many shards were replaced.

    Args:
        store: with nothing uncommitted.
        small_shards: merge when there are at least so many that are not full.
    """
    full = store.card.shard_rows
    uses = _uses(store)
    dead = [use for use in uses if use.rows - use.live >= DEAD_SHARE * use.rows and use.live < use.rows]
    small = [use for use in uses if use.rows < full]
    worth = small if len(small) >= small_shards else []
    chosen = {use.number for use in dead} | {use.number for use in worth}
    replaced = 0
    for group in _groups([use for use in uses if use.number in chosen], full):
        if len(group) > 1 or group[0] in dead:
            store.replace_shards([use.number for use in group])
            replaced += len(group)
    return replaced


def _uses(store: Store) -> list[_Use]:
    """Return the shards in use, in the order of their ids."""
    return [_Use(*facts) for facts in store.shard_uses()]


def _groups(uses: Iterable[_Use], full: int) -> list[list[_Use]]:
    """Join neighbours as long as their live rows fit one shard."""
    groups: list[list[_Use]] = []
    for use in uses:
        if groups and sum(other.live for other in groups[-1]) + use.live <= full:
            groups[-1].append(use)
        else:
            groups.append([use])
    return groups
