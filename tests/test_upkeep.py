"""Fewer, fuller shards: the same photos as before, whatever happens in between; readers lose nothing."""

import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_index import ROOT, content, contents, expected, flip_bit, make_index, put, remove, stat, stored

from dinov2kit import StoreCorrupt
from dinov2kit.indexes.layout import Layout, move_durably
from dinov2kit.indexes.manifest import retire
from dinov2kit.indexes.shards import Shard
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import DEAD_SHARE, Compaction, _groups, _Use, compact, merge_small
from dinov2kit.indexes.verifying import verify


def uses(directory: Path) -> list[tuple[int, int, int]]:
    """Return (number, rows, live rows) of the shards in use."""
    with Store.open(directory) as store:
        return store.shard_uses()


def removed(directory: Path, *seeds: int) -> Path:
    """Remove photos in one commit."""
    with Store.open(directory) as store:
        remove(store, *seeds)
        store.commit()
    return directory


def test_compact_drops_the_dead_and_keeps_ids_and_bytes_of_the_living(tmp_path):
    directory = removed(make_index(tmp_path / "ix", 30, per_shard=10), 1, 2, 15, 30)
    with Store.open(directory) as store:
        root = store.root_id(ROOT)
        store.move(store.files(root)[b"7.jpg"].id, root, b"moved/7.jpg", stat(70))
        put(store, "8.jpg", 108)
        store.commit()
    before, layout = contents(directory), Layout(directory)
    sizes = sum(layout.shard(number).stat().st_size for number in (1, 2, 3, 4))
    done = compact(directory)
    assert done == Compaction(shards_before=4, shards_after=1, rows_dropped=5, bytes_retired=sizes)
    assert contents(directory) == before
    (shard,) = (Shard(layout.shard(number)) for number, _, _ in uses(directory))
    live = sorted(before.items(), key=lambda pair: pair[1][0])
    assert shard.ids.tolist() == [item for _, (item, _, _) in live]
    assert [row.relpath for row in shard.rows()] == [path for path, _ in live]  # moves have arrived
    moved = next(row for row in shard.rows() if row.relpath == b"moved/7.jpg")
    assert (moved.digest, moved.size, moved.mtime_ns, moved.inode) == (
        content(7), stat(70).size, stat(70).mtime_ns, stat(70).inode,
    )  # fmt: skip
    assert verify(directory, deep=True).ok


def test_compact_of_a_tidy_index_writes_nothing(tmp_path):
    directory = make_index(tmp_path / "ix", 12, per_shard=4, shard_rows=4)
    before = {path: path.stat().st_mtime_ns for path in Layout(directory).shards().values()}
    assert compact(directory) == Compaction(3, 3, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in Layout(directory).shards().values()} == before
    empty = make_index(tmp_path / "empty")
    assert compact(empty) == Compaction(0, 0, 0, 0)


def test_compact_of_nothing_but_removed_photos_leaves_no_row(tmp_path):
    directory = removed(make_index(tmp_path / "ix", 6, per_shard=3), *range(1, 7))
    done = compact(directory)
    assert (done.shards_before, done.shards_after, done.rows_dropped) == (2, 0, 6)
    assert contents(directory) == {}
    assert compact(directory) == Compaction(0, 0, 0, 0)
    with Store.open(directory, retire_after=-1.0) as store:
        assert put(store, "7.jpg", 7) == 7
        store.commit()
    assert contents(directory) == expected(7)
    assert verify(directory, deep=True).ok


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20), st.integers(1, 20))
def test_groups_are_neighbours_that_fit_one_shard(pairs, full):
    shards = [_Use(number, rows=live + dead, live=live) for number, (live, dead) in enumerate(pairs)]
    groups = _groups(shards, full)
    assert [use for group in groups for use in group] == shards  # nothing lost, order kept
    for group in groups:
        assert len(group) == 1 or sum(use.live for use in group) <= full
    for one, next_one in pairwise(groups):
        assert sum(use.live for use in one) + next_one[0].live > full  # as few as neighbours allow


def test_merge_begins_at_eight_small_shards(tmp_path):
    directory = make_index(tmp_path / "ix", 14, per_shard=2, shard_rows=100)
    with Store.open(directory) as store:
        assert merge_small(store) == 0
        assert store.shard_uses() == [(number, 2, 2) for number in range(1, 8)]
        put(store, "15.jpg", 15)
        store.commit()
        assert merge_small(store) == 8
        assert store.shard_uses() == [(9, 15, 15)]
        assert merge_small(store) == 0
    assert contents(directory) == expected(*range(1, 16))


def test_full_shards_are_left_alone_by_the_merge(tmp_path):
    directory = make_index(tmp_path / "ix", 12, per_shard=4, shard_rows=4)
    with Store.open(directory) as store:
        for seed in (13, 14):
            put(store, f"{seed}.jpg", seed)
            store.commit()
        assert merge_small(store, small_shards=2) == 2
        assert store.shard_uses() == [(1, 4, 4), (2, 4, 4), (3, 4, 4), (6, 2, 2)]
    assert contents(directory) == expected(*range(1, 15))


@pytest.mark.parametrize(("dead", "replaced"), [(0, 0), (1, 0), (2, 1), (3, 1), (10, 1)])
def test_a_fifth_of_dead_rows_is_worth_a_rewrite(tmp_path, dead, replaced):
    assert DEAD_SHARE == 0.2
    directory = removed(make_index(tmp_path / "ix", 20, per_shard=10, shard_rows=10), *range(1, dead + 1))
    with Store.open(directory) as store:
        assert merge_small(store) == replaced
        wanted = {1: (10, 10 - dead)} if not replaced else {3: (10 - dead, 10 - dead)} if dead < 10 else {}
        assert {n: (rows, live) for n, rows, live in store.shard_uses()} == {**wanted, 2: (10, 10)}
    assert contents(directory) == expected(*range(dead + 1, 21))
    assert verify(directory, deep=True).ok


class PowerCut(BaseException):
    """Nothing may catch this."""


MOMENTS = ["before the shard", "after the shard", "before the transaction", "second shard"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_crash_in_the_middle_of_compaction_costs_nothing(tmp_path, monkeypatch, moment):
    directory = removed(make_index(tmp_path / "ix", 40, per_shard=10, shard_rows=20), 3, 13, 23, 33)
    before, layout = contents(directory), Layout(directory)
    calls = []

    def torn_move(source: Path, target: Path) -> None:
        calls.append(target)
        if moment == "before the shard" or (moment == "second shard" and len(calls) == 2):
            raise PowerCut
        move_durably(source, target)
        if moment == "after the shard":
            raise PowerCut

    def torn_retire(*given: object) -> None:
        retire(*given)
        if moment == "before the transaction":
            raise PowerCut

    monkeypatch.setattr("dinov2kit.indexes.shards.move_durably", torn_move)
    monkeypatch.setattr("dinov2kit.indexes.store.retire", torn_retire)
    with pytest.raises(PowerCut):
        compact(directory)
    monkeypatch.undo()
    assert contents(directory) == before  # readers first: they clear nothing away
    assert verify(directory, deep=True).ok
    Store.open(directory).close()
    assert not list(layout.tmp.iterdir())
    assert contents(directory) == before
    assert compact(directory).rows_dropped == (2 if moment == "second shard" else 4)
    assert contents(directory) == before
    assert [rows for _, rows, _ in uses(directory)] == [18, 18]
    assert verify(directory, deep=True).ok


def test_damage_is_not_copied_into_a_shard_with_a_fresh_checksum(tmp_path):
    directory = removed(make_index(tmp_path / "ix", 20, per_shard=10), 1)
    layout = Layout(directory)
    flip_bit(layout.shard(2))
    before = contents(directory)
    with pytest.raises(StoreCorrupt, match=r"shard-00000002\.h5") as caught:
        compact(directory)
    assert "dinokit repair" in caught.value.hint
    assert list(layout.shards()) == [1, 2]
    assert contents(directory) == before
    (failed,) = [check for check in verify(directory, deep=True).checks if not check.ok]
    assert failed.detail == "shard-00000002.h5"


def test_replaced_shards_stay_an_hour_for_readers_and_then_go(tmp_path, monkeypatch):
    directory = removed(make_index(tmp_path / "ix", 20, per_shard=5), 1)
    layout = Layout(directory)
    late = Snapshot.open(directory)  # knows the old shards
    compact(directory)
    now = time.time()
    assert list(layout.shards()) == [1, 2, 3, 4, 5]
    for seconds, left in ((0, [1, 2, 3, 4, 5]), (3590, [1, 2, 3, 4, 5]), (3601, [5])):
        monkeypatch.setattr("time.time", lambda seconds=seconds: now + seconds)
        Store.open(directory).close()
        assert list(layout.shards()) == left
        assert contents(directory) == expected(*range(2, 21))
        assert verify(directory, deep=True).ok
    assert np.array_equal(late.descriptors(late.ids), [stored(seed) for seed in range(2, 21)])
    late.close()


def test_the_newest_shard_outlives_its_hour_because_it_carries_the_counter(tmp_path):
    """Ids must not be used again even if the manifest is lost after the newest photos were removed."""
    directory = removed(make_index(tmp_path / "ix", 20, per_shard=10, shard_rows=10), *range(11, 21))
    with Store.open(directory) as store:
        assert merge_small(store) == 1
    Store.open(directory, retire_after=-1.0).close()
    shards = Layout(directory).shards()
    assert max(Shard(path).stamp.next_id for path in shards.values()) == 21
    with Store.open(directory, retire_after=-1.0) as store:
        assert put(store, "21.jpg", 21) == 21
        store.commit()
    Store.open(directory, retire_after=-1.0).close()
    assert list(Layout(directory).shards()) == [1, 3]  # now a newer one carries it
    assert contents(directory) == expected(*range(1, 11), 21)
