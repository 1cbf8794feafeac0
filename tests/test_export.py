"""Exports: the very numbers of the index, in the order of its ids, whole or not at all."""

import builtins
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from small_index import MODEL, ROOT, content, make_index, put, remove, stat, stored

from dinov2kit import ArgumentError, DependencyError
from dinov2kit.indexes import export
from dinov2kit.indexes.export import export_npy, export_parquet
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store

STRANGE = b"sub/\xff\xfe \n\"'.jpg"


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Items 1 to 21 but 4 and 9, the last with a name that is no text; exported seven rows at a time."""
    monkeypatch.setattr(export, "_ROWS", 7)
    path = make_index(tmp_path / "ix", 20, per_shard=8)
    with Store.open(path) as store:
        remove(store, 4, 9)
        put(store, STRANGE, 21, width=70_000, taken_at="2020-01-02T03:04:05")
        store.commit()
    return path


IDS = [number for number in range(1, 22) if number not in (4, 9)]


def truth(number: int) -> dict[str, object]:
    """Return what is known of an item, its path as bytes."""
    last = number == 21
    return {
        "id": number, "path": os.fsencode(ROOT) + b"/" + (STRANGE if last else b"%d.jpg" % number),
        "width": 70_000 if last else 640, "height": 480, "bytes": stat(number).size,
        "mtime_ns": stat(number).mtime_ns, "taken_at": "2020-01-02T03:04:05" if last else None,
        "hash": content(number).hex(),
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_npy_is_the_snapshot_and_its_sidecar_says_whose_rows_these_are(directory, tmp_path, precision):
    steps = []
    with Snapshot.open(directory) as snapshot:
        files = export_npy(snapshot, tmp_path / "x.npy", precision=precision, advance=steps.append)
        rows = snapshot.descriptors(snapshot.ids)
    assert files == (tmp_path / "x.npy", tmp_path / "x.jsonl", tmp_path / "x.npy.json")
    matrix = np.load(files[0], allow_pickle=False)
    wanted = np.stack([stored(number) for number in IDS])
    assert matrix.dtype == (np.float16 if precision == "fp16" else np.float32)
    assert matrix.tobytes() == wanted.astype(matrix.dtype).tobytes() == rows.astype(matrix.dtype).tobytes()
    facts = [json.loads(line) for line in files[1].read_text("ascii").splitlines()]
    assert [{**fact, "path": os.fsencode(fact["path"])} for fact in facts] == [truth(i) for i in IDS]
    assert steps == [7, 7, 5]
    assert np.array_equal(np.load(files[0], mmap_mode="r")[3], wanted[3])  # may be mapped


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_parquet_is_the_snapshot(directory, tmp_path, precision):
    steps = []
    with Snapshot.open(directory) as snapshot:
        files = export_parquet(snapshot, tmp_path / "x.parquet", precision=precision, advance=steps.append)
    assert files == (tmp_path / "x.parquet",)
    table = pyarrow.parquet.read_table(files[0])
    column = table["descriptor"].combine_chunks()
    matrix = column.values.to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    assert matrix.dtype == (np.float16 if precision == "fp16" else np.float32)
    assert matrix.tobytes() == np.stack([stored(i) for i in IDS]).astype(matrix.dtype).tobytes()
    facts = table.drop_columns("descriptor").to_pylist()
    escaped = os.fsdecode(truth(21)["path"]).encode("utf-8", "backslashreplace").decode()
    assert "\\udcff\\udcfe" in escaped
    assert facts == [
        {**truth(i), "path": escaped if i == 21 else truth(i)["path"].decode()} for i in IDS
    ]  # fmt: skip
    assert json.loads(table.schema.metadata[b"dinov2kit.model"]) == MODEL.to_json()
    assert steps == [7, 7, 5]


def test_empty_index_gives_files_without_rows(tmp_path):
    with Snapshot.open(make_index(tmp_path / "ix")) as snapshot:
        matrix, facts, _ = export_npy(snapshot, tmp_path / "x.npy")
        (table,) = export_parquet(snapshot, tmp_path / "x.parquet")
    assert np.load(matrix).shape == (0, MODEL.dim)
    assert facts.read_bytes() == b""
    assert pyarrow.parquet.read_table(table).num_rows == 0


@pytest.mark.parametrize("taken", ["x.npy", "x.jsonl", "x.npy.json", "x.parquet"])
def test_existing_files_are_kept_unless_told_otherwise(directory, tmp_path, taken):
    (tmp_path / taken).write_text("mine")
    write = export_parquet if taken == "x.parquet" else export_npy
    out = tmp_path / ("x.parquet" if taken == "x.parquet" else "x.npy")
    with Snapshot.open(directory) as snapshot:
        with pytest.raises(ArgumentError, match=f"{taken} exists") as caught:
            write(snapshot, out)
        assert "--overwrite" in caught.value.hint
        assert (tmp_path / taken).read_text() == "mine"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["ix", taken]
        files = write(snapshot, out, overwrite=True)
    assert tmp_path / taken in files
    assert (tmp_path / taken).read_bytes() != b"mine"


def test_matrix_and_sidecar_may_not_be_one_file(directory, tmp_path):
    with Snapshot.open(directory) as snapshot, pytest.raises(ArgumentError, match=r"x\.jsonl"):
        export_npy(snapshot, tmp_path / "x.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == ["ix"]


@pytest.mark.parametrize("write", [export_npy, export_parquet])
def test_interrupted_export_leaves_nothing_and_keeps_what_was_there(directory, tmp_path, write):
    (tmp_path / "x.out").write_text("old")
    before = sorted(path.name for path in tmp_path.iterdir())

    def stop(rows: int) -> None:
        raise KeyboardInterrupt

    with Snapshot.open(directory) as snapshot, pytest.raises(KeyboardInterrupt):
        write(snapshot, tmp_path / "x.out", overwrite=True, advance=stop)
    assert (tmp_path / "x.out").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("write", [export_npy, export_parquet])
def test_folder_that_is_not_there_is_named(directory, tmp_path, write):
    with Snapshot.open(directory) as snapshot, pytest.raises(ArgumentError, match="absent/x"):
        write(snapshot, tmp_path / "absent" / "x.out")


def test_missing_pyarrow_is_told_with_the_line_that_installs_it(directory, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name: str, *rest: object) -> object:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with Snapshot.open(directory) as snapshot, pytest.raises(DependencyError, match="pyarrow") as caught:
        export_parquet(snapshot, tmp_path / "x.parquet")
    assert caught.value.hint == "pip install 'dinov2kit[parquet]'"
