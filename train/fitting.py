"""`fit` and `distill`: training runs from the first step to the last, in as many sittings as it takes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from itertools import islice

from .bad_images import BadImages
from .batches import Batch
from .lessons import Lessons, open_lessons
from .loader import Loader
from .parallel import World, joined_world
from .plan import measure_speed
from .run_config import read_run_config
from .run_folder import RunFolder
from .run_setup import Setup, check_memory, check_together, choose_precision, set_up
from .ssl_step import arithmetic
from .taught_batches import TaughtBatch
from .teacher_cache import fill_cache
from .teachers import Seen
from .train_config import TrainConfig, span_steps
from .train_report import Stop, TrainReport, Watch
from .train_settings import Resolved, given
from .trainer import Meter, SpoiltError, Trainer
from .watching import Watcher


def fit(
    config: TrainConfig | Resolved, *, watch: Watch | None = None, stop: Stop | None = None
) -> TrainReport:
    """Train a backbone, or go on with an unfinished run of the same settings.

    It learns by self-supervision or, where the settings name a teacher, from that. In a process that torchrun
    or SLURM started, it takes part in their common run.

    Args:
        config: the settings; what they leave at its default, rules may choose by the number of images.
        watch: is told of every step, in the leading process.
        stop: asked after every step; when it says so, in any process, the run is saved and ends.

    Raises:
        ArgumentError: settings do not fit each other, or the folder holds another run.
        ImageError: the images cannot be found, or too many of them cannot be read.
        WeightsError: what the run starts or learns from cannot be had.
        DeviceError: the device is absent or too small.
        SpoiltError: loss or gradients stopped being finite.
    """
    return distill([config], watch=watch, stop=stop)[0]


def distill(
    configs: Sequence[TrainConfig | Resolved], *, watch: Watch | None = None, stop: Stop | None = None
) -> list[TrainReport]:
    """Train several students at once, on the same views: a teacher is asked once for all of them.

    Each is a run of its own, with the losses that it would have alone.

    Args:
        configs: the settings, which differ in the student, its folder and its optimiser alone.
        watch: as for `fit`; is told of the run that is furthest behind.
        stop: as for `fit`.

    Raises:
        ArgumentError: the runs see different images; or as for `fit`, like all other errors.
    """
    started = time.perf_counter()
    resolved = [config if isinstance(config, Resolved) else given(config) for config in configs]
    with joined_world(resolved[0].config.device) as world, ExitStack() as held:
        precision = choose_precision(resolved[0].config, world)
        lessons = open_lessons(resolved[0].config, world, precision=precision)
        setups = [set_up(_with_length(one, world, lessons), world, lessons=lessons) for one in resolved]
        check_together(setups)
        for setup in setups:
            check_memory(setup, world)
        folders = [held.enter_context(RunFolder.opened(setup, world)) for setup in setups]
        asked, full = stop or (lambda: False), True
        if setups[0].config.distill.cache is not None:
            taught = fill_cache(setups, world, watch=watch, stop=asked)
            setups, full = taught or setups, taught is not None
        runs = [_Run(setup, folder, world) for setup, folder in zip(setups, folders, strict=True)]
        sitting = _Sitting(runs, world, watch)
        if full:
            sitting.go_on(asked)
        else:
            sitting.end()
        return [run.report(time.perf_counter() - started) for run in sitting.runs]


def _with_length(resolved: Resolved, world: World, lessons: Lessons | None) -> Resolved:
    """Turn a length in hours into steps, once: by the speed of this machine, or as the run has it already."""
    config = resolved.config
    if config.hours is None:
        return resolved
    steps: object = None
    if world.leads and (config.out / "run.json").is_file() and not config.overwrite:
        steps = read_run_config(config.out).steps
    reason = "the run has it"
    if (steps := world.announce(steps)) is None:
        seconds = measure_speed(set_up(resolved, world, lessons=lessons), world).seconds_per_step
        steps = world.announce(max(int(config.hours * 3600 / seconds), 1))
        reason = f"rule: {config.hours:g} hours at {seconds:.3g} s a step"
    return resolved.choose({"hours": None, "steps": steps}, reason)


class _Sitting:
    """Runs that go forward together, step by step, from the one that is furthest behind."""

    def __init__(self, runs: Sequence[_Run], world: World, watch: Watch | None) -> None:
        self.runs, self.world = list(runs), world
        self._watch = watch if world.leads else None

    def go_on(self, stop: Stop) -> None:
        """Do all steps that are left, or those until someone says stop."""
        open_runs = [run for run in self.runs if run.state != "finished"]
        if not open_runs:
            return
        for run in open_runs:
            if run.trainer.step == 0:
                self._tell(run, "eval")
                run.watcher.measure()
        lead = min(open_runs, key=lambda run: run.trainer.step)
        loader = lead.loader()
        with closing(iter(loader)) as batches:
            while lead.trainer.step < lead.steps:
                mine = list(islice(batches, lead.trainer.micro_batches))
                lessons = lead.ask(mine)
                waited, step = loader.take_waited(), lead.trainer.step
                for run in open_runs:
                    if run.trainer.step == step:
                        run.update(mine, lessons, waited=waited, tell=self._tell)
                late = [float(run.late()) for run in open_runs]
                asked, *late = self.world.largest([float(stop()), *late])
                if asked:
                    break
                for run, due in zip(open_runs, late, strict=True):
                    if due and run.trainer.step < run.steps:
                        self._tell(run, "save")
                        run.save()
        self.end()

    def end(self) -> None:
        """Save all runs and note how they ended."""
        for run in self.runs:
            if run.state != "finished":
                self._tell(run, "save")
                run.end()

    def _tell(self, run: _Run, stage: str) -> None:
        if self._watch is not None:
            self._watch(run.watcher.progress(stage))


class _Run:
    """One sitting of one run."""

    def __init__(self, setup: Setup, folder: RunFolder, world: World) -> None:
        self.setup, self.world, self.folder = setup, world, folder
        self.config = setup.config
        assert self.config.steps is not None
        self.steps = self.config.steps
        guide = None if setup.lessons is None else setup.lessons.heads
        self.trainer = Trainer(self.config, world, precision=setup.precision, guide=guide)
        self.meter = Meter()
        resumed_at = self._restore()
        self.resumed_at = resumed_at or 0
        self.watcher = Watcher(setup, self.trainer, folder, resumed_at=resumed_at)
        self.bad = BadImages(
            folder.path, images=len(setup.images), most=self.config.reading.most_bad, writes=world.leads
        )
        self._waited = 0.0
        self._saved_at = time.monotonic()
        self.state = "finished" if self.resumed_at >= self.steps else "running"

    def ask(self, batches: Sequence[Batch | TaughtBatch]) -> list[Seen] | None:
        """Return what the teacher says of micro-batches; None where there is none but the moving average."""
        lessons = self.setup.lessons
        if lessons is None:
            return None
        with arithmetic(self.world, self.setup.precision):
            return [lessons.ask(batch, self.world) for batch in batches]

    def update(
        self,
        mine: Sequence[Batch | TaughtBatch],
        lessons: Sequence[Seen] | None,
        *,
        waited: float,
        tell: Callable[[_Run, str], None],
    ) -> None:
        """Do one step and what is due after it."""
        trainer, config = self.trainer, self.config
        step, rates = trainer.step + 1, trainer.rates
        due = step % config.log_every == 0 or step == self.steps
        self._waited += waited
        for batch in mine:
            self.bad.record_all(batch.replaced)
        try:
            measured, statistics = trainer.update(mine, look=due, lessons=lessons)
        except SpoiltError:
            self.folder.keep_spoilt(trainer.step, [batch.samples for batch in mine])
            raise
        if all(map(math.isfinite, measured.values())):
            self.meter.add(measured)
        if due:
            self.watcher.log(self.meter, rates, statistics, waited=self._waited)
            self._waited = 0.0
        if self._measures_after(step):
            tell(self, "eval")
            self.watcher.measure()
        tell(self, "train")

    def _measures_after(self, step: int) -> bool:
        every = span_steps(self.config.eval.every, self.steps)
        return step == self.steps or (every > 0 and step % every == 0)

    def late(self) -> bool:
        """Say whether the last checkpoint is too old, in steps or in minutes."""
        every = self.config.checkpoint.every
        if every is not None and self.trainer.step % max(span_steps(every, self.steps), 1) == 0:
            return True
        return time.monotonic() - self._saved_at >= 60 * self.config.checkpoint.every_minutes

    def save(self) -> None:
        """Write a checkpoint."""
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

    def end(self) -> None:
        """Save the run and note how it ended."""
        self.save()
        self.state = "finished" if self.trainer.step >= self.steps else "stopped"
        self.folder.note(state=self.state, step=self.trainer.step)

    def loader(self) -> Loader[Batch | TaughtBatch]:
        """Return the micro-batches that are left."""
        config = self.config
        assert config.scale.micro_batch is not None
        assert config.reading.workers is not None
        return Loader(
            self.setup.reading(),
            batch=config.batch,
            micro_batch=config.scale.micro_batch,
            rank=self.world.rank,
            world=self.world.size,
            start_step=self.trainer.step,
            stop_step=self.steps,
            workers=config.reading.workers,
            pin=self.world.device.type == "cuda",
        )

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
