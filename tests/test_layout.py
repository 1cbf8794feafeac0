"""The index directory: identity, schema and model checks, whole files."""

import dataclasses
import json
from pathlib import Path

import pytest
from small_index import MODEL, make_index

from dinov2kit import StoreCorrupt, StoreError, StoreMismatch, StoreMissing, StoreTooNew
from dinov2kit.indexes.layout import (
    LEAN_SCHEMA,
    Layout,
    check_model,
    new_card,
    read_card,
    write_card,
    write_durably,
)
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store


def rewrite(layout: Layout, **changes: object) -> None:
    facts = {**json.loads(layout.card.read_bytes()), **changes}
    layout.card.write_text(json.dumps(facts))


def test_card_reads_back_as_written(tmp_path):
    layout, card = Layout(tmp_path), new_card(MODEL, shard_rows=77)
    write_card(layout, card)
    assert read_card(layout) == card
    assert card.model.fingerprint == MODEL.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["dinokit.json"]


def test_unknown_keys_of_a_card_are_no_error(tmp_path):
    layout = Layout(tmp_path)
    write_card(layout, new_card(MODEL))
    rewrite(layout, remark="hello")
    assert read_card(layout).model == MODEL


@pytest.mark.parametrize("verb", [Store.open, Snapshot.open])
def test_no_index_is_named_as_such(tmp_path, verb):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(StoreMissing, match="there is no index in") as caught:
            verb(folder)
        assert "dinokit index" in caught.value.hint


@pytest.mark.parametrize("verb", [Store.open, Snapshot.open])
def test_newer_schema_is_refused_with_the_version_to_get(tmp_path, verb):
    make_index(tmp_path / "ix", 2)
    rewrite(Layout(tmp_path / "ix"), schema=LEAN_SCHEMA + 1, written_by="7.8.9")
    with pytest.raises(StoreTooNew, match=f"schema {LEAN_SCHEMA + 1}.*7.8.9.*up to {LEAN_SCHEMA}") as caught:
        verb(tmp_path / "ix")
    assert "7.8.9" in caught.value.hint


@pytest.mark.parametrize("verb", [Store.open, Snapshot.open])
def test_newer_schema_of_the_manifest_alone_is_refused_too(tmp_path, verb):
    import sqlite3

    make_index(tmp_path / "ix", 2)
    db = sqlite3.connect(tmp_path / "ix" / "manifest.sqlite")
    db.execute(f"PRAGMA user_version = {LEAN_SCHEMA + 3}")
    db.close()
    with pytest.raises(StoreTooNew, match=f"schema {LEAN_SCHEMA + 3}"):
        verb(tmp_path / "ix")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "dinokit-index"}', '{"format": "other", "schema": 1}', "\x00\xff"]
)
def test_damaged_card_is_corrupt_not_a_traceback(tmp_path, text):
    (tmp_path / "dinokit.json").write_text(text, "latin-1")
    with pytest.raises(StoreCorrupt, match=r"dinokit\.json cannot be understood"):
        read_card(Layout(tmp_path))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"name": "other", "dim": 16, "weights_sha256": "cd" * 32},
            r"tiny \(8 dims\), not other \(16 dims\)",
        ),
        ({"weights_sha256": "cd" * 32}, "weights abababababab of tiny, not cdcdcdcdcdcd"),
        ({"pooling": "cls+mean"}, r"pooling cls, not cls\+mean"),
        ({"preprocess": {"resize": 518, "crop": 224}}, "with resize 256, not 518"),
    ],
)
def test_other_model_is_refused_and_both_are_shown(change, words):
    with pytest.raises(StoreMismatch, match=words) as caught:
        check_model(new_card(MODEL), dataclasses.replace(MODEL, **change))
    assert "drop --model" in caught.value.hint


def test_the_name_alone_does_not_make_a_mismatch():
    check_model(new_card(MODEL), dataclasses.replace(MODEL, name="/weights/tiny.pth"))


def test_shards_are_found_by_number_whatever_their_folder(tmp_path):
    layout = Layout(tmp_path)
    for number in (1005, 2, 999):
        write_durably_in_new_folder(layout.shard(number))
    assert list(layout.shards()) == [2, 999, 1005]
    assert layout.shard(1005) == tmp_path / "features" / "001" / "shard-00001005.h5"


def write_durably_in_new_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, b"x")


def test_current_names_a_generation_only_inside_the_index(tmp_path):
    layout = Layout(tmp_path)
    assert layout.read_current() is None
    layout.generation(7).mkdir(parents=True)
    write_durably(layout.current, b"gen-000007\n")
    assert layout.read_current() == tmp_path / "ann" / "gen-000007"
    for name in (b"gen-000008\n", b"../ann/gen-000007", b"gen-000007/..", b"", b"gen-/../../x"):
        write_durably(layout.current, name)
        assert layout.read_current() is None


def test_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    path = tmp_path / "CURRENT"
    write_durably(path, b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_create_refuses_an_index_and_a_folder_of_other_things(tmp_path):
    make_index(tmp_path / "ix")
    with pytest.raises(StoreError, match="there is an index in"):
        Store.create(tmp_path / "ix", MODEL)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"it has cat\.jpg"):
        Store.create(tmp_path / "pictures", MODEL)
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["cat.jpg"]


def test_create_goes_on_where_a_crash_stopped_it(tmp_path):
    make_index(tmp_path / "ix")
    (tmp_path / "ix" / "dinokit.json").unlink()
    (tmp_path / "ix" / "manifest.sqlite").write_bytes(b"half of it")
    Store.create(tmp_path / "ix", MODEL)
    with Snapshot.open(tmp_path / "ix") as snapshot:
        assert len(snapshot) == 0
