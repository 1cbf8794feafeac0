"""Schedules are those of the released code: golden values, and a plain restatement as whole arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from dinov2kit.errors import ArgumentError
from dinov2kit.train.schedules import backbone_frozen, cosine, linear, schedule_at
from dinov2kit.train.train_config import TrainConfig

SHORT = TrainConfig(  # the released short recipe of ViT-L/16: 100 "epochs" of 1,250 steps of 2,048 images
    data="photos",
    out="run",
    steps=125_000,
    batch=2048,
    teacher={"momentum": (0.992, 1.0), "temperature": (0.04, 0.07), "temperature_warmup": 37_500},
    optim={"lr": 4e-3, "warmup": 12_500, "weight_decay": (0.04, 0.4), "freeze_last_layer": 1_250},
)
SHARES = TrainConfig(
    data="photos",
    out="run",
    steps=125_000,
    batch=2048,
    teacher={"momentum": (0.992, 1.0), "temperature": (0.04, 0.07), "temperature_warmup": 0.3},
    optim={"lr": 4e-3, "warmup": 0.1, "weight_decay": (0.04, 0.4), "freeze_last_layer": 0.01},
)


def restated(peak: float, final: float, steps: int, warmup: int, start: float, freeze: int) -> np.ndarray:
    """Build the whole schedule as the released code describes it, in arrays."""
    rise = np.linspace(start, peak, warmup)
    turn = np.arange(steps - warmup - freeze)
    fall = final + 0.5 * (peak - final) * (1 + np.cos(np.pi * turn / max(len(turn), 1)))
    return np.concatenate([np.zeros(freeze), rise, fall])


@pytest.mark.parametrize("config", [SHORT, SHARES], ids=["steps", "shares"])
@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (1, 4.52585e-7),
        (6_250, 0.00282865),
        (12_499, 0.00565685),
        (12_500, 0.00565685),
        (68_750, 0.00282893),
        (124_999, 1.0000011e-6),
        (125_000, 1e-6),
        (200_000, 1e-6),
    ],
)
def test_learning_rates_are_the_golden_ones(config: TrainConfig, step: int, lr: float) -> None:
    assert schedule_at(config, step).lr == pytest.approx(lr, rel=1e-5 if lr > 1.1e-6 else 1e-7)


@pytest.mark.parametrize("config", [SHORT, SHARES], ids=["steps", "shares"])
@pytest.mark.parametrize(
    ("name", "step", "value"),
    [
        ("lr", 0, 0.0),
        ("weight_decay", 0, 0.04),
        ("weight_decay", 62_500, 0.22),
        ("weight_decay", 124_999, 0.39999999994),
        ("weight_decay", 125_000, 0.4),
        ("momentum", 0, 0.992),
        ("momentum", 62_500, 0.996),
        ("momentum", 125_000, 1.0),
        ("temperature", 0, 0.04),
        ("temperature", 18_750, 0.0550004),
        ("temperature", 37_499, 0.07),
        ("temperature", 37_500, 0.07),
        ("temperature", 125_000, 0.07),
        ("last_layer_lr", 1_249, 0.0),
    ],
)
def test_the_other_rates_are_the_golden_ones(config: TrainConfig, name: str, step: int, value: float) -> None:
    assert getattr(schedule_at(config, step), name) == pytest.approx(value, rel=1e-9 if step > 1e5 else 1e-6)


def test_prototypes_join_in_where_the_others_are() -> None:
    joined = schedule_at(SHORT, 1_250)
    assert joined.last_layer_lr == joined.lr == pytest.approx(0.0056568542 * 1_250 / 12_499, rel=1e-8)


@settings(max_examples=60, deadline=None)
@given(some.integers(1, 60), some.data())
def test_a_cosine_is_the_plain_restatement_at_every_step(steps: int, draw: some.DataObject) -> None:
    freeze = draw.draw(some.integers(0, steps))
    warmup = draw.draw(some.integers(0, steps - freeze))
    peak, final, start = (draw.draw(some.floats(0, 2)) for _ in range(3))
    found = [
        cosine(step, peak=peak, final=final, steps=steps, warmup=warmup, start=start, freeze=freeze)
        for step in range(steps)
    ]
    assert found == pytest.approx(restated(peak, final, steps, warmup, start, freeze), rel=1e-12, abs=1e-14)


def test_a_warm_up_longer_than_the_run_is_cut_by_its_end() -> None:
    values = [cosine(step, peak=1.0, final=0.25, steps=5, warmup=11) for step in range(7)]
    assert values == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.25, 0.25])


@pytest.mark.parametrize(
    ("steps", "wanted"), [(0, [0.07, 0.07]), (1, [0.04, 0.07]), (4, [0.04, 0.05, 0.06, 0.07, 0.07])]
)
def test_a_line_includes_both_ends(steps: int, wanted: list[float]) -> None:
    found = [linear(step, start=0.04, final=0.07, steps=steps) for step in range(len(wanted))]
    assert found == pytest.approx(wanted, rel=1e-12)


def test_the_backbone_stands_still_for_its_span() -> None:
    config = TrainConfig(data="a", out="b", steps=40, init="vits14", optim={"freeze_backbone": 0.05})
    assert [backbone_frozen(config, step) for step in range(4)] == [True, True, False, False]


def test_a_run_without_a_length_in_steps_has_no_rates() -> None:
    with pytest.raises(ArgumentError, match="not known in steps"):
        schedule_at(TrainConfig(data="a", out="b", epochs=3), 0)
