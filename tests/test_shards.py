"""Immutable shards: what goes in comes out, whatever the names; damage is always noticed."""

import os
import stat as stat_module
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_index import MODEL, content, stored

from dinov2kit import StoreCorrupt
from dinov2kit.indexes import shards
from dinov2kit.indexes.records import Row
from dinov2kit.indexes.shards import Shard, Stamp, write_shard

STAMP = Stamp("cafe", MODEL, next_id=100, replaces=(3, 4))


def row(number: int, **changes: object) -> Row:
    facts = {
        "id": number, "digest": content(number), "size": 10 + number, "mtime_ns": 5 * number,
        "inode": 2**64 - number,
        "width": 4000, "height": 70000, "orientation": 6, "taken_at": "2021-02-03T04:05:06", "root": b"/a",
        "relpath": b"%d.jpg" % number,
    }  # fmt: skip
    return Row(**{**facts, **changes})


def write(folder: Path, rows: list[Row], stamp: Stamp = STAMP) -> Path:
    path = folder / "features" / "000" / "shard-00000001.h5"
    (folder / "features").mkdir(exist_ok=True)
    write_shard(path, rows, np.stack([stored(row.id) for row in rows]), stamp=stamp, tmp=folder)
    return path


names = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name)


@given(
    st.lists(st.tuples(names, names, st.sampled_from([None, "1999-12-31T23:59:59"])), min_size=1, max_size=8)
)
def test_rows_come_back_as_written_for_any_bytes_in_names(tmp_path_factory, wanted):
    folder = tmp_path_factory.mktemp("shard")
    rows = [row(i + 1, root=a, relpath=b, taken_at=when) for i, (a, b, when) in enumerate(wanted)]
    shard = Shard(write(folder, rows))
    assert shard.rows() == rows
    assert shard.stamp == STAMP
    assert shard.ids.tolist() == [row.id for row in rows]
    assert np.array_equal(shard.descriptors, np.stack([stored(row.id) for row in rows]))
    assert shard.is_intact()


def test_shard_is_read_only_contiguous_and_mapped_at_a_page(tmp_path):
    path = write(tmp_path, [row(i) for i in range(1, 400)])
    assert stat_module.S_IMODE(path.stat().st_mode) == 0o444
    with h5py.File(path, "r") as file:
        assert file["emb"].chunks is None
        assert file["emb"].compression is None
        assert file["emb"].id.get_offset() % 4096 == 0
        assert np.allclose(file["norm"], 1, atol=1e-3)
        assert file.attrs["fingerprint"] == MODEL.fingerprint
    assert isinstance(Shard(path).descriptors, np.memmap)
    assert not list(tmp_path.glob("*.h5"))  # nothing stays in the folder of unfinished work


def test_memory_map_and_h5py_read_the_same_numbers(tmp_path, monkeypatch):
    path = write(tmp_path, [row(i) for i in range(1, 50)])
    mapped = np.array(Shard(path).descriptors)
    with h5py.File(path, "r") as file:
        assert np.array_equal(mapped, file["emb"][()])


def test_layout_without_an_offset_falls_back_to_h5py(tmp_path):
    path = write(tmp_path, [row(i) for i in range(1, 50)])
    mapped = np.array(Shard(path).descriptors)
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:  # a chunked dataset has no single offset
        rows = file["emb"][()]
        del file["emb"]
        file.create_dataset("emb", data=rows, chunks=(7, 8))
    assert not isinstance(Shard(path).descriptors, np.memmap)
    assert np.array_equal(Shard(path).descriptors, mapped)


def test_descriptors_outlive_the_file(tmp_path):
    path = write(tmp_path, [row(i) for i in range(1, 50)])
    shard = Shard(path)
    path.unlink()
    assert np.array_equal(shard.descriptors[7], stored(8))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_cut_shard_is_corrupt_and_never_a_crash(tmp_path, share):
    path = write(tmp_path, [row(i) for i in range(1, 500)])
    path.chmod(0o644)
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreCorrupt, match=r"shard-00000001\.h5 is damaged"):
        Shard(path)


def test_missing_and_foreign_files_are_corrupt(tmp_path):
    with pytest.raises(StoreCorrupt):
        Shard(tmp_path / "shard-00000009.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(StoreCorrupt):
        Shard(tmp_path / "other.h5")


def test_shard_without_its_last_attribute_is_not_complete(tmp_path):
    path = write(tmp_path, [row(1)])
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = 0
    with pytest.raises(StoreCorrupt, match="not complete"):
        Shard(path)


def test_every_flipped_byte_of_the_data_is_found(tmp_path):
    path = write(tmp_path, [row(i) for i in range(1, 30)])
    path.chmod(0o644)
    with h5py.File(path, "r") as file:
        places = [
            (name, file[name].id.get_offset() + file[name].id.get_storage_size() // 2)
            for name in file
            if file[name].id.get_offset() is not None
        ]
    assert {name for name, _ in places} == {"emb", *shards._FACTS}
    whole = path.read_bytes()
    for name, place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with suppress(StoreCorrupt):  # found even earlier
            assert not Shard(path).is_intact(), name
    path.write_bytes(whole)
    assert Shard(path).is_intact()


def test_failing_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, [row(1)])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
