"""Edited copies: each is what it says, depends on its seed only, and leaves the image alone."""

import numpy as np
import pytest

from dinov2kit.copies import BORDER, BRIGHTNESS, KINDS, make_copy
from dinov2kit.errors import ArgumentError


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    """A smooth picture without any symmetry, of even sides."""
    y, x = np.mgrid[0:60, 0:80].astype(np.float64)
    planes = [40 + 2 * x, 40 + 3 * y, 60 + x + y / 2]
    return np.clip(np.stack(planes, axis=-1), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_depends_on_image_kind_and_seed_and_changes_nothing(image, kind):
    before = image.copy()
    first = make_copy(image, kind, seed=3)
    assert np.array_equal(first, make_copy(image, kind, seed=3))
    assert np.array_equal(image, before)
    assert not np.shares_memory(first, image)
    assert (first.dtype, first.ndim, first.shape[2]) == (np.uint8, 3, 3)
    assert not np.array_equal(first, image)


@pytest.mark.parametrize("kind", ["crop", "border", "brightness"])
def test_other_seeds_make_other_copies(image, kind):
    assert len({make_copy(image, kind, seed=seed).tobytes() for seed in range(5)}) >= 4


def test_jpeg_is_lossy_and_near(image):
    noisy = np.clip(image + np.random.default_rng(0).normal(0, 8, image.shape), 0, 255).astype(np.uint8)
    copy = make_copy(noisy, "jpeg")
    difference = np.abs(copy.astype(int) - noisy)
    assert copy.shape == noisy.shape
    assert 2 < difference.mean() < 10


def test_resize_halves_each_side_and_keeps_what_is_seen(image):
    copy = make_copy(image, "resize")
    assert copy.shape == (30, 40, 3)
    halves = image.reshape(30, 2, 40, 2, 3).mean(axis=(1, 3))
    assert np.abs(copy[2:-2, 2:-2] - halves[2:-2, 2:-2]).max() <= 1.5
    assert make_copy(image[:1, :1], "resize").shape == (1, 1, 3)


def test_a_crop_is_a_part_of_the_image(image):
    places = set()
    for seed in range(30):
        copy = make_copy(image, "crop", seed=seed)
        assert copy.shape == (48, 64, 3)
        found = [
            (top, left)
            for top in range(13)
            for left in range(17)
            if np.array_equal(image[top : top + 48, left : left + 64], copy)
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 20
    assert make_copy(image[:1, :1], "crop").shape == (1, 1, 3)


def test_flip_swaps_left_and_right_and_twice_is_nothing(image):
    copy = make_copy(image, "flip")
    assert np.array_equal(copy[:, 0], image[:, -1])
    assert np.array_equal(make_copy(copy, "flip"), image)


def test_a_border_is_one_grey_around_the_whole_image(image):
    for seed in range(20):
        copy = make_copy(image, "border", seed=seed)
        width = (copy.shape[0] - 60) // 2
        assert BORDER[0] * 60 - 0.5 <= width <= BORDER[1] * 60 + 0.5
        assert np.array_equal(copy[width:-width, width:-width], image)
        rim = np.ones(copy.shape[:2], bool)
        rim[width:-width, width:-width] = False
        assert len(np.unique(copy[rim])) == 1


def test_brightness_scales_every_value_by_one_factor(image):
    factors = []
    for seed in range(20):
        copy = make_copy(image, "brightness", seed=seed)
        open_values = copy < 255
        factor = copy[open_values].sum() / image[open_values].sum()
        assert np.abs(copy[open_values] - image[open_values] * factor).max() <= 1
        factors.append(factor)
    (low, dark), (light, high) = BRIGHTNESS
    assert all(low - 0.01 < factor < dark + 0.01 or light - 0.01 < factor < high + 0.01 for factor in factors)
    assert min(factors) < dark
    assert max(factors) > light


def test_an_unknown_kind_is_refused(image):
    with pytest.raises(ArgumentError, match="unknown kind of copy 'blur'; wanted one of jpeg, resize"):
        make_copy(image, "blur")
