"""The shards are the truth: what they hold comes back as it was, and no id is ever used twice."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_index import (
    DAMAGES,
    MODEL,
    ROOT,
    Shot,
    content,
    contents,
    direction,
    expected,
    flip_bit,
    make_damageable,
    make_index,
    put,
    remove,
    sql,
    stat,
    stored,
)  # fmt: skip

from dinov2kit import StoreCorrupt, StoreLocked, StoreMissing, StoreTooNew
from dinov2kit.indexes.layout import Layout, read_card
from dinov2kit.indexes.repairing import repair
from dinov2kit.indexes.shards import Shard
from dinov2kit.indexes.snapshot import Photo, Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import compact, merge_small
from dinov2kit.indexes.verifying import verify


def photos(directory: Path) -> list[Photo]:
    """Return all that a reader knows beside the descriptors."""
    with Snapshot.open(directory) as snapshot:
        return snapshot.photos(snapshot.ids)


def lose_manifest(layout: Layout) -> None:
    for path in layout.directory.glob("manifest.sqlite*"):
        path.unlink()


@pytest.mark.parametrize("kind", DAMAGES)
def test_repair_brings_back_what_the_sound_shards_hold_and_verify_agrees(tmp_path, kind):
    damage, layout = DAMAGES[kind], make_damageable(tmp_path / "ix")
    before, all_photos = contents(layout.directory), photos(layout.directory)
    in_shard_2 = set(range(6, 11)) if damage.lost or "descriptors" in kind else set()
    damage.befall(layout)
    done = repair(layout.directory)
    left = {path: facts for path, facts in before.items() if facts[0] not in in_shard_2}
    assert contents(layout.directory) == left
    assert photos(layout.directory) == [photo for photo in all_photos if photo.id not in in_shard_2]
    assert done.items == len(left)
    readable = kind not in ("cut shard", "empty shard") or not done.rebuilt
    assert done.lost == (tuple(sorted(ROOT / f"{i}.jpg" for i in in_shard_2)) if readable else ())
    found = verify(layout.directory, deep=True)
    assert found.ok, found
    with Store.open(layout.directory) as store:
        assert put(store, "new.jpg", 99) == 19
        store.commit()
    assert contents(layout.directory) == {**left, b"new.jpg": (19, content(99), stored(99).tobytes())}
    again = repair(layout.directory)
    assert (again.rebuilt, again.torn, again.lost, again.items) == (False, (), (), len(left) + 1)


def test_repair_of_a_sound_index_changes_nothing(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    with Store.open(layout.directory) as store:
        remove(store, 5)
        store.move(store.files(store.root_id(ROOT))[b"6.jpg"].id, store.root_id(ROOT), b"moved.jpg", stat())
        store.put_error(store.root_id(ROOT), b"bad.jpg", stat(), None, "broken")
        store.commit()
    before = photos(layout.directory)
    files = sorted(path.name for path in layout.directory.rglob("*.*"))
    done = repair(layout.directory)
    assert (done.rebuilt, done.backup, done.torn, done.lost, done.items) == (False, None, (), (), len(before))
    assert photos(layout.directory) == before  # removals and moves are still known
    assert sorted(path.name for path in layout.directory.rglob("*.*")) == files


def test_damaged_manifest_and_shards_are_kept_under_other_names(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    layout.shard(2).chmod(0o644)
    layout.shard(2).write_bytes(b"torn")
    for count, name in enumerate(["manifest.sqlite.bak", "manifest.sqlite.bak2", "manifest.sqlite.bak3"]):
        layout.manifest.write_bytes(b"garbage %d" % count)
        done = repair(layout.directory)
        assert done.rebuilt
        assert done.backup == layout.directory / name
        assert done.backup.read_bytes() == b"garbage %d" % count
        assert done.torn == (("shard-00000002.h5",) if count == 0 else ())
    assert layout.shard(2).with_name("shard-00000002.h5.bak").read_bytes() == b"torn"
    assert verify(layout.directory, deep=True).ok


def test_manifest_and_shard_lost_together_name_the_photos_of_the_shard(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    before = contents(layout.directory)
    lose_manifest(layout)
    flip_bit(layout.shard(2))
    done = repair(layout.directory)
    assert done.lost == tuple(sorted(ROOT / f"{i}.jpg" for i in range(6, 11)))
    assert contents(layout.directory) == {
        path: facts for path, facts in before.items() if not 6 <= facts[0] <= 10
    }
    assert verify(layout.directory, deep=True).ok


def test_photo_described_anew_elsewhere_is_not_lost(tmp_path):
    layout = make_damageable(tmp_path / "ix")  # 3.jpg is in shard 1 and, newer, in shard 4
    flip_bit(layout.shard(1))
    lose_manifest(layout)
    done = repair(layout.directory)
    assert done.lost == tuple(ROOT / f"{i}.jpg" for i in (1, 2, 4, 5))
    assert contents(layout.directory)[b"3.jpg"] == (16, content(103), stored(103).tobytes())


def test_facts_of_any_kind_come_back(tmp_path):
    layout = Layout(make_index(tmp_path / "ix"))
    (tmp_path / "photos").mkdir()
    with Store.open(layout.directory) as store:
        put(store, b"\xff\xfe/ '\n.jpg", 1, width=70_000, orientation=8, taken_at="1999-12-31T23:59:59")
        second = store.root_id(tmp_path / "photos")
        store.put(second, b"a.jpg", stat(2**40), content(2), Shot(direction(2), 1, 2))
        store.put(second, b"b.jpg", stat(3), content(2), Shot(direction(2), 1, 2))  # the same content twice
        store.commit()
        before_files = store.files(second)
    before = contents_everywhere(layout.directory)
    lose_manifest(layout)
    repair(layout.directory)
    assert contents_everywhere(layout.directory) == before
    with Store.open(layout.directory) as store:
        roots = {root.path: (root.id, root.fs_id) for root in store.roots()}
        assert roots[ROOT][1] == 0
        number, device = roots[tmp_path / "photos"]
        assert device == tmp_path.stat().st_dev
        facts = {name: (file.size, file.mtime_ns, file.inode, file.hash, file.status, file.item_id)
                 for name, file in store.files(number).items()}  # fmt: skip
        assert facts == {
            name: (file.size, file.mtime_ns, file.inode, file.hash, file.status, file.item_id)
            for name, file in before_files.items()
        }


def contents_everywhere(directory: Path) -> list[tuple[Photo, bytes]]:
    with Snapshot.open(directory) as snapshot:
        return list(
            zip(snapshot.photos(snapshot.ids), map(bytes, snapshot.descriptors(snapshot.ids)), strict=True)
        )


def test_shards_that_were_merged_are_not_entered_twice(tmp_path):
    directory = make_index(tmp_path / "ix", 20, per_shard=4)
    with Store.open(directory) as store:
        remove(store, 5, 6)
        store.commit()
    compact(directory)
    layout = Layout(directory)
    assert len(layout.shards()) == 6  # the replaced ones are still there
    lose_manifest(layout)
    assert repair(directory).items == 18
    assert contents(directory) == expected(*(set(range(1, 21)) - {5, 6}))
    assert verify(directory, deep=True).ok
    Store.open(directory, retire_after=-1.0).close()
    assert list(layout.shards()) == [6]


def test_merged_shard_that_is_damaged_falls_back_on_those_it_replaced(tmp_path):
    directory = make_index(tmp_path / "ix", 20, per_shard=4)
    compact(directory)
    layout = Layout(directory)
    flip_bit(layout.shard(6))
    lose_manifest(layout)
    done = repair(directory)
    assert (done.torn, done.lost, done.items) == (("shard-00000006.h5",), (), 20)
    assert contents(directory) == expected(*range(1, 21))


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.sampled_from(["put", "change", "remove newest", "merge", "late"]), max_size=12), st.booleans()
)
@example(life=["remove newest", "merge", "late"], torn=False)
def test_ids_are_never_used_again(tmp_path_factory, life, torn):
    """Whatever was removed, merged away or damaged last: a reader may still know the id."""
    directory = make_index(tmp_path_factory.mktemp("life") / "ix", 6, per_shard=3, shard_rows=3)
    layout, highest = Layout(directory), 6
    for event in life:
        with Store.open(directory, retire_after=-1.0 if event == "late" else 3600.0) as store:
            files = store.files(store.root_id(ROOT))
            if event == "put":
                highest = put(store, f"n{highest}.jpg", highest)
            elif event == "change" and files:
                highest = put(store, max(files), highest)
            elif event == "remove newest" and files:
                newest = max(files.values(), key=lambda file: file.item_id)
                store.remove([newest.id])
            store.commit()
            if event == "merge":
                merge_small(store, small_shards=2)
    if torn and layout.shards():
        flip_bit(layout.shards()[max(layout.shards())])
    lose_manifest(layout)
    repair(directory)
    with Store.open(directory) as store:
        assert put(store, "after.jpg", 1) > highest


def test_ids_that_only_faiss_remembers_are_not_used_again(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    (layout.generation(1) / "meta.json").write_text(json.dumps({"n": 15, "max_id": 40}))
    lose_manifest(layout)
    repair(layout.directory)
    with Store.open(layout.directory) as store:
        assert put(store, "new.jpg", 1) == 41


@pytest.mark.parametrize("content_of_card", [None, b"", b"{", b'{"format": "dinokit-index"}'])
def test_card_is_made_again_from_a_shard(tmp_path, content_of_card):
    layout = make_damageable(tmp_path / "ix")
    card, before = read_card(layout), contents(layout.directory)
    layout.card.unlink()
    if content_of_card is not None:
        layout.card.write_bytes(content_of_card)
    layout.shard(1).chmod(0o644)
    layout.shard(1).write_bytes(b"torn")  # the first shard that can be read will do
    repair(layout.directory)
    again = read_card(layout)
    assert (again.uuid, again.model, again.schema) == (card.uuid, MODEL, card.schema)
    assert contents(layout.directory) == {path: facts for path, facts in before.items() if facts[0] > 5}


def test_no_index_is_an_error_and_leaves_no_trace(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "absent", tmp_path / "cat.jpg"):
        with pytest.raises(StoreMissing, match="there is no index in"):
            repair(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["cat.jpg"]


def test_card_without_any_shard_cannot_be_made_again(tmp_path):
    layout = Layout(make_index(tmp_path / "ix"))
    layout.card.write_bytes(b"{")
    with pytest.raises(StoreCorrupt, match="cannot be understood"):
        repair(layout.directory)
    assert layout.card.read_bytes() == b"{"


def test_newer_index_and_busy_index_are_left_alone(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    with Store.open(layout.directory), pytest.raises(StoreLocked, match=f"pid {os.getpid()}"):
        repair(layout.directory)
    sql(layout, "PRAGMA user_version = 7")
    before = layout.manifest.read_bytes()
    with pytest.raises(StoreTooNew, match="schema 7"):
        repair(layout.directory)
    assert layout.manifest.read_bytes() == before


def test_copies_that_other_programs_make_are_ignored(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    before = contents(layout.directory)
    for name in ("shard-00000002 (1).h5", "shard-00000002-conflict.h5", "shard-.h5"):
        shutil.copy(layout.shard(2), layout.shard(2).with_name(name))
    assert verify(layout.directory, deep=True).ok
    assert not repair(layout.directory).rebuilt
    Store.open(layout.directory).close()
    assert contents(layout.directory) == before


def test_replaced_shard_that_came_back_from_a_backup_is_set_aside(tmp_path):
    directory = make_index(tmp_path / "ix", 8, per_shard=4)
    layout = Layout(directory)
    shutil.copy(layout.shard(1), tmp_path / "saved.h5")
    compact(directory)
    Store.open(directory, retire_after=-1.0).close()
    shutil.copy(tmp_path / "saved.h5", layout.shard(1))
    assert [check.name for check in verify(directory).checks if not check.ok] == ["folder"]
    done = repair(directory)
    assert (done.rebuilt, done.torn, done.items) == (False, ("shard-00000001.h5",), 8)
    assert contents(directory) == expected(*range(1, 9))
    assert verify(directory, deep=True).ok
    assert len(Shard(layout.shard(3))) == 8
