"""KoLeo is the plain formula and the released number, and finite where the released code is not."""

import math

import numpy as np
import pytest
import torch

from dinov2kit.errors import ArgumentError
from dinov2kit.train.koleo import koleo


def cloud(n: int = 12, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def restated(rows: np.ndarray, top_k: int = 1) -> float:
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return -np.log(np.sort(distances, axis=1)[:, :top_k]).mean()


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_it_is_the_plain_restatement(top_k) -> None:
    found = koleo(cloud(), top_k=top_k)
    assert found.item() == pytest.approx(restated(cloud().numpy(), top_k), abs=1e-7)  # 1e-8 is added twice


def test_the_released_code_gives_this_number() -> None:
    rows = torch.from_numpy(np.sin(1.3 * np.arange(20)).reshape(5, 4)).float()
    assert koleo(rows).item() == pytest.approx(-0.0257364, abs=2e-7)


def test_a_case_known_by_hand() -> None:
    """The corners of a square in the unit circle are sqrt 2 from their neighbours, 2 from those across."""
    square = torch.tensor([[1.0, 0], [0, 3], [-5, 0], [0, -0.1]])
    assert koleo(square).item() == pytest.approx(-math.log(2) / 2, abs=1e-6)
    every_other = -(2 * math.log(2) / 2 + math.log(2)) / 3
    assert koleo(square, top_k=3).item() == pytest.approx(every_other, abs=1e-6)
    assert koleo(square, top_k=99).item() == pytest.approx(every_other, abs=1e-6)  # there are but three


def test_lengths_order_and_a_rotation_change_nothing() -> None:
    rows = cloud()
    turn = torch.linalg.qr(cloud(6, 6, seed=5)).Q
    moved = (rows * torch.linspace(0.1, 9, 12)[:, None])[torch.randperm(12)] @ turn
    assert koleo(moved).item() == pytest.approx(koleo(rows).item(), abs=1e-7)


def test_a_row_far_from_unit_length_is_never_its_own_neighbour() -> None:
    """Opposite rows have the least cosine, -1; the own one, masked, must be less."""
    assert koleo(torch.tensor([[1.0, 2], [-2, -4]])).item() == pytest.approx(-math.log(2), abs=1e-6)


@pytest.mark.parametrize("top_k", [1, 3])
def test_gradients_are_slopes_of_the_loss(top_k) -> None:
    rows = cloud(6, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: koleo(rows, top_k=top_k), (rows,))


def test_a_step_down_spreads_the_rows() -> None:
    rows = (torch.ones(8, 4) + 0.1 * cloud(8, 4)).requires_grad_()
    before = koleo(rows)
    before.backward()
    with torch.no_grad():
        assert koleo(rows - 1e-3 * rows.grad) < before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_duplicates_and_rows_of_zeros_are_finite(dtype) -> None:
    rows = cloud().to(dtype)
    rows[1] = rows[0]
    rows[2] = rows[3] = 0
    rows.requires_grad_()
    for narrow in (torch.bfloat16, None):
        rows.grad = None
        with torch.autocast("cpu", narrow, enabled=narrow is not None):
            loss = koleo(rows)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        loss.backward()
        assert rows.grad.isfinite().all() or dtype == torch.float16  # which cannot hold slopes of 1e8
    alike = torch.ones(4, 9)  # 1e-8 in 9 places is 3e-8 away, and 1e-8 is added
    assert koleo(alike).item() == pytest.approx(-math.log(4e-8), abs=1e-3)


def test_autocast_changes_nothing() -> None:
    rows = cloud().float()
    with torch.autocast("cpu", torch.bfloat16):
        assert koleo(rows).item() == koleo(rows.clone()).item()
        found = koleo(rows)
    assert found.item() == koleo(rows).item()
    rounded = rows.to(torch.bfloat16)
    assert koleo(rounded).item() == koleo(rounded.float()).item()


@pytest.mark.parametrize("n", [0, 1])
def test_rows_without_another_cost_nothing_but_stay_connected(n) -> None:
    rows = cloud(n).float().requires_grad_()
    loss = koleo(rows)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(rows.grad, torch.zeros(n, 6))


def test_no_neighbour_is_refused() -> None:
    with pytest.raises(ArgumentError, match="top_k is 0; wanted 1 or more"):
        koleo(cloud(), top_k=0)
