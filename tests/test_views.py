"""Which part of an image becomes which network pixels: pure geometry."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2kit import ArgumentError
from dinov2kit.views import CenterCrop, KeepAspect, Region

sides = st.integers(1, 20_000)


def test_the_center_crop_of_a_12_megapixel_photo_starts_at_a_whole_resized_pixel():
    placement = CenterCrop().place(4032, 3024)  # resized to 341x256; (341 - 224) / 2 = 58.5 rounds to 58
    unit_x, unit_y = 4032 / 341, 3024 / 256
    np.testing.assert_allclose(placement.box, (58 * unit_x, 16 * unit_y, 282 * unit_x, 240 * unit_y))
    assert (placement.width, placement.height) == (224, 224)


@pytest.mark.parametrize(("width", "resized", "left"), [(341, 341, 58), (343, 343, 60), (345, 345, 60)])
def test_half_offsets_round_to_even(width, resized, left):
    box = CenterCrop().place(width, 256).box
    np.testing.assert_allclose(box, (left, 16, left + 224, 240))


def test_a_square_of_the_resized_side_is_cut_without_scaling():
    assert CenterCrop(resize=224, crop=224).place(224, 224).box == (0, 0, 224, 224)


@given(width=sides, height=sides)
def test_the_center_crop_lies_inside_the_image_and_near_its_middle(width, height):
    left, top, right, bottom = CenterCrop().place(width, height).box
    assert left >= 0
    assert top >= 0
    assert right <= width + 1e-6
    assert bottom <= height + 1e-6
    # half a resized pixel from rounding the offset; the scale itself is off by under one part in 256
    assert abs((left + right) / 2 / width - 0.5) < 0.51 / 256
    assert abs((top + bottom) / 2 / height - 0.5) < 0.51 / 256
    assert (right - left) / (bottom - top) == pytest.approx(1, rel=1 / 256)


@given(width=sides, height=sides)
def test_turning_an_image_turns_its_crop(width, height):
    left, top, right, bottom = CenterCrop().place(width, height).box
    assert CenterCrop().place(height, width).box == (top, left, bottom, right)


def test_a_crop_larger_than_the_resized_image_is_refused():
    with pytest.raises(ArgumentError, match="cannot crop 300"):
        CenterCrop(resize=256, crop=300)


@given(width=sides, height=sides)
def test_keep_aspect_sees_the_whole_image_in_whole_patches(width, height):
    view = KeepAspect()
    placement, grid = view.place(width, height), view.grid(width, height)
    assert placement.box == (0, 0, width, height)
    assert (placement.width, placement.height) == (14 * grid.cols, 14 * grid.rows)
    assert max(placement.width, placement.height) == 518
    assert min(grid.rows, grid.cols) >= 4
    scale = 518 / max(width, height)
    for side, n_patches in ((width, grid.cols), (height, grid.rows)):
        if n_patches > 4:
            assert abs(n_patches * 14 - side * scale) <= 7


@given(width=sides, height=sides)
def test_the_grid_puts_the_corner_patches_at_the_corners(width, height):
    grid = KeepAspect().grid(width, height)
    patch_width, patch_height = grid.cell_px
    centers = grid.centers()
    np.testing.assert_allclose(
        centers[0], (patch_width / 2 - 0.5, patch_height / 2 - 0.5), rtol=1e-6, atol=1e-3
    )
    last = (width - patch_width / 2 - 0.5, height - patch_height / 2 - 0.5)
    np.testing.assert_allclose(centers[-1], last, rtol=1e-6, atol=2e-3)
    assert grid.inside().all()


def test_a_size_below_four_patches_is_refused():
    with pytest.raises(ArgumentError, match="at least 56"):
        KeepAspect(size=55)


@pytest.mark.parametrize("view", [CenterCrop(), KeepAspect()])
def test_the_description_survives_json(view):
    assert json.loads(json.dumps(view.describe())) == view.describe()


def test_whatever_changes_pixels_changes_the_description():
    views = [CenterCrop(), CenterCrop(resize=224), CenterCrop(crop=196), KeepAspect(), KeepAspect(size=448)]
    views.append(KeepAspect(patch_size=16))
    assert len({json.dumps(view.describe(), sort_keys=True) for view in views}) == len(views)
    facts = CenterCrop().describe()
    assert facts["jpeg"] == "dct-scaled-2x"
    assert facts["version"] == 1


def test_regions_are_given_in_pixels_or_in_fractions():
    assert Region(10, 20, 30, 40).box(100, 200) == (10, 20, 40, 60)
    assert Region(0.1, 0.1, 0.3, 0.2, relative=True).box(100, 200) == (10, 20, 40, 60)
    assert Region(0, 0, 1, 1, relative=True).box(33, 77) == (0, 0, 33, 77)


@pytest.mark.parametrize(
    "region",
    [
        Region(0, 0, 101, 10),
        Region(-1, 0, 10, 10),
        Region(0, 0, 0, 10),
        Region(50, 195, 10, 10),
        Region(0.5, 0, 0.6, 1, relative=True),
    ],
)
def test_a_region_beyond_the_image_is_refused(region):
    with pytest.raises(ArgumentError, match="100x200"):
        region.box(100, 200)
