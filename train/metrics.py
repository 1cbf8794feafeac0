"""What a run measures, line by line: metrics.jsonl, and the same numbers in TensorBoard or W&B.

A line is one strict JSON object with `kind` ("train", "eval" or "diagnosis"), `step`, `images`, and `time` in
Unix seconds. What is not finite is null there, and named in `not_finite`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dinov2kit.errors import ArgumentError, DependencyError, check_choice
from dinov2kit.files import written_whole

KINDS = ("train", "eval", "diagnosis")
SINKS = ("tensorboard", "wandb")
RECENT = 256  # lines of training that diagnoses may look back on

_FILE = "metrics.jsonl"
_COORDINATES = ("kind", "step", "images", "time")

Sink = Callable[[Mapping[str, Any]], None]
"""Takes a line as `MetricsLog.append` returns it."""


class MetricsLog:
    """Appends lines to the metrics.jsonl of a run; each is on its way to the disk before the next step.

    Args:
        run: folder of the run. A torn last line, of a run that was killed, is dropped.

    Raises:
        ArgumentError: the folder does not exist or cannot be written.
    """

    def __init__(self, run: Path) -> None:
        self._others: list[dict[str, Any]] = []
        self._train: deque[dict[str, Any]] = deque(maxlen=RECENT)
        path = run / _FILE
        _keep(path, None)
        try:
            for line in read_metrics(run):
                self._remember(line)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise ArgumentError(f"cannot write {path}: {error.strerror or error}") from error

    @classmethod
    def open(cls, run: Path, resume_step: int) -> MetricsLog:
        """Open the log of a run that goes on after a step, as it was then: later lines are dropped.

        The file appears whole: whoever reads it meanwhile sees the old one or the new one.

        Raises:
            ArgumentError: the folder does not exist or cannot be written.
        """
        _keep(run / _FILE, resume_step)
        return cls(run)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def recent(self) -> list[dict[str, Any]]:
        """All evaluations and diagnoses, then the latest lines of training: what `diagnose` looks at."""
        return [*self._others, *self._train]

    def append(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """Write one line and return it as it was written.

        Args:
            line: `kind`, `step`, `images`, and numbers, texts, or groups of numbers by name. `time` is added.

        Raises:
            ArgumentError: `kind`, `step` or `images` is missing, or the kind is none of those that there are.
        """
        check_choice("kind of line", line.get("kind"), KINDS)
        if missing := [name for name in ("step", "images") if name not in line]:
            raise ArgumentError(f"a line of metrics without {' and '.join(missing)}")
        spoilt: list[str] = []
        written = _strict({"time": round(time.time(), 3), **line}, "", spoilt)
        written = {name: written.pop(name) for name in _COORDINATES} | written
        if spoilt:
            written["not_finite"] = spoilt
        self._file.write(json.dumps(written, allow_nan=False) + "\n")
        self._file.flush()
        self._remember(written)
        return dict(written)

    def _remember(self, line: dict[str, Any]) -> None:
        (self._train if line["kind"] == "train" else self._others).append(line)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read the lines of a run, also while it is running; a torn last line is left out.

    Raises:
        ArgumentError: the file cannot be read, or another line is damaged.
    """
    path = run / _FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ArgumentError(f"cannot read {path}: {error.strerror or error}") from error
    lines = []
    for number, text in enumerate(_whole_lines(content), 1):
        line = _parse(text)
        if line is None:
            raise ArgumentError(f"{path}, line {number} is no line of metrics", hint="remove that line")
        lines.append(line)
    return lines


def open_sinks(names: Sequence[str], run: Path, *, resume_step: int | None = None) -> list[Sink]:
    """Open other places for the numbers of a run; each line that a sink is given appears there.

    "tensorboard" writes event files to `tensorboard/` in the run. "wandb" writes to Weights & Biases; with
    WANDB_MODE=offline in the environment it needs no network.

    Args:
        names: "tensorboard", "wandb", or both.
        run: folder of the run.
        resume_step: the step after which a run goes on; what TensorBoard has of later steps is hidden.

    Raises:
        ArgumentError: a name is unknown.
        DependencyError: the package is missing.
    """
    for name in names:
        check_choice("place for metrics", name, SINKS)
    openers = {"tensorboard": _tensorboard, "wandb": _wandb}
    return [openers[name](run, resume_step) for name in dict.fromkeys(names)]


def flat_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a line by name, behind its kind: `train/loss`, `train/grad_norm/backbone`."""
    rest = {name: value for name, value in line.items() if name not in _COORDINATES}
    return dict(_flat(rest, f"{line['kind']}/"))


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)


def _tensorboard(run: Path, resume_step: int | None) -> Sink:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise DependencyError(
            "TensorBoard files need the package tensorboardX", hint="pip install 'dinov2kit[tensorboard]'"
        ) from error
    purge = None if resume_step is None else resume_step + 1
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=purge)

    def write(line: Mapping[str, Any]) -> None:
        for name, value in flat_numbers(line).items():
            writer.add_scalar(name, value, line["step"], walltime=line["time"])
        writer.flush()

    return write


def _wandb(run: Path, resume_step: int | None) -> Sink:
    try:
        import wandb
    except ImportError as error:
        raise DependencyError(
            "Weights & Biases needs the package wandb", hint="pip install 'dinov2kit[wandb]'"
        ) from error
    name = hashlib.blake2b(str(run.absolute()).encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    tracked = wandb.init(project="dinov2kit", name=run.name, id=name, dir=str(run), resume="allow")

    def write(line: Mapping[str, Any]) -> None:
        tracked.log({"images": line["images"], **flat_numbers(line)}, step=line["step"])

    return write


def _keep(path: Path, last: int | None) -> None:
    """Leave only whole lines in the file, and none after a step; do nothing where that holds."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ArgumentError(f"cannot read {path}: {error.strerror or error}") from error
    kept = [
        text
        for text in _whole_lines(content)
        if last is None or ((line := _parse(text)) is not None and line["step"] <= last)
    ]
    wanted = b"".join(text + b"\n" for text in kept)
    if wanted != content:
        with written_whole(path) as temporary:
            temporary.write_bytes(wanted)


def _whole_lines(content: bytes) -> list[bytes]:
    """Return the lines that end; what follows the last end was torn off."""
    return content.split(b"\n")[:-1]


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    good = isinstance(line, dict) and line.get("kind") in KINDS and isinstance(line.get("step"), int)
    return line if good else None


def _strict(value: Any, name: str, spoilt: list[str]) -> Any:
    """Return a value as strict JSON has it; what is not finite becomes null, and its name is noted."""
    if isinstance(value, Mapping):
        below = f"{name}/" if name else ""
        return {str(key): _strict(inner, f"{below}{key}", spoilt) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(inner, name, spoilt) for inner in value]
    if hasattr(value, "item"):  # of NumPy or torch
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        spoilt.append(name)
        return None
    return value
