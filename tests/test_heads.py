"""The head is the released one in numbers and names, and can be cut into rows and prototypes."""

import numpy as np
import pytest
import torch
from scipy.special import erf

from dinov2kit.errors import ArgumentError
from dinov2kit.train.heads import ProjectionHead


def small(norm: str = "weight", seed: int = 0) -> ProjectionHead:
    head = ProjectionHead(8, 10, hidden=16, bottleneck=6, norm=norm)
    head.init_weights(torch.Generator().manual_seed(seed))
    return head


def waves(head: ProjectionHead) -> ProjectionHead:
    """Fill entry i of the state with 0.3 sin(0.7 place + i), plus 1 for the lengths."""
    state = head.state_dict()
    for number, (name, tensor) in enumerate(state.items()):
        places = np.arange(tensor.numel())
        values = 0.3 * np.sin(0.7 * places + number) + (name == "last_layer.weight_g")
        state[name] = torch.from_numpy(values).float().reshape(tensor.shape)
    head.load_state_dict(state)
    return head


def tokens(n: int = 5, dim: int = 8, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def restated(state: dict[str, torch.Tensor], rows: np.ndarray) -> np.ndarray:
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    for layer in (0, 2, 4):
        rows = rows @ weights[f"mlp.{layer}.weight"].T + weights[f"mlp.{layer}.bias"]
        if layer < 4:
            rows = rows * (1 + erf(rows / np.sqrt(2))) / 2
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if "last_layer.weight" in weights:
        return rows @ weights["last_layer.weight"].T
    directions = weights["last_layer.weight_v"]
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    return rows @ (weights["last_layer.weight_g"] * directions).T


@pytest.mark.parametrize("norm", ["weight", "plain"])
def test_it_is_the_plain_restatement(norm) -> None:
    head, rows = small(norm).double(), tokens().double()
    assert np.allclose(head(rows).detach().numpy(), restated(head.state_dict(), rows.numpy()), atol=1e-14)


def test_the_released_head_gives_these_logits() -> None:
    inputs = torch.from_numpy(np.sin(0.31 * np.arange(16)).reshape(2, 8)).float()
    wanted = [-0.479843, 0.480421, 0.120162, -0.680678, 0.492547, 0.114149, -0.418906, 0.287010, 0.104532]
    assert waves(small())(inputs)[0].tolist() == pytest.approx([*wanted, -0.490617], abs=2e-6)


def test_weights_have_the_released_names() -> None:
    mlp = [f"mlp.{layer}.{part}" for layer in (0, 2, 4) for part in ("weight", "bias")]
    lengths = {name: tuple(tensor.shape) for name, tensor in small().state_dict().items()}
    assert list(lengths) == [*mlp, "last_layer.weight_g", "last_layer.weight_v"]
    assert lengths["last_layer.weight_g"] == (10, 1)
    assert lengths["last_layer.weight_v"] == (10, 6)
    assert list(small("plain").state_dict()) == [*mlp, "last_layer.weight"]
    assert all(parameter.requires_grad for parameter in small().parameters())


@pytest.mark.parametrize("norm", ["weight", "plain"])
def test_logits_are_rows_times_prototypes(norm) -> None:
    head, inputs = waves(small(norm)), tokens()
    rows, prototypes = head.project(inputs)
    assert torch.equal(head(inputs), rows @ prototypes.T)
    assert torch.equal(rows, head.embed(inputs))
    assert torch.equal(prototypes, head.prototypes())
    assert torch.allclose(rows.norm(dim=1), torch.ones(5), atol=1e-6)
    if norm == "plain":
        assert torch.equal(prototypes, head.last_layer.weight)
    else:
        assert torch.allclose(prototypes.norm(dim=1, keepdim=True), head.last_layer.weight_g, atol=1e-6)


def test_the_scale_of_a_direction_does_not_matter() -> None:
    head = small().double()
    before = head.prototypes().detach().clone()
    with torch.no_grad():
        head.last_layer.weight_v *= torch.logspace(-3, 3, 10)[:, None]
    assert torch.allclose(head.prototypes(), before, atol=1e-14)


def test_a_row_of_zeros_stays_zero_and_has_finite_gradients() -> None:
    head = small()
    with torch.no_grad():
        head.mlp[4].weight.zero_()
        head.mlp[4].bias.zero_()
        head.last_layer.weight_v[3] = 0
    logits = head(tokens())
    assert not logits.any()
    logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())


def test_weights_are_drawn_as_released_and_by_the_generator_alone() -> None:
    head = ProjectionHead(64, 4096, hidden=256, bottleneck=100)
    head.init_weights(torch.Generator().manual_seed(3))
    state = head.state_dict()
    for layer in (0, 2, 4):
        weight = state[f"mlp.{layer}.weight"]
        assert not state[f"mlp.{layer}.bias"].any()
        # The spread of a sample of n is off by 1 / sqrt(2 n) of itself: here five times that.
        assert weight.std().item() == pytest.approx(0.02, rel=5 / (2 * weight.numel()) ** 0.5)
    assert torch.equal(state["last_layer.weight_g"], torch.ones(4096, 1))
    assert 0.099 < state["last_layer.weight_v"].abs().max() <= 0.1  # uniform to 1 / sqrt(100)
    torch.manual_seed(99)
    again, other = small(seed=5).state_dict(), small(seed=6).state_dict()
    torch.manual_seed(100)
    assert all(torch.equal(tensor, again[name]) for name, tensor in small(seed=5).state_dict().items())
    assert not torch.equal(again["last_layer.weight_v"], other["last_layer.weight_v"])
    assert not torch.equal(again["mlp.0.weight"], other["mlp.0.weight"])


@pytest.mark.parametrize("norm", ["weight", "plain"])
def test_a_head_made_without_memory_is_drawn_whole(norm) -> None:
    with torch.device("meta"):
        head = ProjectionHead(8, 10, hidden=16, bottleneck=6, norm=norm)
    head.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(torch.nan)
    head.init_weights(torch.Generator().manual_seed(0))
    for name, tensor in small(norm).state_dict().items():
        assert torch.equal(head.state_dict()[name], tensor), name


def test_norms_are_fp32_where_weights_or_autocast_are_bf16() -> None:
    """A quotient in bf16 would be off by up to 2^-8; the lengths are right to fp32."""
    narrow = small().to(torch.bfloat16)
    rows, prototypes = narrow.project(tokens().to(torch.bfloat16))
    assert rows.dtype == prototypes.dtype == torch.float32
    assert torch.allclose(rows.norm(dim=1), torch.ones(5), atol=1e-6)
    assert torch.allclose(prototypes.norm(dim=1), torch.ones(10), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rows, prototypes = small().project(tokens())
    assert torch.allclose(rows.norm(dim=1), torch.ones(5), atol=1e-6)
    assert torch.equal(prototypes, small().prototypes())


def test_another_norm_is_refused() -> None:
    with pytest.raises(ArgumentError, match="unknown norm 'spectral'; wanted one of weight, plain"):
        ProjectionHead(8, 10, norm="spectral")
