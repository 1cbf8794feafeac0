"""Dense flow is proved on maps that are known at every pixel, and on a photo pair with measured flow."""

from dataclasses import replace
from inspect import unwrap
from typing import get_args

import numpy as np
import pytest
from skimage import data

from dinov2kit.dense import DenseFlow, Kind, dense_flow
from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches
from dinov2kit.warping import warp_to_0

KINDS = get_args(Kind)
KEEP = PatchGrid(rows=12, cols=16, patch_size=14, width=240, height=170, scale_x=224 / 240, scale_y=168 / 170)
SQUASH = PatchGrid(
    rows=10, cols=10, patch_size=14, width=301, height=133, scale_x=140 / 301, scale_y=140 / 133
)
PADDED = PatchGrid(  # the visible part of a letterbox whose bars end within a patch
    rows=7, cols=16, patch_size=14, width=224, height=101, scale_x=1.0, scale_y=1.0, offset_y=3.5
)
OVERLAP = replace(KEEP, rows=23, cols=31, stride=7)
PLAIN = PatchGrid(rows=12, cols=16, patch_size=14, width=224, height=168, scale_x=1.0, scale_y=1.0)
TURN = np.array([[0.9, -0.35], [0.3, 1.2]])


def matches_at(grid: PatchGrid, answers: np.ndarray, confidence: float | np.ndarray = 1.0) -> Matches:
    n = grid.n_patches
    one = np.ones(n, np.float32)
    return Matches(
        keypoints0=grid.centers(),
        keypoints1=np.asarray(answers, np.float32),
        score=one,
        confidence=np.broadcast_to(np.float32(confidence), (n,)).copy(),
        cycle_error=0 * one,
        uncertainty=one,
        ratio=one,
        kept=np.ones(n, bool),
    )


def pixels(grid: PatchGrid) -> np.ndarray:
    y, x = np.mgrid[: grid.height, : grid.width]
    return np.stack([x, y], axis=2).astype(np.float64)


def affine(places: np.ndarray) -> np.ndarray:
    return places @ TURN.T + [17.3, -8.9]


def patch_of(grid: PatchGrid) -> np.ndarray:
    """The row-major index of the patch that every pixel falls in."""
    return grid.cell_of(grid.to_cells(pixels(grid).reshape(-1, 2).astype(np.float32))).reshape(
        grid.height, grid.width
    )


@pytest.mark.parametrize("grid", [KEEP, SQUASH, PADDED, OVERLAP])
@pytest.mark.parametrize("kind", ["raw", "smooth", "affine", "tps"])
def test_an_affine_map_at_the_patch_centers_is_that_map_at_every_pixel(grid: PatchGrid, kind: Kind) -> None:
    """Also half a patch beyond the outermost centres, and whatever the confidence."""
    confidence = np.random.default_rng(0).uniform(0.01, 1, grid.n_patches)
    found = dense_flow(matches_at(grid, affine(grid.centers()), confidence), grid, kind=kind)
    assert found.valid.all()
    np.testing.assert_allclose(found.flow, affine(pixels(grid)) - pixels(grid), atol=1e-2)
    assert found.fold_over == 0


def test_a_mesh_of_an_affine_map_is_that_map_within_the_outermost_centers() -> None:
    found = dense_flow(matches_at(KEEP, affine(KEEP.centers())), KEEP, kind="mesh")
    cells = KEEP.to_cells(pixels(KEEP).reshape(-1, 2).astype(np.float32)).reshape(*found.valid.shape, 2)
    between = ((cells >= 0) & (cells <= [15, 11])).all(axis=2)
    np.testing.assert_array_equal(found.valid, between)
    np.testing.assert_allclose(found.flow[between], (affine(pixels(KEEP)) - pixels(KEEP))[between], atol=1e-2)
    assert np.isnan(found.flow[~between]).all()
    assert found.fold_over == 0


@pytest.mark.parametrize("kind", KINDS)
def test_identical_images_have_no_flow_and_full_certainty(kind: Kind) -> None:
    found = dense_flow(matches_at(KEEP, KEEP.centers()), KEEP, kind=kind)
    assert np.abs(found.flow[found.valid]).max() < 1e-3
    np.testing.assert_allclose(found.certainty, found.valid, atol=1e-6)
    assert found.fold_over == 0


def test_the_half_pixel_is_right_by_hand() -> None:
    """Two patches of 14 pixels have their centres at 6.5 and 20.5; there the flow is 0 and 14."""
    grid = PatchGrid(rows=2, cols=2, patch_size=14, width=28, height=28, scale_x=1.0, scale_y=1.0)
    answers = grid.centers() + np.array([[0, 0], [14, 0], [0, 0], [14, 0]], np.float32)
    found = dense_flow(matches_at(grid, answers), grid, kind="raw")
    np.testing.assert_allclose(found.flow[..., 0], np.tile(np.arange(28) - 6.5, (28, 1)), atol=1e-4)
    np.testing.assert_allclose(found.flow[..., 1], 0, atol=1e-4)


def test_flow_goes_on_linearly_for_one_patch_and_then_does_not_change() -> None:
    """Where patches are 2 pixels apart, the border is more than three patches beyond the outermost centre."""
    grid = PatchGrid(
        rows=44, cols=44, patch_size=14, width=100, height=100, scale_x=1.0, scale_y=1.0, stride=2
    )
    x = np.arange(100)
    found = dense_flow(matches_at(grid, grid.centers() * [1.5, 1]), grid, kind="raw")
    expected = 0.5 * x.clip(6.5 - 2, 6.5 + 2 * 43 + 2)
    np.testing.assert_allclose(found.flow[50, 5:95, 0], expected[5:95], atol=1e-3)
    assert np.isfinite(found.flow).all()
    np.testing.assert_allclose(np.diff(found.flow[50, :5, 0]), np.diff(found.flow[50, :5, 0])[0], atol=1e-4)


def test_beyond_an_edge_at_the_border_flow_does_not_go_on_linearly() -> None:
    """The last column jumps 10 patches: to go on would be to jump again."""
    answers = PLAIN.centers().reshape(12, 16, 2).copy()
    answers[:, -1, 0] += 140
    found = dense_flow(matches_at(PLAIN, answers.reshape(-1, 2)), PLAIN, kind="raw")
    np.testing.assert_allclose(found.flow[:, 217:, 0], 140, atol=1e-3)


@pytest.mark.parametrize("kind", ["raw", "smooth", "affine", "tps", "mesh"])
def test_a_mirror_image_folds_over_everywhere(kind: Kind) -> None:
    found = dense_flow(matches_at(PLAIN, PLAIN.centers() * [-1, 1] + [223, 0]), PLAIN, kind=kind)
    assert found.fold_over == 1
    expected = 223 - 2 * pixels(PLAIN)[..., 0]
    np.testing.assert_allclose(found.flow[..., 0][found.valid], expected[found.valid], atol=2e-2)


def test_a_sheet_folded_in_the_middle_folds_over_by_half() -> None:
    grid = PatchGrid(rows=9, cols=11, patch_size=14, width=154, height=126, scale_x=1.0, scale_y=1.0)
    answers = grid.centers()
    answers[:, 0] = np.abs(answers[:, 0] - 76.5)  # the centre of column 5 of 11
    assert dense_flow(matches_at(grid, answers), grid, kind="raw").fold_over == 0.5
    assert dense_flow(matches_at(grid, answers), grid, kind="mesh").fold_over == pytest.approx(0.5, abs=0.02)


def test_what_has_no_area_left_counts_as_folded_and_what_is_masked_does_not_count() -> None:
    flat = matches_at(PLAIN, np.full((PLAIN.n_patches, 2), 50.0))
    assert dense_flow(flat, PLAIN, kind="raw").fold_over == 1
    answers = PLAIN.centers().reshape(12, 16, 2).copy()
    answers[:, :8] = 50
    mask = np.zeros((12, 16), bool)
    mask[:, 8:] = True
    assert dense_flow(matches_at(PLAIN, answers.reshape(-1, 2)), PLAIN, kind="raw").fold_over == 7 / 15
    masked = dense_flow(matches_at(PLAIN, answers.reshape(-1, 2)), PLAIN, kind="raw", mask0=mask.ravel())
    assert masked.fold_over == 0


def moved(grid: PatchGrid, patch: tuple[int, int], by: tuple[float, float]) -> np.ndarray:
    answers = affine(grid.centers()).reshape(grid.rows, grid.cols, 2)
    answers[patch] += by
    return answers.reshape(-1, 2)


@pytest.mark.parametrize("patch", [(5, 7), (0, 0), (11, 3)])
def test_an_outlier_is_replaced_by_what_its_neighbours_say(patch: tuple[int, int]) -> None:
    """It is as confident as they are; raw flow shows it in full."""
    truth = affine(pixels(PLAIN)) - pixels(PLAIN)
    matches = matches_at(PLAIN, moved(PLAIN, patch, (170, -90)))
    np.testing.assert_allclose(dense_flow(matches, PLAIN).flow, truth, atol=2e-2)
    assert np.abs(dense_flow(matches, PLAIN, kind="raw").flow - truth).max() > 150


def test_outliers_side_by_side_do_not_speak_for_each_other() -> None:
    """The corner hears one patch that is right and two that are wrong."""
    answers = affine(PLAIN.centers()).reshape(12, 16, 2)
    answers[0, 0] += [170, -90]
    answers[0, 1] += [-200, -150]
    answers[1, 1] += [-400, 300]
    found = dense_flow(matches_at(PLAIN, answers.reshape(-1, 2)), PLAIN)
    np.testing.assert_allclose(found.flow, affine(pixels(PLAIN)) - pixels(PLAIN), atol=2e-2)


def test_a_small_error_is_smoothed_the_more_the_less_it_is_trusted() -> None:
    truth = affine(pixels(PLAIN)) - pixels(PLAIN)
    confidence = np.full((12, 16), 0.5)
    errors = []
    for trust in (1.0, 0.5, 0.05, 0.0):
        confidence[5, 7] = trust
        matches = matches_at(PLAIN, moved(PLAIN, (5, 7), (20, 0)), confidence.ravel())
        errors.append(np.abs(dense_flow(matches, PLAIN).flow - truth).max())
    assert 20 > 2.5 * errors[0] > 2.5 * errors[1] > 5 * errors[2] > 0
    assert errors[3] < 0.02
    assert errors[1] < 20 / 5  # about 1 / (2 pi), the weight of the middle of a Gaussian


def two_planes(grid: PatchGrid) -> np.ndarray:
    """The answers of an affine map but for a block that has moved 10 patches further."""
    answers = affine(grid.centers()).reshape(grid.rows, grid.cols, 2)
    answers[3:8, 5:] += [-140, 0]
    return answers.reshape(-1, 2)


def test_a_real_edge_stays_where_it_is() -> None:
    """Smooth flow is exact on both planes, corners included, but for the patch over which it passes."""
    answers = two_planes(PLAIN)
    found = dense_flow(matches_at(PLAIN, answers), PLAIN)
    truth = affine(pixels(PLAIN)) - pixels(PLAIN)
    block, rest = np.zeros((168, 224), bool), np.ones((168, 224), bool)
    block[49 : 7 * 14 + 7, 5 * 14 + 7 :] = True  # between the outermost centres of the block
    rest[2 * 14 + 7 : 8 * 14 + 7, 4 * 14 + 7 :] = False  # not between them and the next centres
    np.testing.assert_allclose(found.flow[block], (truth + np.array([-140, 0]))[block], atol=1e-2)
    np.testing.assert_allclose(found.flow[rest], truth[rest], atol=1e-2)
    assert 0.3 < (block.mean() + rest.mean()) < 1


def test_an_outlier_beside_an_edge_takes_the_side_of_most_of_its_neighbours() -> None:
    answers = two_planes(PLAIN)
    answers = answers.reshape(12, 16, 2)
    truth = answers.copy()
    answers[5, 5] += [0, 300]
    found = dense_flow(matches_at(PLAIN, answers.reshape(-1, 2)), PLAIN)
    x, y = (5 * 14 + 7, 5 * 14 + 7)
    expected = (truth - PLAIN.centers().reshape(12, 16, 2))[5, 5]
    near = found.flow[y - 1 : y + 1, x - 1 : x + 1].mean(axis=(0, 1))
    np.testing.assert_allclose(near, expected, atol=40)  # the ramp has started on one side
    assert abs(near[1] - expected[1]) < 1


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_the_size_of_image_1_changes_nothing(scale: float) -> None:
    """Jumps are measured in patches, not in pixels."""
    answers = two_planes(PLAIN)
    answers = answers + np.random.default_rng(3).normal(0, 3, answers.shape)
    answers[40] += 500
    for kind in ("raw", "smooth"):
        small = dense_flow(matches_at(PLAIN, answers), PLAIN, kind=kind)
        large = dense_flow(matches_at(PLAIN, answers * scale), PLAIN, kind=kind)
        places = (small.flow + pixels(PLAIN)) * scale
        np.testing.assert_allclose(large.flow + pixels(PLAIN), places, atol=2e-3 * max(1, scale))


def test_answers_of_no_confidence_have_no_say_in_what_a_jump_is() -> None:
    """Most patches answer anywhere; the few that are trusted show an edge of 10 patches."""
    answers = np.random.default_rng(0).uniform(0, 2000, (12, 16, 2))
    trusted = np.zeros((12, 16), bool)
    trusted[3:9, 4:10] = True
    answers[trusted] = affine(PLAIN.centers()).reshape(12, 16, 2)[trusted]
    answers[3:9, 7:10] += [-140, 0]
    confidence = np.where(trusted, 0.9, 1e-4).ravel()
    found = dense_flow(matches_at(PLAIN, answers.reshape(-1, 2), confidence), PLAIN)
    truth = affine(pixels(PLAIN)) - pixels(PLAIN)
    left, right = np.s_[50:118, 64:90], np.s_[50:118, 106:132]
    np.testing.assert_allclose(found.flow[left], truth[left], atol=0.1)
    np.testing.assert_allclose(found.flow[right], truth[right] + [-140, 0], atol=0.1)


def test_transposed_images_have_the_transposed_flow() -> None:
    answers = two_planes(PLAIN)
    answers = answers + np.random.default_rng(3).normal(0, 3, answers.shape)
    turned = PatchGrid(rows=16, cols=12, patch_size=14, width=168, height=224, scale_x=1.0, scale_y=1.0)
    crossed = answers.reshape(12, 16, 2).transpose(1, 0, 2)[..., ::-1].reshape(-1, 2)
    upright = dense_flow(matches_at(PLAIN, answers), PLAIN).flow
    across = dense_flow(matches_at(turned, crossed), turned).flow
    np.testing.assert_allclose(across, upright.transpose(1, 0, 2)[..., ::-1], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_patches_are_invalid_and_have_no_say(kind: Kind) -> None:
    answers = affine(PLAIN.centers()).reshape(12, 16, 2)
    mask = np.ones((12, 16), bool)
    mask[4:7, 5:9] = mask[10, 12] = False
    answers[~mask] = np.random.default_rng(0).uniform(-500, 500, (13, 2))
    found = dense_flow(matches_at(PLAIN, answers.reshape(-1, 2), 0.5), PLAIN, kind=kind, mask0=mask.ravel())
    wanted = mask.ravel()[patch_of(PLAIN)]
    if kind == "mesh":
        wanted[[*range(7), *range(-7, 0)]] = False
        wanted[:, [*range(7), *range(-7, 0)]] = False
    np.testing.assert_array_equal(found.valid, wanted)
    assert np.isnan(found.flow[~wanted]).all()
    assert (found.certainty[~wanted] == 0).all()
    np.testing.assert_allclose(found.flow[wanted], (affine(pixels(PLAIN)) - pixels(PLAIN))[wanted], atol=1e-2)


@pytest.mark.parametrize("kind", ["raw", "smooth"])
def test_patches_without_an_answer_are_those_of_a_mask(kind: Kind) -> None:
    answers, mask = affine(PLAIN.centers()), np.random.default_rng(0).random(PLAIN.n_patches) < 0.7
    masked = dense_flow(matches_at(PLAIN, answers), PLAIN, kind=kind, mask0=mask)
    answers[~mask, 1] = np.nan
    missing = dense_flow(matches_at(PLAIN, answers), PLAIN, kind=kind)
    np.testing.assert_array_equal(masked.flow, missing.flow)
    np.testing.assert_array_equal(masked.certainty, missing.certainty)
    assert 0.6 < masked.valid.mean() < 0.8


def test_a_patch_alone_moves_as_a_whole() -> None:
    mask = np.zeros((12, 16), bool)
    mask[3, 4] = True
    found = dense_flow(matches_at(PLAIN, PLAIN.centers() + np.array([5, -3])), PLAIN, mask0=mask.ravel())
    assert found.valid.sum() == 14 * 14
    np.testing.assert_allclose(found.flow[found.valid], np.tile([5, -3], (196, 1)), atol=1e-3)


def test_pixels_that_no_patch_covers_are_invalid() -> None:
    """The middle of a wide image, cut out by a crop."""
    grid = PatchGrid(
        rows=8, cols=8, patch_size=14, width=200, height=112, scale_x=1.0, scale_y=1.0, offset_x=-42.0
    )
    found = dense_flow(matches_at(grid, grid.centers() + np.array([3, 0])), grid)
    expected = np.zeros((112, 200), bool)
    expected[:, 42 - 7 : 42 + 112 + 7] = True  # half a patch more, as where bars end within a patch
    np.testing.assert_array_equal(found.valid, expected)


def test_the_certainty_is_the_confidence_and_bilinear_in_between() -> None:
    grid = PatchGrid(rows=3, cols=4, patch_size=15, width=60, height=45, scale_x=1.0, scale_y=1.0)
    confidence = np.random.default_rng(0).random((3, 4)).astype(np.float32)
    certainty = dense_flow(matches_at(grid, grid.centers(), confidence.ravel()), grid).certainty
    np.testing.assert_allclose(certainty[7::15, 7::15], confidence, atol=1e-6)
    np.testing.assert_allclose(certainty[7, 10], 0.8 * confidence[0, 0] + 0.2 * confidence[0, 1], atol=1e-6)
    np.testing.assert_allclose(certainty[:8, :8], confidence[0, 0], atol=1e-6)
    assert certainty.min() >= 0
    assert certainty.max() <= 1


@pytest.mark.parametrize("kind", ["mesh", "affine", "tps"])
def test_maps_from_kept_matches_do_not_hear_the_others(kind: Kind) -> None:
    answers = affine(PLAIN.centers())
    kept = np.random.default_rng(0).random(PLAIN.n_patches) < 0.6
    kept[[0, 15, -16, -1]] = True
    answers[~kept] = 0
    found = dense_flow(replace(matches_at(PLAIN, answers), kept=kept), PLAIN, kind=kind)
    truth = affine(pixels(PLAIN)) - pixels(PLAIN)
    assert found.valid.mean() > 0.8
    np.testing.assert_allclose(found.flow[found.valid], truth[found.valid], atol=1e-2)


def test_raw_and_smooth_flow_answer_where_a_check_failed() -> None:
    matches = matches_at(PLAIN, affine(PLAIN.centers()))
    failed = replace(matches, kept=np.zeros(PLAIN.n_patches, bool))
    for kind in ("raw", "smooth"):
        np.testing.assert_array_equal(
            dense_flow(failed, PLAIN, kind=kind).flow, dense_flow(matches, PLAIN, kind=kind).flow
        )
    for kind in ("mesh", "affine", "tps"):
        with pytest.raises(MatchError, match="wanted 3 or more"):
            dense_flow(failed, PLAIN, kind=kind)


def test_what_does_not_fit_together_is_refused() -> None:
    matches = matches_at(PLAIN, PLAIN.centers())
    with pytest.raises(
        ArgumentError, match="unknown kind 'fast'; wanted one of raw, smooth, mesh, affine, tps"
    ):
        unwrap(dense_flow)(matches, PLAIN, kind="fast")  # without the check of types
    with pytest.raises(ArgumentError, match="192 matches for a grid of 713 patches"):
        dense_flow(matches, OVERLAP)
    with pytest.raises(ArgumentError, match="192 matches and a mask of 5 for a grid of 192"):
        dense_flow(matches, PLAIN, mask0=np.ones(5, bool))
    with pytest.raises(MatchError, match="no patch of image 0 has an answer"):
        dense_flow(matches, PLAIN, mask0=np.zeros(192, bool))


def motorcycle() -> tuple[np.ndarray, np.ndarray, PatchGrid, np.ndarray]:
    """A real stereo pair: left, right, a grid on the left one, and the measured flow, NaN where unknown."""
    left, right, disparity = data.stereo_motorcycle()
    height, width = disparity.shape
    grid = PatchGrid(36, 53, 14, width, height, scale_x=742 / width, scale_y=504 / height)
    u = np.where(np.isfinite(disparity), -disparity, np.nan).astype(np.float32)
    return left, right, grid, np.stack([u, np.where(np.isnan(u), np.nan, 0)], axis=2)


def error_of(found: DenseFlow, truth: np.ndarray) -> float:
    return float(np.nanmedian(np.abs(found.flow - truth)[..., 0]))


def test_the_flow_of_a_real_pair_survives_noise_and_outliers() -> None:
    left, right, grid, truth = motorcycle()
    rng = np.random.default_rng(0)
    x, y = np.rint(grid.centers()).astype(int).T
    answers = grid.centers() + truth[y, x]
    clean = matches_at(grid, answers)
    assert error_of(dense_flow(clean, grid, kind="raw"), truth) < 0.5
    assert error_of(dense_flow(clean, grid), truth) < 1
    wrong = rng.random(grid.n_patches) < 0.1
    noisy = answers + rng.normal(0, 3, answers.shape)
    noisy[wrong] = rng.uniform(0, 500, (wrong.sum(), 2))
    matches = matches_at(grid, noisy, np.where(wrong, 0.1, 0.6))
    raw, smooth = (dense_flow(matches, grid, kind=kind) for kind in ("raw", "smooth"))
    assert error_of(smooth, truth) < 0.6 * error_of(raw, truth)
    assert smooth.fold_over < 0.1 < raw.fold_over
    unmoved, before, after = (
        np.abs(picture.astype(float) - left)[smooth.valid].mean()
        for picture in (right, warp_to_0(right, raw), warp_to_0(right, smooth))
    )
    assert after < 0.75 * before
    assert after < 0.75 * unmoved
