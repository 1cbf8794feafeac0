"""The drawn set: each image follows from seed and number, and its kind shows in its shape, not its pixels."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.knn import classify
from dinov2kit.train.drawn_shapes import KINDS, DrawnShapes


def stack(images: DrawnShapes, count: int) -> np.ndarray:
    return np.stack([images.read(index) for index in range(count)])


def test_an_image_depends_on_the_seed_and_its_number_alone() -> None:
    few, many = DrawnShapes(20, seed=3), pickle.loads(pickle.dumps(DrawnShapes(500, seed=3)))
    backwards = [many.read(index) for index in reversed(range(20))][::-1]
    assert np.array_equal(stack(few, 20), np.stack(backwards))
    assert len(np.unique(stack(few, 20).reshape(20, -1), axis=0)) == 20
    other = stack(DrawnShapes(20, seed=4), 20).astype(int)
    assert (np.abs(stack(few, 20) - other).mean(axis=(1, 2, 3)) > 10).all()


def test_ten_kinds_take_turns_and_are_the_labels() -> None:
    images = DrawnShapes(25)
    assert len(KINDS) == len(set(KINDS)) == 10
    assert images.labels == [*KINDS, *KINDS, *KINDS[:5]]
    assert all(images.labels[index] in images.name(index) for index in range(25))


@pytest.mark.parametrize(("kind", "share"), [("disc", 0.81), ("square", 2 / np.pi), ("ring", 1 - 0.55**2)])
def test_figures_cover_what_their_outlines_enclose(kind: str, share: float) -> None:
    """Of the circle that the figure fills: the area of a disc, a square and a ring in closed form."""
    images = DrawnShapes(side=96)
    for u in (0.0, 0.5, 1.0):
        radius = (0.17 + 0.08 * u) * 96
        cover = images._draw_figure(kind, np.array([u, 0.4, 0.7, 0.13]))
        assert cover.sum() / (np.pi * radius**2) == pytest.approx(share, rel=0.04)
        assert cover.max() == 1.0
        assert cover.min() == 0.0


def test_figures_lie_inside_the_image_wherever_they_are_drawn() -> None:
    images = DrawnShapes(side=48)
    for kind in KINDS:
        areas = []
        for x, y in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5)]:
            areas.append(float(images._draw_figure(kind, np.array([0.8, x, y, 0.3])).sum()))
        assert max(areas) - min(areas) < 0.03 * max(areas), kind


def test_figure_and_ground_differ_in_every_image() -> None:
    """The inside of a disc against the corners, far above the noise of one pixel."""
    images = DrawnShapes(2000, side=24)
    for index in range(0, 400, 10):  # discs
        pixels = images.read(index).astype(int)
        smooth = cv2.blur(pixels.astype(np.float32), (5, 5))
        ranges = smooth.reshape(-1, 3).max(axis=0) - smooth.reshape(-1, 3).min(axis=0)
        assert ranges.max() > 45


def test_raw_pixels_say_little_about_the_kind() -> None:
    """Chance is 0.1; a backbone that has learned is far above what raw pixels reach."""
    bank, queries = stack(DrawnShapes(5000), 5000), stack(DrawnShapes(1000, seed=1), 1000)
    labels, truth = np.arange(5000) % 10, np.arange(1000) % 10
    flat = [images.reshape(len(images), -1).astype(np.float32) for images in (bank, queries)]
    found = classify(flat[0], labels, flat[1], ks=(20,))[20][:, 0]
    assert 0.25 < (found == truth).mean() < 0.32
    means = [images.mean(axis=(1, 2)).astype(np.float32) - 127 for images in (bank, queries)]
    by_colour = classify(means[0], labels, means[1], ks=(20,))[20][:, 0]
    assert (by_colour == truth).mean() < 0.16  # colour says nothing


def test_one_channel_is_the_luminance_of_three() -> None:
    grey, colour = DrawnShapes(8, channels=1), DrawnShapes(8)
    for index in range(8):
        expected = colour.read(index).astype(float) @ [0.299, 0.587, 0.114]
        assert np.abs(grey.read(index)[:, :, 0] - expected).max() <= 0.51


def test_the_digest_tells_sets_apart() -> None:
    sets = [DrawnShapes(), DrawnShapes(5), DrawnShapes(seed=1), DrawnShapes(side=32)]
    assert len({images.digest for images in sets}) == 4
    assert DrawnShapes().digest == DrawnShapes(10_000).digest


@pytest.mark.parametrize("wrong", [{"count": 0}, {"side": 4}, {"seed": -1}, {"channels": 2}])
def test_impossible_sets_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ArgumentError, match="wanted"):
        DrawnShapes(**wrong)


def test_there_is_no_image_beyond_the_last() -> None:
    with pytest.raises(ArgumentError, match="drawn image 5 of 5"):
        DrawnShapes(5).read(5)
