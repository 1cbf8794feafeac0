"""What a teacher says of all views of all images, asked once: later epochs cost the student alone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from dinov2kit.errors import ArgumentError, ImageError

from .crops import cut_view
from .image_sets import ImageSet
from .lessons import Lessons
from .loader import Loader
from .parallel import World
from .run_setup import Setup
from .subset import Subset
from .taught_batches import TaughtReading
from .teacher_features import TeacherFeatures, write_teacher_features
from .teachers import Teacher
from .train_config import TrainConfig
from .train_report import Stop, TrainProgress, Watch

SHARD = 2048  # views in a file
_BATCH = 32  # views that the teacher sees at once


class Asked(NamedTuple):
    """Views that a teacher is to see; those of unreadable images are left out."""

    pixels: UInt8[Tensor, "b t t c"]
    numbers: Int64[np.ndarray, " b"]
    box: Float32[np.ndarray, "b 4"]
    flip: list[bool]


@dataclass(frozen=True)
class ViewReading:
    """Views in order: the first view of all images, then the second one.

    Attributes:
        views: how they are drawn, of the whole set.
        numbers: of the views that are wanted; sample i is the i-th of them, those beyond the last are none.
    """

    views: TaughtReading
    numbers: Int64[np.ndarray, " n"]

    def read(self, samples: Int64[np.ndarray, " b"]) -> Asked:
        """Return the views of some samples."""
        count, size = len(self.views.images), self.views.teacher_size
        kept, pixels, boxes, flips = [], [], [], []
        for number in self.numbers[samples[samples < len(self.numbers)]].tolist():
            try:
                photo = self.views.images.read(number % count)
            except ImageError:
                continue
            height, width = photo.shape[:2]
            view = self.views.draw(photo, number % count, number)
            left, top, across, down = view.box
            kept.append(number)
            pixels.append(cut_view(photo, view, size))
            boxes.append((left / width, top / height, (left + across) / width, (top + down) / height))
            flips.append(view.mirrored)
        stacked = np.stack(pixels) if pixels else np.zeros((0, size, size, 3), np.uint8)
        box = np.array(boxes, np.float32).reshape(-1, 4)
        return Asked(torch.from_numpy(stacked), np.array(kept, np.int64), box, flips)


def fill_cache(
    setups: Sequence[Setup], world: World, *, watch: Watch | None, stop: Stop
) -> list[Setup] | None:
    """Ask the teacher about all views that are not on disk yet, and let the runs learn from there.

    Every process asks about its share. What was asked before the process was stopped is not asked again.

    Args:
        setups: runs of one teacher, whose settings name a cache.
        world: the processes.
        watch: is told how many views are done; in the leading process.
        stop: asked after each file of views.

    Returns: the same runs; None where someone said stop.

    Raises:
        ArgumentError: the teacher is no network that can be asked for tokens.
        ImageError: no image can be read.
    """
    setup, lessons = setups[0], setups[0].lessons
    if lessons is None or lessons.teacher is None:
        raise ArgumentError(
            "only the tokens of a network can be kept in a cache",
            hint="leave out distill.cache; with a teacher that has heads, set distill.by=features",
        )
    reading = setup.reading(_whole(setup.images))
    assert isinstance(reading, TaughtReading)
    assert setup.config.distill.cache is not None
    folder = setup.config.distill.cache / _digest(setup.config, lessons, reading)
    folder.mkdir(parents=True, exist_ok=True)
    total = len(reading.images) * (reading.views or 1)
    starts = [start for start in range(0, total, SHARD) if not _shard(folder, start).is_file()]
    mine = starts[world.rank :: world.size]
    told = watch if world.leads else None
    done = _ask(lessons.teacher, reading, mine, folder, setup, world.device, watch=told, stop=stop)
    (left,) = world.largest([float(not done)])
    if left:
        return None
    features = TeacherFeatures.open(folder)
    return [replace(one, lessons=replace(lessons, features=features)) for one in setups]


def _ask(
    teacher: Teacher,
    views: TaughtReading,
    starts: Sequence[int],
    folder: Path,
    setup: Setup,
    device: torch.device,
    *,
    watch: Watch | None,
    stop: Stop,
) -> bool:
    """Write the files that begin at some views; return whether all are written."""
    total = len(views.images) * (views.views or 1)
    spans = [np.arange(start, min(start + SHARD, total)) for start in starts]
    if not spans:
        return True
    numbers = np.concatenate(spans).astype(np.int64)
    loader = Loader(
        ViewReading(views, numbers),
        batch=_BATCH,
        micro_batch=_BATCH,
        rank=0,
        world=1,
        start_step=0,
        stop_step=-(-len(numbers) // _BATCH),
        workers=setup.config.reading.workers or 0,
    )
    begun, asked, done = time.perf_counter(), 0, 0
    rows: list[tuple[Asked, Tensor, Tensor | None]] = []
    with closing(iter(loader)) as batches:
        for batch in batches:
            seen = teacher.look(batch.pixels.to(device)) if len(batch.numbers) else None
            asked += _BATCH
            if seen is not None:
                patches = None if seen.patch_tokens is None else seen.patch_tokens.half().cpu()
                rows.append((batch, seen.class_token.half().cpu(), patches))
            if asked % SHARD == 0 or asked >= len(numbers):
                _write(folder, starts[done], rows, teacher, views.images)
                rows, done = [], done + 1
                if stop():
                    break
            if watch is not None:
                rate = asked / (time.perf_counter() - begun)
                watch(TrainProgress("teach", min(asked, len(numbers)), len(numbers), rate, {}))
    return done == len(starts)


def _write(
    folder: Path,
    start: int,
    rows: Sequence[tuple[Asked, Tensor, Tensor | None]],
    teacher: Teacher,
    images: ImageSet,
) -> None:
    if not rows:
        raise ImageError(f"none of {SHARD:,} images can be read, from {images.name(start % len(images))} on")
    numbers = np.concatenate([batch.numbers for batch, _, _ in rows]) % len(images)
    kept, image = np.unique(numbers, return_inverse=True)
    patches = [tokens for _, _, tokens in rows if tokens is not None]
    write_teacher_features(
        _shard(folder, start),
        teacher=teacher.name,
        digest=teacher.digest,
        names=[images.name(number) for number in kept.tolist()],
        image=image.astype(np.int64),
        box=np.concatenate([batch.box for batch, _, _ in rows]),
        flip=np.array([flip for batch, _, _ in rows for flip in batch.flip]),
        class_token=torch.cat([tokens for _, tokens, _ in rows]).numpy(),
        patch_tokens=torch.cat(patches).numpy() if patches else None,
    )


def _shard(folder: Path, start: int) -> Path:
    return folder / f"{start:012}.h5"


def _whole(images: ImageSet) -> ImageSet:
    while isinstance(images, Subset):
        images = images.whole
    return images


def _digest(config: TrainConfig, lessons: Lessons, views: TaughtReading) -> str:
    """Return a digest of all that the answers follow from."""
    recipe = views.recipe
    facts = [
        *(lessons.digest, views.images.digest, views.seed, views.views, views.teacher_size),
        *(recipe.global_scale, recipe.flip, config.reading.channels, config.reading.window),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
