import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_run import SMALL
from typer.testing import CliRunner

from dinov2kit import Encoder
from dinov2kit.cli import app
from dinov2kit.train.metrics import read_metrics
from dinov2kit.train.run_record import read_record

runner = CliRunner()


def settings(out: Path, **changes: Any) -> list[str]:
    """Return the settings of a small run as they are typed."""
    merged = {**SMALL, "out": str(out), **changes}
    words = []
    for name, value in merged.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, each in inner.items():
            text = each if isinstance(each, str) else json.dumps(each)
            words.append(f"{name}{'.' if key else ''}{key}={text}")
    return words


def call(*words: str) -> Any:
    return runner.invoke(app, ["train", *words])


def test_a_run_ends_with_a_model_that_every_command_takes(tmp_path: Path) -> None:
    result = call(*settings(tmp_path / "run", steps=4))
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "run" / "export" / "teacher.safetensors")
    assert "finished after 4 of 4 steps" in result.stderr
    encoder = Encoder(str(tmp_path / "run"))
    assert encoder.dim == 96
    again = call(*settings(tmp_path / "run", steps=4), "--json")
    facts = json.loads(again.stdout)
    assert (facts["schema"], facts["state"], facts["resumed_at"]) == ("dinokit.train/1", "finished", 4)


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    result = call(*settings(tmp_path / "run"), "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["schema"] == "dinokit.train-plan/1"
    assert (plan["steps"], plan["batch"], plan["images"], plan["held_out"]) == (10, 8, 56, 8)
    assert plan["settings"]["batch"] == {"value": 8, "why": "given"}
    shown = call(*settings(tmp_path / "run"), "--dry-run")
    assert "8 = 8 at once x 1" in shown.stdout
    assert "scale.micro_batch" in shown.stdout
    assert not (tmp_path / "run").exists()


def test_presets_are_listed() -> None:
    result = call("--presets", "--json")
    names = [preset["name"] for preset in json.loads(result.stdout)["presets"]]
    assert {"tiny", "small", "vits", "vitb", "vitl16-short", "vitl14", "vitg14", "continue", "highres"} < set(
        names
    )
    assert "released short recipe" in call("--presets").stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["out=x"], 2, "data is missing"),
        (["data=drawn-shapes", "out=x", "optim.lrr=1"], 2, "did you mean optim.lr"),
        (["data=nowhere", "out=x"], 3, "no such image, folder or archive: nowhere"),
        (["data=drawn-shapes", "out=x", "model=vitx14"], 4, "vitx14"),
        (["data=drawn-shapes", "out=x", "device=xpu"], 5, "xpu"),
        (["data=drawn-shapes", "out=x", "init=nowhere.pth", "steps=1"], 4, "nowhere.pth"),
        (["data=drawn-shapes", "out=x", "--slurm", "knots=4"], 2, "knots=4"),
    ],
)
def test_mistakes_are_said_before_anything_is_done(
    words: list[str], code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*words)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert not (tmp_path / "x" / "checkpoints").exists()


def test_slurm_gets_a_file(tmp_path: Path) -> None:
    result = call(*settings(tmp_path / "run"), "--slurm", "nodes=2,gpus=4,time=8h", "--json")
    facts = json.loads(result.stdout)
    assert facts["schema"] == "dinokit.train-job/1"
    text = Path(facts["file"]).read_text()
    assert "#SBATCH --nodes=2" in text
    assert f"out={tmp_path / 'run'}" in text
    assert call(*settings(tmp_path / "run", steps=1)).exit_code == 0  # the file is no other run


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_a_signal_finishes_the_step_saves_and_the_command_goes_on(tmp_path: Path, number: int) -> None:
    words = settings(
        tmp_path / "run", steps=100_000, eval={"every": 0}, checkpoint={"every": None}, log_every=1
    )
    command = [sys.executable, "-m", "dinov2kit.cli", "train", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic() + 60
    while time.monotonic() < waited and not (tmp_path / "run" / "metrics.jsonl").is_file():
        time.sleep(0.1)
    while time.monotonic() < waited and len(read_metrics(tmp_path / "run")) < 3:
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said
    record = read_record(tmp_path / "run")
    assert record["state"] == "stopped"
    assert record["step"] == read_metrics(tmp_path / "run")[-1]["step"] >= 2


@pytest.mark.slow
def test_several_processes_of_this_machine_form_one_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dinov2kit.cli",
            "train",
            *settings(tmp_path / "run", steps=2),
            "--nproc",
            "2",
            "--json",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["step"] == 2  # one process speaks
    assert read_record(tmp_path / "run")["world"] == 2
    refused = subprocess.run(
        [
            sys.executable,
            "-m",
            "dinov2kit.cli",
            "train",
            *settings(tmp_path / "other", batch=3),
            "--nproc",
            "2",
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert refused.returncode == 2
    assert "a batch of 3 cannot be shared by 2 processes" in refused.stderr
