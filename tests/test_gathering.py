"""Hits in a folder: numbered, whole, never over anything; what cannot be had is listed."""

import os
import tarfile
from pathlib import Path

import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import Hit, check_empty, gather


def hits_of(*paths: Path) -> list[Hit]:
    return [Hit(number, 0.5, path, 1, 1, None, gone=False) for number, path in enumerate(paths, 1)]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two photos in a folder and one in an archive."""
    (tmp_path / "photos").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / "photos" / name).write_bytes(name.encode() * 99)
    with tarfile.open(tmp_path / "photos" / "more.tar", "w") as archive:
        archive.add(tmp_path / "photos" / "c.jpg", "trip/c.jpg")
    (tmp_path / "photos" / "c.jpg").unlink()
    os.utime(tmp_path / "photos" / "a.jpg", (1_600_000_000, 1_600_000_000))
    return tmp_path / "photos"


def test_copies_are_numbered_and_whole_also_those_of_an_archive(photos, tmp_path):
    paths = [photos / "b.jpg", photos / "more.tar/trip/c.jpg", photos / "gone.jpg", photos / "a.jpg"]
    done = gather(hits_of(*paths), tmp_path / "new")
    names = ["01-b.jpg", "02-c.jpg", "04-a.jpg"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert [target.name for _, target in done.written] == names
    assert [path for path, _ in done.failed] == [photos / "gone.jpg"]
    assert done.failed[0][1]
    for name in names:
        assert (tmp_path / "new" / name).read_bytes() == name[3:].encode() * 99
    assert (tmp_path / "new" / "04-a.jpg").stat().st_mtime == 1_600_000_000


def test_links_lead_to_files_and_never_into_an_archive_or_nowhere(photos, tmp_path):
    paths = [photos / "more.tar/trip/c.jpg", photos / "gone.jpg", photos / "a.jpg"]
    done = gather(hits_of(*paths), tmp_path / "new", link=True)
    (link,) = (tmp_path / "new").iterdir()
    assert (link.name, link.readlink()) == ("03-a.jpg", photos / "a.jpg")
    assert [reason.split(";")[0] for _, reason in done.failed] == [
        "it lies in an archive or a video",
        "the file is gone",
    ]


def test_names_keep_their_bytes_and_their_end_when_they_are_too_long(photos, tmp_path):
    strange = photos / os.fsdecode(b"gr\xfcn" + b"x" * 240 + b".jpg")
    strange.write_bytes(b"1")
    done = gather(hits_of(strange), tmp_path / "new")
    (written,) = (tmp_path / "new").iterdir()
    assert written.name == "01-" + "x" * 196 + ".jpg"
    short = photos / os.fsdecode(b"gr\xfcn.jpg")
    short.write_bytes(b"1")
    gather(hits_of(short), tmp_path / "other")
    (written,) = (tmp_path / "other").iterdir()
    assert os.fsencode(written.name) == b"01-gr\xfcn.jpg"
    assert not done.failed


def test_ranks_above_ninety_nine_sort_as_well(photos, tmp_path):
    gather(hits_of(*[photos / "a.jpg"] * 100), tmp_path / "new", link=True)
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert (names[0], names[9], names[-1]) == ("001-a.jpg", "010-a.jpg", "100-a.jpg")


def test_a_folder_that_holds_something_is_left_alone(photos, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "01-a.jpg").write_text("mine")
    for folder, said in (
        (tmp_path / "full", "holds files"),
        (photos / "a.jpg", "is a file"),
        (tmp_path / "x/y", "no folder"),
    ):
        with pytest.raises(ArgumentError, match=said):
            check_empty(folder)
        with pytest.raises(ArgumentError, match=said):
            gather(hits_of(photos / "b.jpg"), folder)
    assert (tmp_path / "full" / "01-a.jpg").read_text() == "mine"
    check_empty(tmp_path / "new")
    assert not (tmp_path / "new").exists()
