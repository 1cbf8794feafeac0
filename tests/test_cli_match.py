"""The command on real photos, with a stand-in encoder whose descriptors are the pixels of each patch.

Image B is image A moved by whole patches, so that the truth is known: x1 = x0 - 56, y1 = y0.
"""

import csv
import io
import json
from pathlib import Path

import h5py
import jaxtyping
import numpy as np
import pytest
import torch
import typer
from PIL import Image as PillowImage
from skimage import data
from typer.testing import CliRunner

from dinov2kit.adapter import Adapter, AdapterCard, save_adapter
from dinov2kit.cli.app import KitGroup
from dinov2kit.cli.match import register
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.pair_files import pair_document, write_pair
from dinov2kit.pair_pictures import STYLES, draw_pair
from dinov2kit.pairs import match_images
from dinov2kit.points import NamedPoints

PATCH, SHIFT = 14, 56


class PixelEncoder:
    """Each patch is described by its own pixels, at the size the image has."""

    def __init__(self, model: str = "pixels", *, device: str = "auto", precision: str = "auto") -> None:
        self.identity = ModelIdentity(model, "0" * 64, PATCH * PATCH * 3, "cls", {})

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        if not source.exists():
            raise ImageError(f"no such image: {source}")
        pixels = np.asarray(PillowImage.open(source).convert("RGB"), np.float32)
        height, width = pixels.shape[:2]
        rows, cols = max(1, height // PATCH), max(1, width // PATCH)
        cut = pixels[: rows * PATCH, : cols * PATCH].reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2)
        spec = spec or FeatureSpec()
        cut = np.rot90(cut[:, :, :, ::-1] if spec.mirrored else cut, spec.turns, (2, 3))
        tokens = torch.from_numpy(cut.reshape(rows * cols, -1).copy())
        tokens = tokens - tokens.mean(dim=1, keepdim=True)
        scale = spec.size / 518
        grid = PatchGrid(rows, cols, PATCH, width, height, scale, scale)
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
    result = dinokit(*pair, "--mask", "none")
    assert (result.exit_code, result.stdout) == (0, "")
    assert PillowImage.open("matches.png").size[0] > 2 * 504
    lines = result.stderr.splitlines()
    assert lines[0] == "a.png 560×392 (40×28 patches) ↔ b.png 504×392 (36×28 patches)"
    assert lines[1].startswith("50 matches, 50 kept · medians: confidence 0.")
    assert "cosine 1.000" in lines[1]
    assert lines[3] == "wrote matches.png"
    assert len(lines) == 4
    assert "foreground (" in dinokit(*pair, "--no-draw").stderr


def test_json_holds_the_truth(pair: tuple[str, str]) -> None:
    result = dinokit(*pair, "--json", "--no-draw", "--num", "20", "--mutual", "--mask", "none")
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
        (["a.png", "b.png", "--flow", "m.png"], 2, ".flo, .npy, .npz"),
        (["a.png", "b.png", "--draw", "m.png", "--style", "stars"], 2, "lines, dots"),
        (["a.png", "b.png", "--rotations", "3"], 2, "wanted 1 or 4"),
        (["a.png", "b.png", "--mask", "one.png"], 2, "FILE,FILE"),
        (["a.png", "b.png", "--mask", "absent.png,b.png"], 3, "absent.png"),
        (["a.png", "b.png", "--mask", "a.png,a.png"], 3, "560"),
        (["a.png", "b.png", "--geom", "spline"], 2, "similarity, affine, homography, fundamental"),
        (["a.png", "b.png", "--keypoints", "harris"], 2, "spread, kmeans, grid, sift"),
        (["a.png", "b.png", "--points", "9,9;9999,9", "--outside", "move"], 2, "error, clip, skip"),
        (["a.png", "b.png", "--points", "9999,9", "--outside", "skip"], 2, "none of 1 points"),
        (["a.png", "b.png", "--max-cycle", "-1"], 2, "max_cycle is -1"),
        (["a.png", "b.png", "--facet", "values"], 2, "token, query, key, value"),
        (["a.png"], 2, "two images"),
        ([], 2, "two images"),
        (["a.png", "b.png", "--draw", "m.gif"], 2, ".png, .jpg"),
        (["a.png", "b.png", "--draw", "absent/m.png"], 2, "no folder absent"),
    ],
)
def test_what_cannot_be_done_ends_with_its_exit_code_and_a_reason(
    pair: tuple[str, str], arguments: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of tests
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
    points = NamedPoints(np.array([[300.5, 200.5]], np.float32), ("spoon",), (7,))
    found = match_images(PixelEncoder(), Path("a.png"), Path("b.png"), points=points)
    write_pair(found, tmp_path / "m.json")
    draw_pair(found, tmp_path / "m.webp")
    written = json.loads((tmp_path / "m.json").read_text())
    assert written == pair_document(found)
    assert (written["matches"][0]["name"], written["matches"][0]["id"]) == ("spoon", 7)
    with pytest.raises(ArgumentError, match=r"\.json, \.csv, \.txt, \.npz, \.h5"):
        write_pair(found, tmp_path / "m.xml")


def read(*arguments: str) -> dict:
    result = dinokit(*arguments, "--json", "--no-draw")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_a_geometry_is_found_and_its_inliers_are_marked(pair: tuple[str, str]) -> None:
    document = read(*pair, "--geom", "homography", "--mask", "none")
    geometry = document["geometry"]
    assert (geometry["type"], geometry["reason"]) == ("homography", None)
    np.testing.assert_allclose(geometry["matrix"], [[1, 0, -SHIFT], [0, 1, 0], [0, 0, 1]], atol=0.5)
    assert geometry["inliers"] == sum(row["inlier"] for row in document["matches"]) == 50


def test_a_geometry_that_is_not_there_is_null_with_a_reason(pair: tuple[str, str]) -> None:
    document = read(*pair, "--geom", "homography", "--points", "300.5,200.5;104.5,62.5")
    assert document["geometry"]["matrix"] is None
    assert len(document["geometry"]["reason"]) > 20
    assert [row["inlier"] for row in document["matches"]] == [None, None]
    assert read(*pair)["geometry"] is None


def test_mask_files_say_where_keypoints_and_answers_are(pair: tuple[str, str]) -> None:
    for name, width in (("ma.png", 560), ("mb.png", 504)):
        mask = np.zeros((392, width), np.uint8)
        mask[:, 140:350] = 255
        PillowImage.fromarray(mask).save(name)
    document = read(*pair, "--mask", "ma.png,mb.png")
    assert document["mask"]["mode"] == "files"
    assert document["mask"]["shares"] == pytest.approx([15 / 40, 15 / 36], abs=1e-3)
    x0, x1 = (np.array([row[key] for row in document["matches"]]) for key in ("x0", "x1"))
    assert x0.min() > 140
    assert x0.max() < 350
    assert x1.min() > 140 - 14
    assert x1.max() < 350 + 14


def test_an_image_on_its_side_is_matched_when_turns_are_tried(pair: tuple[str, str]) -> None:
    PillowImage.open("b.png").transpose(PillowImage.Transpose.ROTATE_90).save(
        "side.png"
    )  # 90 counter-clockwise
    document = read("a.png", "side.png", "--rotations", "4", "--mask", "none")
    assert document["turns"] == 3
    assert any("turned by 270 degrees" in warning for warning in document["warnings"])
    for row in document["matches"]:
        upright = (row["x0"] - SHIFT, row["y0"])
        assert (row["x1"], row["y1"]) == pytest.approx((upright[1], 503 - upright[0]), abs=7)
    assert read(*pair, "--rotations", "4", "--mask", "none")["turns"] == 0


def test_a_mirrored_image_is_matched_only_when_that_is_allowed(pair: tuple[str, str]) -> None:
    PillowImage.open("b.png").transpose(PillowImage.Transpose.FLIP_LEFT_RIGHT).save("mirror.png")
    document = read("a.png", "mirror.png", "--allow-mirror", "--mask", "none")
    assert document["mirrored"]
    assert document["mirror_score"] > 0.95
    assert any("matches better mirrored" in warning for warning in document["warnings"])
    for row in document["matches"]:
        assert (row["x1"], row["y1"]) == pytest.approx((503 - (row["x0"] - SHIFT), row["y0"]), abs=7)
    upright = read(*pair, "--allow-mirror", "--mask", "none")
    assert not upright["mirrored"]
    assert upright["mirror_score"] < 0.05


def test_a_mirrored_look_is_noticed_without_trying_it(pair: tuple[str, str]) -> None:
    """Patches that look the same mirrored are found as they are; the order of places betrays it."""
    stripes = np.random.default_rng(0).integers(0, 255, (28, 40, 1, 1, 3))
    flat = np.broadcast_to(stripes, (28, 40, 14, 14, 3)) + np.arange(14)[:, None, None] * 3
    photo = flat.swapaxes(1, 2).reshape(392, 560, 3).clip(0, 255).astype(np.uint8)
    PillowImage.fromarray(photo).save("c.png")
    PillowImage.fromarray(photo[:, ::-1]).save("d.png")
    assert any(
        "looks mirrored" in warning for warning in read("c.png", "d.png", "--mask", "none")["warnings"]
    )


def test_points_outside_are_moved_or_left_out_when_that_is_asked(pair: tuple[str, str]) -> None:
    points = ["--points", "300.5,200.5;9999,62.5;104.5,62.5"]
    clipped = read(*pair, *points, "--outside", "clip")["matches"]
    assert [(row["x0"], row["y0"]) for row in clipped] == [(300.5, 200.5), (559, 62.5), (104.5, 62.5)]
    skipped = read(*pair, *points, "--outside", "skip")["matches"]
    assert [row["id"] for row in skipped] == [0, 2]


def test_every_table_holds_the_same_matches(pair: tuple[str, str]) -> None:
    names = ["m.json", "m.csv", "m.txt", "m.npz", "m.h5"]
    outs = [word for name in names for word in ("--out", name)]
    assert dinokit(*pair, *outs, "--no-draw", "--geom", "similarity", "--mask", "none").exit_code == 0
    document = json.loads(Path("m.json").read_text())
    x1 = np.array([row["x1"] for row in document["matches"]])
    text = np.array([line.split() for line in Path("m.txt").read_text().splitlines()], float)
    np.testing.assert_allclose(text[:, 2], x1, atol=1e-3)
    np.testing.assert_allclose(text[:, 4], [row["confidence"] for row in document["matches"]], atol=1e-4)
    with np.load("m.npz") as columns:
        np.testing.assert_allclose(columns["keypoints1"][:, 0], x1, atol=1e-3)
        np.testing.assert_allclose(columns["matrix"], document["geometry"]["matrix"], atol=1e-6)
        assert columns["inliers"].all()
    with h5py.File("m.h5") as file:
        group = file["a.png/b.png"]
        np.testing.assert_allclose(group["keypoints1"][:, 0], x1, atol=1e-3)
        rows, cols = np.divmod(group["matches0"][:], 36)
        np.testing.assert_allclose(cols * 14 + 6.5, x1, atol=8)
        np.testing.assert_allclose(rows * 14 + 6.5, group["keypoints0"][:, 1], atol=8)


@pytest.mark.parametrize("suffix", ["flo", "npy", "npz"])
def test_the_flow_is_the_shift(pair: tuple[str, str], suffix: str) -> None:
    result = dinokit(*pair, "--flow", f"f.{suffix}", "--no-draw", "--mask", "none")
    assert result.exit_code == 0, result.output
    assert "of the flow folds over" in result.stderr
    path = Path(f"f.{suffix}")
    if suffix == "flo":
        assert np.fromfile(path, "<f4", 1)[0] == np.float32(202021.25)
        flow = np.fromfile(path, "<f4", offset=12).reshape(392, 560, 2)
    elif suffix == "npy":
        flow = np.load(path)
    else:
        with np.load(path) as fields:
            flow, certainty, grid = fields["flow"], fields["certainty"], fields["unit_grid"]
        assert certainty.shape == (392, 560)
        place = (300 - SHIFT + 0.5) / 504 * 2 - 1
        assert grid[200, 300, 0] == pytest.approx(place, abs=0.02)
    inner = flow[40:-40, 120:-40]
    assert np.median(inner[..., 0]) == pytest.approx(-SHIFT, abs=2)
    assert np.median(inner[..., 1]) == pytest.approx(0, abs=2)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_draws_something_of_its_own(pair: tuple[str, str], style: str) -> None:
    result = dinokit(*pair, "--draw", "m.png", "--style", style, "--label", "--quiet")
    assert result.exit_code == 0, result.output
    picture = np.asarray(PillowImage.open("m.png"))
    plain = np.asarray(PillowImage.open("a.png"))
    if style == "swap":
        assert picture.shape == plain.shape
        assert 0 < np.abs(picture.astype(int) - plain).mean() < 30  # image B shows nearly the same
    else:
        assert picture.shape[1] > 560
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 1000


def test_topk_names_the_other_places(pair: tuple[str, str]) -> None:
    rows = read(*pair, "--topk", "3", "--points", "300.5,200.5")["matches"]
    assert len(rows[0]["alternatives"]) == 2
    assert rows[0]["alternatives"][0]["score"] <= rows[0]["score"]
    assert read(*pair, "--points", "300.5,200.5")["matches"][0]["alternatives"] == []


@pytest.mark.parametrize("how", ["kmeans", "grid", "sift"])
def test_keypoints_are_chosen_in_other_ways(pair: tuple[str, str], how: str) -> None:
    rows = read(*pair, "--keypoints", how, "--num", "12", "--mask", "none")["matches"]
    assert 6 <= len(rows) <= 12
    for row in rows:
        assert (row["x1"], row["y1"]) == pytest.approx((row["x0"] - SHIFT, row["y0"]), abs=8)


def test_images_without_anything_on_them_have_no_foreground_and_say_so(pair: tuple[str, str]) -> None:
    for name in ("c.png", "d.png"):
        PillowImage.new("RGB", (392, 280), "grey").save(name)
    document = read("c.png", "d.png")
    assert document["mask"]["mode"] == "none"
    assert any("no foreground was found" in warning for warning in document["warnings"])


def test_an_image_without_corners_says_so(pair: tuple[str, str]) -> None:
    PillowImage.new("RGB", (392, 392), "grey").save("grey.png")
    result = dinokit("grey.png", "b.png", "--keypoints", "sift", "--no-draw", "--mask", "none")
    assert result.exit_code == 2
    assert "no SIFT keypoints" in result.stderr


def test_the_help_shows_an_example() -> None:
    result = dinokit("--help")
    assert result.exit_code == 0
    assert "dinokit match cat1.jpg cat2.jpg" in result.stdout


def test_an_adapter_is_given_the_tokens_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    PillowImage.fromarray(data.coffee()[:112, :140]).save("a.png")
    model = Encoder("untrained:vitt14").identity
    card = AdapterCard(
        norm=False, model=model.name, weights_sha256=model.weights_sha256, report={"recommended": False}
    )
    save_adapter(Adapter(192, card=card), Path("x.safetensors"))
    command = ["a.png", "a.png", "--model", "untrained:vitt14", "--adapter", "x.safetensors", "--size", "112"]
    result = dinokit(*command, "--no-draw", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["features"]["norm"] is False
    assert "lost to the raw features" in result.stderr
    refused = dinokit(*command, "--no-draw", "--layer", "3")
    assert refused.exit_code == 2
    assert "--prenorm" in refused.stderr
