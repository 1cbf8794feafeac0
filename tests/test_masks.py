"""Masks have exact numbers of patches, in blocks, the same ones in every process of a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2kit.train.masks import draw_masks


def numbers(images: int, n: int, share: float, ratio: tuple[float, float]) -> list[int]:
    """Return how many patches the masked crops lose: the middle of each stratum, rounded down."""
    masked = int(images * share)
    edges = np.linspace(*ratio, masked + 1)
    return [int(n * (edges[i] + edges[i + 1]) / 2 + 1e-9) for i in range(masked)]


@pytest.mark.parametrize("side", [6, 14, 16, 37])
def test_the_numbers_of_masked_patches_are_those_of_the_strata_in_every_step(side: int) -> None:
    wanted = sorted(numbers(32, side * side, 0.5, (0.1, 0.5)) + [0] * 16)
    assert 0.28 < sum(wanted) / (16 * side * side) < 0.3  # the mean ratio of the recipe, rounded down
    for step in range(4):
        masks = draw_masks(32, side, side, seed=0, step=step)
        assert sorted(masks.sum(axis=1).tolist()) == wanted


@given(
    images=st.integers(0, 9),
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    share=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    ratio=st.sampled_from([(0.1, 0.5), (0.0, 0.0), (0.5, 0.5), (0.25, 1.0), (1.0, 1.0)]),
    step=st.integers(0, 10**9),
)
def test_any_grid_share_and_ratio_have_exact_numbers(
    images: int, rows: int, cols: int, share: float, ratio: tuple[float, float], step: int
) -> None:
    masks = draw_masks(images, rows, cols, share=share, ratio=ratio, seed=3, step=step)
    found = sorted(masks.sum(axis=1).tolist())
    assert masks.shape == (images, rows * cols)
    expected = numbers(images, rows * cols, share, ratio)
    assert np.abs(np.array(found) - sorted(expected + [0] * (images - len(expected)))).max(initial=0) <= 0


def test_masks_follow_from_seed_and_step() -> None:
    masks = draw_masks(16, 8, 8, seed=1, step=5)
    assert np.array_equal(masks, draw_masks(16, 8, 8, seed=1, step=5))
    for seed, step in ((1, 6), (2, 5), (5, 1), (15, 0)):
        other = draw_masks(16, 8, 8, seed=seed, step=step)
        assert not np.array_equal(masks, other)


def test_every_crop_is_masked_equally_often_and_equally_much() -> None:
    sums = np.stack([draw_masks(8, 6, 6, seed=0, step=step).sum(axis=1) for step in range(1000)])
    masked = (sums > 0).mean(axis=0)
    assert np.abs(masked - 0.5).max() < 0.07  # 4 standard deviations
    assert np.abs(sums.mean(axis=0) - sums.mean()).max() < 4 * sums.std() / np.sqrt(1000)


def neighbours(masks: np.ndarray) -> float:
    """Return the share of masked patches whose right neighbour is masked."""
    return float((masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum())


def test_patches_are_hidden_in_blocks() -> None:
    masks = draw_masks(64, 16, 16, share=1.0, ratio=(0.3, 0.3), seed=0, step=0).reshape(-1, 16, 16)
    assert neighbours(masks) > 0.7  # single patches would have 0.3
    lonely = masks[:, 1:-1, 1:-1].copy()
    for rows, cols in ((slice(2, None), slice(1, -1)), (slice(-2), slice(1, -1))):
        lonely &= ~masks[:, rows, cols] & ~masks[:, cols, rows]
    assert lonely.sum() / masks.sum() < 0.01  # those that made up the number


def test_blocks_are_those_of_the_release() -> None:
    """The release once more, with numpy's random numbers: masks of both have as many neighbours."""
    rng = np.random.default_rng(0)

    def again(target: int, side: int) -> np.ndarray:
        mask, count = np.zeros((side, side), bool), 0
        while count < target:
            most, added = min(target - count, side // 2 * side), 0
            for _ in range(10):
                area, aspect = (
                    4 + rng.random() * (most - 4),
                    np.exp(rng.uniform(np.log(0.3), np.log(1 / 0.3))),
                )
                h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
                if w < side and h < side:
                    top, left = rng.integers(0, side - h + 1), rng.integers(0, side - w + 1)
                    new = h * w - mask[top : top + h, left : left + w].sum()
                    if 0 < new <= most:
                        mask[top : top + h, left : left + w] = True
                        added = new
                        break
            if not added:
                break
            count += added
        return mask

    theirs = np.stack([again(76, 16) for _ in range(400)])
    ours = draw_masks(400, 16, 16, share=1.0, ratio=(0.3, 0.3), seed=0, step=0).reshape(-1, 16, 16)
    assert neighbours(ours) == pytest.approx(neighbours(theirs), abs=0.015)
    middle = [masks[:, 4:12, 4:12].mean() for masks in (ours, theirs)]
    assert middle[0] == pytest.approx(middle[1], abs=0.02)
    assert theirs.sum(axis=(1, 2)).mean() < 76  # what is made up for here
