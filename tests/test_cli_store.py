"""`dinokit info|verify|repair|compact|export`: what they print, and how they end."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from click.testing import Result
from small_index import (
    DAMAGES,
    DIM,
    MODEL,
    ROOT,
    contents,
    expected,
    flip_bit,
    make_damageable,
    make_index,
    put,
    remove,
    stat,
    stored,
)  # fmt: skip
from typer.testing import CliRunner

from dinov2kit.cli.app import app
from dinov2kit.indexes.layout import Layout, read_card
from dinov2kit.indexes.store import Store

BAD = b"sub/\xff\xfe.jpg"


def dinokit(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=env)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten photos in three shards, 2 and 9 removed, two unreadable files, one run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    path = make_index(tmp_path / "ix", 10, per_shard=4)
    with Store.open(path) as store:
        remove(store, 2, 9)
        store.put_error(store.root_id(ROOT), b"bad.png", stat(), None, "cannot be decoded")
        store.put_error(store.root_id(ROOT), BAD, stat(), None, "is empty")
        store.put_error(store.root_id(ROOT), b"b.png", stat(), None, "cannot be decoded")
        store.record_run(1.0, {"new": 10, "seconds": 2.5})
        store.commit()
    return path


def table(text: str) -> dict[str, str]:
    """Read the two columns of `dinokit info`; continued lines are joined."""
    lines: dict[str, str] = {}
    for line in text.splitlines():
        name, said = line[:13].strip(), line[13:].strip()
        last = name or next(reversed(lines))
        lines[last] = lines.get(last, "") + said if name else lines[last] + "\n" + said
    return lines


def test_info_says_what_the_index_is_and_holds(directory):
    result = dinokit("info", "-i", directory, env={"COLUMNS": "200"})
    assert (result.exit_code, result.stderr) == (0, "")
    lines = table(result.stdout)
    card = read_card(Layout(directory))
    assert lines["index"] == str(directory)
    assert lines["model"] == "tiny (8 dims, weights abababababab, cls)"
    assert lines["fingerprint"] == MODEL.fingerprint
    assert lines["folders"] == "/photos"
    assert lines["photos"] == "8"
    assert lines["removed"] == "2 still on disk; dinokit compact drops them"
    assert lines["errors"] == "3 of 11 files; see --errors"
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    assert lines["on disk"] == f"{size / 1e6:,.1f} MB in 3 shards"
    assert lines["faiss"] == "none; search is exact"
    assert lines["created"] == f"{card.created} by dinov2kit {card.written_by}, schema 1"
    assert lines["last run"].splitlines()[1:] == ["2 x cannot be decoded", "1 x is empty"]


def test_info_as_json_has_the_same_facts(directory):
    result = dinokit("info", "-i", directory, "--json", "--errors")
    said = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, said["schema"]) == (0, "", "dinokit.info/1")
    card = read_card(Layout(directory))
    assert said["uuid"] == card.uuid
    assert said["model"] == {**MODEL.to_json(), "fingerprint": MODEL.fingerprint}
    counts = {
        "roots": ["/photos"],
        "items": 8,
        "dead": 2,
        "files": 11,
        "errors": 3,
        "shards": 3,
        "faiss": None,
    }
    assert {name: said[name] for name in counts} == counts
    assert said["reasons"] == {"cannot be decoded": 2, "is empty": 1}
    assert said["index"] == str(directory)
    assert (said["last_run"]["new"], said["last_run"]["seconds"]) == (10, 2.5)
    listed = [(os.fsencode(error["path"]), error["reason"]) for error in said["error_files"]]
    assert listed == [
        (b"/photos/b.png", "cannot be decoded"),
        (b"/photos/bad.png", "cannot be decoded"),
        (b"/photos/" + BAD, "is empty"),
    ]
    assert "error_files" not in json.loads(dinokit("info", "-i", directory, "--json").stdout)


def test_errors_are_listed_with_the_very_bytes_of_their_names(directory):
    result = dinokit("info", "-i", directory, "--errors")
    assert result.exit_code == 0
    assert result.stdout_bytes == (
        b"/photos/b.png\tcannot be decoded\n/photos/bad.png\tcannot be decoded\n/photos/"
        + BAD
        + b"\tis empty\n"
    )


def test_new_index_says_that_it_is_empty(tmp_path):
    lines = table(dinokit("info", "-i", make_index(tmp_path / "ix"), env={"COLUMNS": "200"}).stdout)
    assert (lines["folders"], lines["photos"], lines["last run"]) == ("none yet", "0", "never")
    assert (lines["removed"], lines["errors"]) == ("0 still on disk", "0 of 0 files")


@pytest.mark.parametrize(
    "command", [["info"], ["verify"], ["repair"], ["compact"], ["export", "npy", "x.npy"]]
)
def test_missing_index_ends_with_6_and_what_to_do(directory, tmp_path, monkeypatch, command):
    result = dinokit(*command, "-i", "absent")
    assert (result.exit_code, result.stdout) == (6, "")
    first, hint = result.stderr.splitlines()
    assert first.startswith("error: there is no index in ")
    assert "absent" in first
    assert hint.startswith("  hint: make one with: dinokit index PHOTOS")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ix"]
    monkeypatch.setattr("sys.argv", ["dinokit", *command, "--json"])
    said = json.loads(dinokit(*command, "-i", "absent", "--json").stderr)
    assert (said["kind"], said["exit_code"], said["schema"]) == ("StoreMissing", 6, "dinokit.error/1")


def test_verify_of_a_sound_index(directory):
    result = dinokit("verify", "-i", directory)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    names = ["manifest", "folder", "shards", "ids", "files", "rows", "descriptors", "faiss"]
    assert [line[:2] for line in lines] == [["ok", name] for name in names]
    assert lines[5][2] == "10 rows in 3 shards are in the manifest"
    deep = json.loads(dinokit("verify", "-i", directory, "--deep", "--json").stdout)
    assert (deep["schema"], deep["ok"], deep["index"]) == ("dinokit.verify/1", True, str(directory))
    said = {check["name"]: (check["ok"], check["detail"]) for check in deep["checks"]}
    assert said["checksums"] == (True, "3 shards are as they were written")


def test_verify_of_a_damaged_index_ends_with_6_and_names_the_damage(directory):
    flip_bit(Layout(directory).shard(2))
    assert dinokit("verify", "-i", directory).exit_code == 0
    result = dinokit("verify", "-i", directory, "--deep")
    assert result.exit_code == 6
    (failed,) = [line for line in result.stdout.splitlines() if not line.startswith("ok")]
    assert failed.split() == ["FAILED", "checksums", "shard-00000002.h5"]
    assert result.stderr == "the index is damaged; make it whole with: dinokit repair\n"
    result = dinokit("verify", "-i", directory, "--deep", "--json")
    said = json.loads(result.stdout)
    assert (result.exit_code, said["ok"]) == (6, False)
    assert [check for check in said["checks"] if not check["ok"]] == [
        {"name": "checksums", "ok": False, "detail": "shard-00000002.h5"}
    ]


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_ends_with_6_and_repair_makes_it_whole(tmp_path, kind):
    layout = make_damageable(tmp_path / "ix")
    DAMAGES[kind].befall(layout)
    assert dinokit("verify", "-i", layout.directory, "--deep", "-q").exit_code == 6
    assert dinokit("repair", "-i", layout.directory).exit_code == 0
    assert dinokit("verify", "-i", layout.directory, "--deep", "-q").exit_code == 0


def test_damaged_manifest_stops_the_others_with_6_and_the_way_out(directory):
    Layout(directory).manifest.write_bytes(b"garbage " * 500)
    for command in (["info"], ["info", "--errors"], ["compact"], ["export", "npy", "x.npy"]):
        result = dinokit(*command, "-i", directory)
        assert (result.exit_code, result.stdout) == (6, "")
        first, hint = result.stderr.splitlines()
        assert first.startswith(f"error: the manifest {directory / 'manifest.sqlite'} cannot be used: ")
        assert hint == "  hint: rebuild it from the descriptors with: dinokit repair"
    assert not Path("x.npy").exists()


def test_repair_tells_what_was_lost_and_kept(directory):
    flip_bit(Layout(directory).shard(2))
    result = dinokit("repair", "-i", directory)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [f"lost\t/photos/{number}.jpg" for number in (5, 6, 7, 8)]
    assert result.stderr.splitlines() == [
        "manifest sound, 4 photos, 1 damaged shards set aside",
        "now run dinokit index again to find what was removed, moved or lost",
    ]
    Layout(directory).manifest.write_bytes(b"garbage")
    result = dinokit("repair", "-i", directory)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines()[:2] == [
        "manifest rebuilt, 6 photos, 0 damaged shards set aside",  # 2 and 9 are back until the next run
        f"the old manifest is kept as {directory / 'manifest.sqlite.bak'}",
    ]
    assert contents(directory) == expected(1, 2, 3, 4, 9, 10)


def test_repair_as_json(directory):
    (directory / "manifest.sqlite").unlink()
    flip_bit(Layout(directory).shard(3))
    said = json.loads(dinokit("repair", "-i", directory, "--json").stdout)
    assert said == {
        "schema": "dinokit.repair/1", "rebuilt": True, "backup": None, "items": 8,
        "torn": ["shard-00000003.h5"], "lost": ["/photos/10.jpg", "/photos/9.jpg"],
    }  # fmt: skip
    again = json.loads(dinokit("repair", "-i", directory, "--json").stdout)
    assert again == {**said, "rebuilt": False, "torn": [], "lost": []}


def test_repair_brings_back_an_index_whose_card_is_gone(directory):
    before = contents(directory)
    (directory / "dinokit.json").unlink()
    result = dinokit("info", "-i", directory)
    assert (result.exit_code, result.stderr.splitlines()[1]) == (
        6,
        "  hint: make it again from the descriptors with: dinokit repair",
    )
    assert dinokit("repair", "-i", directory).exit_code == 0
    assert dinokit("verify", "-i", directory, "--deep").exit_code == 0
    assert contents(directory) == before


def test_compact_says_what_it_did(directory):
    layout = Layout(directory)
    sizes = sum(path.stat().st_size for path in layout.shards().values())
    before = contents(directory)
    said = json.loads(dinokit("compact", "-i", directory, "--json").stdout)
    assert said == {
        "schema": "dinokit.compact/1", "shards_before": 3, "shards_after": 1, "rows_dropped": 2,
        "bytes_retired": sizes,
    }  # fmt: skip
    result = dinokit("compact", "-i", directory)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "1 -> 1 shards, 0 removed photos dropped, 0.0 MB replaced\n"
    assert contents(directory) == before


@pytest.mark.parametrize("command", ["compact", "repair"])
def test_writers_are_refused_while_another_writes(directory, command):
    with Store.open(directory) as store:
        put(store, "x.jpg", 1)
        result = dinokit(command, "-i", directory)
        assert result.exit_code == 6
        assert f"pid {os.getpid()}" in result.stderr
        assert "--wait" in result.stderr
        for reader in ("info", "verify"):
            assert dinokit(reader, "-i", directory).exit_code == 0
    assert dinokit(command, "-i", directory, "--wait", "1").exit_code == 0


def test_export_writes_what_it_says(directory, tmp_path):
    wanted = np.stack([stored(number) for number in (1, 3, 4, 5, 6, 7, 8, 10)])
    result = dinokit("export", "npy", "x.npy", "-i", directory)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"8 x {DIM} in x.npy, x.jsonl, x.npy.json\n"
    assert np.load("x.npy").tobytes() == wanted.tobytes()
    names = [json.loads(line)["path"] for line in Path("x.jsonl").read_text().splitlines()]
    assert names == [f"/photos/{number}.jpg" for number in (1, 3, 4, 5, 6, 7, 8, 10)]
    result = dinokit("export", "parquet", "x.parquet", "-i", directory, "--precision", "fp32", "--json")
    assert json.loads(result.stdout) == {
        "schema": "dinokit.export/1", "files": ["x.parquet"], "rows": 8, "dim": DIM
    }  # fmt: skip
    rows = pyarrow.parquet.read_table("x.parquet")["descriptor"].to_pylist()
    assert np.array_equal(np.array(rows, np.float32), wanted.astype(np.float32))


def test_export_keeps_existing_files_unless_told_otherwise(directory):
    Path("x.npy").write_text("mine")
    result = dinokit("export", "npy", "x.npy", "-i", directory)
    assert (result.exit_code, Path("x.npy").read_text()) == (2, "mine")
    assert result.stderr.splitlines() == [
        "error: x.npy exists",
        "  hint: name another file, or add --overwrite",
    ]
    result = dinokit("export", "npy", "x.npy", "-i", directory, "--overwrite", "--quiet")
    assert (result.exit_code, result.stderr, len(np.load("x.npy"))) == (0, "", 8)
    assert dinokit("export", "csv", "x.csv", "-i", directory).exit_code == 2


def test_index_of_the_environment_is_used_and_looking_changes_nothing(directory):
    def state() -> dict[Path, str]:
        return {
            path: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in directory.rglob("*")
            if path.is_file() and not path.name.endswith(("-shm", "-wal"))
        }

    before = state()
    for command in (["info"], ["info", "--errors"], ["verify", "--deep"]):
        assert dinokit(*command, env={"DINOKIT_INDEX": str(directory)}).exit_code == 0
    assert state() == before


@pytest.mark.parametrize(
    "first",
    ["import repair", "import Check", "import Index", ".verifying import verify", ".repairing import repair"],
)
def test_verbs_are_functions_whatever_was_imported_before(first):
    """No module of the room may stand in the way of a function of the same name."""
    package, what = first.split("import")
    code = f"from dinov2kit.indexes{package.strip()} import {what}\n"
    code += (
        "from dinov2kit.indexes import repair, verify\nprint(type(repair).__name__, type(verify).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "function function\n"
