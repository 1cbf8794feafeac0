"""What a run would do, how long it would take and how much it would fill; the last two measured if cheap."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from .batches import Batch
from .loader import Loader
from .parallel import World, joined_world
from .run_checkpoints import find_checkpoints
from .run_setup import Setup, free_memory, set_up
from .taught_batches import TaughtBatch
from .train_config import TrainConfig, span_steps
from .train_settings import Resolved, given
from .trainer import Trainer
from .watching import memory_in_use

_MEASURED_SECONDS = 20.0  # a measurement that would take longer is left out
_USE = 0.4  # share of the speed of a large matrix product that a step reaches
_STEPS = 3  # of a measurement; the first warms up


@dataclass(frozen=True)
class TrainPlan:
    """What a run would do.

    Attributes:
        out: folder of the run.
        model: the backbone.
        device: where it runs.
        processes: how many share the run.
        precision: arithmetic of the networks.
        parameters: how many numbers are learned: backbone and heads.
        images: how many are learned from.
        held_out: how many are only measured on.
        batch: images in a step.
        micro_batch: images on a device at once.
        micro_batches: how many of these each process does in a step.
        steps: length of the run.
        done: how many steps an unfinished run has done already.
        epochs: how often each image is seen.
        flops_per_step: operations in a step.
        measured: whether memory and time were measured, by steps that leave no trace; else estimated.
        memory_bytes: memory of one process.
        free_bytes: memory that is free on its device.
        images_per_second: speed of all processes together.
        reading_images_per_second: how many images a second one reading process delivers.
        seconds: how long the rest of the run would take.
        disk_bytes: what checkpoints and exports fill.
        warnings: what is likely to go wrong, in sentences.
        settings: every setting: name, value, and where it comes from.
    """

    out: Path
    model: str
    device: str
    processes: int
    precision: str
    parameters: int
    images: int
    held_out: int
    batch: int
    micro_batch: int
    micro_batches: int
    steps: int
    done: int
    epochs: float
    flops_per_step: float
    measured: bool
    memory_bytes: int
    free_bytes: int
    images_per_second: float
    reading_images_per_second: float
    seconds: float
    disk_bytes: int
    warnings: tuple[str, ...]
    settings: tuple[tuple[str, object, str], ...]

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        settings = {name: {"value": value, "why": why} for name, value, why in self.settings}
        return {**asdict(self), "out": str(self.out), "settings": settings}


@dataclass(frozen=True)
class Speed:
    """How fast a step is and what it fills, measured or estimated."""

    seconds_per_step: float
    memory_bytes: int
    reading_images_per_second: float
    measured: bool


def plan_training(config: TrainConfig | Resolved) -> TrainPlan:
    """Say what `fit` would do with these settings; nothing is written.

    Raises:
        ArgumentError: settings do not fit each other.
        ImageError: the images cannot be found.
        WeightsError: what the run starts from cannot be had.
        DeviceError: the device is absent or too small.
    """
    resolved = config if isinstance(config, Resolved) else given(config)
    with joined_world(resolved.config.device) as world:
        setup = set_up(resolved, world)
        speed = measure_speed(setup, world)
        if resolved.config.hours is not None:
            steps = max(int(resolved.config.hours * 3600 / speed.seconds_per_step), 1)
            reason = f"rule: {resolved.config.hours:g} hours at {speed.seconds_per_step:.3g} s a step"
            setup = set_up(resolved.choose({"hours": None, "steps": steps}, reason), world)
        return _plan(setup, world, speed)


def _plan(setup: Setup, world: World, speed: Speed) -> TrainPlan:
    config = setup.config
    micro, steps = config.scale.micro_batch, config.steps
    assert micro is not None
    assert steps is not None
    found = find_checkpoints(config.out)
    done = found[-1].step if found else 0
    rate = config.batch / speed.seconds_per_step
    checkpoint = setup.costs.checkpoint_bytes
    kept = config.checkpoint.keep_last + int(config.checkpoint.keep_best)
    return TrainPlan(
        out=config.out,
        model=config.model,
        device=str(world.device),
        processes=world.size,
        precision=setup.precision,
        parameters=setup.costs.parameters,
        images=len(setup.images),
        held_out=0 if setup.held_out is None else len(setup.held_out),
        batch=config.batch,
        micro_batch=micro,
        micro_batches=config.batch // (micro * world.size),
        steps=steps,
        done=done,
        epochs=setup.epochs,
        flops_per_step=setup.costs.flops_per_image * config.batch,
        measured=speed.measured,
        memory_bytes=speed.memory_bytes,
        free_bytes=free_memory(world.device),
        images_per_second=rate,
        reading_images_per_second=speed.reading_images_per_second,
        seconds=(steps - done) * speed.seconds_per_step,
        disk_bytes=kept * checkpoint + checkpoint // 4,
        warnings=tuple(_warnings(setup, world, speed, rate)),
        settings=_settings(setup),
    )


def measure_speed(setup: Setup, world: World) -> Speed:
    """Do a few steps that leave no trace, if that takes seconds; else estimate from shapes."""
    config, micro = setup.config, setup.config.scale.micro_batch
    assert micro is not None
    reading = _measure_reading(setup)
    flops = setup.costs.flops_per_image * config.batch / world.size
    guess = flops / (_USE * _matrix_speed(world.device, setup.precision))
    per_micro = guess * micro * world.size / config.batch
    fits = setup.costs.memory_bytes < free_memory(world.device)
    if not fits or per_micro * _STEPS > _MEASURED_SECONDS or world.size > 1:
        reading_seconds = config.batch / world.size / (reading * max(config.reading.workers or 0, 1))
        return Speed(max(guess, reading_seconds), setup.costs.memory_bytes, reading, measured=False)
    anew = {
        "init": None,
        "loss": config.loss.model_copy(update={"gram_from": None}),
    }  # as fast, and no download
    short = {"batch": micro * world.size, "steps": max(config.steps or 0, _STEPS)}
    small = config.model_copy(update={**anew, **short})
    lessons = setup.lessons
    guide = None if lessons is None else lessons.heads
    trainer = Trainer(small, world, precision=setup.precision, guide=guide)
    times = []
    loader = _loader(setup, small)
    with closing(iter(loader)) as batches:
        for _ in range(_STEPS):
            started = time.perf_counter()
            mine = list(islice(batches, trainer.micro_batches))
            seen = None if lessons is None else [lessons.ask(batch, world) for batch in mine]
            trainer.update(mine, look=False, lessons=seen)
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    seconds = min(times[1:]) * config.batch / (micro * world.size)
    return Speed(seconds, memory_in_use(world.device), reading, measured=True)


def _loader(setup: Setup, config: TrainConfig) -> Loader[Batch | TaughtBatch]:
    assert config.scale.micro_batch is not None
    return Loader(
        setup.reading(),
        batch=config.batch,
        micro_batch=config.scale.micro_batch,
        rank=0,
        world=1,
        start_step=0,
        stop_step=_STEPS,
        workers=0,
    )


def _measure_reading(setup: Setup) -> float:
    """Return how many images a second one process reads and cuts."""
    count = min(32, setup.config.batch)
    small = setup.config.model_copy(
        update={"batch": count, "scale": setup.config.scale.model_copy(update={"micro_batch": count})}
    )
    with closing(iter(_loader(setup, small))) as batches:
        next(batches)
        return _rate(lambda: next(batches), count)


def _rate(work: Callable[[], object], count: int) -> float:
    started = time.perf_counter()
    work()
    return count / max(time.perf_counter() - started, 1e-9)


def _matrix_speed(device: torch.device, precision: str) -> float:
    """Return how many operations a second a matrix product reaches here."""
    side = 4096 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    left = torch.ones(side, side, device=device, dtype=dtype)

    def multiply() -> None:
        for _ in range(3):
            left @ left
        if device.type == "cuda":
            torch.cuda.synchronize()

    multiply()
    return _rate(multiply, 3 * 2 * side**3)


def _warnings(setup: Setup, world: World, speed: Speed, rate: float) -> list[str]:
    config, said = setup.config, []
    assert config.steps is not None
    free = free_memory(world.device)
    if speed.memory_bytes > free and not speed.measured:
        said.append(f"about {speed.memory_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    delivered = speed.reading_images_per_second * max(config.reading.workers or 0, 1) * world.size
    if delivered < rate * 1.1 and config.reading.workers:
        said.append(
            f"{config.reading.workers} reading processes deliver {delivered:,.0f} images/s, and the network "
            f"takes {rate:,.0f}: raise reading.workers"
        )
    if setup.epochs < 1:
        said.append(f"the run sees only {setup.epochs:.0%} of the images: make it longer")
    if config.steps < 1000:
        said.append(f"{config.steps} steps are few: do not expect features that mean much")
    if len(setup.images) < 5000 and config.init is None:
        said.append(
            f"{len(setup.images):,} images are few to learn from scratch: preset=continue starts from "
            "released weights"
        )
    if 0 < span_steps(config.optim.warmup, config.steps) >= config.steps:
        said.append("the learning rate never leaves its warm-up: lower optim.warmup")
    return said


def _settings(setup: Setup) -> tuple[tuple[str, object, str], ...]:
    values: dict[str, object] = {}
    for name, value in setup.config.model_dump(mode="json").items():
        if isinstance(value, dict):
            values |= {f"{name}.{inner}": each for inner, each in value.items()}
        else:
            values[name] = value
    return tuple((name, value, setup.reasons.get(name, "default")) for name, value in values.items())
