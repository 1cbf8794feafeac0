"""Decoding many files in worker processes: results in order, one bad file never costs another.

Each worker is a fresh interpreter that imports the decoder and nothing else: no torch, and not the program
that runs it, so scripts need no `__main__` guard. A thread of this process looks after each worker.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import TracebackType

from dinov2kit.errors import ArgumentError, ImageError, KitError
from dinov2kit.images import MAX_PIXELS, Picture, load_picture
from dinov2kit.views import View

Decode = Callable[[Path], Picture]

MOST_WORKERS = 16
_PREFETCH = 8  # files under way per worker
_START_S = 120.0  # longest wait for a new worker; a busy network drive may hold the interpreter
_STARTS = 3
_FAREWELL_S = 5.0
_ORPHAN_CHECK_S = 0.5
_BACKSTOP_S = 10.0  # a worker ends itself this long after its parent should have ended it


def default_workers() -> int:
    """Return how many decoding processes suit this machine: the cores this process may use, at most 16."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, int(min(cores, _cgroup_cores(Path("/sys/fs/cgroup")), MOST_WORKERS)))


def _cgroup_cores(root: Path) -> float:
    """Return the CPU quota of the control group at `root` (v2, then v1), in cores; infinite without one."""
    with suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        return float(quota) / float(period) if quota != "max" else math.inf
    with suppress(OSError, ValueError):
        quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    return math.inf


class DecodePool:
    """Decodes files in worker processes, or in place; use it in a `with` block.

    Args:
        view: how each image becomes pixels.
        workers: number of processes; 0 decodes in this process, without timeout or protection from crashes.
        timeout: seconds that one file may take in a worker.
        max_pixels: larger images are refused before they are decoded.
        decode: what to call instead of `load_picture`; an importable function, or a `partial` of one.

    Raises:
        ArgumentError: `workers` or `timeout` makes no sense.
    """

    def __init__(
        self,
        view: View,
        *,
        workers: int,
        timeout: float = 30.0,
        max_pixels: int = MAX_PIXELS,
        decode: Decode | None = None,
    ) -> None:
        if workers < 0 or timeout <= 0:
            raise ArgumentError(f"workers {workers}, timeout {timeout}; wanted 0 or more, and over 0 seconds")
        self.workers = workers
        self.timeout = timeout
        self._decode: Decode = decode or partial(load_picture, view=view, max_pixels=max_pixels)
        self._mine = threading.local()  # the worker that the running thread looks after
        self._lock = threading.Lock()
        self._living: set[_Worker] = set()
        self._closed = False
        self._threads = ThreadPoolExecutor(max(workers, 1), "decode", initializer=_leave_sigint)

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers at once, whatever they are doing."""
        with self._lock:
            self._closed = True
            for worker in self._living:
                worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._living:  # those that were idle
            worker.end()
        self._living.clear()

    def pictures(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Picture | ImageError]]:
        """Yield every path with its picture, or with the reason why there is none, in the order given.

        `paths` is consumed in the calling thread, at most 8 files per worker ahead.

        Raises:
            KitError: workers cannot be started.
        """
        if not self.workers:
            for path in paths:
                yield path, _attempt(self._decode, path)
            return
        ahead: deque[tuple[Path, Future[Picture | ImageError]]] = deque()
        try:
            for path in paths:
                ahead.append((path, self._threads.submit(self._decode_in_worker, path)))
                if len(ahead) >= _PREFETCH * self.workers or ahead[0][1].done():
                    yield _await(ahead.popleft())
            while ahead:
                yield _await(ahead.popleft())
        finally:
            for _, future in ahead:
                future.cancel()

    def _decode_in_worker(self, path: Path) -> Picture | ImageError:
        """Have the worker of this thread decode a file; a file that ends its worker gets one more chance."""
        how = "the pool was closed"
        for _ in range(2):
            worker: _Worker = getattr(self._mine, "worker", None) or self._start()
            try:
                return worker.decode(path, self.timeout)
            except TimeoutError:
                worker.kill()
                self._dismiss(worker)
                return ImageError(f"{path}: decoding was stopped after {self.timeout:g} s")
            except (EOFError, OSError):  # the other end of the pipe is gone
                how = self._dismiss(worker)
                if self._closed:
                    break
        return ImageError(f"{path}: the decoder crashed on it, twice ({how})")

    def _start(self) -> _Worker:
        """Start a worker for this thread."""
        how = ""
        for _ in range(_STARTS):
            with self._lock:
                if self._closed:
                    raise KitError("the decoding pool is closed")
                worker = _Worker()
                self._living.add(worker)
            if worker.takes(self._decode, self.timeout):
                self._mine.worker = worker
                return worker
            how = self._dismiss(worker)
        raise KitError(
            f"no decoding worker could be started in {_STARTS} tries ({how})",
            hint="decode without workers (0); see why with: python -c 'import dinov2kit.decoding'",
        )

    def _dismiss(self, worker: _Worker) -> str:
        """Forget a worker of this thread and return how it ended."""
        self._mine.worker = None
        with self._lock:
            self._living.discard(worker)
        return worker.end()


class _Worker:
    """One decoding process and the pipe to it."""

    def __init__(self) -> None:
        self._line, theirs = Pipe()
        code = f"import sys; sys.path[:] = {[str(entry) for entry in sys.path]!r}\n"
        code += f"from dinov2kit.decoding import _work; _work({theirs.fileno()}, {os.getpid()})"
        nowhere = subprocess.DEVNULL  # codecs write warnings there, in the middle of a progress bar
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )

    def takes(self, decode: Decode, timeout: float) -> bool:
        """Wait until the process has imported the decoder; False when it could not."""
        with suppress(EOFError, OSError):
            self._line.send((decode, timeout))
            return self._line.poll(_START_S) and self._line.recv() is True
        return False

    def decode(self, path: Path, timeout: float) -> Picture | ImageError:
        self._line.send(path)
        if not self._line.poll(timeout):
            raise TimeoutError
        answer: Picture | ImageError = self._line.recv()
        return answer

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> str:
        """See the process off, by force if it lingers, and return how it ended."""
        self._line.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_FAREWELL_S)
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):  # one stuck in the kernel, on a dead network drive, is left
            self._process.wait(_FAREWELL_S)
        code = self._process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _attempt(decode: Decode, path: Path) -> Picture | ImageError:
    try:
        return decode(path)
    except ImageError as error:
        return error
    except Exception as error:  # around one image
        return ImageError(f"{path}: {type(error).__name__}: {error}")


def _await(
    entry: tuple[Path, Future[Picture | ImageError]],
) -> tuple[Path, Picture | ImageError]:
    return entry[0], entry[1].result()


def _leave_sigint() -> None:
    """Block SIGINT in this thread and, from birth on, in the workers that it starts: the parent decides."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def _work(descriptor: int, parent: int) -> None:
    """Decode what comes down the pipe until it closes; runs in a worker."""
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with Connection(descriptor) as line, suppress(EOFError, OSError):
        decode, timeout = line.recv()
        line.send(True)
        while True:
            path = line.recv()
            signal.setitimer(signal.ITIMER_REAL, timeout + _BACKSTOP_S)  # if a codec never lets Python run
            line.send(_attempt(decode, path))
            signal.setitimer(signal.ITIMER_REAL, 0)


def _follow(parent: int) -> None:
    """End this process soon after its parent has ended, even in the middle of a picture."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_CHECK_S)
    os._exit(1)
