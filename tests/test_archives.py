"""Members of tar archives: where they lie, what they hold, and what happens when the archive is damaged."""

import bz2
import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import paint
from small_tar import plain, write_tar

from dinov2kit import archives
from dinov2kit.archives import Member, compressed_suffix, list_members, read_member
from dinov2kit.contents import find_place, open_content, stat_content
from dinov2kit.errors import ImageError
from dinov2kit.images import image_digest, is_there, list_images, load_picture, read_image
from dinov2kit.views import CenterCrop

LONG = "/".join(["a folder with a long name"] * 9) + "/" + "x" * 200 + ".jpg"


def held(path: Path) -> dict[str, bytes]:
    """Return what the members of an archive hold, read by name, after reading it by offset."""
    listing = list_members(path)
    raw = path.read_bytes()
    found = {os.fsdecode(name): read_member(path, name) for name in listing.members}
    for name, (offset, size) in listing.members.items():
        assert raw[offset : offset + size] == found[os.fsdecode(name)]
    return found


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_hold_what_was_put_in_in_their_order(tmp_path, format):
    put = {"b/2.jpg": b"two" * 300, "a.jpg": b"", "c.png": bytes(range(256)) * 5}
    path = write_tar(tmp_path / "x.tar", put, format=format)
    assert held(path) == put
    listing = list_members(path)
    assert list(listing.members) == [b"b/2.jpg", b"a.jpg", b"c.png"]
    assert (listing.damage, listing.left_out) == (None, 0)


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", [LONG, "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n.jpg", "caf\udce9.jpg"])
def test_long_names_and_names_that_are_no_utf8_survive(tmp_path, format, name):
    path = write_tar(tmp_path / "x.tar", {name: b"one"}, format=format)
    assert list(list_members(path).members) == [os.fsencode(name)]
    assert open_content(path / name).read() == b"one"


def test_names_are_below_the_archive_and_none_leads_out_of_it(tmp_path):
    names = ["./a.jpg", "b//c.jpg", "/abs/d.jpg", "../up.jpg", "e/../../up.jpg", "e/./f.jpg"]
    path = write_tar(tmp_path / "x.tar", [(name, name.encode()) for name in names])
    listing = list_members(path)
    assert set(listing.members) == {b"a.jpg", b"b/c.jpg", b"abs/d.jpg", b"e/f.jpg"}
    assert listing.left_out == 2
    (tmp_path / "up.jpg").write_bytes(b"outside")
    assert not is_there(path / "../up.jpg")
    with pytest.raises(OSError, match="no such file"):
        read_member(path, b"../up.jpg")


def test_of_several_members_of_a_name_the_last_counts(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"first"), ("b.jpg", b"b"), ("./a.jpg", b"last")])
    assert held(path) == {"b.jpg": b"b", "a.jpg": b"last"}


def test_only_files_are_members_and_hard_links_are_the_file_they_name(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.addfile(plain("a.jpg", 3), io.BytesIO(b"abc"))
        tar.addfile(plain("hard.jpg", type=tarfile.LNKTYPE, linkname="./a.jpg"))
        tar.addfile(plain("lost.jpg", type=tarfile.LNKTYPE, linkname="nowhere.jpg"))
        tar.addfile(plain("soft.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
        tar.addfile(plain("pipe.jpg", type=tarfile.FIFOTYPE))
        tar.addfile(plain("folder.jpg", type=tarfile.DIRTYPE))
        tar.addfile(plain("sparse.jpg", type=tarfile.GNUTYPE_SPARSE))
        tar.addfile(plain("gone.jpg", 1), io.BytesIO(b"x"))
        tar.addfile(plain("gone.jpg", type=tarfile.SYMTYPE, linkname="a.jpg"))
    assert held(tmp_path / "x.tar") == {"a.jpg": b"abc", "hard.jpg": b"abc"}
    assert list_members(tmp_path / "x.tar").left_out == 1


def test_an_archive_cut_anywhere_gives_the_members_before_the_cut_and_says_so(tmp_path):
    put = {f"{number}.jpg": bytes([number]) * (200 + 300 * number) for number in range(5)}
    whole = write_tar(tmp_path / "whole.tar", put, format=tarfile.USTAR_FORMAT)
    members = list_members(whole).members
    raw = whole.read_bytes()
    end = max(offset + -(-size // 512) * 512 for offset, size in members.values())
    for cut in [*range(1, end, 97), end - 1, end]:
        part = tmp_path / "part.tar"
        part.write_bytes(raw[:cut])
        os.utime(part, ns=(cut, cut))
        listing = list_members(part)
        safe = {name for name, (offset, size) in members.items() if offset + size <= cut}
        assert set(listing.members) == safe, cut
        assert listing.damage, cut
    part.write_bytes(raw[: end + 512])
    assert list_members(part).damage is None


def test_damage_is_told_from_an_archive_without_members(tmp_path):
    def damage(content: bytes) -> str | None:
        path = tmp_path / f"{hashlib.sha256(content).hexdigest()}.tar"
        path.write_bytes(content)
        assert not list_members(path).members
        return list_members(path).damage

    tar = write_tar(tmp_path / "x.tar", {"a.jpg": b"x"}).read_bytes()
    assert damage(bytes(10240)) is None
    assert damage(b"") == "the archive is empty"
    assert "gzip" in damage(gzip.compress(tar))
    assert "bzip2" in damage(bz2.compress(tar))
    assert "no tar archive" in damage(b"rubbish" * 1000)


def test_a_scrambled_header_ends_the_list_with_its_place(tmp_path):
    path = write_tar(
        tmp_path / "x.tar", {f"{n}.jpg": b"x" * 600 for n in range(4)}, format=tarfile.USTAR_FORMAT
    )
    raw = bytearray(path.read_bytes())
    start = list_members(path).members[b"2.jpg"].offset - 512
    raw[start : start + 512] = os.urandom(512)
    (tmp_path / "y.tar").write_bytes(raw)
    listing = list_members(tmp_path / "y.tar")
    assert set(listing.members) == {b"0.jpg", b"1.jpg"}
    assert listing.damage == f"damaged at byte {start:,}"


def test_headers_are_read_once_for_each_state_of_an_archive(tmp_path, monkeypatch):
    opened = []
    real = tarfile.open
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"one", "b.jpg": b"b"})
    monkeypatch.setattr(archives.tarfile, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    for _ in range(5):
        assert read_member(path, b"a.jpg") == b"one"
    assert len(opened) == 1
    monkeypatch.undo()
    write_tar(path, {"a.jpg": b"other"})
    os.utime(path, ns=(1, 1))
    assert read_member(path, b"a.jpg") == b"other"
    with pytest.raises(FileNotFoundError):
        read_member(path, b"b.jpg")


def test_an_archive_that_shrinks_under_a_reader_is_an_error_not_less_content(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"x" * 5000})
    monkeypatch.setattr(archives, "find_member", lambda *_: Member(512, 50_000))
    with pytest.raises(ImageError, match="ends within it"):
        read_member(path, b"a.jpg")


def test_a_member_is_the_same_picture_as_the_file(tmp_path):
    photo = paint(tmp_path / "trip" / "a.png", (10, 200, 30), size=(40, 30))
    path = write_tar(tmp_path / "x.tar", {"trip/a.png": photo.read_bytes()})
    member = path / "trip/a.png"
    np.testing.assert_array_equal(read_image(member), read_image(photo))
    view = CenterCrop(resize=16, crop=14)
    np.testing.assert_array_equal(load_picture(str(member), view).pixels, load_picture(photo, view).pixels)
    assert image_digest(member) == image_digest(photo)
    assert stat_content(member)[:2] == (photo.stat().st_size, path.stat().st_mtime_ns)
    assert list_images([member]) == [member]


def test_what_is_no_member_is_not_there(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"1", "inner.tar/b.jpg": b"2"})
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar/c.jpg").write_bytes(b"3")
    assert is_there(path)
    assert is_there(path / "a.jpg")
    assert is_there(path / "inner.tar/b.jpg")
    assert is_there(tmp_path / "folder.tar/c.jpg")
    assert open_content(path / "inner.tar/b.jpg").read() == b"2"
    assert open_content(tmp_path / "folder.tar/c.jpg").read() == b"3"
    for nowhere in (
        path / "b.jpg",
        path / "a.jpg/b.jpg",
        tmp_path / "y.tar/a.jpg",
        tmp_path / "folder.tar/d.jpg",
    ):
        assert not is_there(nowhere)
        with pytest.raises(OSError, match=r"[Nn]o such file"):
            open_content(nowhere)
    with pytest.raises(ImageError, match=r"x.tar/b.jpg: no such file"):
        read_image(path / "b.jpg")
    place = find_place(path / "a.jpg")
    assert place is not None
    assert (place.container, place.name, place.time) == (path, "a.jpg", None)
    assert find_place(tmp_path / "folder.tar/c.jpg") is None


def test_compressed_archives_are_told_by_their_names():
    assert compressed_suffix("train-0001.TAR.gz") == ".tar.gz"
    assert compressed_suffix("x.tgz") == ".tgz"
    assert compressed_suffix("x.tar") is None
    assert compressed_suffix("x.gz") is None
