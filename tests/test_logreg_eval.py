"""Logistic regression: its optimum by other means, the choice of C, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from colour_encoder import paint
from typer.testing import CliRunner

from dinov2kit.cli.app import app
from dinov2kit.errors import ArgumentError
from dinov2kit.logreg_eval import LogregSpec, choose_c, fit_regression


def made(count: int = 60, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    labels = np.arange(count) % 3
    return random.normal(size=(3, dim))[labels] + random.normal(size=(count, dim)), labels


def objective(weight: torch.Tensor, bias: torch.Tensor, rows: np.ndarray, labels: np.ndarray, c: float):
    logits = torch.from_numpy(rows) @ weight.T + bias
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    return c * loss + weight.square().sum() / 2


@pytest.mark.parametrize("c", [1e-3, 1.0, 100.0])
def test_the_optimum_is_one(c: float) -> None:
    """The gradient of the objective of scikit-learn, by autograd, is zero there; all around it is higher."""
    rows, labels = made()
    found = fit_regression(rows, labels, classes=3, c=c)
    assert found.converged
    weight, bias = (torch.from_numpy(each.copy()).requires_grad_() for each in (found.weight, found.bias))
    value = objective(weight, bias, rows, labels, c)
    value.backward()
    assert float(weight.grad.abs().max()) < 1e-4 * max(c * len(rows), 1)
    assert float(bias.grad.abs().max()) < 1e-4 * max(c * len(rows), 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        away = weight + 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert objective(away, bias, rows, labels, c) > value


def test_two_points_have_the_optimum_of_the_formula() -> None:
    """Points at 1 and -1 of two classes: weights (w, -w) with w = 2c / (1 + exp(2w)), biases 0."""
    rows, labels = np.array([[1.0], [-1.0]]), np.array([0, 1])
    found = fit_regression(rows, labels, classes=2, c=0.7)
    w = 0.0
    for _ in range(200):
        w += 0.2 * (2 * 0.7 / (1 + np.exp(2 * w)) - w)
    np.testing.assert_allclose(found.weight.ravel(), [w, -w], atol=1e-5)
    np.testing.assert_allclose(found.bias, 0, atol=1e-5)


def test_the_names_of_classes_do_not_matter() -> None:
    rows, labels = made()
    turned = np.array([2, 0, 1])
    first, second = (
        fit_regression(rows, each, classes=3, c=1.0).rank(rows)[:, 0] for each in (labels, turned[labels])
    )
    np.testing.assert_array_equal(turned[first], second)


def test_c_is_chosen_on_a_tenth_that_does_not_teach() -> None:
    """Every C starts where the one before ended; a start from zero says the same of the tenth."""
    rows, labels = made(200)
    grid = (1e-4, 1e-2, 1.0, 100.0)
    scores = choose_c(rows, labels, LogregSpec(Path(), Path(), grid=grid, seed=5), classes=3)
    order = np.random.default_rng(5).permutation(200)
    aside, rest = order[:20], order[20:]
    wanted = {}
    for c in grid:
        alone = fit_regression(rows[rest], labels[rest], classes=3, c=c)
        wanted[c] = float((alone.rank(rows[aside], 1)[:, 0] == labels[aside]).mean())
    assert scores == wanted
    assert len(set(scores.values())) > 1


def test_the_command_tells_colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(10):
        for side in ("train", "val"):
            paint(tmp_path / f"set/{side}/red/{number}.png", (250 - 5 * number, 3, len(side)))
            paint(tmp_path / f"set/{side}/blue/{number}.png", (len(side), 3, 250 - 5 * number))
    arguments = [
        "--root",
        "set",
        "--model",
        "untrained:vitn8",
        "-c",
        "1",
        "-c",
        "100",
        "--workers",
        "0",
        "--json",
    ]
    result = CliRunner().invoke(app, ["eval", "logreg", *arguments, "--device", "cpu", "--out", "r.json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["schema"] == "dinokit.eval-logreg/1"
    assert report["val_scores"]["top1"] == 1.0
    assert [row["c"] for row in report["grid"]] == [1.0, 100.0]
    assert report == json.loads((tmp_path / "r.json").read_text())


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ArgumentError, match="wanted above 0"):
        LogregSpec(Path(), Path(), grid=(0.0,))
