"""What `dinokit train --dry-run` says, beside what happens; every command of the pages can be planned."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from small_run import small_config

from dinov2kit.errors import ArgumentError, DeviceMemoryError
from dinov2kit.train import plan as module
from dinov2kit.train.fitting import fit
from dinov2kit.train.metrics import read_metrics
from dinov2kit.train.plan import TrainPlan, plan_training
from dinov2kit.train.presets import list_presets
from dinov2kit.train.train_settings import read_distill_settings, read_train_settings

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


def planned(out: Path, **changes: Any) -> TrainPlan:
    return plan_training(small_config(out, **changes))


def test_the_plan_says_what_the_run_does(tmp_path: Path) -> None:
    config = small_config(
        tmp_path / "run", steps=30, batch=32, data="drawn-shapes:640", eval={"every": 0, "holdout": 0}
    )
    plan = plan_training(config)
    assert not (tmp_path / "run").exists()
    assert (plan.images, plan.held_out, plan.batch, plan.steps, plan.done) == (640, 0, 32, 30, 0)
    assert plan.epochs == pytest.approx(1.5)
    assert plan.micro_batch * plan.micro_batches == 32
    assert plan.measured
    report = fit(config)
    lines = [line for line in read_metrics(config.out) if line["kind"] == "train"]
    assert plan.memory_bytes == pytest.approx(lines[-1]["memory_bytes"], rel=0.25)
    speed = max(line["images_per_second"] for line in lines)
    assert 0.2 < plan.images_per_second / speed < 5  # steps of 50 ms on a machine that others use too
    newest = (config.out / "checkpoints" / "latest").resolve()
    size = sum(file.stat().st_size for file in newest.iterdir())
    per_checkpoint = (plan.disk_bytes - plan.parameters * 4) / 4
    assert per_checkpoint == pytest.approx(size, rel=0.35)
    assert plan_training(config).done == report.step == 30


def test_every_setting_stands_in_the_plan_with_its_reason(tmp_path: Path) -> None:
    plan = planned(tmp_path / "run")
    reasons = {name: why for name, _, why in plan.settings}
    assert reasons["batch"] == "given"
    assert reasons["scale.micro_batch"].startswith("rule: the whole share")
    assert reasons["preset"] == "rule: drawn shapes"
    assert plan.to_json()["settings"]["optim.lr"] == {"value": 0.01, "why": "given"}  # type: ignore[index]


def test_a_length_in_hours_becomes_steps_by_the_measured_speed(tmp_path: Path) -> None:
    plan = planned(tmp_path / "run", steps=None, hours=0.01)
    assert plan.measured
    assert plan.seconds == pytest.approx(36, rel=0.1)
    reasons = {name: why for name, _, why in plan.settings}
    assert reasons["steps"].startswith("rule: 0.01 hours at")


def test_what_would_take_long_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MEASURED_SECONDS", 0.0)
    plan = planned(tmp_path / "run")
    assert not plan.measured
    assert plan.memory_bytes > 20 * plan.parameters
    assert plan.seconds > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 10}, "10 steps are few"),
        ({"data": "drawn-shapes:500", "steps": 10}, "only"),
        ({"optim": {"warmup": 1.0}}, "never leaves its warm-up"),
        ({}, "images are few to learn from scratch"),
    ],
)
def test_what_will_go_wrong_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert any(said in warning for warning in planned(tmp_path / "run", **changes).warnings)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"crops": {"global_size": 18}}, "images of 18 pixels cannot be cut into patches of 4"),
        ({"crops": {"local_size": 6}}, r"crops\.local_size is 6, which patches of 4 do not fill"),
        ({"scale": {"micro_batch": 3}}, r"scale\.micro_batch is 3, which does not divide the 8 images"),
        ({"model": "vitx14"}, "vitx14"),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_done(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(Exception, match=complaint):
        planned(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_fit_is_accumulated_and_one_image_too_many_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinov2kit.train import run_setup

    needed = planned(tmp_path / "run", batch=32).micro_batch
    assert needed == 32
    whole = run_setup.count_costs(small_config("x", batch=32), micro_batch=32, precision="fp32").memory_bytes
    monkeypatch.setattr(run_setup, "free_memory", lambda device: int(whole))
    plan = planned(tmp_path / "run", batch=32)
    assert plan.micro_batch < 32
    assert plan.micro_batch * plan.micro_batches == 32
    for place in (run_setup, module):
        monkeypatch.setattr(place, "free_memory", lambda device: 1000)
    plan = planned(tmp_path / "run", batch=32)
    assert plan.micro_batch == 1
    assert any("GB are needed" in said for said in plan.warnings)
    with pytest.raises(DeviceMemoryError, match="one image at a time"):
        fit(small_config(tmp_path / "run", batch=32))
    assert not (tmp_path / "run").exists()


def commands(command: str = "train") -> list[list[str]]:
    """Return the settings of every `dinokit train`, or of another command, that a page shows."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for block in re.findall(r"^```(?:bash|console)[^\n]*\n(.*?)^```", text, re.M | re.S):
            for line in block.splitlines():
                words = shlex.split(line.partition("  #")[0].removeprefix("$ "))
                if command in words and {"dinokit", "dinov2kit.cli"} & set(words):
                    settings = [word for word in words[words.index(command) + 1 :] if "=" in word]
                    settings = [word for word in settings if re.match(r"[a-z_.]+=", word)]
                    found.append([word for word in settings if not word.startswith(("nodes=",))])
    return [settings for settings in found if settings]


SHOWN = commands() + [
    [f"preset={preset.name}", "data=photos", "out=runs/p"]
    + (["init=runs/a"] if preset.name in ("continue", "highres") else [])
    for preset in list_presets()
]


@pytest.mark.parametrize("settings", SHOWN, ids=lambda settings: " ".join(settings)[:60])
def test_every_command_and_preset_of_the_pages_can_be_planned(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images are drawn ones, and nothing is measured: it is the settings that are tried."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_MEASURED_SECONDS", 0.0)
    given = [word for word in settings if not word.startswith("data=")]
    plan = plan_training(read_train_settings([*given, "data=drawn-shapes:300"]))
    assert plan.steps >= 1
    assert plan.flops_per_step > 0
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("settings", commands("distill"), ids=lambda settings: " ".join(settings)[:60])
def test_every_distillation_of_the_pages_can_be_planned(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is a small one of no training, since the real ones would have to be fetched or made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_MEASURED_SECONDS", 0.0)
    given = [word for word in settings if not word.startswith(("data=", "teacher=", "config="))]
    for student in read_distill_settings([*given, "data=drawn-shapes:300", "teacher=untrained:vitn14"]):
        plan = plan_training(student)
        assert plan.steps >= 1
        assert {name: value for name, value, _ in plan.settings}["distill.by"] == "features"
    assert not (tmp_path / "runs").exists()


def test_the_pages_show_commands() -> None:
    assert len(commands()) >= 8
    assert len(commands("distill")) >= 4
    with pytest.raises(ArgumentError):
        read_train_settings(["data=x", "out=y", "preset=none-such"])
