"""Presets: each makes a whole run and says where its numbers are from; released recipes are the release's."""

from pathlib import Path

import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.train import presets
from dinov2kit.train.presets import list_presets, read_preset
from dinov2kit.train.resolved import flat_settings
from dinov2kit.train.schedules import schedule_at
from dinov2kit.train.train_config import TrainConfig, span_steps
from dinov2kit.train.train_settings import read_train_settings, settle

NAMES = [
    "continue",
    "distill",
    "distill-features",
    "gram",
    "highres",
    "small",
    "tiny",
    "vitb",
    "vitg14",
    "vitl14",
    "vitl16-short",
    "vits",
]


def config_of(name: str, *more: str) -> TrainConfig:
    arguments = ["data=photos", "out=run", f"preset={name}", *more]
    if name in ("continue", "gram", "highres"):
        arguments.append("init=vits14")
    return settle(read_train_settings(arguments), images=50_000).config


def test_these_presets_are_there_each_with_a_summary() -> None:
    listed = list_presets()
    assert [preset.name for preset in listed] == NAMES
    for preset in listed:
        assert 30 < len(preset.summary) < 110
        assert not preset.summary.startswith("#")
        assert preset.settings


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_in_its_first_lines_where_its_numbers_are_from(name: str) -> None:
    path = Path(str(presets.__file__)).with_name("presets") / f"{name}.yaml"
    lines = path.read_text("utf-8").splitlines()
    assert all(line.startswith("#") for line in lines[:3])
    assert max(len(line) for line in lines) <= 110


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_makes_a_whole_run_whose_values_are_its_own(name: str) -> None:
    flat = flat_settings(config_of(name))
    for key, written in read_preset(name).settings.items():
        value = written.readings[0]
        assert flat[key] == (tuple(value) if isinstance(value, list) else value), key
    assert sum(flat[key] is not None for key in ("epochs", "images", "steps", "hours")) == 1


@pytest.mark.parametrize(
    ("name", "lr", "batch", "steps", "warmup", "temperature_warmup", "freeze"),
    [
        ("vitl16-short", 5.6568542e-3, 2048, 125_000, 12_500, 37_500, 1_250),
        ("vitl14", 3.4641016e-4, 3072, 625_000, 100_000, 37_500, 1_250),
        ("vitg14", 3.4641016e-4, 3072, 625_000, 100_000, 37_500, 1_250),
    ],
)
def test_the_released_recipes_have_the_released_schedules(
    name: str, lr: float, batch: int, steps: int, warmup: int, temperature_warmup: int, freeze: int
) -> None:
    config = config_of(name)
    assert (config.batch, config.steps) == (batch, steps)
    assert config.peak_lr == pytest.approx(lr, rel=1e-7)
    assert span_steps(config.optim.warmup, steps) == warmup
    assert span_steps(config.teacher.temperature_warmup, steps) == temperature_warmup
    assert span_steps(config.optim.freeze_last_layer, steps) == freeze
    assert schedule_at(config, warmup).lr == pytest.approx(lr, rel=1e-7)
    assert schedule_at(config, steps).lr == 1e-6


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "vitl16-short",
            {
                "model": "vitl16",
                "backbone.ffn": "auto",
                "backbone.drop_path": 0.3,
                "crops.local_size": 96,
                "loss.prototypes": 65536,
                "loss.shared_head": True,
                "loss.centring": "softmax",
                "teacher.momentum": (0.992, 1.0),
                "optim.weight_decay": (0.04, 0.4),
                "optim.layer_decay": 0.9,
            },
        ),
        (
            "vitl14",
            {
                "model": "vitl14",
                "backbone.ffn": "swiglu",
                "backbone.drop_path": 0.4,
                "crops.local_size": 98,
                "loss.prototypes": 131072,
                "loss.ibot_prototypes": 131072,
                "loss.bottleneck": 384,
                "loss.ibot_bottleneck": 256,
                "loss.shared_head": False,
                "loss.centring": "sinkhorn",
                "teacher.momentum": (0.994, 1.0),
                "optim.weight_decay": (0.04, 0.2),
                "optim.layer_decay": 1.0,
            },
        ),
    ],
)
def test_the_released_recipes_are_the_table_of_the_release(name: str, wanted: dict[str, object]) -> None:
    flat = flat_settings(config_of(name))
    for key, value in {
        **wanted,
        "backbone.layer_scale": 1e-5,
        "crops.global_size": 224,
        "crops.local_count": 8,
        "crops.global_scale": (0.32, 1.0),
        "crops.local_scale": (0.05, 0.32),
        "masks.share": 0.5,
        "masks.ratio": (0.1, 0.5),
        "loss.koleo": 0.1,
        "teacher.temperature": (0.04, 0.07),
        "optim.clip": 3.0,
        "optim.patch_embed": 0.2,
        "optim.min_lr": 1e-6,
        "optim.betas": (0.9, 0.999),
        "optim.decay_tokens": True,
    }.items():
        assert flat[key] == value, key


def test_vitg14_is_vitl14_with_another_model() -> None:
    large, giant = read_preset("vitl14").settings, read_preset("vitg14").settings
    assert {key: one.text for key, one in giant.items()} == {
        **{key: one.text for key, one in large.items()},
        "model": "vitg14",
    }


def test_going_on_from_released_weights_is_gentle() -> None:
    config, scratch = config_of("continue"), config_of("vitl16-short")
    assert config.optim.lr == pytest.approx(scratch.optim.lr / 10)
    assert config.peak_lr <= 2e-4 * 1.0001
    assert config.teacher.momentum[0] >= 0.999
    assert config.optim.freeze_backbone == 0.05


def test_going_on_asks_what_to_go_on_from() -> None:
    with pytest.raises(ArgumentError, match=r"wanted init, when optim\.freeze_backbone is set"):
        read_train_settings(["data=photos", "out=run", "preset=continue"])


def test_the_tiny_preset_leaves_a_small_figure_to_see() -> None:
    """docs/decisions.md: what of the recipe for photos kept 24-pixel images from being learned."""
    config = config_of("tiny")
    assert config.peak_lr == pytest.approx(1.5e-3)
    assert (config.model, config.batch, config.loss.prototypes) == ("vitn4", 64, 512)
    assert (config.crops.global_size, config.crops.local_size, config.crops.local_count) == (24, 16, 2)
    assert config.crops.blur_chances == (0, 0, 0)
    assert config.crops.local_scale[0] >= 0.4
    assert config.backbone.layer_scale == 1
    assert config.optim.weight_decay[0] == config.optim.weight_decay[1]
    assert config.scale.compile == "off"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tiney", "did you mean tiny?"), ("zz", "presets are continue, distill, distill-features, gram")],
)
def test_an_unknown_preset_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_preset(name)
    assert caught.value.message == f"unknown preset {name!r}"
    assert hint in str(caught.value.hint)
