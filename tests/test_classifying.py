"""What images show: by linear heads in both forms, by examples, and what careless callers are told."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from colour_encoder import ColourEncoder, paint
from typer.testing import CliRunner

from dinov2kit import Encoder
from dinov2kit.classifying import (
    classify_images,
    imagenet_classes,
    open_examples,
    open_head,
)
from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.images import load_picture
from dinov2kit.knn import classify
from dinov2kit.linear_head import LinearHead, write_head

MODEL = "untrained:vitn8"


@pytest.fixture
def encoder() -> Encoder:
    return Encoder(MODEL, device="cpu", precision="fp32")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    paths = [tmp_path / f"photos/{name}.png" for name in ("red", "blue", "green")]
    for path, colour in zip(paths, [(250, 4, 4), (4, 4, 250), (4, 250, 4)], strict=True):
        paint(path, colour)
    return paths


def classify_by(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["classify", *map(str, arguments)], env={"COLUMNS": "200"})


def test_names_of_imagenet_stand_where_they_belong() -> None:
    names = imagenet_classes()
    assert len(set(names)) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 285: "Egyptian cat", 340: "zebra"}
    known |= {134: "crane (bird)", 388: "giant panda", 517: "crane (machine)", 954: "banana"}
    assert {number: names[number] for number in known} == known
    assert names[999] == "toilet tissue"


@pytest.mark.parametrize("layers", [1, 2])
def test_a_head_says_the_softmax_of_its_tokens(
    encoder: Encoder, photos: list[Path], tmp_path: Path, layers: int
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(4, (layers + 1) * 96), torch.randn(4)
    write_head(tmp_path / "head.safetensors", LinearHead(weight, bias, layers, True))
    found = classify_images(open_head(encoder, tmp_path / "head.safetensors"), photos, top=4)
    for one in found:
        pixels = load_picture(one.path, encoder.view).pixels[None]
        images = encoder.normalisation.apply(torch.from_numpy(pixels))
        pairs = encoder.vit.get_intermediate_layers(images, layers, return_class_token=True)
        row = torch.cat([token for _, token in pairs] + [pairs[-1][0].mean(dim=1)], dim=1)
        shares = (row @ weight.T + bias).softmax(dim=1)[0]
        assert [int(guess.label) for guess in one.guesses] == shares.argsort(descending=True).tolist()
        np.testing.assert_allclose(
            [guess.share for guess in one.guesses], shares.sort(descending=True)[0], atol=1e-5
        )


def test_examples_decide_as_the_knn_protocol_does(tmp_path: Path, photos: list[Path]) -> None:
    for number in range(5):
        paint(tmp_path / f"known/warm/{number}.png", (250 - 20 * number, 60 * number, 0))
        paint(tmp_path / f"known/cold/{number}.png", (0, 50 * number, 250 - 9 * number))
    encoder = ColourEncoder()
    judge = open_examples(encoder, tmp_path / "known", k=4)
    found = classify_images(judge, photos)
    assert [one.guesses[0].label for one in found[:2]] == ["warm", "cold"]
    assert all(abs(sum(guess.share for guess in one.guesses) - 1) < 1e-9 for one in found)
    rows = np.concatenate([encoder.embed(load_picture(path, encoder.view).pixels[None]) for path in photos])
    wanted = classify(judge.bank, judge.labels, rows, ks=(4,))[4][:, 0]
    assert [judge.names[number] for number in wanted] == [one.guesses[0].label for one in found]
    assert open_examples(encoder, tmp_path / "known", k=99).k == 10


def test_a_head_of_other_weights_or_widths_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    head = LinearHead(torch.zeros(2, 192), torch.zeros(2), 1, True, ("a", "b"), "of another model")
    write_head(tmp_path / "h.safetensors", head)
    with pytest.raises(WeightsError, match="trained on other weights"):
        open_head(encoder, tmp_path / "h.safetensors")
    torch.save({"weight": torch.zeros(2, 100), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="no tokens of 96"):
        open_head(encoder, tmp_path / "w.pth")
    (tmp_path / "names.txt").write_text("one\n")
    torch.save({"weight": torch.zeros(2, 192), "bias": torch.zeros(2)}, tmp_path / "r.pth")
    with pytest.raises(ArgumentError, match="1 names, and the head 2"):
        open_head(encoder, tmp_path / "r.pth", names=tmp_path / "names.txt")


def test_models_without_a_released_head_say_so(photos: list[Path]) -> None:
    for model, said in ((MODEL, "has no released head"), ("dinokit_vitt14", "no ImageNet head")):
        result = classify_by(photos[0], "--model", model, "--device", "cpu")
        assert result.exit_code == console.WEIGHTS, result.output
        assert said in result.stderr
        assert "--examples" in result.stderr


def test_a_released_head_is_looked_for_beside_its_model(photos: list[Path], tmp_path: Path) -> None:
    from dinov2kit.classifying import _released_head

    with pytest.raises(WeightsError, match="linear4_head"):
        _released_head("dinov2_vits14", 4, progress=None, base_url=None)
    (tmp_path / "home/weights").mkdir(parents=True)
    torch.save(
        {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)},
        tmp_path / "home/weights/dinov2_vitb14_reg4_linear_head.pth",
    )
    assert (
        _released_head("vitb14-reg", 1, progress=None, base_url=None).name
        == "dinov2_vitb14_reg4_linear_head.pth"
    )
    with pytest.raises(ArgumentError, match="wanted 1 or 4"):
        _released_head("vits14", 2, progress=None, base_url=None)


def test_the_command_prints_lines_or_json_and_leaves_out_what_is_broken(
    photos: list[Path], tmp_path: Path
) -> None:
    for name, colour in (("red", (240, 9, 9)), ("blue", (9, 9, 240))):
        paint(tmp_path / f"known/{name}/0.png", colour)
    (tmp_path / "photos/bad.jpg").write_bytes(b"rubbish")
    options = ("--examples", "known", "--model", MODEL, "--device", "cpu", "--workers", "0", "-k", "1")
    result = classify_by("photos", *options)
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert {Path(line[0]).stem: line[2] for line in lines}["red"] == "red"
    assert all(line[1] == "100.00" for line in lines)
    assert "left out" in result.stderr
    assert classify_by("photos", *options, "--strict").exit_code == console.FAILURE
    document = json.loads(classify_by("photos", *options, "--json").stdout)
    assert document["schema"] == "dinokit.classify/1"
    assert sum(image["error"] is not None for image in document["images"]) == 1
    assert classify_by("photos", *options, "--head", "x.pth").exit_code == console.USAGE
