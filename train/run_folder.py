"""The folder of a run: who may write there, what an earlier sitting left, and how a model leaves it."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from dinov2kit.errors import ArgumentError, KitError

from .exporting import write_export
from .parallel import World, gathered
from .projectors import Projector
from .run_checkpoints import find_checkpoints, load_checkpoint, prune_checkpoints, save_checkpoint
from .run_config import differences, read_run_config, write_run_config
from .run_record import read_record, write_record
from .run_setup import Setup
from .ssl_step import normalisation
from .train_config import TrainConfig
from .trainer import Trainer

_OURS = (  # what `overwrite` deletes
    *("config.yaml", "resolved.txt", "run.json", "metrics.jsonl", "bad_files.txt", "curves.png"),
    *("checkpoints", "export", "nan", "tensorboard"),
)


class RunFolder:
    """The folder of a run, held by its processes.

    Attributes:
        path: where it is.
        setup: of the run.
        world: the processes; the leading one writes.
    """

    def __init__(self, setup: Setup, world: World) -> None:
        self.path, self.setup, self.world = setup.config.out, setup, world

    @classmethod
    @contextmanager
    def opened(cls, setup: Setup, world: World) -> Iterator[RunFolder]:
        """Hold the folder while the block runs; what ends the block is noted in run.json.

        Raises:
            ArgumentError: it holds something else, a run with other settings or images, or it cannot be
                written; or another process trains there.
        """
        folder = cls(setup, world)
        with ExitStack() as held:
            folder._led(lambda: folder._take(held))
            try:
                yield folder
            except BaseException as error:
                said = error.message if isinstance(error, KitError) else f"{type(error).__name__}: {error}"
                stopped = isinstance(error, KeyboardInterrupt)
                folder.note(state="stopped" if stopped else "failed", error=None if stopped else said)
                raise

    @property
    def export_path(self) -> Path | None:
        """Where the exported model is; None before the first export."""
        path = self.path / "export"
        return path if path.is_dir() else None

    def note(self, **changes: object) -> None:
        """Write facts into run.json."""
        if self.world.leads:
            write_record(self.path, **changes)

    def save(self, trainer: Trainer, *, meter: Mapping[str, Any], best: Mapping[str, Any] | None) -> None:
        """Write a checkpoint, and delete those that are not kept."""
        facts = {"step": trainer.step, "spoilt": trainer.spoilt, "meter": meter}
        save_checkpoint(self.path, trainer.networks, trainer.optimizer, world=self.world, facts=facts)
        chosen = self.setup.config.checkpoint
        if self.world.leads:
            best_step = best["step"] if best and chosen.keep_best else None
            prune_checkpoints(self.path, keep_last=chosen.keep_last, best_step=best_step)
        self.note(step=trainer.step)

    def restore(self, trainer: Trainer) -> Mapping[str, Any] | None:
        """Load the latest checkpoint; return what was noted with it, or None where there is none.

        Raises:
            WeightsError: it is damaged.
        """
        found = find_checkpoints(self.path)
        if not found:
            return None
        load_checkpoint(found[-1], trainer.networks, trainer.optimizer, world=self.world)
        trainer.spoilt = int(found[-1].facts["spoilt"])
        return found[-1].facts

    def export(self, trainer: Trainer, card: Mapping[str, object]) -> None:
        """Write the teacher and its heads as files that other programs read; all processes take part."""
        teacher = trainer.networks.teacher
        backbone = gathered(teacher["backbone"].state_dict(), self.world)
        heads: dict[str, Tensor] = {}
        projectors: dict[str, Tensor] = {}
        for name, module in teacher.items():
            if name != "backbone":
                state = gathered(module.state_dict(), self.world)
                named = projectors if isinstance(module, Projector) else heads
                named |= {f"{name}.{key}": value for key, value in state.items()}
        if projectors:
            centres = trainer.networks.centres.state_dict()
            projectors |= {f"{name}": value for name, value in centres.items() if name.endswith(".mean")}
        if not self.world.leads:
            return
        usual = normalisation(self.setup.config)
        write_export(
            self.path / "export",
            state=backbone,
            config=trainer.networks.config,
            heads=heads,
            projectors=projectors,
            card={
                **card,
                "step": trainer.step,
                "mean": list(usual.mean),
                "std": list(usual.std),
                "image_size": self.setup.config.crops.global_size,
                "settings": self.setup.config.model_dump(mode="json"),
            },
        )

    def keep_spoilt(self, step: int, samples: Sequence[Tensor]) -> None:
        """Note which images a step saw that was not finite, with all that makes it again."""
        folder = self.path / "nan"
        folder.mkdir(exist_ok=True)
        facts = {
            "step": step,
            "samples": [batch.tolist() for batch in samples],
            "seed": self.setup.config.seed,
            "checkpoints": [str(saved.path) for saved in find_checkpoints(self.path)],
        }
        torch.save(facts, folder / f"step-{step:09d}-rank-{self.world.rank}.pt")

    def _led(self, work: Callable[[], None]) -> None:
        """Let the leading process do something; if that fails, it fails everywhere."""
        error: KitError | None = None
        if self.world.leads:
            try:
                work()
            except KitError as met:
                error = met
        said = self.world.announce(error)
        if isinstance(said, KitError):
            raise said

    def _take(self, held: ExitStack) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "run.lock")
            held.enter_context(lock.acquire(timeout=0))
        except Timeout as error:
            raise ArgumentError(
                f"another process trains in {self.path}", hint="wait for it, or choose another out"
            ) from error
        except OSError as error:
            raise ArgumentError(f"cannot write {self.path}: {error.strerror or error}") from error
        before = read_record(self.path) if (self.path / "run.json").is_file() else None
        if before is None:
            self._refuse_others()
        elif (said := self._differences(before)) and not self.setup.config.overwrite:
            raise ArgumentError(
                f"{self.path} is a run with other settings: {'; '.join(said)}",
                hint="choose another out, give the settings of that run, or add overwrite=true",
            )
        elif said:
            self._clear()
            before = None
        self._begin(new=before is None)

    def _differences(self, before: Mapping[str, Any]) -> list[str]:
        said = differences(read_run_config(self.path), self.setup.config)
        images = self.setup.images
        if before.get("digest") != images.digest:
            said.append(f"the images differ: {before.get('images')} then, {len(images)} now")
        return said

    def _refuse_others(self) -> None:
        ours = (*_OURS, "run.lock", "train.sbatch")
        strange = sorted(
            path.name
            for path in self.path.iterdir()
            if path.name not in ours and not path.name.startswith("slurm-")
        )
        if strange:
            raise ArgumentError(
                f"{self.path} is no run, and holds {', '.join(strange[:3])}",
                hint="choose an empty or a new folder as out",
            )

    def _clear(self) -> None:
        for name in _OURS:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _begin(self, *, new: bool) -> None:
        from dinov2kit import __version__

        setup = self.setup
        if new:
            write_run_config(self.path, _portable(setup), setup.reasons)
            write_record(
                self.path,
                created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                step=0,
                steps=setup.config.steps,
                batch=setup.config.batch,
                images=len(setup.images),
                digest=setup.images.digest,
                model=setup.config.model,
            )
        write_record(
            self.path,
            state="running",
            error=None,
            pid=os.getpid(),
            host=socket.gethostname(),
            world=self.world.size,
            at_once=(setup.config.scale.micro_batch or 0) * self.world.size,
            device=str(self.world.device),
            precision=setup.precision,
            machine=platform.machine(),
            version=__version__,
            torch=torch.__version__,
        )


def _portable(setup: Setup) -> TrainConfig:
    """Return the settings without what was chosen for this machine alone."""
    config, reasons = setup.config, setup.reasons
    scale, reading = config.scale, config.reading
    if reasons["scale.micro_batch"].startswith("rule"):
        scale = scale.model_copy(update={"micro_batch": None})
    if reasons["reading.workers"].startswith("rule"):
        reading = reading.model_copy(update={"workers": None})
    return config.model_copy(update={"scale": scale, "reading": reading})
