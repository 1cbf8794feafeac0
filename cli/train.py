"""`dinokit train`: a backbone of your own, from images without labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from . import console, options
from .index import stoppable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress as Bars

    from dinov2kit.train import TrainPlan, TrainProgress, TrainReport

_STAGES = {"teach": "Asking", "train": "Training", "eval": "Measuring", "save": "Saving"}


def train(
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE...", help="data=DIR and out=DIR; docs/training.md has all."),
    ] = None,
    dry_run: Annotated[
        bool, options.flag("--dry-run", help="Say what would be done, how long it takes, what it fills.")
    ] = False,
    presets: Annotated[bool, options.flag("--presets", help="List the presets and stop.")] = False,
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
    """Train a DINOv2 backbone on your images, without labels (DINO, iBOT, KoLeo).

    Everything that you do not set is chosen by the number of images and written into OUT/resolved.txt with
    its reason. Ctrl-C finishes the step and saves; the same command goes on, with the same images as if it
    had never stopped, also on another number of GPUs. torchrun and SLURM can start it as well.

    Example: dinokit train data=photos/ model=vits14 out=runs/a
    """
    if presets:
        _show_presets(as_json=as_json)
        return
    from dinov2kit.train import default_processes, fit, launch, plan_training, read_train_settings

    arguments = settings or []
    resolved = read_train_settings(arguments)
    if slurm is not None:
        send(slurm, ["train", *arguments], resolved.config.out, as_json=as_json)
        return
    if dry_run:
        show_plan(plan_training(resolved), as_json=as_json)
        return
    processes = nproc or default_processes(resolved.config.device)
    if processes > 1:
        flags = [*(["--json"] if as_json else []), *(["--quiet"] if quiet else [])]
        with stoppable(cluster=True) as stop:
            code = launch(["train", *arguments, *flags], processes, stop=stop)
        raise typer.Exit(code)
    with console.progress(quiet=quiet) as bars, stoppable(cluster=True) as stop:
        report = fit(resolved, watch=watch(bars), stop=stop)
    if report.leads:
        show_report(report, as_json=as_json, quiet=quiet)
    if report.state == "stopped":
        raise typer.Exit(console.INTERRUPTED)


def watch(bars: Bars) -> Callable[[TrainProgress], None]:
    """Return a callback that shows how far the run is, how fast, and how well it learns."""
    task = bars.add_task("Starting", total=None, note="")

    def show(progress: TrainProgress) -> None:
        for said in progress.diagnoses:
            console.warn(said)
        line, notes = progress.line, []
        if progress.images_per_second:
            notes.append(f"{progress.images_per_second:,.0f} img/s")
        if line.get("class_token_distance") is not None:
            notes.append(f"cosine {1 - line['class_token_distance']:.3f}")
        if line.get("loss_over_lnk") is not None:
            notes.append(f"loss/ln K {line['loss_over_lnk']:.3f}")
        if line.get("eval_knn") is not None:
            notes.append(f"kNN {line['eval_knn']:.1%}")
        bars.update(
            task,
            description=_STAGES[progress.stage],
            completed=progress.step,
            total=progress.steps,
            note=" · ".join(notes),
        )

    return show


def send(request: str, arguments: list[str], out: object, *, as_json: bool) -> None:
    """Write the file for SLURM and submit it."""
    from pathlib import Path

    from dinov2kit.train import read_request, submit

    path, job = submit(read_request(request), arguments, Path(str(out)))
    if as_json:
        console.emit_json("train-job/1", {"file": str(path), "job": job})
        return
    console.emit(str(path))
    console.say(f"submitted as job {job}" if job else "sbatch is not at hand: submit the file on the cluster")


def _show_presets(*, as_json: bool) -> None:
    from dinov2kit.train import list_presets

    found = list_presets()
    if as_json:
        facts = [{"name": preset.name, "summary": preset.summary} for preset in found]
        console.emit_json("train-presets/1", {"presets": facts})
        return
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for preset in found:
        table.add_row(preset.name, preset.summary)
    console.show_table(table)


def show_plan(plan: TrainPlan, *, as_json: bool) -> None:
    """Print what a run would do."""
    if as_json:
        console.emit_json("train-plan/1", plan.to_json())
        return
    how = "measured" if plan.measured else "estimated"
    shared = f" x {plan.processes} processes" if plan.processes > 1 else ""
    facts = {
        "model": f"{plan.model}, {plan.parameters:,} numbers with heads, {plan.precision} on {plan.device}",
        "images": f"{plan.images:,} to learn from, {plan.held_out:,} held out",
        "batch": f"{plan.batch:,} = {plan.micro_batch:,} at once x {plan.micro_batches}{shared}",
        "steps": f"{plan.steps:,}, {plan.epochs:.3g} epochs"
        + (f"; {plan.done:,} are done" if plan.done else ""),
        "arithmetic": f"{plan.flops_per_step / 1e12:.3g} TFLOP a step",
        "memory": f"{plan.memory_bytes / 1e9:.2f} GB, {how}; {plan.free_bytes / 1e9:.1f} GB are free",
        "speed": f"{plan.images_per_second:,.3g} images/s, {how}; "
        f"one process reads {plan.reading_images_per_second:,.0f}",
        "time": f"about {_time(plan.seconds)}",
        "disk": f"{plan.disk_bytes / 1e9:.2f} GB in {plan.out}",
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, said in facts.items():
        table.add_row(name, said)
    console.show_table(table)
    chosen = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("setting", "value", "from"):
        chosen.add_column(column)
    for name, value, why in plan.settings:
        if why != "default":
            chosen.add_row(name, str(value), why)
    console.show_table(chosen)
    for said in plan.warnings:
        console.warn(said)


def show_report(report: TrainReport, *, as_json: bool, quiet: bool) -> None:
    """Print what a run did."""
    if as_json:
        console.emit_json("train/1", report.to_json())
    elif report.export is not None:
        console.emit(str(report.export / "teacher.safetensors"))
    if quiet:
        return
    resumed = f", {report.resumed_at:,} of them before" if report.resumed_at else ""
    score = "" if report.knn is None else f" · kNN {report.knn:.1%} ({report.knn_kind})"
    console.say(
        f"{report.state} after {report.step:,} of {report.steps:,} steps{resumed} · {report.images:,} images"
        f"{score} · {_time(report.seconds)}"
    )
    if report.bad_images:
        console.warn(f"{report.bad_images:,} images cannot be read: {report.out / 'bad_files.txt'}")
    if report.state == "stopped":
        console.say("the same command goes on from here")


def _time(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Models")(train)
