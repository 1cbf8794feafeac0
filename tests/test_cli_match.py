"""The command on real photos, with a stand-in encoder whose descriptors are the pixels of each patch.

Image B is image A moved by whole patches, so that the truth is known: x1 = x0 - 56, y1 = y0.
"""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image as PillowImage
from skimage import data
from typer.testing import CliRunner

from dinov2kit.cli.app import KitGroup
from dinov2kit.cli.match import register
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.pairs import draw_pair, match_images, write_pair
from dinov2kit.points import NamedPoints

PATCH, SHIFT = 14, 56


class PixelEncoder:
    """Each patch is described by its own pixels, at the size the image has."""

    def __init__(self, model: str = "pixels", *, device: str = "auto", precision: str = "auto") -> None:
        self.identity = ModelIdentity(model, "0" * 64, PATCH * PATCH * 3, "cls", {})

    def encode(self, source: Path, *, size: int = 518) -> Features:
        if not source.exists():
            raise ImageError(f"no such image: {source}")
        pixels = np.asarray(PillowImage.open(source).convert("RGB"), np.float32)
        height, width = pixels.shape[:2]
        rows, cols = max(1, height // PATCH), max(1, width // PATCH)
        cut = pixels[: rows * PATCH, : cols * PATCH].reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2)
        tokens = torch.from_numpy(cut.reshape(rows * cols, -1).copy())
        tokens = tokens - tokens.mean(dim=1, keepdim=True)
        grid = PatchGrid(rows, cols, PATCH, width, height, size / 518, size / 518)
        return Features(tokens.mean(dim=0), tokens, torch.zeros(0, tokens.shape[1]), grid)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    photo = data.coffee()[:392, :560]
    PillowImage.fromarray(photo).save(tmp_path / "a.png")
    PillowImage.fromarray(photo[:, SHIFT:]).save(tmp_path / "b.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dinov2kit.encoder.Encoder", PixelEncoder)
    return "a.png", "b.png"


def dinokit(*arguments: str):
    app = typer.Typer(cls=KitGroup)
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["match", *arguments])


def test_the_default_writes_a_picture_and_a_summary_and_no_result_on_stdout(pair: tuple[str, str]) -> None:
    result = dinokit(*pair)
    assert (result.exit_code, result.stdout) == (0, "")
    assert PillowImage.open("matches.png").size[1] == 392 + 88 + 56 + 20
    lines = result.stderr.splitlines()
    assert lines[0] == "a.png 560×392 (40×28 patches) ↔ b.png 504×392 (36×28 patches)"
    assert lines[1].startswith("50 matches, 50 kept · medians: confidence 0.")
    assert "cosine 1.000" in lines[1]
    assert lines[3] == "wrote matches.png"
    assert len(lines) == 4


def test_json_holds_the_truth(pair: tuple[str, str]) -> None:
    result = dinokit(*pair, "--json", "--no-draw", "--num", "20", "--mutual")
    document = json.loads(result.stdout)
    assert document["schema"] == "dinokit.match/1"
    assert document["model"]["name"] == "auto"
    assert (document["image0"]["width"], document["image1"]["width"]) == (560, 504)
    assert len(document["matches"]) == 20
    for row in document["matches"]:
        assert (row["x1"], row["y1"]) == pytest.approx((row["x0"] - SHIFT, row["y0"]), abs=4)
        assert row["kept"]
    assert not Path("matches.png").exists()


def test_given_points_are_printed_as_csv_in_their_order(pair: tuple[str, str]) -> None:
    Path("p.csv").write_text("300.5,200.5,spoon\n104.5,62.5\n300.5,200.5,again\n")
    result = dinokit(*pair, "--points", "p.csv", "--no-draw", "--quiet")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["name"] for row in rows] == ["spoon", "", "again"]
    assert [float(row["x0"]) for row in rows] == [300.5, 104.5, 300.5]
    assert [float(row["x1"]) for row in rows] == pytest.approx([244.5, 48.5, 244.5], abs=4)
    assert result.stderr == ""


def test_files_are_written_by_suffix_and_agree(pair: tuple[str, str]) -> None:
    assert dinokit(*pair, "--out", "m.json", "--no-draw").exit_code == 0
    assert dinokit(*pair, "--out", "m.csv", "--draw", "m.jpg").exit_code == 0
    document = json.loads(Path("m.json").read_text())
    rows = list(csv.DictReader(io.StringIO(Path("m.csv").read_text())))
    assert [float(row["x1"]) for row in rows] == [row["x1"] for row in document["matches"]]
    assert PillowImage.open("m.jpg").format == "JPEG"
    assert json.loads(dinokit(*pair, "--out", "-", "--no-draw").stdout)["matches"] == document["matches"]


def test_an_existing_file_is_kept_unless_told_otherwise(pair: tuple[str, str]) -> None:
    Path("matches.png").write_text("mine")
    result = dinokit(*pair)
    assert result.exit_code == 2
    assert "matches.png exists already" in result.stderr
    assert Path("matches.png").read_text() == "mine"
    assert dinokit(*pair, "--overwrite").exit_code == 0
    assert PillowImage.open("matches.png").format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.png", "b.png"], 3, "no such image: absent.png"),
        (["a.png", "b.png", "--points", "5000,5;1,1"], 2, "1 of 2 points are not on image 0"),
        (["a.png", "b.png", "--points", "absent.csv"], 2, "absent.csv"),
        (["a.png", "b.png", "--num", "0"], 2, "num is 0"),
        (["a.png", "b.png", "--out", "m.xlsx"], 2, ".json, .csv"),
        (["a.png", "b.png", "--draw", "m.gif"], 2, ".png, .jpg"),
        (["a.png", "b.png", "--draw", "absent/m.png"], 2, "no folder absent"),
    ],
)
def test_what_cannot_be_done_ends_with_its_exit_code_and_a_reason(
    pair: tuple[str, str], arguments: list[str], code: int, said: str
) -> None:
    no_draw = [] if "--draw" in arguments else ["--no-draw"]
    result = dinokit(*arguments, *no_draw)
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stdout == ""
    assert sorted(path.name for path in Path().iterdir()) == ["a.png", "b.png"]


def test_doubtful_answers_come_with_a_warning(pair: tuple[str, str]) -> None:
    PillowImage.open("a.png").save("same.png")
    Path("same.png").write_bytes(Path("a.png").read_bytes())
    assert "both files hold the same image" in dinokit("a.png", "same.png", "--no-draw").stderr
    PillowImage.fromarray(data.coffee()[:70, :560]).save("long.png")
    assert "image 0 is 560×70" in dinokit("long.png", "b.png", "--no-draw").stderr
    assert "random weights" in dinokit(*pair, "--no-draw", "--model", "untrained:vitt14").stderr
    assert "enlarged 5.0 times" in dinokit(*pair, "--no-draw", "--size", "2590").stderr
    plain = dinokit(*pair, "--no-draw")
    assert "warning" not in plain.stderr


def test_few_kept_matches_are_doubted_only_when_more_were_asked_for(pair: tuple[str, str]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (392, 504, 3), dtype=np.uint8)
    PillowImage.fromarray(noise).save("noise.png")
    result = dinokit(
        "a.png", "noise.png", "--no-draw", "--max-cycle", "0", "--points", "9,9;99,99;200,9;9,200"
    )
    assert result.exit_code == 0
    assert "were kept" in result.stderr
    assert len(result.stdout.splitlines()) == 5
    assert "were kept" not in dinokit(*pair, "--points", "300,200", "--no-draw").stderr


def test_the_library_verb_does_what_the_command_does(pair: tuple[str, str], tmp_path: Path) -> None:
    points = NamedPoints(np.array([[300.5, 200.5]], np.float32), ("spoon",))
    found = match_images(PixelEncoder(), Path("a.png"), Path("b.png"), points=points)
    write_pair(found, tmp_path / "m.json")
    draw_pair(found, tmp_path / "m.webp")
    written = json.loads((tmp_path / "m.json").read_text())
    assert written == found.to_json()
    assert written["matches"][0]["name"] == "spoon"
    with pytest.raises(ArgumentError, match=r"\.json, \.csv"):
        write_pair(found, tmp_path / "m.txt")


def test_the_help_shows_an_example() -> None:
    result = dinokit("--help")
    assert result.exit_code == 0
    assert "dinokit match cat1.jpg cat2.jpg" in result.stdout
