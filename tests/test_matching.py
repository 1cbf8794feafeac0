"""Matching is proved on features whose truth is known; the frames are those of the original images."""

import json
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch

from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.matching import MatchSpec, match, match_all, similarity_map

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
    strict = match(features0, features1, points=points, spec=MatchSpec(mutual=True))
    assert strict.kept.sum() <= found.kept.sum()
    assert not (strict.kept & ~found.kept).any()
    assert match(features0, features1, points=points, spec=MatchSpec(max_cycle=1e9)).kept.all()


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
    found = match(features0, noise_features(tiny), spec=MatchSpec(max_cycle=0.0))
    assert len(found) == 0
    assert found.to_json() == []


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


@pytest.mark.parametrize(
    "options",
    [
        *({"max_cycle": -1.0}, {"max_cycle": float("nan")}, {"window": -1}, {"temperature": 0.0}),
        *({"modes": 0}, {"max_ratio": 0.0}, {"min_score": 1.5}, {"refine": "spline"}),
    ],
)
def test_options_out_of_range_are_refused(
    options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of tests
    with pytest.raises(ArgumentError, match="wanted"):
        MatchSpec(**options)


def test_less_than_one_keypoint_is_refused() -> None:
    features = noise_features(SQUASH)
    with pytest.raises(ArgumentError, match="num is 0"):
        match(features, features, num=0)


def test_every_check_marks_what_it_says() -> None:
    features0, features1 = noise_features(KEEP, seed=1), noise_features(SQUASH, seed=2)
    points = KEEP.centers()[::3]
    found = match(features0, features1, points=points, spec=MatchSpec(max_cycle=1e9))
    low, ratio = float(np.median(found.score)), float(np.median(found.ratio))
    by_score = match(features0, features1, points=points, spec=MatchSpec(max_cycle=1e9, min_score=low))
    np.testing.assert_array_equal(by_score.kept, found.score >= low)
    by_ratio = match(features0, features1, points=points, spec=MatchSpec(max_cycle=1e9, max_ratio=ratio))
    np.testing.assert_array_equal(by_ratio.kept, found.ratio <= np.float32(ratio))
    assert 0 < by_ratio.kept.sum() < len(points)


def test_the_ratio_compares_with_the_best_patch_outside_the_window() -> None:
    features0, features1 = noise_features(KEEP, seed=1), noise_features(SQUASH, seed=2)
    points = KEEP.centers()[::50]
    found = match(features0, features1, points=points)
    cosine = (features0.local_descriptors @ features1.local_descriptors.T)[::50].view(-1, 24, 24)
    for row, similarity in enumerate(cosine):
        y, x = divmod(int(similarity.argmax()), 24)
        outside = similarity.clone()
        outside[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = -1  # 8 % of 24 is less than 2
        expected = (1 - similarity.max()) / (1 - outside.max())
        assert found.ratio[row] == pytest.approx(expected.item(), abs=1e-4)


def test_repeated_structure_shows_in_its_other_places() -> None:
    """Image 1 shows image 0 twice, side by side; the copy is a little less alike."""
    features0 = noise_features(SQUASH, seed=1)
    grid1 = replace(SQUASH, cols=48, width=1000)
    rows = features0.patch_tokens.view(24, 24, -1)
    copy = rows + 0.3 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(5)) * 3
    features1 = features_of(grid1, torch.cat([rows, copy], dim=1).flatten(0, 1) / 3)
    points = SQUASH.centers().reshape(24, 24, 2)[5:19, 5:19].reshape(-1, 2)
    found = match(features0, features1, points=points, spec=MatchSpec(modes=2))
    np.testing.assert_allclose(found.keypoints1, points, atol=8)
    second = np.array([peaks[0] for peaks in found.alternatives])
    np.testing.assert_allclose(second[:, :2], points + np.array([500, 0]), atol=8)
    assert (second[:, 2] < found.score).all()
    assert len(match(features0, features1, points=points).alternatives) == 0
    (row,) = found.take(np.array([3])).to_json()
    assert [set(peak) for peak in row["alternatives"]] == [{"x1", "y1", "score"}]


def test_peaks_that_do_not_exist_are_left_out() -> None:
    tiny = replace(SQUASH, rows=4, cols=4, width=56, height=56, scale_x=1.0, scale_y=1.0)
    features = noise_features(tiny)
    found = match(features, features, points=[[20, 20]], spec=MatchSpec(modes=3))
    assert len(found.alternatives[0]) < 2


def test_a_masked_patch_is_never_an_answer_nor_kept() -> None:
    features = noise_features(SQUASH)
    left = (np.arange(SQUASH.n_patches) % 24) < 12
    found, grid = match_all(features, features, mask0=left)
    assert grid == SQUASH
    np.testing.assert_array_equal(found.kept, left)
    found, _ = match_all(features, features, mask1=left)
    assert found.keypoints1[:, 0].max() < 260
    np.testing.assert_array_equal(found.kept[left], True)


def test_a_mask_changes_nothing_for_what_it_leaves_when_the_rest_does_not_compete() -> None:
    """Patches outside of both masks are orthogonal to those inside: the confidences must stay as they are."""
    left = (np.arange(SQUASH.n_patches) % 24) < 12
    tokens = torch.randn(SQUASH.n_patches, 64, generator=torch.Generator().manual_seed(0))
    tokens[left, 32:], tokens[~left, :32] = 0, 0
    features = features_of(SQUASH, tokens)
    masked, _ = match_all(features, features, mask0=left, mask1=left)
    part = replace(SQUASH, cols=12, width=250)
    alone, _ = match_all(*[features_of(part, tokens[left])] * 2)
    inner = left & ((np.arange(SQUASH.n_patches) % 24) < 9)  # the window of the rest reaches the mask's edge
    np.testing.assert_allclose(masked.confidence[inner], alone.confidence[inner[left]], atol=1e-4)


def test_masks_that_leave_nothing_or_do_not_fit_are_refused() -> None:
    features = noise_features(SQUASH)
    with pytest.raises(MatchError, match="image 1"):
        match(features, features, mask1=np.zeros(SQUASH.n_patches, bool))
    with pytest.raises(ArgumentError, match="mask0 has 3 patches; wanted 576"):
        match(features, features, mask0=np.ones(3, bool))


def test_artefact_tokens_are_no_answers() -> None:
    """A token with a huge norm that looks like everything would win everywhere."""
    features0, features1 = noise_features(SQUASH, seed=1), noise_features(SQUASH, seed=1)
    hub = 300
    features1.patch_tokens[hub] = features0.patch_tokens[100]
    points = SQUASH.centers()[[100]]
    lengths = torch.full((SQUASH.n_patches,), 40.0) + torch.rand(SQUASH.n_patches)
    features1.patch_tokens[100] *= 0.5
    features1.patch_tokens[100] += 0.3 * features1.patch_tokens[101]
    fooled = match(features0, replace(features1, magnitudes=lengths), points=points)
    np.testing.assert_allclose(fooled.keypoints1, SQUASH.centers()[[hub]], atol=3)
    lengths[hub] = 300
    sound = match(features0, replace(features1, magnitudes=lengths), points=points)
    np.testing.assert_allclose(sound.keypoints1, SQUASH.centers()[[100]], atol=10)


def test_the_heat_of_a_point_is_its_cosine_to_every_patch_on_the_image() -> None:
    features0, features1 = noise_features(SQUASH, seed=1), noise_features(LETTERBOX, seed=2)
    center = SQUASH.centers()[77]
    heat, grid = similarity_map(features0, features1, center)
    inside = LETTERBOX.inside()
    expected = (features1.local_descriptors @ features0.local_descriptors[77])[torch.from_numpy(inside)]
    np.testing.assert_allclose(heat.ravel(), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(grid.centers(), LETTERBOX.centers()[inside], atol=1e-3)
    with pytest.raises(ArgumentError, match="not on image 0"):
        similarity_map(features0, features1, np.array([-5, 3], np.float32))


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
    rows = found.to_json(names=["eye", None], ids=[7, "b"], inliers=np.array([True, False]))
    first, second = json.loads(json.dumps(rows))
    assert (first["id"], first["name"], second["name"]) == (7, "eye", None)
    assert (second["id"], first["inlier"], second["inlier"]) == ("b", True, False)
    assert (second["x0"], second["y0"]) == (300.25, 200.5)
    assert set(first) == {
        *("id", "name", "x0", "y0", "x1", "y1", "score", "confidence", "cycle_error", "uncertainty"),
        *("ratio", "inlier", "kept", "alternatives"),
    }
