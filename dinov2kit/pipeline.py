"""Many image files -> global descriptors, in order: decode in workers, embed in batches, report what failed.

One bad file never costs its neighbours: it becomes a `Description` with an `error` and no descriptor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from dinov2kit.decoding import DecodePool
from dinov2kit.errors import DeviceMemoryError, ImageError
from dinov2kit.identity import ModelIdentity
from dinov2kit.images import MAX_PIXELS, Picture
from dinov2kit.shapes import Descriptors, ImageBatch
from dinov2kit.views import CenterCrop

logger = logging.getLogger(__name__)


@runtime_checkable
class GlobalEncoder(Protocol):
    """What can turn prepared pixels into global descriptors."""

    @property
    def identity(self) -> ModelIdentity:
        """What makes the descriptors comparable with others."""

    @property
    def view(self) -> CenterCrop:
        """How an image becomes the pixels that `embed` takes."""

    @property
    def batch_size(self) -> int:
        """How many images at once suit the device."""

    def embed(self, pixels: ImageBatch) -> Descriptors:
        """Return one L2-normalised row per image."""


@dataclass(frozen=True)
class Description:
    """The global descriptor of one file, or the reason why there is none.

    Attributes:
        path: the file.
        descriptor: L2-normalised; None when `error` is set.
        error: why the file has no descriptor.
        width: width of the upright original, in pixels; 0 when it could not be decoded.
        height: height of the upright original, in pixels; 0 when it could not be decoded.
        orientation: EXIF orientation, 1 to 8.
        taken_at: when the photo was taken, ISO 8601 without zone.
    """

    path: Path
    descriptor: Float32[np.ndarray, " dim"] | None
    error: str | None = None
    width: int = 0
    height: int = 0
    orientation: int = 1
    taken_at: str | None = None


def describe(
    encoder: GlobalEncoder,
    paths: Iterable[Path],
    *,
    workers: int = 0,
    batch_size: int = 0,
    timeout: float = 30.0,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[Description]:
    """Describe image files in the order given.

    Args:
        encoder: makes the descriptors.
        paths: the files; consumed a bounded distance ahead.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder, 0 for what suits it; halved when the device runs out of
            memory.
        timeout: seconds that one file may take to decode in a worker.
        max_pixels: larger images are refused before they are decoded.

    Raises:
        DeviceMemoryError: not even one image fits the device.
    """
    batcher = _Batcher(encoder, batch_size or encoder.batch_size)
    with DecodePool(encoder.view, workers=workers, timeout=timeout, max_pixels=max_pixels) as pool:
        decoded = pool.pictures(paths)
        while batch := list(islice(decoded, batcher.size)):
            yield from batcher.describe(batch)


class _Batcher:
    """Embeds batches of pictures and remembers the batch size that fits the device."""

    def __init__(self, encoder: GlobalEncoder, size: int) -> None:
        self.encoder = encoder
        self.size = size

    def describe(self, batch: list[tuple[Path, Picture | ImageError]]) -> Iterator[Description]:
        pictures = [picture for _, picture in batch if isinstance(picture, Picture)]
        rows = iter(self.embed(np.stack([picture.pixels for picture in pictures]))) if pictures else iter(())
        for path, picture in batch:
            if isinstance(picture, ImageError):
                yield Description(path, None, error=picture.message.removeprefix(f"{path}: "))
                continue
            row = np.asarray(next(rows))
            sound = bool(np.isfinite(row).all() and np.any(row))
            yield Description(
                path,
                row if sound else None,
                error=None if sound else "the model gave no finite descriptor",
                width=picture.width,
                height=picture.height,
                orientation=picture.orientation,
                taken_at=picture.taken_at,
            )

    def embed(self, pixels: ImageBatch) -> Descriptors:
        rows: list[np.ndarray] = []
        done = 0
        while done < len(pixels):
            try:
                rows.append(self.encoder.embed(pixels[done : done + self.size]))
            except DeviceMemoryError:
                if self.size == 1:
                    raise
                self.size //= 2
                logger.warning("out of memory on the device; batches of %d from now on", self.size)
                continue
            done += len(rows[-1])
        return np.concatenate(rows)
