"""What a run needs before its first step: images, the length in steps, the shape of the batch; checked."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dinov2kit.decoding import default_workers
from dinov2kit.encoder import computes_bf16
from dinov2kit.errors import ArgumentError, DeviceMemoryError

from .batches import Batch, CropReading, Reading
from .costs import Costs, count_costs
from .image_sets import ImageSet, open_images
from .lessons import Lessons, open_lessons
from .networks import backbone_config
from .parallel import World
from .run_record import read_record
from .ssl_step import crop_recipe
from .subset import Subset, hold_out
from .taught_batches import Taught, TaughtBatch, TaughtReading, taught_part
from .train_config import TrainConfig
from .train_settings import Resolved, settle

_SPARE = 0.85  # of the free memory that a step may fill


@dataclass(frozen=True)
class Setup:
    """A run, ready to begin.

    Attributes:
        config: complete: `steps`, `batch` and `scale.micro_batch` are numbers.
        reasons: of every setting, why it has its value.
        images: what is learned from.
        held_out: what training never sees; None where nothing is held out.
        precision: arithmetic of the networks, "fp32" or "bf16".
        costs: of a step of one process.
        lessons: the teacher that is no average of the student; None where there is none.
    """

    config: TrainConfig
    reasons: dict[str, str]
    images: ImageSet
    held_out: ImageSet | None
    precision: str
    costs: Costs
    lessons: Lessons | None = None

    @property
    def epochs(self) -> float:
        """How often each image is seen."""
        assert self.config.steps is not None
        return self.config.steps * self.config.batch / len(self.images)

    def reading(self, images: ImageSet | None = None) -> Reading[Batch | TaughtBatch]:
        """Return what reads micro-batches, of the images to learn from or of others."""
        chosen, recipe = images or self.images, crop_recipe(self.config)
        if self.lessons is None or self.lessons.by == "prototypes":
            return CropReading(chosen, recipe, self.config.seed)
        features = self.lessons.features
        return TaughtReading(
            chosen,
            recipe,
            self.config.seed,
            teacher_size=self.lessons.size(self.config),
            views=self.config.distill.views,
            taught=None if features is None else Taught.match(features, chosen),
        )


def set_up(resolved: Resolved, world: World, *, lessons: Lessons | None = None) -> Setup:
    """Open the images, and choose what the settings leave open.

    Args:
        resolved: the settings, with what they come from.
        world: the processes.
        lessons: the teacher, where it is open already.

    Raises:
        ArgumentError: settings do not fit each other, the model, or the number of processes.
        ImageError: the images cannot be found.
        WeightsError: a teacher cannot be had.
    """
    lessons = lessons or open_lessons(
        resolved.config, world, precision=choose_precision(resolved.config, world)
    )
    if lessons is not None:
        resolved = lessons.settle(resolved)
    whole = open_images(
        resolved.config.sources,
        channels=resolved.config.reading.channels,
        window=resolved.config.reading.window,
    )
    resolved = settle(resolved, images=len(whole))
    config, reasons = resolved.config, dict(resolved.reasons)
    check_crops(config)
    if lessons is not None:
        lessons.check(config)
        if lessons.features is not None:
            taught = taught_part(Taught.match(lessons.features, whole), whole)
            whole = whole if len(taught) == len(whole) else Subset(whole, taught)
    aside = 0 if config.eval.knn is not None and not config.distill.by_features else config.eval.holdout
    images, held_out = hold_out(whole, aside, seed=config.seed)
    if config.batch % world.size:
        raise ArgumentError(
            f"a batch of {config.batch} cannot be shared by {world.size} processes",
            hint=f"use batch={math.ceil(config.batch / world.size) * world.size}",
        )
    steps, why = _length(config, len(images))
    reasons["steps"] = why or reasons["steps"]
    lengths = {"epochs": None, "images": None, "hours": None, "steps": steps}
    config = config.model_copy(update=lengths)
    precision = choose_precision(config, world)
    micro, why = _micro_batch(config, world, precision)
    reasons["scale.micro_batch"] = why or reasons["scale.micro_batch"]
    workers = config.reading.workers
    if workers is None:
        workers = _workers(world)
        reasons["reading.workers"] = f"rule: {default_workers()} cores"
    config = config.model_copy(
        update={
            "scale": config.scale.model_copy(update={"micro_batch": micro}),
            "reading": config.reading.model_copy(update={"workers": workers}),
        }
    )
    costs = count_costs(config, micro_batch=micro, precision=precision)
    return Setup(config, reasons, images, held_out, precision, costs, lessons)


def check_memory(setup: Setup, world: World) -> None:
    """Refuse a run that would fill the device before its first step is done.

    Raises:
        DeviceMemoryError: not even one image at a time fits.
    """
    needed, free = setup.costs.memory_bytes, free_memory(world.device)
    if setup.config.scale.micro_batch == 1 and needed > free:
        raise DeviceMemoryError(
            f"one image at a time needs about {needed / 1e9:.1f} GB, of which {free / 1e9:.1f} are free",
            hint="use a smaller model, fewer prototypes, scale.recompute=true, or more devices",
        )


def check_together(setups: Sequence[Setup]) -> None:
    """Refuse runs that cannot go side by side.

    Raises:
        ArgumentError: they see different views, or share a folder.
    """
    first, *others = (setup.config for setup in setups)
    together = ("data", "seed", "batch", "steps", "device", "reading", "crops", "distill")
    for other in others:
        for name in together:
            if getattr(first, name) != getattr(other, name):
                raise ArgumentError(
                    f"students that learn side by side share {name}; it is {getattr(first, name)} and "
                    f"{getattr(other, name)}",
                    hint="give it once, or run them one after the other",
                )
        if first.scale.micro_batch != other.scale.micro_batch:
            raise ArgumentError(
                f"micro-batches are {first.scale.micro_batch} and {other.scale.micro_batch}",
                hint="set scale.micro_batch to what fits the largest student",
            )
    if len({setup.config.out for setup in setups}) < len(setups):
        raise ArgumentError("each student needs a folder of its own", hint="name every student once")


def check_crops(config: TrainConfig) -> None:
    """Refuse crops that cannot be cut into patches.

    Raises:
        ArgumentError: a size is no multiple of the patch.
    """
    patch, size = backbone_config(config).patch_size, config.crops.local_size
    if size % patch:
        nearest = max(round(size / patch), 1) * patch
        raise ArgumentError(
            f"crops.local_size is {size}, which patches of {patch} do not fill",
            hint=f"use crops.local_size={nearest}",
        )


def choose_precision(config: TrainConfig, world: World) -> str:
    """Return the arithmetic of the networks: as asked for, or bf16 where the device computes it fast."""
    if config.scale.precision != "auto":
        return config.scale.precision
    return "bf16" if computes_bf16(world.device) else "fp32"


def _length(config: TrainConfig, images: int) -> tuple[int, str | None]:
    """Return the steps of a run, and why; one in hours gets a single step, to be measured."""
    if config.images is not None:
        return math.ceil(config.images / config.batch), f"rule: {config.images:,} images"
    if config.epochs is not None:
        said = f"rule: {config.epochs:g} epochs of {images:,} images"
        return math.ceil(config.epochs * images / config.batch), said
    return config.steps or 1, None


def _micro_batch(config: TrainConfig, world: World, precision: str) -> tuple[int, str | None]:
    """Return how many images a process takes at once: the most that divide its share and fit its memory."""
    share = config.batch // world.size
    asked = config.scale.micro_batch
    if asked is not None:
        if share % asked:
            nearest = max(n for n in range(1, asked + 1) if share % n == 0)
            raise ArgumentError(
                f"scale.micro_batch is {asked}, which does not divide the {share} images of a process",
                hint=f"use scale.micro_batch={nearest}",
            )
        return asked, None
    if (before := _at_once_before(config)) and share % max(before // world.size, 1) == 0:
        return max(before // world.size, 1), "rule: as the run had it"
    free = free_memory(world.device)
    for parts in range(1, share + 1):
        if share % parts:
            continue
        micro = share // parts
        needed = count_costs(config, micro_batch=micro, precision=precision).memory_bytes
        if needed <= _SPARE * free:
            said = "the whole share of a process fits" if parts == 1 else f"{parts} parts fit"
            return micro, f"rule: {said} {free / 1e9:.1f} GB"
    return 1, f"rule: not even one image fits {free / 1e9:.1f} GB"


def _at_once_before(config: TrainConfig) -> int | None:
    """Return how many images a run had on all devices at once: targets are balanced over these."""
    if config.overwrite or not (config.out / "run.json").is_file():
        return None
    at_once = read_record(config.out).get("at_once")
    return at_once if isinstance(at_once, int) else None


def free_memory(device: torch.device) -> int:
    """Return the bytes that are free on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _workers(world: World) -> int:
    """Return how many processes read images: on a CPU the network needs the cores itself."""
    cores = default_workers()
    if world.device.type == "cuda":
        return max(1, min(16, cores // max(torch.cuda.device_count(), 1)))
    return 1 if cores > 1 else 0
