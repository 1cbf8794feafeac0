"""`dinokit runs`: what it prints in a pipe, on a terminal and as JSON, how it follows, and how it fails."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import typer
from filelock import FileLock
from typer.testing import CliRunner

from dinov2kit import train
from dinov2kit.cli import console
from dinov2kit.cli.app import KitGroup
from dinov2kit.cli.runs import register
from dinov2kit.errors import WeightsError
from dinov2kit.train import runs as runs_module
from dinov2kit.train.metrics import MetricsLog
from dinov2kit.train.run_record import write_record

SENTENCE, REMEDY = "kNN fell [badly]", "lower optim.lr"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_run(run: str, *, state: str = "running", wrong: bool = False) -> Path:
    path = Path(run)
    path.mkdir(parents=True)
    facts = {"model": "vits14", "steps": 1000, "batch": 64, "pid": os.getpid(), "host": socket.gethostname()}
    write_record(path, state=state, step=200, **facts)
    with MetricsLog(path) as log:
        for step in (100, 200):
            numbers = {"loss": 12.5, "loss_over_lnk": 0.9812, "images_per_second": 128.0}
            log.append({"kind": "train", "step": step, "images": 64 * step, **numbers})
        for step, knn in ((0, 0.156), (100, 0.42), (200, 0.31)):
            place = {"kind": "eval", "step": step, "images": 64 * step}
            log.append({**place, "knn": knn, "knn_kind": "labels", "rankme": 24.5})
        if wrong:
            place = {"kind": "diagnosis", "step": 200, "images": 0}
            said = {"code": "student-uniform", "sentence": SENTENCE, "remedy": REMEDY, "cleared": False}
            log.append({**place, **said})
    return path


def dinokit(*arguments: str) -> Any:
    app = typer.Typer(cls=KitGroup)
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["runs", *arguments])


def test_the_list_is_one_line_of_tabs_for_each_run() -> None:
    write_run("runs/b", state="finished")
    write_run("runs/a", wrong=True)
    result = dinokit("list", "runs")
    assert result.exit_code == 0, result.output
    assert [line.split("\t") for line in result.stdout.splitlines()] == [
        ["runs/a", "running", "200", "1000", "0.9812", "0.4200", "0.3100", "student-uniform"],
        ["runs/b", "finished", "200", "1000", "0.9812", "0.4200", "0.3100", ""],
    ]
    assert dinokit("list").stdout == result.stdout  # the current folder
    Path("empty").mkdir()
    nothing = dinokit("list", "empty")
    assert (nothing.exit_code, nothing.stdout) == (0, "")


def test_the_list_is_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    write_run("runs/a", wrong=True)
    write_record(Path("runs/a"), steps=600)
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "80")
    (head, row) = dinokit("list").stdout.splitlines()
    assert re.split(r"\s{2,}", head.strip())[:3] == ["run", "state", "done"]
    said = ["runs/a", "running", "33%", "3", "min", "128", "0.981", "42.0%", "student-uniform"]
    assert row.split() == said  # left: 400 steps of 64 at 128/s


def test_json_has_every_fact(folder: Path) -> None:
    run = write_run("runs/a", wrong=True)
    document = json.loads(dinokit("list", "runs", "--json").stdout)
    assert (document["schema"], document["root"]) == ("dinokit.runs/1", "runs")
    (listed,) = document["runs"]
    one = json.loads(dinokit("status", "runs/a", "--json").stdout)
    assert one.pop("schema") == "dinokit.run-status/1"
    assert one == listed
    assert (one["run"], one["state"], one["step"], one["steps"]) == ("runs/a", "running", 200, 1000)
    assert (one["knn"], one["best_knn"]) == ({"value": 0.31, "step": 200}, {"value": 0.42, "step": 100})
    assert one["diagnoses"] == [
        {"code": "student-uniform", "step": 200, "sentence": SENTENCE, "remedy": REMEDY}
    ]
    assert one["nbytes"] == sum(path.stat().st_size for path in run.iterdir())


def test_the_status_says_in_words_what_is_known() -> None:
    run = write_run("runs/a", wrong=True)
    (run / "export").mkdir()
    (run / "export" / "teacher.safetensors").write_bytes(bytes(2_000_000))
    result = dinokit("status", "runs/a")
    assert result.exit_code == 0, result.output
    said = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in result.stdout.splitlines())
    assert said["state"] == "running"
    assert said["steps"] == "200 of 1,000, 20.0%"
    assert said["images seen"] == "12,800"
    assert said["speed"] == "128 images/s, about 7 min left"  # 800 steps of 64 at 128/s
    assert said["loss"] == "12.5000; DINO 0.9812 of ln K"
    assert said["kNN"] == "31.0% at step 200; best 42.0% at step 100"
    assert said["RankMe"] == "24.5"
    assert said["export"] == "runs/a/export/teacher.safetensors"
    assert said["on disk"] == "2.0 MB"
    assert said["wrong"] == f"since step 200: {SENTENCE}"
    assert said["remedy"] == REMEDY


def test_the_status_of_a_failed_and_of_a_damaged_run() -> None:
    write_run("runs/a")
    write_record(Path("runs/a"), state="failed", error="out of memory on cuda")
    said = dinokit("status", "runs/a").stdout
    assert "failed: out of memory on cuda" in said
    assert "left" not in said
    Path("runs/a/run.json").write_text("{")
    result = dinokit("status", "runs/a")
    assert result.exit_code == 0
    assert re.search(r"^unreadable +runs/a/run.json is damaged", result.stdout, re.M)


def advance(run: Path, monkeypatch: pytest.MonkeyPatch, *, interrupt: bool = False) -> list[float]:
    """Let a run go on whenever somebody waits for it: nothing new, one line, the end."""
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if interrupt:
            raise KeyboardInterrupt
        if len(waits) == 2:
            with MetricsLog(run) as log:
                log.append({"kind": "train", "step": 300, "images": 19200})
        if len(waits) == 3:
            write_record(run, state="finished", step=1000)

    monkeypatch.setattr(runs_module, "time", types.SimpleNamespace(sleep=wait, time=runs_module.time.time))
    return waits


def test_following_prints_a_line_whenever_something_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run("runs/a")
    waits = advance(run, monkeypatch)
    with FileLock(run / "run.lock"):
        result = dinokit("status", "runs/a", "--follow")
    assert result.exit_code == 0, result.output
    assert [line.split("\t")[1:3] for line in result.stdout.splitlines()] == [
        ["running", "200"],
        ["running", "300"],
        ["finished", "1000"],
    ]
    assert waits == [2.0] * 3


def test_following_as_json_is_one_document_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    advance(write_run("runs/a"), monkeypatch)
    result = dinokit("status", "runs/a", "--follow", "--json")
    documents = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["step"] for one in documents] == [200, 300, 1000]
    assert {one["schema"] for one in documents} == {"dinokit.run-status/1"}


def test_following_on_a_terminal_ends_with_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    advance(write_run("runs/a", wrong=True), monkeypatch)
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    result = dinokit("status", "runs/a", "-f")
    assert result.exit_code == 0, result.output
    last = result.stdout.rsplit("state", 1)[1]
    assert "finished" in last
    assert "1,000 of 1,000, 100.0%" in last
    assert SENTENCE in last  # brackets are no markup


def test_ctrl_c_ends_following_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    advance(write_run("runs/a"), monkeypatch, interrupt=True)
    result = dinokit("status", "runs/a", "--follow")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert result.stdout.startswith("runs/a\trunning\t200")


def test_plot_and_export_hand_over_what_was_asked_and_print_what_was_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def draw_curves(runs: list[Path], out: Path) -> Path:
        asked.append((runs, out))
        return out

    def export_run(run: Path, *, to: str, out: Path, overwrite: bool) -> Path:
        asked.append((run, to, out, overwrite))
        return out

    monkeypatch.setattr(train, "draw_curves", draw_curves, raising=False)
    monkeypatch.setattr(train, "export_run", export_run, raising=False)
    assert dinokit("plot", "runs/a", "runs/b", "--out", "c.svg").stdout == "c.svg\n"
    assert dinokit("plot", "runs/a").stdout == "curves.png\n"
    assert dinokit("export", "runs/a", "--to", "hf", "--out", "mine", "--overwrite").stdout == "mine\n"
    assert dinokit("export", "runs/a", "--to", "onnx", "-o", "a.onnx").stdout == "a.onnx\n"
    assert asked == [
        ([Path("runs/a"), Path("runs/b")], Path("c.svg")),
        ([Path("runs/a")], Path("curves.png")),
        (Path("runs/a"), "hf", Path("mine"), True),
        (Path("runs/a"), "onnx", Path("a.onnx"), False),
    ]

    def fail(*_: Any, **__: Any) -> Path:
        raise WeightsError("runs/a has no export yet", hint="wait")

    monkeypatch.setattr(train, "export_run", fail, raising=False)
    result = dinokit("export", "runs/a", "--to", "hf", "--out", "mine")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "no export yet" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["status", "nowhere"], "nowhere is no run"),
        (["list", "nowhere"], "no such folder: nowhere"),
        (["plot", "nowhere"], "nowhere has no metrics yet"),
        (["plot"], "Missing argument"),
        (["plot", "a", "--out", "a.gif"], "cannot draw"),
        (["export", "a", "--to", "timm", "--out", "b"], "timm"),
    ],
)
def test_what_makes_no_sense_ends_with_2_and_a_reason(arguments: list[str], said: str, folder: Path) -> None:
    result = dinokit(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert list(folder.iterdir()) == []


def test_every_command_has_an_example() -> None:
    for command in ("list", "status", "plot", "export"):
        assert f"Example: dinokit runs {command}" in dinokit(command, "--help").stdout


def test_help_and_list_do_not_load_torch() -> None:
    write_run("runs/a")
    program = (
        "import sys, typer; from dinov2kit.cli.runs import register;"
        "app = typer.Typer(); app.callback()(lambda: None); register(app);"
        "app(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    )
    for arguments in (["runs", "--help"], ["runs", "list", "--json"], ["runs", "status", "runs/a"]):
        command = [sys.executable, "-c", program, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "False"
