"""`dinokit search`: every output for people and for programs, and how bad questions end."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from PIL import Image
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.cli.search import parse_region
from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import index_photos
from dinov2kit.views import Region

COLOURS = {
    "red.png": (250, 10, 10),
    "orange.png": (240, 140, 20),
    "green.png": (40, 250, 10),
    "blue.png": (10, 25, 250),
    "violet.png": (120, 10, 240),
}


def search(*arguments: object, **settings: object) -> Result:
    return CliRunner().invoke(app, ["search", *map(str, arguments)], **settings)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Five photos in an index that is found by itself; the current folder is that of the photos."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    monkeypatch.setattr("dinov2kit.encoder.Encoder", ColourEncoder)
    for name, colour in COLOURS.items():
        paint(tmp_path / "photos" / name, colour, size=(40, 30))
    index_photos(tmp_path / "ix", [tmp_path / "photos"], encoder=ColourEncoder())
    monkeypatch.chdir(tmp_path / "photos")
    return tmp_path / "photos"


def cosine(one: str, other: str) -> float:
    first, second = (np.array(COLOURS[name], float) for name in (one, other))
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def by_cosine(query: str) -> list[str]:
    return sorted((name for name in COLOURS if name != query), key=lambda name: -cosine(query, name))


def test_a_pipe_gets_scores_and_paths_and_people_get_a_word_on_stderr(folder):
    result = search("red.png")
    assert result.exit_code == 0
    rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert [path for _, path in rows] == [str(folder / name) for name in by_cosine("red.png")]
    for score, path in rows:
        assert float(score) == pytest.approx(cosine("red.png", Path(path).name), abs=1e-3)
        assert re.fullmatch(r"0\.\d{6}", score)
    lines = result.stderr.splitlines()
    assert re.fullmatch(r"the query is #\d of the index", lines[0])
    assert re.fullmatch(r"4 of 5 photos, colour · [\d,]+ ms", lines[1])
    assert search("red.png", "--quiet").stderr == ""


def test_json_is_one_document_with_stable_keys(folder):
    result = search("red.png", "-k", "2", "--json", "--quiet")
    document = json.loads(result.stdout)
    assert list(document) == [
        "schema",
        "index",
        "model",
        "items",
        "query",
        "query_ids",
        "seconds",
        "hits",
    ]
    assert document["schema"] == "dinokit.search/1"
    assert document["index"] == str(folder.parent / "ix")
    assert (document["model"], document["items"], document["query"]) == ("colour", 5, ["red.png"])
    assert [Path(hit["path"]).name for hit in document["hits"]] == by_cosine("red.png")[:2]
    assert list(document["hits"][0]) == ["id", "score", "path", "width", "height", "taken_at", "gone"]
    own = search(f"id:{document['query_ids'][0]}", "-k", "2", "--json", "--quiet")
    assert json.loads(own.stdout)["hits"] == document["hits"]


def test_jsonl_is_one_line_for_each_hit_or_with_each_for_each_query(folder):
    lines = [json.loads(line) for line in search("red.png", "--jsonl").stdout.splitlines()]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4]
    assert {line["schema"] for line in lines} == {"dinokit.hit/1"}
    each = search("red.png", "blue.png", "--each", "--jsonl").stdout.splitlines()
    lines = [json.loads(line) for line in each]
    assert [line.pop("schema") for line in lines] == ["dinokit.answer/1"] * 2
    assert [line["query"] for line in lines] == [["red.png"], ["blue.png"]]
    for line in lines:
        assert [Path(hit["path"]).name for hit in line["hits"]] == by_cosine(line["query"][0])
    answers = json.loads(search("red.png", "blue.png", "--each", "--json").stdout)["answers"]
    assert all(answer.pop("seconds") >= 0 for answer in [*answers, *lines])
    assert answers == lines


def test_several_queries_are_one_mean_or_with_each_many_answers(folder):
    mean = search("red.png", "blue.png", "-f").stdout.splitlines()
    assert Path(mean[0]).name == "violet.png"
    assert len(mean) == 3
    each = search("red.png", "blue.png", "--each", "-k", "1").stdout.splitlines()
    rows = [line.split("\t") for line in each]
    assert [(Path(path).name, asked) for _, path, asked in rows] == [
        (by_cosine("red.png")[0], "red.png"),
        ("violet.png", "blue.png"),
    ]


def test_paths_alone_come_by_line_or_by_nul_and_keep_their_bytes(folder):
    expected = [str(folder / name) for name in by_cosine("green.png")]
    assert search("green.png", "--paths").stdout.splitlines() == expected
    strange = folder / os.fsdecode(b"gr\xfcn.png")
    paint(strange, (40, 245, 12))
    index_photos(folder.parent / "ix", [folder], encoder=ColourEncoder())
    found = search("green.png", "-0").stdout_bytes.split(b"\0")
    assert found[0] == os.fsencode(strange)
    assert found[-1] == b""
    assert len(found) == 6


def test_an_image_can_come_on_stdin(folder):
    content = (folder / "blue.png").read_bytes()
    result = search("-", "-f", "-k", "2", input=content)
    assert [Path(line).name for line in result.stdout.splitlines()] == ["blue.png", "violet.png"]
    assert search("-", input=b"").exit_code == console.INPUT
    assert "nothing came on stdin" in search("-", input=b"").stderr
    assert search("-", input=b"rubbish").exit_code == console.INPUT


def test_options_reach_the_search(folder):
    assert search("red.png", "-f", "--where", "name GLOB 'b*'").stdout.split() == [str(folder / "blue.png")]
    kept = search("red.png", "-f", "--min-score", "0.5").stdout.split()
    assert [Path(path).name for path in kept] == [
        name for name in by_cosine("red.png") if cosine("red.png", name) >= 0.5
    ]
    assert search("red.png", "-f", "--include-self", "-k", "1").stdout.split() == [str(folder / "red.png")]
    (folder / "orange.png").unlink()
    assert str(folder / "orange.png") in search("red.png", "-f").stdout
    assert str(folder / "orange.png") not in search("red.png", "-f", "--existing").stdout
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = COLOURS["green.png"], COLOURS["blue.png"]
    Image.fromarray(pixels).save(folder / "half.png")
    for region, name in (("0,0,40,40", "green.png"), ("0.5,0,0.5,1", "blue.png")):
        assert search("half.png", "-f", "-k", "1", "--region", region).stdout.split() == [str(folder / name)]


def test_a_terminal_gets_a_table(folder, monkeypatch):
    (folder / "orange.png").unlink()
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    lines = search("red.png", env={"COLUMNS": "160"}).stdout.splitlines()
    assert lines[0].split() == ["#", "score", "photo", "size", "taken"]
    first = lines[1].split()
    assert first[0] == "1"
    assert first[1] == f"{cosine('red.png', 'orange.png'):.3f}"
    assert first[3:] == [str(folder / "orange.png"), "40x30"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    lengths = [line.split()[2].count("━") for line in lines[1:]]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (12, 1)


def test_a_preview_shows_the_photos_themselves(folder, monkeypatch):
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    colours = {"COLUMNS": "80", "COLORTERM": "truecolor"}
    shown = search("red.png", "-k", "1", "--preview", "block", env=colours)
    assert "▀" in shown.stdout
    assert "▀" not in search("red.png", "-k", "1", "--preview", "none").stdout


def test_pictures_of_the_answer_are_written_and_said(folder, tmp_path):
    result = search("red.png", "--montage", tmp_path / "m.png", "--html", tmp_path / "m.html", "-f")
    assert result.exit_code == 0
    assert result.stderr.splitlines()[-2:] == [f"wrote {tmp_path / 'm.png'}", f"wrote {tmp_path / 'm.html'}"]
    sheet = np.asarray(Image.open(tmp_path / "m.png").convert("RGB")).reshape(-1, 3)
    for colour in COLOURS.values():  # the query and all four hits
        assert (np.abs(sheet.astype(int) - colour).max(axis=1) < 8).mean() > 0.02
    page = (tmp_path / "m.html").read_text()
    assert page.count("data:image") >= 5
    assert not re.search(r'(src|href)="(?!data:)[a-z]+:', page)  # nothing is loaded from elsewhere
    assert page.index("orange.png") < page.index("violet.png")


def test_a_montage_goes_on_where_a_file_is_gone(folder, tmp_path):
    (folder / "orange.png").unlink()
    assert search("red.png", "--montage", tmp_path / "m.jpg").exit_code == 0
    assert Image.open(tmp_path / "m.jpg").format == "JPEG"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["nowhere.png"], console.INPUT, "nowhere.png"),
        (["id:77"], console.USAGE, "77"),
        (["red.png", "-i", "nowhere"], console.INDEX, "there is no index in"),
        (["red.png", "--json", "--paths"], console.USAGE, "exclude each other"),
        (["red.png", "--jsonl", "-0"], console.USAGE, "exclude each other"),
        (["-", "-"], console.USAGE, "can be given once"),
        (["red.png", "--each", "--montage", "m.jpg"], console.USAGE, "show one answer"),
        (["red.png", "--region", "1,2"], console.USAGE, "'1,2' is no region"),
        (["red.png", "--region", "0,0,99,99"], console.USAGE, "region"),
        (["red.png", "--where", "colour = 'red'"], console.USAGE, "cannot filter by"),
        (["red.png", "--preview", "kitty"], console.USAGE, "kitty"),
        (["red.png", "--montage", "m.txt"], console.USAGE, ".txt"),
        (["red.png", "--montage", "no/such/m.jpg"], console.USAGE, "no/such"),
        (["red.png", "-k", "0"], console.USAGE, "'-k'"),
        ([], console.USAGE, "QUERY"),
    ],
)
def test_bad_questions_are_one_clear_error(folder, arguments, code, said):
    result = search(*arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_is_not_that_of_the_index_is_exit_6(folder, monkeypatch):
    class Other(ColourEncoder):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()
            self.identity = type(self.identity)("other", "1" * 64, 3, "mean", self.view.describe())

    monkeypatch.setattr("dinov2kit.encoder.Encoder", Other)
    paint(folder / "outside.png", (1, 2, 3))
    result = search("outside.png")
    assert result.exit_code == console.INDEX
    assert "other" in result.stderr


def test_a_region_is_read_in_pixels_or_in_shares():
    assert parse_region("10,20,300,400") == Region(10, 20, 300, 400)
    assert parse_region("0.25,0,0.5,1") == Region(0.25, 0, 0.5, 1, relative=True)
    for text in ("1,2,3", "a,b,c,d", "1,2,3,4,5", ""):
        with pytest.raises(ArgumentError):
            parse_region(text)
