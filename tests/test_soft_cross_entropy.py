"""The cross-entropy and its gradients are the plain ones for any chunk, and assemble to released numbers."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch.utils._python_dispatch import TorchDispatchMode

from dinov2kit.errors import ArgumentError
from dinov2kit.train import targets as targets_module
from dinov2kit.train.soft_cross_entropy import soft_cross_entropy
from dinov2kit.train.targets import Targets, centred_targets, sinkhorn_targets

M, K, DIM, TEACHERS = 23, 17, 5, 9


def sines(shape: tuple[int, ...], factor: float) -> torch.Tensor:
    return torch.from_numpy(np.sin(factor * np.arange(math.prod(shape))).reshape(shape)).float()


def unit(rows: int, seed: int, dim: int = DIM, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1).to(dtype)


def teacher(dtype: torch.dtype = torch.float64) -> Targets:
    return centred_targets(
        unit(TEACHERS, 3, dtype=dtype), unit(K, 4, dtype=dtype), torch.zeros(K), temperature=0.2
    )


def draw(t: int, m: int = M) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which targets are wanted, and weights of which some are 0."""
    rng = np.random.default_rng(t)
    weights = rng.uniform(0.1, 2, m)
    weights[::4] = 0
    return torch.from_numpy(rng.integers(0, TEACHERS, (m, t))), torch.from_numpy(weights)


def restated(embeddings, prototypes, wanted, weights, temperature):
    """Return loss and both gradients in fp64, from whole matrices."""
    embeddings, prototypes = (side.detach().double().numpy() for side in (embeddings, prototypes))
    logits = embeddings @ prototypes.T / temperature
    loss = -(weights[:, None] * wanted * log_softmax(logits, axis=1)).sum()
    slopes = weights[:, None] * (softmax(logits, axis=1) - wanted) / temperature
    return loss, slopes @ prototypes, slopes.T @ embeddings


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("chunk", [1, 7, M, 1000, None])
def test_loss_and_gradients_are_the_plain_ones(monkeypatch, chunk, t, kept) -> None:
    if not kept:
        monkeypatch.setattr(targets_module, "_KEPT", 0)
    pick, weights = draw(t)
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
        rows, prototypes = (unit(n, n, dtype=dtype).requires_grad_() for n in (M, K))
        targets = teacher(dtype)
        wanted = targets.rows(pick.flatten()).double().numpy().reshape(M, t, K).mean(axis=1)
        loss, row_slopes, column_slopes = restated(rows, prototypes, wanted, weights.numpy(), 0.1)
        found = soft_cross_entropy(rows, prototypes, targets, pick, weights, temperature=0.1, chunk=chunk)
        found.backward()
        assert found.dtype == dtype
        assert found.item() == pytest.approx(loss, rel=tolerance)
        largest = max(np.abs(row_slopes).max(), np.abs(column_slopes).max())
        assert np.abs(rows.grad.numpy() - row_slopes).max() < tolerance * largest
        assert np.abs(prototypes.grad.numpy() - column_slopes).max() < tolerance * largest
        assert not rows.grad[::4].any()  # their weight is 0


def test_gradients_are_slopes_of_the_loss() -> None:
    pick, weights = draw(2, 4)
    rows, prototypes = unit(4, 1).requires_grad_(), unit(6, 2).requires_grad_()
    targets = centred_targets(unit(TEACHERS, 3), unit(6, 4), torch.zeros(6), temperature=0.2)

    def loss(rows: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return soft_cross_entropy(rows, prototypes, targets, pick, weights, temperature=0.3, chunk=3).square()

    assert torch.autograd.gradcheck(loss, (rows, prototypes))


def test_a_student_that_says_what_the_teacher_says_pays_the_entropy_and_has_no_slope() -> None:
    rows, prototypes = unit(TEACHERS, 3).requires_grad_(), unit(K, 4).requires_grad_()
    targets, pick = teacher(), torch.arange(TEACHERS)[:, None]
    loss = soft_cross_entropy(rows, prototypes, targets, pick, torch.ones(TEACHERS), temperature=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(TEACHERS * targets.statistics().entropy, rel=1e-12)
    assert rows.grad.abs().max() < 1e-14
    assert prototypes.grad.abs().max() < 1e-14


def test_a_student_that_knows_nothing_pays_the_logarithm_of_the_number_of_prototypes() -> None:
    pick, weights = draw(1)
    loss = soft_cross_entropy(
        torch.zeros(M, DIM), unit(K, 4).float(), teacher(), pick, weights, temperature=0.1
    )
    assert loss.item() == pytest.approx(weights.sum().item() * math.log(K), rel=1e-6)


def test_no_logit_is_too_large() -> None:
    rows, prototypes = 1000 * unit(M, 1, dtype=torch.float32), unit(K, 2, dtype=torch.float32)
    rows.requires_grad_()
    pick, weights = draw(1)
    loss = soft_cross_entropy(rows, prototypes, teacher(), pick, weights, temperature=0.1)
    loss.backward()
    wanted = teacher().rows(pick[:, 0]).numpy()
    assert loss.item() == pytest.approx(restated(rows, prototypes, wanted, weights.numpy(), 0.1)[0], rel=1e-5)
    assert rows.grad.isfinite().all()


def test_no_rows_give_nothing_but_stay_connected() -> None:
    rows, prototypes = torch.zeros(0, DIM, requires_grad=True), unit(K, 4).float().requires_grad_()
    for t in (1, 2):
        empty = torch.zeros(0, t, dtype=torch.int64)
        loss = soft_cross_entropy(rows, prototypes, teacher(), empty, torch.zeros(0), temperature=0.1)
        assert loss.item() == 0
        loss.backward()
        assert rows.grad.shape == rows.shape
        assert torch.equal(prototypes.grad, torch.zeros(K, DIM))


def test_one_side_alone_can_learn_or_none() -> None:
    pick, weights = draw(1)

    def loss(rows: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
        return soft_cross_entropy(rows, prototypes, teacher(), pick, weights, temperature=0.1)

    both = unit(M, 1).requires_grad_(), unit(K, 2).requires_grad_()
    loss(*both).backward()
    rows, prototypes = (side.detach().clone().requires_grad_() for side in both)
    loss(rows, both[1].detach()).backward()
    loss(both[0].detach(), prototypes).backward()
    assert torch.equal(rows.grad, both[0].grad)
    assert torch.equal(prototypes.grad, both[1].grad)
    fixed = loss(both[0].detach(), both[1].detach())
    assert not fixed.requires_grad
    assert fixed.item() == loss(*both).item()


class _Largest(TorchDispatchMode):
    """Note how many numbers the largest tensor has that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, function, kinds, arguments=(), settings=None):
        made = function(*arguments, **(settings or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


def test_logits_are_never_all_in_memory(monkeypatch) -> None:
    monkeypatch.setattr(targets_module, "_KEPT", 0)
    monkeypatch.setattr(targets_module, "_CHUNK", {"cpu": 1})  # 64 rows at a time
    rows, prototypes = unit(512, 1).requires_grad_(), unit(300, 2).requires_grad_()
    pick = torch.arange(512)[:, None]
    with _Largest() as largest:
        targets = sinkhorn_targets(rows, prototypes, temperature=0.1)
        soft_cross_entropy(rows, prototypes, targets, pick, torch.ones(512), temperature=0.1).backward()
        targets.statistics()
    assert largest.numbers == 64 * 300


def test_bf16_products_stay_near_fp32() -> None:
    """Rows, prototypes and logits are each rounded by 2^-8 at most, of numbers whose product is below 1.

    A logit is then off by at most d = 3 * 2^-8 / T, and so a cross-entropy by at most 2 d, because its slope
    is a difference of two distributions. Probabilities p are off by at most (e^(2 d) - 1) p. The slopes are
    rounded, so is what they are multiplied with, and so is the product: 2^-8 three times.
    """
    temperature = 0.5
    d = 3 * 2**-8 / temperature
    pick, weights = draw(1)
    found = {}
    for narrow in (False, True):
        rows, prototypes = (unit(n, n, dtype=torch.float32).requires_grad_() for n in (M, K))
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = soft_cross_entropy(
                rows, prototypes, teacher(torch.float32), pick, weights, temperature=temperature
            )
        loss.backward()
        assert loss.dtype == torch.float32
        found[narrow] = [side.detach().double().numpy() for side in (loss, rows.grad, prototypes.grad)]
    off = [np.abs(there - here) for here, there in zip(found[False], found[True], strict=True)]
    assert 0 < off[0] < 2 * d * weights.sum()
    rows, prototypes, weigh = rows.detach().numpy(), prototypes.detach().numpy(), weights.numpy()[:, None]
    p, wanted = softmax(rows @ prototypes.T / temperature, axis=1), teacher().rows(pick[:, 0]).numpy()
    slack = weigh * ((math.exp(2 * d) - 1) * p + 3.1 * 2**-8 * np.abs(p - wanted)) / temperature
    assert off[1].max() > 0
    assert (off[1] <= slack @ np.abs(prototypes)).all()
    assert (off[2] <= slack.T @ np.abs(rows)).all()
    assert (slack @ np.abs(prototypes)).max() < 0.2 * np.abs(
        found[False][1]
    ).max()  # the bound says something


def test_dino_is_assembled_to_the_released_number() -> None:
    """One student crop against one teacher crop: the mean over the images of the batch."""
    student, eye = sines((6, 5), 0.91), torch.eye(5)
    targets = sinkhorn_targets(sines((6, 5), 0.37), eye, temperature=0.07)
    own = torch.arange(6)[:, None]
    loss = soft_cross_entropy(student, eye, targets, own, torch.full((6,), 1 / 6), temperature=0.1)
    assert loss.item() == pytest.approx(11.230060, abs=2e-6)


def test_ibot_is_assembled_to_the_released_number() -> None:
    """A token weighs 1 / masked tokens of its image; the sum is divided by all 4 crops, masked or not."""
    student, eye = sines((6, 5), 0.91), torch.eye(5)
    targets = sinkhorn_targets(sines((6, 5), 0.37), eye, temperature=0.07)
    masks = torch.zeros(4, 9, dtype=torch.bool)
    masks[0, :2] = masks[2, 3:6] = masks[3, 8] = True
    weights = (1 / masks.sum(dim=1).clamp(min=1))[masks.nonzero()[:, 0]] / len(masks)
    own = torch.arange(6)[:, None]
    loss = soft_cross_entropy(student, eye, targets, own, weights, temperature=0.1)
    assert loss.item() == pytest.approx(9.447219, abs=2e-6)


def test_all_crops_of_dino_are_the_sum_of_the_separate_terms() -> None:
    """2 global and 8 local crops of 3 images, crop-major; 18 pairs of different crops have a mean each."""
    b, local = 3, 8
    prototypes, teacher_rows = unit(K, 1), unit(2 * b, 2)
    targets = sinkhorn_targets(teacher_rows, unit(K, 3), temperature=0.05)
    global_rows, local_rows = unit(2 * b, 4), unit(local * b, 5)
    image = torch.arange(b)
    both = torch.stack([image, image + b], dim=1).repeat(local, 1)
    other = torch.cat([image + b, image])[:, None]

    def cross_entropy(rows: torch.Tensor, pick: torch.Tensor, weight: float) -> float:
        weights = torch.full((len(rows),), weight, dtype=torch.float64)
        return soft_cross_entropy(rows, prototypes, targets, pick, weights, temperature=0.1).item()

    found = cross_entropy(local_rows, both, 2 / 18 / b) + cross_entropy(global_rows, other, 1 / 18 / b)
    wanted = targets.rows(torch.arange(2 * b)).numpy()
    parts = []
    for crop, rows in enumerate([*global_rows.split(b), *local_rows.split(b)]):
        said = log_softmax((rows @ prototypes.T).numpy() / 0.1, axis=1)
        for side in range(2):
            if crop != side:
                parts.append(-(wanted[side * b : side * b + b] * said).sum(axis=1).mean() / 18)
    assert len(parts) == 18
    assert found == pytest.approx(sum(parts), rel=1e-12)


def test_nonsense_is_refused() -> None:
    pick, weights = draw(1)
    for settings, said in (
        ({"temperature": 0.0}, "temperature is 0"),
        ({"temperature": 0.1, "chunk": 0}, "chunk is 0; wanted 1 row or more"),
    ):
        with pytest.raises(ArgumentError, match=said):
            soft_cross_entropy(unit(M, 1), unit(K, 2), teacher(), pick, weights, **settings)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_loss_and_gradients() -> None:
    found = {}
    for device in ("cpu", "cuda"):
        rows, prototypes = (unit(n, n).to(device).requires_grad_() for n in (M, K))
        targets = sinkhorn_targets(unit(TEACHERS, 3).to(device), prototypes, temperature=0.1)
        pick, weights = (side.to(device) for side in draw(2))
        loss = soft_cross_entropy(rows, prototypes, targets, pick, weights, temperature=0.1)
        loss.backward()
        found[device] = [side.detach().cpu() for side in (loss, rows.grad, prototypes.grad)]
    for here, there in zip(found["cpu"], found["cuda"], strict=True):
        assert torch.allclose(here, there, atol=1e-12)
