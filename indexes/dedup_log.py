"""What an `apply` did, written down before it is done, so that it can be undone after any crash.

A run is a file `<data folder>/dedup/RUN.jsonl` that only grows: a header, then for each file a line that says
what is intended, and short lines that say how that went on. Each line is on the disk before the next step.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from dinov2kit.catalogue import data_folder
from dinov2kit.errors import ArgumentError, KitError, StoreLocked

from .dedup_plan import path_facts, path_from
from .layout import sync_folder

SCHEMA = "dinokit.dedup-log/1"
State = Literal["intended", "done", "undone"]
_LONGEST = 1 << 17  # bytes; three paths of 4,096 bytes make a line of at most 86,016 and a little


@dataclass(frozen=True)
class Deed:
    """One file that goes, and all that is needed to bring it back.

    Attributes:
        number: of the deed in its run, from 1.
        path: the file.
        keeper: the copy that stays.
        moved_to: where the file lies now; None when it was not moved.
        hash: blake2b-128 of its content, hexadecimal.
        size: bytes.
        mtime_ns: modification time.
        mode: permission bits.
        state: how far it is.
    """

    number: int
    path: Path
    keeper: Path
    moved_to: Path | None
    hash: str
    size: int
    mtime_ns: int
    mode: int
    state: State = "intended"


@dataclass
class RunLog:
    """The deeds of one run. The file appears with the first of them.

    Attributes:
        run: its name: when it began, and four random digits.
        action: what happens to the files.
        index: the index that the plan speaks of.
        started: ISO 8601 in UTC.
        deeds: by their numbers, in order.
    """

    run: str
    action: str
    index: str
    started: str
    deeds: dict[int, Deed] = field(default_factory=dict)

    @classmethod
    def begin(cls, action: str, index: str) -> RunLog:
        """Make a new run."""
        now = datetime.now(UTC)
        run = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        return cls(run, action, index, now.isoformat(timespec="microseconds"))

    @classmethod
    def open(cls, run: str) -> RunLog:
        """Read a run. A last line that a crash cut off counts as not written: what it says was not begun.

        Raises:
            ArgumentError: there is no such run, or its log cannot be understood.
        """
        path = log_folder() / f"{run}.jsonl"
        try:
            *lines, _ = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ArgumentError(
                f"there is no run {run!r}: {path} cannot be read: {error.strerror or error}",
                hint="list the runs with: dinokit dedup undo --list",
            ) from error
        try:
            header, *records = [json.loads(line) for line in lines]
            if header["schema"] != SCHEMA:
                raise ValueError(f"its schema is {header['schema']}, wanted {SCHEMA}")
            log = cls(run, header["action"], header["index"], header["started"])
            for record in records:
                log._replay(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(f"{path} cannot be understood: {error}") from error
        return log

    @property
    def path(self) -> Path:
        """The file of the log."""
        return log_folder() / f"{self.run}.jsonl"

    @property
    def left(self) -> int:
        """How many files are not back yet."""
        return sum(deed.state != "undone" for deed in self.deeds.values())

    def to_json(self) -> dict[str, object]:
        """Return the run as `json.dumps` takes it."""
        return {
            "run": self.run,
            "started": self.started,
            "action": self.action,
            "index": self.index,
            "files": len(self.deeds),
            "undone": len(self.deeds) - self.left,
            "bytes": sum(deed.size for deed in self.deeds.values()),
        }

    def intend(self, deed: Deed) -> None:
        """Write down what is about to be done.

        Raises:
            KitError: the log cannot be written; the deed must not be done.
        """
        lines: list[dict[str, object]] = [_record(deed)]
        if not self.deeds:
            about = {"action": self.action, "index": self.index, "started": self.started}
            lines.insert(0, {"schema": SCHEMA, "run": self.run, **about})
        self._append(lines)
        self.deeds[deed.number] = deed

    def note(self, number: int, state: State) -> None:
        """Write down how far a deed is.

        Raises:
            KitError: the log cannot be written.
        """
        self._append([{"deed": number, "state": state}])
        self.deeds[number] = replace(self.deeds[number], state=state)

    def _append(self, records: list[dict[str, object]]) -> None:
        content = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        try:
            created = not self.path.exists()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab+") as file:
                _cut_torn_line(file)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if created:
                sync_folder(self.path.parent)
        except OSError as error:
            raise KitError(
                f"cannot write the undo log {self.path}: {error.strerror or error}",
                hint="nothing more is changed; what was done can be undone with: dinokit dedup undo",
            ) from error

    def _replay(self, record: dict[str, Any]) -> None:
        number = int(record["deed"])
        if record["state"] == "intended":
            self.deeds[number] = _deed(record)
        else:
            self.deeds[number] = replace(self.deeds[number], state=record["state"])


def open_run(run: str | None = None) -> RunLog:
    """Return the log of a run, or of the one that began last.

    Raises:
        ArgumentError: there is no such run, or none at all.
    """
    if run is not None:
        return RunLog.open(run)
    runs = list_runs()
    if not runs:
        raise ArgumentError("nothing was ever removed by dinokit dedup apply")
    return runs[-1]


def list_runs() -> list[RunLog]:
    """Return all runs that can be read, the oldest first."""
    logs = []
    for path in log_folder().glob("*.jsonl"):
        try:
            logs.append(RunLog.open(path.stem))
        except ArgumentError:  # a torn header: nothing was done
            continue
    return sorted(logs, key=lambda log: (log.started, log.run))


def log_folder() -> Path:
    """Return where the runs of this user are noted."""
    return data_folder() / "dedup"


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let nobody else of this user apply or undo a plan meanwhile.

    Raises:
        StoreLocked: somebody does.
        KitError: the folder of the logs cannot be written.
    """
    lock = FileLock(log_folder() / "lock", thread_local=False)
    try:
        log_folder().mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreLocked(
            "another dinokit dedup apply or undo is running", hint="wait for its end"
        ) from error
    except OSError as error:
        raise KitError(
            f"cannot write to {log_folder()}: {error.strerror or error}",
            hint="the undo log has to be written first; name another folder with DINOKIT_HOME",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _record(deed: Deed) -> dict[str, object]:
    return {
        "deed": deed.number,
        "state": deed.state,
        **path_facts(deed.path),
        "keeper": path_facts(deed.keeper),
        "moved_to": None if deed.moved_to is None else path_facts(deed.moved_to),
        "hash": deed.hash,
        "size": deed.size,
        "mtime_ns": deed.mtime_ns,
        "mode": deed.mode,
    }


def _deed(record: dict[str, Any]) -> Deed:
    return Deed(
        number=int(record["deed"]),
        path=path_from(record),
        keeper=path_from(record["keeper"]),
        moved_to=None if record["moved_to"] is None else path_from(record["moved_to"]),
        hash=str(record["hash"]),
        size=int(record["size"]),
        mtime_ns=int(record["mtime_ns"]),
        mode=int(record["mode"]),
    )


def _cut_torn_line(file: BinaryIO) -> None:
    """Cut away a last line that a crash left without its end."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - _LONGEST, 0))
    tail = file.read()
    if tail and not tail.endswith(b"\n"):
        file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
