"""Crops show the part of the image that they should, and follow from seed, sample and view alone."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dinov2kit.train import crops
from dinov2kit.train.colours import BLUR, BRIGHTNESS, CONTRAST, GREY, HUE, ORDER, SATURATION, SOLARISE
from dinov2kit.train.crops import Box, CropRecipe, cut_crops, draw_box

SMALL = CropRecipe(global_size=40, local_size=16, local_count=4)
PHOTOS = {"astronaut": data.astronaut(), "coffee": data.coffee(), "cat": data.chelsea()}


def ramps(width: int, height: int) -> np.ndarray:
    """Return an image whose first channel is the column and whose second is the row of a pixel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 7)], axis=2).astype(np.uint8)


def box_of(view: np.ndarray) -> tuple[float, float, float, float]:
    """Return left, top, width and height of the box of a view of ramps; mirrored ones have a width below 0.

    The pixel at place i of a side shows the coordinate start + (i + 1/2) length / size - 1/2.
    """
    size = len(view)
    inner = np.arange(size)[2:-2]
    found = []
    for profile in (view[:, :, 0].mean(axis=0), view[:, :, 1].mean(axis=1)):
        slope, at_zero = np.polyfit(inner, profile[2:-2], 1)
        assert np.abs(profile[2:-2] - slope * inner - at_zero).max() < 1  # a ramp all along, rounded twice
        found.append((at_zero + 0.5 - slope / 2, slope * size))
    return found[0][0], found[1][0], found[0][1], found[1][1]


@pytest.mark.parametrize(("width", "height"), [(250, 180), (90, 240), (60, 60)])
def test_views_of_ramps_are_boxes_of_the_wanted_area_and_shape_in_the_image(width: int, height: int) -> None:
    image = ramps(width, height)
    flipped = []
    for sample in range(60):
        made = cut_crops(image, SMALL, seed=1, sample=sample)
        for views, scale in (
            (made.global_pixels, SMALL.global_scale),
            (made.local_pixels, SMALL.local_scale),
        ):
            assert (views[..., 2] == 7).all()
            for view in views:
                left, top, w, h = box_of(view)
                flipped.append(w < 0)
                left, w = (left + w, -w) if w < 0 else (left, w)
                assert -1 < left < left + w < width + 1
                assert -1 < top < top + h < height + 1
                assert (w - 1) / (h + 1) < 4 / 3  # sides are whole
                assert (w + 1) / (h - 1) > 3 / 4
                if max(width, height) / min(width, height) < 2:  # others fall back to their middle at times
                    assert 0.9 * scale[0] < w * h / (width * height) < 1.1 * scale[1]
    assert 0.42 < np.mean(flipped) < 0.58  # 4 standard deviations of 360


def test_boxes_are_distributed_as_those_of_torchvision() -> None:
    """The algorithm once more, with another source of random numbers: means agree within 4 deviations."""
    rng, draws, width, height, scale = np.random.default_rng(0), 4000, 500, 375, (0.32, 1.0)

    def again() -> tuple[int, int, int, int]:
        for _ in range(10):
            area, ratio = (
                width * height * rng.uniform(*scale),
                np.exp(rng.uniform(math.log(0.75), -math.log(0.75))),
            )
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if w <= width and h <= height:
                return int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1)), w, h
        return 0, 0, width, height

    wanted = np.array([again() for _ in range(draws)], float)
    found = np.array([draw_box(rng.random(40).tolist(), width, height, scale) for _ in range(draws)], float)
    for moment in (1, 2):
        difference = (found**moment).mean(axis=0) - (wanted**moment).mean(axis=0)
        assert (np.abs(difference) < 4 * (wanted**moment).std(axis=0) * math.sqrt(2 / draws)).all()
    assert (found[:, :2] + found[:, 2:]).max(axis=0).tolist() == [width, height]
    assert found[:, :2].min() == 0


def test_a_long_image_gives_its_middle_once_nothing_fits() -> None:
    never = [1.0, 0.5, 0.5, 0.5] * 10  # the whole area, square
    assert draw_box(never, 1000, 30, (0.5, 1.0)) == Box(480, 0, 40, 30)
    assert draw_box(never, 30, 1000, (0.5, 1.0)) == Box(0, 480, 30, 40)
    assert draw_box(never, 64, 63, (0.5, 1.2)) == Box(0, 0, 64, 63)


def psnr(found: np.ndarray, wanted: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(np.mean((found.astype(float) - wanted) ** 2), 0.1))


@pytest.mark.parametrize("size", [98, 224])
def test_crops_of_photos_are_those_of_pillow_with_antialiased_bicubic(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Per photo: boxes from half to three times the size of the crop, of all shapes."""
    recipe = CropRecipe(global_size=size, local_count=0, flip=0.0)
    worst = {"cat": 38.0, "coffee": 41.0, "astronaut": 38.0}
    for name, photo in PHOTOS.items():
        limit, scores = min(photo.shape[:2]), []
        for shrink in (0.5, 0.7, 0.9, 1.0, 1.06, 1.2, 1.4, 1.6, 1.8, 2.2, 2.6, 2.9):
            for stretch in (0.9, 1.0, 1.1):
                w, h = round(size * shrink * stretch), round(size * shrink / stretch)
                if max(w, h) > min(limit, 3 * size - 1):  # larger boxes are moved, see below
                    continue
                box = Box((photo.shape[1] - w) // 2, (photo.shape[0] - h) // 2, w, h)
                monkeypatch.setattr(crops, "draw_box", lambda *_, box=box: box)
                found = cut_crops(photo, recipe, seed=0, sample=0).global_pixels[0]
                part = photo[box.top : box.top + h, box.left : box.left + w]
                wanted = Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC)
                scores.append(psnr(found, np.asarray(wanted)))
        assert min(scores) > worst[name], name
        assert np.mean(scores) > 43, name


@pytest.mark.parametrize("shrink", [3.3, 5, 8.1, 13])
def test_crops_of_large_photos_are_those_of_pillow_for_the_box_they_were_moved_to(
    monkeypatch: pytest.MonkeyPatch, shrink: float
) -> None:
    photo = PHOTOS["astronaut"]
    size = int(500 // shrink)
    box, level = Box(7, 5, round(size * shrink), round(size * shrink)), 1 << int(math.log2(shrink / 1.5))
    monkeypatch.setattr(crops, "draw_box", lambda *_: box)
    recipe = CropRecipe(global_size=size, local_count=0, flip=0.0)
    found = cut_crops(photo, recipe, seed=0, sample=0).global_pixels[0]
    left, top, w, h = (level * round(edge / level) for edge in box)
    assert max(abs(left - box.left), abs(top - box.top), abs(w - box.width)) < shrink / 2  # less than a pixel
    part = Image.fromarray(photo[top : top + h, left : left + w])
    assert psnr(found, np.asarray(part.resize((size, size), Image.Resampling.BICUBIC))) > 36


def test_an_image_is_halved_once_for_all_its_views(monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.tile(PHOTOS["astronaut"], (4, 4, 1))
    halved = []
    resized = crops._resized
    monkeypatch.setattr(
        crops, "_resized", lambda pixels, *args: halved.append(pixels.shape[0]) or resized(pixels, *args)
    )
    cut_crops(large, CropRecipe(), seed=0, sample=0)
    assert [halved.count(side) for side in (2048, 1024)] == [1, 1]


def test_a_mirrored_view_is_the_mirror_image_of_the_same_view() -> None:
    for channels in (1, 3, 6):
        image = np.random.default_rng(0).integers(0, 256, (50, 70, channels), dtype=np.uint8)
        plain, mirrored = (
            cut_crops(image, CropRecipe(32, 16, 2, flip=flip), seed=3, sample=5) for flip in (0.0, 1.0)
        )
        assert np.array_equal(mirrored.global_pixels, plain.global_pixels[:, :, ::-1])
        assert np.array_equal(mirrored.local_pixels, plain.local_pixels[:, :, ::-1])


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_every_channel_is_cut_as_if_it_were_alone(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (120, 150, channels), dtype=np.uint8)
    together = cut_crops(image, SMALL, seed=0, sample=2)
    for channel in range(channels):
        alone = cut_crops(image[:, :, channel : channel + 1], SMALL, seed=0, sample=2)
        for part in (0, 1):
            difference = together[part][..., channel].astype(int) - alone[part][..., 0]
            assert np.abs(difference).max() <= (2 if channels == 2 else 0)  # cv2 rounds pairs another way


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (1, 60), (60, 1), (2, 3), (5, 400), (400, 5), (15, 15)])
def test_images_smaller_than_the_crop_and_of_one_pixel_work(shape: tuple[int, int]) -> None:
    image = np.full((*shape, 3), (200, 10, 90), np.uint8)
    for sample in range(8):
        made = cut_crops(image, SMALL, seed=0, sample=sample)
        for views in (made.global_pixels, made.local_pixels):
            assert (views == (200, 10, 90)).all()


def test_a_view_depends_on_seed_sample_and_its_own_number_alone() -> None:
    image = PHOTOS["cat"]
    few, many = (cut_crops(image, CropRecipe(40, 16, count), seed=2, sample=9) for count in (3, 8))
    assert np.array_equal(few.global_pixels, many.global_pixels)
    assert np.array_equal(few.local_pixels, many.local_pixels[:3])
    assert np.array_equal(few.local_colours, many.local_colours[:3])
    others = [cut_crops(image, SMALL, seed=s, sample=n) for s, n in ((2, 9), (2, 10), (3, 9), (2**70, 9))]
    for one, other in pairwise(others):
        assert not np.array_equal(one.global_pixels, other.global_pixels)
        assert (one.local_colours[:, :4] != other.local_colours[:, :4]).any(axis=1).any()


def colours_of(recipe: CropRecipe, samples: int = 500, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    dot = np.zeros((1, 1, channels), np.uint8)
    made = [cut_crops(dot, recipe, seed=4, sample=sample) for sample in range(samples)]
    return (
        np.stack([one.global_colours for one in made]).astype(float),
        np.stack([one.local_colours for one in made]).astype(float),
    )


def test_colours_are_drawn_with_the_chances_and_ranges_of_the_recipe() -> None:
    first_second, local = colours_of(CropRecipe(1, 1, 1))
    first, second, local = first_second[:, 0], first_second[:, 1], local[:, 0]
    margin = 4 * 0.5 / math.sqrt(len(first))  # 4 standard deviations of a share, at most
    for vectors, blur, solarise in ((first, 0.0, 0.0), (second, 0.9, 0.2), (local, 0.5, 0.0)):
        assert (vectors[:, BLUR] > 0).mean() == pytest.approx(blur, abs=margin if blur else 0)
        assert (vectors[:, SOLARISE] > 0).mean() == pytest.approx(solarise, abs=margin if solarise else 0)
        assert (vectors[:, GREY] > 0).mean() == pytest.approx(0.2, abs=margin)
        jittered = vectors[vectors[:, BRIGHTNESS] != 0]
        assert len(jittered) / len(vectors) == pytest.approx(0.8, abs=margin)
        assert (vectors[vectors[:, BRIGHTNESS] == 0][:, : ORDER + 1] == 0).all()
        for step, most in ((BRIGHTNESS, 0.4), (CONTRAST, 0.4), (SATURATION, 0.2), (HUE, 0.1)):
            amounts = jittered[:, step] / most
            assert (amounts.min(), amounts.max()) == pytest.approx((-1, 1), abs=0.03)
            assert (amounts.mean(), (amounts**2).mean()) == pytest.approx((0, 1 / 3), abs=0.06)
        counts = np.bincount(jittered[:, ORDER].astype(int), minlength=24)
        assert len(counts) == 24
        assert counts.min() > 0
        assert ((counts - len(jittered) / 24) ** 2).sum() / (len(jittered) / 24) < 60  # chi square of 23
    sigmas = second[second[:, BLUR] > 0, BLUR]
    assert (sigmas.min(), sigmas.mean(), sigmas.max()) == pytest.approx((0.1, 1.05, 2.0), abs=0.05)
    together = np.corrcoef(np.hstack([second, local[:, [BRIGHTNESS, HUE, GREY, BLUR]]]).T)
    assert np.abs(together[np.triu_indices(len(together), 1)]).max() < 4 / math.sqrt(len(first))


def test_what_the_recipe_leaves_out_is_zero_and_factors_are_never_below_zero() -> None:
    plain = {"jitter": 0.0, "grey": 0.0, "blur": (0.0, 0.0, 0.0), "solarise": 0.0}
    for vectors in colours_of(CropRecipe(1, 1, 2, **plain), 50):
        assert (vectors == 0).all()
    first_second, _ = colours_of(CropRecipe(1, 1, 1, jitter=1.0, brightness=3.0), 150)
    assert first_second[..., BRIGHTNESS].min() >= -1
    assert first_second[..., BRIGHTNESS].max() > 2.8


def test_images_without_colour_have_neither_saturation_nor_hue_nor_grey() -> None:
    for vectors in colours_of(CropRecipe(1, 1, 2), 100, channels=4):
        assert (vectors[..., [SATURATION, HUE, GREY]] == 0).all()
        assert (vectors[..., BRIGHTNESS] != 0).any()
        assert (vectors[..., BLUR] != 0).any()
