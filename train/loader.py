"""Batches of crops, read and cut ahead in other processes; each follows from the seed and the step alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Generic

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from dinov2kit.errors import ArgumentError, KitError

from .batches import Read, Reading

_AHEAD = 2  # micro-batches that each process prepares
_FAREWELL_S = 5.0
_LEFT_TO_PARENT = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}


class Loader(Generic[Read]):
    """The micro-batches of one process of a run, in order.

    Step s has the samples s * batch to (s + 1) * batch - 1. Each micro-batch takes the next
    micro_batch * world of them, of which rank r has the r-th micro_batch.

    Processes that read are started afresh: a fork of one that runs threads may wait for ever. Signals to the
    whole group do not reach them; whether they end is up to this process. They never run the script that
    called, which needs no `__main__` guard.

    Args:
        reading: what makes micro-batches.
        batch: images in a step, in all processes of the run.
        micro_batch: images at a time in one process.
        rank: number of this process.
        world: how many there are.
        start_step: the first step.
        stop_step: the first step that is not done.
        workers: processes that read for this one; 0 reads here.
        pin: lay pixels where a GPU fetches them by itself.

    Raises:
        ArgumentError: micro-batches do not fill the batch, or a number is out of range.
    """

    def __init__(
        self,
        reading: Reading[Read],
        *,
        batch: int,
        micro_batch: int,
        rank: int,
        world: int,
        start_step: int,
        stop_step: int,
        workers: int,
        pin: bool = False,
    ) -> None:
        at_once = micro_batch * world
        if at_once < 1 or batch < 1 or batch % at_once:
            raise ArgumentError(
                f"micro-batches of {micro_batch} images in {world} processes do not fill a batch of {batch}",
                hint="the batch has to be a multiple of both together",
            )
        if not 0 <= rank < world or not 0 <= start_step <= stop_step or workers < 0:
            raise ArgumentError(
                f"rank {rank} of {world}, steps {start_step} to {stop_step}, {workers} workers; "
                "wanted a rank below the number of processes, and nothing below 0"
            )
        self._batches = _MicroBatches(
            reading,
            size=micro_batch,
            stride=at_once,
            first=start_step * batch + rank * micro_batch,
            count=(stop_step - start_step) * (batch // at_once),
        )
        self._workers, self._pin, self._waited = workers, pin, 0.0

    def take_waited(self) -> float:
        """Return how many seconds were spent waiting for batches since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def __iter__(self) -> Generator[Read, None, None]:
        """Yield micro-batches from the first step on; ends the processes when it is closed.

        Raises:
            ImageError: no image can be read any more.
            KitError: a process that reads died.
        """
        earlier = set(multiprocessing.active_children())
        with _apart():
            batches = iter(self._torch_loader())
        readers = [child for child in multiprocessing.active_children() if child not in earlier]
        try:
            while True:
                started = time.perf_counter()
                batch = _next(batches, readers)
                self._waited += time.perf_counter() - started
                if batch is None:
                    return
                if isinstance(batch, KitError):
                    raise batch
                yield batch
        finally:
            del batches  # torch asks the processes to end and waits some seconds
            for reader in readers:
                reader.kill()
                reader.join(_FAREWELL_S)

    def _torch_loader(self) -> DataLoader[Read | KitError]:
        if not self._workers:
            return DataLoader(self._batches, batch_size=None, pin_memory=self._pin)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])  # torch is imported once for all processes
        return DataLoader(
            self._batches,
            batch_size=None,
            pin_memory=self._pin,
            num_workers=self._workers,
            prefetch_factor=_AHEAD,
            multiprocessing_context=context,
            worker_init_fn=_begin,
        )


class _MicroBatches(Dataset[Read | KitError]):
    """The micro-batches of one process, by number from the first step on."""

    def __init__(self, reading: Reading[Read], *, size: int, stride: int, first: int, count: int) -> None:
        self._reading, self._size, self._stride = reading, size, stride
        self._first, self._count = first, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Read | KitError:
        """Return a micro-batch, or why there is none: torch would raise it with another text and no hint."""
        first = self._first + number * self._stride
        try:
            return self._reading.read(np.arange(first, first + self._size, dtype=np.int64))
        except KitError as error:
            return error


def _next(batches: Iterator[Read | KitError], readers: list[BaseProcess]) -> Read | KitError | None:
    """Return the next micro-batch or why there is none; None after the last."""
    try:
        return next(batches, None)
    except (RuntimeError, OSError, EOFError) as error:
        if all(reader.is_alive() for reader in readers):
            raise
        raise KitError(
            f"a process that reads images died: {str(error).splitlines()[0]}",
            hint="memory may have run out, or shared memory (/dev/shm, in a container --shm-size): "
            "lower reading.workers or scale.micro_batch; reading.workers=0 shows what happens",
        ) from error


@contextmanager
def _apart() -> Iterator[None]:
    """Let processes that start here inherit no signal to their group, and not know the script that runs."""
    script, before = sys.modules["__main__"], signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    resource_tracker.ensure_running()  # lets some signals in again when it starts, so it starts first
    signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_: int) -> None:
    """Leave signals to the parent, also where someone else started the server of processes; use one core."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process once its parent has died, however it did; torch looks at the server of processes."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
