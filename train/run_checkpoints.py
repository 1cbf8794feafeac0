"""Checkpoints of a run: everything that the next step depends on, whole or not at all, for any world size.

A checkpoint is a folder `checkpoints/000012345` that torch's distributed checkpoints write, beside
`facts.json`. It is written under another name, synced, and renamed; so whatever carries its name is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from dinov2kit.errors import KitError, WeightsError

from .networks import Networks
from .parallel import World

_FACTS = "facts.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk.

    Attributes:
        path: its folder.
        step: how many steps it has done.
        facts: what stands beside the tensors, see `save_checkpoint`.
    """

    path: Path
    step: int
    facts: Mapping[str, Any]


def find_checkpoints(run: Path) -> list[Saved]:
    """Return the checkpoints of a run, oldest first; what was not finished is none."""
    found = []
    for folder in sorted((run / "checkpoints").glob("[0-9]*")):
        try:
            facts = json.loads((folder / _FACTS).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        found.append(Saved(folder, int(facts["step"]), facts))
    return found


def save_checkpoint(
    run: Path, networks: Networks, optimizer: Optimizer, *, world: World, facts: Mapping[str, Any]
) -> Path:
    """Write a checkpoint; all processes must call this together.

    Args:
        run: folder of the run.
        networks: student, teacher and centres.
        optimizer: of the student.
        world: the processes.
        facts: ready for JSON; `step` says how many steps are done.

    Raises:
        KitError: the disk refuses it; older checkpoints stay.
    """
    final = run / "checkpoints" / f"{facts['step']:09d}"
    if (final / _FACTS).is_file():
        return final
    unfinished = final.with_name(f".{final.name}.unfinished")
    if world.leads:
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
    world.wait()
    try:
        with _alone_is_no_fault():
            save(
                _tensors(networks, optimizer),
                checkpoint_id=unfinished,
                process_group=world.group,
                no_dist=world.group is None,
            )
        if world.leads:
            (unfinished / _FACTS).write_text(json.dumps(dict(facts)), "utf-8")
            _sync(unfinished)
            unfinished.rename(final)
            _point(final)
            _sync_folder(final.parent)
    except (OSError, CheckpointException) as error:
        raise KitError(
            f"the checkpoint {final} cannot be written: {_reason(error)}",
            hint="free some space; the run goes on from the checkpoint before when it is started again",
        ) from error
    world.wait()
    return final


def load_checkpoint(saved: Saved, networks: Networks, optimizer: Optimizer, *, world: World) -> None:
    """Put a checkpoint into networks and optimiser, strictly; all processes must call this together.

    Raises:
        WeightsError: it is damaged, or of another model.
    """
    state = _tensors(networks, optimizer)
    try:
        with _alone_is_no_fault():
            load(state, checkpoint_id=saved.path, process_group=world.group, no_dist=world.group is None)
    except (OSError, CheckpointException, RuntimeError, KeyError, ValueError) as error:
        raise WeightsError(
            f"the checkpoint {saved.path} cannot be loaded: {_reason(error)}",
            hint="delete its folder to go on from the checkpoint before, or choose another out",
        ) from error
    for name, part in networks.parts():
        part.load_state_dict(state[name])


def prune_checkpoints(run: Path, *, keep_last: int, best_step: int | None) -> None:
    """Delete all checkpoints but the latest few and the best one, and what a killed run left unfinished."""
    found = find_checkpoints(run)
    kept = {saved.path for saved in found[-keep_last:]}
    for saved in found:
        if saved.path not in kept and saved.step != best_step:
            shutil.rmtree(saved.path, ignore_errors=True)
    for left in (run / "checkpoints").glob(".*.unfinished"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _alone_is_no_fault() -> Iterator[None]:
    """Silence torch, which warns that a single process saves as a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _tensors(networks: Networks, optimizer: Optimizer) -> dict[str, Any]:
    """Return all tensors by part and name; those of a shared model as pieces that know their place.

    Rates and factors of the optimiser are left out: they follow from settings and step.
    """
    state: dict[str, Any] = {name: part.state_dict() for name, part in networks.parts()}
    state["optimizer"] = {
        name: _moments(optimizer, parameter) for name, parameter in networks.student.named_parameters()
    }
    return state


def _moments(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Return the moments of AdamW; before the first step they are zero, as it would make them."""
    moments: dict[str, Tensor] = optimizer.state[parameter]
    if not moments:
        moments["step"] = torch.zeros((), device=parameter.device)
        moments["exp_avg"] = torch.zeros_like(parameter)
        moments["exp_avg_sq"] = torch.zeros_like(parameter)
    return moments


def _point(final: Path) -> None:
    """Let `latest` mean this checkpoint, from one moment to the next."""
    link = final.with_name(".latest.new")
    link.unlink(missing_ok=True)
    link.symlink_to(final.name)
    link.replace(final.with_name("latest"))


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    """Return the first line that says something."""
    if isinstance(error, CheckpointException) and error.failures:
        failure = next(iter(error.failures.values()))
        error = failure[0] if isinstance(failure, tuple) else failure
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
