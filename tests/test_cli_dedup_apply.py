"""`dinokit dedup apply|undo|calibrate`: what they print, what they ask, and how they end."""

import json
import os
from pathlib import Path

import pytest
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from small_plan import group, look, plan_of, write
from typer.testing import CliRunner

from dinov2kit.cli.app import app
from dinov2kit.indexes import calibration, index_photos, list_runs, write_plan
from dinov2kit.indexes.quarantine import FOLDER

COPY = b"pixels of a cat"
RAW = os.fsdecode(b"\xff\xfe.jpg")


def dinokit(*arguments: object, asked: str | None = None) -> Result:
    return CliRunner().invoke(app, ["dedup", *map(str, arguments)], input=asked)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A keeper and two copies, the second with a name that is no text; the plan lies beside the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    folder = tmp_path / "photos"
    write(folder / "keep.jpg", COPY)
    copies = [write(folder / "a.jpg", COPY), write(folder / RAW, COPY)]
    write_plan(Path("plan.jsonl"), plan_of(group(1, folder / "keep.jpg", *copies)))
    return folder


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let standard input look like a terminal."""
    monkeypatch.setattr("dinov2kit.cli.dedup_apply._can_answer", lambda: True)


def test_there_and_back(photos):
    before = look(photos)
    result = dinokit("apply", "plan.jsonl", "--yes")
    (run,) = [log.run for log in list_runs()]
    place = photos / FOLDER / run
    assert result.exit_code == 0
    assert result.stdout_bytes == b"".join(
        b"quarantine\t" + os.fsencode(photos / name) + b"\t" + os.fsencode(place / name) + b"\n"
        for name in ("a.jpg", RAW)
    )
    assert result.stderr.splitlines() == [
        "2 files (0.0 MB) moved to the quarantine",
        f"to take it back: dinokit dedup undo {run}",
        f"the space is free when you delete {place}",
        "the index still knows these files; to bring it up to date: dinokit index",
    ]
    result = dinokit("undo", "-y")
    assert (result.exit_code, look(photos)) == (0, before)
    assert result.stdout_bytes == b"restored\t%s\nrestored\t%s\n" % (
        os.fsencode(photos / "a.jpg"), os.fsencode(photos / RAW),
    )  # fmt: skip
    assert result.stderr == f"2 restored (run {run})\n"
    again = dinokit("undo", run)
    assert (again.exit_code, again.stderr) == (0, f"2 there already (run {run})\n")


def test_json_of_a_run_and_of_its_end(photos):
    (photos / RAW).unlink()
    result = dinokit("apply", "plan.jsonl", "--yes", "--json", "-q")
    said = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, said["schema"]) == (1, "", "dinokit.dedup-apply/1")
    assert [said[key] for key in ("action", "dry_run", "done", "skipped", "bytes", "interrupted")] == [
        "quarantine", False, 1, 1, len(COPY), False,
    ]  # fmt: skip
    assert [file["reason"] for file in said["files"]] == [None, "it is gone"]
    runs = json.loads(dinokit("undo", "--list", "--json").stdout)
    assert runs["schema"] == "dinokit.dedup-runs/1"
    (run,) = runs["runs"]
    assert (run["run"], run["files"], run["undone"], run["bytes"]) == (said["run"], 1, 0, len(COPY))
    back = json.loads(dinokit("undo", "--yes", "--json").stdout)
    assert (back["schema"], back["run"], back["restored"]) == ("dinokit.dedup-undo/1", said["run"], 1)
    assert dinokit("undo", "--list").stdout == f"{said['run']}\tquarantine\t1 files\t1 undone\t/nowhere\n"


def test_what_is_left_alone_is_said_and_ends_with_1(photos):
    (photos / "keep.jpg").unlink()
    before = look(photos)
    result = dinokit("apply", "plan.jsonl", "--yes")
    assert (result.exit_code, look(photos)) == (1, before)
    assert result.stdout_bytes.splitlines()[0] == b"left\t%s\tthe keeper is gone" % os.fsencode(
        photos / "a.jpg"
    )
    assert result.stderr.splitlines()[0] == f"warning: {photos / 'a.jpg'}: the keeper is gone"
    assert result.stderr.splitlines()[-1] == "0 files (0.0 MB) moved to the quarantine; 2 left alone"
    write(photos / "keep.jpg", COPY)
    dinokit("apply", "plan.jsonl", "--yes")
    write(photos / "a.jpg", b"new")
    result = dinokit("undo", "--yes")
    assert (result.exit_code, (photos / "a.jpg").read_bytes()) == (1, b"new")
    assert "another file is there now" in result.stdout
    assert "1 restored, 1 could not be restored" in result.stderr


def test_a_dry_run_needs_no_leave(photos):
    before = look(photos)
    result = dinokit("apply", "plan.jsonl", "--dry-run")
    assert (result.exit_code, look(photos), list_runs()) == (0, before, [])
    assert result.stderr == "2 files (0.0 MB) would be moved to the quarantine\n"
    assert dinokit("apply", "plan.jsonl", "--dry-run", "--action", "delete").exit_code == 0
    assert look(photos) == before


@pytest.mark.parametrize("action", ["quarantine", "hardlink", "symlink"])
def test_without_a_terminal_and_yes_nothing_is_changed(photos, action):
    before = look(photos)
    result = dinokit("apply", "plan.jsonl", "--action", action)
    assert (result.exit_code, result.stdout, look(photos)) == (2, "", before)
    assert result.stderr.startswith("error: 2 files (0.0 MB) will be ")
    assert "--yes" in result.stderr
    dinokit("apply", "plan.jsonl", "--yes")
    changed = look(photos)
    assert (dinokit("undo").exit_code, look(photos)) == (2, changed)


@pytest.mark.usefixtures("terminal")
def test_on_a_terminal_one_question_decides(photos):
    before = look(photos)
    result = dinokit("apply", "plan.jsonl", asked="n\n")
    assert (result.exit_code, look(photos), result.stdout) == (1, before, "")
    assert "2 files (0.0 MB) will be moved to the quarantine. Go on? [y/N]" in result.stderr
    assert result.stderr.endswith("nothing was changed\n")
    assert (dinokit("apply", "plan.jsonl", asked="").exit_code, look(photos)) == (1, before)
    assert dinokit("apply", "plan.jsonl", asked="y\n").exit_code == 0
    assert not (photos / "a.jpg").exists()
    result = dinokit("undo", asked="y\n")
    assert "2 files that were moved to the quarantine come back. Go on?" in result.stderr
    assert (result.exit_code, look(photos)) == (0, before)


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("flags", [[], ["--yes"], ["--permanently"]])
def test_delete_wants_to_be_meant(photos, flags):
    before = look(photos)
    result = dinokit("apply", "plan.jsonl", "--action", "delete", *flags, asked="y\n")
    assert (result.exit_code, look(photos)) == (2, before)
    assert "--permanently --yes" in result.stderr


def test_delete_that_is_meant(photos):
    result = dinokit("apply", "plan.jsonl", "--action", "delete", "--permanently", "--yes")
    assert (result.exit_code, set(look(photos))) == (0, {b"keep.jpg"})
    assert result.stderr.splitlines() == [
        "2 files (0.0 MB) deleted for good",
        "the index still knows these files; to bring it up to date: dinokit index",
    ]
    result = dinokit("undo", "--yes")
    assert (result.exit_code, "it was deleted for good" in result.stderr) == (1, True)


def test_links_show_what_they_point_to(photos):
    result = dinokit("apply", "plan.jsonl", "--action", "symlink", "--yes")
    keep = os.fsencode(photos / "keep.jpg")
    assert result.stdout_bytes.splitlines()[0] == b"symlink\t%s\t%s" % (os.fsencode(photos / "a.jpg"), keep)
    assert "2 files (0.0 MB) replaced by symbolic links" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["apply", "absent.jsonl"], 3, "cannot read the plan absent.jsonl"),
        (["apply", "photos/keep.jpg"], 2, "line 1 of photos/keep.jpg is no JSON"),
        (["apply", "plan.jsonl", "--action", "shred", "--yes"], 2, "unknown action 'shred'"),
        (["apply", "plan.jsonl", "--permanently", "--yes"], 2, "--permanently goes with --action delete"),
        (
            ["apply", "plan.jsonl", "--action", "symlink", "--quarantine", "q", "--yes"],
            2,
            "a quarantine folder",
        ),
        (["undo", "absent"], 2, "there is no run 'absent'"),
        (["undo"], 2, "nothing was ever removed"),
        (["calibrate", "-i", "absent"], 6, "there is no index in"),
    ],
)
def test_wrong_arguments_end_at_once_with_their_code(photos, arguments, code, said):
    before = look(photos)
    result = dinokit(*arguments)
    assert (result.exit_code, result.stdout, look(photos)) == (code, "", before)
    assert result.stderr.startswith(f"error: {said}")


def test_an_empty_plan_is_done_without_a_question(photos):
    write_plan(Path("empty.jsonl"), plan_of())
    result = dinokit("apply", "empty.jsonl")
    assert (result.exit_code, result.stdout) == (0, "")


def test_a_quarantine_of_ones_own(photos, tmp_path):
    assert dinokit("apply", "plan.jsonl", "--quarantine", "attic", "--yes").exit_code == 0
    (run,) = [log.run for log in list_runs()]
    moved = tmp_path / "attic" / FOLDER / run / photos.relative_to("/") / "a.jpg"
    assert moved.read_bytes() == COPY


def test_the_next_run_of_index_sees_the_files_gone(photos):
    for name in ("keep.jpg", "a.jpg"):
        paint(photos / name, (200, 10, 10))
    (photos / RAW).unlink()
    paint(photos / "b.jpg", (10, 200, 10))
    directory = index_photos(Path("ix"), [photos], encoder=ColourEncoder()).directory
    groups = group(1, photos / "keep.jpg", photos / "a.jpg")
    write_plan(Path("plan.jsonl"), plan_of(groups, index=directory.absolute()), overwrite=True)
    assert dinokit("apply", "plan.jsonl", "--yes", "-q").exit_code == 0
    run = index_photos(directory, encoder=ColourEncoder())
    assert (run.items, run.report.removed, run.report.new) == (2, 1, 0)


@pytest.fixture
def painted(photos, monkeypatch):
    """An index of photos that differ in their colour, so that copies and others are far apart."""
    for path in photos.iterdir():
        path.unlink()
    for number, colour in enumerate([(250, 20, 20), (20, 250, 20), (20, 20, 250), (200, 200, 20)]):
        paint(photos / f"{number}.png", colour, size=(40, 32))
    monkeypatch.setattr("dinov2kit.encoder.Encoder", ColourEncoder)
    index_photos(Path("ix"), [photos], encoder=ColourEncoder())
    return Path("ix")


def test_calibrate_prints_a_table_and_writes_what_it_found(painted):
    result = dinokit("calibrate", "-i", painted, "--write")
    assert result.exit_code == 0, result.stderr
    names, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert names == [
        "threshold", "precision", "recall", "false", "jpeg", "resize", "crop", "flip", "border", "brightness",
    ]  # fmt: skip
    assert [float(row[0]) for row in rows] == sorted(float(row[0]) for row in rows)
    kept = json.loads((painted / calibration.FILE).read_text())
    assert f"threshold {kept['threshold']} for colour: precision 1.0000, recall 1.0000" in result.stderr
    assert "4 photos; 0 neighbours were copies and left out" in result.stderr
    assert result.stderr.splitlines()[-1] == f"wrote {painted.absolute() / calibration.FILE}"
    said = json.loads(dinokit("calibrate", "-i", painted, "--json", "-q").stdout)
    assert said == kept
    assert said["schema"] == "dinokit.dedup-calibration/1"
