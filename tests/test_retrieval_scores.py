"""Average precision and its relatives, on rankings whose scores a person can count."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinov2kit.errors import ArgumentError
from dinov2kit.retrieval_scores import (
    average_precision,
    average_precision_at_r,
    found_within_k,
    micro_average_precision,
    positive_ranks,
    precision_at_k,
)

NONE = np.zeros(0, np.int64)


def at(*ranks: int) -> np.ndarray:
    return np.array(ranks, np.int64)


def ranks_by_sorting(scores: np.ndarray, positive: np.ndarray, junk: np.ndarray) -> np.ndarray:
    """Rank as the protocol tells it: sort all, strike out the junk, see where the positives stand."""
    right = np.isin(np.arange(len(scores)), positive)
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], right[item]))
    kept = [item for item in order if item not in set(junk.tolist())]
    return np.array([place for place, item in enumerate(kept) if right[item]], np.int64)


def area_by_trapezoids(ranks: np.ndarray, length: int) -> float:
    """Walk down the ranking and add the area under precision over recall, rank by rank."""
    area, recall, precision, found = 0.0, 0.0, 1.0, 0
    for place in range(length):
        found += place in set(ranks.tolist())
        new_recall, new_precision = found / len(ranks), found / (place + 1)
        area += (new_recall - recall) * (new_precision + precision) / 2
        recall, precision = new_recall, new_precision
    return area


def test_junk_is_struck_out_before_ranks_are_counted() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])
    assert positive_ranks(scores, at(1, 4), NONE).tolist() == [1, 4]
    assert positive_ranks(scores, at(1, 4), at(0)).tolist() == [0, 3]
    assert positive_ranks(scores, at(1, 4), at(0, 2, 5)).tolist() == [0, 2]


def test_an_item_that_scores_like_a_positive_stands_before_it() -> None:
    assert positive_ranks(np.full(5, 0.5), at(0, 3), NONE).tolist() == [3, 4]
    assert positive_ranks(np.full(5, 0.5), at(0, 3), at(1, 2)).tolist() == [1, 2]


@given(st.data())
def test_ranks_and_areas_are_those_of_the_protocol_told_in_words(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 25))
    scores = np.array(data.draw(st.lists(st.sampled_from([0.1, 0.25, 0.5, 0.75]), min_size=n, max_size=n)))
    grades = np.array(data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    positive, junk = np.flatnonzero(grades == 1), np.flatnonzero(grades == 2)
    ranks = positive_ranks(scores, positive, junk)
    assert ranks.tolist() == ranks_by_sorting(scores, positive, junk).tolist()
    if len(ranks):
        assert average_precision(ranks, rule="trapezoid") == pytest.approx(area_by_trapezoids(ranks, n))
        precisions = [np.mean([other <= rank for other in ranks]) * len(ranks) / (rank + 1) for rank in ranks]
        assert average_precision(ranks) == pytest.approx(np.mean(precisions))


@pytest.mark.parametrize(
    ("ranks", "average", "trapezoid"),
    [
        ((0,), 1, 1),
        ((0, 1, 2), 1, 1),
        ((1,), 1 / 2, (0 + 1 / 2) / 2),
        ((0, 2), (1 + 2 / 3) / 2, (1 + (1 / 2 + 2 / 3) / 2) / 2),
        ((2, 3), (1 / 3 + 2 / 4) / 2, ((0 + 1 / 3) / 2 + (1 / 3 + 2 / 4) / 2) / 2),
    ],
)
def test_average_precision_of_rankings_counted_by_hand(ranks, average, trapezoid) -> None:
    assert average_precision(at(*ranks)) == pytest.approx(average)
    assert average_precision(at(*ranks), rule="trapezoid") == pytest.approx(trapezoid)


def test_precision_at_k_ends_with_the_last_positive() -> None:
    assert precision_at_k(at(0, 1, 2), 10) == 1
    assert precision_at_k(at(0, 4), 10) == 2 / 5
    assert precision_at_k(at(0, 4), 3) == 1 / 3
    assert precision_at_k(at(0, 400), 10) == 1 / 10
    assert precision_at_k(at(7), 5) == 0


def test_recall_at_k_asks_for_one_positive_and_map_at_r_for_all() -> None:
    assert [found_within_k(at(3, 9), k) for k in (1, 3, 4, 10)] == [False, False, True, True]
    assert average_precision_at_r(at(0, 1, 2)) == 1
    assert average_precision_at_r(at(0, 2, 5)) == pytest.approx((1 + 2 / 3) / 3)
    assert average_precision_at_r(at(3, 4, 5)) == 0


def test_micro_average_precision_ranks_the_pairs_of_all_queries_together() -> None:
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    right = np.array([True, False, True, False, True])
    found = micro_average_precision(scores[::-1], right[::-1], 4, precision=0.6)
    assert found.average_precision == pytest.approx((1 + 2 / 3 + 3 / 5) / 4)  # the fourth is never found
    assert (found.recall, found.threshold) == (3 / 4, 0.5)
    strict = micro_average_precision(scores, right, 4, precision=0.9)
    assert (strict.recall, strict.threshold) == (1 / 4, 0.9)
    nothing = micro_average_precision(scores, ~right & (scores < 0.9), 2, precision=0.9)
    assert (nothing.recall, nothing.threshold) == (0, None)


def test_one_score_for_all_pairs_earns_what_the_worst_order_earns() -> None:
    right = np.array([True] * 2 + [False] * 8)
    found = micro_average_precision(np.full(10, 0.3), right, 2)
    assert found.average_precision == pytest.approx((1 / 9 + 2 / 10) / 2)


def test_what_makes_no_sense_is_refused() -> None:
    for measure in (average_precision, average_precision_at_r, lambda ranks: precision_at_k(ranks, 1)):
        with pytest.raises(ArgumentError, match="no positive"):
            measure(NONE)
    with pytest.raises(ArgumentError, match="k is 0"):
        found_within_k(at(1), 0)
    with pytest.raises(ArgumentError, match="nothing to find"):
        micro_average_precision(np.ones(3), np.zeros(3, bool), 0)
