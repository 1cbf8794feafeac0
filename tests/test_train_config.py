"""Settings of a training run: spans, learning rate rules, what contradicts itself, what changes learning."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dinov2kit.train.train_config import TrainConfig, span_steps


def run(**settings: object) -> TrainConfig:
    return TrainConfig.model_validate({"data": "photos", "out": "runs/a", **settings})


@pytest.mark.parametrize(
    ("span", "steps", "wanted"),
    [
        (1.0, 500, 500),
        (1, 500, 1),
        (0.0, 500, 0),
        (0, 500, 0),
        (0.1, 125_000, 12_500),
        (0.3, 37, 11),
        (99, 5, 99),
    ],
)
def test_a_float_is_a_share_and_an_int_is_steps(span: float | int, steps: int, wanted: int) -> None:
    assert span_steps(span, steps) == wanted


@pytest.mark.parametrize("span", [1.0, 1, 0.0, 0, 0.25, 12_500])
def test_a_span_stays_what_it_was_through_json_and_a_copy(span: float | int) -> None:
    config = run(optim={"warmup": span})
    for again in (
        config,
        TrainConfig.model_validate_json(config.model_dump_json(), strict=True),
        TrainConfig.model_validate(config.model_dump()),
    ):
        assert again.optim.warmup == span
        assert type(again.optim.warmup) is type(span)


@pytest.mark.parametrize(
    ("rule", "batch", "peak"),
    [
        ("sqrt", 2048, 0.0056568542),
        ("sqrt", 1024, 0.004),
        ("sqrt", 64, 0.001),
        ("linear", 256, 0.001),
        ("linear", 2048, 0.008),
        ("none", 64, 0.004),
    ],
)
def test_the_batch_makes_the_learning_rate_by_the_rule(rule: str, batch: int, peak: float) -> None:
    assert run(batch=batch, optim={"lr": 4e-3, "lr_rule": rule}).peak_lr == pytest.approx(peak, rel=1e-8)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 3, "steps": 10}, "one length of the run, not epochs=3 and steps=10"),
        ({"data": []}, "at least one source"),
        ({"batch": 0}, "greater than or equal to 1"),
        ({"optim": {"warmup": 1.5}}, "a share of the run from 0.0 to 1.0, or a whole number of steps"),
        ({"optim": {"warmup": -3}}, "a share of the run"),
        ({"optim": {"freeze_backbone": 0.1}}, "init, when optim.freeze_backbone is set"),
        ({"crops": {"global_scale": (0.9, 0.3)}}, "global_scale from small to large"),
        ({"crops": {"local_scale": (0.0, 0.3)}}, "local_scale from small to large and above 0"),
        ({"masks": {"ratio": (0.5, 0.1)}}, "a ratio from small to large"),
        ({"loss": {"prototypes": 8}}, "equal prototypes and bottleneck for a shared head"),
        ({"loss": {"ibot_bottleneck": 8}}, "or shared_head=false"),
        ({"loss": {"dino": 0, "ibot": 0}}, "nothing is learned"),
        ({"loss": {"gram_every": 0}}, "gram_every above 0"),
        ({"loss": {"gram_scale": 3}}, "Input should be 1 or 2"),
        ({"reading": {"window": (5, 5)}}, "a window from low to high"),
        (
            {"reading": {"channels": 1, "mean": (0.5, 0.5, 0.5)}},
            "as many values in mean as there are channels: 1",
        ),
        ({"checkpoint": {"every": 0.0}}, "every above 0"),
        ({"batch": 8, "scale": {"micro_batch": 9}}, "at most the batch, 8, not 9"),
        ({"optim": {"lr": float("nan")}}, "finite"),
        ({"optim": {"lr": 0}}, "greater than 0"),
        ({"optim": {"learning_rate": 1}}, "Extra inputs are not permitted"),
    ],
)
def test_what_contradicts_itself_is_refused_with_what_to_do(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        run(**settings)
    assert said in str(caught.value)


def test_a_separate_head_has_numbers_of_its_own() -> None:
    loss = {"shared_head": False, "prototypes": 64, "ibot_prototypes": 32, "bottleneck": 16}
    assert run(loss=loss).loss.ibot_prototypes == 32


def test_blur_is_that_of_the_released_code_unless_as_written() -> None:
    assert run().crops.blur_chances == (0.0, 0.9, 0.5)
    assert run(crops={"blur": "written"}).crops.blur_chances == (1.0, 0.1, 0.5)


def test_one_source_or_several() -> None:
    assert run().sources == [Path("photos")]
    assert run(data=["a", "drawn-shapes:500"]).sources == [Path("a"), Path("drawn-shapes:500")]


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({"out": "runs/b"}, False),
        ({"data": "elsewhere"}, False),
        ({"device": "cpu"}, False),
        ({"log_every": 3}, False),
        ({"checkpoint": {"keep_last": 9}}, False),
        ({"reading": {"workers": 3}}, False),
        ({"scale": {"micro_batch": 4}}, False),
        ({"eval": {"every": 0.5}}, False),
        ({"seed": 1}, True),
        ({"steps": 7}, True),
        ({"batch": 7}, True),
        ({"model": "vitb14"}, True),
        ({"optim": {"lr": 1e-3}}, True),
        ({"crops": {"blur": "written"}}, True),
        ({"reading": {"window": (0, 9)}}, True),
        ({"scale": {"precision": "fp32"}}, True),
        ({"eval": {"holdout": 0}}, True),
    ],
)
def test_only_some_settings_change_what_is_learned(settings: dict[str, object], counts: bool) -> None:
    assert (run(**settings).learning() != run().learning()) == counts
