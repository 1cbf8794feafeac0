"""Keypoints are chosen among matches whose confidence and place are known."""

import numpy as np
import pytest
from skimage import data

from dinov2kit.errors import ArgumentError
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches
from dinov2kit.selection import choose, sift_keypoints

GRID = PatchGrid(rows=10, cols=16, patch_size=14, width=224, height=140, scale_x=1.0, scale_y=1.0)


def matches_with(confidence: np.ndarray, kept: np.ndarray | None = None) -> Matches:
    n, centers = GRID.n_patches, GRID.centers()
    zeros = np.zeros(n, np.float32)
    kept = np.ones(n, bool) if kept is None else kept
    return Matches(centers, centers, zeros, confidence.astype(np.float32), zeros, zeros, zeros, kept)


def random_matches(seed: int = 0) -> Matches:
    rng = np.random.default_rng(seed)
    return matches_with(rng.uniform(size=GRID.n_patches), rng.uniform(size=GRID.n_patches) < 0.7)


def descriptors_of_parts(parts: int) -> np.ndarray:
    """Every patch belongs to one of some parts; the descriptors of a part are nearly one."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(parts, 24))
    of = np.arange(GRID.n_patches) % parts
    return (centers[of] + 0.01 * rng.normal(size=(GRID.n_patches, 24))).astype(np.float32)


@pytest.mark.parametrize("how", ["spread", "kmeans", "grid"])
def test_only_kept_matches_are_chosen_each_once_and_always_the_same(how: str) -> None:
    matches, parts = random_matches(), descriptors_of_parts(7)
    chosen = choose(matches, GRID, 20, how, descriptors=parts)
    assert matches.kept[chosen].all()
    assert len(set(chosen.tolist())) == len(chosen) <= 20
    np.testing.assert_array_equal(choose(matches, GRID, 20, how, descriptors=parts), chosen)
    assert len(choose(matches, GRID, 10_000, how, descriptors=parts)) == matches.kept.sum()


def test_spread_keypoints_begin_with_the_best_and_keep_their_distance() -> None:
    matches = matches_with(np.linspace(1, 0, GRID.n_patches))
    chosen = choose(matches, GRID, 10)
    assert chosen[0] == 0
    assert len(chosen) == 10
    places = GRID.centers()[chosen]
    apart = np.abs(places[:, None] - places[None]).max(axis=2) + 1e9 * np.eye(10)
    assert apart.min() >= 3 * 14  # without spacing the ten best are neighbours in one row


def test_kmeans_takes_the_most_confident_of_every_part() -> None:
    parts = 6
    matches = random_matches()
    chosen = choose(matches, GRID, parts, "kmeans", descriptors=descriptors_of_parts(parts))
    of = np.arange(GRID.n_patches) % parts
    best = [
        max(np.flatnonzero((of == part) & matches.kept), key=lambda row: matches.confidence[row])
        for part in range(parts)
    ]
    assert set(chosen.tolist()) == {int(row) for row in best}
    assert (np.diff(matches.confidence[chosen]) <= 0).all()


def test_a_grid_of_keypoints_covers_the_kept_matches_evenly() -> None:
    kept = np.zeros((10, 16), bool)
    kept[:, 8:] = True
    chosen = choose(matches_with(np.ones(160), kept.ravel()), GRID, 20, "grid")
    places = GRID.centers()[chosen]
    counts, _, _ = np.histogram2d(*places.T, bins=[2, 2], range=[[112, 224], [0, 140]])
    assert counts.min() >= 4
    assert len(chosen) == 20


def test_nothing_kept_is_nothing_chosen() -> None:
    nothing = matches_with(np.ones(160), np.zeros(160, bool))
    for how in ("spread", "kmeans", "grid"):
        assert len(choose(nothing, GRID, 5, how, descriptors=descriptors_of_parts(2))) == 0


def test_ways_that_need_more_than_matches_say_so() -> None:
    with pytest.raises(ArgumentError, match="kmeans"):
        choose(random_matches(), GRID, 5, "kmeans")
    with pytest.raises(ArgumentError, match="sift"):
        choose(random_matches(), GRID, 5, "sift")


def test_sift_keypoints_lie_on_corners_and_move_with_the_image() -> None:
    photo = data.coffee()[:300, :400]
    found = sift_keypoints(photo, 60)
    assert found.shape == (60, 2)
    assert len({tuple(place) for place in found.tolist()}) == 60
    assert (found > 0).all()
    assert (found < [400, 300]).all()
    moved = sift_keypoints(photo[20:, 30:], 200)
    inner = found[(found > [80, 70]).all(axis=1)] - [30, 20]
    nearest = np.linalg.norm(inner[:, None] - moved[None], axis=2).min(axis=1)
    assert np.mean(nearest < 0.5) > 0.8


def test_an_image_without_corners_has_no_sift_keypoints() -> None:
    assert sift_keypoints(np.full((64, 64, 3), 120, np.uint8), 10).shape == (0, 2)
