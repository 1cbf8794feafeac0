"""`fit`: a training run from its first step to its last, in as many sittings as it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from .bad_images import BadImages
from .loader import Batch, Loader
from .parallel import World, joined_world
from .plan import measure_speed
from .run_config import read_run_config
from .run_folder import RunFolder
from .run_setup import Setup, check_memory, set_up
from .ssl_step import crop_recipe
from .train_config import TrainConfig, span_steps
from .train_report import Stop, TrainReport, Watch
from .train_settings import Resolved, given
from .trainer import Meter, SpoiltError, Trainer
from .watching import Watcher


def fit(
    config: TrainConfig | Resolved, *, watch: Watch | None = None, stop: Stop | None = None
) -> TrainReport:
    """Train a backbone by self-supervision, or go on with an unfinished run of the same settings.

    In a process that torchrun or SLURM started, it takes part in their common run.

    Args:
        config: the settings; what they leave at its default, rules may choose by the number of images.
        watch: is told of every step, in the leading process.
        stop: asked after every step; when it says so, in any process, the run is saved and ends.

    Raises:
        ArgumentError: settings do not fit each other, or the folder holds another run.
        ImageError: the images cannot be found, or too many of them cannot be read.
        WeightsError: what the run starts from cannot be had.
        DeviceError: the device is absent or too small.
        SpoiltError: loss or gradients stopped being finite.
    """
    started = time.perf_counter()
    resolved = config if isinstance(config, Resolved) else given(config)
    with joined_world(resolved.config.device) as world:
        setup = set_up(_with_length(resolved, world), world)
        check_memory(setup, world)
        with RunFolder.opened(setup, world) as folder:
            run = _Run(setup, world, folder, watch)
            run.go_on(stop or (lambda: False))
            return run.report(time.perf_counter() - started)


def _with_length(resolved: Resolved, world: World) -> Resolved:
    """Turn a length in hours into steps, once: by the speed of this machine, or as the run has it already."""
    config = resolved.config
    if config.hours is None:
        return resolved
    steps: object = None
    if world.leads and (config.out / "run.json").is_file() and not config.overwrite:
        steps = read_run_config(config.out).steps
    reason = "the run has it"
    if (steps := world.announce(steps)) is None:
        seconds = measure_speed(set_up(resolved, world), world).seconds_per_step
        steps = world.announce(max(int(config.hours * 3600 / seconds), 1))
        reason = f"rule: {config.hours:g} hours at {seconds:.3g} s a step"
    return resolved.choose({"hours": None, "steps": steps}, reason)


class _Run:
    """One sitting of a run."""

    def __init__(self, setup: Setup, world: World, folder: RunFolder, watch: Watch | None) -> None:
        self.setup, self.world, self.folder = setup, world, folder
        self.config = setup.config
        assert self.config.steps is not None
        self.steps = self.config.steps
        self.trainer = Trainer(self.config, world, precision=setup.precision)
        self.meter = Meter()
        resumed_at = self._restore()
        self.resumed_at = resumed_at or 0
        self.watcher = Watcher(setup, self.trainer, folder, resumed_at=resumed_at)
        self.bad = BadImages(
            folder.path, images=len(setup.images), most=self.config.reading.most_bad, writes=world.leads
        )
        self._watch = watch if world.leads else None
        self._saved_at = time.monotonic()
        self._clock = time.monotonic()
        self.state = "finished" if self.resumed_at >= self.steps else "running"

    def go_on(self, stop: Stop) -> None:
        """Do all steps that are left, or those until someone says stop."""
        if self.state == "finished":
            return
        if self.trainer.step == 0:
            self._measure()
        loader = self._loader()
        with closing(iter(loader)) as batches:
            while self.trainer.step < self.steps:
                self._update(loader, batches)
                asked, late = self.world.largest([float(stop()), float(self._late())])
                if asked:
                    break
                if late and self.trainer.step < self.steps:
                    self._save()
        self._end()

    def _update(self, loader: Loader, batches: Iterator[Batch]) -> None:
        """Do one step and what is due after it."""
        trainer, config = self.trainer, self.config
        step, rates = trainer.step + 1, trainer.rates
        due = step % config.log_every == 0 or step == self.steps
        mine = list(islice(batches, trainer.micro_batches))
        for batch in mine:
            self.bad.record_all(batch.replaced)
        try:
            measured, statistics = trainer.update(mine, look=due)
        except SpoiltError:
            self.folder.keep_spoilt(trainer.step, [batch.samples for batch in mine])
            raise
        if all(map(math.isfinite, measured.values())):
            self.meter.add(measured)
        if due:
            self.watcher.log(self.meter, rates, statistics, waited=loader.take_waited())
        if self._measures_after(step):
            self._measure()
        self._tell("train")

    def _measures_after(self, step: int) -> bool:
        every = span_steps(self.config.eval.every, self.steps)
        return step == self.steps or (every > 0 and step % every == 0)

    def _measure(self) -> None:
        self._tell("eval")
        self.watcher.measure()

    def _late(self) -> bool:
        """Say whether the last checkpoint is too old, in steps or in minutes."""
        every = self.config.checkpoint.every
        if every is not None and self.trainer.step % max(span_steps(every, self.steps), 1) == 0:
            return True
        return time.monotonic() - self._saved_at >= 60 * self.config.checkpoint.every_minutes

    def _save(self) -> None:
        self._tell("save")
        meter = {"steps": self.meter.steps, "sums": self.meter.sums}
        self.folder.save(self.trainer, meter=meter, best=self.watcher.best)
        self._saved_at = time.monotonic()

    def _restore(self) -> int | None:
        """Load the latest checkpoint, if there is one; return how many steps it has done."""
        facts = self.folder.restore(self.trainer)
        if facts is None:
            return None
        self.trainer.step = int(facts["step"])
        self.meter = Meter(int(facts["meter"]["steps"]), dict(facts["meter"]["sums"]))
        return self.trainer.step

    def _end(self) -> None:
        self._save()
        self.state = "finished" if self.trainer.step >= self.steps else "stopped"
        self.folder.note(state=self.state, step=self.trainer.step)

    def _loader(self) -> Loader:
        config = self.config
        assert config.scale.micro_batch is not None
        assert config.reading.workers is not None
        return Loader(
            self.setup.images,
            crop_recipe(config),
            seed=config.seed,
            batch=config.batch,
            micro_batch=config.scale.micro_batch,
            rank=self.world.rank,
            world=self.world.size,
            start_step=self.trainer.step,
            stop_step=self.steps,
            workers=config.reading.workers,
            pin=self.world.device.type == "cuda",
        )

    def _tell(self, stage: str) -> None:
        if self._watch is not None:
            self._watch(self.watcher.progress(stage))

    def report(self, seconds: float) -> TrainReport:
        """Say what was done."""
        last = self.watcher.last_measure
        return TrainReport(
            out=self.folder.path,
            state=self.state,
            step=self.trainer.step,
            steps=self.steps,
            resumed_at=self.resumed_at,
            images=self.trainer.step * self.config.batch,
            knn=last.get("knn"),
            knn_kind=last.get("knn_kind"),
            export=self.folder.export_path,
            bad_images=self.bad.count,
            seconds=seconds,
            leads=self.world.leads,
        )
