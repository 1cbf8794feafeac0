import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from small_run import small_config
from torch import Tensor

from dinov2kit.train.networks import Networks, build_networks
from dinov2kit.train.parallel import World
from dinov2kit.train.ssl_step import StepLosses, Views, step_losses
from dinov2kit.train.train_config import TrainConfig

ALONE = World(torch.device("cpu"))
TEMPERATURE = 0.05


def views(images: int = 3, local: int = 2, masked: bool = True, gram: int = 0) -> Views:
    generator = torch.Generator().manual_seed(3)
    masks = torch.zeros(2 * images, 16, dtype=torch.bool)
    if masked:
        masks[0, :5] = True
        masks[images + 1, 3:4] = True
        masks[2 * images - 1, 8:] = True
    return Views(
        torch.randn(2 * images, 3, 16, 16, generator=generator),
        torch.randn(local * images, 3, 8, 8, generator=generator),
        torch.randn(2 * images, 3, 16 * gram, 16 * gram, generator=generator) if gram else None,
        masks,
    )


def moved(config: TrainConfig) -> Networks:
    """Return networks whose teacher is not the student, and whose LayerScale lets blocks matter."""
    networks = build_networks(config, ALONE, precision="fp32")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in [*networks.student.parameters(), *networks.teacher.parameters()]:
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return networks


def losses(networks: Networks, seen: Views, config: TrainConfig, **settings: Any) -> StepLosses:
    return step_losses(
        networks,
        seen,
        config,
        ALONE,
        temperature=TEMPERATURE,
        generator=torch.Generator().manual_seed(0),
        **settings,
    )


def balanced(logits: Tensor, centre: Tensor | None) -> Tensor:
    """Targets as the paper writes them, in fp64."""
    wide = logits.double()
    if centre is not None:
        return functional.softmax((wide - centre.double()) / TEMPERATURE, dim=1)
    table = torch.exp(wide / TEMPERATURE).T
    table = table / table.sum()
    for _ in range(3):
        table = table / table.sum(dim=1, keepdim=True) / table.shape[0]
        table = table / table.sum(dim=0, keepdim=True) / table.shape[1]
    return (table * table.shape[1]).T


def entropy(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    return -(target * functional.log_softmax(student.double() / temperature, dim=1)).sum(dim=1)


def plainly(networks: Networks, seen: Views, config: TrainConfig) -> Tensor:
    """Return the total of dinov2.md 3.7, term by term and crop by crop, with all logits, in fp64."""
    student, teacher, b = networks.student, networks.teacher, seen.images
    patch_head = "ibot_head" if "ibot_head" in student else "dino_head"
    centres = [None, None]
    if config.loss.centring == "softmax":
        centres = [networks.centres["dino"].centre.clone(), networks.centres["ibot"].centre.clone()]
    with torch.no_grad():
        known = [teacher["backbone"](crop) for crop in seen.global_crops.split(b)]
        target = balanced(teacher["dino_head"](torch.cat([t.class_token for t in known])), centres[0])
        hidden = torch.cat([t.patch_tokens for t in known])[seen.masks]
        patch_target = balanced(teacher[patch_head](hidden), centres[1])
    pairs = zip(seen.global_crops.split(b), seen.masks.split(b), strict=True)
    shown = [student["backbone"](crop, mask) for crop, mask in pairs]
    small = [student["backbone"](crop) for crop in seen.local_crops.split(b)]
    terms, t = 2 * len(small) + 2, config.loss.student_temperature
    total = torch.zeros((), dtype=torch.float64)
    for tokens in small:
        for wanted in target.split(b):
            total = total + entropy(student["dino_head"](tokens.class_token), wanted, t).mean() / terms
    for tokens, wanted in zip(shown, reversed(target.split(b)), strict=True):
        total = total + entropy(student["dino_head"](tokens.class_token), wanted, t).mean() / terms
    for tokens in shown:
        rows = functional.normalize(tokens.class_token.double(), dim=1)
        cosines = (rows @ rows.T).fill_diagonal_(-1)
        apart = (rows - rows[cosines.argmax(dim=1)] + 1e-8).norm(dim=1)
        total = total - config.loss.koleo * (apart + 1e-8).log().mean()
    rows = torch.cat([tokens.patch_tokens for tokens in shown])[seen.masks]
    weights = (1 / seen.masks.sum(dim=1).clamp(min=1))[:, None].expand_as(seen.masks)[seen.masks]
    each = entropy(student[patch_head](rows), patch_target, t)
    return total + config.loss.ibot * (each * weights).sum() / (2 * b)


@pytest.mark.parametrize("centring", ["sinkhorn", "softmax"])
@pytest.mark.parametrize("shared", [True, False])
def test_the_total_and_its_gradients_are_those_of_the_plain_formulas(centring: str, shared: bool) -> None:
    config = small_config("unused", loss={"centring": centring, "shared_head": shared, "koleo": 0.3})
    networks, seen = moved(config), views()
    with torch.no_grad():
        networks.centres["dino"].centre += torch.linspace(-0.2, 0.2, 32)
        networks.centres["ibot"].centre += torch.linspace(0.3, -0.1, 32)
    wanted = plainly(networks, seen, config)
    wanted.backward()
    plain = {name: p.grad.clone() for name, p in networks.student.named_parameters() if p.grad is not None}
    networks.student.zero_grad()
    found = losses(networks, seen, config)
    found.total.backward()
    assert found.total.item() == pytest.approx(wanted.item(), abs=1e-5)
    for name, parameter in networks.student.named_parameters():
        if name in plain:
            assert parameter.grad is not None, name
            np.testing.assert_allclose(parameter.grad, plain[name], rtol=1e-3, atol=2e-6, err_msg=name)


def test_terms_are_means_so_that_a_uniform_student_has_ln_k() -> None:
    config = small_config("unused", loss={"student_temperature": 1e6})
    found = losses(moved(config), views(), config)
    for name in ("dino_local", "dino_global"):
        assert float(found.terms[name]) == pytest.approx(math.log(32), abs=1e-3)
    assert float(found.terms["masked"]) == pytest.approx(3 / 6)
    assert float(found.terms["ibot"] / found.terms["masked"]) == pytest.approx(math.log(32), abs=1e-3)


def test_no_masked_patch_leaves_the_patch_loss_at_zero_and_finite() -> None:
    config = small_config("unused")
    networks = moved(config)
    found = losses(networks, views(masked=False), config)
    found.total.backward()
    assert float(found.terms["ibot"]) == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in networks.student.parameters())


def test_no_gradient_reaches_the_teacher() -> None:
    config = small_config("unused", loss={"gram": 1.0})
    networks = moved(config)
    losses(networks, views(gram=1), config).total.backward()
    frozen = [*networks.teacher.parameters(), *networks.gram_teacher.parameters()]  # type: ignore[union-attr]
    assert all(parameter.grad is None for parameter in frozen)


@pytest.mark.parametrize("scale", [1, 2])
def test_the_gram_loss_compares_cosines_of_patches_with_the_gram_teacher(scale: int) -> None:
    config = small_config("unused", loss={"gram": 2.0, "gram_scale": scale})
    networks, seen = moved(config), views(gram=scale)
    found = losses(networks, seen, config)
    with torch.no_grad():
        student = networks.student["backbone"](seen.global_crops, seen.masks).patch_tokens
        known = networks.gram_teacher(seen.gram_crops).patch_tokens  # type: ignore[misc]
        if scale == 2:
            grid = known.transpose(1, 2).reshape(len(known), -1, 8, 8)
            known = functional.interpolate(grid, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
        alike = [functional.normalize(x.double(), dim=2) for x in (student, known)]
        wanted = (alike[0] @ alike[0].mT - alike[1] @ alike[1].mT).square().mean()
    assert float(found.terms["gram"]) == pytest.approx(float(wanted), abs=1e-6)
    without = losses(networks, seen, config, gram=False)
    assert (found.total - without.total).item() == pytest.approx(2 * wanted.item(), abs=1e-5)


def test_the_teacher_follows_by_its_momentum() -> None:
    networks = moved(small_config("unused"))
    before = {name: value.clone() for name, value in networks.teacher.state_dict().items()}
    networks.follow(0.75)
    for name, value in networks.teacher.state_dict().items():
        wanted = 0.75 * before[name] + 0.25 * networks.student.state_dict()[name]
        torch.testing.assert_close(value, wanted)


def test_student_and_teacher_start_equal_and_depend_on_the_seed_alone() -> None:
    first, again = (build_networks(small_config("unused"), ALONE, precision="fp32") for _ in range(2))
    other = build_networks(small_config("unused", seed=1), ALONE, precision="fp32")
    for name, value in first.student.state_dict().items():
        assert torch.equal(value, first.teacher.state_dict()[name])
        assert torch.equal(value, again.student.state_dict()[name])
    assert not torch.equal(first.student["backbone"].pos_embed, other.student["backbone"].pos_embed)
    assert json.dumps(list(first.notes)) == json.dumps(["all weights are drawn from the seed"])
