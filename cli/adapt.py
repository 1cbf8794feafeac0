"""`dinokit adapt`: an adapter for keypoint matching, trained on photos without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from . import console, options
from .index import stoppable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bars

    from dinov2kit.train import AdaptPlan, AdaptReport, Progress

_MEASURED_ON = {
    "warped": "warped views of held-out photos",
    "mirrored": "the same, mirrored",
    "pairs": "marked keypoint pairs",
}


def adapt(
    settings: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="images=DIR and out=FILE; docs/cli.md has all."),
    ],
    dry_run: Annotated[
        bool, options.flag("--dry-run", help="Say what would be done and how long it takes.")
    ] = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train an adapter that makes the same places look alike to a frozen model; no labels are needed.

    It learns from warped views of your photos, and is measured on photos that it never saw, beside the raw
    features. When it loses, it says so. Ctrl-C saves; the same command goes on where it was.

    Example: dinokit adapt images=photos/ model=vits14 out=adapter.safetensors steps=500
    """
    from dinov2kit.train import AdaptConfig, adapt, plan_adapt, read_settings

    config = read_settings(AdaptConfig, settings)
    if dry_run:
        plan = plan_adapt(config)
        _show_plan(plan, as_json=as_json)
        return
    with console.progress(quiet=quiet) as bars, stoppable() as stop:
        report = adapt(config, advance=_watch(bars), stop=stop)
    for path in report.unreadable:
        console.warn(f"{path} could not be read; another photo stood in for it")
    if as_json:
        console.emit_json("adapt/1", report.to_json())
    else:
        _show_measures(report)
    if not quiet:
        _say_what_was_done(report)
    if not report.recommended:
        console.warn(
            f"the adapter lost to the raw features somewhere: {report.out} is marked as not recommended"
        )


def _watch(bars: Bars) -> Callable[[Progress], None]:
    """Return a callback that shows how far the run is, and the loss of the last steps."""
    words = {"train": "Training", "measure": "Measuring"}
    task = bars.add_task("Reading photos", total=None, note="")
    loss: float | None = None

    def advance(progress: Progress) -> None:
        nonlocal loss
        note = ""
        if progress.loss is not None:
            loss = progress.loss if loss is None else 0.95 * loss + 0.05 * progress.loss
            note = f"loss {loss:.3f}"
        bars.update(
            task,
            description=words[progress.stage],
            completed=progress.done,
            total=progress.total,
            note=note,
        )

    return advance


def _show_plan(plan: AdaptPlan, *, as_json: bool) -> None:
    if as_json:
        console.emit_json("adapt-plan/1", plan.to_json())
        return
    facts = {
        "model": f"{plan.model}, {plan.dim} dims, frozen, {plan.precision} on {plan.device}",
        "adapter": f"{plan.parameters:,} numbers, to {plan.out}",
        "photos": f"{plan.photos:,} to learn from, {plan.held_out:,} to measure on",
        "pairs": f"{plan.pairs:,} marked pairs to measure on",
        "views": f"{plan.cells}x{plan.cells} patches",
        "steps": f"{plan.steps:,}" + (f", of which {plan.done:,} are done" if plan.done else ""),
        "time": f"about {_time(plan.seconds)}",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, said in facts.items():
        table.add_row(name, said)
    console.show_table(table)


def _show_measures(report: AdaptReport) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("PCK on")
    for name in ("at", "points", "raw", "adapted", ""):
        table.add_column(name, justify="right")
    for measure in report.measures:
        table.add_row(
            _MEASURED_ON[measure.name],
            f"{measure.alpha:g}",
            f"{measure.points:,}",
            f"{measure.raw:.3f}",
            f"{measure.adapted:.3f}",
            "lost" if measure.lost else "",
        )
    console.show_table(table)


def _say_what_was_done(report: AdaptReport) -> None:
    resumed = f", {report.resumed_at:,} of them before" if report.resumed_at else ""
    console.say(
        f"{report.steps:,} steps on {report.photos:,} photos{resumed} · loss {report.loss_start:.3f} -> "
        f"{report.loss_end:.3f} · {_time(report.seconds)}"
    )
    console.say(f"wrote {report.out}")


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Models")(adapt)
