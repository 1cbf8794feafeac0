"""Matching is proved on features whose truth is known; the frames are those of the original images."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.matching import match

KEEP = PatchGrid(rows=30, cols=40, patch_size=14, width=640, height=480, scale_x=0.875, scale_y=0.875)
SQUASH = PatchGrid(
    rows=24, cols=24, patch_size=14, width=500, height=333, scale_x=336 / 500, scale_y=336 / 333
)
LETTERBOX = PatchGrid(
    rows=36, cols=36, patch_size=14, width=800, height=450, scale_x=0.63, scale_y=0.63, offset_y=110.25
)
CROP = PatchGrid(
    rows=16,
    cols=16,
    patch_size=14,
    width=800,
    height=450,
    scale_x=0.6,
    scale_y=0.6,
    offset_x=-128.0,
    offset_y=-23.0,
)


def waves(scene: np.ndarray, dim: int = 256, seed: int = 0) -> torch.Tensor:
    """Descriptors of points of one scene, smooth over about 50 pixels (random Fourier features)."""
    rng = np.random.default_rng(seed)
    frequency, phase = rng.normal(0, 1 / 50, (2, dim)), rng.uniform(0, 2 * np.pi, dim)
    return torch.from_numpy(np.cos(scene @ frequency + phase)).float()


def features_of(grid: PatchGrid, patch_tokens: torch.Tensor) -> Features:
    dim = patch_tokens.shape[1]
    return Features(torch.ones(dim), patch_tokens * 3, torch.zeros(0, dim), grid)


def scene_features(grid: PatchGrid) -> Features:
    """Features of an image that shows the scene; its height of 450 pixels is that of the scene."""
    return features_of(grid, waves(grid.centers().astype(np.float64) * 450 / grid.height))


def noise_features(grid: PatchGrid, seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return features_of(grid, torch.randn(grid.n_patches, 64, generator=generator))


@pytest.mark.parametrize("grid", [KEEP, SQUASH, LETTERBOX, CROP])
def test_pixels_survive_the_way_to_the_cells_and_back(grid: PatchGrid) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-0.5, 1, (500, 2)) * [grid.width, grid.height]
    back = grid.to_pixels(grid.to_cells(pixels.astype(np.float32)))
    assert np.abs(back - pixels).max() < 1e-3


def test_the_corner_of_the_first_patch_is_the_corner_of_the_image() -> None:
    assert KEEP.to_pixels(np.array([[-0.5, -0.5]], np.float32)).tolist() == [[-0.5, -0.5]]
    assert KEEP.to_pixels(np.array([[39.5, 29.5]], np.float32)).tolist() == [[639.5, 479.5]]
    assert LETTERBOX.to_cells(np.array([[-0.5, -0.5]], np.float32)).tolist() == [[-0.5, 110.25 / 14 - 0.5]]


@pytest.mark.parametrize("grid1", [KEEP, LETTERBOX])
def test_points_go_where_the_scene_says_whatever_the_resizing(grid1: PatchGrid) -> None:
    """Both images show one scene at different sizes, so the truth is a change of scale about the corner."""
    rng = np.random.default_rng(1)
    points = rng.uniform([60, 60], [540, 390], (300, 2)).astype(np.float32)
    found = match(scene_features(replace(KEEP, width=640, height=480)), scene_features(grid1), points=points)
    truth = points * (grid1.height / 480)
    error = np.linalg.norm(found.keypoints1 - truth, axis=1)
    assert np.median(error) < 0.07 * max(grid1.cell_px)
    assert found.kept.mean() > 0.95


def test_padding_is_never_an_answer() -> None:
    """The padding holds the very descriptors that are looked for, and must still not be found."""
    features0 = noise_features(LETTERBOX)
    wanted = features0.local_descriptors[~LETTERBOX.inside()]
    tokens = torch.randn(LETTERBOX.n_patches, 64, generator=torch.Generator().manual_seed(9))
    tokens[~LETTERBOX.inside()] = wanted
    shown = torch.nn.functional.normalize(features0.patch_tokens, dim=1).clone()
    shown[LETTERBOX.inside()] = wanted[torch.arange(int(LETTERBOX.inside().sum())) % len(wanted)]
    points = LETTERBOX.centers()[LETTERBOX.inside()]
    found = match(features_of(LETTERBOX, shown), features_of(LETTERBOX, tokens), points=points)
    assert LETTERBOX.contains(found.keypoints1).all()
    assert found.score.max() < 0.9


def test_an_image_matches_itself_at_its_own_points() -> None:
    features = noise_features(SQUASH)
    found = match(features, features, num=30)
    assert len(found) == 30
    np.testing.assert_allclose(found.keypoints1, found.keypoints0, atol=1e-2)
    assert found.cycle_error.max() < 1e-3
    assert found.kept.all()
    assert found.confidence.min() > 0.9


def test_permuting_the_points_permutes_the_result() -> None:
    features0, features1 = scene_features(KEEP), scene_features(SQUASH)
    rng = np.random.default_rng(2)
    points = rng.uniform([0, 0], [639, 479], (200, 2)).astype(np.float32)
    order = rng.permutation(200)
    straight = match(features0, features1, points=points)
    permuted = match(features0, features1, points=points[order])
    for name in ("keypoints0", "keypoints1", "score", "confidence", "cycle_error", "uncertainty"):
        np.testing.assert_allclose(getattr(permuted, name), getattr(straight, name)[order], atol=2e-3)
    np.testing.assert_array_equal(permuted.kept, straight.kept[order])


def test_points_are_never_filtered_but_marked() -> None:
    features0, features1 = noise_features(KEEP, seed=1), noise_features(SQUASH, seed=2)
    points = KEEP.centers()[::7]
    found = match(features0, features1, points=points)
    np.testing.assert_array_equal(found.keypoints0, points)
    assert 0 < found.kept.sum() < len(points) / 2
    np.testing.assert_array_equal(found.kept, found.cycle_error <= 1.0)
    strict = match(features0, features1, points=points, mutual=True)
    assert strict.kept.sum() <= found.kept.sum()
    assert not (strict.kept & ~found.kept).any()
    assert match(features0, features1, points=points, max_cycle=1e9).kept.all()


def test_chosen_keypoints_are_kept_ranked_and_spread() -> None:
    features0, features1 = scene_features(KEEP), scene_features(SQUASH)
    found = match(features0, features1, num=12)
    assert len(found) == 12
    assert found.kept.all()
    assert (np.diff(found.confidence) <= 0).all()
    cells = KEEP.to_cells(found.keypoints0)
    apart = np.abs(cells[:, None] - cells[None]).max(axis=2) + 99 * np.eye(12)
    assert apart.min() >= 4
    again = match(features0, features1, num=12)
    np.testing.assert_array_equal(again.keypoints0, found.keypoints0)


def test_more_keypoints_than_there_are_returns_all_that_pass() -> None:
    features0, features1 = noise_features(KEEP, seed=1), noise_features(SQUASH, seed=2)
    every = match(features0, features1, points=KEEP.centers())
    chosen = match(features0, features1, num=5000)
    assert len(chosen) == every.kept.sum()


def test_no_match_at_all_is_an_empty_answer() -> None:
    features0 = noise_features(KEEP, seed=1)
    tiny = replace(SQUASH, rows=1, cols=1, width=14, height=14, scale_x=1.0, scale_y=1.0)
    found = match(features0, noise_features(tiny), max_cycle=0.0)
    assert len(found) == 0
    assert found.to_json()["matches"] == []


def test_uncertainty_is_in_pixels_of_image_1() -> None:
    near, far = SQUASH, replace(SQUASH, width=5000, height=3330, scale_x=336 / 5000, scale_y=336 / 3330)
    features0 = scene_features(KEEP)
    points = np.array([[200, 200], [300, 250]], np.float32)
    tokens = scene_features(near).patch_tokens
    small = match(features0, features_of(near, tokens), points=points)
    large = match(features0, features_of(far, tokens), points=points)
    np.testing.assert_allclose(large.uncertainty, 10 * small.uncertainty, rtol=1e-3)
    assert 2 < small.uncertainty.min() < 50


def test_a_point_outside_the_image_is_named() -> None:
    features = noise_features(SQUASH)
    points = [[0, 0], [500, 10], [10, 10], [10, -3], [float("nan"), 1]]
    with pytest.raises(ArgumentError, match=r"3 of 5 points .* 500x333 pixels: points 1, 3, 4"):
        match(features, features, points=points)


@pytest.mark.parametrize("points", [[1.0, 2.0], [[1.0, 2.0, 3.0]], np.zeros((0, 2)), [["a", "b"]]])
def test_points_of_the_wrong_shape_are_refused(points: object) -> None:
    features = noise_features(SQUASH)
    with pytest.raises(ArgumentError, match="points"):
        match(features, features, points=points)  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"num": 0}, {"max_cycle": -1.0}, {"max_cycle": float("nan")}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    features = noise_features(SQUASH)
    with pytest.raises(ArgumentError, match="wanted"):
        match(features, features, **options)  # type: ignore[arg-type]


def test_features_of_two_models_are_refused() -> None:
    other = features_of(SQUASH, torch.ones(SQUASH.n_patches, 32))
    with pytest.raises(MatchError, match="64 and 32"):
        match(noise_features(SQUASH), other)


def test_features_with_nan_are_refused() -> None:
    features = noise_features(SQUASH)
    features.patch_tokens[5, 5] = torch.nan
    with pytest.raises(MatchError, match="not finite"):
        match(features, features)


def test_json_holds_every_match_with_its_name() -> None:
    features = noise_features(SQUASH)
    found = match(features, features, points=[[10, 20], [300.25, 200.5]])
    document = json.loads(json.dumps(found.to_json(names=["eye", None])))
    first, second = document["matches"]
    assert (first["id"], first["name"], second["name"]) == (0, "eye", None)
    assert (second["x0"], second["y0"]) == (300.25, 200.5)
    assert set(first) == {
        *("id", "name", "x0", "y0", "x1", "y1", "score", "confidence", "cycle_error", "uncertainty", "ratio", "kept")
    }
