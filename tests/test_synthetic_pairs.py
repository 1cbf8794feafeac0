"""Synthetic pairs: the truth is a formula; a photo that is one too shows whether the pixels agree with it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from skimage import data

from dinov2kit.train.synthetic_pairs import MARGIN, Warp, draw_warp, keyed, make_pair, recolour

SIZE = 112
SIDE = round(MARGIN * SIZE)


def colours(points: np.ndarray) -> np.ndarray:
    """Return the colour of a smooth painting at any place (n, 2): three waves that differ everywhere."""
    x, y = points.T
    waves = [np.sin(x / 9), np.cos(y / 11 + x / 40), np.sin((x + y) / 13)]
    return 128 + 100 * np.stack(waves, axis=1)


def painting() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE]
    painted = colours(np.stack([x.ravel(), y.ravel()], axis=1))
    return np.round(painted).astype(np.uint8).reshape(SIDE, SIDE, 3)


def photo() -> np.ndarray:
    return data.astronaut()[:SIDE, 100 : 100 + SIDE].copy()


def read(view: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Read a view between its pixels, bilinear."""
    x, y = points.T
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    right, low = (np.minimum(edge + 1, SIZE - 1) for edge in (left, top))
    a, b = (x - left)[:, None], (y - top)[:, None]
    upper = view[top, left] * (1 - a) + view[top, right] * a
    return upper * (1 - b) + (view[low, left] * (1 - a) + view[low, right] * a) * b


@pytest.mark.parametrize("mirrored", [False, True])
def test_both_views_show_the_same_colour_at_corresponding_points(mirrored: bool) -> None:
    differences = []
    for index in range(20):
        pair = make_pair(painting(), SIZE, seed=1, index=index, num=64, mirrored=mirrored, jitter=0.0)
        colours0, colours1 = read(pair.view0, pair.points0), read(pair.view1, pair.points1)
        differences.append(np.abs(colours0 - colours1).max(axis=1))
        shifted = read(pair.view1, np.clip(pair.points1 + np.array([1.5, 0]), 0, SIZE - 1))
        assert np.abs(colours0 - shifted).mean() > 5 * np.abs(colours0 - colours1).mean()
    away = np.concatenate(differences)  # of 255; bilinear twice, rounded twice
    assert (away < 6).mean() > 0.98  # the others touch what lies beyond the photo
    assert np.median(away) < 2


def test_every_view_shows_the_photo_where_its_formula_says() -> None:
    random = keyed(3, 0)
    for _ in range(10):
        warp = draw_warp(random, SIZE, SIDE, mirrored=False)
        points = random.uniform(0, SIZE - 1, (200, 2))
        places = warp.to_photo(points)
        on_photo = ((places > 1) & (places < SIDE - 2)).all(axis=1)
        found = read(warp.view0(painting()), points[on_photo])
        assert np.abs(found - colours(places[on_photo])).max() < 5
        scale, left, top = warp.crop
        found = read(warp.view1(painting()), points)
        assert np.abs(found - colours(points * scale + [left, top])).max() < 4


def test_without_bending_the_map_is_the_homography_and_the_crop_its_inverse() -> None:
    matrix = np.array([[1.1, 0.1, 3.0], [-0.05, 0.9, 7.0], [1e-4, -2e-4, 1.0]])
    warp = Warp(SIZE, matrix, np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(1), False, (1.25, 4.0, 2.0))
    (x, y, w) = matrix @ [30.0, 50.0, 1.0]
    np.testing.assert_allclose(warp.to_photo(np.array([[30.0, 50.0]])), [[x / w, y / w]])
    np.testing.assert_allclose(
        warp.carry(np.array([[30.0, 50.0]])), [[(x / w - 4) / 1.25, (y / w - 2) / 1.25]]
    )
    mirrored = replace(warp, mirrored=True)
    np.testing.assert_allclose(
        mirrored.carry(np.array([[SIZE - 1 - 30.0, 50.0]])), warp.carry(np.array([[30.0, 50.0]]))
    )


def test_bending_never_folds_the_view_and_half_of_the_views_are_bent() -> None:
    random, bent = keyed(4, 0), 0
    y, x = np.mgrid[:SIZE, :SIZE]
    cells = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    for _ in range(40):
        warp = draw_warp(random, SIZE, SIDE, mirrored=False)
        places = warp.to_photo(cells).reshape(SIZE, SIZE, 2)
        across, down = np.diff(places, axis=1)[:-1], np.diff(places, axis=0)[:, :-1]
        areas = across[..., 0] * down[..., 1] - across[..., 1] * down[..., 0]
        assert areas.min() > 0.1
        bent += bool(np.abs(warp.shifts).max() > 0)
    assert 10 < bent < 30


def test_a_pair_follows_from_seed_and_index_alone() -> None:
    first = make_pair(photo(), SIZE, seed=5, index=9, num=32)
    make_pair(photo(), SIZE, seed=5, index=8, num=32)
    again = make_pair(photo(), SIZE, seed=5, index=9, num=32)
    for name in ("view0", "view1", "points0", "points1"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        for seed, index in ((5, 10), (6, 9)):
            other = make_pair(photo(), SIZE, seed=seed, index=index, num=32)
            assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_points_are_as_many_as_asked_inside_both_views_and_never_close() -> None:
    for index in range(40):
        pair = make_pair(photo(), SIZE, seed=2, index=index, num=64)
        assert pair.points0.shape == pair.points1.shape == (64, 2)
        for points in (pair.points0, pair.points1):
            assert points.min() >= 0
            assert points.max() <= SIZE - 1
        gaps = np.linalg.norm(pair.points0[:, None] - pair.points0, axis=2) + 1e9 * np.eye(64)
        assert gaps.min() > SIZE / 13 / 2
    assert len(make_pair(photo(), SIZE, seed=2, index=0, num=9).points0) == 9


def test_views_are_mirrored_only_when_asked() -> None:
    def handedness(**how: bool) -> list[bool]:
        signs = []
        for index in range(30):
            pair = make_pair(photo(), SIZE, seed=7, index=index, num=64, **how)
            motion, *_ = np.linalg.lstsq(np.c_[pair.points0, np.ones(64)], pair.points1, rcond=None)
            signs.append(bool(np.linalg.det(motion[:2]) < 0))
        return signs

    assert not any(handedness())
    assert all(handedness(mirrored=True))
    assert 8 < sum(handedness(flips=True)) < 22


def test_a_mirrored_pair_is_mirrored_left_to_right_about_the_middle() -> None:
    plain, mirrored = (draw_warp(keyed(8, 0), SIZE, SIDE, mirrored=flag) for flag in (False, True))
    assert np.array_equal(mirrored.view0(photo()), plain.view0(photo())[:, ::-1])


def test_colours_change_and_places_do_not() -> None:
    view = photo()[:SIZE, :SIZE]
    changed = [recolour(view, keyed(9, index), 1.0) for index in range(20)]
    assert np.array_equal(recolour(view, keyed(9, 0), 0.0), view)
    means = [np.abs(other.astype(float).mean() - view.mean()) for other in changed]
    assert 5 < np.mean(means) < 50
    alike = [np.corrcoef(other.mean(axis=2).ravel(), view.mean(axis=2).ravel())[0, 1] for other in changed]
    assert min(alike) > 0.8
