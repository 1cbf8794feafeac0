"""The writer against a dictionary, against kill -9, against a full disk."""

import errno
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_index import MODEL, ROOT, Shot, content, direction, make_index, put, stat

from dinov2kit import ArgumentError, StoreCorrupt, StoreError
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.records import FileStat
from dinov2kit.indexes.shards import Shard
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import compact
from dinov2kit.indexes.verifying import verify


def seen(directory: Path) -> dict[bytes, tuple[int, bytes, bytes]]:
    """Return path -> (id, digest, descriptor) of the live items, as a reader sees them."""
    with Snapshot.open(directory) as snapshot:
        photos = snapshot.photos(snapshot.ids)
        rows = snapshot.descriptors(snapshot.ids)
        prefix = os.fsencode(ROOT) + b"/"
        return {
            os.fsencode(photo.path).removeprefix(prefix): (photo.id, photo.digest, rows[i].tobytes())
            for i, photo in enumerate(photos)
        }


def test_ids_go_on_after_the_newest_items_were_removed_and_compacted_away(tmp_path):
    make_index(tmp_path / "ix", 5)
    with Store.open(tmp_path / "ix") as store:
        files = store.files(store.root_id(ROOT))
        store.remove([files[b"4.jpg"].id, files[b"5.jpg"].id])
        store.commit()
    compact(tmp_path / "ix")
    with Store.open(tmp_path / "ix") as store:
        assert put(store, "6.jpg", 6) == 6


def test_equal_contents_are_reused_before_and_after_the_commit(tmp_path):
    make_index(tmp_path / "ix")
    with Store.open(tmp_path / "ix") as store:
        put(store, "a.jpg", 3, width=11, height=22, orientation=8, taken_at="2020-01-02T03:04:05")
        for _ in range(2):
            known = store.find_hash(content(3))
            assert (known.width, known.height, known.orientation) == (11, 22, 8)
            assert known.taken_at == "2020-01-02T03:04:05"
            store.put(store.root_id(ROOT), b"copy.jpg", stat(4), content(3), known)
            store.commit()
    with Snapshot.open(tmp_path / "ix") as snapshot:
        first, second = snapshot.descriptors(snapshot.ids)
        assert np.array_equal(first, second)  # the very bytes, through any number of copies
        assert snapshot.photos(snapshot.ids)[1].taken_at == "2020-01-02T03:04:05"


def test_long_descriptors_are_normalised_and_unusable_ones_refused(tmp_path):
    make_index(tmp_path / "ix")
    with Store.open(tmp_path / "ix") as store:
        root = store.root_id(ROOT)
        store.put(root, b"a.jpg", stat(), content(1), Shot(direction(1) * 250))
        for bad in (
            None,
            direction(1, dim=9),
            np.zeros(8, "f4"),
            np.full(8, np.nan, "f4"),
            np.full(8, np.inf, "f4"),
        ):
            with pytest.raises(ArgumentError, match="descriptor"):
                store.put(root, b"b.jpg", stat(), content(2), Shot(bad))
        store.commit()
    with Snapshot.open(tmp_path / "ix") as snapshot:
        assert snapshot.ids.tolist() == [1]
        assert np.linalg.norm(snapshot.descriptors(snapshot.ids).astype("f4")) == pytest.approx(1, abs=1e-3)


def test_stats_of_any_file_system_come_back_as_given(tmp_path):
    make_index(tmp_path / "ix")
    wanted = FileStat(size=2**40, mtime_ns=-5, inode=2**64 - 1)
    with Store.open(tmp_path / "ix") as store:
        root = store.root_id(ROOT)
        put(store, "a.jpg", 1)
        store.touch(store.files(root)[b"a.jpg"].id, wanted)
        store.put_error(root, b"b.jpg", wanted, None, "broken")
        store.commit()
        for file in store.files(root).values():
            assert FileStat(file.size, file.mtime_ns, file.inode) == wanted
        assert store.files(root)[b"b.jpg"].error == "broken"


def test_root_keeps_the_device_it_was_first_seen_on(tmp_path):
    make_index(tmp_path / "ix")
    (tmp_path / "photos").mkdir()
    device = tmp_path.stat().st_dev
    with Store.open(tmp_path / "ix") as store:
        root = store.root_id(tmp_path / "photos")
        assert (root, device) in {(known.id, known.fs_id) for known in store.roots()}
        (tmp_path / "photos").rmdir()
        assert store.root_id(tmp_path / "photos") == root
        assert [known.fs_id for known in store.roots()] == [device]
        store.set_device(root, 2**64 - 2)
        assert [known.fs_id for known in store.roots()] == [2**64 - 2]


def test_unfinished_work_is_cleared_away_at_the_next_opening(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 3))
    (layout.tmp / "shard-00000002.h5").write_bytes(b"half")
    (layout.tmp / "gen").mkdir()
    (layout.tmp / "gen" / "index.faiss").write_bytes(b"half")
    shutil.copy(layout.shard(1), layout.shard(2))  # renamed, but its transaction never came
    Store.open(tmp_path / "ix").close()
    assert list(layout.tmp.iterdir()) == []
    assert list(layout.shards()) == [1]
    assert len(seen(tmp_path / "ix")) == 3


def test_shards_that_no_crash_explains_are_never_deleted(tmp_path):
    """A manifest restored from an old backup must not cost the shards that came after it."""
    layout = Layout(make_index(tmp_path / "ix", 2))
    shutil.copy(layout.manifest, tmp_path / "backup")
    with Store.open(tmp_path / "ix") as store:
        for seed in (3, 4, 5):
            put(store, f"{seed}.jpg", seed)
            store.commit()
    shutil.copy(tmp_path / "backup", layout.manifest)
    with pytest.raises(StoreCorrupt, match="older than its shards") as caught:
        Store.open(tmp_path / "ix")
    assert "dinokit repair" in caught.value.hint
    assert list(layout.shards()) == [1, 2, 3, 4]


def test_missing_manifest_is_never_replaced_by_an_empty_one(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 2))
    layout.manifest.unlink()
    for verb in (Store.open, Snapshot.open):
        with pytest.raises(StoreCorrupt, match="it is missing") as caught:
            verb(tmp_path / "ix")
        assert "dinokit repair" in caught.value.hint
    assert not layout.manifest.exists()


def test_manifest_of_another_index_is_refused(tmp_path):
    make_index(tmp_path / "one", 1)
    make_index(tmp_path / "two", 1)
    shutil.copy(tmp_path / "one" / "manifest.sqlite", tmp_path / "two" / "manifest.sqlite")
    for verb in (Store.open, Snapshot.open):
        with pytest.raises(StoreCorrupt, match="belongs to another index"):
            verb(tmp_path / "two")


FAILURES = {
    "free space": ("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1)),
    "fsync": ("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_full_disk_keeps_the_last_commit_and_says_what_is_needed(tmp_path, kind):
    layout = Layout(make_index(tmp_path / "ix", 3))
    with Store.open(tmp_path / "ix") as store:
        for seed in range(4, 504):
            put(store, f"{seed}.jpg", seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(*FAILURES[kind])
            with pytest.raises(
                StoreError, match=r"disk is full: 500 images need 0\.3 MB .* MB are free"
            ) as caught:
                store.commit()
        assert "again" in caught.value.hint
        assert store.pending == 0
        assert list(layout.shards()) == [1]
        assert not list(layout.tmp.iterdir())
        assert len(store.files(store.root_id(ROOT))) == 3
        assert put(store, "4.jpg", 4) == 4  # the store goes on once there is space
        store.commit()
    assert len(seen(tmp_path / "ix")) == 4
    assert verify(tmp_path / "ix", deep=True).ok


def test_full_disk_at_the_sqlite_commit_takes_the_shard_back(tmp_path, monkeypatch):
    layout = Layout(make_index(tmp_path / "ix", 3))

    class FullAtCommit(sqlite3.Connection):
        full = False

        def execute(self, sql, *rest):
            if sql == "COMMIT" and self.full:
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(sql, *rest)

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **given: connect(*args, factory=FullAtCommit, **given)
    )
    with Store.open(tmp_path / "ix") as store:
        put(store, "4.jpg", 4)
        monkeypatch.setattr(FullAtCommit, "full", True)
        with pytest.raises(StoreError, match="disk is full: 1 images"):
            store.commit()
        assert list(layout.shards()) == [1]
    assert len(seen(tmp_path / "ix")) == 3


def test_full_disk_between_commits_is_named_too(tmp_path):
    """SQLite itself runs out of pages while files are entered."""
    make_index(tmp_path / "ix", 3)
    with Store.open(tmp_path / "ix") as store:
        root = store.root_id(ROOT)
        pages = store._db.execute("PRAGMA page_count").fetchone()[0]
        store._db.execute(f"PRAGMA max_page_count = {pages + 2}")

        def fill() -> None:
            for seed in range(10, 10_000):
                store.put_error(root, b"%d.jpg" % seed, stat(seed), None, "broken " * 20)

        with pytest.raises(StoreError, match="the disk is full"):
            fill()
        assert len(store.files(root)) == 3
    assert len(seen(tmp_path / "ix")) == 3


def test_file_size_limit_is_met_like_a_full_disk(tmp_path):
    """A real write that the kernel cuts short, in the middle of a shard."""
    make_index(tmp_path / "ix", 3)
    code = """
import resource, signal, sys
from pathlib import Path
from dinov2kit import StoreError
from dinov2kit.indexes.store import Store
from small_index import put
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Store.open(Path(sys.argv[1])) as store:
    for seed in range(1000, 6000):
        put(store, f"{seed}.jpg", seed)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    try:
        store.commit()
    except StoreError as error:
        print(error.message)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "ix")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE, text=True, check=True,
    ).stdout  # fmt: skip
    assert "everything up to the last commit is kept" in out
    assert len(seen(tmp_path / "ix")) == 3
    with Store.open(tmp_path / "ix") as store:
        assert put(store, "4.jpg", 4) == 4
        store.commit()
    assert verify(tmp_path / "ix", deep=True).ok


def test_runs_are_kept_in_order(tmp_path):
    from dinov2kit.indexes.facts import read_facts

    make_index(tmp_path / "ix", 1)
    assert read_facts(tmp_path / "ix").last_run is None
    with Store.open(tmp_path / "ix") as store:
        store.record_run(1.0, {"new": 1})
        store.record_run(2.0, {"new": 7, "root": Path("/photos")})
        store.commit()
    assert read_facts(tmp_path / "ix").last_run["new"] == 7


def test_shards_stay_where_they_were_written(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 10, per_shard=4))
    assert [len(Shard(path)) for path in layout.shards().values()] == [4, 4, 2]
    before = {path: path.read_bytes() for path in layout.shards().values()}
    with Store.open(tmp_path / "ix") as store:
        put(store, "1.jpg", 99)
        store.remove([store.files(store.root_id(ROOT))[b"2.jpg"].id])
        store.commit()
    assert {path: path.read_bytes() for path in before} == before


def test_an_index_where_nothing_can_be_made_is_a_store_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="cannot make an index"):
        Store.create(tmp_path / "file" / "ix", MODEL)
