"""The connection to a Ray cluster: quiet, without dashboard and usage reports; ended only if it was ours."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from dinov2kit.errors import DependencyError, KitError

logger = logging.getLogger(__name__)

_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
_REACH_S = 10.0  # Ray itself would try for minutes
_TALKERS = ("ray", "ray.data")  # the second does not pass its level on from the first


def load_ray() -> ModuleType:
    """Return the package ray with its part for data sets.

    Raises:
        DependencyError: it is missing.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DependencyError(
            f"the engine ray needs Ray Data ({error})", hint="pip install 'dinov2kit[ray]'"
        ) from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[dict[str, float]]:
    """Yield the resources of a cluster while connected to it; a connection that exists is used and left.

    Args:
        address: host:port of a cluster; "auto" is the one that this machine belongs to, "local" a new one on
            this machine; None is the first of $RAY_ADDRESS, "auto" and "local" that there is.

    Raises:
        KitError: the cluster cannot be reached.
    """
    ray = load_ray()
    with _quiet():
        ours = not ray.is_initialized()
        if ours:
            _connect(ray, address)
        try:
            yield ray.cluster_resources()
        finally:
            if ours:
                with redirect_stdout(io.StringIO()):  # what its threads have said and Ray has held back
                    ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    shown = logger.isEnabledFor(logging.DEBUG)
    named = address or os.environ.get("RAY_ADDRESS")
    try:
        if port := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", named or ""):
            socket.create_connection((port[1], int(port[2])), _REACH_S).close()
        with nullcontext() if shown else _silent_stderr():
            ray.init(address, include_dashboard=False, configure_logging=False, log_to_driver=shown)
    except (OSError, RuntimeError, ValueError, ImportError, AssertionError) as error:
        ray.shutdown()
        said = getattr(error, "strerror", None) or str(error).strip().partition("\n")[0]
        raise KitError(
            f"no Ray cluster can be reached at {named or 'this machine'}: {said}",
            hint="look at it with: ray status; start one with: ray start --head; or use --address local",
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():  # Ray would end the process at once
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what Ray says out of the way: with debug logging it is logged, else only errors are."""
    if logger.isEnabledFor(logging.DEBUG):
        yield
        return
    added = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ |= added
    levels = {talker: logging.getLogger(talker).level for talker in _TALKERS}
    for talker in levels:
        logging.getLogger(talker).setLevel(logging.ERROR)
    stdout, sys.stdout = sys.stdout, _Aside(sys.stdout)
    try:
        yield
    finally:
        sys.stdout = stdout
        for talker, level in levels.items():
            logging.getLogger(talker).setLevel(level)
        for name in added:
            del os.environ[name]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Drop what is written to stderr: the C++ part of Ray says there how little it is going to say."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


class _Aside(io.TextIOBase):
    """Standard output without what the threads of Ray print there, which is talk and no result."""

    def __init__(self, stdout: Any) -> None:
        self._stdout = stdout

    def write(self, text: str) -> int:
        """Pass on what this program prints."""
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return int(self._stdout.write(text))

    def flush(self) -> None:
        """Pass it on."""
        self._stdout.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdout, name)
