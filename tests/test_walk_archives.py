"""What a walk finds in archives and videos, what it leaves closed, and how listed files are found."""

import gzip
import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from small_index import make_index
from small_tar import write_tar
from small_video import write_video

from dinov2kit.contents import stat_content
from dinov2kit.errors import ImageError
from dinov2kit.indexes.changes import check_folders
from dinov2kit.indexes.listed import common_folders, find_listed, survey
from dinov2kit.indexes.records import FileStat
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.walk import Walk, WalkRules, advise

SHARD = {
    "000.jpg": b"0", "000.json": b"{}", "000.cls": b"7", "sub/001.PNG": b"11", "sub/.hidden.jpg": b"x",
    ".thumbs/002.jpg": b"x", "empty.jpg": b"", "inner.tar": b"x", "film.mp4": b"x",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    top = tmp_path / "photos"
    (top / "trip").mkdir(parents=True)
    (top / "a.jpg").write_bytes(b"a")
    (top / "trip/b.jpg").write_bytes(b"bb")
    write_tar(top / "trip/shard.tar", SHARD)
    return top


def found(walk: Walk) -> list[str]:
    return [os.fsdecode(path) for path, _ in walk.images()]


def test_archives_in_a_folder_are_entered_when_that_is_asked(folder):
    assert found(Walk(folder)) == ["a.jpg", "trip/b.jpg"]
    walk = Walk(folder, WalkRules(tars=True))
    inside = ["trip/shard.tar/000.jpg", "trip/shard.tar/sub/001.PNG", "trip/shard.tar/empty.jpg"]
    seen = dict(walk.images())
    assert [os.fsdecode(path) for path in seen] == ["a.jpg", "trip/b.jpg", *inside]
    for path, stat in seen.items():
        assert stat == FileStat(*stat_content(folder / os.fsdecode(path)))
    assert walk.unsupported == Counter(
        {f"{suffix} in a tar": 1 for suffix in (".json", ".cls", ".tar", ".mp4")}
    )
    assert not walk.errors
    assert not walk.damaged


def test_an_archive_that_is_named_is_entered_without_being_asked(folder):
    assert found(Walk(folder / "trip/shard.tar")) == ["000.jpg", "sub/001.PNG", "empty.jpg"]


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"include": ("*.PNG",)}, ["trip/shard.tar/sub/001.PNG"]),
        ({"include": ("trip/shard.tar/*",)}, ["000.jpg", "sub/001.PNG", "empty.jpg"]),
        ({"exclude": ("sub",)}, ["a.jpg", "trip/b.jpg", "000.jpg", "empty.jpg"]),
        ({"exclude": ("shard.tar",)}, ["a.jpg", "trip/b.jpg"]),
        ({"exclude": ("trip/shard.tar/000.jpg", "a.jpg")}, ["trip/b.jpg", "sub/001.PNG", "empty.jpg"]),
        ({"min_size": 2}, ["trip/b.jpg", "sub/001.PNG", "empty.jpg"]),
    ],
)
def test_globs_and_sizes_hold_for_members_as_for_files(folder, rules, expected):
    walk = Walk(folder, WalkRules(tars=True, **rules))
    names = found(walk)
    assert [name.removeprefix("trip/shard.tar/") for name in names] == [
        name.removeprefix("trip/shard.tar/") for name in expected
    ]
    if "min_size" not in rules:
        everything = found(Walk(folder, WalkRules(tars=True)))
        assert [name for name in everything if walk.rules.takes(os.fsencode(name))] == names


def test_a_folder_with_the_name_of_an_archive_is_a_folder(folder):
    (folder / "x.tar").mkdir()
    (folder / "x.tar/c.jpg").write_bytes(b"c")
    walk = Walk(folder)
    assert "x.tar/c.jpg" in found(walk)
    assert not walk.may_hold(b"x.tar/c.jpg")
    assert check_folders([folder / "x.tar"]) == [folder / "x.tar"]


def test_what_lies_in_closed_archives_may_still_be_there(folder):
    walk = Walk(folder)
    found(walk)
    assert walk.may_hold(b"trip/shard.tar/000.jpg")
    assert not walk.may_hold(b"trip/shard.tar.jpg")
    assert not walk.may_hold(b"trip/b.jpg")
    opened = Walk(folder, WalkRules(tars=True))
    found(opened)
    assert not opened.may_hold(b"trip/shard.tar/000.jpg")


def test_a_damaged_archive_is_named_and_its_beginning_is_found(folder):
    path = folder / "trip/shard.tar"
    path.write_bytes(path.read_bytes()[:-7000])
    path.with_name("no.tar").write_bytes(b"rubbish" * 200)
    walk = Walk(folder, WalkRules(tars=True))
    assert "trip/shard.tar/000.jpg" in found(walk)
    assert {place for place, _ in walk.damaged} == {path, path.with_name("no.tar")}
    assert walk.may_hold(b"trip/shard.tar/beyond.jpg")
    assert not walk.errors


def test_what_is_left_out_comes_with_a_word_on_how_to_read_it(folder):
    (folder / "x.tar.gz").write_bytes(gzip.compress(b"x"))
    (folder / "clip.MOV").write_bytes(b"x")
    walk = Walk(folder)
    found(walk)
    assert walk.unsupported == {".tar": 1, ".tar.gz": 1, ".mov": 1}
    said = advise(walk.unsupported)
    assert [line.partition(";")[0] for line in said] == [
        "tar archives left out: 1",
        "videos left out: 1",
        "compressed archives left out: 1",
    ]
    assert "--tar" in said[0]
    assert "--video" in said[1]
    assert advise(Counter({".txt": 3, ".tar in a tar": 1})) == []


def test_folders_and_archives_can_be_named_but_no_other_files(folder):
    (folder / "x.tgz").write_bytes(gzip.compress(b"x"))
    shard = folder / "trip/shard.tar"
    assert check_folders([shard]) == [shard]
    assert check_folders([shard, folder, folder]) == [folder]
    with pytest.raises(ImageError, match="cannot be read in place") as refused:
        check_folders([folder / "x.tgz"])
    assert "decompress" in (refused.value.hint or "")
    with pytest.raises(ImageError, match="is a file, not a folder"):
        check_folders([folder / "a.jpg"])
    with pytest.raises(ImageError, match="does not exist"):
        check_folders([folder / "no.tar"])


def test_frames_of_videos_come_as_far_apart_as_asked(folder):
    path = write_video(folder / "trip/clip.mp4", seconds=3)
    closed = Walk(folder)
    assert len(found(closed)) == 2
    assert closed.may_hold(b"trip/clip.mp4/t=0000000.000s")
    walk = Walk(folder, WalkRules(every=1.5))
    names = ["trip/clip.mp4/t=0000000.000s", "trip/clip.mp4/t=0000001.500s"]
    assert found(walk) == ["a.jpg", "trip/b.jpg", *names]
    assert walk.videos == {"trip/clip.mp4"}
    for name, stat in walk.images():
        assert stat == FileStat(*stat_content(folder / os.fsdecode(name)))
    assert found(Walk(path, WalkRules(every=1.5))) == ["t=0000000.000s", "t=0000001.500s"]
    only = WalkRules(every=1.5, include=("*.mp4",))
    assert found(Walk(folder, only)) == names
    assert only.takes(names[0].encode())
    none = WalkRules(every=1.5, exclude=("clip.*",))
    assert found(Walk(folder, none)) == ["a.jpg", "trip/b.jpg"]
    assert not none.takes(names[0].encode())


def test_a_damaged_video_is_named_and_keeps_its_frames(folder):
    pytest.importorskip("av", reason="videos need the package av")
    (folder / "clip.mkv").write_bytes(b"rubbish" * 99)
    walk = Walk(folder, WalkRules(every=2.0))
    assert found(walk) == ["a.jpg", "trip/b.jpg"]
    ((path, reason),) = walk.damaged
    assert path == folder / "clip.mkv"
    assert "no video" in reason
    assert walk.may_hold(b"clip.mkv/t=0000000.000s")


def look(paths: list[Path], *folders: Path, **rules: object) -> tuple[list[str], Walk]:
    walk = Walk(Path("/"), WalkRules(**rules))
    return [path for path, _ in find_listed(walk, frozenset(paths), folders)], walk


def test_a_list_names_files_members_and_whole_archives(folder):
    shard = folder / "trip/shard.tar"
    names, walk = look([folder / "a.jpg", shard / "sub/001.PNG"])
    assert names == [str(folder / "a.jpg"), str(shard / "sub/001.PNG")]
    assert not walk.errors
    both, walk = look([shard, shard / "000.jpg", folder / "trip/b.jpg"])  # the member comes once
    assert both == [str(folder / "trip/b.jpg"), *(f"{shard}/{name}" for name in found(Walk(shard)))]
    assert not walk.errors


def test_what_is_listed_in_vain_is_said_with_its_reason(folder):
    shard = folder / "trip/shard.tar"
    (folder / "notes.txt").write_bytes(b"x")
    vain = {
        folder / "no.jpg": "No such file",
        shard / "no.jpg": "no such file in the archive",
        folder / "trip": "a folder; name it as a PATH",
    }
    names, walk = look([*vain, folder / "notes.txt", folder / "a.jpg"])
    assert names == [str(folder / "a.jpg")]
    assert walk.unsupported == {".txt": 1}
    for path, reason in walk.errors:
        assert vain.pop(path) in reason
    assert not vain
    names, walk = look([folder / "a.jpg", folder / "trip/b.jpg"], folder / "trip")
    assert names == [str(folder / "trip/b.jpg")]
    assert [path for path, _ in walk.errors] == [folder / "a.jpg"]


def test_the_common_folder_of_a_list_is_no_deeper_than_an_archive(folder):
    shard = folder / "trip/shard.tar"
    assert common_folders([folder / "a.jpg", folder / "trip/b.jpg"]) == [folder]
    assert common_folders([folder / "trip/b.jpg"]) == [folder / "trip"]
    assert common_folders([shard / "sub/001.PNG"]) == [shard]
    assert common_folders([shard / "000.jpg", folder / "trip/b.jpg"]) == [folder / "trip"]
    assert common_folders([Path("/aa/x/1.jpg"), Path("/bb/y/2.jpg"), Path("/aa/z/3.jpg")]) == [
        Path("/aa"),
        Path("/bb/y"),
    ]
    assert common_folders([]) == []


def test_a_list_costs_a_few_looks_at_the_disk_per_file_and_none_for_others(folder, tmp_path, monkeypatch):
    for number in range(300):
        (folder / f"{number}.jpg").write_bytes(b"x")
    stats = []
    real = os.stat
    with Store.open(make_index(tmp_path / "ix")) as store:
        monkeypatch.setattr(os, "stat", lambda *args, **options: stats.append(1) or real(*args, **options))
        monkeypatch.setattr(os, "scandir", None)
        costs = []
        for step in (2, 1):
            listed = frozenset(folder / f"{number}.jpg" for number in range(0, 300, step))
            stats.clear()
            (changes,) = survey(store, [], WalkRules(), listed=listed)
            costs.append(len(stats))
            assert {sighting.path for sighting in changes.sightings} == listed
            assert (changes.root.path, changes.gone, changes.listed) == (folder, {}, True)
    assert costs[1] - costs[0] <= 150 * 3


class CountingFile(io.FileIO):
    """A file that counts the bytes that are read from it."""

    bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        content = super().read(size) or b""
        CountingFile.bytes_read += len(content)
        return content


def test_an_archive_is_walked_without_reading_its_contents(tmp_path, monkeypatch):
    header = tarfile.TarInfo()
    header.size = 2**20
    with (tmp_path / "x.tar").open("wb") as file:
        for number in range(1000):
            header.name = f"{number:05}.jpg"
            file.write(header.tobuf(tarfile.USTAR_FORMAT))
            file.seek(header.size, os.SEEK_CUR)  # a hole: a gigabyte that takes no room
        file.write(bytes(1024))
    monkeypatch.setattr(tarfile, "bltn_open", CountingFile)
    assert len(found(Walk(tmp_path / "x.tar"))) == 1000
    assert 1000 * 512 <= CountingFile.bytes_read < 1100 * 512
