"""Targets are what the released algorithms say, in plain NumPy and in numbers; kept or computed again."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp, softmax

from dinov2kit.errors import ArgumentError
from dinov2kit.train import targets as module
from dinov2kit.train.targets import Centre, centred_targets, sinkhorn_targets


def sines(shape: tuple[int, ...], factor: float) -> torch.Tensor:
    return torch.from_numpy(np.sin(factor * np.arange(math.prod(shape))).reshape(shape)).float()


def cloud(m: int, k: int, dim: int = 12, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows and prototypes of length one, in fp64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(m + k, dim, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).split([m, k])


def everything(targets: module.Targets) -> np.ndarray:
    return targets.rows(torch.arange(len(targets))).numpy()


def released(logits: np.ndarray, temperature: float, iterations: int = 3) -> np.ndarray:
    """Do it as told: the exponential, the total, then rows and columns in turn."""
    q = np.exp(logits.astype(np.float64) / temperature).T
    k, n = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * k
        q /= q.sum(axis=0, keepdims=True) * n
    return (q * n).T


def released_with_logarithms(logits: np.ndarray, temperature: float, iterations: int = 3) -> np.ndarray:
    scaled = logits.astype(np.float64) / temperature
    k, n = scaled.shape[1], scaled.shape[0]
    scaled = scaled - logsumexp(scaled)
    for _ in range(iterations):
        scaled = scaled - logsumexp(scaled, axis=0, keepdims=True) - np.log(k)
        scaled = scaled - logsumexp(scaled, axis=1, keepdims=True) - np.log(n)
    return np.exp(scaled + np.log(n))


@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize(("m", "k"), [(1, 7), (40, 9), (9, 40), (300, 33)])
def test_sinkhorn_is_the_released_algorithm(m, k, iterations) -> None:
    rows, prototypes = cloud(m, k)
    wanted = released((rows @ prototypes.T).numpy(), 0.06, iterations)
    found = sinkhorn_targets(rows, prototypes, temperature=0.06, iterations=iterations)
    assert np.allclose(everything(found), wanted, atol=1e-12)
    narrow = sinkhorn_targets(rows.float(), prototypes.float(), temperature=0.06, iterations=iterations)
    # Logits are off by about 1e-7; over 0.06 that is 2e-6 of a target, for its row and its prototype each.
    assert np.allclose(everything(narrow), wanted, rtol=1e-5, atol=1e-7)


def test_the_released_code_gives_these_targets() -> None:
    logits = sines((6, 5), 0.37)
    found = everything(sinkhorn_targets(logits, torch.eye(5), temperature=0.07))
    assert found[0] == pytest.approx(
        [4.43e-8, 1.157960e-4, 0.0318109, 0.7326290, 0.2354441], rel=2e-5, abs=1e-9
    )
    assert found.sum(axis=0) == pytest.approx([2.002660, 1.175385, 0.746267, 0.959778, 1.115910], abs=2e-6)
    found = everything(centred_targets(logits, torch.eye(5), torch.zeros(5), temperature=0.07))
    assert found[0] == pytest.approx([5.305e-7, 9.29e-5, 0.0080932, 0.1913365, 0.8004769], abs=1e-7)


@pytest.mark.parametrize("temperature", [0.04, 1.0])
def test_no_logit_is_too_large(temperature) -> None:
    """One prototype is so far away that its exponentials are 0 in every type, before they are scaled."""
    generator = np.random.default_rng(0)
    logits = generator.uniform(-1000, 1000, (24, 6))
    logits[:, 2] -= 4000
    logits[5] += 4000
    wide, eye = torch.from_numpy(logits), torch.eye(6, dtype=torch.float64)
    wanted = released_with_logarithms(logits, temperature)
    assert np.allclose(everything(sinkhorn_targets(wide, eye, temperature=temperature)), wanted, atol=1e-9)
    assert wanted[:, 2].sum() > 0.5  # the far prototype gets its share
    narrow = everything(sinkhorn_targets(wide.float(), eye.float(), temperature=temperature))
    assert np.isfinite(narrow).all()
    assert np.allclose(narrow.sum(axis=1), 1, atol=1e-6)


def test_what_all_rows_or_one_prototype_get_more_of_changes_nothing() -> None:
    """What one row gets more of does, before rows are first scaled: the largest logit of a row must stay."""
    logits, eye = torch.randn(30, 8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)
    before = everything(sinkhorn_targets(logits, eye, temperature=0.1))
    moved = logits + 40 + torch.linspace(-3, 9, 8)
    assert np.allclose(everything(sinkhorn_targets(moved, eye, temperature=0.1)), before, atol=1e-10)
    moved = logits - logits.amax(dim=1, keepdim=True)
    assert np.abs(everything(sinkhorn_targets(moved, eye, temperature=0.1)) - before).max() > 0.01


def test_rows_and_prototypes_in_another_order_give_targets_in_that_order() -> None:
    rows, prototypes = cloud(50, 20)
    before = everything(sinkhorn_targets(rows, prototypes, temperature=0.05))
    m_order, k_order = np.random.default_rng(1).permutation(50), np.random.default_rng(2).permutation(20)
    after = everything(sinkhorn_targets(rows[m_order], prototypes[k_order], temperature=0.05))
    assert np.allclose(after, before[m_order][:, k_order], atol=1e-12)


def test_many_iterations_use_all_prototypes_alike() -> None:
    rows, prototypes = cloud(400, 10)
    found = everything(sinkhorn_targets(rows, prototypes, temperature=0.1, iterations=300))
    assert np.allclose(found.sum(axis=0), 40, rtol=1e-3)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("kind", ["sinkhorn", "centred"])
def test_targets_computed_again_are_those_kept(monkeypatch, kind) -> None:
    rows, prototypes = cloud(200, 30, seed=3)
    index = torch.tensor([199, 0, 0, 64, 63, 128])

    def make() -> module.Targets:
        if kind == "sinkhorn":
            return sinkhorn_targets(rows, prototypes, temperature=0.05)
        return centred_targets(rows, prototypes, torch.linspace(-1, 1, 30), temperature=0.05)

    kept = make()
    monkeypatch.setattr(module, "_CHUNK", {"cpu": 1})  # 64 rows at a time
    chunked = make()
    monkeypatch.setattr(module, "_KEPT", 0)
    again = make()
    assert kept._kept is not None
    assert again._kept is None
    for other in (chunked, again):
        assert torch.allclose(other.rows(index), kept.rows(index), atol=1e-13)
        assert np.allclose(everything(other), everything(kept), atol=1e-13)
        assert vars(other.statistics()) == pytest.approx(vars(kept.statistics()), abs=1e-12)
    for one in (kept, again):  # what is handed out is the caller's
        one.rows(index).zero_()
        assert np.allclose(everything(one).sum(axis=1), 1)


def test_a_centre_shifts_the_softmax() -> None:
    rows, prototypes = cloud(20, 6)
    centre = torch.linspace(-1, 2, 6)
    found = everything(centred_targets(rows, prototypes, centre, temperature=0.07))
    logits = (rows @ prototypes.T).numpy()
    assert np.allclose(found, softmax((logits - centre.double().numpy()) / 0.07, axis=1), atol=1e-13)


def test_a_centre_is_the_running_mean_of_logits() -> None:
    centre = Centre(5)
    assert not centre.centre.any()
    centre.update(sines((6, 5), 0.37), torch.eye(5))
    wanted = [
        0.0139133,
        0.0134125,
        0.0110965,
        0.0072785,
        0.0024755,
    ]  # the released code, updated and applied once
    assert centre.centre.tolist() == pytest.approx(wanted, abs=1e-7)
    rows, prototypes = cloud(64, 5)
    rows, prototypes = rows.float(), prototypes.float()
    before = centre.centre.clone()
    centre.update(rows, prototypes)
    assert torch.allclose(centre.centre, 0.9 * before + 0.1 * (rows @ prototypes.T).mean(dim=0), atol=1e-7)
    before = centre.centre.clone()
    centre.update(rows[:0], prototypes)
    assert torch.equal(centre.centre, before)
    assert list(centre.state_dict()) == ["centre"]


def test_targets_do_not_follow_a_centre_that_moves_later() -> None:
    """The released code uses a centre that is one step old; so does who makes targets and updates then."""
    rows, prototypes = (side.float() for side in cloud(40, 6))
    centre = Centre(6)
    targets = centred_targets(rows, prototypes, centre.centre, temperature=0.1)
    before = everything(targets)
    centre.update(rows, prototypes)
    assert np.array_equal(everything(targets), before)
    later = everything(centred_targets(rows, prototypes, centre.centre, temperature=0.1))
    assert np.abs(later - before).max() > 1e-4


def test_statistics_of_clear_cases() -> None:
    def of(logits: torch.Tensor) -> tuple[float, ...]:
        k = logits.shape[1]
        targets = centred_targets(logits, torch.eye(k), torch.zeros(k), temperature=1.0)
        return tuple(vars(targets.statistics()).values())

    alike, certain = torch.zeros(12, 8), 1000 * torch.eye(8)
    assert of(alike) == pytest.approx((math.log(8), math.log(8), 1 / 8), abs=1e-6)  # equal ones: the first
    assert of(certain) == pytest.approx((0, math.log(8), 1), abs=1e-6)
    assert of(certain[[3, 3, 3, 3]]) == pytest.approx((0, 0, 1 / 8), abs=1e-6)
    assert of(certain[[0, 1, 1, 1]]) == pytest.approx(
        (0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75), 2 / 8), abs=1e-6
    )


def test_statistics_are_the_plain_restatement() -> None:
    rows, prototypes = cloud(70, 50)
    targets = sinkhorn_targets(rows, prototypes, temperature=0.05)
    p, found = everything(targets), targets.statistics()
    assert found.entropy == pytest.approx(-(p * np.log(p)).sum(axis=1).mean(), abs=1e-12)
    mean = p.mean(axis=0)
    assert found.marginal_entropy == pytest.approx(-(mean * np.log(mean)).sum(), abs=1e-12)
    assert found.prototypes_used == len(set(p.argmax(axis=1))) / 50


def test_no_rows_have_targets_but_no_statistics() -> None:
    rows, prototypes = cloud(0, 7)
    for targets in (
        sinkhorn_targets(rows, prototypes, temperature=0.1),
        centred_targets(rows, prototypes, torch.zeros(7), temperature=0.1),
    ):
        assert len(targets) == 0
        assert everything(targets).shape == (0, 7)
        assert all(math.isnan(number) for number in vars(targets.statistics()).values())


def test_targets_have_no_gradient_and_ignore_autocast(monkeypatch) -> None:
    rows, prototypes = (side.float().requires_grad_() for side in cloud(30, 12))
    plain = everything(sinkhorn_targets(rows, prototypes, temperature=0.04))
    for kept in (1 << 20, 0):
        monkeypatch.setattr(module, "_KEPT", kept)
        with torch.autocast("cpu", torch.bfloat16):
            targets = sinkhorn_targets(rows, prototypes, temperature=0.04)
            found = targets.rows(torch.arange(30))
        assert not found.requires_grad
        assert np.allclose(found.numpy(), plain, atol=1e-7)


def test_nonsense_is_refused() -> None:
    rows, prototypes = cloud(4, 3)
    with pytest.raises(ArgumentError, match="temperature is 0"):
        sinkhorn_targets(rows, prototypes, temperature=0.0)
    with pytest.raises(ArgumentError, match="temperature is nan"):
        centred_targets(rows, prototypes, torch.zeros(3), temperature=math.nan)
    with pytest.raises(ArgumentError, match="0 iterations; wanted 1 or more"):
        sinkhorn_targets(rows, prototypes, temperature=0.1, iterations=0)
