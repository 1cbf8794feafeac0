import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_run import small_config

from dinov2kit.errors import ArgumentError, KitError
from dinov2kit.train.fitting import fit
from dinov2kit.train.metrics import read_metrics
from dinov2kit.train.parallel import World
from dinov2kit.train.run_checkpoints import find_checkpoints, load_checkpoint
from dinov2kit.train.run_config import read_run_config
from dinov2kit.train.run_record import read_record
from dinov2kit.train.train_report import TrainProgress
from dinov2kit.train.trainer import SpoiltError, Trainer

FORK = multiprocessing.get_context("fork")
ONE_THREAD = pytest.mark.skipif(torch.get_num_threads() > 1, reason="a fork needs torch on one thread")
CLOCKS = {"time", "images_per_second", "data_wait", "memory_bytes", "seconds"}


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the last checkpoint of a run."""
    config = read_run_config(run)
    trainer = Trainer(config, World(torch.device("cpu")), precision="fp32")
    load_checkpoint(find_checkpoints(run)[-1], trainer.networks, trainer.optimizer, world=trainer.world)
    found = {
        f"{part}.{name}": value
        for part, module in trainer.networks.parts()
        for name, value in module.state_dict().items()
    }
    for name, parameter in trainer.networks.student.named_parameters():
        moments = trainer.optimizer.state[parameter]
        found |= {f"{moment}.{name}": value for moment, value in moments.items()}
    return found


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in read_metrics(run)]


def kill_at(step: int) -> Callable[[TrainProgress], None]:
    def watch(progress: TrainProgress) -> None:
        if progress.step >= step and progress.stage == "train":
            os.kill(os.getpid(), signal.SIGKILL)

    return watch


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@ONE_THREAD
@pytest.mark.parametrize("centring", ["sinkhorn", "softmax"])
def test_a_killed_run_ends_as_if_it_had_never_been_killed(tmp_path: Path, centring: str) -> None:
    """Ten steps, and five steps, two more that are lost, SIGKILL, five steps: equal to the bit."""
    changes: dict[str, Any] = {"loss": {"centring": centring}, "backbone": {"drop_path": 0.2}}
    straight, killed = (small_config(tmp_path / name, **changes) for name in ("straight", "killed"))
    report = fit(straight)
    assert (report.state, report.step, report.resumed_at) == ("finished", 10, 0)
    process = FORK.Process(target=fit, args=(killed,), kwargs={"watch": kill_at(7)})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [saved.step for saved in find_checkpoints(killed.out)] == [5]
    report = fit(killed)
    assert (report.state, report.step, report.resumed_at) == ("finished", 10, 5)
    assert_equal(weights_of(killed.out), weights_of(straight.out))
    assert lines_of(killed.out) == lines_of(straight.out)


def test_a_stopped_run_saves_and_goes_on(tmp_path: Path) -> None:
    straight, stopped = small_config(tmp_path / "a"), small_config(tmp_path / "b", log_every=4)
    fit(small_config(tmp_path / "a", log_every=4))
    seen: list[int] = []
    report = fit(stopped, watch=lambda progress: seen.append(progress.step), stop=lambda: seen[-1] >= 3)
    assert (report.state, report.step) == ("stopped", 3)
    assert read_record(stopped.out)["state"] == "stopped"
    report = fit(stopped)
    assert (report.state, report.resumed_at) == ("finished", 3)
    assert_equal(weights_of(stopped.out), weights_of(straight.out))
    assert lines_of(stopped.out) == lines_of(straight.out)  # also the line that was begun before the stop


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", steps=2, eval={"every": 1})
    fit(config)
    before = {path: path.stat().st_mtime_ns for path in (config.out / "checkpoints").rglob("*.distcp")}
    report = fit(config)
    assert (report.state, report.resumed_at, report.step) == ("finished", 2, 2)
    assert {
        path: path.stat().st_mtime_ns for path in (config.out / "checkpoints").rglob("*.distcp")
    } == before
    assert report.knn is not None


def test_a_run_learns_something_and_says_what_it_sees(tmp_path: Path) -> None:
    config = small_config(
        tmp_path / "run", data="drawn-shapes:256", steps=40, log_every=5, eval={"holdout": 40, "every": 20}
    )
    report = fit(config)
    lines = read_metrics(config.out)
    train = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train] == list(range(5, 41, 5))
    assert train[0]["images"] == 40
    assert train[-1]["loss_over_lnk"] < 0.9 * train[0]["loss_over_lnk"]
    assert train[-1]["momentum"] > train[0]["momentum"] >= 0.9
    assert train[-1]["temperature"] == pytest.approx(0.07)
    assert 0 < train[0]["lr"] <= 1e-2
    assert set(train[0]["grad_norm"]) == {"backbone", "dino_head"}
    assert 0 < train[-1]["target_entropy"] < np.log(32)
    measured = [line for line in lines if line["kind"] == "eval"]
    assert [line["step"] for line in measured] == [0, 20, 40]
    assert {line["knn_kind"] for line in measured} == {"labels"}
    assert measured[0]["knn_pixels"] > 0
    assert report.knn == measured[-1]["knn"]
    assert report.images == 320
    record = read_record(config.out)
    assert (record["state"], record["step"], record["steps"], record["images"]) == ("finished", 40, 40, 216)


def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", steps=2)
    fit(config)
    before = (config.out / "metrics.jsonl").read_bytes()
    with pytest.raises(ArgumentError, match=r"optim\.lr was 0\.01, now 0\.02") as caught:
        fit(small_config(tmp_path / "run", steps=2, optim={"lr": 0.02}))
    assert "overwrite=true" in str(caught.value.hint)
    with pytest.raises(ArgumentError, match="the images differ: 56 then, 72 now"):
        fit(small_config(tmp_path / "run", steps=2, data="drawn-shapes:80"))
    assert (config.out / "metrics.jsonl").read_bytes() == before
    report = fit(small_config(tmp_path / "run", steps=2, optim={"lr": 0.02}, overwrite=True))
    assert (report.resumed_at, report.step) == (0, 2)


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ArgumentError, match=r"is no run, and holds thesis\.tex"):
        fit(small_config(tmp_path, overwrite=True))
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_a_run_that_is_running_is_not_run_twice(tmp_path: Path) -> None:
    config = small_config(tmp_path / "run", steps=2)

    def meddle(progress: TrainProgress) -> None:
        if progress.step == 1:
            fit(config)

    with pytest.raises(ArgumentError, match="another process trains"):
        fit(config, watch=meddle)
    assert read_record(config.out)["state"] == "failed"


def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dinov2kit.train import trainer as module

    honest = module.step_losses

    def spoil(*arguments: Any, **settings: Any) -> Any:
        losses = honest(*arguments, **settings)
        return type(losses)(losses.total * float("nan"), losses.terms, losses.targets, losses.known)

    config = small_config(tmp_path / "run")
    seen: list[TrainProgress] = []
    monkeypatch.setattr(module, "step_losses", spoil)
    with pytest.raises(SpoiltError, match="3 steps in a row"):
        fit(config, watch=seen.append)
    (file,) = (config.out / "nan").iterdir()
    facts = torch.load(file)
    assert facts["step"] == 2
    assert facts["samples"] == [list(range(16, 24))]
    record = read_record(config.out)
    assert record["state"] == "failed"
    assert "not finite" in record["error"]


def test_one_spoilt_step_is_left_out_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dinov2kit.train import trainer as module

    honest, calls = module.step_losses, iter(range(100))

    def spoil(*arguments: Any, **settings: Any) -> Any:
        losses = honest(*arguments, **settings)
        factor = float("nan") if next(calls) == 1 else 1.0
        return type(losses)(losses.total * factor, losses.terms, losses.targets, losses.known)

    monkeypatch.setattr(module, "step_losses", spoil)
    config = small_config(tmp_path / "run", steps=3)
    assert fit(config).state == "finished"
    assert all(value.isfinite().all() for value in weights_of(config.out).values())


def test_accumulation_is_one_large_batch_where_no_target_depends_on_the_batch(tmp_path: Path) -> None:
    """Without KoLeo and with a centre that stands still, the gradient of four parts is that of the whole."""
    changes: dict[str, Any] = {"steps": 1, "loss": {"koleo": 0.0, "centring": "softmax"}}
    whole = small_config(tmp_path / "whole", **changes)
    parts = small_config(tmp_path / "parts", **changes, scale={"micro_batch": 2})
    fit(whole)
    fit(parts)
    wanted, found = weights_of(whole.out), weights_of(parts.out)
    for name, value in wanted.items():  # after one step the first moment is a tenth of the gradient
        if name.startswith("exp_avg."):
            np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-8, err_msg=name)


def test_the_config_of_a_run_can_be_run_again(tmp_path: Path) -> None:
    from dinov2kit.train.train_settings import read_train_settings

    config = small_config(tmp_path / "run", steps=2)
    fit(config)
    again = read_train_settings([f"config={config.out / 'config.yaml'}", f"out={tmp_path / 'again'}"])
    fit(again)
    assert_equal(weights_of(again.config.out), weights_of(config.out))
    reasons = (config.out / "resolved.txt").read_text()
    assert "scale.micro_batch" in reasons
    assert json.loads((config.out / "run.json").read_text())["schema"] == "dinokit.run/1"


def test_failures_of_the_disk_are_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(KitError, match="file"):
        fit(small_config(tmp_path / "file" / "run"))


def test_a_planted_collapse_raises_the_alarm(tmp_path: Path) -> None:
    """A teacher so warm that all its targets are flat teaches the student to be flat."""
    said: list[str] = []
    changes: dict[str, Any] = {
        "steps": 60,
        "log_every": 4,
        "loss": {"centring": "softmax", "koleo": 0.0},
        "teacher": {"temperature": [5.0, 5.0]},
        "optim": {"lr": 3e-3},
        "eval": {"every": 30},
    }
    fit(small_config(tmp_path / "run", **changes), watch=lambda progress: said.extend(progress.diagnoses))
    codes = {line["code"] for line in read_metrics(tmp_path / "run") if line["kind"] == "diagnosis"}
    assert "student-uniform" in codes
    assert any("ln K = 3.466" in sentence for sentence in said)
    healthy = small_config(tmp_path / "healthy", steps=60, log_every=4, optim={"lr": 3e-3})
    fit(healthy)
    codes = {line["code"] for line in read_metrics(healthy.out) if line["kind"] == "diagnosis"}
    assert "student-uniform" not in codes
