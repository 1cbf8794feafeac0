"""Labelled images with what a linear head or a regression takes of each: the sides of an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.described_images import DescriptorCache, Shown, describe_images
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import read_image
from dinov2kit.labelled_images import LabelledImage, read_labelled
from dinov2kit.pipeline import GlobalEncoder

_TRIES, _LEAST_SHARE, _RATIO = 10, 0.08, 4 / 3  # of a random box


@dataclass(frozen=True)
class Side:
    """One side: the images that teach, that choose, or that test.

    Attributes:
        rows: of each view of each image.
        labels: number of the class of each image.
        skipped: images that could not be read, with the reason.
    """

    rows: Float32[np.ndarray, "views n wide"]
    labels: Int64[np.ndarray, " n"]
    skipped: tuple[tuple[Path, str], ...]


def read_sides(sources: Mapping[str, Path | None]) -> dict[str, list[LabelledImage]]:
    """Return the labelled images of each side that is given.

    Args:
        sources: "train", "val" and perhaps "test".

    Raises:
        ImageError: one of them cannot be read.
        ArgumentError: sides share images, a side has a class that "train" has not, or there is but one class.
    """
    kinds = {"train": "train", "val": "val", "test": "test"}
    found = {side: read_labelled(path, kinds[side]) for side, path in sources.items() if path is not None}
    names = list(found)
    for at, side in enumerate(names):
        for other in names[at + 1 :]:
            if {image.path for image in found[side]} & {image.path for image in found[other]}:
                raise ArgumentError(
                    f"{side} and {other} share images: {sources[side]} and {sources[other]}",
                    hint="name folders of their own: --train DIR --val DIR",
                )
    known = {image.label for image in found["train"]}
    if len(known) < 2:
        raise ArgumentError(f"{sources['train']} holds one class: {next(iter(known))}; wanted two or more")
    for side, images in found.items():
        if strange := sorted({image.label for image in images} - known):
            raise ArgumentError(f"{side} has classes that train has not: {', '.join(strange[:5])}")
    return found


def describe_sides(
    encoder: GlobalEncoder,
    sides: Mapping[str, Sequence[LabelledImage]],
    *,
    views: int = 1,
    seed: int = 0,
    cache: DescriptorCache | None = None,
    workers: int = 0,
    batch_size: int = 0,
    advance: Callable[[Path], None] | None = None,
) -> tuple[dict[str, Side], list[str]]:
    """Describe all sides, and number their classes.

    Args:
        encoder: makes the rows.
        sides: of `read_sides`.
        views: of each training image: the whole, then random parts of it; all other images are seen whole.
        seed: of the parts.
        cache: where rows are kept.
        workers: decoding processes.
        batch_size: images per call of the encoder, 0 for what suits it.
        advance: called with the path of each image, for each view.

    Raises:
        ImageError: no image of a side could be read.
    """
    classes = sorted({image.label for image in sides["train"]})
    numbers = {label: number for number, label in enumerate(classes)}
    found = {}
    for side, images in sides.items():
        count = views if side == "train" else 1
        shown = [_shown(image.path, view, seed) for view in range(count) for image in images]
        said = describe_images(
            encoder, shown, cache=cache, workers=workers, batch_size=batch_size, advance=advance
        )
        known = said.known.reshape(count, len(images)).all(axis=0)
        if not known.any():
            raise ImageError(f"no image of {side} could be read")
        rows = said.rows.reshape(count, len(images), -1)[:, known]
        labels = np.array([numbers[image.label] for image in images], np.int64)[known]
        found[side] = Side(np.ascontiguousarray(rows), labels, said.errors)
    return found, classes


def skipped(sides: Mapping[str, Side]) -> list[dict[str, Any]]:
    """Return what a report says of images that could not be read."""
    return [
        {"side": name, "path": str(path), "reason": reason}
        for name, side in sides.items()
        for path, reason in side.skipped
    ]


def _shown(path: Path, view: int, seed: int) -> Shown:
    """Return the whole image as view 0, then random parts, which follow from seed, name and view."""
    if view == 0:
        return Shown(path)
    try:
        height, width = read_image(path).shape[:2]
    except ImageError:
        return Shown(path)  # which says why it cannot be read
    key = [seed, view, *path.name.encode()]
    return Shown(path, random_box(np.random.default_rng(key), width, height))


def random_box(random: np.random.Generator, width: int, height: int) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a random part: 8 % to all of the area, sides from 3:4 to 4:3.

    Source: RandomResizedCrop of torchvision, as linear evaluation uses it.
    """
    for _ in range(_TRIES):
        area = width * height * random.uniform(_LEAST_SHARE, 1.0)
        ratio = np.exp(random.uniform(-np.log(_RATIO), np.log(_RATIO)))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return (float(left), float(top), float(left + w), float(top + h))
    return (0.0, 0.0, float(width), float(height))
