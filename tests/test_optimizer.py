"""Parameter groups have the factors of the released code, AdamW follows them, clipping is by module."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from dinov2kit.architectures import ARCHITECTURES, ViTConfig
from dinov2kit.train.heads import ProjectionHead
from dinov2kit.train.optimizer import (
    build_optimizer,
    clip_by_module,
    decays,
    lr_factors,
    parameter_groups,
    set_rates,
)
from dinov2kit.train.schedules import Rates
from dinov2kit.train.train_config import TrainConfig
from dinov2kit.vit import VisionTransformer

CONFIG = TrainConfig(data="photos", out="run", optim={"layer_decay": 0.9, "patch_embed": 0.2})
RATES = Rates(lr=0.01, last_layer_lr=0.003, weight_decay=0.3, momentum=0.99, temperature=0.05)
BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


@pytest.fixture(scope="module")
def vit_small() -> VisionTransformer:
    with torch.device("meta"):
        return VisionTransformer(ARCHITECTURES["vits14_reg"])


def student(seed: int = 0) -> dict[str, nn.Module]:
    torch.manual_seed(seed)
    shape = ViTConfig(
        embed_dim=12, depth=2, num_heads=2, ffn_hidden=24, num_registers=1, patch_size=4, pos_grid=2
    )
    return {
        "backbone": VisionTransformer(shape),
        "dino_head": ProjectionHead(12, 10, hidden=8, bottleneck=6),
        "ibot_head": ProjectionHead(12, 7, hidden=8, bottleneck=6),
    }


def fill_gradients(modules: dict[str, nn.Module], scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(5)
    for module in modules.values():
        for parameter in module.parameters():
            parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def values(modules: dict[str, nn.Module]) -> dict[str, np.ndarray]:
    return {
        f"{name}.{inner}": parameter.detach().double().numpy().copy()
        for name, module in modules.items()
        for inner, parameter in module.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("cls_token", 0.254187),
        ("pos_embed", 0.254187),
        ("register_tokens", 0.254187),
        ("mask_token", 0.254187),
        ("patch_embed.proj.weight", 0.050837),
        ("patch_embed.proj.bias", 0.050837),
        ("blocks.0.norm1.weight", 0.28243),
        ("blocks.0.attn.qkv.weight", 0.28243),
        ("blocks.1.mlp.fc1.bias", 0.313811),
        ("blocks.10.mlp.fc1.weight", 0.81),
        ("blocks.11.ls2.gamma", 0.9),
        ("norm.weight", 1.0),
        ("norm.bias", 1.0),
    ],
)
def test_learning_rates_of_vit_small_have_the_golden_factors(
    vit_small: VisionTransformer, name: str, factor: float
) -> None:
    factors = lr_factors(vit_small, layer_decay=0.9, patch_embed=0.2)
    assert factors[name] == pytest.approx(factor, rel=2e-5)


def test_vit_small_has_28_groups_and_every_head_three_of_its_own(vit_small: VisionTransformer) -> None:
    heads = {name: student()[name] for name in ("dino_head", "ibot_head")}
    groups = parameter_groups({"backbone": vit_small, **heads}, CONFIG)
    assert [group["backbone"] for group in groups] == [True] * 28 + [False] * 6
    of_heads = [(group["lr_factor"], group["decay_factor"], group["last_layer"]) for group in groups[28:]]
    assert of_heads == [(1.0, 1.0, False), (1.0, 0.0, False), (1.0, 1.0, True)] * 2
    grouped = [id(parameter) for group in groups for parameter in group["params"]]  # type: ignore[attr-defined]
    everything = [id(p) for module in (vit_small, *heads.values()) for p in module.parameters()]
    assert sorted(grouped) == sorted(everything)


@pytest.mark.parametrize(
    ("name", "released", "spared"),
    [
        ("blocks.3.attn.qkv.weight", True, True),
        ("patch_embed.proj.weight", True, True),
        ("last_layer.weight_v", True, True),
        ("cls_token", True, False),
        ("pos_embed", True, False),
        ("register_tokens", True, False),
        ("mask_token", True, False),
        ("last_layer.weight_g", True, False),
        ("blocks.3.attn.qkv.bias", False, False),
        ("blocks.3.norm1.weight", False, False),
        ("blocks.3.ls1.gamma", False, False),
        ("norm.weight", False, False),
    ],
)
def test_tokens_decay_as_released_unless_they_are_spared(name: str, released: bool, spared: bool) -> None:
    assert (decays(name, decay_tokens=True), decays(name, decay_tokens=False)) == (released, spared)


def test_two_updates_are_adamw_in_plain_numpy_with_the_factors_of_each_parameter() -> None:
    modules = student()
    optimizer = build_optimizer(modules, CONFIG)
    weights = values(modules)
    fill_gradients(modules)
    gradients = {
        f"{name}.{inner}": p.grad.double().numpy()
        for name, module in modules.items()
        for inner, p in module.named_parameters()
        if p.grad is not None
    }
    factors = lr_factors(modules["backbone"], layer_decay=0.9, patch_embed=0.2)
    for _ in range(2):
        set_rates(optimizer, RATES, backbone_frozen=False)
        optimizer.step()
    for key, weight in weights.items():
        inner = key.partition(".")[2]
        lr = RATES.last_layer_lr if "last_layer" in inner else RATES.lr
        lr *= factors[inner] if key.startswith("backbone.") else 1.0
        decay = 0.0 if inner.endswith("bias") or "norm" in inner or "gamma" in inner else 0.3
        first, second = np.zeros_like(weight), np.zeros_like(weight)
        for update in (1, 2):
            first = BETA1 * first + (1 - BETA1) * gradients[key]
            second = BETA2 * second + (1 - BETA2) * gradients[key] ** 2
            step = first / (1 - BETA1**update) / (np.sqrt(second / (1 - BETA2**update)) + EPS)
            weight = weight * (1 - lr * decay) - lr * step
        assert values(modules)[key] == pytest.approx(weight, rel=1e-5, abs=1e-6), key


def test_a_frozen_backbone_keeps_every_bit_while_the_heads_learn() -> None:
    modules = student()
    optimizer = build_optimizer(modules, CONFIG)
    before = values(modules)
    fill_gradients(modules)
    set_rates(optimizer, RATES, backbone_frozen=True)
    optimizer.step()
    after = values(modules)
    for key in before:
        assert np.array_equal(before[key], after[key]) == key.startswith("backbone."), key


def test_parameters_that_do_not_learn_are_in_no_group() -> None:
    modules = student()
    modules["backbone"].requires_grad_(False)
    assert not any(group["backbone"] for group in parameter_groups(modules, CONFIG))


def oracle_norm(module: nn.Module) -> float:
    squares = [(p.grad.double().numpy() ** 2).sum() for p in module.parameters() if p.grad is not None]
    return float(np.sqrt(np.sum(squares)))


def test_each_module_is_clipped_by_its_own_norm() -> None:
    modules = student()
    fill_gradients(modules)
    for parameter in modules["ibot_head"].parameters():
        assert parameter.grad is not None
        parameter.grad *= 1e-3
    wanted = {name: oracle_norm(module) for name, module in modules.items()}
    assert wanted["ibot_head"] < 3 < wanted["dino_head"]
    norms = clip_by_module(modules, 3.0)
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(wanted, rel=1e-6)
    after = {name: oracle_norm(module) for name, module in modules.items()}
    short = wanted["ibot_head"]
    assert after == pytest.approx({"backbone": 3.0, "dino_head": 3.0, "ibot_head": short}, rel=1e-5)


def test_a_limit_of_0_measures_alone_and_a_module_without_gradients_has_norm_0() -> None:
    modules = student()
    fill_gradients(modules, scale=50.0)
    for parameter in modules["ibot_head"].parameters():
        parameter.grad = None
    wanted = {name: oracle_norm(module) for name, module in modules.items()}
    norms = clip_by_module(modules, 0.0)
    assert {name: norm.item() for name, norm in norms.items()} == pytest.approx(wanted, rel=1e-6)
    assert oracle_norm(modules["backbone"]) == wanted["backbone"] > 1000
    assert norms["ibot_head"].item() == 0


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_sharded_modules_are_clipped_and_updated_like_whole_ones() -> None:
    def learned(modules: dict[str, nn.Module]) -> tuple[dict[str, Tensor], list[Tensor]]:
        optimizer = build_optimizer(modules, CONFIG)
        whole = student()
        fill_gradients(whole)
        for name, module in modules.items():
            for parameter, other in zip(module.parameters(), whole[name].parameters(), strict=True):
                assert other.grad is not None
                parameter.grad = (
                    DTensor.from_local(other.grad, parameter.device_mesh, parameter.placements)
                    if isinstance(parameter, DTensor)
                    else other.grad
                )
        norms = clip_by_module(modules, 3.0)
        set_rates(optimizer, RATES, backbone_frozen=False)
        optimizer.step()
        parameters = [p for module in modules.values() for p in module.parameters()]
        return norms, [p.full_tensor() if isinstance(p, DTensor) else p for p in parameters]

    sharded = student()
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    for module in sharded.values():
        fully_shard(module, mesh=mesh)
    assert all(isinstance(p, DTensor) for module in sharded.values() for p in module.parameters())
    norms, weights = learned(sharded)
    norms_of_whole, weights_of_whole = learned(student())
    for name, norm in norms.items():
        assert type(norm) is Tensor
        assert norm.item() == pytest.approx(norms_of_whole[name].item(), rel=1e-6)
    for ours, wanted in zip(weights, weights_of_whole, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-7)
