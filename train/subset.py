"""Some images of a set, as a set of their own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from .image_sets import ImageSet
from .order import sample_index
from .pixels import Pixels

_HELD_OUT = 7  # added to the seed: the order that chooses what is held out


@dataclass(frozen=True)
class Subset:
    """Some images of a set.

    Attributes:
        whole: the set.
        places: their numbers in it.
    """

    whole: ImageSet
    places: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> Pixels:
        """Return the pixels of an image.

        Raises:
            ImageError: it cannot be read.
        """
        return self.whole.read(int(self.places[index]))

    def name(self, index: int) -> str:
        """Return the name that the image has in the whole set."""
        return self.whole.name(int(self.places[index]))

    @property
    def digest(self) -> str:
        """A hex digest of the whole set and of the choice."""
        chosen = hashlib.blake2b(self.whole.digest.encode(), digest_size=16)
        chosen.update(self.places.tobytes())
        return chosen.hexdigest()

    @property
    def labels(self) -> list[str] | None:
        """The class of each image, or None where nothing tells it."""
        labels = self.whole.labels
        return None if labels is None else [labels[place] for place in self.places.tolist()]


def whole_number(images: ImageSet, index: int) -> int:
    """Return the number of an image in the set that a set was chosen from, or in itself."""
    while isinstance(images, Subset):
        index, images = int(images.places[index]), images.whole
    return index


def hold_out(images: ImageSet, count: int, *, seed: int) -> tuple[ImageSet, ImageSet | None]:
    """Set images aside; the choice depends on the seed and the size of the set alone.

    Args:
        images: all.
        count: how many to set aside; never more than a fifth.
        seed: of the choice.

    Returns: the images to learn from, and those set aside; None instead of fewer than two.
    """
    count = min(count, len(images) // 5)
    if count < 2:
        return images, None
    aside = np.zeros(len(images), bool)
    aside[sample_index(np.arange(count), len(images), seed=seed + _HELD_OUT)] = True
    return Subset(images, np.flatnonzero(~aside)), Subset(images, np.flatnonzero(aside))
