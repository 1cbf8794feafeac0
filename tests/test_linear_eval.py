"""Linear heads: against SGD written out, by hand-made tokens, and through the command line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from colour_encoder import paint
from typer.testing import CliRunner

from dinov2kit import Encoder
from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.labelled_rows import random_box
from dinov2kit.linear_eval import LinearSpec, evaluate_linear
from dinov2kit.linear_head import LinearHead, TokenEncoder, read_head, wanted_columns, write_head
from dinov2kit.linear_probe import RATES, HeadGroup, HeadKey, rank_classes, train_heads

MODEL = "untrained:vitn8"


def made_rows(
    count: int = 40, dim: int = 6, layers: int = 4, views: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return tokens whose class can be told."""
    random = np.random.default_rng(0)
    labels = np.arange(count) % 3
    centres = random.normal(size=(3, (layers + 1) * dim))
    rows = centres[labels] + 0.3 * random.normal(size=(views, count, (layers + 1) * dim))
    return rows.astype(np.float32), labels.astype(np.int64)


def plain_sgd(
    rows: np.ndarray, labels: np.ndarray, start: np.ndarray, *, rate: float, steps: int, batch: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias after SGD with momentum 0.9 along half a cosine, written out in fp64."""
    views, count, _ = rows.shape
    weight, bias = start.astype(np.float64), np.zeros(3)
    speeds = [np.zeros_like(weight), np.zeros_like(bias)]
    order: list[int] = []
    epoch = 0
    for step in range(steps):
        while len(order) < batch:
            drawn = np.random.default_rng([seed, epoch]).permutation(count)
            order += [int(image) + count * (epoch % views) for image in drawn]
            epoch += 1
        chosen, order = np.array(order[:batch]), order[batch:]
        seen, truth = rows[chosen // count, chosen % count].astype(np.float64), labels[chosen % count]
        logits = seen @ weight.T + bias
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        slope = (shares - np.eye(3)[truth]) / batch
        pace = rate * batch / 256 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for at, gradient in enumerate((slope.T @ seen, slope.sum(axis=0))):
            speeds[at] = 0.9 * speeds[at] + gradient
        weight, bias = weight - pace * speeds[0], bias - pace * speeds[1]
    return weight, bias


@pytest.mark.parametrize(("layers", "average"), [(1, False), (4, True)])
def test_every_head_is_what_plain_sgd_makes(layers: int, average: bool) -> None:
    rows, labels = made_rows(views=2)
    rates = (1e-3, 0.1)
    settings = {"dim": 6, "classes": 3, "steps": 50, "batch": 16, "rates": rates, "seed": 3}
    groups = train_heads(rows, labels, layers=(1, 4), **settings)
    (group,) = [each for each in groups if (each.layers, each.average) == (layers, average)]
    start = HeadGroup.draw(layers, average, rates, classes=3, dim=6, seed=3)
    seen = wanted_columns(rows.reshape(80, -1), 6, layers, average).reshape(2, 40, -1)
    for at, rate in enumerate(rates):
        weight, bias = plain_sgd(
            seen, labels, start.weight[at].numpy(), rate=rate, steps=50, batch=16, seed=3
        )
        np.testing.assert_allclose(group.weight[at].numpy(), weight, atol=2e-6)
        np.testing.assert_allclose(group.bias[at].numpy(), bias, atol=2e-6)


def test_a_head_alone_is_a_head_among_others() -> None:
    rows, labels = made_rows()
    settings = {"dim": 6, "classes": 3, "steps": 20, "batch": 16}
    many = train_heads(rows, labels, **settings)
    alone = train_heads(rows, labels, rates=(RATES[4],), layers=(4,), **settings)
    assert len(many) == 4
    assert sum(len(group.rates) for group in many) == 52
    torch.testing.assert_close(alone[1].weight[0], many[3].weight[4], atol=1e-6, rtol=0)


def test_no_two_heads_have_one_name() -> None:
    names = {HeadKey(layers, average, rate).name for layers in (1, 4) for average in (0, 1) for rate in RATES}
    assert len(names) == 52


def test_classes_that_can_be_told_are_told() -> None:
    rows, labels = made_rows(120)
    groups = train_heads(rows, labels, dim=6, classes=3, steps=200, batch=32, rates=(0.1,), layers=(1,))
    for ranked in rank_classes(groups, rows[0], dim=6).values():
        assert (ranked[:, 0] == labels).mean() > 0.97


def test_columns_are_the_last_class_tokens_and_the_mean_patch() -> None:
    row = np.arange(10, dtype=np.float32)[None]  # four class tokens and a mean, of two numbers each
    assert wanted_columns(row, 2, 1, False).tolist() == [[6, 7]]
    assert wanted_columns(row, 2, 1, True).tolist() == [[6, 7, 8, 9]]
    assert wanted_columns(row, 2, 4, False).tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("model", [MODEL, "untrained:vitn8_reg"])
def test_tokens_of_an_encoder_are_those_of_the_released_heads(model: str) -> None:
    encoder = Encoder(model, device="cpu", precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3)).astype(np.uint8)
    rows = TokenEncoder(encoder, 2).embed(pixels)
    tokens = encoder.vit(encoder.normalisation.apply(torch.from_numpy(pixels)))
    np.testing.assert_allclose(rows[:, 96:192], tokens.class_token.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(rows[:, 192:], tokens.patch_tokens.detach().mean(dim=1).numpy(), atol=1e-5)
    assert TokenEncoder(encoder, 2).identity.dim == 3 * 96


def test_a_head_comes_back_and_a_released_one_says_by_its_width_what_it_takes(tmp_path: Path) -> None:
    head = LinearHead(torch.randn(3, 12), torch.randn(3), 1, True, ("a", "b", "c"), "abc")
    write_head(tmp_path / "h.safetensors", head)
    again = read_head(tmp_path / "h.safetensors", dim=6)
    assert (again.layers, again.average, again.classes) == (1, True, ("a", "b", "c"))
    assert torch.equal(again.weight, head.weight)
    torch.save({"weight": torch.randn(3, 30), "bias": torch.zeros(3)}, tmp_path / "r.pth")
    released = read_head(tmp_path / "r.pth", dim=6)
    assert (released.layers, released.average, released.classes) == (4, True, ())
    with pytest.raises(WeightsError, match="no tokens of 7"):
        read_head(tmp_path / "h.safetensors", dim=7)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="no linear head"):
        read_head(tmp_path / "x.pth", dim=6)


def test_random_parts_lie_in_the_image_and_fill_what_they_should() -> None:
    random = np.random.default_rng(0)
    shares = []
    for _ in range(500):
        left, top, right, bottom = random_box(random, 60, 40)
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 40
        shares.append((right - left) * (bottom - top) / 2400)
    assert 0.06 < min(shares) < 0.12
    assert max(shares) > 0.85


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return two colours to learn and to tell."""
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        for side, count in (("train", 6), ("val", 3), ("test", 2)):
            if number < count:
                paint(tmp_path / f"set/{side}/red/{number}.png", (250 - 9 * number, 3, len(side)))
                paint(tmp_path / f"set/{side}/blue/{number}.png", (len(side), 3, 250 - 9 * number))
    return tmp_path / "set"


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", "linear", *map(str, arguments)], env={"COLUMNS": "200"})


def test_the_command_reports_writes_a_head_and_says_the_best(root: Path, tmp_path: Path) -> None:
    model = ("--model", MODEL, "--device", "cpu", "--workers", "0")
    out, head = tmp_path / "report.json", tmp_path / "head.safetensors"
    options = ("--steps", "60", "--sgd-batch", "4", "--layer", "1", "--layer", "2", "--rate", "0.1")
    result = evaluate("--root", root, "--test", root / "test", *model, *options, "--out", out, "--head", head)
    assert result.exit_code == 0, result.output
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert [line[:3] for line in lines[1:]] == [
        [str(layers), average, "0.1"] for layers in (1, 2) for average in ("no", "yes")
    ]
    report = json.loads(out.read_text())
    assert report["schema"] == "dinokit.eval-linear/1"
    assert report["test"]["top1"] == report["best"]["top1"] == 1.0
    assert report["per_class"] == {"blue": 1.0, "red": 1.0}
    assert (report["n_train"], report["n_val"], report["n_test"]) == (12, 6, 4)
    found = read_head(head, dim=96)
    assert found.classes == ("blue", "red")
    assert not (tmp_path / "report.json.partial").exists()
    assert evaluate("--root", root, *model, *options, "--out", out).exit_code == console.USAGE


def test_more_views_are_more_rows_and_the_same_seed_is_the_same_result(root: Path) -> None:
    encoder = Encoder(MODEL, device="cpu", precision="fp32")
    spec = LinearSpec(root, root, layers=(1,), rates=(0.05,), steps=20, batch=4, views=3)
    seen: list[str] = []
    first = evaluate_linear(encoder, spec, advance=seen.append)
    assert seen.count("image") == 3 * 12 + 6
    assert seen.count("step") == 20
    assert evaluate_linear(encoder, spec)["heads"] == first["heads"]


def test_sides_that_make_no_sense_are_refused(root: Path) -> None:
    encoder = Encoder(MODEL, device="cpu", precision="fp32")
    with pytest.raises(ArgumentError, match="share images"):
        evaluate_linear(encoder, LinearSpec(root / "train", root / "train"))
    with pytest.raises(ArgumentError, match="holds one class"):
        evaluate_linear(encoder, LinearSpec(_only_red(root), root / "val"))
    with pytest.raises(ArgumentError, match="wanted 1 or more"):
        LinearSpec(root, root, steps=0)
    result = evaluate("--train", root)
    assert result.exit_code == console.USAGE
    assert "nothing to learn from" in result.stderr


def _only_red(root: Path) -> Path:
    paint(root.parent / "one/red/0.png", (250, 0, 0))
    return root.parent / "one"
