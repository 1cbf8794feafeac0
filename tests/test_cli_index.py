"""`dinokit index`: what it prints, how it ends, and what its options reach."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from filelock import FileLock
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.indexes import Snapshot, read_facts
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.locate import read_registry


def dinokit(*arguments: object, **settings: object) -> Result:
    words = [*map(str, arguments), *(["--workers", "0"] if "index" in arguments else [])]
    return CliRunner().invoke(app, words, **settings)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Twenty photos; the model sees their mean colour."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    monkeypatch.setattr("dinov2kit.encoder.Encoder", ColourEncoder)
    monkeypatch.chdir(tmp_path)
    for place in range(20):
        paint(tmp_path / "photos" / f"{place:02}.png", (10 + 12 * place, 120, 250 - 12 * place))
    return tmp_path / "photos"


def make(folder: Path, *options: object) -> Path:
    assert dinokit("index", folder, "-i", "ix", *options).exit_code == 0
    return Path("ix").absolute()


def paths(directory: Path) -> list[str]:
    with Snapshot.open(directory) as snapshot:
        return [photo.path.name for photo in snapshot.photos(snapshot.ids)]


def test_a_first_run_says_what_it_did_on_stderr_and_nothing_on_stdout(folder):
    (folder / "bad.png").write_bytes(b"rubbish")
    (folder / "film.mp4").write_bytes(b"x")
    result = dinokit("index", folder)
    assert (result.exit_code, result.stdout) == (0, "")
    (directory,) = read_registry()
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"warning: {folder / 'bad.png'}: ")
    assert re.fullmatch(r"20 new, 1 unreadable \([\d.]+ s, [\d,]+ images/s\)", lines[1])
    assert lines[2] == "videos left out: 1; to index frames of them: --video"
    assert lines[3] == f"20 photos in {directory} (colour)"
    assert len(lines) == 4
    again = dinokit("index", folder).stderr.splitlines()
    assert re.fullmatch(r"20 unchanged, 1 unreadable \([\d.]+ s\)", again[1])


def test_json_has_every_number_and_every_reason(folder):
    (folder / "bad.png").write_bytes(b"rubbish")
    (folder / "film.mp4").write_bytes(b"x")
    result = dinokit("index", folder, "-i", "ix", "--json", "--quiet")
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    seconds = document.pop("seconds")
    assert 0 < seconds < 60
    (error,) = document.pop("error_files")
    assert error["path"] == str(folder / "bad.png")
    assert len(error["reason"]) > 10
    assert document == {
        "schema": "dinokit.index/1",
        "index": str(Path("ix").absolute()),
        "model": "colour",
        "items": 20,
        "skipped": False,
        "new": 20,
        "changed": 0,
        "moved": 0,
        "unchanged": 0,
        "removed": 0,
        "kept": 0,
        "unsupported": {".mp4": 1},
        "errors": 1,
        "described": 20,
        "interrupted": False,
        "unread": [],
        "faiss": None,
    }


def test_without_folders_those_of_the_index_are_scanned(folder):
    directory = make(folder)
    paint(folder / "new.png", (9, 9, 9))
    assert json.loads(dinokit("index", "-i", directory, "--json").stdout)["new"] == 1
    assert json.loads(dinokit("index", "--json").stdout)["unchanged"] == 21  # the only index that is known


def test_in_place_lies_inside_the_photos_and_is_found_from_there(folder, monkeypatch):
    assert dinokit("index", folder, "--in-place").exit_code == 0
    assert (folder / ".dinokit").is_dir()
    monkeypatch.chdir(folder)
    document = json.loads(dinokit("index", "--json").stdout)
    assert document["index"] == str(folder / ".dinokit")
    assert (document["unchanged"], document["unsupported"]) == (20, {})  # the index is no photo


def test_the_exit_code_says_how_bad_it_was(folder):
    for place in range(5):
        (folder / f"bad{place}.png").write_bytes(b"rubbish %d" % place)
    assert dinokit("index", folder, "-i", "ix").exit_code == 0  # one in four
    assert dinokit("index", folder, "-i", "ix", "--strict").exit_code == console.FAILURE
    for place in range(30):
        (folder / f"worse{place}.png").write_bytes(b"rubbish, worse %d" % place)
    result = dinokit("index", folder, "-i", "ix")
    assert result.exit_code == console.FAILURE  # most of them
    assert len(paths(Path("ix"))) == 20
    assert "and 15 more; see dinokit info --errors" in result.stderr
    assert result.stderr.count("warning: ") == 21


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere"], console.INPUT, "nowhere does not exist"),
        (["photos/00.png"], console.INPUT, "is a file, not a folder"),
        (["empty"], console.INPUT, "there is no image in"),
        ([], console.INDEX, "there is no index yet"),
        (["-i", "nowhere"], console.INDEX, "there is no index in"),
        (["photos", "--list", "nowhere.txt"], console.INPUT, "cannot read the list nowhere.txt"),
        (["photos", "--factory", "Nonsense7"], console.USAGE, "Nonsense7"),
        (["photos", "--memory", "lots"], console.USAGE, "'lots' is no size"),
        (["photos", "--if-stale", "soon"], console.USAGE, "'soon' is no time"),
        (["photos", "--prune", "maybe"], console.USAGE, "maybe"),
        (["photos", "--recall", "7"], console.USAGE, "'--recall'"),
    ],
)
def test_bad_input_is_one_clear_error_and_makes_no_index(folder, arguments, code, said):
    (folder.parent / "empty").mkdir()
    (folder.parent / "empty" / "notes.txt").write_text("x")
    result = dinokit("index", *arguments, env={"COLUMNS": "200"})
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert read_registry() == {}


def test_a_missing_model_is_exit_4_and_makes_no_index(folder, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("DINOKIT_HOME", str(folder.parent / "home"))
    result = dinokit("index", folder, "--model", folder.parent / "no.pth", "-i", folder.parent / "ix")
    assert result.exit_code == console.WEIGHTS
    assert "no.pth" in result.stderr
    assert not (folder.parent / "ix").exists()


def test_another_writer_is_exit_6_and_can_be_waited_for(folder):
    directory = make(folder)
    with FileLock(Layout(directory).lock):
        result = dinokit("index", folder, "-i", directory)
        assert result.exit_code == console.INDEX
        assert "writ" in result.stderr
    assert dinokit("index", folder, "-i", directory, "--wait", "5").exit_code == 0


def test_plan_only_counts_and_changes_nothing(folder):
    result = dinokit("index", folder, "-i", "ix", "--plan-only")
    assert (result.exit_code, result.stderr) == (0, "")
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert result.stdout.splitlines() == [
        f"index\t{Path('ix').absolute()}",
        f"open\t20\t{size / 1e6:,.1f} MB to read",
        "unchanged\t0",
        "gone\t0",
        "time\tunknown before a run",
    ]
    assert not Path("ix").exists()
    directory = make(folder)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.suffix == ".h5"}
    (folder / "00.png").unlink()
    paint(folder / "01.png", (1, 2, 3), size=(50, 50))
    paint(folder / "new.png", (4, 5, 6))
    (folder / "a.txt").write_text("x")
    plan = json.loads(dinokit("index", "-i", directory, "--plan-only", "--json").stdout)
    assert plan["schema"] == "dinokit.index-plan/1"
    assert (plan["open"], plan["unchanged"], plan["gone"]) == (2, 18, 1)
    assert plan["bytes_to_read"] == sum((folder / name).stat().st_size for name in ("01.png", "new.png"))
    assert plan["unsupported"] == {".txt": 1}
    assert plan["seconds"] > 0
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.suffix == ".h5"} == before
    assert read_facts(directory).items == 20
    done = json.loads(dinokit("index", "-i", directory, "--json").stdout)
    assert (done["new"], done["changed"], done["removed"]) == (1, 1, 1)  # the plan was true


def test_a_young_index_is_left_alone_and_an_old_one_is_not(folder):
    directory = make(folder)
    paint(folder / "new.png", (9, 9, 9))
    result = dinokit("index", "-i", directory, "--if-stale", "1h")
    assert (result.exit_code, len(paths(directory))) == (0, 20)
    assert "young enough" in result.stderr
    assert json.loads(dinokit("index", "-i", directory, "--if-stale", "1h", "--json").stdout)["skipped"]
    assert json.loads(dinokit("index", "-i", directory, "--if-stale", "0", "--json").stdout)["new"] == 1


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\0"])
def test_a_list_on_stdin_chooses_the_files_and_removes_nothing(folder, ending):
    names = [b"photos/03.png", os.fsencode(folder / "05.png"), b"photos/nowhere.png"]
    null = ["-0"] if ending == b"\0" else []
    result = dinokit("index", folder, "-i", "ix", "--list", "-", *null, input=ending.join(names) + ending)
    assert result.exit_code == 0
    assert paths(Path("ix")) == ["03.png", "05.png"]
    assert "nowhere.png" in result.stderr
    Path("names.txt").write_bytes(b"photos/07.png\n")
    assert dinokit("index", folder, "-i", "ix", "--list", "names.txt").exit_code == 0
    assert paths(Path("ix")) == ["03.png", "05.png", "07.png"]


def test_globs_and_sizes_choose_the_files(folder):
    paint(folder / "big.png", (1, 2, 3), size=(400, 400))
    np.save(folder / "x.npy", np.zeros(3))
    make(folder, "--include", "0*.png", "--include", "big*", "--exclude", "*3.png")
    assert len(paths(Path("ix"))) == 10
    assert "03.png" not in paths(Path("ix"))
    assert dinokit("index", folder, "-i", "ix2", "--min-size", "0.3k").exit_code == 0
    assert paths(Path("ix2")) == ["big.png"]
    result = dinokit("index", folder, "-i", "ix3", "--max-mpix", "0.1")
    assert "big.png" not in paths(Path("ix3"))
    assert "big.png" in result.stderr


def test_many_gone_at_once_is_exit_1_and_goes_through_when_it_is_meant(folder):
    directory = make(folder)
    for place in range(15):
        (folder / f"{place:02}.png").unlink()
    paint(folder / "new.png", (9, 9, 9))
    result = dinokit("index", folder, "-i", directory)
    assert result.exit_code == console.FAILURE
    assert "--prune" in result.stderr
    assert len(paths(directory)) == 21  # the rest is done
    result = dinokit("index", folder, "-i", directory, "--prune", "never")
    assert (result.exit_code, len(paths(directory))) == (0, 21)
    assert "15 gone but kept" in result.stderr
    assert dinokit("index", folder, "-i", directory, "--prune", "force").exit_code == 0
    assert len(paths(directory)) == 6


def test_bad_files_are_tried_again_only_on_request(folder):
    paint(folder / "big.png", (7, 70, 200), size=(400, 400))
    directory = make(folder, "--max-mpix", "0.1")
    assert dinokit("index", "-i", directory).exit_code == 0
    assert "big.png" not in paths(directory)  # the reason is remembered
    assert dinokit("index", "-i", directory, "--retry-errors").exit_code == 0
    assert "big.png" in paths(directory)


class Interrupting(ColourEncoder):
    """Presses Ctrl-C while it describes."""

    presses = 1

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        for _ in range(self.presses):
            os.kill(os.getpid(), signal.SIGINT)
        return super().embed(pixels)


def test_ctrl_c_finishes_what_was_begun_and_the_next_run_goes_on(folder, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("dinov2kit.encoder.Encoder", Interrupting)
    result = dinokit("index", folder, "-i", "ix", "--json")
    assert result.exit_code == console.INTERRUPTED
    assert "press Ctrl-C again" in result.stderr
    document = json.loads(result.stdout)
    assert document["interrupted"]
    assert 0 < document["items"] < 20
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr("dinov2kit.encoder.Encoder", ColourEncoder)
    done = json.loads(dinokit("index", folder, "-i", "ix", "--json").stdout)
    assert done["items"] == 20
    assert done["described"] == 20 - document["items"]


def test_a_second_ctrl_c_breaks_off_and_loses_nothing_committed(folder, monkeypatch):
    directory = make(folder, "--include", "0*")
    monkeypatch.setattr(Interrupting, "presses", 2)
    monkeypatch.setattr("dinov2kit.encoder.Encoder", Interrupting)
    result = dinokit("index", folder, "-i", directory)
    assert result.exit_code == console.INTERRUPTED
    assert "interrupted" in result.stderr
    assert len(paths(directory)) == 10
    monkeypatch.setattr("dinov2kit.encoder.Encoder", ColourEncoder)
    assert json.loads(dinokit("index", folder, "-i", directory, "--json").stdout)["items"] == 20
