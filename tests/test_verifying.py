"""Every damage is found and named; a sound index is sound; looking changes nothing."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from small_index import DAMAGES, make_damageable, make_index, put, remove, rewrite_shard, sql

from dinov2kit import StoreCorrupt, StoreMissing
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import compact
from dinov2kit.indexes.verifying import Verification, verify

NAMES = ["manifest", "folder", "shards", "ids", "files", "rows", "descriptors", "faiss"]


def failed(found: Verification) -> dict[str, str]:
    return {check.name: check.detail for check in found.checks if not check.ok}


def state(directory: Path) -> dict[str, str]:
    """Return name -> digest of every file of an index but SQLite's shared memory."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith("-shm")
    }


def test_sound_index_passes_every_check(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    found = verify(layout.directory)
    assert found.ok
    assert [check.name for check in found.checks] == NAMES
    deep = verify(layout.directory, deep=True)
    assert deep.ok
    assert [check.name for check in deep.checks] == [*NAMES[:-1], "checksums", NAMES[-1]]
    said = {check.name: check.detail for check in deep.checks}
    assert said["manifest"] == "SQLite finds it sound; 17 files"
    assert said["rows"] == "18 rows in 6 shards are in the manifest"
    assert said["faiss"] == "gen-000001 agrees"


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_found_and_named_and_nothing_is_changed(tmp_path, kind):
    damage, layout = DAMAGES[kind], make_damageable(tmp_path / "ix")
    damage.befall(layout)
    before = state(layout.directory)
    for deep in (False, True):
        found = verify(layout.directory, deep=deep)
        if damage.deep and not deep:
            assert found.ok  # that is why there is a deep look
            continue
        assert not found.ok
        assert re.search(damage.said, failed(found)[damage.check])
    assert {
        name: digest for name, digest in state(layout.directory).items() if not name.endswith("-wal")
    } == {name: digest for name, digest in before.items() if not name.endswith("-wal")}


def test_every_shard_that_is_damaged_is_named_or_counted(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 10, per_shard=1))
    for number in range(2, 8):
        layout.shard(number).unlink()
    detail = failed(verify(layout.directory))["shards"]
    assert [f"shard-0000000{number}" in detail for number in range(1, 10)] == [False] + [True] * 3 + [
        False
    ] * 5
    assert detail.endswith(" and 3 more")


def test_index_in_the_middle_of_its_life_is_sound(tmp_path):
    directory = make_index(tmp_path / "ix", 20, per_shard=5)
    with Store.open(directory) as store:
        remove(store, 1, 2, 20)
        put(store, "3.jpg", 33)
        store.commit()
        assert verify(directory, deep=True).ok  # while a writer is at work
        put(store, "4.jpg", 44)
        assert verify(directory, deep=True).ok
        store.commit()
    compact(directory)
    assert verify(directory, deep=True).ok  # replaced shards are still there


def test_unfinished_commit_is_mentioned_and_no_damage(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 4, per_shard=2))
    shutil.copy(layout.shard(2), layout.shard(3))
    found = verify(layout.directory, deep=True)
    assert found.ok
    assert "one unfinished; the next run deletes it" in found.checks[1].detail


def test_advance_counts_the_shards(tmp_path):
    steps = []
    verify(
        make_index(tmp_path / "ix", 6, per_shard=2), advance=lambda done, total: steps.append((done, total))
    )
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_bad_row_between_the_samples_is_found_by_the_deep_look(tmp_path):
    layout = Layout(make_index(tmp_path / "ix", 600))
    whole = layout.shard(1)
    rewrite_shard(layout, 1)
    assert verify(layout.directory, deep=True).ok
    whole.chmod(0o644)
    with h5py.File(whole, "r+") as file:
        file["emb"][301] = np.nan
    assert verify(layout.directory).ok
    assert "row 301 has length nan" in failed(verify(layout.directory, deep=True))["descriptors"]


FAISS = {
    "no generation": (lambda ix: shutil.rmtree(ix.generation(1)), "CURRENT names no generation", False),
    "no facts": (lambda ix: (ix.generation(1) / "meta.json").unlink(), "meta.json cannot be read", False),
    "half the facts": (lambda ix: (ix.generation(1) / "meta.json").write_text("{"), "cannot be read", False),
    "no file": (lambda ix: (ix.generation(1) / "index.faiss").unlink(), "index.faiss is missing", False),
    "another file": (lambda ix: (ix.generation(1) / "index.faiss").write_bytes(b"x"), "not as it was", True),
    "newer than the index": (
        lambda ix: (ix.generation(1) / "meta.json").write_text(json.dumps({"n": 1, "max_id": 19})),
        "it knows id 19, the manifest does not", False,
    ),
    "too many": (
        lambda ix: (ix.generation(1) / "meta.json").write_text(json.dumps({"n": 99, "max_id": 3})),
        "it has 99 items, more than there ever were", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAISS)
def test_faiss_that_does_not_fit_is_found(tmp_path, kind):
    befall, said, deep = FAISS[kind]
    layout = make_damageable(tmp_path / "ix")
    befall(layout)
    assert verify(layout.directory).ok == deep
    found = verify(layout.directory, deep=True)
    assert said in failed(found)["faiss"]
    assert list(failed(found)) == ["faiss"]


def test_many_problems_are_all_reported(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    layout.shard(1).unlink()
    rewrite_shard(layout, 3, scale=0.5)
    sql(layout, "DELETE FROM files WHERE relpath = x'372e6a7067'")
    shutil.rmtree(layout.generation(1))
    assert failed(verify(layout.directory)).keys() == {"shards", "files", "descriptors", "faiss"}


def test_no_index_and_a_damaged_card_are_errors(tmp_path):
    with pytest.raises(StoreMissing):
        verify(tmp_path / "absent")
    layout = make_damageable(tmp_path / "ix")
    layout.card.write_bytes(b"{")
    with pytest.raises(StoreCorrupt, match="cannot be understood") as caught:
        verify(layout.directory)
    assert "dinokit repair" in caught.value.hint


def test_what_verify_calls_sound_can_be_read_to_the_last_row(tmp_path):
    layout = make_damageable(tmp_path / "ix")
    assert verify(layout.directory, deep=True).ok
    with Snapshot.open(layout.directory) as snapshot:
        assert len(snapshot.photos(snapshot.ids)) == sum(len(ids) for ids, _ in snapshot.blocks(4)) == 17
