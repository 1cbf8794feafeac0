"""Pictures are judged by their pixels: what is drawn must be where the numbers say."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage
from skimage import data

from dinov2kit.draw import contact_sheet, draw_dots, draw_matches, shrink, write_image
from dinov2kit.drawing import PALETTE, fit, text_width
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
    assert wide.shape[1] <= 800 + 2 * 20


def test_inliers_are_thick_and_come_first_whatever_was_kept() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    ends = [[150.0, 100.0], [150.0, 200.0]]
    matches = matches_of(ends, ends, [True, False])
    drawn = draw_matches(image, image, matches, inliers=np.array([False, True]))
    as_kept = draw_matches(image, image, matches_of(ends, ends, [False, True]))
    np.testing.assert_array_equal(drawn[57:], as_kept[57:])
    assert (drawn[:57] != as_kept[:57]).any()  # the legend speaks of inliers
    only = draw_matches(image, image, matches, inliers=np.array([False, True]), num=1)
    changed = (only[57:-20, 450] != 128).any(axis=1)
    assert not changed[: len(changed) // 2].any()
    assert changed[len(changed) // 2 :].any()


def test_labels_stand_beside_both_ends_inside_their_image_and_cover_no_dot() -> None:
    image = np.full((480, 480, 3), 128, np.uint8)
    ends0 = [[4.0, 240.0], [475.0, 240.0], [240.0, 200.0], [262.0, 200.0], [240.0, 222.0]]
    matches = matches_of(ends0, ends0[::-1], [True] * 5)
    plain = draw_dots(image, image, matches)
    labelled = draw_dots(image, image, matches, labels=["left", "right", "a", "b", ""])
    changed = (labelled != plain).any(axis=2)
    assert not changed[:, :20].any()
    assert not changed[:, 500:512].any()  # the gap
    assert not changed[:, 992:].any()
    y, x = np.mgrid[: changed.shape[0], : changed.shape[1]]
    for left, ends in ((20, ends0), (512, ends0[::-1])):
        for index, (at_x, at_y) in enumerate(ends):
            distance = np.hypot(x - left - at_x, y - 56 - at_y)
            assert not changed[distance < 10].any()
            assert changed[distance < 40].any() or index == 4
    wordless = draw_dots(image, image, matches, labels=[""] * 5)
    np.testing.assert_array_equal(wordless, plain)


@pytest.mark.parametrize("options", [{"labels": ["a"]}, {"labels": ["a"] * 3}, {"inliers": np.array([True])}])
def test_a_wrong_number_of_labels_or_inliers_is_refused(options: dict[str, object]) -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    matches = matches_of([[1, 1], [2, 2]], [[1, 1], [2, 2]], [True, True])
    with pytest.raises(ArgumentError, match="one for each of the 2 matches"):
        draw_matches(image, image, matches, **options)


def test_matches_without_a_place_are_left_out() -> None:
    image = np.full((300, 300, 3), 128, np.uint8)
    nowhere, place = [float("nan"), 3.0], [100.0, 100.0]
    three = matches_of([nowhere, place, place], [place, nowhere, place], [True] * 3)
    for draw in (draw_matches, draw_dots):
        only = draw(image, image, three.take(np.array([2])))
        shown = draw(image, image, three)
        centre = slice(56 + 148, 56 + 175), slice(20 + 148, 20 + 175)
        box = (shown[57:] != draw(image, image, three, num=0)[57:]).any(axis=2)
        np.testing.assert_array_equal(box, (only[57:] != draw(image, image, three, num=0)[57:]).any(axis=2))
        assert (shown[centre] != 128).any()


def test_a_bounded_number_of_dots_is_drawn_where_the_keypoints_are_in_one_colour_per_match() -> None:
    """Image 0 is 480x480 and image 1 960x960; both are drawn 794 high, at most 1,600 wide together."""
    image0, image1 = np.full((480, 480, 3), 128, np.uint8), np.full((960, 960, 3), 128, np.uint8)
    ends0 = [[40.0 + 40 * i, 60.0 + 30 * (i % 3)] for i in range(10)]
    ends1 = [[80.0 + 75 * i, 900.0 - 90 * (i % 4)] for i in range(10)]
    matches = matches_of(ends0, ends1, [True] * 10)
    sheet = draw_dots(image0, image1, matches, num=9)
    rim = [
        [sheet[y, x] for x, y in rims(ends, scale, left)]
        for ends, scale, left in ((ends0, 794 / 480, 20), (ends1, 794 / 960, 20 + 794 + 12))
    ]
    np.testing.assert_array_equal(rim[0][:9], rim[1][:9])
    assert {tuple(map(int, color)) for color in rim[0][:8]} == set(PALETTE)
    np.testing.assert_array_equal(rim[0][8], rim[0][0])  # the ninth has the first colour again
    assert (rim[0][9] == 128).all()
    assert (rim[1][9] == 128).all()
    discs = [cut_around(sheet, ends0[index], 794 / 480, 20) for index in (0, 8)]
    assert (discs[0] != discs[1]).any()  # and another number


def rims(ends: list[list[float]], scale: float, left: int) -> list[tuple[int, int]]:
    """A place in each disc above its number, 14 pixels from its centre on a sheet 794 pixels high."""
    return [
        (round(left + (x + 0.5) * scale - 0.5), round(56 + (y + 0.5) * scale - 0.5) - 12) for x, y in ends
    ]


def cut_around(sheet: np.ndarray, end: list[float], scale: float, left: int) -> np.ndarray:
    x, y = (round(start + (at + 0.5) * scale - 0.5) for start, at in zip((left, 56), end, strict=True))
    return sheet[y - 10 : y + 11, x - 10 : x + 11]


def test_dots_have_a_black_ring_and_their_number_is_legible_on_each_colour() -> None:
    image = np.full((500, 500, 3), 128, np.uint8)
    ends = [[50.0 + 50 * i, 250.0] for i in range(8)]
    sheet = draw_dots(image, image, matches_of(ends, ends, [True] * 8))
    for index, (x, y) in enumerate(ends):
        at_x, at_y = 20 + round(x), 56 + round(y)
        assert (sheet[at_y, at_x - 11] < 60).all()
        inside = sheet[at_y - 6 : at_y + 7, at_x - 6 : at_x + 7].reshape(-1, 3).astype(int)
        contrast = np.abs(inside - np.array(PALETTE[index])).sum(axis=1)
        assert (contrast > 250).sum() > 8, PALETTE[index]


def test_the_palette_stays_apart_for_those_who_lack_a_cone() -> None:
    """Simulated with the matrices of Machado et al., 2009; 2.3 is a just noticeable difference in CIE Lab."""
    from skimage.color import rgb2lab

    seen = {
        "usual": np.eye(3),
        "deuteranopia": [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]],
        "protanopia": [[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]],
    }
    share = np.array(PALETTE) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    for name, matrix in seen.items():
        simulated = np.clip(linear @ np.array(matrix).T, 0, 1)
        shown = np.where(simulated <= 0.0031308, 12.92 * simulated, 1.055 * simulated ** (1 / 2.4) - 0.055)
        lab = rgb2lab(shown[None])[0]
        distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
        assert distance[~np.eye(len(PALETTE), dtype=bool)].min() > 15, name


@pytest.mark.parametrize("shape0", [(8, 8), (1, 2000), (2000, 1), (1200, 1800)])
@pytest.mark.parametrize("n", [0, 1, 40])
def test_any_shapes_and_numbers_of_matches_make_a_bounded_picture(shape0: tuple[int, int], n: int) -> None:
    image0, image1 = np.zeros((*shape0, 3), np.uint8), np.zeros((90, 120, 3), np.uint8)
    rng = np.random.default_rng(n)
    ends = (rng.uniform(0, np.array(image.shape[1::-1]) - 1, (n, 2)).tolist() for image in (image0, image1))
    matches = matches_of(*ends, [True] * n)
    title = "Zürich/東京/кошка\n" * 99
    for draw in (draw_matches, draw_dots):
        sheet = draw(image0, image1, matches, num=40, title=title, labels=["ein Ohr"] * n)
        assert sheet.shape[0] <= 1600 + 56 + 20
        assert 480 <= sheet.shape[1] <= 1600 + 2 * 20
        assert (sheet[:42, :19] == 255).all()  # the title keeps to its margins
        assert (sheet[:42, -19:] == 255).all()
        assert (sheet[:18] == 255).all()  # and to one line
        assert (sheet[:42] != 255).any()


@pytest.mark.parametrize("width", [5, 20, 90, 300, 10_000])
def test_long_text_loses_as_little_of_its_middle_as_it_must(width: int) -> None:
    text = "a fairly long folder/another, ünïcode 東京/" * 3 + "photo.jpg"
    shown = fit(text, width, 20, 600)
    longest = "…"
    for kept in range(2, len(text)):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        longest = short if text_width(short, 20, 600) <= width else longest
    assert shown == (text if width == 10_000 else longest)
    assert fit("two\nlines\t", 10_000, 20, 600) == "two lines"


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
