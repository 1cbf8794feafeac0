import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.metrics import recall_at_k


def test_recall_counts_the_true_ids_among_the_found_whatever_their_order() -> None:
    found = np.array([[3, 1, 2, 9], [7, 8, 9, 4]])
    true = np.array([[1, 2, 3, 4], [4, 5, 6, 7]])
    assert recall_at_k(found, true, 3) == pytest.approx((3 / 3 + 0 / 3) / 2)
    assert recall_at_k(found, true, 4) == pytest.approx((3 / 4 + 2 / 4) / 2)
    assert recall_at_k(found, true, 1) == 0.0


def test_recall_does_not_change_when_the_queries_are_permuted() -> None:
    rng = np.random.default_rng(0)
    found, true = (np.stack([rng.permutation(20)[:6] for _ in range(9)]) for _ in range(2))
    order = rng.permutation(9)
    assert recall_at_k(found[order], true[order], 6) == pytest.approx(recall_at_k(found, true, 6))
    assert recall_at_k(true[:, ::-1], true, 6) == 1.0


def test_missing_ids_are_no_hits_and_short_truth_is_not_held_against_a_query() -> None:
    found = np.array([[5, -1, -1], [-1, -1, -1], [1, 2, 3]])
    true = np.array([[5, -1, -1], [-1, -1, -1], [1, 8, 9]])
    assert recall_at_k(found, true, 3) == pytest.approx((1 / 1 + 1 / 3) / 2)


@pytest.mark.parametrize("k", [0, 4])
def test_a_k_that_the_rows_cannot_answer_is_refused(k: int) -> None:
    with pytest.raises(ArgumentError, match="wanted 1 to 3"):
        recall_at_k(np.zeros((2, 5), np.int64), np.zeros((2, 3), np.int64), k)


def test_recall_of_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="no query has a true id"):
        recall_at_k(np.array([[1]]), np.array([[-1]]), 1)
