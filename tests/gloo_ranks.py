"""Several processes that talk by gloo, for tests of what is distributed.

The function must be importable: defined at the top of a test file or of a file beside it.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as distributed
import torch.multiprocessing as processes


def run_ranks(
    function: Callable[..., object], world: int, *arguments: object, timeout: float = 60
) -> list[object]:
    """Call function(rank, world, *arguments) in new processes that are one process group.

    Results travel through files; tensors and plain objects can be returned. What a process raises is raised
    here, with its traceback.

    Raises:
        TimeoutError: they are not done after so many seconds; they are stopped.
    """
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, OMP_NUM_THREADS="1"):
        running = processes.spawn(_one_rank, (world, folder, function, arguments), nprocs=world, join=False)
        end = time.monotonic() + timeout
        while not running.join(timeout=max(0.0, end - time.monotonic()), grace_period=1):
            if time.monotonic() < end:
                continue
            alive = [rank for rank, process in enumerate(running.processes) if process.is_alive()]
            for process in running.processes:
                process.kill()
                process.join()
            raise TimeoutError(
                f"ranks {alive} of {world} did not finish {function.__name__} in {timeout:g} s"
            )
        return [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in range(world)]


def _one_rank(rank: int, world: int, folder: str, function: Callable[..., object], arguments: tuple) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        torch.save(function(rank, world, *arguments), Path(folder, f"{rank}.pt"))
        distributed.barrier()  # a rank that leaves early would break what the others still do
    finally:
        distributed.destroy_process_group()
