"""Which files a walk finds, which it leaves, and what it says of the rest."""

import os
from pathlib import Path

import pytest

from dinov2kit.indexes import walk as module
from dinov2kit.indexes.records import FileStat
from dinov2kit.indexes.walk import Walk, WalkRules


def put(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def found(folder: Path, **rules) -> list[str]:
    return [os.fsdecode(path) for path, _ in Walk(folder, WalkRules(**rules)).images()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "photos"
    put(top, "b.jpg", "a.PNG", "2020/c.jpeg", "2020/01/d.webp", "2021/e.tif", "f.gif")
    return top


def test_images_come_in_the_order_of_their_names_with_their_stats(folder):
    seen = list(Walk(folder).images())
    assert [path for path, _ in seen] == [
        b"2020/01/d.webp",
        b"2020/c.jpeg",
        b"2021/e.tif",
        b"a.PNG",
        b"b.jpg",
        b"f.gif",
    ]
    for path, stat in seen:
        facts = (folder / os.fsdecode(path)).stat()
        assert stat == FileStat(facts.st_size, facts.st_mtime_ns, facts.st_ino)


def test_other_kinds_are_counted_by_suffix(folder):
    put(folder, "film.mp4", "2020/film.MP4", "notes.txt", "README")
    walk = Walk(folder)
    assert len(list(walk.images())) == 6
    assert dict(walk.unsupported) == {".mp4": 2, ".txt": 1, "(none)": 1}


@pytest.mark.parametrize("there", [False, True])
def test_heic_is_an_image_where_it_can_be_read(folder, monkeypatch, there):
    put(folder, "phone.HEIC")
    monkeypatch.setattr(module, "find_spec", lambda name: object() if there else None)
    walk = Walk(folder)
    assert (b"phone.HEIC" in dict(walk.images())) == there
    assert walk.unsupported[".heic"] == (not there)


def test_hidden_files_thumbnails_and_bins_are_left_out(folder):
    put(folder, ".hidden.jpg", ".Trash-1000/a.jpg", "2020/@eaDir/a.jpg", "node_modules/a.jpg", "._b.jpg")
    assert len(found(folder)) == 6


def test_a_hidden_folder_that_is_named_itself_is_walked(tmp_path):
    put(tmp_path / ".secret", "a.jpg")
    assert found(tmp_path / ".secret") == ["a.jpg"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"include": ("*.jp*g",)}, ["2020/c.jpeg", "b.jpg"]),
        ({"include": ("2020/*",)}, ["2020/01/d.webp", "2020/c.jpeg"]),
        ({"exclude": ("2020",)}, ["2021/e.tif", "a.PNG", "b.jpg", "f.gif"]),
        ({"exclude": ("2020/",)}, ["2021/e.tif", "a.PNG", "b.jpg", "f.gif"]),
        ({"exclude": ("01", "*.gif")}, ["2020/c.jpeg", "2021/e.tif", "a.PNG", "b.jpg"]),
        ({"include": ("*.jpeg", "*.webp"), "exclude": ("2020/01",)}, ["2020/c.jpeg"]),
    ],
)
def test_globs_choose(folder, rules, expected):
    assert found(folder, **rules) == expected
    everything = [path for path, _ in Walk(folder).images()]
    taken = [os.fsdecode(path) for path in everything if WalkRules(**rules).takes(path)]
    assert taken == expected  # a path on its own is judged as the walk judges it


def test_small_files_are_left_out_but_empty_ones_are_told(folder):
    put(folder, "icon.png", content=b"x" * 99)
    put(folder, "photo.png", content=b"x" * 100)
    put(folder, "empty.png", content=b"")
    assert found(folder, min_size=100) == ["empty.png", "photo.png"]


def test_links_to_folders_are_entered_on_request_and_each_once(folder, tmp_path):
    put(tmp_path / "elsewhere", "g.jpg")
    (folder / "away").symlink_to(tmp_path / "elsewhere")
    (folder / "away2").symlink_to(tmp_path / "elsewhere")
    (folder / "2020" / "back").symlink_to(folder)
    assert len(found(folder)) == 6
    assert sorted(found(folder, follow_symlinks=True)) == sorted([*found(folder), "away/g.jpg"])


def test_links_to_files_are_followed_and_those_to_nowhere_ignored(folder, tmp_path):
    put(tmp_path, "outside.jpg", content=b"12345")
    (folder / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (folder / "nowhere.jpg").symlink_to(tmp_path / "not-there.jpg")
    walk = Walk(folder)
    seen = dict(walk.images())
    assert seen[b"link.jpg"].size == 5
    assert b"nowhere.jpg" not in seen
    assert walk.errors == []


def test_names_that_are_no_utf8_survive(folder):
    (folder / os.fsdecode(b"na\xefve.jpg")).write_bytes(b"x")
    assert b"na\xefve.jpg" in dict(Walk(folder).images())


def test_a_folder_that_cannot_be_read_is_told_and_the_rest_found(folder, monkeypatch):
    scandir = os.scandir

    def guarded(place):
        if Path(place).name == "2020":
            raise PermissionError(13, "Permission denied")
        return scandir(place)

    monkeypatch.setattr(os, "scandir", guarded)
    walk = Walk(folder)
    assert [path for path, _ in walk.images()] == [b"2021/e.tif", b"a.PNG", b"b.jpg", b"f.gif"]
    assert walk.errors == [(folder / "2020", "Permission denied")]


def test_a_folder_that_is_not_there_is_an_error_of_the_walk(tmp_path):
    walk = Walk(tmp_path / "gone")
    assert list(walk.images()) == []
    assert walk.errors == [(tmp_path / "gone", "No such file or directory")]


def test_other_disks_are_left_alone_on_request(folder):
    here = Path("/dev/shm")
    if not here.is_dir() or here.stat().st_dev == folder.stat().st_dev:
        pytest.skip("there is no second file system to look at")
    put(here / "dinokit-walk", "far.jpg")
    try:
        (folder / "disk").symlink_to(here / "dinokit-walk")
        assert "disk/far.jpg" in found(folder, follow_symlinks=True)
        assert "disk/far.jpg" not in found(folder, follow_symlinks=True, one_file_system=True)
    finally:
        (here / "dinokit-walk" / "far.jpg").unlink()
        (here / "dinokit-walk").rmdir()
