"""`dinokit index`: folders of photos become an index, or their index is brought up to date."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console, options

if TYPE_CHECKING:
    from dinov2kit.indexes import IndexRun, RayEngine, UpdatePlan

SHOWN_ERRORS = 20


class Engine(StrEnum):
    """Where photos are read and described."""

    local = "local"
    ray = "ray"


class Prune(StrEnum):
    """What happens to photos that are gone."""

    auto = "auto"
    never = "never"
    force = "force"


def index(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="PATH", help="Folders, tar archives; none: all that are known."),
    ] = None,
    index: options.IndexOption = None,
    in_place: Annotated[
        bool, options.flag("--in-place", help="Put a new index into the folder, as .dinokit.")
    ] = False,
    model: options.ModelOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    batch: options.BatchOption = 0,
    workers: options.WorkersOption = -1,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Only these files; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Leave these files or folders out.")
    ] = None,
    list_: Annotated[
        str | None,
        typer.Option("--list", metavar="FILE|-", help="Only the files named here, one per line; - is stdin."),
    ] = None,
    null: Annotated[bool, options.flag("--null", "-0", help="Names in --list end with a NUL byte.")] = False,
    tar: Annotated[
        bool, options.flag("--tar", help="Enter tar archives (webdataset) in the folders.")
    ] = False,
    video: Annotated[bool, options.flag("--video", help="Take frames of the videos, too.")] = False,
    every: Annotated[
        float, typer.Option(metavar="TIME", parser=options.parse_seconds, help="Time between frames (2s).")
    ] = "2",  # type: ignore[assignment]
    follow_symlinks: Annotated[
        bool, options.flag("--follow-symlinks", help="Enter folders behind symbolic links.")
    ] = False,
    one_file_system: Annotated[
        bool, options.flag("--one-file-system", help="Do not enter other disks.")
    ] = False,
    min_size: Annotated[
        int, typer.Option(metavar="SIZE", parser=options.parse_bytes, help="Leave smaller files out.")
    ] = "0",  # type: ignore[assignment]
    max_mpix: Annotated[
        float, typer.Option(metavar="N", help="Refuse images of more megapixels; 0 is the limit of Pillow.")
    ] = 0.0,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Longest time for one file.")] = 30.0,
    verify_hash: Annotated[
        bool, options.flag("--verify-hash", help="Compare contents, not only size and time.")
    ] = False,
    retry_errors: Annotated[
        bool, options.flag("--retry-errors", help="Try again what could not be read before.")
    ] = False,
    prune: Annotated[
        Prune,
        typer.Option(
            metavar="auto|never|force",
            help="Photos that are gone leave the index, unless the disk looks unmounted.",
        ),
    ] = Prune.auto,
    if_stale: Annotated[
        float,
        typer.Option(
            metavar="TIME", parser=options.parse_seconds, help="Do nothing if the last run is younger (1h)."
        ),
    ] = "0",  # type: ignore[assignment]
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=options.parse_bytes, help="Memory for the faiss index (64M, 4G)."
        ),
    ] = None,
    factory: Annotated[
        str | None, typer.Option(metavar="STRING", help="faiss factory string, or auto.")
    ] = None,
    recall: Annotated[
        float, typer.Option(metavar="SHARE", min=0.1, max=1.0, help="recall@10 that faiss is tuned to.")
    ] = 0.95,
    rebuild: Annotated[bool, options.flag("--rebuild", help="Build the faiss index anew.")] = False,
    plan_only: Annotated[
        bool, options.flag("--plan-only", help="Say what would be done, and change nothing.")
    ] = False,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="Wait for another writer.")] = 0.0,
    engine: Annotated[
        Engine, typer.Option(metavar="local|ray", help="Describe photos here, or on a Ray cluster.")
    ] = Engine.local,
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Ray cluster; auto: that of this machine; local: a new one."),
    ] = None,
    ray_workers: Annotated[
        int, typer.Option(metavar="N", min=0, help="Ray actors; 0: one per GPU, else per core.")
    ] = 0,
    strict: Annotated[bool, options.flag("--strict", help="Exit 1 when a file cannot be read.")] = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Index folders or archives of photos; run again after changes, only new and changed photos are opened.

    Moved photos are recognised, removed ones leave the index, and files that cannot be read are listed and do
    not stop the others. Ctrl-C finishes what was begun; the next run goes on there. The photos are only read.

    Example: dinokit index ~/Pictures
    """
    from dinov2kit.decoding import default_workers
    from dinov2kit.images import MAX_PIXELS
    from dinov2kit.indexes import AnnWishes, UpdateRules, WalkRules, index_photos, plan_photos

    rules = UpdateRules(
        walk=WalkRules(
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            follow_symlinks=follow_symlinks,
            one_file_system=one_file_system,
            min_size=min_size,
            tars=tar,
            every=every if video else None,
        ),
        listed=_read_list(list_, null=null) if list_ else None,
        verify_hash=verify_hash,
        retry_errors=retry_errors,
        prune=prune.value,
        workers=default_workers() if workers < 0 else workers,
        batch_size=batch,
        timeout=timeout,
        max_pixels=int(max_mpix * 1e6) or MAX_PIXELS,
    )
    elsewhere = _ray_engine(engine, address, ray_workers, workers)
    if plan_only:
        _show_plan(plan_photos(index, paths or (), rules=rules, wait=wait), as_json=as_json)
        return
    with console.progress(quiet=quiet) as bars, stoppable() as stop:
        run = index_photos(
            index,
            paths or (),
            model=model,
            device=device,
            precision=precision,
            rules=rules,
            ann=AnnWishes(memory, factory, recall, rebuild),
            in_place=in_place,
            if_stale=if_stale,
            wait=wait,
            watch=console.show_stages(bars),
            stop=stop,
            engine=elsewhere,
        )
    if as_json:
        console.emit_json("index/1", run.to_json())
    elif not quiet:
        _show_run(run)
    raise typer.Exit(_exit_code(run, strict=strict))


@contextmanager
def stoppable(*, cluster: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield what says whether to stop: the first Ctrl-C or SIGTERM asks for it, the second one breaks off.

    Args:
        cluster: SIGUSR1 and SIGUSR2 ask for it too, and only a second Ctrl-C breaks off: schedulers send the
            others several times.
    """
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set() and (number == signal.SIGINT or not cluster):
            raise KeyboardInterrupt
        if not asked.is_set():
            console.say("stopping: finishing what was begun; press Ctrl-C again to break off")
        asked.set()

    more = (signal.SIGUSR1, signal.SIGUSR2) if cluster else ()
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, *more)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ray_engine(engine: Engine, address: str | None, actors: int, decoders: int) -> RayEngine | None:
    """Return what describes photos elsewhere, or None when they are described here."""
    from dinov2kit.errors import ArgumentError
    from dinov2kit.indexes import RayEngine

    if engine is Engine.ray:
        return RayEngine(address, workers=actors, decoders=None if decoders < 0 else decoders)
    if address is not None or actors:
        raise ArgumentError("--address and --ray-workers go with --engine ray", hint="add --engine ray")
    return None


def _read_list(source: str, *, null: bool) -> frozenset[Path]:
    """Read file names; they are relative to the current folder."""
    from dinov2kit.errors import ImageError

    try:
        content = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the list {source}: {error.strerror}") from error
    names = content.split(b"\0" if null else b"\n")
    stripped = [name if null else name.removesuffix(b"\r") for name in names]
    return frozenset(Path(os.path.abspath(os.fsdecode(name))) for name in stripped if name)  # noqa: PTH100


def _show_run(run: IndexRun) -> None:
    report = run.report
    if run.skipped:
        console.say(f"the last run is young enough; {run.items:,} photos in {run.directory}")
        return
    for path, reason in report.unread[:SHOWN_ERRORS]:
        console.warn(f"{path}: {reason}")
    if len(report.unread) > SHOWN_ERRORS:
        console.warn(f"and {len(report.unread) - SHOWN_ERRORS:,} more that were not found or not read")
    for path, reason in report.errors[:SHOWN_ERRORS]:
        console.warn(f"{path}: {reason}")
    if len(report.errors) > SHOWN_ERRORS:
        console.warn(f"and {len(report.errors) - SHOWN_ERRORS:,} more; see dinokit info --errors")
    counts = {
        "new": report.new,
        "changed": report.changed,
        "moved": report.moved,
        "unchanged": report.unchanged,
        "removed": report.removed,
        "gone but kept": report.kept,
        "unreadable": len(report.errors),
    }
    said = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "nothing to do"
    speed = f", {report.described / report.seconds:,.0f} images/s" if report.described else ""
    console.say(f"{said} ({report.seconds:,.1f} s{speed})")
    for advice in run.advice:
        console.say(advice)
    faiss = f", {run.ann.factory} with recall@10 {run.ann.recall:.3f}" if run.ann else ""
    console.say(f"{run.items:,} photos in {run.directory} ({run.model}{faiss})")
    if report.interrupted:
        console.say("stopped before the end; run the same command again to go on")


def _show_plan(plan: UpdatePlan, *, as_json: bool) -> None:
    if as_json:
        facts = {**vars(plan), "index": str(plan.directory)}
        del facts["directory"]
        console.emit_json("index-plan/1", facts)
        return
    console.emit(f"index\t{plan.directory}")
    console.emit(f"open\t{plan.open}\t{plan.bytes_to_read / 1e6:,.1f} MB to read")
    console.emit(f"unchanged\t{plan.unchanged}")
    console.emit(f"gone\t{plan.gone}")
    if plan.bytes_to_write is not None:
        console.emit(f"disk\t{plan.bytes_to_write / 1e6:,.1f} MB at most")
    guess = f"{plan.seconds:,.0f} s at the speed of the last run" if plan.seconds else "unknown before a run"
    console.emit(f"time\t{guess}")
    for suffix, count in sorted(plan.unsupported.items()):
        console.emit(f"other\t{count}\t{suffix}")


def _exit_code(run: IndexRun, *, strict: bool) -> int:
    report = run.report
    if report.interrupted:
        return console.INTERRUPTED
    failed = len(report.errors)
    return console.FAILURE if failed and (strict or failed > report.found / 2) else console.DONE


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Photos")(index)
