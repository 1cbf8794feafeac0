"""RankMe: known ranks, the formula in plain NumPy, what leaves it alone and what lowers it."""

import math

import numpy as np
import pytest
import torch

from dinov2kit.train.rank import rank_me


def restated(rows: np.ndarray) -> float:
    """Say it as the paper does: eigenvalues of the Gram matrix, their roots, their entropy; in float64."""
    sizes = np.sqrt(np.clip(np.linalg.eigvalsh(rows.astype(np.float64).T @ rows.astype(np.float64)), 0, None))
    shares = sizes / sizes.sum()
    return float(np.exp(-sum(share * math.log(share) for share in shares if share > 0)))


def cloud(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_rows_on_one_line_have_rank_one() -> None:
    rows = torch.linspace(-2, 5, 40)[:, None] * torch.tensor([[3.0, -1.0, 0.5, 0.0]])
    assert rank_me(rows) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("d", [1, 3, 17])
def test_orthonormal_rows_have_full_rank(d) -> None:
    turn = torch.linalg.qr(cloud(d, d, 0).double())[0].float()
    assert rank_me(turn) == pytest.approx(d, rel=1e-6)


def test_a_case_by_hand() -> None:
    """Singular values 3 and 1: shares 3/4 and 1/4, so the rank is 4 / 3^(3/4)."""
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert rank_me(rows) == pytest.approx(4 / 3**0.75, rel=1e-12)


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50), (30, 30)])
def test_it_is_the_plain_restatement(n, d) -> None:
    rows = cloud(n, d, 1) @ torch.diag(torch.logspace(0, -2, d)) + 0.5
    assert rank_me(rows) == pytest.approx(restated(rows.numpy()), rel=1e-6)
    assert 1.5 < rank_me(rows) < min(n, d)


def test_scale_turn_and_order_leave_it_and_a_common_direction_lowers_it() -> None:
    rows = cloud(60, 12, 2).double()
    turn = torch.linalg.qr(cloud(12, 12, 3).double())[0]
    rank = rank_me(rows)
    assert rank_me(-1000 * (rows @ turn)[torch.randperm(60)]) == pytest.approx(rank, rel=1e-9)
    pushed = [rank_me(rows + push * turn[0]) for push in (0, 3, 30, 300)]
    assert pushed == sorted(pushed, reverse=True)
    assert pushed[-1] < 2 < 11 < pushed[0]


def test_tiny_numbers_of_half_precision_do_not_vanish() -> None:
    rows = (1e-6 * torch.eye(8)).to(torch.bfloat16)
    assert rank_me(rows) == pytest.approx(8, rel=1e-9)


def test_nothing_has_rank_zero_and_what_is_not_finite_has_none() -> None:
    assert rank_me(torch.zeros(5, 3)) == 0.0
    assert math.isnan(rank_me(torch.tensor([[1.0, math.inf], [0.0, 1.0]])))
