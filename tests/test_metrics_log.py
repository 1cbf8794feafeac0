"""metrics.jsonl: strict JSON whatever is measured, whole after a kill, equal to that of a straight run."""

import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from dinov2kit.errors import ArgumentError, DependencyError
from dinov2kit.train import metrics
from dinov2kit.train.metrics import MetricsLog, open_sinks, read_metrics


def line(step: int, kind: str = "train", **numbers: object) -> dict[str, object]:
    return {"kind": kind, "step": step, "images": 64 * step, "time": 1e9 + step, **numbers}


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_a_line_is_read_as_it_was_written(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        said = log.append(
            {"loss": 6.5, "grad_norm": {"backbone": 0.25}, "kind": "train", "step": 20, "images": 9}
        )
        assert read_metrics(tmp_path) == [said]  # at once, not when it is closed
        log.append(line(40, "eval", knn=0.5, knn_kind="labels"))
    (first, second) = read_metrics(tmp_path)
    assert list(first)[:4] == ["kind", "step", "images", "time"]
    assert first["grad_norm"] == {"backbone": 0.25}
    assert first["time"] > 1.7e9
    assert (second["knn"], second["knn_kind"], second["time"]) == (0.5, "labels", 1e9 + 40)


def test_what_is_not_finite_is_null_and_named(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.append(
            line(1, loss=math.nan, lr=np.float32(0.5), koleo=torch.tensor(-math.inf), epoch=np.int64(3))
            | {"grad_norm": {"backbone": np.float64("inf"), "dino_head": 1.0}}
        )
        log.append(line(2, loss=1.0))
    texts = (tmp_path / "metrics.jsonl").read_text().splitlines()
    (spoilt, good) = (json.loads(text, parse_constant=refuse) for text in texts)
    assert spoilt["not_finite"] == ["loss", "koleo", "grad_norm/backbone"]
    assert (spoilt["loss"], spoilt["koleo"], spoilt["grad_norm"]) == (
        None,
        None,
        {"backbone": None, "dino_head": 1.0},
    )
    assert (spoilt["lr"], spoilt["epoch"]) == (0.5, 3)
    assert "not_finite" not in good


def test_a_resumed_log_is_that_of_a_straight_run_byte_for_byte(tmp_path: Path) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    lines = [line(step, kind, loss=step / 3) for step in range(0, 60, 10) for kind in ("train", "eval")]
    for run in (straight, broken):
        run.mkdir()
        with MetricsLog(run) as log:
            for one in lines[:9]:  # up to the train line of step 40
                log.append(one)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 50, "lo')  # killed here
    with MetricsLog.open(broken, 20) as log:
        assert [one["step"] for one in log.recent] == [0, 10, 20, 0, 10, 20]
        for one in lines[6:]:
            log.append(one)
    with MetricsLog(straight) as log:
        for one in lines[9:]:
            log.append(one)
    assert (broken / "metrics.jsonl").read_bytes() == (straight / "metrics.jsonl").read_bytes()
    assert read_metrics(straight) == lines
    assert [path.name for path in broken.iterdir()] == ["metrics.jsonl"]


def test_a_torn_last_line_is_left_out_and_another_damaged_one_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(line(1)) + "\n"
    for torn in ("", "{", '{"kind": "train", "step": 2, "images": 128}'):  # the last lacks its end of line
        path.write_text(whole + torn)
        assert [one["step"] for one in read_metrics(tmp_path)] == [1]
    with MetricsLog(tmp_path) as log:
        log.append(line(3))
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 3]
    path.write_text(whole + "{\n" + whole)
    with pytest.raises(ArgumentError, match="line 2 is no line of metrics"):
        read_metrics(tmp_path)
    MetricsLog.open(tmp_path, 1).close()  # a damaged log keeps no run from going on
    assert [one["step"] for one in read_metrics(tmp_path)] == [1, 1]


def test_the_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsLog(tmp_path) as log:
        for step in (1, 2, 3):
            log.append(line(step))
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        )
        with pytest.raises(ArgumentError, match="No space left"):
            MetricsLog.open(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    stamp = (tmp_path / "metrics.jsonl").stat().st_ino
    MetricsLog.open(tmp_path, 3).close()
    assert (tmp_path / "metrics.jsonl").stat().st_ino == stamp  # nothing to drop: not touched


def test_recent_keeps_all_but_old_lines_of_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "RECENT", 3)
    with MetricsLog(tmp_path) as log:
        for step in range(6):
            log.append(line(step))
            log.append(line(step, "eval"))
        recent = log.recent
    assert [(one["kind"], one["step"]) for one in recent] == [
        *(("eval", step) for step in range(6)),
        *(("train", step) for step in (3, 4, 5)),
    ]
    with MetricsLog.open(tmp_path, 5) as again:
        assert again.recent == recent


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kind": "test", "step": 1, "images": 1}, "unknown kind of line 'test'"),
        ({"step": 1, "images": 1}, "unknown kind of line None"),
        ({"kind": "train", "loss": 1.0}, "without step and images"),
    ],
)
def test_a_line_that_says_too_little_is_refused(tmp_path: Path, wrong: dict[str, object], said: str) -> None:
    with MetricsLog(tmp_path) as log, pytest.raises(ArgumentError, match=said):
        log.append(wrong)
    assert read_metrics(tmp_path) == []


def test_a_run_without_a_log_has_no_lines_and_one_without_a_folder_cannot_have_any(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []
    with pytest.raises(ArgumentError, match="cannot write"):
        MetricsLog(tmp_path / "nowhere")


LINE = line(
    7, loss=0.5, not_finite=["koleo"], koleo=None, grad_norm={"backbone": 2.0, "ibot_head": 3}, note="x"
)


def test_tensorboard_gets_the_numbers_of_a_line_by_flat_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    class SummaryWriter:
        def __init__(self, folder: str, purge_step: int | None) -> None:
            seen.append((folder, purge_step))

        def add_scalar(self, name: str, value: float, step: int, walltime: float) -> None:
            seen.append((name, value, step, walltime))

        def flush(self) -> None:
            seen.append("flush")

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    (sink,) = open_sinks(["tensorboard"], tmp_path, resume_step=6)
    sink(LINE)
    assert seen == [
        (str(tmp_path / "tensorboard"), 7),
        ("train/loss", 0.5, 7, 1e9 + 7),
        ("train/grad_norm/backbone", 2.0, 7, 1e9 + 7),
        ("train/grad_norm/ibot_head", 3.0, 7, 1e9 + 7),
        "flush",
    ]


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, object]] = []
    logged: list[object] = []

    def init(**settings: object) -> object:
        begun.append(settings)
        return types.SimpleNamespace(log=lambda numbers, step: logged.append((numbers, step)))

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    for run in ("a", "a", "b"):
        (sink,) = open_sinks(["wandb", "wandb"], tmp_path / run)
        sink(LINE)
    assert [settings["name"] for settings in begun] == ["a", "a", "b"]
    assert begun[0] == begun[1]
    assert begun[0]["id"] != begun[2]["id"]
    assert all(settings["resume"] == "allow" for settings in begun)
    numbers = {"train/loss": 0.5, "train/grad_norm/backbone": 2.0, "train/grad_norm/ibot_head": 3.0}
    assert logged[0] == ({"images": 448, **numbers}, 7)


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DependencyError, match=module) as caught:
        open_sinks([name], tmp_path)
    assert caught.value.hint == f"pip install 'dinov2kit[{name}]'"
    with pytest.raises(ArgumentError, match="unknown place for metrics 'mlflow'"):
        open_sinks([name, "mlflow"], tmp_path)
    assert list(tmp_path.iterdir()) == []
