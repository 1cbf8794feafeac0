"""Micro-batches of crops: what the samples of a run become, by their numbers alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from .bad_images import Bad, read_or_replace
from .crops import CropRecipe, cut_crops
from .image_sets import ImageSet
from .order import sample_index

Read = TypeVar("Read", covariant=True)


@runtime_checkable
class Reading(Protocol[Read]):
    """What makes a micro-batch of the numbers of its samples; it travels to worker processes."""

    def read(self, samples: Int64[np.ndarray, " b"], /) -> Read:
        """Return the micro-batch of some samples, which follows from their numbers alone.

        Raises:
            ImageError: no image can be read any more.
        """


@dataclass(frozen=True)
class Batch:
    """The crops of b images; crop j of image i is row j * b + i.

    Attributes:
        global_pixels: two of each image.
        global_colours: see `finish_crops`.
        local_pixels: the small ones.
        local_colours: the same.
        samples: number of the sample of each image in the run.
        replaced: the images that could not be read; others stand in for them.
    """

    global_pixels: UInt8[Tensor, "two_b g g c"]
    global_colours: Float32[Tensor, "two_b p"]
    local_pixels: UInt8[Tensor, "many_b l l c"]
    local_colours: Float32[Tensor, "many_b p"]
    samples: Int64[Tensor, " b"]
    replaced: list[Bad]

    def pin_memory(self) -> Batch:
        """Return the same with its pixels where a GPU fetches them by itself; torch calls this."""
        return Batch(
            self.global_pixels.pin_memory(),
            self.global_colours,
            self.local_pixels.pin_memory(),
            self.local_colours,
            self.samples,
            self.replaced,
        )


@dataclass(frozen=True)
class CropReading:
    """Global and local crops of images.

    Attributes:
        images: the set.
        recipe: how crops are cut.
        seed: of everything random.
    """

    images: ImageSet
    recipe: CropRecipe
    seed: int

    def read(self, samples: Int64[np.ndarray, " b"]) -> Batch:
        """Return the crops of some samples.

        Raises:
            ImageError: no image can be read any more.
        """
        chosen = sample_index(samples, len(self.images), seed=self.seed)
        views, replaced = [], []
        for sample, index in zip(samples.tolist(), chosen.tolist(), strict=True):
            pixels, _, bad = read_or_replace(self.images, index, seed=self.seed)
            replaced += bad
            views.append(cut_crops(pixels, self.recipe, seed=self.seed, sample=sample))
        return Batch(
            _crop_major([crops.global_pixels for crops in views]),
            _crop_major([crops.global_colours for crops in views]),
            _crop_major([crops.local_pixels for crops in views]),
            _crop_major([crops.local_colours for crops in views]),
            torch.from_numpy(samples),
            replaced,
        )


def _crop_major(views: list[np.ndarray]) -> Tensor:
    """Put the first crops of all images before the second ones, and so on."""
    stacked = np.stack(views, axis=1)
    crops, images, *rest = stacked.shape
    return torch.from_numpy(stacked.reshape(crops * images, *rest))
