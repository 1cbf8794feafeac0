"""Pictures are judged by their pixels: what is drawn must be where the numbers say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from skimage import data

from dinov2kit.draw import contact_sheet, draw_matches, shrink, write_image
from dinov2kit.errors import ArgumentError
from dinov2kit.matches import Matches


def matches_of(keypoints0: list[list[float]], keypoints1: list[list[float]], kept: list[bool]) -> Matches:
    n = len(kept)
    return Matches(
        keypoints0=np.array(keypoints0, np.float32).reshape(n, 2),
        keypoints1=np.array(keypoints1, np.float32).reshape(n, 2),
        score=np.linspace(0.9, 0.5, n, dtype=np.float32),
        confidence=np.linspace(0.8, 0.2, n, dtype=np.float32),
        cycle_error=np.zeros(n, np.float32),
        uncertainty=np.ones(n, np.float32),
        ratio=np.ones(n, np.float32),
        kept=np.array(kept, bool),
    )


def drawn_boxes(sheet: np.ndarray, empty: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Left, top, right and bottom of everything drawn below the title on each half of the sheet."""
    different = (sheet[57:] != empty[57:]).any(axis=2)
    y, x = np.nonzero(different)
    return [(x.min(), y.min() + 57, x.max(), y.max() + 57)]


def test_a_match_ends_where_its_pixels_are_drawn() -> None:
    """Image 0 is 200x100 and image 1 400x400; both are drawn 480 high, so 4.8 and 1.2 times."""
    image0, image1 = np.full((100, 200, 3), 128, np.uint8), np.full((400, 400, 3), 128, np.uint8)
    nothing = matches_of([], [], [])
    sheet = draw_matches(image0, image1, matches_of([[99.5, 49.5]], [[99.5, 199.5]], [True]), num=1)
    empty = draw_matches(image0, image1, nothing)
    assert sheet.shape == empty.shape == (56 + 480 + 20, 20 + 960 + 12 + 480 + 20, 3)
    left, top, right, bottom = drawn_boxes(sheet, empty)[0]
    assert (left + 7, right - 7) == pytest.approx((20 + 480 - 0.5, 992 + 120 - 0.5), abs=1.5)
    assert (top + bottom) / 2 == pytest.approx(56 + 240 - 0.5, abs=1)


def test_kept_matches_are_drawn_thicker_and_before_those_not_kept() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    ends = [[150.0, 100.0], [150.0, 200.0]]
    both = draw_matches(image, image, matches_of(ends, ends, [False, True]))
    column = (both[57:-20, 450] != 128).any(axis=1)  # right of the dots, where only lines are
    upper, lower = column[: len(column) // 2].sum(), column[len(column) // 2 :].sum()
    assert 0 < upper < lower
    one = draw_matches(image, image, matches_of(ends, ends, [False, True]), num=1)
    column = (one[57:-20, 450] != 128).any(axis=1)
    assert column[: len(column) // 2].sum() == 0
    assert column[len(column) // 2 :].sum() == lower


def test_the_picture_is_bounded_whatever_the_size_of_the_photos() -> None:
    image = np.zeros((3000, 4000, 3), np.uint8)
    sheet = draw_matches(image, image, matches_of([[0, 0]], [[3999, 2999]], [True]), max_side=800)
    assert sheet.shape[1] <= 800 + 2 * 20
    tall = draw_matches(image[:, :90], image[:, :90], matches_of([], [], []), max_side=800)
    assert tall.shape[0] <= 800 + 56 + 20
    wide = draw_matches(image[:1], image[:1], matches_of([[0, 0]], [[3999, 0]], [True]), max_side=800)
    assert wide.shape[1] <= 8000 + 12 + 2 * 20


def test_the_photos_themselves_are_shown_side_by_side() -> None:
    photo0, photo1 = data.astronaut(), data.chelsea()
    sheet = draw_matches(photo0, photo1, matches_of([], [], []), max_side=5000)
    np.testing.assert_array_equal(sheet[56 : 56 + 512, 20 : 20 + 512], photo0)
    width1 = round(512 * photo1.shape[1] / photo1.shape[0])
    small = sheet[56 : 56 + 512, 544 : 544 + width1].reshape(-1, 3).mean(axis=0)
    np.testing.assert_allclose(small, photo1.reshape(-1, 3).mean(axis=0), atol=2)


def test_a_sheet_marks_its_queries_and_no_other_tile() -> None:
    photos = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.cat()]
    captions = [f"{0.9 - i / 10:.3f}\n{name}.jpg" for i, name in enumerate("abcde")]
    marked = contact_sheet(photos, captions, columns=3, tile=240, highlight=2)
    plain = contact_sheet(photos, captions, columns=3, tile=240, highlight=0)
    _, x = np.nonzero((marked != plain).any(axis=2))
    y, _ = np.nonzero((marked != plain).any(axis=2))
    assert x.max() < 24 + 2 * 260  # the third column is untouched
    assert y.max() < 24 + 180 + 8  # so is the second row
    assert (marked == (37, 99, 235)).all(axis=2).sum() > 2 * 4 * (240 + 180)


def test_long_shapes_are_shown_whole_and_usual_ones_fill_their_tile() -> None:
    wide, usual = np.full((50, 500, 3), 9, np.uint8), np.full((600, 900, 3), 9, np.uint8)
    sheet = contact_sheet([wide, usual], ["a", "b"], tile=200, highlight=0)
    first, second = sheet[24:174, 24:224], sheet[24:174, 244:444]
    assert (second == 9).all()
    assert (first == 9).all(axis=2).mean() == pytest.approx(20 / 150, abs=0.01)


def test_captions_are_drawn_whatever_their_script_and_never_leave_their_tile() -> None:
    photo = data.coffee()
    names = ["Zürich/東京/кошка.jpg", "n" * 300 + ".jpg", "undecodable \udcff.jpg", ""]
    for name in names:
        sheet = contact_sheet([photo, photo], [f"0.9\n{name}", ""], tile=200)
        assert (sheet[24 + 150 + 8 :, 224:244] == 255).all()  # the gap between the tiles stays white
        ink = (sheet[24 + 150 + 32 :, 24:224] != 255).any(axis=2).sum()
        assert (ink > 50) == bool(name)
    shown = [contact_sheet([photo], [f"0.9\n{name}"], tile=200) for name in ("東京", "大阪")]
    assert (shown[0] != shown[1]).any()  # not two identical boxes


@pytest.mark.parametrize(("n_photos", "n_captions"), [(0, 0), (2, 1)])
def test_a_sheet_without_photos_or_captions_is_refused(n_photos: int, n_captions: int) -> None:
    with pytest.raises(ArgumentError, match="a caption for each"):
        contact_sheet([data.cat()] * n_photos, ["a"] * n_captions)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".JPEG"])
def test_a_written_image_reads_back(tmp_path: Path, suffix: str) -> None:
    photo = data.coffee()
    path = tmp_path / f"sheet{suffix}"
    write_image(path, photo)
    read = np.asarray(PillowImage.open(path).convert("RGB"))
    assert np.abs(read.astype(int) - photo).mean() < (0.001 if suffix == ".png" else 6)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_an_image_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="wanted a name that ends in"):
        write_image(tmp_path / "x.gif", data.cat())
    with pytest.raises(ArgumentError, match="cannot write"):
        write_image(tmp_path / "absent" / "x.png", data.cat())
    assert list(tmp_path.iterdir()) == []


def test_shrinking_keeps_the_shape_and_never_enlarges() -> None:
    photo = data.coffee()
    assert shrink(photo, 150).shape == (100, 150, 3)
    np.testing.assert_array_equal(shrink(photo, 9999), photo)
    np.testing.assert_allclose(shrink(photo, 150).mean(), photo.mean(), atol=0.5)
