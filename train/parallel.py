"""Who takes part in a run: one process, or many that share one model; the same code for all.

The processes find each other by the environment that torchrun or SLURM set. On CUDA they talk by NCCL, on a
CPU by gloo.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from dinov2kit.errors import ArgumentError, DeviceError, check_choice
from dinov2kit.vit import VisionTransformer

from .heads import ProjectionHead

SHARDINGS = ("fsdp", "replicate")


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        device: where this process computes.
        rank: number of this process, from 0.
        size: how many there are.
        group: how they talk; None for one process alone.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Return, for each place, the largest number that any process has there."""
        if self.group is None:
            return list(numbers)
        shared = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX, group=self.group)
        return [float(number) for number in shared.tolist()]

    def mean(self, numbers: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.group is not None:
            numbers = numbers.clone()
            distributed.all_reduce(numbers, group=self.group)
            numbers /= self.size
        return numbers

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, those of rank 0 first; each brings equally many."""
        if self.group is None:
            return rows
        found = [torch.empty_like(rows) for _ in range(self.size)]
        distributed.all_gather(found, rows.contiguous(), group=self.group)
        return torch.cat(found)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.group is not None:
            distributed.barrier(group=self.group)

    def announce(self, fact: object) -> object:
        """Return what the leading process says, in every process."""
        if self.group is None:
            return fact
        said = [fact]
        distributed.broadcast_object_list(said, src=0, group=self.group, device=self.device)
        return said[0]


@contextmanager
def joined_world(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun or SLURM started, or stay alone; leave them when the block ends.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N"; with several processes on one machine, each takes the GPU
            of its own number.

    Raises:
        DeviceError: the device is absent.
        ArgumentError: the environment of the launcher is incomplete.
    """
    started = not distributed.is_initialized()
    place = place_of(os.environ)
    chosen = _device(device, place.local_rank if place else None)
    if started and (place is None or place.size == 1):
        yield World(chosen)
        return
    if started:
        assert place is not None
        kind = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        distributed.init_process_group(
            kind, init_method=f"tcp://{place.address}:{place.port}", rank=place.rank, world_size=place.size
        )
    try:
        yield World(chosen, distributed.get_rank(), distributed.get_world_size(), distributed.group.WORLD)
    finally:
        if started:
            distributed.destroy_process_group()


@dataclass(frozen=True)
class Place:
    """Where a launcher put a process, and where the first one listens."""

    rank: int
    size: int
    local_rank: int
    address: str
    port: int


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Read what torchrun or SLURM say; None when neither started this process.

    Raises:
        ArgumentError: it is incomplete.
    """
    if "TORCHELASTIC_RUN_ID" in environment or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys():
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
        missing = [name for name in names if name not in environment and name != "LOCAL_RANK"]
        if missing:
            raise ArgumentError(
                f"the launcher set no {', '.join(missing)}", hint="start with torchrun, or unset RANK"
            )
        return Place(
            rank=int(environment["RANK"]),
            size=int(environment["WORLD_SIZE"]),
            local_rank=int(environment.get("LOCAL_RANK", "0")),
            address=environment["MASTER_ADDR"],
            port=int(environment["MASTER_PORT"]),
        )
    size = int(environment.get("SLURM_NTASKS", "1"))
    if size > 1 and "SLURM_PROCID" in environment and "SLURM_STEP_ID" in environment:
        return Place(
            rank=int(environment["SLURM_PROCID"]),
            size=size,
            local_rank=int(environment.get("SLURM_LOCALID", "0")),
            address=environment.get("MASTER_ADDR") or first_host(environment["SLURM_JOB_NODELIST"]),
            port=int(environment.get("MASTER_PORT") or 20000 + int(environment["SLURM_JOB_ID"]) % 20000),
        )
    return None


def first_host(node_list: str) -> str:
    """Return the first host of a SLURM node list, such as gpu[003-007,9],cpu1."""
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^,]*)", node_list.strip())
    if found is None:
        raise ArgumentError(f"{node_list!r} is no SLURM node list")
    return found[1] + (found[2] or "") + found[3]


def _device(asked: str, local_rank: int | None) -> torch.device:
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(asked)
        if chosen.type == "cuda" and local_rank is not None and chosen.index is None:
            chosen = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:  # torch asserts without CUDA
        raise DeviceError(
            f"device {asked!r} cannot be used: {str(error).splitlines()[0]}",
            hint="use device=cpu, or run: dinokit doctor",
        ) from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def share_modules(modules: Iterable[nn.Module], world: World, *, sharding: str, precision: str) -> None:
    """Spread the weights of modules over the processes, and have their gradients averaged.

    "fsdp" cuts every weight into one piece per process; "replicate" keeps whole copies. Blocks of a backbone
    are fetched one by one. One process alone stays as it is.

    Args:
        modules: backbones and heads.
        world: the processes.
        sharding: "fsdp" or "replicate".
        precision: "bf16" sends weights and computes in bf16; gradients are always summed in fp32.

    Source: Zhao et al., "PyTorch FSDP", 2023; with a second axis of one piece it is data parallelism.
    """
    check_choice("sharding", sharding, SHARDINGS)
    if world.group is None:
        return
    kind = world.device.type
    if sharding == "fsdp":
        mesh = init_device_mesh(kind, (world.size,), mesh_dim_names=("shard",))
    else:
        mesh = init_device_mesh(kind, (world.size, 1), mesh_dim_names=("copy", "shard"))
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision == "bf16" else None, reduce_dtype=torch.float32
    )
    for module in modules:
        if isinstance(module, VisionTransformer):
            for block in module.blocks:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(module, mesh=mesh, mp_policy=policy)
            register_fsdp_forward_method(module, "forward_packed")
        else:  # the prototypes that a head hands out must outlive its call
            fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
            if isinstance(module, ProjectionHead):
                register_fsdp_forward_method(module, "project")


def average_gradients_now(modules: Iterable[nn.Module], *, last: bool) -> None:
    """Have the next backward pass average gradients over the processes only if it is the last of its step."""
    for module in modules:
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(last)


def gathered(state: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Return whole tensors on the CPU; all processes must call this together."""
    whole = {}
    for name, tensor in state.items():
        full = tensor.detach()
        if isinstance(full, DTensor):
            full = full.full_tensor()
        whole[name] = full.cpu() if world.leads else full
    return whole
