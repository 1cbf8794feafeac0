"""`dinokit dedup apply`, `undo`, `calibrate`: doing what a plan proposes, taking it back, the threshold."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from . import console, options
from .index import stoppable

if TYPE_CHECKING:
    from dinov2kit.indexes import ApplyReport, Calibration, RunLog, UndoReport

SHOWN = 20  # reasons on stderr
DOING = {
    "quarantine": "moved to the quarantine",
    "hardlink": "replaced by hard links",
    "symlink": "replaced by symbolic links",
    "trash": "moved to the bin",
    "delete": "deleted for good",
}
YesOption = Annotated[bool, options.flag("--yes", "-y", help="Do not ask; needed without a terminal.")]


def apply(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Plan that dinokit dedup wrote.")],
    action: Annotated[
        str,
        typer.Option(metavar="|".join(DOING), help="What happens to the files; links need equal content."),
    ] = "quarantine",
    quarantine: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Move below this folder, on the same disk, not below the photos."),
    ] = None,
    permanently: Annotated[
        bool, options.flag("--permanently", help="Needed by delete, with --yes: there is no way back.")
    ] = False,
    dry_run: Annotated[
        bool, options.flag("--dry-run", help="Look at every file and say what would happen; change nothing.")
    ] = False,
    yes: YesOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Remove what a plan proposes, after looking again at every file and at the copy that stays.

    What is not as the plan says is left alone, and the reason is given; then the exit code is 1. Everything
    but delete and trash can be taken back with dinokit dedup undo.

    Example: dinokit dedup apply plan.jsonl --dry-run
    """
    from dinov2kit.indexes import apply_plan, read_plan

    proposed = read_plan(plan)
    count = sum(len(group.remove) for group in proposed.groups)
    if not dry_run:
        _check_delete(action, permanently=permanently, yes=yes)
        if count:
            what = DOING.get(action, "removed")
            _ask(f"{count:,} files ({_megabytes(proposed.reclaimable)}) will be {what}.", yes=yes)
    with console.progress(quiet=quiet) as bars, stoppable() as stop:
        report = apply_plan(
            proposed,
            action=action,
            quarantine=quarantine,
            dry_run=dry_run,
            watch=console.show_stages(bars),
            stop=stop,
        )
    if as_json:
        console.emit_json("dedup-apply/1", report.to_json())
    else:
        _print_outcomes(report)
    if not quiet:
        _say_what_went(report)
    if report.interrupted:
        raise typer.Exit(console.INTERRUPTED)
    raise typer.Exit(console.FAILURE if report.skipped else console.DONE)


def undo(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name of the run; the latest when not given.")
    ] = None,
    listing: Annotated[bool, options.flag("--list", help="List the runs, and change nothing.")] = False,
    yes: YesOption = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Bring back what dinokit dedup apply removed: bytes, time, permissions and place.

    What stands in the way is not overwritten; the reason is given, and then the exit code is 1. It works
    after a crash too, and as often as you like.

    Example: dinokit dedup undo --list
    """
    from dinov2kit.indexes import list_runs, open_run, undo_run

    if listing:
        _print_runs(list_runs(), as_json=as_json)
        return
    log = open_run(run)
    if log.left:
        _ask(f"{log.left:,} files that were {DOING[log.action]} come back.", yes=yes)
    with console.progress(quiet=quiet) as bars, stoppable() as stop:
        report = undo_run(log.run, watch=console.show_stages(bars), stop=stop)
    if as_json:
        console.emit_json("dedup-undo/1", report.to_json())
    else:
        for file in report.files:
            console.emit(f"{file.fate}\t{file.path}" + (f"\t{file.reason}" if file.reason else ""))
    if not quiet:
        _say_what_came_back(report)
    if report.interrupted:
        raise typer.Exit(console.INTERRUPTED)
    raise typer.Exit(console.FAILURE if report.count("refused") else console.DONE)


def calibrate(
    index: options.IndexOption = None,
    photos: Annotated[
        int, typer.Option(metavar="N", min=2, help="How many photos are copied and described.")
    ] = 500,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the draw and of the copies.")] = 0,
    min_precision: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of true copies that the threshold keeps (0 to 1).")
    ] = 0.99,
    write: Annotated[
        bool, options.flag("--write", help="Keep the threshold in the index; dinokit dedup takes it.")
    ] = False,
    model: options.IndexModelOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Find the score from which a pair counts as a copy, for the model and the photos of an index.

    Copies of indexed photos are made (JPEG 50, half size, crop, mirror, border, brightness) and scored
    against the nearest other photos.

    Example: dinokit dedup calibrate --photos 200 --write
    """
    from dinov2kit.indexes import Index, calibrate, write_calibration

    with (
        Index.open(index, model=model, device=device, precision=precision) as opened,
        console.progress(quiet=quiet) as bars,
    ):
        found = calibrate(
            opened, photos=photos, seed=seed, precision=min_precision, watch=console.show_stages(bars)
        )
    if as_json:
        console.emit_json("dedup-calibration/1", found.to_json())
    else:
        _print_rows(found)
    if not quiet:
        _say_what_was_found(found)
    if write:
        path = write_calibration(opened.directory, found)
        if not quiet:
            console.say(f"wrote {path}")


def _check_delete(action: str, *, permanently: bool, yes: bool) -> None:
    from dinov2kit.errors import ArgumentError

    if action == "delete" and not (permanently and yes):
        raise ArgumentError(
            "--action delete removes files for good", hint="say so: --permanently --yes; or quarantine them"
        )
    if permanently and action != "delete":
        raise ArgumentError(f"--permanently goes with --action delete, not with {action}")


def _ask(what: str, *, yes: bool) -> None:
    """Ask once on a terminal whether to go on.

    Raises:
        ArgumentError: nobody can answer.
        typer.Exit: the answer is no.
    """
    from dinov2kit.errors import ArgumentError

    if yes:
        return
    if not _can_answer():
        raise ArgumentError(f"{what} There is no terminal to ask on", hint="add --yes; nothing was changed")
    try:
        answer = console.talk().input(f"{what} Go on? [y/N] ", markup=False)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        console.say("nothing was changed")
        raise typer.Exit(console.FAILURE)


def _can_answer() -> bool:
    return sys.stdin.isatty()


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"


def _print_outcomes(report: ApplyReport) -> None:
    for outcome in report.outcomes:
        if outcome.reason is not None:
            console.emit(f"left\t{outcome.path}\t{outcome.reason}")
        else:
            target = outcome.keeper if report.action.endswith("link") else outcome.moved_to
            console.emit(f"{report.action}\t{outcome.path}" + (f"\t{target}" if target else ""))


def _say_what_went(report: ApplyReport) -> None:
    for outcome in report.skipped[:SHOWN]:
        console.warn(f"{outcome.path}: {outcome.reason}")
    if len(report.skipped) > SHOWN:
        console.warn(f"and {len(report.skipped) - SHOWN:,} more")
    went = "would be " if report.dry_run else ""
    left = f"; {len(report.skipped):,} left alone" if report.skipped else ""
    sizes = f"{len(report.done):,} files ({_megabytes(report.nbytes)})"
    console.say(f"{sizes} {went}{DOING[report.action]}{left}")
    if report.run is None:
        return
    if report.action in ("quarantine", "hardlink", "symlink"):
        console.say(f"to take it back: dinokit dedup undo {report.run}")
    for folder in report.quarantines:
        console.say(f"the space is free when you delete {folder}")
    console.say("the index still knows these files; to bring it up to date: dinokit index")


def _say_what_came_back(report: UndoReport) -> None:
    for file in [file for file in report.files if file.reason][:SHOWN]:
        console.warn(f"{file.path}: {file.reason}")
    counts = {"restored": "restored", "in place": "there already", "refused": "could not be restored"}
    said = [f"{report.count(fate):,} {what}" for fate, what in counts.items() if report.count(fate)]
    console.say(f"{', '.join(said) or 'nothing to restore'} (run {report.run})")


def _print_runs(runs: list[RunLog], *, as_json: bool) -> None:
    facts = [run.to_json() for run in runs]
    if as_json:
        console.emit_json("dedup-runs/1", {"runs": facts})
        return
    for run in facts:
        words = (run["run"], run["action"], f"{run['files']} files", f"{run['undone']} undone", run["index"])
        console.emit("\t".join(str(word) for word in words))


def _print_rows(found: Calibration) -> None:
    rows = sorted({row.threshold: row for row in (*found.rows, found.best) if row is not None}.items())
    kinds = list(found.rows[0].kinds)
    lines = [
        [
            f"{threshold:.6f}".rstrip("0"),
            *("" if share is None else f"{share:.4f}" for share in (row.precision, row.recall, row.false)),
            *(f"{row.kinds[kind]:.4f}" for kind in kinds),
        ]
        for threshold, row in rows
    ]
    names = ["threshold", "precision", "recall", "false", *kinds]
    if not console.on_terminal():
        for line in (names, *lines):
            console.emit("\t".join(line))
        return
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, justify="right")
    for line, (_, row) in zip(lines, rows, strict=True):
        table.add_row(*line, style="bold" if row is found.best else None)
    console.show_table(table)


def _say_what_was_found(found: Calibration) -> None:
    for path, reason in found.unreadable[:SHOWN]:
        console.warn(f"{path}: {reason}")
    best = found.best
    if best is None:
        console.warn(f"no threshold reaches a precision of {found.wanted} with {found.model}")
    else:
        shares = f"precision {best.precision:.4f}, recall {best.recall:.4f}"
        console.say(f"threshold {best.threshold} for {found.model}: {shares}")
    console.say(f"{found.photos:,} photos; {found.left_out:,} neighbours were copies and left out")


def add_to(app: typer.Typer) -> None:
    """Add the commands to those of `dinokit dedup`."""
    app.command()(apply)
    app.command()(undo)
    app.command()(calibrate)
