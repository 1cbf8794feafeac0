"""`dinokit runs`: training runs, seen from their folders."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import console, options

if TYPE_CHECKING:
    from dinov2kit.train import RunFacts, Score

runs_app = typer.Typer(
    name="runs",
    help="See how training runs are doing, draw their curves, and export their models.",
    no_args_is_help=True,
)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")]


class ExportFormat(StrEnum):
    """The formats that a trained model is written in."""

    safetensors = "safetensors"
    released = "released"
    hf = "hf"
    onnx = "onnx"


@runs_app.command("list")
def list_(
    root: Annotated[Path, typer.Argument(metavar="[ROOT]", help="Folder that holds runs.")] = Path(),
    as_json: options.JsonOption = False,
) -> None:
    """List the runs in a folder and how far they are; down to three folders deep.

    A run whose process has gone is "stopped", and goes on with the command that began it.

    Example: dinokit runs list runs/
    """
    from dinov2kit.train import list_runs

    found = list_runs(root)
    if as_json:
        console.emit_json("runs/1", {"root": str(root), "runs": [facts.to_json() for facts in found]})
    elif console.on_terminal():
        console.show_table(_list_table(found))
    else:
        for facts in found:
            console.emit(_row(facts))


@runs_app.command()
def status(
    run: RunArgument,
    follow: Annotated[
        bool, options.flag("--follow", "-f", help="Look again every 2 seconds until the run ends.")
    ] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Say how a run is doing: progress, speed, loss, scores, and what is wrong with it.

    It reads files alone, so it also works on finished runs, and from another machine.

    Example: dinokit runs status runs/a --follow
    """
    from dinov2kit.train import follow_run, run_status

    if follow:
        _follow(follow_run(run), as_json=as_json)
        return
    facts = run_status(run)
    if as_json:
        console.emit_json("run-status/1", facts.to_json())
        return
    for label, text in _fact_lines(facts):
        console.emit(f"{label:<14}{text}")


@runs_app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, to compare.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="Picture to write: .png, .svg or .pdf.")
    ] = Path("curves.png"),
) -> None:
    """Draw the curves of runs: loss, entropy of the targets, scores, rank, learning rate and speed.

    Example: dinokit runs plot runs/a runs/b --out curves.png
    """
    from dinov2kit.train import draw_curves

    console.emit(str(draw_curves(runs, out)))


@runs_app.command()
def export(
    run: RunArgument,
    to: Annotated[
        ExportFormat,
        typer.Option(help="safetensors, released: .pth, hf: a folder for transformers, or onnx."),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="File to write; for hf the folder.")
    ],
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write the model that a run has trained, its teacher, for other programs; also while it trains.

    Example: dinokit runs export runs/a --to hf --out vits14-mine
    """
    from dinov2kit.train import export_run

    console.emit(str(export_run(run, to=to.value, out=out, overwrite=overwrite)))


def _follow(seen: Iterable[RunFacts], *, as_json: bool) -> None:
    """Show each look at a run: in place on a terminal, else a line whenever something has changed."""
    if console.on_terminal() and not as_json:
        from rich.console import Console
        from rich.live import Live

        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            for facts in seen:
                live.update(_fact_table(facts), refresh=True)
        return
    last = None
    for facts in seen:
        if (facts.step, facts.state) == last:
            continue
        last = facts.step, facts.state
        if as_json:
            console.emit_json("run-status/1", facts.to_json(), indent=None)
        else:
            console.emit(_row(facts))


def _row(facts: RunFacts) -> str:
    """Return run, state, step, steps, loss over ln K, best and latest kNN, and diagnoses, tabs between."""
    scores = [f"{score.value:.4f}" if score else "" for score in (facts.best_knn, facts.knn)]
    loss = "" if facts.loss_over_lnk is None else f"{facts.loss_over_lnk:.4f}"
    wrong = ",".join(str(one["code"]) for one in facts.diagnoses)
    steps = "" if facts.steps is None else str(facts.steps)
    return "\t".join([str(facts.run), facts.state, str(facts.step), steps, loss, *scores, wrong])


def _list_table(found: list[RunFacts]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("done", "left", "img/s", "loss/ln K", "kNN"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("wrong", overflow="fold")
    for facts in found:
        table.add_row(
            Text(str(facts.run)),
            facts.state,
            "" if facts.share is None else f"{facts.share:.0%}",
            "" if facts.eta_s is None else _time(facts.eta_s),
            "" if facts.images_per_second is None else f"{facts.images_per_second:,.0f}",
            "" if facts.loss_over_lnk is None else f"{facts.loss_over_lnk:.3f}",
            "" if facts.best_knn is None else f"{facts.best_knn.value:.1%}",
            ", ".join(str(one["code"]) for one in facts.diagnoses),
        )
    return table


def _fact_lines(facts: RunFacts) -> list[tuple[str, str]]:
    of = "" if facts.steps is None else f" of {facts.steps:,}"
    share = "" if facts.share is None else f", {facts.share:.1%}"
    lines = [("run", str(facts.run)), ("state", facts.state + (f": {facts.error}" if facts.error else ""))]
    if facts.model:
        lines.append(("model", facts.model))
    lines.append(("steps", f"{facts.step:,}{of}{share}"))
    if facts.images is not None:
        lines.append(("images seen", f"{facts.images:,}"))
    if facts.images_per_second is not None:
        left = "" if facts.eta_s is None else f", about {_time(facts.eta_s)} left"
        lines.append(("speed", f"{facts.images_per_second:,.0f} images/s{left}"))
    if facts.loss is not None:
        over = "" if facts.loss_over_lnk is None else f"; DINO {facts.loss_over_lnk:.4f} of ln K"
        lines.append(("loss", f"{facts.loss:.4f}{over}"))
    if facts.knn is not None and facts.best_knn is not None:
        of_what = {"views": " of views"}.get(facts.knn_kind or "", "")
        lines.append((f"kNN{of_what}", f"{_score(facts.knn)}; best {_score(facts.best_knn)}"))
    if facts.rankme is not None:
        lines.append(("RankMe", f"{facts.rankme:.1f}"))
    lines.append(("export", str(facts.export or "none yet")))
    lines.append(("on disk", f"{facts.nbytes / 1e6:,.1f} MB"))
    for one in facts.diagnoses:
        lines.append(("wrong", f"since step {one['step']:,}: {one['sentence']}"))
        lines.append(("  remedy", str(one["remedy"])))
    return lines + [("unreadable", problem) for problem in facts.problems]


def _fact_table(facts: RunFacts) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, text in _fact_lines(facts):
        table.add_row(label, Text(text))  # brackets in it are no markup
    return table


def _score(score: Score) -> str:
    return f"{score.value:.1%} at step {score.step:,}"


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.add_typer(runs_app, name="runs", rich_help_panel="Models")
