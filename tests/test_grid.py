"""The half pixel: patch grid against pixels of the original image."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2kit import PatchGrid
from dinov2kit.views import KeepAspect


def letterbox(width=400, height=200, side=224) -> PatchGrid:
    """A grid of 16x16 patches on which the image was fitted and centred, with padding around it."""
    scale = side / max(width, height)
    return PatchGrid(
        rows=side // 14,
        cols=side // 14,
        patch_size=14,
        width=width,
        height=height,
        scale_x=scale,
        scale_y=scale,
        offset_x=(side - width * scale) / 2,
        offset_y=(side - height * scale) / 2,
    )


def test_at_scale_one_the_first_patch_center_is_the_middle_of_its_14_pixels():
    grid = PatchGrid(rows=2, cols=3, patch_size=14, width=42, height=28, scale_x=1.0, scale_y=1.0)
    expected = [(x, y) for y in (6.5, 20.5) for x in (6.5, 20.5, 34.5)]
    np.testing.assert_array_equal(grid.centers(), np.array(expected, np.float32))
    assert grid.n_patches == 6
    assert grid.cell_px == (14, 14)


def test_a_pixel_wide_patch_maps_to_itself():
    grid = PatchGrid(rows=5, cols=7, patch_size=1, width=7, height=5, scale_x=1.0, scale_y=1.0)
    corners = np.array([(0, 0), (6, 4)], np.float32)
    np.testing.assert_array_equal(grid.to_cells(corners), corners)


def test_halving_the_image_moves_centers_by_the_half_pixel_rule():
    # network pixel i covers original pixels 2i and 2i + 1, whose middle is 2i + 0.5
    grid = PatchGrid(rows=3, cols=3, patch_size=1, width=6, height=6, scale_x=0.5, scale_y=0.5)
    np.testing.assert_allclose(grid.centers()[:3, 0], [0.5, 2.5, 4.5])


@given(
    width=st.integers(56, 12_000),
    height=st.integers(56, 12_000),
    points=st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(0, 1, width=32)), min_size=1, max_size=8),
)
def test_pixels_survive_the_round_trip_through_cells(width, height, points):
    grid = KeepAspect().grid(width, height)
    pixels = (np.array(points, np.float32) * (width - 1, height - 1)).astype(np.float32)
    limit = 1e-3 if max(width, height) <= 4096 else 4e-3  # one float32 step at 12,000 px is 1e-3
    assert np.abs(grid.to_pixels(grid.to_cells(pixels)) - pixels).max() < limit


def test_cells_survive_the_round_trip_through_pixels():
    grid = letterbox()
    cells = np.stack(np.meshgrid(np.linspace(-0.5, 15.5, 33), np.linspace(0, 15, 31)), -1).reshape(-1, 2)
    cells = cells.astype(np.float32)
    assert np.abs(grid.to_cells(grid.to_pixels(cells)) - cells).max() < 1e-4


def test_centers_are_row_major_and_equal_to_pixels_of_whole_cells():
    grid = KeepAspect().grid(640, 480)
    row, col = 5, 9
    expected = grid.to_pixels(np.array([[col, row]], np.float32))[0]
    np.testing.assert_array_equal(grid.centers()[row * grid.cols + col], expected)


def test_letterbox_padding_is_outside_and_the_image_is_inside():
    grid = letterbox()  # 400x200 at 0.56: 224x112, 56 network pixels (4 patches) of padding above and below
    inside = grid.inside().reshape(16, 16)
    assert inside[4:12].all()
    assert not inside[:4].any()
    assert not inside[12:].any()
    np.testing.assert_allclose(grid.centers()[4 * 16], (7 / 0.56 - 0.5, 7 / 0.56 - 0.5), rtol=1e-6)
    np.testing.assert_allclose(
        grid.to_cells(np.array([[199.5, 99.5]], np.float32)), [[7.5, 7.5]], atol=1e-5
    )  # the middle of the image is the middle of the grid


def test_a_cropped_image_has_patches_from_its_middle_only():
    # 448x224 at scale 1, centre crop 224: the left edge of the original lies 112 network pixels to the left
    grid = PatchGrid(16, 16, 14, width=448, height=224, scale_x=1.0, scale_y=1.0, offset_x=-112.0)
    assert grid.inside().all()
    np.testing.assert_allclose(grid.centers()[0], (118.5, 6.5))


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((-0.49, 0), True),
        ((-0.51, 0), False),
        ((399.4, 199.4), True),
        ((399.6, 0), False),
        ((np.nan, 0), False),
    ],
)
def test_the_image_reaches_half_a_pixel_beyond_its_outer_centers(point, expected):
    assert bool(letterbox().contains(np.array([point], np.float32))[0]) is expected
