"""One writer at a time: a kernel lock that dies with its process, and a note that says who holds it."""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from dinov2kit.errors import StoreError, StoreLocked

from .layout import Layout


class WriterLock:
    """The right to write an index; a context manager.

    The note of a writer that died on this machine is stale, because the kernel gave us its lock. A note from
    another machine may be alive on a network disk whose locks do not travel: then a person has to decide.

    Args:
        layout: the index.
        wait: seconds to wait for the present writer.

    Raises:
        StoreLocked: (on entering) somebody else writes.
        StoreError: (on entering) the directory cannot be written.
    """

    def __init__(self, layout: Layout, *, wait: float = 0.0) -> None:
        self._layout = layout
        self._wait = wait
        self._lock = FileLock(layout.lock, thread_local=False)
        self._started = time.time()

    def __enter__(self) -> WriterLock:
        try:
            self._lock.acquire(timeout=max(self._wait, 0.0), poll_interval=0.1)
        except Timeout as error:
            raise self._locked(_read(self._layout.lock_facts)) from error
        except OSError as error:
            raise StoreError(
                f"index {self._layout.directory} cannot be written: {error.strerror or error}",
                hint="searching still works; to change it, get the right to write there",
            ) from error
        note = _read(self._layout.lock_facts)
        if note and not _same_machine(note):
            self._lock.release()
            raise self._locked(note, elsewhere=True)
        self.report(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._layout.lock_facts.unlink(missing_ok=True)
        self._lock.release()

    def report(self, rows: int) -> None:
        """Note how many images this writer has stored so far."""
        facts = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "boot_id": _boot_id(),
            "started": self._started,
            "rows": rows,
        }
        temporary = self._layout.lock_facts.with_suffix(".json.tmp")
        with suppress(OSError):  # only a note: a full disk must not undo a commit that has just succeeded
            temporary.write_text(json.dumps(facts), "utf-8")
            temporary.replace(self._layout.lock_facts)

    def _locked(self, note: dict[str, object], *, elsewhere: bool = False) -> StoreLocked:
        who = "another process"
        if note:
            since = datetime.fromtimestamp(float(str(note["started"]))).strftime("%Y-%m-%d %H:%M")
            who = f"pid {note['pid']} on {note['host']} (started {since}, {note['rows']:,} images so far)"
        hint = "searching still works; to wait for the writer add --wait 600"
        if elsewhere:
            hint = f"if that machine no longer writes, remove {self._layout.lock_facts} and run again"
        return StoreLocked(f"index is being written by {who}", hint=hint)


def _read(path: Path) -> dict[str, object]:
    try:
        note = json.loads(path.read_bytes())
        whole = isinstance(note, dict) and {"pid", "host", "boot_id", "started", "rows"} <= note.keys()
        numbers = whole and isinstance(note["rows"], int) and isinstance(note["started"], (int, float))
        return dict(note) if numbers else {}
    except (OSError, ValueError):
        return {}


def _same_machine(note: dict[str, object]) -> bool:
    return note["host"] == socket.gethostname() or note["boot_id"] == _boot_id()


def _boot_id() -> str:
    """Return what tells this running system from others; containers on it share it, as they share locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return f"unknown-{socket.gethostname()}"
