"""What a reader sees: exactly what was put, one moment of it, whatever writers do meanwhile."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_index import (
    MODEL,
    ROOT,
    Shot,
    content,
    contents,
    direction,
    expected,
    flip_bit,
    make_index,
    put,
    remove,
    stat,
    stored,
)

from dinov2kit import ArgumentError, StoreCorrupt, StoreError
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.snapshot import Photo, Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import compact


def held(snapshot: Snapshot) -> dict[bytes, tuple[int, bytes, bytes]]:
    """Return everything that an open snapshot says, in the words of `contents`."""
    photos, rows = snapshot.photos(snapshot.ids), snapshot.descriptors(snapshot.ids)
    return {
        os.fsencode(photo.path.name): (photo.id, photo.digest, row.tobytes())
        for photo, row in zip(photos, rows, strict=True)
    }


def test_descriptors_come_in_the_order_asked_with_the_bytes_that_were_put(tmp_path):
    make_index(tmp_path / "ix", 50, per_shard=7)
    with Snapshot.open(tmp_path / "ix") as snapshot:
        asked = np.random.default_rng(3).integers(1, 51, 200)  # any order, with repetitions
        assert snapshot.descriptors(asked).tobytes() == b"".join(stored(seed).tobytes() for seed in asked)
        assert snapshot.descriptors(asked.astype(np.int32)).tobytes() == snapshot.descriptors(asked).tobytes()
        assert len(snapshot.descriptors(np.zeros(0, np.int64))) == 0


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 49, 50, 65536])
def test_blocks_are_the_whole_index_in_the_order_of_ids(tmp_path, rows):
    make_index(tmp_path / "ix", 50, per_shard=7)
    with Snapshot.open(tmp_path / "ix") as snapshot:
        blocks = list(snapshot.blocks(rows))
    assert [len(ids) for ids, _ in blocks[:-1]] == [rows] * (len(blocks) - 1)
    assert np.concatenate([ids for ids, _ in blocks]).tolist() == list(range(1, 51))
    assert b"".join(block.tobytes() for _, block in blocks) == b"".join(
        stored(seed).tobytes() for seed in range(1, 51)
    )


def test_photos_say_what_was_put_in_the_order_asked(tmp_path):
    make_index(tmp_path / "ix", 1200)
    with Store.open(tmp_path / "ix") as store:
        put(store, b"sub/\xff\xfe.jpg", 77, width=70_000, height=3, taken_at="2020-01-02T03:04:05")
        store.commit()
    with Snapshot.open(tmp_path / "ix") as snapshot:
        first, *rest = snapshot.photos(np.array([1201, 5, 1200, 5]))
        assert [photo.id for photo in rest] == [5, 1200, 5]
        assert [photo.id for photo in snapshot.photos(snapshot.ids)] == list(range(1, 1202))
    name = ROOT / os.fsdecode(b"sub/\xff\xfe.jpg")
    facts = (stat(77).size, stat(77).mtime_ns, "2020-01-02T03:04:05", content(77))
    assert first == Photo(1201, name, 70_000, 3, *facts)
    assert rest[0] == Photo(5, ROOT / "5.jpg", 640, 480, stat(5).size, stat(5).mtime_ns, None, content(5))


def test_find_is_the_inverse_of_photos(tmp_path, monkeypatch):
    make_index(tmp_path / "ix", 3)
    with Store.open(tmp_path / "ix") as store:
        put(store, b"sub/\xff \n'.jpg", 4)
        inner = store.root_id(ROOT / "sub")  # a root inside a root
        store.put(inner, b"own.jpg", stat(5), content(5), Shot(direction(5)))
        store.put_error(store.root_id(ROOT), b"bad.jpg", stat(), None, "broken")
        remove(store, 2)
        store.commit()
    with Snapshot.open(tmp_path / "ix") as snapshot:
        for photo in snapshot.photos(snapshot.ids):
            assert snapshot.find(photo.path) == photo.id
        absent = ("2.jpg", "bad.jpg", "9.jpg", "", "1.jpg/x", "own.jpg", "1.JPG")
        for gone in (*(ROOT / name for name in absent), Path("/photos2/1.jpg"), Path("/1.jpg")):
            assert snapshot.find(gone) is None
        monkeypatch.setattr("os.getcwd", lambda: str(ROOT))
        assert snapshot.find(Path("1.jpg")) == 1  # relative to the present folder


def test_root_of_the_file_system_is_a_folder_like_any_other(tmp_path):
    make_index(tmp_path / "ix")
    with Store.open(tmp_path / "ix") as store:
        store.put(store.root_id(Path("/")), b"photos/a.jpg", stat(1), content(1), Shot(direction(1)))
        store.commit()
    with Snapshot.open(tmp_path / "ix") as snapshot:
        assert snapshot.photos(snapshot.ids)[0].path == Path("/photos/a.jpg")
        assert snapshot.find(Path("/photos/a.jpg")) == 1


@pytest.mark.parametrize("asked", [[0], [-1], [3], [1, 2, 999], [2**62], [6]])
def test_unknown_and_removed_ids_are_refused_by_number(tmp_path, asked):
    make_index(tmp_path / "ix", 5, per_shard=2)
    with Store.open(tmp_path / "ix") as store:
        remove(store, 3)
        store.commit()
    with Snapshot.open(tmp_path / "ix") as snapshot:
        for verb in (snapshot.descriptors, snapshot.photos):
            with pytest.raises(ArgumentError, match=f"no item {asked[-1]}$"):
                verb(np.array(asked))


def test_empty_index_has_nothing_and_says_so(tmp_path):
    make_index(tmp_path / "ix")
    with Snapshot.open(tmp_path / "ix") as snapshot:
        assert (len(snapshot), snapshot.dim, list(snapshot.blocks())) == (0, MODEL.dim, [])
        assert snapshot.where("id > 0").tolist() == []
        with pytest.raises(ArgumentError, match=r"no item 1$"):
            snapshot.descriptors(np.array([1]))


def test_snapshot_keeps_its_moment_while_a_writer_goes_on(tmp_path):
    directory = make_index(tmp_path / "ix", 12, per_shard=4)
    with Snapshot.open(directory) as before:
        with Store.open(directory) as store:
            put(store, "1.jpg", 100)  # changed
            remove(store, 2, 3)
            store.move(
                store.files(store.root_id(ROOT))[b"4.jpg"].id, store.root_id(ROOT), b"moved.jpg", stat()
            )
            put(store, "new.jpg", 13)
            store.commit()
        compact(directory)
        Store.open(directory, retire_after=-1.0).close()  # the old shards are deleted by now
        assert not {1, 2, 3} & Layout(directory).shards().keys()
        assert held(before) == expected(*range(1, 13))
        assert before.where("name = '4.jpg'").tolist() == [4]
        assert before.find(ROOT / "2.jpg") == 2
    after = {**expected(*range(5, 13)), b"moved.jpg": expected(4)[b"4.jpg"]}
    after[b"1.jpg"] = (13, content(100), stored(100).tobytes())
    after[b"new.jpg"] = (14, content(13), stored(13).tobytes())
    assert contents(directory) == after


def test_ids_ascend_although_shards_are_rewritten_out_of_order(tmp_path):
    directory = make_index(tmp_path / "ix", 12, per_shard=4)
    with Store.open(directory) as store:
        remove(store, 6)
        store.commit()
        store.replace_shards([2])  # ids 5, 7, 8 lie in the last shard now
    with Snapshot.open(directory) as snapshot:
        assert snapshot.ids.tolist() == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
        assert held(snapshot) == expected(*snapshot.ids.tolist())


def test_threads_may_share_a_snapshot(tmp_path):
    make_index(tmp_path / "ix", 300, per_shard=50)
    problems: list[object] = []
    with Snapshot.open(tmp_path / "ix") as snapshot:
        start = threading.Barrier(6)

        def read(seed: int) -> None:
            dice = np.random.default_rng(seed)
            try:
                start.wait()
                for _ in range(30):
                    asked = dice.integers(1, 301, 40)
                    assert [photo.id for photo in snapshot.photos(asked)] == asked.tolist()
                    assert np.array_equal(snapshot.descriptors(asked), [stored(i) for i in asked])
                    low = int(asked[0])
                    assert snapshot.where(f"id >= {low}").tolist() == list(range(low, 301))
                    assert snapshot.find(ROOT / f"{low}.jpg") == low
            except BaseException as problem:
                problems.append(problem)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert problems == []


def test_arrays_outlive_the_snapshot_and_the_index(tmp_path):
    make_index(tmp_path / "ix", 20, per_shard=6)
    with Snapshot.open(tmp_path / "ix") as snapshot:
        ids, rows, blocks = snapshot.ids, snapshot.descriptors(snapshot.ids), list(snapshot.blocks(7))
    shutil.rmtree(tmp_path / "ix")
    assert ids.tolist() == list(range(1, 21))
    assert np.array_equal(rows, [stored(seed) for seed in range(1, 21)])
    assert np.array_equal(np.concatenate([block for _, block in blocks]), rows)


def test_failed_opening_keeps_no_file_open(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 4, per_shard=2))
    layout.shard(2).unlink()
    with pytest.raises(StoreCorrupt, match=r"shard-00000002\.h5 is damaged"):
        Snapshot.open(tmp_path / "ix")
    try:
        Snapshot.open(tmp_path / "ix")
    except StoreCorrupt:  # while the error is looked at, its frames are alive
        ours = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        assert not [name for name in ours if "manifest.sqlite" in name]


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Take the right to write an index from everybody, root included, as a mounted CD does."""
    user = os.geteuid()
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        for path in (directory, *directory.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users can reach; pytest's own they cannot."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_read_only_medium_is_read(public):
    directory = make_index(public / "ix", 12, per_shard=5)
    with read_only(directory):
        with pytest.raises(PermissionError):
            (directory / "x").write_bytes(b"")
        assert contents(directory) == expected(*range(1, 13))
        with Snapshot.open(directory) as snapshot:
            assert snapshot.where("name = '3.jpg'").tolist() == [3]
        with pytest.raises(StoreError, match="cannot be written"):
            Store.open(directory)


def test_read_only_copy_of_a_killed_writer_shows_its_last_commit(public):
    """The write-ahead log still holds what was committed; it must be read, or refused, never ignored."""
    make_index(public / "ix", 3)
    with Store.open(public / "ix") as store:
        put(store, "4.jpg", 4)
        store.commit()
        shutil.copytree(public / "ix", public / "copy")  # with its log, as after a crash
    assert (public / "copy" / "manifest.sqlite-wal").stat().st_size > 0
    with read_only(public / "copy"):
        assert contents(public / "copy") == expected(1, 2, 3, 4)
    (public / "copy" / "manifest.sqlite-shm").unlink()
    with read_only(public / "copy"), pytest.raises(StoreCorrupt, match="unable to open"):
        Snapshot.open(public / "copy")


def test_damaged_shard_is_named_at_the_opening(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 4, per_shard=2))
    flip_bit(layout.shard(1))  # not noticed without reading everything, by design
    with Snapshot.open(tmp_path / "ix") as snapshot:
        assert len(snapshot) == 4
    layout.shard(1).write_bytes(b"")
    with pytest.raises(StoreCorrupt, match=r"shard-00000001\.h5 is damaged") as caught:
        Snapshot.open(tmp_path / "ix")
    assert "dinokit repair" in caught.value.hint
