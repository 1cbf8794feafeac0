"""`dinokit curate` with real folders of pictures: every mode, every output, and how it fails."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from PIL import Image
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.indexes import index_photos
from dinov2kit.indexes.locate import read_registry

HUES = {"red": (140, 20, 20), "green": (20, 140, 20), "blue": (20, 20, 140)}
EACH = 8


def curate(*arguments: object, **settings: object) -> Result:
    return CliRunner().invoke(app, ["curate", "--workers", "0", *map(str, arguments)], **settings)


def shade(hue: str, number: int) -> tuple[int, ...]:
    """Return a colour near a hue, another one for each number."""
    colour = list(HUES[hue])
    colour[number % 3] += 7 * number
    return tuple(colour)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Eight photos of each hue in an index that is found by itself; `seed` and `val` hold a few reds."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    monkeypatch.setattr("dinov2kit.encoder.Encoder", ColourEncoder)
    for hue in HUES:
        for number in range(EACH):
            paint(tmp_path / "photos" / f"{hue}{number}.png", shade(hue, number))
    for number in range(4):
        paint(tmp_path / "seed" / f"like{number}.png", (145, 15 + number, 25))
    index_photos(tmp_path / "ix", [tmp_path / "photos"], encoder=ColourEncoder())
    monkeypatch.chdir(tmp_path / "photos")
    return tmp_path


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def hues_of(path: Path) -> set[str]:
    return {Path(row["path"]).stem.rstrip("0123456789") for row in rows_of(path)}


def test_photos_like_those_of_a_folder_come_out_with_their_counts(folder):
    out = folder / "x.jsonl"
    result = curate("--queries", folder / "seed", "-k", "2", "--out", out)
    assert result.exit_code == 0, result.stderr
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert lines[0] == ["stage", "retrieve", "24", "8", "16", "16 near no query"]
    counts = {name: int(count) for name, count in lines[1:]}
    assert counts.pop("collisions") > 0  # the four queries are much alike
    assert counts == {"asked": 8, "returned": 8, "unique": 8, "shortfall": 0}
    assert result.stderr.splitlines() == [f"wrote {out}"]
    assert hues_of(out) == {"red"}
    first = rows_of(out)[0]
    assert (first["source"], first["query_set"]) == ("ix", str(folder / "seed"))
    assert (first["query_id"], first["query"]) == (None, str(folder / "seed" / "like0.png"))


def test_each_mode_works_from_folder_to_file(folder):
    seed = ("--queries", folder / "seed")
    modes = {
        "cluster": (*seed, "--clusters", 3, "--per-cluster", 5),
        "hkmeans": ("--levels", "6,3", "--r", "2,1", "--resample", "2,2", "--target-size", 9),
        "semdedup": ("--eps", 0.03, "--clusters", 3),
        "random": ("--target-size", 7, "--seed", 5),
    }
    found = {}
    for mode, options in modes.items():
        out = folder / f"{mode}.jsonl"
        result = curate("--mode", mode, *options, "--out", out, "--json", "--quiet")
        assert result.exit_code == 0, result.stderr
        found[mode] = json.loads(result.stdout)
        assert found[mode]["schema"] == "dinokit.curate/1"
        assert found[mode]["returned"] == len(rows_of(out)) == found[mode]["stages"][-1]["out"]
    assert hues_of(folder / "cluster.jsonl") == {"red"}
    assert found["cluster"]["returned"] == 5
    assert found["cluster"]["clusters"]["hits"].count(4) == 1
    assert hues_of(folder / "hkmeans.jsonl") == set(HUES)
    assert found["hkmeans"]["clusters"]["chosen"] == [3, 3, 3]
    assert found["hkmeans"]["clusters"]["entropy"] == 1
    assert hues_of(folder / "semdedup.jsonl") == set(HUES)
    assert 3 <= found["semdedup"]["returned"] < 24
    assert found["random"]["returned"] == 7


def test_planted_copies_of_evaluation_photos_never_come_out(folder):
    val, photos = folder / "val", folder / "photos"
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 80, (60, 80, 3)).astype(np.uint8) + np.array([150, 150, 10], np.uint8)
        val.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(val / f"scene{number}.png")
        Image.fromarray(pixels).save(photos / f"leak-exact{number}.png")
        Image.fromarray(pixels).save(photos / f"leak-jpeg{number}.jpg", quality=60)
        Image.fromarray(pixels).resize((40, 30)).save(photos / f"leak-half{number}.png")
    index_photos(folder / "ix", [photos], encoder=ColourEncoder())
    for more in (("--chain",), ("--direct",), ("--dedup", 0.99999)):
        out = folder / "x.txt"
        every = ("--mode", "semdedup", "--eps", 1e-6, "--clusters", 1)
        result = curate(*every, "--exclude-near", val, *more, "--out", out, "--overwrite", "--json", "-q")
        assert result.exit_code == 0, result.stderr
        assert "leak" not in out.read_text()
        stage = next(
            stage for stage in json.loads(result.stdout)["stages"] if stage["name"] == f"exclude {val}"
        )
        assert more[0] == "--dedup" or stage["dropped"]["near"] == 12
        clean = [row for row in out.read_text().splitlines() if "green" in row or "blue" in row]
        assert len(clean) == 2 * EACH


def test_a_folder_is_described_once_and_its_index_is_nobody_elses(folder, monkeypatch):
    described = []

    class Counting(ColourEncoder):
        def embed(self, pixels):
            described.append(len(pixels))
            return super().embed(pixels)

    monkeypatch.setattr("dinov2kit.encoder.Encoder", Counting)
    known = read_registry()
    for _ in range(2):
        assert curate("--queries", folder / "seed", "--out", folder / "x.txt", "--overwrite").exit_code == 0
    assert sum(described) == 4
    paint(folder / "seed" / "more.png", (210, 40, 30))
    assert json.loads(curate("--queries", folder / "seed", "--json").stdout)["asked"] == 20
    assert sum(described) == 5
    paint(folder / "seed" / "before.png", (215, 30, 35))
    assert curate("--queries", folder / "seed", "--out", folder / "grown.jsonl").exit_code == 0
    assert (
        curate("--queries", folder / "seed", "--out", folder / "new.jsonl", "--work", folder / "w").exit_code
        == 0
    )
    assert (folder / "grown.jsonl").read_bytes() == (folder / "new.jsonl").read_bytes()
    (folder / "seed" / "before.png").unlink()
    (folder / "seed" / "more.png").unlink()
    assert json.loads(curate("--queries", folder / "seed", "--json").stdout)["asked"] == 16
    assert read_registry() == known


def test_a_tar_holds_the_photos_and_their_rows_and_is_the_same_each_time(folder):
    (folder / "photos" / "green1.png").write_bytes(b"changed")
    (folder / "photos" / "green2.png").unlink()
    options = ("--mode", "semdedup", "--eps", 1e-6, "--where", "name GLOB 'green*'")
    for name in ("x.tar", "y.tar"):
        result = curate(*options, "--out", folder / name)
        assert result.exit_code == 0
    assert (folder / "x.tar").read_bytes() == (folder / "y.tar").read_bytes()
    with tarfile.open(folder / "x.tar") as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    assert len(members) == 2 * (EACH - 2)
    for name, content in members.items():
        if name.endswith(".json"):
            row = json.loads(content)
            assert members[name.replace(".json", ".png")] == Path(row["path"]).read_bytes()
            Image.open(io.BytesIO(members[name.replace(".json", ".png")])).verify()
    warned = [line for line in result.stderr.splitlines() if "warning" in line]
    assert any("green1.png: it has changed since" in line for line in warned)
    assert any("green2.png: No such file" in line for line in warned)


def test_photos_inside_archives_are_queries_and_results_like_any_other(folder):
    for name, hue in (("shard.tar", "green"), ("asked.tar", "red")):
        with tarfile.open(folder / name, "w") as tar:
            tar.add(paint(folder / "one.png", shade(hue, 9)), f"{hue}.png")
    index_photos(folder / "ix", [folder / "shard.tar"], encoder=ColourEncoder())
    only = ("--mode", "semdedup", "--clusters", 1, "--where", "name = 'green.png'")
    assert curate(*only, "--out", folder / "x.tar").exit_code == 0
    with tarfile.open(folder / "x.tar") as tar:
        assert tar.getnames() == ["000000000.png", "000000000.json"]
        assert Image.open(tar.extractfile("000000000.png")).getpixel((3, 3)) == shade("green", 9)
    assert curate("--queries", folder / "asked.tar", "-k", "3", "--out", folder / "x.jsonl").exit_code == 0
    assert hues_of(folder / "x.jsonl") == {"red"}
    assert rows_of(folder / "x.jsonl")[0]["query"] == f"{folder}/asked.tar/red.png"


def test_names_that_are_no_text_survive(folder):
    strange = folder / "photos" / os.fsdecode(b"gr\xfcn.png")
    paint(strange, (22, 221, 19))
    index_photos(folder / "ix", [folder / "photos"], encoder=ColourEncoder())
    seed = folder / os.fsdecode(b"s\xe4ed")
    paint(seed / os.fsdecode(b"\xff.png"), (22, 221, 19))
    for name in ("x.jsonl", "x.txt", "x.parquet", "x.tar"):
        result = curate("--queries", seed, "-k", "1", "--out", folder / name)
        assert result.exit_code == 0, result.stderr
    (row,) = rows_of(folder / "x.jsonl")
    assert os.fsencode(row["path"]) == os.fsencode(strange)
    assert os.fsencode(row["query"]).endswith(b"\xff.png")
    assert (folder / "x.txt").read_bytes() == os.fsencode(strange) + b"\n"


def test_a_path_with_a_line_break_is_refused_in_a_list(folder):
    paint(folder / "photos" / "two\nlines.png", (20, 221, 20))
    index_photos(folder / "ix", [folder / "photos"], encoder=ColourEncoder())
    all_of_it = ("--mode", "semdedup", "--eps", 1e-9, "--clusters", 1)
    result = curate(*all_of_it, "--out", folder / "x.txt")
    assert result.exit_code == console.USAGE
    assert "write .jsonl instead" in result.stderr
    assert not (folder / "x.txt").exists()


def test_a_report_shows_pictures_and_a_second_run_says_what_it_took_over(folder):
    options = ("--mode", "hkmeans", "--levels", "6,3", "--target-size", 9, "--report", folder / "x.html")
    first = curate(*options)
    assert first.stderr.splitlines() == [
        "nothing was written; name a file with --out",
        f"wrote {folder / 'x.html'}",
    ]
    page = (folder / "x.html").read_text()
    assert page.count("data:image/webp") == 9 + 12  # kept, and a sample of what went
    assert "entropy 1.000" in page
    second = curate(*options, "--overwrite")
    assert second.stderr.splitlines()[0] == "taken from an earlier run: hierarchy"
    assert "taken" not in curate(*options, "--overwrite", "--fresh").stderr


def test_a_terminal_gets_tables(folder, monkeypatch):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    options = ("--mode", "cluster", "--queries", folder / "seed", "--clusters", 3, "--per-cluster", 5)
    lines = curate(*options, env={"COLUMNS": "120"}).stdout.splitlines()
    assert lines[0].split() == ["stage", "in", "out", "dropped"]
    assert lines[1].split() == ["cluster", "24", "5", "19", "not", "drawn", "from", "its", "cluster"]
    assert lines[2] == "asked 5  returned 5  unique 5  collisions 0  shortfall 0"
    assert lines[3].split() == ["cluster", "photos", "queries", "chosen"]
    assert lines[4].split()[1:4] == ["8", "4", "5"]
    assert lines[4].count("━") == round(24 * 5 / 8)
    assert lines[-1] == "1 of 3 clusters, entropy 0.000"


def test_photos_that_cannot_be_read_are_listed_and_stop_nothing(folder):
    (folder / "seed" / "broken.png").write_bytes(b"\x89PNG no")
    result = curate("--queries", folder / "seed", "-k", "1")
    assert result.exit_code == 0
    assert "broken.png" in result.stderr
    assert "asked\t4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], console.USAGE, "mode retrieve needs queries"),
        (["--mode", "sort"], console.USAGE, "unknown mode 'sort'"),
        (["--queries", "nowhere"], console.INPUT, "nowhere does not exist"),
        (["--queries", "."], console.USAGE, "no photo is left"),
        (["--queries", "../empty"], console.INPUT, "there is no photo that can be read in ../empty"),
        (["--mode", "random", "--target-size", "25"], console.USAGE, "there are 24 photos"),
        (["--mode", "random", "--target-size", "2", "--out", "x.csv"], console.USAGE, "suffix"),
        (["--mode", "random", "--target-size", "2", "--out", "red0.png"], console.USAGE, "suffix"),
        (["--mode", "random", "--target-size", "2", "--out", "../there.txt"], console.USAGE, "exists"),
        (["--mode", "random", "--target-size", "2", "--report", "../there.txt"], console.USAGE, "exists"),
        (["--mode", "random", "--target-size", "2", "-i", "nowhere"], console.INDEX, "there is no index"),
        (["--mode", "random", "--target-size", "2", "--where", "colour = 1"], console.USAGE, "cannot filter"),
        (["--mode", "hkmeans", "--target-size", "2", "--levels", "2,3"], console.USAGE, "descending"),
        (["--mode", "hkmeans", "--target-size", "2", "--levels", "a"], console.USAGE, "no list of numbers"),
        (["--mode", "semdedup", "--clusters", "3,2"], console.USAGE, "not one number"),
        (["--mode", "semdedup", "--clusters", "99"], console.USAGE, "99"),
        (["--mode", "semdedup", "--dedup", "1.5"], console.USAGE, "dedup is 1.5"),
        (["--mode", "semdedup", "--work", "red0.png"], console.INDEX, "--work DIR"),
    ],
)
def test_bad_questions_are_one_clear_error(folder, arguments, code, said):
    (folder / "empty").mkdir()
    (folder / "there.txt").write_text("mine")
    result = curate(*arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert (folder / "there.txt").read_text() == "mine"
