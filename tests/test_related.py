"""What belongs together is told from what is the same: raw files, movies, bursts."""

from pathlib import Path

import numpy as np
import pytest
from copies_of_photos import photo
from PIL import Image
from PIL.ExifTags import IFD, Base
from small_index import content

from dinov2kit.indexes.related import Companions, Related, Shot, is_raw_of, read_shot
from dinov2kit.indexes.snapshot import Photo


def shoot(
    path: Path,
    number: int,
    taken: str | None,
    *,
    model: str = "X1",
    subsecond: str | None = None,
    width: int = 120,
) -> Photo:
    """Write a photo with EXIF data, and return what an index would know of it."""
    pixels = Image.fromarray(photo("cat")).resize((width, 90))
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Model] = "Maker", model
    if taken:
        details = exif.get_ifd(IFD.Exif)
        details[Base.DateTimeOriginal] = taken.replace("-", ":").replace("T", " ")
        if subsecond:
            details[Base.SubsecTimeOriginal] = subsecond
    pixels.save(path, exif=exif)
    return Photo(number, path, width, 90, path.stat().st_size, 0, taken, content(number))


NOON = "2024-05-31T12:00:00"


@pytest.mark.parametrize(
    ("first", "second", "burst"),
    [
        ({"taken": NOON}, {"taken": "2024-05-31T12:00:02"}, True),
        ({"taken": NOON}, {"taken": "2024-05-31T12:00:03"}, False),
        ({"taken": "2024-05-31T11:59:59"}, {"taken": NOON}, True),
        ({"taken": NOON}, {"taken": "2024-05-31T12:00:01", "model": "Y2"}, False),
        ({"taken": NOON}, {"taken": None}, False),
        ({"taken": None}, {"taken": None}, False),
        ({"taken": NOON, "subsecond": "10"}, {"taken": NOON, "subsecond": "55"}, True),
        ({"taken": NOON, "subsecond": "55"}, {"taken": NOON, "subsecond": "550"}, False),  # the same moment
        ({"taken": NOON}, {"taken": NOON}, True),  # nothing tells a copy from the next shot: be careful
        ({"taken": NOON}, {"taken": NOON, "width": 60}, False),  # a smaller copy keeps the time
    ],
)
def test_shots_of_one_camera_within_two_seconds_are_a_burst(tmp_path, first, second, burst):
    one = shoot(tmp_path / "1.jpg", 1, **first)
    other = shoot(tmp_path / "2.jpg", 2, **second)
    assert Companions().is_burst(one, other) is burst
    assert Companions().is_burst(other, one) is burst


def test_equal_contents_are_never_a_burst(tmp_path):
    one, other = (shoot(tmp_path / f"{n}.jpg", 1, NOON) for n in (1, 2))
    assert not Companions().is_burst(one, other)


def test_raw_files_and_movies_with_the_name_of_a_photo_belong_to_it(tmp_path):
    for name in ("IMG_1.JPG", "IMG_1.CR2", "IMG_1.MOV", "IMG_1.txt", "IMG_10.CR2", "img_1.nef"):
        (tmp_path / name).write_bytes(b"")
    path = tmp_path / "IMG_1.JPG"
    assert Companions().beside(path) == (
        Related(tmp_path / "IMG_1.CR2", "raw", path),
        Related(tmp_path / "IMG_1.MOV", "live", path),
    )
    assert Companions().beside(tmp_path / "IMG_10.CR2") == ()
    assert Companions().beside(tmp_path / "no folder" / "a.jpg") == ()


def test_a_raw_file_is_known_by_its_name_and_folder():
    assert is_raw_of(Path("/a/1.jpg"), Path("/a/1.NEF"))
    assert is_raw_of(Path("/a/1.dng"), Path("/a/1.jpg"))
    assert not is_raw_of(Path("/a/1.jpg"), Path("/a/1.png"))
    assert not is_raw_of(Path("/a/1.jpg"), Path("/b/1.nef"))
    assert not is_raw_of(Path("/a/1.nef"), Path("/a/1.dng"))


def test_what_exif_says_is_read_and_rubbish_says_nothing(tmp_path):
    shoot(tmp_path / "a.jpg", 1, NOON, subsecond="25")
    shot = read_shot(tmp_path / "a.jpg")
    assert (shot.camera, shot.subsecond) == ("Maker X1", "25")
    assert shot.entries >= 4
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "bare.png")
    (tmp_path / "rubbish.jpg").write_bytes(b"\xff\xd8\xff\xe1\x00\x10Exif\0\0rubbish")
    for name in ("bare.png", "rubbish.jpg", "nowhere.jpg"):
        assert read_shot(tmp_path / name) == Shot()
