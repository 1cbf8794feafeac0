"""`dinokit distill`: a backbone of your own that learns from a finished network."""

from __future__ import annotations

from typing import Annotated

import typer

from . import console, options
from .index import stoppable
from .train import send, show_plan, show_report, watch


def distill(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE...", help="teacher=, student=, data=, out=; docs/training.md has all."
        ),
    ] = None,
    dry_run: Annotated[
        bool, options.flag("--dry-run", help="Say what would be done, how long it takes, what it fills.")
    ] = False,
    nproc: Annotated[
        int, typer.Option(metavar="N", help="Processes on this machine; 0 is one for each GPU.")
    ] = 0,
    slurm: Annotated[
        str | None,
        typer.Option(metavar="nodes=N,...", help="Write OUT/train.sbatch and submit it to SLURM."),
    ] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a small backbone on what a finished network says of your images.

    The teacher is a run, a released model, hf:NAME for a model of Hugging Face, torch:MODULE:NAME for code of
    your own, or a file of features from any network at all. With heads its prototypes are learned, as the
    small released models were made; else its class and patch tokens are guessed. Several students,
    student=[vitt14,vits14], share what the teacher is asked. Interrupt it and go on as with train.

    Example: dinokit distill teacher=vitl14 student=vitt14 data=photos/ out=runs/small
    """
    from dinov2kit.train import (
        default_processes,
        launch,
        plan_training,
        read_distill_settings,
    )
    from dinov2kit.train import distill as learn

    arguments = settings or []
    students = read_distill_settings(arguments)
    if slurm is not None:
        send(slurm, ["distill", *arguments], students[0].config.out, as_json=as_json)
        return
    if dry_run:
        for student in students:
            show_plan(plan_training(student), as_json=as_json)
        return
    processes = nproc or default_processes(students[0].config.device)
    if processes > 1:
        flags = [*(["--json"] if as_json else []), *(["--quiet"] if quiet else [])]
        with stoppable(cluster=True) as stop:
            code = launch(["distill", *arguments, *flags], processes, stop=stop)
        raise typer.Exit(code)
    with console.progress(quiet=quiet) as bars, stoppable(cluster=True) as stop:
        reports = learn(students, watch=watch(bars), stop=stop)
    for report in reports:
        if report.leads:
            show_report(report, as_json=as_json, quiet=quiet)
    if any(report.state == "stopped" for report in reports):
        raise typer.Exit(console.INTERRUPTED)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Models")(distill)
