"""Several processes on this machine for one run, as torchrun starts them, but one that lets them save."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from dinov2kit.errors import ArgumentError

_POLL = 0.2  # seconds


def default_processes(device: str) -> int:
    """Return how many processes a run takes: one for each GPU, unless a launcher started this one."""
    if device not in ("auto", "cuda") or "RANK" in os.environ or "SLURM_STEP_ID" in os.environ:
        return 1
    import torch

    return max(torch.cuda.device_count(), 1)


def launch(arguments: Sequence[str], processes: int, *, stop: Callable[[], bool]) -> int:
    """Run `dinokit ARGUMENTS` in several processes that form one world.

    Args:
        arguments: of the command.
        processes: how many; each takes the GPU of its number where there are GPUs.
        stop: asked again and again; when it says so, all processes are asked to finish their step and save.

    Returns: 0, or the exit code of the first process that failed; the others are then ended.

    Raises:
        ArgumentError: fewer than one process is wanted, or this one is already part of a world.
    """
    if processes < 1:
        raise ArgumentError(f"{processes} processes; wanted 1 or more")
    if "RANK" in os.environ:
        raise ArgumentError("this process was started by a launcher already", hint="leave out --nproc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if "OMP_NUM_THREADS" not in os.environ:
        world["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))
    command = [sys.executable, "-m", "dinov2kit.cli", *arguments]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            start_new_session=True,  # a Ctrl-C reaches this process alone, which passes it on
        )
        for rank in range(processes)
    ]
    return _await(started, stop)


def _await(started: list[subprocess.Popen[bytes]], stop: Callable[[], bool]) -> int:
    asked = False
    try:
        while True:
            codes = [process.poll() for process in started]
            failed = next((code for code in codes if code), 0)
            if failed and (not asked or all(code is not None for code in codes)):
                return failed
            if all(code == 0 for code in codes):
                return 0
            if stop() and not asked:
                asked = True
                for process in started:
                    process.send_signal(signal.SIGUSR1)
            time.sleep(_POLL)
    finally:
        _end(started)


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        if process.poll() is None:
            process.terminate()
    for process in started:
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
