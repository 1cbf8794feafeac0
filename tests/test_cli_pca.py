"""The command on two cuts of a real photo, with random weights: real arithmetic, colours without meaning."""

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
from dinov2kit.cli.pca import register
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.foreground import find_foreground, read_mask
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.pca_pictures import check_targets, paint_images
from dinov2kit.principal import pca_maps

MODEL = ("--model", "untrained:vitt14", "--device", "cpu", "--precision", "fp32", "--size", "112")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder("untrained:vitt14", device="cpu", precision="fp32")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    cat = PillowImage.fromarray(data.chelsea())
    cat.resize((225, 150)).save("photos/cat.png")
    cat.crop((60, 20, 400, 280)).resize((170, 130)).save("photos/cat2.png")


def dinokit(*arguments: str):
    app = typer.Typer(cls=KitGroup)
    app.callback()(lambda: None)
    register(app)
    return CliRunner().invoke(app, ["pca", *arguments])


def features_of(encoder: Encoder, **spec: object):
    paths = [Path("photos/cat.png"), Path("photos/cat2.png")]
    return [encoder.encode(path, FeatureSpec(**{"size": 112, **spec})) for path in paths]


def test_the_default_writes_a_picture_and_a_summary_and_no_result_on_stdout() -> None:
    result = dinokit("photos/cat.png", "photos/cat2.png", *MODEL)
    assert (result.exit_code, result.stdout) == (0, "")
    assert PillowImage.open("pca.png").format == "PNG"
    lines = result.stderr.splitlines()
    assert lines[0] == "2 images · untrained:vitt14 at 112 px"
    assert lines[-2] == "wrote pca.png"
    assert lines[-1].startswith("warning: untrained:vitt14 has random weights")
    assert sorted(path.name for path in Path().iterdir()) == ["pca.png", "photos"]


def test_json_and_maps_are_what_the_library_finds(encoder: Encoder) -> None:
    result = dinokit("photos", *MODEL, "--json", "--quiet", "--maps", "maps/of/cats", "--out", "cats.jpg")
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    features = features_of(encoder)
    foreground = find_foreground(features)
    colors = pca_maps(features, masks=foreground.masks)
    assert document["schema"] == "dinokit.pca/1"
    assert (document["out"], document["maps"]) == ("cats.jpg", "maps/of/cats")
    assert document["images"] == [
        {"path": "photos/cat.png", "width": 225, "height": 150, "patches": [5, 8]},
        {"path": "photos/cat2.png", "width": 170, "height": 130, "patches": [6, 8]},
    ]
    assert document["model"]["name"] == "untrained:vitt14"
    assert document["features"] == FeatureSpec(size=112).describe()
    assert document["explained"] == pytest.approx(colors.explained, abs=1e-4)
    assert document["mask"] == {
        "mode": foreground.mode,
        "shares": pytest.approx(foreground.shares, abs=1e-4),
        "reason": foreground.reason,
    }
    assert "random weights" in document["warnings"][0]
    assert PillowImage.open("cats.jpg").format == "JPEG"
    for index, name in enumerate(("0-cat", "1-cat2")):
        drawn = np.asarray(PillowImage.open(f"maps/of/cats/{name}.png"))
        np.testing.assert_array_equal(drawn, colors.maps[index])
        np.testing.assert_array_equal(np.load(f"maps/of/cats/{name}.npy"), colors.scores[index])


def test_the_options_of_the_features_reach_the_encoder(encoder: Encoder) -> None:
    options = ("--layer", "5", "--facet", "key", "--prenorm", "--stride", "7", "--debias", "2")
    result = dinokit("photos", *MODEL, *options, "--mask", "none", "--json", "--maps", "maps")
    document = json.loads(result.stdout)
    chosen = {"layer": 5, "facet": "key", "norm": False, "stride": 7, "debias": 2}
    assert document["features"] == FeatureSpec(size=112, **chosen).describe()
    assert document["mask"] == {"mode": "none", "shares": [], "reason": None}
    assert document["images"][0]["patches"] == [9, 15]
    colors = pca_maps(features_of(encoder, **chosen))
    np.testing.assert_array_equal(np.load("maps/0-cat.npy"), colors.scores[0])
    assert np.isfinite(np.load("maps/1-cat2.npy")).all()


def test_mask_files_say_what_is_coloured(encoder: Encoder) -> None:
    for name, size in (("m0.png", (225, 150)), ("m1.png", (170, 130))):
        mask = np.zeros(size[::-1], np.uint8)
        mask[: size[1] // 2] = 255
        PillowImage.fromarray(mask).save(name)
    result = dinokit("photos", *MODEL, "--mask", "m0.png,m1.png", "--json", "--maps", "maps")
    grids = [one.grid for one in features_of(encoder)]
    masks = [read_mask(Path(name), grid) for name, grid in zip(("m0.png", "m1.png"), grids, strict=True)]
    found = json.loads(result.stdout)["mask"]
    assert found["mode"] == "files"
    assert found["shares"] == pytest.approx([mask.mean() for mask in masks], abs=1e-4)
    scores = np.load("maps/1-cat2.npy")
    np.testing.assert_array_equal(np.isfinite(scores).all(axis=2).ravel(), masks[1])
    one_for_two = dinokit("photos", *MODEL, "--mask", "m0.png", "--overwrite")
    assert (one_for_two.exit_code, one_for_two.stdout) == (2, "")
    assert "got 1 mask files for 2 images" in one_for_two.stderr
    swapped = dinokit("photos", *MODEL, "--mask", "m1.png,m0.png", "--overwrite")
    assert swapped.exit_code == 3
    assert "mask m1.png has 170x130 pixels; wanted 225x150" in swapped.stderr


def test_existing_files_are_kept_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("pca.png").write_text("mine")
    Path("maps").mkdir()
    Path("maps/1-cat2.npy").write_text("mine too")
    with monkeypatch.context() as patched:
        patched.setattr("dinov2kit.encoder.Encoder", None)  # nothing is loaded before the refusal
        picture = dinokit("photos", *MODEL)
        maps = dinokit("photos", *MODEL, "--out", "new.png", "--maps", "maps")
    assert picture.exit_code == maps.exit_code == 2
    assert "pca.png exists already" in picture.stderr
    assert "1-cat2.npy exists already" in maps.stderr
    assert Path("pca.png").read_text() == "mine"
    assert not Path("new.png").exists()
    assert dinokit("photos", *MODEL, "--overwrite", "--maps", "maps").exit_code == 0
    assert PillowImage.open("pca.png").format == "PNG"
    assert np.load("maps/1-cat2.npy").shape == (6, 8, 3)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["absent.png"], 3, "no such image or folder: absent.png"),
        (["photos", "broken.png"], 3, "broken.png"),
        (["photos", "--mask", "absent.png,absent.png"], 3, "absent.png"),
        (["photos", "--out", "pca.gif"], 2, ".png, .jpg"),
        (["photos", "--out", "absent/pca.png"], 2, "no folder absent"),
        (["photos", "--maps", "broken.png"], 2, "broken.png is a file; wanted a folder"),
        (["photos", "--layer", "99"], 2, "99"),
    ],
)
def test_what_cannot_be_done_ends_with_its_exit_code_and_a_reason(
    arguments: list[str], code: int, said: str
) -> None:
    Path("broken.png").write_bytes(Path("photos/cat.png").read_bytes()[:2000])
    result = dinokit(*arguments, *MODEL)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["broken.png", "photos"]


def test_images_of_the_same_name_have_maps_of_their_own() -> None:
    Path("more").mkdir()
    Path("more/cat.jpg").write_bytes(Path("photos/cat2.png").read_bytes())
    result = dinokit("photos/cat.png", "more/cat.jpg", *MODEL, "--maps", "maps", "--multi", "--quiet")
    assert result.exit_code == 0, result.stderr
    names = ["0-cat.npy", "0-cat.png", "1-cat.npy", "1-cat.png"]
    assert sorted(path.name for path in Path("maps").iterdir()) == names
    many = [Path(f"{index}.png") for index in range(11)]
    Path("maps/07-7.png").write_text("")
    with pytest.raises(ArgumentError, match=r"07-7\.png exists already"):
        check_targets(Path("new.png"), Path("maps"), many, overwrite=False)


class StripesEncoder:
    """Describes every image by stripes of its own kind: a background, and a thing in the middle of it."""

    identity = ModelIdentity("stripes", "0" * 64, 4, "cls", {})

    def __init__(self, contrast: float) -> None:
        self.contrast = contrast

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        grid = PatchGrid(12, 12, 14, 168, 168, 1.0, 1.0)
        tokens = torch.nn.functional.one_hot(torch.tensor(len(source.name) % 2), 4).repeat(144, 1).float()
        tokens.view(12, 12, 4)[4:8, 4:8, 2] = self.contrast
        return Features(torch.eye(4)[2], tokens, torch.zeros(0, 4), grid)


@pytest.mark.parametrize(
    ("contrast", "mode", "said"),
    [
        (0.5, "class-similarity", "the similarity to the class token says what is foreground: by the first"),
        (0.0, "none", "no foreground was found, so everything is coloured: by the first"),
    ],
)
def test_a_foreground_that_was_not_found_as_usual_is_said(contrast: float, mode: str, said: str) -> None:
    seen: list[Path] = []
    paths = [Path("a.png"), Path("ab.png")]
    painted = paint_images(StripesEncoder(contrast), paths, advance=seen.append)
    assert seen == paths
    assert painted.foreground.mode == mode
    (warning,) = painted.warnings
    assert warning.startswith(said)
    assert warning.endswith(str(painted.foreground.reason))
    assert [line for line in painted.summary() if "foreground" in line] == (
        [] if mode == "none" else [f"foreground ({mode}): 8% of the images"]
    )


def test_the_help_shows_an_example() -> None:
    result = dinokit("--help")
    assert result.exit_code == 0
    assert "dinokit pca cat1.jpg cat2.jpg" in result.stdout
