"""The order of draws: every epoch holds each image once, any draw is found at once, nothing repeats."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2kit.errors import ArgumentError
from dinov2kit.train.order import replacement_index, sample_index

SIZES = (1, 2, 3, 7, 1000, 9469)


def epoch(number: int, n: int, seed: int = 0) -> np.ndarray:
    return sample_index(np.arange(number * n, (number + 1) * n), n, seed=seed)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("number", [0, 1, 10**9])
def test_every_epoch_holds_each_image_once(n: int, number: int) -> None:
    assert np.array_equal(np.sort(epoch(number, n)), np.arange(n))


@given(n=st.integers(1, 700), number=st.integers(0, 2**50), seed=st.integers(0, 2**100))
def test_every_epoch_of_any_set_and_seed_holds_each_image_once(n: int, number: int, seed: int) -> None:
    assert np.array_equal(np.sort(epoch(number, n, seed)), np.arange(n))


@given(
    n=st.integers(1, 10**9),
    positions=st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=8),
    seed=st.integers(0, 9),
)
def test_a_draw_is_the_same_alone_and_among_others(n: int, positions: list[int], seed: int) -> None:
    together = sample_index(np.array(positions), n, seed=seed)
    alone = [sample_index(np.array([position]), n, seed=seed)[0] for position in positions]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < n)).all()


def test_a_batch_that_spans_two_epochs_holds_the_end_of_one_and_the_start_of_the_next() -> None:
    spanning = sample_index(np.arange(990, 1010), 1000, seed=4)
    assert spanning.tolist() == [*epoch(0, 1000, 4)[-10:], *epoch(1, 1000, 4)[:10]]


def test_epochs_and_seeds_differ_as_independent_orders_do() -> None:
    orders = [epoch(0, 1000), epoch(1, 1000), epoch(2, 1000), epoch(0, 1000, 1), epoch(0, 1000, 2**64)]
    for at, order in enumerate(orders):
        for other in orders[:at]:
            assert (order == other).sum() < 8  # on average one image stays in its place
            assert abs(np.corrcoef(order, other)[0, 1]) < 0.13  # 4 standard deviations


@pytest.mark.parametrize("n", [3, 4, 5])
def test_of_few_images_all_orders_are_equally_likely(n: int) -> None:
    epochs = 12_000
    drawn = sample_index(np.arange(n * epochs), n, seed=1).reshape(epochs, n)
    counts = Counter(map(tuple, drawn.tolist()))
    expected = epochs / math.factorial(n)
    freedom = math.factorial(n) - 1
    deviation = sum((counts[order] - expected) ** 2 / expected for order in counts)
    assert len(counts) == math.factorial(n)
    assert deviation < freedom + 5 * math.sqrt(2 * freedom)  # chi-squared


@pytest.mark.parametrize("n", [9469, 1_281_167, 142_000_000])
def test_neighbours_are_not_left_together(n: int) -> None:
    drawn = sample_index(np.arange(8000), n, seed=0) / n
    assert abs(np.abs(np.diff(drawn)).mean() - 1 / 3) < 0.012  # as for independent draws, 4 deviations
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(drawn, np.arange(8000))[0, 1]) < 0.05
    shares, _ = np.histogram(drawn, bins=16, range=(0, 1))
    assert np.abs(shares - 500).max() < 100


def test_a_million_draws_of_142_million_images_have_no_repeat() -> None:
    assert len(np.unique(sample_index(np.arange(10**6), 142_000_000, seed=0))) == 10**6


def test_the_order_is_the_one_that_old_runs_had() -> None:
    """Another order would silently change what a resumed run sees."""
    assert sample_index(np.arange(8), 1000, seed=0).tolist() == [432, 653, 723, 672, 84, 510, 38, 592]
    assert sample_index(np.array([2**62 - 1]), 142_000_000, seed=7).tolist() == [127_860_399]
    assert [replacement_index(5, attempt, 1000, 0) for attempt in (1, 2, 3)] == [592, 159, 994]


@pytest.mark.parametrize("n", [2, 3, 7, 100])
def test_replacements_visit_every_other_image_once_and_never_the_image_itself(n: int) -> None:
    for index in range(0, n, max(1, n // 7)):
        walked = [replacement_index(index, attempt, n, 3) for attempt in range(1, n)]
        assert sorted([index, *walked]) == list(range(n))
        assert replacement_index(index, n, n, 3) == walked[0]  # round again


def test_a_single_image_can_only_be_replaced_by_itself() -> None:
    assert replacement_index(0, 5, 1, 0) == 0


def test_neighbouring_images_have_different_replacements() -> None:
    """A damaged stretch of files must not give all its draws to one good image."""
    stand_ins = [replacement_index(index, 1, 1000, 0) for index in range(100, 200)]
    assert len(set(stand_ins)) > 85
    assert abs(np.corrcoef(stand_ins, np.arange(100))[0, 1]) < 0.4
    assert stand_ins != [replacement_index(index, 1, 1000, 1) for index in range(100, 200)]


@pytest.mark.parametrize(
    ("positions", "n", "seed"),
    [([0], 0, 0), ([-1], 5, 0), ([2**62], 5, 0), ([0], 5, -1), ([0], 2**62 + 1, 0)],
)
def test_what_is_out_of_range_is_refused(positions: list[int], n: int, seed: int) -> None:
    with pytest.raises(ArgumentError, match="wanted"):
        sample_index(np.array(positions), n, seed=seed)


@pytest.mark.parametrize(("index", "attempt"), [(5, 1), (-1, 1), (0, 0)])
def test_no_replacement_for_an_image_that_is_not_there(index: int, attempt: int) -> None:
    with pytest.raises(ArgumentError, match="attempt"):
        replacement_index(index, attempt, 5, 0)


def test_no_draws_are_no_images() -> None:
    assert sample_index(np.zeros(0, np.int64), 5, seed=0).tolist() == []
