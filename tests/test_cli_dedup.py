"""`dinokit dedup`: every output for people and for programs, the way of a plan, and how bad questions end."""

import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from colour_encoder import ColourEncoder
from copies_of_photos import framed, photo, resized, write
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.cli.dedup import FOUND
from dinov2kit.indexes import index_photos


def dedup(*arguments: object, **settings: object) -> Result:
    return CliRunner().invoke(app, ["dedup", *map(str, arguments)], **settings)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Four photos, two of them copies, in an index that is found by itself."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    photos = tmp_path / "photos"
    write(photos / "cat.png", photo("cat"))
    write(photos / "copy of cat.png", photo("cat"))
    write(photos / "small.jpg", resized(photo("cat")), 85)
    write(photos / "coffee.jpg", photo("coffee"))
    index_photos(tmp_path / "ix", [photos], encoder=ColourEncoder())
    monkeypatch.chdir(tmp_path)
    return photos


def test_a_pipe_gets_a_line_per_photo_and_people_get_a_word_on_stderr(folder):
    result = dedup("--workers", 0)
    assert result.exit_code == 0
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [(row[0], row[1], row[5]) for row in rows] == [
        ("1", "keep", str(folder / "cat.png")),
        ("1", "copy", str(folder / "copy of cat.png")),
        ("1", "copy", str(folder / "small.jpg")),
    ]
    assert [int(row[3]) for row in rows] == [Path(row[5]).stat().st_size for row in rows]
    assert (rows[0][2], rows[1][2], rows[1][4]) == ("", "", "same content")
    assert 0.99 < float(rows[2][2]) <= 1
    assert rows[2][4].startswith("phash ")
    assert "4 items" in result.stderr  # what it costs
    assert "2 copies of 1 photo, " in result.stderr
    assert dedup("--workers", 0, "--quiet").stderr == ""


def test_json_is_one_document_with_stable_keys(folder):
    result = dedup("--exact", "--json", "--quiet")
    document = json.loads(result.stdout)
    assert list(document) == [
        *("schema", "index", "model", "settings", "photos", "groups", "copies", "reclaimable", "related"),
        *("skipped", "seconds"),
    ]
    assert document["schema"] == "dinokit.dedup/1"
    (group,) = document["groups"]
    assert list(group) == ["group", "keep", "reason", "copies", "related", "min_score", "reclaimable"]
    assert group["keep"]["path"] == str(folder / "cat.png")
    assert [copy["path"] for copy in group["copies"]] == [str(folder / "copy of cat.png")]
    assert document["reclaimable"] == (folder / "copy of cat.png").stat().st_size


def test_a_terminal_gets_a_table(folder, monkeypatch):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    lines = dedup("--workers", 0, env={"COLUMNS": "250"}).stdout.splitlines()
    assert lines[0].split() == ["group", "score", "bytes", "size", "why", "photo"]
    assert lines[1].split()[:2] == ["1", "keep"]
    assert "same content" in lines[2]
    assert lines[3].split()[0] == "copy"
    assert len(lines) == 4
    (folder / "copy of cat.png").unlink()
    (folder / "small.jpg").unlink()
    assert dedup("--workers", 0, env={"COLUMNS": "250"}).stdout == ""


def test_a_plan_is_written_and_applied_and_undone(folder):
    result = dedup("--workers", 0, "--plan", "plan.jsonl", "--html", "plan.html")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-3:] == [
        "wrote plan.jsonl",
        "wrote plan.html",
        "look at it, then: dinokit dedup apply plan.jsonl",
    ]
    assert Path("plan.html").read_text("utf-8").count("data:image") == 3
    assert dedup("apply", "plan.jsonl", "--yes").exit_code == 0
    assert sorted(path.name for path in folder.glob("*.*") if path.is_file()) == ["cat.png", "coffee.jpg"]
    assert dedup("undo", "--yes").exit_code == 0
    assert (folder / "small.jpg").exists()
    assert (folder / "copy of cat.png").exists()


def test_files_that_are_there_are_kept_unless_asked(folder):
    Path("plan.jsonl").write_text("mine")
    refused = dedup("--exact", "--plan", "plan.jsonl")
    assert refused.exit_code == console.USAGE
    assert "add --overwrite" in refused.stderr
    assert Path("plan.jsonl").read_text() == "mine"
    assert dedup("--exact", "--plan", "plan.jsonl", "--overwrite").exit_code == 0
    assert "dedup-plan/1" in Path("plan.jsonl").read_text()


def test_finding_copies_is_an_exit_code_when_asked(folder):
    assert dedup("--exact", "--fail-if-found").exit_code == FOUND == 11
    (folder / "copy of cat.png").unlink()
    assert dedup("--exact", "--fail-if-found").exit_code == 0


def test_files_that_are_left_out_are_named(folder):
    (folder / "small.jpg").unlink()
    result = dedup("--workers", 0)
    assert f"{folder / 'small.jpg'}: it is gone" in result.stderr
    assert str(folder / "small.jpg") not in result.stdout


def test_options_reach_the_search(folder):
    write(folder / "best" / "cat.jpg", resized(photo("cat"), 0.7, 0.7), 90)
    write(folder / "framed.jpg", framed(photo("coffee")), 90)
    write(folder / "mirror.jpg", photo("coffee")[:, ::-1], 90)
    index_photos(folder.parent / "ix", [folder], encoder=ColourEncoder())
    lines = dedup("--workers", 0, "--reference", folder / "best", "--across-dirs").stdout.splitlines()
    assert [line.split("\t")[5] for line in lines if "\tkeep\t" in line] == [str(folder / "best" / "cat.jpg")]
    lines = dedup(
        "--workers", 0, "--near", "--flips", "--where", "name NOT GLOB '*[ts]*'"
    ).stdout.splitlines()
    assert {Path(line.split("\t")[5]).name for line in lines} == {"coffee.jpg", "framed.jpg", "mirror.jpg"}
    lines = dedup("--workers", 0, "--keep", "smallest", "--within", folder).stdout.splitlines()
    assert lines[0].split("\t")[4].startswith("smallest: ")


def test_a_name_that_is_no_text_survives(folder):
    strange = folder / os.fsdecode(b"gr\xfcn.png")
    write(strange, photo("coffee"))
    write(folder / "green.png", photo("coffee"))
    index_photos(folder.parent / "ix", [folder], encoder=ColourEncoder())
    assert os.fsencode(strange) in dedup("--exact").stdout_bytes
    assert json.loads(dedup("--exact", "--json").stdout)["copies"] == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["-i", "nowhere"], console.INDEX, "there is no index in"),
        (["--exact", "--near"], console.USAGE, "exclude each other"),
        (["--keep", "best"], console.USAGE, "unknown rule 'best'"),
        (["--verify", "eye"], console.USAGE, "phash, pixel, none"),
        (["--threshold", "2"], console.USAGE, "-1 to 1"),
        (["--within", "nowhere"], console.USAGE, "no photo in"),
        (["--where", "colour = 'red'"], console.USAGE, "cannot filter by"),
        (["--plan", "no/such/plan.jsonl"], console.USAGE, "no folder no/such"),
        (["--flips", "apply", "plan.jsonl"], console.USAGE, "--flips before apply has no effect"),
        (["aply", "plan.jsonl"], console.USAGE, "apply"),
        (["-k", "0"], console.USAGE, "'-k'"),
    ],
)
def test_bad_questions_are_one_clear_error(folder, arguments, code, said):
    result = dedup(*arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("plan.jsonl").exists()
