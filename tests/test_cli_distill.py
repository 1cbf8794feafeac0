"""`dinokit distill`: what people, programs and careless callers get."""

import json
from pathlib import Path
from typing import Any

from test_cli_train import settings
from typer.testing import CliRunner

from dinov2kit.cli import app, console
from dinov2kit.weights import load_model

runner = CliRunner()
TEACHER = "teacher=untrained:vitn4:1"


def call(out: Path, *words: str, **changes: Any) -> Any:
    given = [word for word in settings(out, **changes) if not word.startswith("model=")]
    return runner.invoke(app, ["distill", *given, *words])


def test_students_side_by_side_each_leave_a_model(tmp_path: Path) -> None:
    result = call(tmp_path / "run", TEACHER, "student=[vitn4,vitn8]", steps=4)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        str(tmp_path / "run" / name / "export" / "teacher.safetensors") for name in ("vitn4", "vitn8")
    ]
    assert load_model(tmp_path / "run/vitn8").vit.config.patch_size == 8
    again = call(tmp_path / "run", TEACHER, "student=[vitn4,vitn8]", "--json", steps=4)
    assert again.stdout.count('"schema": "dinokit.train/1"') == 2


def test_a_dry_run_says_what_is_guessed_and_writes_nothing(tmp_path: Path) -> None:
    result = call(tmp_path / "run", TEACHER, "student=vitn4", "--dry-run", "--json")
    plan = json.loads(result.stdout)
    reasons = {name: facts["why"] for name, facts in plan["settings"].items()}
    assert reasons["distill.class_dim"] == "rule: the teacher has it so"
    assert plan["settings"]["distill.patch_dim"]["value"] == 96
    assert not (tmp_path / "run").exists()


def test_without_a_teacher_it_is_no_distillation(tmp_path: Path) -> None:
    result = call(tmp_path / "run", "student=vitn4")
    assert result.exit_code == console.USAGE
    assert "dinokit train" in result.stderr


def test_the_config_of_a_student_can_be_run_again(tmp_path: Path) -> None:
    call(tmp_path / "run", TEACHER, "student=vitn4", steps=2)
    config = tmp_path / "run" / "config.yaml"
    result = runner.invoke(app, ["distill", f"config={config}", f"out={tmp_path / 'again'}"])
    assert result.exit_code == 0, result.output
    first, second = (load_model(tmp_path / name).weights_sha256 for name in ("run", "again"))
    assert first == second
