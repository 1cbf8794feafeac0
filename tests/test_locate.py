"""Which index is meant, and what the registry notes."""

import os
from pathlib import Path

import pytest
from small_index import make_index

from dinov2kit.errors import ArgumentError, StoreMissing
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.locate import BESIDE, find_index, place_index, read_registry, register


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """An empty data folder; the current folder is empty, too."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path / "home"


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos" / "2020" / "trip").mkdir(parents=True)
    return tmp_path / "photos"


def test_without_any_index_the_way_to_one_is_said():
    with pytest.raises(StoreMissing, match="no index yet") as caught:
        find_index()
    assert "dinokit index" in caught.value.hint


def test_the_only_registered_index_is_found_from_anywhere(tmp_path, photos):
    register(make_index(tmp_path / "ix", 2), [photos])
    assert find_index() == tmp_path / "ix"
    assert read_registry() == {tmp_path / "ix": [photos]}


def test_the_order_is_named_environment_beside_scanning(tmp_path, photos, monkeypatch):
    trip = photos / "2020" / "trip"
    register(make_index(tmp_path / "far", 2), [photos])
    register(make_index(tmp_path / "near", 2), [photos / "2020"])
    register(make_index(tmp_path / "other", 2), [tmp_path / "elsewhere"])
    assert find_index(start=photos) == tmp_path / "far"
    assert find_index(start=trip) == tmp_path / "near"  # the nearest scanned folder wins
    make_index(photos / BESIDE, 2)
    assert find_index(start=trip) == photos / BESIDE
    monkeypatch.setenv("DINOKIT_INDEX", str(make_index(tmp_path / "env", 2)))
    assert find_index(start=trip) == tmp_path / "env"
    assert find_index(tmp_path / "other", start=trip) == tmp_path / "other"


def test_several_that_do_not_scan_this_folder_are_listed(tmp_path, photos):
    register(make_index(tmp_path / "one", 2), [photos])
    register(make_index(tmp_path / "two", 2), [tmp_path / "elsewhere"])
    with pytest.raises(ArgumentError, match="2 indexes are known") as caught:
        find_index()
    assert str(tmp_path / "one") in caught.value.message
    assert str(tmp_path / "elsewhere") in caught.value.message


def test_a_named_index_that_is_not_there_is_missing_even_if_others_are(tmp_path, photos, monkeypatch):
    register(make_index(tmp_path / "ix", 2), [photos])
    with pytest.raises(StoreMissing, match="there is no index in"):
        find_index(tmp_path / "nowhere")
    monkeypatch.setenv("DINOKIT_INDEX", str(tmp_path / "nowhere"))
    with pytest.raises(StoreMissing, match="nowhere"):
        find_index()


def test_an_index_without_its_card_can_still_be_named_for_repair(tmp_path):
    directory = make_index(tmp_path / "ix", 2)
    Layout(directory).card.unlink()
    assert find_index(directory) == directory


def test_relative_and_home_paths_are_made_whole(tmp_path, monkeypatch):
    make_index(tmp_path / "cwd" / "ix", 2)
    assert find_index(Path("ix")) == tmp_path / "cwd" / "ix"
    monkeypatch.setenv("HOME", str(tmp_path / "cwd"))
    assert find_index(Path("~/ix")) == tmp_path / "cwd" / "ix"


def test_a_new_index_goes_to_the_data_folder_under_the_name_of_the_photos(photos, home):
    first, second = (place_index([photos / "2020"]) for _ in range(2))
    assert first.parent == home / "indexes"
    assert first.name.startswith("2020-")
    assert first != second  # two folders of one name do not share an index
    assert not first.exists()


def test_a_new_index_can_lie_beside_the_photos_or_where_it_is_named(tmp_path, photos):
    assert place_index([photos], in_place=True) == photos / BESIDE
    assert place_index([photos], Path("here"), in_place=True) == tmp_path / "cwd" / "here"


def test_folders_of_an_index_go_back_to_it(tmp_path, photos):
    register(make_index(tmp_path / "ix", 2), [photos])
    assert place_index([photos]) == tmp_path / "ix"
    assert place_index([photos / "2020" / "trip", tmp_path / "new"]) == tmp_path / "ix"


def test_folders_of_two_indexes_are_refused_together(tmp_path, photos):
    register(make_index(tmp_path / "one", 2), [photos])
    register(make_index(tmp_path / "two", 2), [tmp_path / "elsewhere"])
    with pytest.raises(ArgumentError, match="belong to 2 indexes"):
        place_index([photos, tmp_path / "elsewhere"])


def test_a_folder_whose_name_begins_alike_is_another_one(tmp_path, photos):
    register(make_index(tmp_path / "ix", 2), [photos])
    assert place_index([tmp_path / "photos2"]) != tmp_path / "ix"


def test_the_registry_forgets_what_is_gone_and_takes_the_latest_folders(tmp_path, photos):
    one, two = make_index(tmp_path / "one", 2), make_index(tmp_path / "two", 2)
    register(one, [photos])
    Layout(one).card.unlink()
    register(two, [photos])
    register(two, [photos, tmp_path / "more"])
    assert read_registry() == {two: [photos, tmp_path / "more"]}


def test_names_that_are_no_utf8_survive_in_the_registry(tmp_path):
    strange = tmp_path / os.fsdecode(b"na\xefve")
    directory = make_index(strange / "ix", 2)
    register(directory, [strange])
    assert read_registry() == {directory: [strange]}
    assert find_index(start=strange) == directory


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b'{"indexes": 7}', b'{"indexes": {"/a": 7}}', b"\xff"])
def test_a_damaged_registry_counts_as_empty_and_is_written_anew(tmp_path, photos, home, rubbish):
    home.mkdir()
    (home / "indexes.json").write_bytes(rubbish)
    assert read_registry() == {}
    register(make_index(tmp_path / "ix", 2), [photos])
    assert read_registry() == {tmp_path / "ix": [photos]}


def test_a_home_that_cannot_be_written_costs_only_the_note(tmp_path, photos, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "file" / "home"))
    register(make_index(tmp_path / "ix", 2), [photos])
    assert read_registry() == {}
