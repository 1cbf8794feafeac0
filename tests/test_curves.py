"""Curves: the numbers that are drawn are those of the log; a smooth line does not lag; files appear whole."""

import math
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dinov2kit.errors import ArgumentError, DependencyError
from dinov2kit.train.curves import draw_curves, smoothed
from dinov2kit.train.metrics import MetricsLog

BLUE, VERMILION = (0, 114, 178), (213, 94, 0)  # RGB of the first two runs


def write_run(run: Path, steps: int = 100, **changes: Any) -> Path:
    run.mkdir(parents=True)
    with MetricsLog(run) as log:
        for step in range(steps):
            place = {"step": step, "images": 1000 * step}
            if step % 20 == 0:
                log.append(
                    {"kind": "eval", **place, "knn": 0.2 + step / 200, "rankme": 10.0 + step, **changes}
                )
            numbers = {"loss_over_lnk": 1 - step / 5000, "lr": 1e-3 * step, "images_per_second": 200.0}
            loss = math.nan if step == 50 else numbers["loss_over_lnk"]
            log.append({"kind": "train", **place, **numbers, "loss_over_lnk": loss, "target_entropy": 2.0})
    return run


def test_a_smooth_line_keeps_straight_lines_and_does_not_lag() -> None:
    line = np.linspace(3, -5, 400)
    assert smoothed(line) == pytest.approx(line, abs=1e-12)
    step = (np.arange(400) >= 200).astype(float)
    assert np.flatnonzero(smoothed(step) >= 0.5)[0] == 200  # half way where the step is, not after it
    noise = np.random.default_rng(0).normal(size=4000)
    assert smoothed(noise)[200:-200].std() == pytest.approx(1 / math.sqrt(201), rel=0.3)


def test_a_smooth_line_is_the_plain_mean_over_a_symmetric_window() -> None:
    values = np.random.default_rng(1).normal(size=123)
    reach = 3  # 2.5 % of 123
    wanted = []
    for at in range(123):
        half = min(at, 122 - at, reach)
        wanted.append(values[at - half : at + half + 1].mean())
    assert smoothed(values) == pytest.approx(np.array(wanted), abs=1e-12)


@pytest.mark.parametrize(
    ("out", "said"), [("curves.gif", "wanted a name that ends in .png"), ("no/where.png", "cannot write")]
)
def test_what_cannot_be_written_is_refused(tmp_path: Path, out: str, said: str) -> None:
    if out.startswith("no/"):
        pytest.importorskip("matplotlib")
    run = write_run(tmp_path / "a")
    with pytest.raises(ArgumentError, match=said):
        draw_curves([run], tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_without_runs_or_without_lines_there_is_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="no run to draw"):
        draw_curves([], tmp_path / "a.png")
    with pytest.raises(ArgumentError, match="b has no metrics yet"):
        draw_curves([write_run(tmp_path / "a"), tmp_path / "b"], tmp_path / "a.png")


def test_a_missing_matplotlib_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "a")
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DependencyError, match="matplotlib") as caught:
        draw_curves([run], tmp_path / "curves.png")
    assert caught.value.hint == "pip install 'dinov2kit[plot]'"


def test_the_numbers_of_the_log_are_drawn_in_their_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    axes = pytest.importorskip("matplotlib.axes")
    drawn: list[tuple[str, np.ndarray, np.ndarray, dict[str, Any]]] = []
    plot = axes.Axes.plot

    def spy(self: Any, x: Any, y: Any, style: str, **settings: Any) -> Any:
        drawn.append((self.get_title(loc="left"), np.asarray(x), np.asarray(y), settings))
        return plot(self, x, y, style, **settings)

    monkeypatch.setattr(axes.Axes, "plot", spy)
    draw_curves([write_run(tmp_path / "a")], tmp_path / "curves.png")
    by_title: dict[str, list[Any]] = {}
    for title, *rest in drawn:
        by_title.setdefault(title, []).append(rest)
    ((x, y, _),) = by_title["nearest neighbours, % right"]
    assert x == pytest.approx([0, 20, 40, 60, 80])  # thousands
    assert y == pytest.approx([20, 30, 40, 50, 60])
    ((x, y, _),) = by_title["learning rate"]
    assert y == pytest.approx(1e-3 * x)
    (raw, smooth) = by_title["DINO loss / ln K"]
    assert raw[2]["alpha"] < 0.5
    assert raw[1] == pytest.approx(1 - np.delete(np.arange(100), 50) / 5000)  # the NaN is left out
    assert smooth[1] == pytest.approx(smoothed(raw[1]))
    assert len(by_title["entropy of targets, nats"]) == 2  # raw and smooth of the one entropy that there is


def test_each_run_has_a_colour_of_its_own_and_the_same_log_gives_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = [write_run(tmp_path / name / "run", knn_pixels=0.3) for name in ("a", "b")]
    first = draw_curves(runs, tmp_path / "two.png")
    again = draw_curves(runs, tmp_path / "again.png")
    assert first.read_bytes() == again.read_bytes()

    def has(picture: Path, colour: tuple[int, int, int]) -> int:
        pixels = cv2.imread(str(picture))[:, :, ::-1].astype(int)
        return int((np.abs(pixels - colour).max(axis=2) < 8).sum())

    alone = draw_curves(runs[:1], tmp_path / "one.png")
    assert has(alone, BLUE) > 300
    assert has(alone, VERMILION) == 0
    assert has(first, VERMILION) > 300
    assert draw_curves(runs, tmp_path / "two.svg").read_text().startswith("<?xml")
