"""`dinokit adapt` with a tiny model on crops of one photo: what it prints, writes and says when it lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from skimage import data
from typer.testing import CliRunner

from dinov2kit.adapter import load_adapter
from dinov2kit.architectures import ARCHITECTURES, ViTConfig
from dinov2kit.cli.adapt import register
from dinov2kit.cli.app import KitGroup
from dinov2kit.draw import write_image
from dinov2kit.train.adapt_run import AdaptRun

TINY = ViTConfig(embed_dim=64, depth=2, num_heads=2, ffn_hidden=128, pos_grid=4, layer_scale=1.0)
QUICK = [
    "model=untrained:vits14",
    "device=cpu",
    "precision=fp32",
    "size=56",
    "steps=4",
    "batch=1",
    "points=8",
]


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(ARCHITECTURES, "vits14", TINY)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for left in range(0, 400, 80):
        write_image(folder / f"{left}.png", data.coffee()[:80, left : left + 80].copy())
    return folder


def dinokit(*arguments: str) -> Any:
    app = typer.Typer(cls=KitGroup)
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["adapt", *arguments])


def spoil(run: AdaptRun) -> float:
    with torch.no_grad():
        run.adapter.bottleneck_layers[0][0].conv3.norm.bias.fill_(1e6)
    run.step += 1
    run.losses.append(1.0)
    return 1.0


def test_a_run_prints_raw_beside_adapted_and_says_what_was_done() -> None:
    result = dinokit("images=photos/", "out=a.safetensors", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["PCK", "on", "at", "points", "raw", "adapted"]
    card = load_adapter("a.safetensors").card
    for line, measure in zip(lines[1:], card.report["measures"], strict=True):
        for shown in (f"{measure['alpha']:g}", f"{measure['raw']:.3f}", f"{measure['adapted']:.3f}"):
            assert shown in line.split()
        assert line.rstrip().endswith("lost") == (measure["adapted"] < measure["raw"])
    assert "4 steps on 4 photos · loss" in result.stderr
    assert "wrote a.safetensors" in result.stderr


def test_json_holds_the_report_and_quiet_is_quiet() -> None:
    result = dinokit("images=photos", "out=a.safetensors", *QUICK, "--json", "--quiet")
    found = json.loads(result.stdout)
    assert (found["schema"], found["out"], found["steps"]) == ("dinokit.adapt/1", "a.safetensors", 4)
    assert (found["photos"], found["held_out"], found["resumed_at"]) == (4, 1, 0)
    assert [(one["name"], one["alpha"]) for one in found["measures"]] == [
        ("warped", 0.1),
        ("warped", 0.05),
        ("mirrored", 0.1),
        ("mirrored", 0.05),
    ]
    lost = any(one["adapted"] < one["raw"] for one in found["measures"])
    assert found["recommended"] is not lost
    assert bool(result.stderr) is lost


def test_an_adapter_that_lost_is_said_to_have_lost(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(AdaptRun, "update", spoil)
    box, points = [0, 0, 200, 200], [[20.5, 34.5], [48.5, 20.5], [34.5, 48.5]]
    names = {"src": "0.png", "trg": "0.png", "src_kps": points, "trg_kps": points, "trg_bbox": box}
    (tmp_path / "photos" / "pairs.json").write_text(json.dumps([names]))
    result = dinokit("images=photos", "out=a.safetensors", "holdout_pairs=photos/pairs.json", *QUICK)
    assert result.exit_code == 0, result.output
    (pairs, _) = [line for line in result.stdout.splitlines() if line.startswith("marked keypoint pairs")]
    assert pairs.split()[5] == "1.000"
    assert pairs.split()[-1] == "lost"
    assert "warning: the adapter lost to the raw features somewhere: a.safetensors is marked" in result.stderr
    assert not load_adapter("a.safetensors").recommended


def test_a_dry_run_says_the_plan_and_writes_nothing() -> None:
    result = dinokit("images=photos", "out=a.safetensors", *QUICK, "--dry-run")
    assert result.exit_code == 0, result.output
    for said in (
        "untrained:vits14, 64 dims, frozen, fp32 on cpu",
        "numbers, to a.safetensors",
        "4 to learn from, 1 to measure on",
        "4x4 patches",
        "about",
    ):
        assert said in result.stdout
    plan = json.loads(dinokit("images=photos", "out=a.safetensors", *QUICK, "--dry-run", "--json").stdout)
    assert plan["schema"] == "dinokit.adapt-plan/1"
    assert (plan["dim"], plan["cells"], plan["done"], plan["out"]) == (64, 4, 0, "a.safetensors")
    assert plan["parameters"] == 2 * 64 * 16 + 9 * 16 * 16 + 2 * (16 + 16 + 64) + 3
    assert sorted(path.name for path in Path().iterdir()) == ["photos"]


def test_ctrl_c_finishes_the_step_and_saves_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    update = AdaptRun.update

    def interrupted(run: AdaptRun) -> float:
        if run.step == 1:
            signal.raise_signal(signal.SIGINT)
        return update(run)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(AdaptRun, "update", interrupted)
        result = dinokit("images=photos", "out=a.safetensors", *QUICK)
    assert result.exit_code == 130
    assert not Path("a.safetensors").exists()
    assert Path("a.safetensors.unfinished").exists()
    assert signal.getsignal(signal.SIGINT) is before
    again = dinokit("images=photos", "out=a.safetensors", *QUICK, "--json")
    assert json.loads(again.stdout)["resumed_at"] == 2
    assert dinokit("images=photos", "out=b.safetensors", *QUICK).exit_code == 0
    assert load_adapter("a.safetensors").digest == load_adapter("b.safetensors").digest


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["out=a.safetensors"], 2, "images is missing"),
        (["images=photos", "out=a.safetensors", "step=5"], 2, "did you mean steps?"),
        (["images=photos", "out=a.safetensors", "steps=x"], 2, "steps is 'x'; wanted a whole number"),
        (["images=photos", "out=a.pth"], 2, "cannot write an adapter as 'a.pth'"),
        (["images=nowhere", "out=a.safetensors", *QUICK], 3, "no such image or folder: nowhere"),
        (["images=photos", "out=a.safetensors", "model=untrained:vitx"], 4, "unknown model"),
    ],
)
def test_what_makes_no_sense_ends_with_one_line_and_its_exit_code(
    arguments: list[str], code: int, said: str
) -> None:
    result = dinokit(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
