"""Several indexes made into one, full and lean: the same items and answers; what a lean one refuses."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_index import MODEL, ROOT, Shot, content, direction, flip_bit, make_index, put, remove, stat, stored

from dinov2kit import ModelIdentity
from dinov2kit.errors import ArgumentError, StoreError, StoreMismatch
from dinov2kit.indexes import Index, compact, merge_indexes, read_facts, repair, verify
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.lean import write_lean
from dinov2kit.indexes.records import FileStat, Row
from dinov2kit.indexes.search import Searcher
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store

OTHER = Path("/elsewhere")


def put_elsewhere(directory: Path, *seeds: int) -> Path:
    """Make an index of photos below another folder."""
    Store.create(directory, MODEL)
    with Store.open(directory) as store:
        for seed in seeds:
            name = b"%d.jpg" % seed
            store.put(store.root_id(OTHER), name, stat(seed), content(seed), Shot(direction(seed)))
        store.commit()
    return directory


def items(directory: Path) -> dict[str, tuple[bytes, bytes, int, int]]:
    """Return path -> (digest, descriptor, mtime, width) of all items."""
    with Snapshot.open(directory) as snapshot:
        photos, rows = snapshot.photos(snapshot.ids), snapshot.descriptors(snapshot.ids)
        return {
            str(photo.path): (photo.digest, row.tobytes(), photo.mtime_ns, photo.width)
            for photo, row in zip(photos, rows, strict=True)
        }


@pytest.mark.parametrize("lean", [False, True])
def test_a_merge_has_the_items_of_all_with_their_facts_and_new_ids(tmp_path: Path, lean: bool) -> None:
    first = make_index(tmp_path / "a", 7, per_shard=3)
    with Store.open(first) as store:
        remove(store, 2)
        store.commit()
    second = put_elsewhere(tmp_path / "b", 1, 8, 9)

    done = merge_indexes([first, second], tmp_path / "c", lean=lean)

    assert (done.items, done.dropped, done.lean) == (9, 0, lean)
    assert items(tmp_path / "c") == items(first) | items(second)
    with Snapshot.open(tmp_path / "c") as snapshot:
        assert snapshot.ids.tolist() == list(range(1, 10))
        assert snapshot.photos(np.array([6]))[0].path == ROOT / "7.jpg"
        assert snapshot.card.lean is lean
    assert verify(tmp_path / "c", deep=True).ok
    assert read_facts(tmp_path / "c").items == 9
    assert len(items(first)) == 6  # the sources stay


@pytest.mark.parametrize("lean", [False, True])
def test_of_a_file_in_two_indexes_the_newest_state_is_taken(tmp_path: Path, lean: bool) -> None:
    first, second = make_index(tmp_path / "a", 4), make_index(tmp_path / "b", 2)
    with Store.open(second) as store:  # 2.jpg was changed later; 1.jpg is the same in both
        root = store.root_id(ROOT)
        newer = replace(stat(2), mtime_ns=stat(2).mtime_ns + 1)
        store.put(root, b"2.jpg", newer, content(99), Shot(direction(99)))
        store.commit()

    done = merge_indexes([first, second], tmp_path / "c", lean=lean)

    assert (done.items, done.dropped) == (4, 2)
    merged = items(tmp_path / "c")
    assert merged[str(ROOT / "2.jpg")][:2] == (content(99), stored(99).tobytes())
    assert merged[str(ROOT / "1.jpg")][:2] == (content(1), stored(1).tobytes())


def test_names_that_are_no_text_survive_in_both_kinds(tmp_path: Path) -> None:
    first, second = make_index(tmp_path / "a", 1), tmp_path / "b"
    Store.create(second, MODEL)
    with Store.open(second) as store:
        put(store, b"\xff\xfe.jpg", 5, taken_at="2021-02-03T04:05:06", orientation=6)
        store.commit()
    for lean in (False, True):
        target = tmp_path / f"c{lean}"
        merge_indexes([first, second], target, lean=lean)
        with Snapshot.open(target) as snapshot:
            row = snapshot.rows(np.array([2]))[0]
        assert (row.relpath, row.root, row.orientation) == (b"\xff\xfe.jpg", os.fsencode(ROOT), 6)
        assert (row.taken_at, row.inode, row.size) == ("2021-02-03T04:05:06", 5, 1005)


def test_a_lean_index_answers_as_the_full_one(tmp_path: Path) -> None:
    first, second = make_index(tmp_path / "a", 60, per_shard=7), put_elsewhere(tmp_path / "b", *range(61, 90))
    for lean in (False, True):
        merge_indexes([first, second], tmp_path / f"c{lean}", lean=lean)
    where = "name GLOB '*[05].jpg' AND bytes > 1020"
    with Index.open(tmp_path / "cFalse") as full, Index.open(tmp_path / "cTrue") as lean:
        for query in (1, 33, 80):
            ours = [(hit.id, hit.score, hit.path) for hit in lean.search(query, k=9)]
            assert ours == [(hit.id, hit.score, hit.path) for hit in full.search(query, k=9)]
        chosen = lean.snapshot.where(where)
        np.testing.assert_array_equal(chosen, full.snapshot.where(where))
        assert len(chosen) == 13
        filtered = [hit.id for hit in lean.search(1, k=50, where=where)]
        assert filtered == [hit.id for hit in full.search(1, k=50, where=where)]
        with pytest.raises(ArgumentError, match="cannot filter by 'nothing ='"):
            lean.snapshot.where("nothing =")
        assert lean.snapshot.find(ROOT / "1.jpg") is None


def test_a_lean_index_cannot_be_changed(tmp_path: Path) -> None:
    sources = [make_index(tmp_path / "a", 3), put_elsewhere(tmp_path / "b", 7)]
    merge_indexes(sources, tmp_path / "c", lean=True)
    for change in (lambda: compact(tmp_path / "c"), lambda: Store.open(tmp_path / "c")):
        with pytest.raises(StoreError, match="lean") as caught:
            change()
        assert "merge them again" in str(caught.value.hint)


def test_a_lean_index_is_repaired_from_its_shards(tmp_path: Path) -> None:
    sources = [make_index(tmp_path / "a", 3), put_elsewhere(tmp_path / "b", 7)]
    merge_indexes(sources, tmp_path / "c", lean=True)
    before, layout = items(tmp_path / "c"), Layout(tmp_path / "c")
    layout.manifest.write_bytes(b"no database")
    assert not verify(tmp_path / "c").ok
    done = repair(tmp_path / "c")
    assert (done.rebuilt, done.items) == (True, 4)
    assert items(tmp_path / "c") == before
    assert verify(tmp_path / "c", deep=True).ok


def test_a_torn_shard_of_a_lean_index_is_set_aside_and_its_photos_named(tmp_path: Path) -> None:
    rows = [Row(0, content(s), 1, 2, 3, 4, 5, 1, None, b"/photos", b"%d.jpg" % s) for s in (1, 2, 3)]
    pieces = [(rows, np.stack([stored(s) for s in (1, 2, 3)]))]
    write_lean(tmp_path / "c", MODEL, pieces, shard_rows=2)
    layout = Layout(tmp_path / "c")
    flip_bit(layout.shard(1))
    assert not verify(tmp_path / "c", deep=True).ok
    done = repair(tmp_path / "c")
    assert (done.items, done.torn) == (1, (layout.shard(1).name,))
    assert done.lost == (ROOT / "1.jpg", ROOT / "2.jpg")
    assert list(items(tmp_path / "c")) == [str(ROOT / "3.jpg")]


def test_shards_of_a_lean_index_are_full_whatever_the_pieces(tmp_path: Path) -> None:
    def pieces(sizes: list[int]):
        seed = 0
        for size in sizes:
            seeds = range(seed + 1, seed + size + 1)
            rows = [
                Row(0, content(s), 1, 2, 3, 4, 5, 1, None, os.fsencode(ROOT), b"%d.jpg" % s) for s in seeds
            ]
            yield rows, np.stack([stored(s) for s in seeds])
            seed += size

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert write_lean(whole, MODEL, pieces([23]), shard_rows=10) == 23
    assert write_lean(cut, MODEL, pieces([4, 1, 17, 1]), shard_rows=10) == 23
    assert items(whole) == items(cut)
    for directory in (whole, cut):
        assert len(Layout(directory).shards()) == 3
        with Snapshot.open(directory) as snapshot:
            ids, _ = Searcher(snapshot).search(direction(15)[None], 1)
            assert snapshot.photos(ids[0])[0].path == ROOT / "15.jpg"


def test_a_merge_that_was_cut_short_leaves_no_index_and_can_be_done_again(tmp_path: Path) -> None:
    sources = [make_index(tmp_path / "a", 3), put_elsewhere(tmp_path / "b", 7)]

    def interrupt(stage: str, *_: object) -> None:
        if stage == "Merging":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge_indexes(sources, tmp_path / "c", lean=True, watch=interrupt)
    assert not Layout(tmp_path / "c").card.exists()
    assert merge_indexes(sources, tmp_path / "c", lean=True).items == 4
    assert verify(tmp_path / "c", deep=True).ok


def test_what_cannot_be_merged_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    first = make_index(tmp_path / "a", 2)
    with pytest.raises(ArgumentError, match="at least two different"):
        merge_indexes([first, tmp_path / "b" / ".." / "a"], tmp_path / "c")
    Store.create(tmp_path / "other", ModelIdentity("tiny", "cd" * 32, 8, "cls", {}))
    with pytest.raises(StoreMismatch):
        merge_indexes([first, tmp_path / "other"], tmp_path / "c")
    second = make_index(tmp_path / "b", 2)
    with pytest.raises(StoreError, match="there is an index"):
        merge_indexes([first, second], first)
    assert not (tmp_path / "c").exists()


def test_a_stat_is_kept_so_that_the_next_run_opens_nothing(tmp_path: Path) -> None:
    sources = [make_index(tmp_path / "a", 2), put_elsewhere(tmp_path / "b", 7)]
    merge_indexes(sources, tmp_path / "c")
    with Store.open(tmp_path / "c") as store:
        record = store.files(store.root_id(OTHER))[b"7.jpg"]
    assert FileStat(record.size, record.mtime_ns, record.inode) == stat(7)
