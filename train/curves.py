"""The curves of one or several runs as one picture, drawn from their metrics.jsonl alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from dinov2kit.errors import ArgumentError, DependencyError
from dinov2kit.files import written_whole

from .diagnosis import open_diagnoses
from .metrics import read_metrics

SUFFIXES = (".png", ".svg", ".pdf")

_COLOURS = (  # Okabe and Ito, 2008: told apart with every kind of colour vision
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
)
_SMOOTH = 0.025  # share of a curve, to each side, that a point of the smooth line is the mean of
_INK, _FAINT = "#333333", "#DDDDDD"


@dataclass(frozen=True)
class _Curve:
    """A line of a panel.

    Attributes:
        name: of the number in the metrics.
        kind: of the lines that have it.
        style: how it is drawn, as matplotlib names it.
        said: what it is, where a panel has several.
    """

    name: str
    kind: str = "train"
    style: str = "-"
    said: str = ""


@dataclass(frozen=True)
class _Panel:
    """One plot.

    Attributes:
        title: what it shows, and in which unit.
        curves: its lines, for each run.
        scale: what numbers are multiplied by.
        smooth: draw the mean over neighbours, and the raw line faintly behind it.
        from_zero: begin the axis at 0.
    """

    title: str
    curves: tuple[_Curve, ...]
    scale: float = 1.0
    smooth: bool = False
    from_zero: bool = False


_PANELS = (
    _Panel("DINO loss / ln K", (_Curve("loss_over_lnk"),), smooth=True),
    _Panel(
        "entropy of targets, nats",
        (
            _Curve("target_entropy", said="of one image"),
            _Curve("target_marginal_entropy", style="--", said="of their mean"),
        ),
        smooth=True,
    ),
    _Panel("nearest neighbours, % right", (_Curve("knn", "eval", "o-"),), scale=100.0),
    _Panel("effective rank (RankMe)", (_Curve("rankme", "eval", "o-"),)),
    _Panel("learning rate", (_Curve("lr"),)),
    _Panel("images per second", (_Curve("images_per_second"),), smooth=True, from_zero=True),
)
_TAUGHT = (  # instead of the first two, where tokens of a teacher are guessed
    _Panel(
        "distance to the teacher (1 - cosine)",
        (_Curve("class_token_distance"), _Curve("patch_tokens_distance", style="--")),
        smooth=True,
    ),
    _Panel(
        "cosine with the teacher, held-out images",
        (
            _Curve("class_token_cosine", "eval", "o-", said="class token"),
            _Curve("patch_tokens_cosine", "eval", "o--", said="patch tokens"),
        ),
    ),
)


def draw_curves(runs: Sequence[Path], out: Path) -> Path:
    """Draw loss, entropies, nearest neighbours, rank, learning rate and speed against the images seen.

    A dotted line in the panel of neighbours is the score of raw pixels, one in that of the loss is a student
    that knows nothing. What is wrong with a run at its end stands below the picture.

    Args:
        runs: folders of runs; their names become the legend.
        out: .png, .svg or .pdf to write.

    Returns: `out`.

    Raises:
        ArgumentError: there is no run, one has no metrics, the suffix is another one, or `out` cannot be
            written.
        DependencyError: matplotlib is missing.
    """
    if not runs:
        raise ArgumentError("no run to draw", hint="name the folder of a run, for instance runs/a")
    if out.suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"cannot draw {out.name!r}; wanted a name that ends in {', '.join(SUFFIXES)}")
    lines = [read_metrics(run) for run in runs]
    for run, own in zip(runs, lines, strict=True):
        if not any(line["kind"] != "diagnosis" for line in own):
            raise ArgumentError(
                f"{run} has no metrics yet", hint="see which runs there are: dinokit runs list"
            )
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "curves need the package matplotlib", hint="pip install 'dinov2kit[plot]'"
        ) from error
    figure = Figure(figsize=(12, 6.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    unit, word = _unit(max((line["images"] for own in lines for line in own), default=0))
    axes = figure.subplots(2, 3, sharex=True).ravel()
    panels = _panels(lines)
    for panel, plot in zip(panels, axes, strict=True):
        _style(plot, panel.title)
        for number, own in enumerate(lines):
            for curve in panel.curves:
                _draw(plot, own, curve, panel, unit, _COLOURS[number % len(_COLOURS)])
        if panel.from_zero:
            plot.set_ylim(bottom=0)
    _mark_baselines(axes, lines)
    for plot in axes[3:]:
        plot.set_xlabel(f"images seen{word}", color=_INK)
    _name(figure, axes, _short_names(runs), lines, panels)
    with written_whole(out) as temporary:
        figure.savefig(temporary, format=out.suffix[1:].lower())
    return out


def smoothed(values: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return the means over 2.5 % of the curve to each side of each point, over less at both ends.

    A window that is centred and symmetric does not lag behind a steep curve.
    """
    reach = int(len(values) * _SMOOTH)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    half = np.minimum(np.minimum(places, places[::-1]), reach)
    means: np.ndarray = (sums[places + half + 1] - sums[places - half]) / (2 * half + 1)
    return means


def _draw(
    plot: Any, lines: list[dict[str, Any]], curve: _Curve, panel: _Panel, unit: float, colour: str
) -> None:
    found = [
        (line["images"] / unit, line[curve.name] * panel.scale)
        for line in lines
        if line["kind"] == curve.kind and isinstance(line.get(curve.name), (int, float))
    ]
    if not found:
        return
    images, values = np.array(found, np.float64).T
    marks = {"markersize": 4, "linewidth": 1.8, "color": colour}
    if panel.smooth and len(values) >= 1 / _SMOOTH:
        plot.plot(images, values, curve.style, color=colour, alpha=0.2, linewidth=0.8)
        values = smoothed(values)
    plot.plot(images, values, curve.style, **marks)


def _style(plot: Any, title: str) -> None:
    plot.set_title(title, fontsize=10.5, color=_INK, loc="left")
    plot.grid(color=_FAINT, linewidth=0.6)
    plot.set_axisbelow(True)
    plot.tick_params(colors=_INK, labelsize=9, length=0)
    for side in ("top", "right"):
        plot.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        plot.spines[side].set_color(_FAINT)
    plot.margins(x=0.02)


def _mark_baselines(axes: Any, lines: list[list[dict[str, Any]]]) -> None:
    dotted = {"linestyle": ":", "linewidth": 1.2}
    axes[0].axhline(1.0, color=_INK, **dotted)
    said = {
        "xycoords": ("axes fraction", "data"),
        "fontsize": 8,
        "ha": "right",
        "va": "bottom",
        "color": _INK,
    }
    axes[0].annotate("knows nothing", (1.0, 1.0), **said)
    marked: set[float] = set()
    for own in lines:
        for line in own:
            score = line.get("knn_pixels")
            if score is not None and score not in marked:
                axes[2].axhline(100 * score, color=_INK, **dotted)
                if not marked:  # lines of several runs lie close together
                    axes[2].annotate("raw pixels", (1.0, 100 * score), **said)
                marked.add(score)


def _panels(lines: list[list[dict[str, Any]]]) -> tuple[_Panel, ...]:
    """Return what there is to plot: runs without prototypes have distances and cosines instead."""
    taught = any("class_token_distance" in line for own in lines for line in own)
    plain = any("loss_over_lnk" in line for own in lines for line in own)
    return (*_TAUGHT, *_PANELS[2:]) if taught and not plain else _PANELS


def _name(
    figure: Any, axes: Any, names: list[str], lines: list[list[dict[str, Any]]], panels: Sequence[_Panel]
) -> None:
    """Add the legends, and below all what is wrong with each run."""
    from matplotlib.lines import Line2D

    runs = [Line2D([], [], color=_COLOURS[i % len(_COLOURS)], linewidth=2.5) for i in range(len(names))]
    plain = {"frameon": False, "labelcolor": _INK}
    figure.legend(runs, names, loc="outside upper left", ncols=min(len(names), 4), fontsize=10, **plain)
    curves = [curve for curve in panels[1].curves if curve.said]
    kinds = [Line2D([], [], color=_INK, linestyle=curve.style.removeprefix("o")) for curve in curves]
    axes[1].legend(kinds, [curve.said for curve in curves], fontsize=8, **plain)
    wrong = [(name, sorted(open_diagnoses(own))) for name, own in zip(names, lines, strict=True)]
    notes = [f"{name}: {', '.join(codes)}" for name, codes in wrong if codes]
    if notes:
        figure.supxlabel("   ".join(notes), fontsize=9, color="#B00020", x=0.01, ha="left")


def _short_names(runs: Sequence[Path]) -> list[str]:
    """Return the names of the folders, or their paths where names are equal."""
    names = [run.absolute().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def _unit(most: int) -> tuple[float, str]:
    return next(
        ((unit, word) for unit, word in ((1e6, ", millions"), (1e3, ", thousands")) if most >= 2 * unit),
        (1.0, ""),
    )
