"""What there is to know of a run from its folder alone, while it is running, afterwards, or half written."""

from __future__ import annotations

import os
import socket
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dinov2kit.errors import ArgumentError, KitError

from .diagnosis import open_diagnoses
from .metrics import read_metrics
from .run_record import read_record

LOCK = "run.lock"
EXPORT = Path("export", "teacher.safetensors")

_MARKS = ("run.json", "metrics.jsonl")  # a folder that holds one of them is a run
_DEEP = 3  # folders below the one that is searched
_LATEST = 5  # lines that the speed is a mean of
_SILENT = 600.0  # seconds after which a run on a machine that cannot be asked counts as stopped


@dataclass(frozen=True)
class Score:
    """What nearest neighbours scored, 0 to 1, and after which step."""

    value: float
    step: int


@dataclass(frozen=True)
class RunFacts:
    """What there is to know of a run; what is not known is None.

    Attributes:
        run: its folder.
        state: "running", "stopped", "finished", "failed", or "unknown" where run.json cannot be read.
        error: why it failed.
        model: name of the backbone.
        created: when it began, ISO 8601 in UTC.
        updated: when it last wrote its record.
        host: name of the machine that runs it, or did.
        step: how many steps are done.
        steps: of the whole run.
        share: how much of it is done, 0 to 1.
        images: how many images the steps have seen.
        images_per_second: of the latest steps.
        eta_s: seconds that the rest takes at that speed; None where it is not running.
        loss: of the latest steps.
        loss_over_lnk: mean DINO loss over that of a student that knows nothing.
        knn: latest score of nearest neighbours.
        best_knn: the best so far.
        knn_kind: "labels" or "views".
        rankme: latest effective rank.
        diagnoses: what is wrong, latest first: `code`, `step`, `sentence`, `remedy`.
        export: exported weights of the teacher.
        nbytes: size of the folder.
        problems: what could not be read, in words.
    """

    run: Path
    state: str
    error: str | None
    model: str | None
    created: str | None
    updated: str | None
    host: str | None
    step: int
    steps: int | None
    share: float | None
    images: int | None
    images_per_second: float | None
    eta_s: float | None
    loss: float | None
    loss_over_lnk: float | None
    knn: Score | None
    best_knn: Score | None
    knn_kind: str | None
    rankme: float | None
    diagnoses: tuple[Mapping[str, Any], ...]
    export: Path | None
    nbytes: int
    problems: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the facts, ready for JSON."""
        export = None if self.export is None else str(self.export)
        return {**asdict(self), "run": str(self.run), "export": export}


def list_runs(root: Path) -> list[RunFacts]:
    """Return the runs in a folder, down to three folders deep, sorted by path; a folder that is a run is one.

    Raises:
        ArgumentError: there is no such folder.
    """
    if not root.is_dir():
        raise ArgumentError(f"no such folder: {root}", hint="name the folder that holds your runs")
    return [run_status(run) for run in sorted(_find(root, _DEEP))]


def run_status(run: Path) -> RunFacts:
    """Return what there is to know of a run. Nothing in its folder is changed, and nobody waits for it.

    A run whose process has gone is "stopped", whatever run.json says.

    Raises:
        ArgumentError: the folder holds no run.
    """
    if not any((run / mark).is_file() for mark in _MARKS):
        raise ArgumentError(f"{run} is no run", hint="see which there are: dinokit runs list")
    problems: list[str] = []
    record: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    try:
        record = read_record(run)
    except KitError as error:
        problems.append(error.message)
    try:
        lines = read_metrics(run)
    except KitError as error:
        problems.append(error.message)
    state = record.get("state", "unknown")
    if state == "running" and not _is_running(run, record):
        state = "stopped"
    train = [line for line in lines if line["kind"] == "train"]
    last = train[-1] if train else {}
    step = max(record.get("step", 0), last.get("step", 0))
    steps = record.get("steps")
    speed = _mean(train[-_LATEST:], "images_per_second")
    export = run / EXPORT
    return RunFacts(
        run=run,
        state=state,
        error=record.get("error"),
        model=record.get("model"),
        created=record.get("created"),
        updated=record.get("updated"),
        host=record.get("host"),
        step=step,
        steps=steps,
        share=min(step / steps, 1.0) if steps else None,
        images=step * record["batch"] if "batch" in record else last.get("images"),
        images_per_second=speed,
        eta_s=_eta(last, steps, speed) if state == "running" else None,
        loss=last.get("loss"),
        loss_over_lnk=last.get("loss_over_lnk"),
        **_measured(lines),
        diagnoses=tuple(_said(line) for line in reversed(open_diagnoses(lines).values())),
        export=export if export.is_file() else None,
        nbytes=_size(run),
        problems=tuple(problems),
    )


def follow_run(run: Path, *, every: float = 2.0) -> Iterator[RunFacts]:
    """Yield what there is to know of a run, again and again until it no longer runs.

    Args:
        run: its folder.
        every: seconds from one look to the next.

    Raises:
        ArgumentError: the folder holds no run.
    """
    facts = run_status(run)
    yield facts
    while facts.state == "running":
        time.sleep(every)
        facts = run_status(run)
        yield facts


def _find(folder: Path, deep: int) -> Iterator[Path]:
    """Yield the runs in a folder; what lies in a run, and what cannot be read, is not looked into."""
    if any((folder / mark).is_file() for mark in _MARKS):
        yield folder
        return
    if not deep:
        return
    try:
        below = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."]
    except OSError:
        return
    for inner in below:
        yield from _find(inner, deep - 1)


def _is_running(run: Path, record: Mapping[str, Any]) -> bool:
    """Say whether the process that run.json names is at work; it holds the lock of the run all its life."""
    here = record.get("host") == socket.gethostname()
    if here and "pid" in record and not _is_alive(record["pid"]):
        return False
    try:
        if (run / LOCK).is_file():
            with FileLock(run / LOCK, timeout=0):
                return not here and _is_fresh(run)  # locks may not travel from machine to machine
    except Timeout:
        return True
    except OSError:  # no right to write there, so that the lock cannot be asked
        pass
    return here or _is_fresh(run)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def _is_fresh(run: Path) -> bool:
    """Say whether the run wrote something a short while ago."""
    written = [path.stat().st_mtime for mark in _MARKS if (path := run / mark).exists()]
    return time.time() - max(written, default=0.0) < _SILENT


def _measured(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the evaluations say."""
    scores = [Score(line["knn"], line["step"]) for line in lines if _has(line, "knn")]
    kinds = [line["knn_kind"] for line in lines if line["kind"] == "eval" and "knn_kind" in line]
    ranks = [line["rankme"] for line in lines if _has(line, "rankme")]
    return {
        "knn": scores[-1] if scores else None,
        "best_knn": max(scores, key=lambda score: score.value, default=None),
        "knn_kind": kinds[-1] if kinds else None,
        "rankme": ranks[-1] if ranks else None,
    }


def _has(line: Mapping[str, Any], name: str) -> bool:
    return line["kind"] == "eval" and isinstance(line.get(name), (int, float))


def _mean(lines: list[dict[str, Any]], name: str) -> float | None:
    values = [line[name] for line in lines if isinstance(line.get(name), (int, float))]
    return statistics.fmean(values) if values else None


def _eta(last: Mapping[str, Any], steps: int | None, speed: float | None) -> float | None:
    """Return the seconds that the rest takes, from images per step and per second."""
    if not steps or not speed or not last.get("step") or not last.get("images"):
        return None
    return float(max(steps - last["step"], 0) * (last["images"] / last["step"]) / speed)


def _said(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: line.get(name) for name in ("code", "step", "sentence", "remedy")}


def _size(folder: Path) -> int:
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(base, name).lstat().st_size
            except OSError:  # gone meanwhile
                continue
    return total
