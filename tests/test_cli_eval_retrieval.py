"""`dinokit eval retrieval`: what people, programs and careless callers get."""

import json
from pathlib import Path

import pytest
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from small_index import make_index
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app

PLACES = {  # name: place, green
    "a1.png": ("a", 0),
    "a2.png": ("a", 40),
    "b1.png": ("b", 30),
    "b2.png": ("b", 200),
}


def evaluate(*arguments: object, **settings: object) -> Result:
    return CliRunner().invoke(app, ["eval", "retrieval", *map(str, arguments)], **settings)


@pytest.fixture
def table(tmp_path, monkeypatch) -> Path:
    """Return a table of four images of two places whose nearest are all of the other place."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    monkeypatch.setattr("dinov2kit.encoder.Encoder", ColourEncoder)
    for name, (_, green) in PLACES.items():
        paint(tmp_path / name, (200, green, 0))
    rows = "".join(f"{name},{place}\n" for name, (place, _) in PLACES.items())
    (tmp_path / "set.csv").write_text("path,label\n" + rows)
    return tmp_path / "set.csv"


def test_a_pipe_gets_a_table_with_tabs_and_people_get_a_word(table) -> None:
    result = evaluate("csv", "--root", table, "--workers", "0", "-k", "1", "-k", "2")
    assert result.exit_code == 0
    head, row = (line.split("\t") for line in result.stdout.splitlines())
    assert head == ["setup", "queries", "mAP", "MAP@R", "R@1", "R@2"]
    # first ranks: a1 finds b1, a2; a2 finds b1, a1; b1 finds a2, a1, b2; b2 finds a2, b1
    assert row == ["all", "4", f"{100 * (1 / 2 + 1 / 2 + 1 / 3 + 1 / 2) / 4:.2f}", "0.00", "0.00", "75.00"]
    (said,) = result.stderr.splitlines()
    assert said.startswith("4 queries, 4 images of csv · colour, 3 dims · all pairs: µAP ")
    assert evaluate("csv", "--root", table, "--workers", "0", "--quiet").stderr == ""


def test_json_is_the_report_and_out_the_same(table, tmp_path) -> None:
    out = tmp_path / "report.json"
    result = evaluate("csv", "--root", table, "--workers", "0", "--json", "--out", out)
    document = json.loads(result.stdout)
    assert document == json.loads(out.read_text())
    assert document["schema"] == "dinokit.eval-retrieval/1"
    assert document["setups"]["all"]["n"] == 4
    assert f"wrote {out}" in result.stderr
    again = evaluate("csv", "--root", table, "--out", out)
    assert again.exit_code == console.USAGE
    assert "exists already" in again.stderr
    options = ("--limit", "2", "--seed", "1", "--cache", tmp_path / "cache", "--overwrite", "--json")
    drawn = json.loads(evaluate("csv", "--root", table, "--workers", "0", "--out", out, *options).stdout)
    assert [drawn[key] for key in ("limit", "seed", "n_queries")] == [2, 1, 2]
    assert list((tmp_path / "cache").iterdir())


def test_a_terminal_sees_the_groups_too(table, monkeypatch) -> None:
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    result = evaluate("csv", "--root", table, "--workers", "0", env={"COLUMNS": "100"})
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[0] for line in lines] == ["setup", "all", "a", "b"]
    assert lines[2][1:3] == ["2", "50.00"]


def test_unreadable_images_are_warned_of_and_strict_exits_1(table) -> None:
    (table.parent / "bad.jpg").write_bytes(b"rubbish")
    with table.open("a") as file:
        file.write("bad.jpg,a\n")
    result = evaluate("csv", "--root", table, "--workers", "0")
    assert result.exit_code == 0
    assert "warning: left out" in result.stderr
    assert "bad.jpg" in result.stderr
    assert evaluate("csv", "--root", table, "--workers", "0", "--strict").exit_code == console.FAILURE


def test_an_index_is_measured_for_people_and_for_programs(table, tmp_path) -> None:
    directory = make_index(tmp_path / "ix", 25)
    result = evaluate("index", "-i", directory, "-k", "1", "-k", "5")
    head, row = (line.split("\t") for line in result.stdout.splitlines())
    assert head == ["search", "recall@1", "recall@5", "qps", "qps batch", "ms", "ms p95"]
    assert row[:3] == ["exact", "1.0000", "1.0000"]
    assert "25 x 8 · exact · 0.0 MB in memory" in result.stderr
    document = json.loads(evaluate("index", "-i", directory, "--limit", "7", "--json").stdout)
    assert document["schema"] == "dinokit.eval-index/1"
    assert (document["index"], document["queries"]) == (str(directory), 7)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["oxford", "--root", "."], console.USAGE, "unknown data set 'oxford'"),
        (["folders"], console.USAGE, "where is folders?"),
        (["folders", "--root", "nowhere"], console.INPUT, "no such folder"),
        (["roxford5k", "--root", "."], console.INPUT, "gnd_roxford5k.pkl"),
        (["folders", "--root", ".", "-i", "ix"], console.USAGE, "--index makes no sense"),
        (["folders", "--root", ".", "--nprobe", "3"], console.USAGE, "--nprobe makes no sense"),
        (["index", "--root", "."], console.USAGE, "--root makes no sense"),
        (["index", "-i", "nowhere"], console.INDEX, "there is no index"),
        (["csv", "--root", "set.csv", "-k", "0"], console.USAGE, "k is 0"),
        ([], console.USAGE, "SET"),
    ],
)
def test_bad_questions_are_one_clear_error(table, monkeypatch, arguments, code, said) -> None:
    monkeypatch.chdir(table.parent)
    result = evaluate(*arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
