"""Pictures of similarity, components and dense flow: colours and lines must be where the numbers say."""

import subprocess
import sys

import numpy as np
import pytest
from skimage import data

from dinov2kit.drawing import UNKNOWN
from dinov2kit.errors import ArgumentError
from dinov2kit.flow_pictures import flow_colors
from dinov2kit.grid import PatchGrid
from dinov2kit.pictures import draw_flow, draw_grid, draw_heat, draw_pca, draw_warp

GREY = np.full((240, 240, 3), 128, np.uint8)
SHAPES = [(8, 8), (1, 300), (300, 1), (40, 3000), (900, 1300)]


def letterbox(width: int, height: int, side: int = 8, patch_size: int = 10) -> PatchGrid:
    """Return a square grid of `side` patches a side that holds a whole image in its middle."""
    scale = side * patch_size / max(width, height)
    return PatchGrid(
        rows=side,
        cols=side,
        patch_size=patch_size,
        width=width,
        height=height,
        scale_x=scale,
        scale_y=scale,
        offset_x=(side * patch_size - width * scale) / 2,
        offset_y=(side * patch_size - height * scale) / 2,
    )


def flow_of(width: int, height: int, u: float, v: float) -> np.ndarray:
    return np.broadcast_to(np.array([u, v], np.float32), (height, width, 2)).copy()


def test_the_heat_is_highest_where_the_patch_lies_and_the_star_where_the_point_is() -> None:
    """Image 1 is 400x200 on a grid 8x8 of which rows 2 to 5 see it; both images are drawn 480 high.

    Cell (6, 3) has its centre 6.5 patches of 50 pixels from the left and 1.5 from the top.
    """
    image1 = np.full((200, 400, 3), 128, np.uint8)
    similarity = np.zeros((8, 8), np.float32)
    similarity[3, 6] = 0.7
    sheet = draw_heat(GREY, image1, np.array([59.5, 179.5], np.float32), similarity, letterbox(400, 200))
    yellow = sheet.astype(int)[..., :2].min(axis=2) - sheet[..., 2]
    star, heat = yellow[56:536, 20:500], yellow[56:536, 512:1472]
    y, x = np.nonzero(star > 100)
    assert (x.mean(), y.mean()) == pytest.approx((119.5, 359.5), abs=1)
    y, x = np.nonzero(heat >= heat.max() - 3)
    assert (x.mean(), y.mean()) == pytest.approx((6.5 * 120 - 0.5, 1.5 * 120 - 0.5), abs=1.5)


def test_the_heat_between_two_patches_is_between_theirs() -> None:
    similarity = np.tile(np.array([0.0, 0.5, 1.0, 0.5], np.float32), (4, 1))
    grid = letterbox(480, 480, side=4)
    photo = np.zeros((480, 480, 3), np.uint8)
    sheet = draw_heat(photo, photo, np.array([0, 0], np.float32), similarity, grid)
    green = sheet[56 + 300, 512 : 512 + 480, 1].astype(int)  # viridis gets greener all the way
    assert (np.diff(green[60:300]) >= 0).all()
    assert (np.diff(green[300:420]) <= 0).all()
    assert green[120] == pytest.approx(green[119:122].mean(), abs=1)
    assert (green[:60] == green[0]).all()  # goes on to the edge
    assert green[180] == green[420] == green[479]


def test_padding_and_patches_without_a_similarity_have_no_colour_and_no_say() -> None:
    image1 = data.chelsea()[:200, :400]
    grid, point = letterbox(400, 200), np.array([5, 5], np.float32)
    rng = np.random.default_rng(0)
    similarity = rng.uniform(0.2, 0.8, (8, 8)).astype(np.float32)
    sheet = draw_heat(GREY, image1, point, similarity, grid)
    padded = similarity.copy()
    padded[:2], padded[6:] = 5.0, np.nan
    np.testing.assert_array_equal(draw_heat(GREY, image1, point, padded, grid), sheet)
    forbidden = similarity.copy()
    forbidden[:, :4] = -np.inf
    forbidden[4, 7] = 0.9
    panel = draw_heat(GREY, image1, point, forbidden, grid)[56:536, 512:1472].astype(int)
    assert (np.ptp(panel[:, : 3 * 120 + 60], axis=2) == 0).all()  # grey up to the last centre without one
    assert (np.ptp(panel[:, 4 * 120 + 60 :], axis=2) > 0).mean() > 0.9


def test_the_picture_of_heat_depends_on_the_order_of_similarities_and_its_legend_on_their_values() -> None:
    grid, point = letterbox(240, 240), np.array([5, 5], np.float32)
    similarity = np.arange(64, dtype=np.float32).reshape(8, 8) / 64
    sheet = draw_heat(GREY, GREY, point, similarity, grid)
    halved = draw_heat(GREY, GREY, point, similarity / 2, grid)
    np.testing.assert_array_equal(sheet[56:536], halved[56:536])
    assert (sheet[:56] != halved[:56]).any()
    assert (sheet[536:] != halved[536:]).any()


def test_a_similarity_that_is_not_of_the_grid_is_refused() -> None:
    grid, point = letterbox(240, 240), np.array([5, 5], np.float32)
    with pytest.raises(ArgumentError, match=r"\(4, 8\) patches; wanted \(8, 8\)"):
        draw_heat(GREY, GREY, point, np.zeros((4, 8), np.float32), grid)
    with pytest.raises(ArgumentError, match="no patch of image 1 has a similarity"):
        draw_heat(GREY, GREY, point, np.full((8, 8), np.nan, np.float32), grid)


def test_a_warp_covers_half_where_it_is_certain_and_nothing_where_it_is_not() -> None:
    image0, warped1 = np.full((480, 480, 3), 40, np.uint8), np.full((480, 480, 3), 200, np.uint8)
    certainty = np.zeros((480, 480), np.float32)
    certainty[:, 100:200], certainty[:, 200:300], certainty[:, 300:] = 1.0, 0.5, np.nan
    sheet = draw_warp(image0, warped1, certainty)
    first, both, alone = (sheet[56:536, 20 + index * 492 :][:, :480] for index in range(3))
    assert (first == 40).all()
    for columns, value in (((0, 100), 40), ((100, 200), 120), ((200, 300), 80), ((300, 480), 40)):
        assert (both[:, slice(*columns)] == value).all()
    assert (alone[:, 100:300] == 200).all()
    assert (alone[:, :100] == UNKNOWN).all()
    assert (alone[:, 300:] == UNKNOWN).all()


def test_opposite_directions_are_complementary_and_length_is_saturation() -> None:
    angles = np.linspace(0, 2 * np.pi, 73, dtype=np.float32)
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for length in (0.2, 0.5, 1.0):
        colors = flow_colors(length * steps, 1.0).astype(int)
        opposite = flow_colors(-length * steps, 1.0).astype(int)
        np.testing.assert_allclose(colors + opposite, 255 * (2 - length), atol=1.01)
        np.testing.assert_allclose(np.ptp(colors, axis=1), 255 * length, atol=1.01)
    assert len(np.unique(flow_colors(steps[:-1], 1.0), axis=0)) == 72
    right_down_left_up = flow_colors(steps[[0, 18, 36, 54]], 1.0).astype(int)  # y points down
    expected = [[255, 0, 0], [128, 255, 0], [0, 255, 255], [128, 0, 255]]
    np.testing.assert_allclose(right_down_left_up, expected, atol=1)
    np.testing.assert_allclose(flow_colors(2 * steps, 1.0).astype(int), flow_colors(steps, 1.0), atol=1)
    assert (flow_colors(0 * steps, 1.0) == 255).all()
    lost = np.array([[np.nan, 1], [1, np.nan], [np.nan, np.nan]], np.float32)
    assert (flow_colors(lost, 1.0) == UNKNOWN).all()
    assert len(set(UNKNOWN)) == 1  # a grey, which no direction has: all of them are bright


def test_the_colours_of_a_flow_lie_over_its_pixels_as_the_wheel_says() -> None:
    """The flow leads to the right on the left half, else down; one corner is unknown."""
    flow = flow_of(240, 240, 6.0, 0.0)
    flow[:, 120:] = 0.0, 6.0
    flow[:60, :60] = np.nan
    sheet = draw_flow(GREY, flow)
    panel = sheet[84:564, 512:992]
    right, down = flow_colors(np.array([[6, 0], [0, 6]], np.float32), 6.0)
    assert (panel[:120, :120] == UNKNOWN).all()
    assert (panel[120:, :240] == right).all()
    assert (panel[:, 240:] == down).all()
    wheel = sheet[10:74, -20 - 64 : -20].astype(int)
    assert np.abs(wheel[32, 62] - right).max() < 24
    assert np.abs(wheel[62, 32] - down).max() < 24
    assert (wheel[31:33, 31:33] > 245).all()


def test_an_arrow_starts_at_its_pixel_and_is_as_long_as_its_caption_says() -> None:
    """240 pixels have 18 arrows a side, 13.3 apart; a flow of 10 pixels is drawn at its own length.

    The eighth is at pixel int(13.33 * 7.5) = 100 of the image, whose pixels are 2 wide on the sheet.
    """
    flow = np.full((240, 240, 2), np.nan, np.float32)
    flow[95:105, 95:105] = 10.0, 0.0
    sheet = draw_flow(GREY, flow)
    y, x = np.nonzero((sheet[84:564, 20:500] != 128).any(axis=2))
    assert (x.min() + 3, x.max() - 3) == pytest.approx((200.5, 220.5), abs=2)
    assert (y.min() + y.max()) / 2 == pytest.approx(200.5, abs=1)
    turned = draw_flow(GREY, -flow)
    y, x = np.nonzero((turned[84:564, 20:500] != 128).any(axis=2))
    assert (x.min() + 3, x.max() - 3) == pytest.approx((180.5, 200.5), abs=2)
    longer = draw_flow(GREY, 10 * flow)  # a tenth of its length: the same arrow, another caption and legend
    np.testing.assert_array_equal(longer[84:564], sheet[84:564])
    assert (longer != sheet).any()


def test_a_shift_moves_the_lines_of_the_grid_by_as_much() -> None:
    """The images are drawn twice as large, so 8 and 5 pixels are 16 and 10 on the sheet."""
    still = draw_grid(GREY, GREY, flow_of(240, 240, 0, 0))
    moved = draw_grid(GREY, GREY, flow_of(240, 240, 8, 5))
    np.testing.assert_array_equal(still[56:536, 20:500], moved[56:536, 20:500])
    np.testing.assert_array_equal(still[56:536, 20:500], still[56:536, 512:992])
    panel0, panel1 = (sheet[56:536, 512:992] for sheet in (still, moved))
    np.testing.assert_allclose(panel1[14:, 20:].astype(int), panel0[4:-10, 4:-16], atol=10)  # of 60 and more
    lines = (panel0[15] != 128).any(axis=1)  # a row between the first two horizontal lines
    x = np.flatnonzero(lines)
    starts = x[np.concatenate([[True], np.diff(x) > 1])] + 2.5
    np.testing.assert_allclose(starts[1:-1], 2 * np.linspace(0, 239, 17)[1:-1], atol=2)


def test_the_colours_of_the_lines_tell_a_mirrored_image() -> None:
    x = np.arange(240, dtype=np.float32)
    flow = flow_of(240, 240, 0, 0)
    flow[..., 0] = 239 - 2 * x
    sheet = draw_grid(GREY, GREY, flow)
    row = 56 + 46  # between two horizontal lines
    left, right = sheet[row, 20 + 60 : 20 + 66], sheet[row, 512 + 480 - 66 : 512 + 480 - 60]
    colored = [side[(np.ptp(side.astype(int), axis=1) > 30)] for side in (left, right)]
    assert len(colored[0]) > 0
    assert np.abs(colored[0].astype(int).max(axis=0) - colored[1].max(axis=0)).max() <= 6


def test_lines_break_where_the_flow_is_unknown_or_jumps() -> None:
    flow = flow_of(240, 240, 0, 0)
    flow[:, 80:160] = np.nan
    sheet = draw_grid(GREY, GREY, flow)
    panel0, panel1 = sheet[56:536, 20:500], sheet[56:536, 512:992]
    assert (panel1[:, 170:310] == 128).all()
    assert (panel1[:, :150] != 128).any()
    assert (panel1[:, 330:] != 128).any()
    unknown = panel0[:, 170:310].astype(int)
    assert (np.ptp(unknown, axis=2) == 0).all()  # grey lines and the grey photo
    assert (unknown > 140).any()
    jumping = flow_of(240, 240, 0, 0)
    jumping[:, 120:, 0] = 60.0
    panel1 = draw_grid(GREY, GREY, jumping)[56:536, 512:992]
    assert (panel1[:, 250:350] == 128).all()


def test_cells_of_components_cover_their_pixels_and_the_rest_of_the_photo_is_dark() -> None:
    """A photo of 960x560 is shown pixel by pixel, in 8x8 patches of 120 pixels that begin 200 above it.

    Rows 0 and 7 are all padding; rows 1 and 6 have 40 pixels of the photo, but their centres on padding.
    """
    photo, grid = np.full((560, 960, 3), 100, np.uint8), letterbox(960, 560)
    rgb_map = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    foreground = np.ones((8, 8), bool)
    foreground[4, 3] = False
    sheet = draw_pca([photo], [rgb_map], [grid], ["a.png"], [0.5, 0.2, 0.1], [foreground], max_side=2000)
    np.testing.assert_array_equal(sheet[56:616, 20:980], photo)
    panel = sheet[56:616, 992:1952]
    for row in range(1, 7):
        for col in range(8):
            low, high = max(0, 120 * row - 200), min(560, 120 * row - 80)
            cell = panel[low:high, col * 120 : (col + 1) * 120]
            dark = row in (1, 6) or (row, col) == (4, 3)
            assert (cell == (40 if dark else rgb_map[row, col])).all(), (row, col)


def test_of_overlapping_patches_the_nearest_gives_the_colour() -> None:
    """Patches of 20 pixels every 10: 5 of them on 60 pixels, their centres 10 to 50."""
    grid = PatchGrid(5, 5, 20, 60, 60, 1.0, 1.0, stride=10)
    rgb_map = np.zeros((5, 5, 3), np.uint8)
    rgb_map[..., 0] = 50 * np.arange(5)
    sheet = draw_pca([GREY[:60, :60]], [rgb_map], [grid], [""], [1.0], [None])
    row = sheet[200, 20 + 492 :][:480, 0]
    edges = np.flatnonzero(np.diff(row.astype(int))) + 1
    np.testing.assert_array_equal(edges, [120, 200, 280, 360])
    assert row[0] == 0
    assert row[-1] == 200


def test_every_photo_stands_above_its_own_colours_whatever_their_number() -> None:
    grid = PatchGrid(1, 1, 10, 240, 240, 1 / 24, 1 / 24)
    for count in (2, 3, 7):
        photos = [np.full((240, 240, 3), 10 + 30 * index, np.uint8) for index in range(count)]
        maps = [np.full((1, 1, 3), (0, 10 + 30 * index, 0), np.uint8) for index in range(count)]
        names = [f"{index}.png" for index in range(count)]
        sheet = draw_pca(photos, maps, [grid] * count, names, [0.1] * 3, [None] * count, max_side=700)
        for photo, colors in zip(photos, maps, strict=True):
            boxes = []
            for shown in (photo[0, 0], colors[0, 0]):
                y, x = np.nonzero((sheet == shown).all(axis=2))
                boxes.append((np.median(x), np.median(y), len(x)))
            assert boxes[0][0] == pytest.approx(boxes[1][0], abs=1)
            side = np.sqrt(boxes[1][2])
            assert boxes[1][1] - boxes[0][1] == pytest.approx(side + 12, abs=3)


def test_the_explained_variance_is_a_line_of_its_own() -> None:
    grid = PatchGrid(1, 1, 10, 240, 240, 1 / 24, 1 / 24)
    some = [draw_pca([GREY], [GREY[:1, :1]], [grid], ["a"], shares, [None]) for shares in ([0.5], [0.4])]
    assert (some[0][:56] != some[1][:56]).any()
    np.testing.assert_array_equal(some[0][56:], some[1][56:])
    titled = draw_pca([GREY], [GREY[:1, :1]], [grid], ["a"], [0.5], [None], title="x" * 500)
    np.testing.assert_array_equal(titled[80:], some[0][56:])
    np.testing.assert_array_equal(titled[46:80], some[0][22:56])


def test_what_does_not_fit_together_is_refused() -> None:
    grid, rgb_map, flow = letterbox(240, 240), np.zeros((8, 8, 3), np.uint8), flow_of(240, 240, 1, 1)
    with pytest.raises(ArgumentError, match="1 images, 2 maps, 1 grids"):
        draw_pca([GREY], [rgb_map] * 2, [grid], ["a"], [0.1], [None])
    with pytest.raises(ArgumentError, match="at least one image"):
        draw_pca([], [], [], [], [], [])
    with pytest.raises(ArgumentError, match=r"image 0 have \(4, 8\) patches; wanted \(8, 8\)"):
        draw_pca([GREY], [rgb_map[:4]], [grid], ["a"], [0.1], [None])
    with pytest.raises(ArgumentError, match=r"image 0 have \(8, 3\) patches"):
        draw_pca([GREY], [rgb_map], [grid], ["a"], [0.1], [np.ones((8, 3), bool)])
    with pytest.raises(ArgumentError, match="flow has 240x240 pixels; wanted 240x100"):
        draw_flow(GREY[:100], flow)
    with pytest.raises(ArgumentError, match="flow has 240x240 pixels; wanted 240x100"):
        draw_grid(GREY[:100], GREY, flow)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_shape_makes_a_bounded_picture_in_every_style(shape: tuple[int, int]) -> None:
    height, width = shape
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    grid = letterbox(width, height, side=41)
    similarity = np.linspace(0, 1, 41 * 41, dtype=np.float32).reshape(41, 41)
    flow, title = flow_of(width, height, 1, 0), "Zürich/東京/кошка\n" * 99
    rgb_map, middle = np.zeros((41, 41, 3), np.uint8), np.array([width / 2, height / 2], np.float32)
    sheets = [
        draw_heat(image, GREY, middle, np.eye(8, dtype=np.float32), letterbox(240, 240)),
        draw_heat(GREY, image, middle, similarity, grid, title=title),
        draw_warp(image, image, np.ones(shape, np.float32), title=title),
        draw_flow(image, flow, title=title),
        draw_flow(image, 0 * flow),
        draw_flow(image, flow * np.nan),
        draw_flow(image, 1e6 * flow),
        draw_grid(image, GREY, flow, title=title),
        draw_grid(image, GREY, flow * np.nan),
        draw_grid(image, GREY, 1e6 * flow),
        draw_pca([image] * 3, [rgb_map] * 3, [grid] * 3, [title] * 3, [0.1] * 3, [None] * 3, title=title),
    ]
    for sheet in sheets:
        assert sheet.shape[0] <= 1600 + 84 + 3 * 44
        assert 480 <= sheet.shape[1] <= 1600 + 2 * 20
        assert (sheet[:40, :19] == 255).all()  # no title or caption leaves its margins
        assert (sheet[:40, -19:] == 255).all()
        assert (sheet[-15:] == 255).all()


def test_pictures_do_not_load_torch() -> None:
    code = "import sys, dinov2kit.pictures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
