"""What the commands print: results on stdout, everything else on stderr.

Nothing here computes. JSON results carry a `schema` name and stable keys; an error is one line and one hint.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dinov2kit.errors import (
    ArgumentError,
    DeviceError,
    ImageError,
    KitError,
    PruneRefused,
    StoreError,
    WeightsError,
)

DONE, FAILURE, USAGE, INPUT, WEIGHTS, DEVICE, INDEX, INTERRUPTED = 0, 1, 2, 3, 4, 5, 6, 130

_EXIT_CODES: list[tuple[type[KitError], int]] = [  # the first that fits
    (ArgumentError, USAGE),
    (ImageError, INPUT),
    (WeightsError, WEIGHTS),
    (DeviceError, DEVICE),
    (PruneRefused, FAILURE),
    (StoreError, INDEX),
]


def exit_code(error: KitError) -> int:
    """Return the exit code that belongs to an error."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), FAILURE)


def talk() -> Console:
    """Return the console on stderr, for everything that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(message: str) -> None:
    """Print one line of talk on stderr."""
    talk().print(message, markup=False)


def warn(message: str) -> None:
    """Print one warning on stderr."""
    talk().print(f"warning: {message}", style="yellow", markup=False)


def report_error(error: KitError, *, as_json: bool) -> None:
    """Print an error on stderr: one line and its hint, or one JSON object."""
    if as_json:
        facts = {"schema": "dinokit.error/1", "kind": type(error).__name__, "message": error.message}
        print(json.dumps({**facts, "hint": error.hint, "exit_code": exit_code(error)}), file=sys.stderr)
        return
    console = talk()
    console.print(f"error: {error.message}", style="red", markup=False)
    if error.hint:
        console.print(f"  hint: {error.hint}", style="dim", markup=False)


def emit(line: str, *, end: str = "\n") -> None:
    """Print one line of the result on stdout; undecodable file names keep their bytes."""
    sys.stdout.buffer.write(os.fsencode(line + end))
    sys.stdout.flush()


def emit_json(schema: str, result: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Print one JSON document on stdout, with its schema name first."""
    document = {"schema": f"dinokit.{schema}", **result}
    emit(json.dumps(document, indent=indent, ensure_ascii=True, default=str))


def show_table(table: Table) -> None:
    """Print a table on stdout, coloured only where a terminal can show it."""
    Console(highlight=False).print(table)


def on_terminal() -> bool:
    """Say whether stdout is a terminal."""
    return sys.stdout.isatty()


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Progress]:
    """Show bars on stderr while the block runs; silent when stderr is no terminal or `quiet`.

    Add a bar with `add_task(description, total=..., note="")`; `note` is free text at the end of the line.
    """
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
        console=talk(),
        transient=True,
        disable=quiet or not sys.stderr.isatty(),
    )
    with bars:
        yield bars


def show_stages(bars: Progress) -> Callable[[str, int, int | None], None]:
    """Return a callback that shows the stage of the work, how far it is and how fast it goes."""
    task = bars.add_task("Starting", total=None, note="")
    stages = ["Starting"]

    def show(stage: str, done: int, total: int | None) -> None:
        if stage != stages[-1]:
            stages.append(stage)
            bars.reset(task, description=stage, total=total)
        speed = bars.tasks[0].speed
        note = f"{speed:,.0f}/s" if speed and total else ""
        bars.update(task, completed=done, total=total, note=note)

    return show
