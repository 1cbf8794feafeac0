"""`dinokit eval knn`: what people, programs and careless callers get."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app


class DeviceEncoder(ColourEncoder):
    """Knows where it computes, as the real one does."""

    device = "cpu"


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", "knn", *map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """Return four voters for each of two classes, and four images to classify; one of them looks wrong."""
    monkeypatch.setattr("dinov2kit.encoder.Encoder", DeviceEncoder)
    monkeypatch.chdir(tmp_path)
    for number in range(4):
        paint(tmp_path / f"set/train/red/{number}.png", (250 - number, 0, 0))
        paint(tmp_path / f"set/train/blue/{number}.png", (0, 0, 250 - number))
    for label, colours in {"red": [(250, 0, 5), (250, 5, 0)], "blue": [(0, 5, 250), (250, 9, 0)]}.items():
        for number, colour in enumerate(colours):
            paint(tmp_path / f"set/val/{label}/{number}.png", colour)
    return tmp_path / "set"


def test_a_pipe_gets_a_table_with_tabs_and_people_get_a_word(root) -> None:
    result = evaluate("--root", root, "-k", "1", "-k", "4", "--shots", "2", "--tries", "2", "--workers", "0")
    assert result.exit_code == 0
    assert [line.split("\t") for line in result.stdout.splitlines()] == [
        ["bank", "k", "top-1", "top-5", "class mean"],
        ["all", "1", "75.00", "75.00", "75.00"],
        ["all", "4", "75.00", "75.00", "75.00"],
        ["2 per class", "1", *["75.00±0.00"] * 3],
        ["2 per class", "2", *["75.00±0.00"] * 3],
    ]
    said = "8 images vote on 4, 2 classes · colour, 3 dims · best: k 1, top-1 75.00"
    assert result.stderr.splitlines() == [said]


def test_json_is_the_report_and_two_folders_are_as_good_as_one(root, tmp_path) -> None:
    out = tmp_path / "report.json"
    options = ("-k", "3", "--temperature", "0.2", "--json", "--quiet", "--workers", "0")
    result = evaluate("--train", root / "train", "--val", root / "val", "--out", out, *options)
    document = json.loads(result.stdout)
    assert document == json.loads(out.read_text())
    assert (document["schema"], document["temperature"]) == ("dinokit.eval-knn/1", 0.2)
    assert result.stderr == ""
    one = json.loads(evaluate("--root", root, "--cache", tmp_path / "cache", *options).stdout)
    assert one["knn"] == document["knn"]
    assert list((tmp_path / "cache").iterdir())
    assert evaluate("--root", root, "-k", "3", "--out", out).exit_code == console.USAGE
    assert evaluate("--root", root, "-k", "3", "--out", out, "--overwrite", "--workers", "0").exit_code == 0


def test_unreadable_images_are_warned_of_and_strict_exits_1(root) -> None:
    (root / "train/red/bad.jpg").write_bytes(b"rubbish")
    result = evaluate("--root", root, "-k", "3", "--workers", "0", "--strict")
    assert result.exit_code == console.FAILURE
    assert "warning: left out" in result.stderr
    assert result.stdout.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], console.USAGE, "give --root DIR, or --train DIR --val DIR"),
        (["--train", "set/train"], console.USAGE, "give --root DIR, or --train DIR --val DIR"),
        (["--root", "nowhere"], console.INPUT, "nowhere"),
        (["--root", "set"], console.USAGE, "k is 10, but the bank has only 8 images"),
        (["--root", "set", "-k", "9"], console.USAGE, "k is 9, but the bank has only 8 images"),
        (["--train", "set/train", "--val", "set/train"], console.USAGE, "would vote for themselves"),
        (["--root", "set", "--temperature", "0"], console.USAGE, "temperature is 0"),
    ],
)
def test_bad_questions_are_one_clear_error(root, arguments, code, said) -> None:
    result = evaluate(*arguments)
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
