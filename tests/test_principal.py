"""Principal components against the singular values of NumPy, and colours against percentiles."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.principal import pca_maps, principal_axes

WIDE = PatchGrid(rows=10, cols=15, patch_size=14, width=210, height=140, scale_x=1.0, scale_y=1.0)
LETTERBOX = PatchGrid(
    rows=12, cols=12, patch_size=14, width=336, height=168, scale_x=0.5, scale_y=0.5, offset_y=42.0
)
DIM = 8


def stretched(grid: PatchGrid, seed: int) -> Features:
    """Descriptors whose entries vary by different amounts, so that the components are far apart."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(grid.n_patches, DIM, generator=generator) * 0.7 ** torch.arange(DIM) + 1
    return Features(torch.ones(DIM), tokens, torch.zeros(0, DIM), grid)


@pytest.fixture
def pair() -> list[Features]:
    return [stretched(WIDE, 1), stretched(LETTERBOX, 2)]


def rows_of(features: list[Features], masks: list[np.ndarray]) -> np.ndarray:
    parts = [one.local_descriptors.numpy()[mask] for one, mask in zip(features, masks, strict=True)]
    return np.concatenate(parts).astype(np.float64)


def inside(features: list[Features]) -> list[np.ndarray]:
    return [one.grid.inside() for one in features]


def test_components_and_their_variance_are_those_of_the_singular_values(pair) -> None:
    masks = [mask & (np.arange(len(mask)) % 3 > 0) for mask in inside(pair)]
    rows = rows_of(pair, masks)
    _, singular, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    found = pca_maps(pair, masks=masks, components=5)
    np.testing.assert_allclose(found.explained, (singular**2 / (singular**2).sum())[:5], rtol=1e-9)
    scores = np.concatenate(
        [one[mask.reshape(one.shape[:2])] for one, mask in zip(found.scores, masks, strict=True)]
    )
    truth = (rows - rows.mean(axis=0)) @ directions[:5].T
    signs = np.sign((scores * truth).sum(axis=0))
    np.testing.assert_allclose(scores, truth * signs, atol=1e-6)


def test_the_largest_entry_of_every_direction_is_positive_whatever_eigh_returns(pair, monkeypatch) -> None:
    rows = [one.local_descriptors.numpy() for one in pair]
    straight, eigh = principal_axes(rows, 4), np.linalg.eigh
    assert (straight.directions[np.abs(straight.directions).argmax(axis=0), range(4)] > 0).all()
    np.testing.assert_allclose(straight.directions.T @ straight.directions, np.eye(4), atol=1e-12)
    signs = np.where(np.arange(DIM) % 2, 1, -1)
    monkeypatch.setattr("numpy.linalg.eigh", lambda matrix: (eigh(matrix)[0], eigh(matrix)[1] * signs))
    np.testing.assert_array_equal(principal_axes(rows, 4).directions, straight.directions)


def test_a_known_covariance_has_known_axes() -> None:
    """Twelve rows at +-3 along the third entry and +-1 along the first, about a mean of 5."""
    rows = np.zeros((12, 4), np.float32) + 5
    rows[:6, 2] += np.tile([3, -3], 3)
    rows[6:, 0] += np.tile([1, -1], 3)
    axes = principal_axes([rows[:5], rows[5:]], 2)
    np.testing.assert_allclose(axes.mean, [5, 5, 5, 5])
    np.testing.assert_allclose(axes.directions, [[0, 1], [0, 0], [1, 0], [0, 0]], atol=1e-12)
    np.testing.assert_allclose(axes.variances, [54 / 12, 6 / 12])
    assert axes.total == pytest.approx(5)
    np.testing.assert_allclose(axes.scores(rows[:1]), [[3, 0]], atol=1e-12)


def test_colours_run_from_the_2nd_to_the_98th_percentile_of_all_images_together(pair) -> None:
    found = pca_maps(pair)
    places = [
        mask.reshape(one.grid.rows, one.grid.cols) for one, mask in zip(pair, inside(pair), strict=True)
    ]
    scores = np.concatenate([one[place] for one, place in zip(found.scores, places, strict=True)])
    colors = np.concatenate([one[place] for one, place in zip(found.maps, places, strict=True)])
    low, high = np.percentile(scores.astype(np.float64), [2, 98], axis=0)
    wanted = np.round(255 * np.clip((scores - low) / (high - low), 0, 1))
    assert np.abs(colors - wanted).max() <= 1  # the scores are in fp32 here
    assert (colors != wanted).mean() < 0.01
    for channel in range(3):
        assert (colors[scores[:, channel] <= low[channel], channel] == 0).all()
        assert (colors[scores[:, channel] >= high[channel], channel] == 255).all()
        assert (np.diff(colors[np.argsort(scores[:, channel]), channel].astype(int)) >= 0).all()


def test_background_and_padding_are_black_and_without_scores(pair) -> None:
    masks = [np.arange(one.grid.n_patches) % 2 == 0 for one in pair]
    found = pca_maps(pair, masks=masks)
    for one, mask, visible, colors, scores in zip(
        pair, masks, inside(pair), found.maps, found.scores, strict=True
    ):
        shape = (one.grid.rows, one.grid.cols)
        kept = (mask & visible).reshape(shape)
        assert colors.shape == scores.shape == (*shape, 3)
        assert (colors[~kept] == 0).all()
        np.testing.assert_array_equal(np.isnan(scores).all(axis=2), ~kept)
        assert np.isfinite(scores[kept]).all()
        assert colors[kept].any(axis=1).mean() > 0.9


def test_what_a_mask_hides_does_not_change_a_colour(pair) -> None:
    masks = [np.arange(one.grid.n_patches) % 2 == 0 for one in pair]
    other = [
        replace(
            one, patch_tokens=torch.where(torch.from_numpy(mask)[:, None], one.patch_tokens, -torch.ones(DIM))
        )
        for one, mask in zip(pair, masks, strict=True)
    ]
    for first, second in zip(
        pca_maps(pair, masks=masks).maps, pca_maps(other, masks=masks).maps, strict=True
    ):
        np.testing.assert_array_equal(first, second)


def test_equal_content_has_equal_colours_in_every_image(pair) -> None:
    """The second image holds patches of the first, at other places and beside others of its own."""
    tokens = pair[1].patch_tokens.clone()
    places = np.flatnonzero(LETTERBOX.inside())[::-1][:40].copy()
    tokens[places] = pair[0].patch_tokens[50:90]
    found = pca_maps([pair[0], replace(pair[1], patch_tokens=tokens)])
    np.testing.assert_array_equal(found.maps[1].reshape(-1, 3)[places], found.maps[0].reshape(-1, 3)[50:90])
    assert len(np.unique(found.maps[0].reshape(-1, 3)[50:90], axis=0)) > 30


def test_permuting_the_images_permutes_the_colours(pair) -> None:
    straight, permuted = pca_maps(pair), pca_maps(pair[::-1])
    for one, other in zip(straight.maps, permuted.maps[::-1], strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1
    np.testing.assert_allclose(straight.explained, permuted.explained, rtol=1e-12)


def test_one_image_may_have_no_foreground_but_not_all(pair) -> None:
    nothing = [np.zeros(one.grid.n_patches, bool) for one in pair]
    alone = pca_maps([pair[0]])
    found = pca_maps(pair, masks=[inside(pair)[0], nothing[1]])
    np.testing.assert_array_equal(found.maps[0], alone.maps[0])
    assert not found.maps[1].any()
    with pytest.raises(MatchError, match="leave no patch"):
        pca_maps(pair, masks=nothing)


def test_patches_that_are_all_alike_are_grey_and_explain_nothing() -> None:
    uniform = Features(torch.ones(DIM), torch.ones(WIDE.n_patches, DIM), torch.zeros(0, DIM), WIDE)
    found = pca_maps([uniform])
    assert (found.maps[0] == 128).all()
    assert found.explained == (0, 0, 0)


def test_a_component_without_variance_is_grey() -> None:
    """Two kinds of patches differ in one direction only."""
    tokens = torch.ones(WIDE.n_patches, DIM)
    tokens[::2, 0] = -1
    found = pca_maps([Features(torch.ones(DIM), tokens, torch.zeros(0, DIM), WIDE)])
    colors = found.maps[0].reshape(-1, 3)
    assert sorted({tuple(map(int, color)) for color in colors}) == [(0, 128, 128), (255, 128, 128)]
    np.testing.assert_array_equal(colors[:, 0] == 255, tokens[:, 0].numpy() == 1)
    assert found.explained == pytest.approx((1, 0, 0), abs=1e-9)


def test_what_makes_no_sense_is_refused(pair) -> None:
    with pytest.raises(ArgumentError, match="components is 2; wanted 3 to 8"):
        pca_maps(pair, components=2)
    with pytest.raises(ArgumentError, match="components is 9"):
        pca_maps(pair, components=9)
    with pytest.raises(ArgumentError, match="no image"):
        pca_maps([])
    with pytest.raises(ArgumentError, match=r"the masks have 144, 150 patches; .* of 150, 144 patches"):
        pca_maps(pair, masks=inside(pair)[::-1])
    with pytest.raises(ArgumentError, match="one mask per image"):
        pca_maps(pair, masks=inside(pair)[:1])
    with pytest.raises(MatchError, match="not finite"):
        pca_maps([replace(pair[0], patch_tokens=torch.full((WIDE.n_patches, DIM), torch.inf))])
