"""`dinokit search`: every output for people and for programs, and how bad questions end."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from PIL import Image
from pixel_encoder import PixelEncoder
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.cli.search import parse_region, parse_weighted
from dinov2kit.errors import ArgumentError
from dinov2kit.features import Features, FeatureSpec
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
        "not",
        "agg",
        "seconds",
        "hits",
    ]
    assert document["schema"] == "dinokit.search/1"
    assert document["index"] == str(folder.parent / "ix")
    assert (document["model"], document["items"], document["query"]) == ("colour", 5, ["red.png"])
    assert (document["not"], document["agg"]) == ([], "mean")
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
        ([], console.USAGE, "there is no QUERY"),
    ],
)
def test_bad_questions_are_one_clear_error(folder, arguments, code, said):
    result = search(*arguments, env={"COLUMNS": "200"})
    assert result.exit_code == code
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_questions_that_make_no_sense_are_refused_before_they_are_answered(folder):
    for arguments, code, said in [
        (["--text", "a red car"], console.USAGE, "DINOv2 has no text encoder"),
        (["http://example.org/a.jpg"], console.USAGE, "dinokit fetches nothing"),
        (["red.png", "--not", "2:HTTPS://example.org/a.jpg"], console.USAGE, "dinokit fetches nothing"),
        (["2:nowhere.png"], console.INPUT, "no such image or folder: nowhere.png"),
        (["0:red.png"], console.USAGE, "a weight is 0"),
        (["red.png", "--not", "red.png"], console.USAGE, "cancel each other out"),
        (["red.png", "blue.png", "--agg", "median"], console.USAGE, "unknown aggregation 'median'"),
        (["red.png", "2:blue.png", "--agg", "max"], console.USAGE, "not with 'max'"),
        (["red.png", "--agg", "min", "--expand", "3"], console.USAGE, "not with 'min'"),
        (["red.png", "--expand", "-1"], console.USAGE, "'--expand'"),
        (["red.png", "--rerank", "3", "--geom", "plane"], console.USAGE, "unknown geometry 'plane'"),
        (["red.png", "--rerank", "3"], console.USAGE, "has none"),
        (["red.png", "--cache", "x.h5"], console.USAGE, "there is no --rerank"),
        (["red.png", "--csv", "--json"], console.USAGE, "exclude each other"),
        (["red.png", "blue.png", "--each", "--copy-to", "new"], console.USAGE, "show one answer"),
        (["red.png", "--copy-to", "new", "--symlink-to", "other"], console.USAGE, "exclude each other"),
        (["red.png", "--copy-to", "."], console.USAGE, "holds files already"),
        (["red.png", "--copy-to", "red.png"], console.USAGE, "red.png is a file"),
        (["red.png", "--symlink-to", "no/such"], console.USAGE, "there is no folder no"),
        (["--vector", "red.png"], console.USAGE, "it is no .npy file"),
        (["--vector", "nowhere.npy"], console.USAGE, "nowhere.npy: No such file"),
        (["red.png", "--region", "0,0,9,9", "--region", "0,0,9,9"], console.USAGE, "2 --region and 1 QUERY"),
    ]:
        result = search(*arguments, env={"COLUMNS": "200"})
        assert (result.exit_code, result.stdout) == (code, ""), arguments
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


def paths(*arguments: object, **settings: object) -> list[str]:
    result = search(*arguments, "-f", **settings)
    assert result.exit_code == 0, result.stderr
    return [Path(line).name for line in result.stdout.splitlines()]


def test_weights_and_negative_photos_are_written_beside_the_name(folder):
    """Violet is much blue and some red: without blue it is red; with red counted often it is red as well."""
    assert paths("violet.png", "-k", "1") == ["blue.png"]
    assert paths("violet.png", "--not", "0.9:blue.png", "-k", "1") == ["red.png"]
    assert paths("violet.png", "5:red.png", "-k", "1") == ["orange.png"]
    number = json.loads(search("red.png", "--json", "-q").stdout)["query_ids"][0]
    assert paths("violet.png", f"5:id:{number}", "-k", "1") == ["orange.png"]
    answer = json.loads(search("violet.png", "--not", "0.9:blue.png", "--json", "-q").stdout)
    assert (answer["query"], answer["not"], len(answer["query_ids"])) == (["violet.png"], ["0.9:blue.png"], 1)
    assert "blue.png" not in [Path(hit["path"]).name for hit in answer["hits"]]
    each = [
        json.loads(line)
        for line in search(
            "red.png", "violet.png", "--not", "blue.png", "--each", "--jsonl", "-q"
        ).stdout.splitlines()
    ]
    assert [line["query"] for line in each] == [["red.png"], ["violet.png"]]
    assert all(line["not"] == ["blue.png"] and len(line["hits"]) == 3 for line in each)
    assert paths("--not", "red.png", "-k", "1") == ["blue.png"]  # the least alike


def test_a_name_that_looks_like_a_weight_is_a_file_if_there_is_one(folder):
    paint(folder / "2:red.png", COLOURS["green.png"])
    assert parse_weighted("2:red.png") == ("2:red.png", 1.0)
    assert parse_weighted("3:red.png") == ("red.png", 3.0)
    assert parse_weighted("0.25:a:b.png") == ("a:b.png", 0.25)
    for plain in ("red.png", "id:3", "c:red.png", "-1:red.png", "2:", "-"):
        assert parse_weighted(plain) == (plain, 1.0)
    assert paths("2:red.png", "-k", "1") == ["green.png"]


def test_several_queries_count_together_as_asked(folder):
    pair = ("red.png", "blue.png")
    for agg, best in (("max", max), ("min", min)):
        rest = {name: best(cosine(query, name) for query in pair) for name in COLOURS if name not in pair}
        lines = search(*pair, "--agg", agg).stdout.splitlines()
        assert [Path(line.split("\t")[1]).name for line in lines] == sorted(
            rest, key=lambda name: -rest[name]
        )
        assert float(lines[0].split("\t")[0]) == pytest.approx(max(rest.values()), abs=1e-3)
    answer = json.loads(search(*pair, "--agg", "rrf", "--json", "-q").stdout)
    assert answer["agg"] == "rrf"
    ranks = [[name for name in by_cosine(query) if name not in pair] for query in pair]
    shares = {name: sum(1 / (61 + order.index(name)) for order in ranks) for name in ranks[0]}
    assert {Path(hit["path"]).name: hit["score"] for hit in answer["hits"]} == pytest.approx(shares, abs=1e-6)


def test_expansion_reaches_the_search(folder):
    plain, expanded = (json.loads(search("red.png", "--expand", n, "--json", "-q").stdout) for n in (0, 2))
    first, second = (np.array(COLOURS[name], float) for name in by_cosine("red.png")[:2])
    query = np.array(COLOURS["red.png"], float)
    rows = [row / np.linalg.norm(row) for row in (query, first, second)]
    total = rows[0] + sum((rows[0] @ row) ** 3 * row for row in rows[1:])
    assert expanded["hits"][0]["score"] == pytest.approx(rows[1] @ total / np.linalg.norm(total), abs=1e-3)
    assert expanded["hits"][0]["score"] > plain["hits"][0]["score"]


def test_descriptors_are_asked_from_a_file_and_nothing_heavy_is_loaded(folder):
    np.save(folder.parent / "green.npy", np.array(COLOURS["green.png"], np.float32))
    np.save(folder.parent / "two.npy", np.array([COLOURS["green.png"], COLOURS["blue.png"]], np.float32))
    assert paths("--vector", folder.parent / "green.npy", "-k", "2") == ["green.png", "orange.png"]
    lines = search("--vector", folder.parent / "two.npy", "--each", "-k", "1", "-q").stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    two = folder.parent / "two.npy"
    assert [(Path(path).name, asked) for _, path, asked in rows] == [
        ("green.png", f"{two}[0]"),
        ("blue.png", f"{two}[1]"),
    ]
    program = (
        "import sys\nfrom dinov2kit.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('torch', 'cv2', 'transformers') if name in sys.modules], file=sys.stderr)"
    )
    asked = ["--vector", str(folder.parent / "green.npy"), "id:1", "--not", "id:2", "--expand", "1", "-q"]
    command = [sys.executable, "-c", program, "search", *asked]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]"
    assert run.stdout


def test_each_query_has_its_own_region(folder):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = COLOURS["green.png"], COLOURS["blue.png"]
    Image.fromarray(pixels).save(folder / "half.png")
    asked = ("half.png", "half.png", "--each", "-k", "1")
    assert paths(*asked, "--region", "0,0,40,40", "--region", "0.5,0,0.5,1") == ["green.png", "blue.png"]
    assert paths(*asked, "--region", "0,0,40,40", "--not", "red.png") == ["green.png"] * 2


def test_csv_is_a_table_with_names(folder):
    rows = list(csv.DictReader(io.StringIO(search("red.png", "--csv").stdout)))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    assert [Path(row["path"]).name for row in rows] == by_cosine("red.png")
    assert list(rows[0]) == ["rank", "id", "score", "path", "width", "height", "taken_at", "gone"]
    assert (rows[0]["gone"], rows[0]["taken_at"], rows[0]["width"]) == ("false", "", "40")
    rows = list(
        csv.DictReader(io.StringIO(search("red.png", "blue.png", "--each", "--csv", "-k", "1").stdout))
    )
    assert [(row["query"], Path(row["path"]).name) for row in rows] == [
        ("red.png", by_cosine("red.png")[0]),
        ("blue.png", "violet.png"),
    ]
    assert search("red.png", "--csv", "--min-score", "1.1").stdout == ""


def test_nothing_found_is_an_error_only_when_that_is_asked_for(folder):
    assert search("red.png", "--min-score", "1.1").exit_code == 0
    assert search("red.png", "--min-score", "1.1", "--fail-if-empty").exit_code == console.FAILURE
    assert search("red.png", "--fail-if-empty").exit_code == 0


def test_photos_are_copied_or_linked_by_rank_and_what_is_gone_is_said(folder, tmp_path):
    order = by_cosine("red.png")
    (folder / order[1]).unlink()
    result = search("red.png", "--copy-to", tmp_path / "new", "--json")
    gathered = json.loads(result.stdout)["gathered"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        f"{rank:02}-{name}" for rank, name in enumerate(order, 1) if rank != 2
    ]
    assert (tmp_path / "new" / f"01-{order[0]}").read_bytes() == (folder / order[0]).read_bytes()
    assert [Path(one["to"]).name[:3] for one in gathered["written"]] == ["01-", "03-", "04-"]
    assert [Path(one["path"]).name for one in gathered["failed"]] == [order[1]]
    assert f"warning: {folder / order[1]}:" in result.stderr
    assert f"3 photos in {tmp_path / 'new'}" in result.stderr
    assert search("red.png", "--copy-to", tmp_path / "new").exit_code == console.USAGE
    search("red.png", "--symlink-to", tmp_path / "links", "-k", "1")
    (link,) = (tmp_path / "links").iterdir()
    assert link.readlink() == folder / order[0]


class PatchyEncoder(ColourEncoder):
    """Describes an image by its mean colour, and its patches by their pixels."""

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        return PixelEncoder().encode(source, spec)


@pytest.fixture
def scenes(tmp_path, monkeypatch) -> Path:
    """A photo, itself moved, and two others whose mean colours are nearer to it than that of its own copy."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dinov2kit.encoder.Encoder", PatchyEncoder)
    (tmp_path / "photos").mkdir()
    grey = np.array([90, 90, 90])
    random = np.random.default_rng(0)
    scene = random.integers(0, 120, (84, 140, 3)) + grey
    views = {"a.png": scene[:, :112], "moved.png": scene[:, 28:] + [0, 0, 9]}
    views |= {f"other{number}.png": random.integers(0, 120, (84, 112, 3)) + grey for number in range(2)}
    for name, pixels in views.items():
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name)
    index_photos(tmp_path / "ix", [tmp_path / "photos"], encoder=PatchyEncoder())
    monkeypatch.chdir(tmp_path / "photos")
    return tmp_path / "photos"


def test_reranking_brings_the_same_scene_to_the_top_and_says_what_it_saw(scenes, monkeypatch):
    assert paths("a.png")[-1] == "moved.png"
    assert paths("a.png", "--rerank", "10")[0] == "moved.png"
    assert paths("a.png", "--rerank", "10", "-k", "1") == ["moved.png"]
    assert paths("a.png", "--rerank", "2")[-1] == "moved.png"
    plain = json.loads(search("a.png", "--json", "-q").stdout)["hits"]
    hits = json.loads(search("a.png", "--rerank", "10", "--json", "-q").stdout)["hits"]
    by_id = {hit["id"]: hit for hit in plain}
    for hit in hits:
        assert by_id[hit["id"]].items() <= hit.items()
    assert hits[0]["inliers"] == 36  # six rows and six of eight columns are seen by both
    assert hits[0]["rerank_score"] > hits[1]["rerank_score"]
    assert (
        json.loads(search("a.png", "--rerank", "9", "--geom", "none", "--json", "-q").stdout)["hits"][0][
            "inliers"
        ]
        is None
    )
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    lines = search("a.png", "--rerank", "10", env={"COLUMNS": "160"}).stdout.splitlines()
    assert lines[0].split() == ["#", "inliers", "matches", "score", "photo", "size", "taken"]
    assert lines[1].split()[:2] == ["1", "36"]


def test_what_reranking_encodes_can_be_kept_and_what_it_cannot_read_is_said(scenes, tmp_path):
    first = search("a.png", "--rerank", "9", "--cache", tmp_path / "patches.h5", "-f").stdout
    entries = list((tmp_path / "patches.h5.parts").rglob("*.h5"))
    assert len(entries) == 4
    assert search("a.png", "--rerank", "9", "--cache", tmp_path / "patches.h5", "-f").stdout == first
    (scenes / "moved.png").unlink()
    result = search("a.png", "--rerank", "9", "--csv")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert Path(rows[-1]["path"]).name == "moved.png"
    assert (rows[-1]["note"], rows[-1]["rerank_score"]) == ("the file is gone", "")
    assert f"not compared: {scenes / 'moved.png'}: the file is gone" in result.stderr


def test_a_region_is_read_in_pixels_or_in_shares():
    assert parse_region("10,20,300,400") == Region(10, 20, 300, 400)
    assert parse_region("0.25,0,0.5,1") == Region(0.25, 0, 0.5, 1, relative=True)
    for text in ("1,2,3", "a,b,c,d", "1,2,3,4,5", ""):
        with pytest.raises(ArgumentError):
            parse_region(text)
