"""Micro-batches of single views with what a teacher says of them, or what it is to be asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from dinov2kit.errors import ImageError

from .bad_images import Bad, read_or_replace
from .crops import Box, CropRecipe, View, cut_view, draw_view, draw_view_colours
from .image_sets import ImageSet
from .order import sample_index
from .subset import whole_number
from .teacher_features import Lesson, TeacherFeatures, match_images


@dataclass(frozen=True)
class TaughtBatch:
    """Views of b images.

    Attributes:
        pixels: what the student sees, before changes of colour.
        colours: see `finish_crops`.
        teacher_pixels: what the teacher is to see; None where it was asked before.
        class_token: what it said; None where it is still to be asked.
        patch_tokens: the same, for each place; None where it says nothing of places, or is still to be asked.
        samples: number of the sample of each view in the run.
        replaced: the images that could not be read; others stand in for them.
    """

    pixels: UInt8[Tensor, "b g g c"]
    colours: Float32[Tensor, "b p"]
    teacher_pixels: UInt8[Tensor, "b t t c"] | None
    class_token: Float32[Tensor, "b dim"] | None
    patch_tokens: Float32[Tensor, "b rows cols patch_dim"] | None
    samples: Int64[Tensor, " b"]
    replaced: list[Bad]

    def pin_memory(self) -> TaughtBatch:
        """Return the same where a GPU fetches it by itself; torch calls this."""
        teacher, token, patches = (
            None if tensor is None else tensor.pin_memory()
            for tensor in (self.teacher_pixels, self.class_token, self.patch_tokens)
        )
        return TaughtBatch(
            self.pixels.pin_memory(), self.colours, teacher, token, patches, self.samples, self.replaced
        )


@dataclass(frozen=True)
class Taught:
    """Which rows of teacher features are of which image of a set.

    Attributes:
        features: the rows.
        order: their numbers, sorted by image.
        starts: where those of each image begin in `order`, and the end of the last one.
    """

    features: TeacherFeatures
    order: Int64[np.ndarray, " rows"]
    starts: Int64[np.ndarray, " images_1"]

    @classmethod
    def match(cls, features: TeacherFeatures, images: ImageSet) -> Taught:
        """Find the rows of every image.

        Raises:
            ImageError: names are ambiguous.
        """
        image_of = match_images(features, images)[features.image_of]
        order = np.argsort(image_of, kind="stable")
        starts = np.searchsorted(image_of[order], np.arange(len(images) + 1))
        return cls(features, order, starts.astype(np.int64))

    @property
    def counts(self) -> Int64[np.ndarray, " images"]:
        """How many rows each image has."""
        return np.diff(self.starts)

    def read(self, image: int, turn: int) -> Lesson:
        """Return a row of an image; turns go round all that it has."""
        start, count = int(self.starts[image]), int(self.counts[image])
        return self.features.read(int(self.order[start + turn % count]))


@dataclass(frozen=True)
class TaughtReading:
    """Views of images; every image once in each epoch, each time another view.

    Attributes:
        images: the set; with `taught`, every image of it has rows there.
        recipe: how views are drawn and coloured; a view is a large crop, coloured as a small one.
        seed: of everything random.
        teacher_size: side of what the teacher sees.
        views: how many views of an image there are; None: a new one each time.
        taught: what the teacher said of which views; None: it is still to be asked.
    """

    images: ImageSet
    recipe: CropRecipe
    seed: int
    teacher_size: int
    views: int | None = None
    taught: Taught | None = None

    def read(self, samples: Int64[np.ndarray, " b"]) -> TaughtBatch:
        """Return the views of some samples.

        Raises:
            ImageError: no image can be read any more.
        """
        count = len(self.images)
        chosen = sample_index(samples, count, seed=self.seed)
        pixels, colours, shown, replaced = [], [], [], []
        lessons: list[Lesson] = []
        for sample, index in zip(samples.tolist(), chosen.tolist(), strict=True):
            photo, image, bad = read_or_replace(self.images, index, seed=self.seed)
            replaced += bad
            if self.taught is not None:
                lessons.append(self.taught.read(image, sample // count))
                view = _view_of(lessons[-1], photo)
            else:
                view = self.draw(photo, image, sample)
                shown.append(cut_view(photo, view, self.teacher_size))
            pixels.append(cut_view(photo, view, self.recipe.global_size))
            in_colour = photo.shape[2] == 3
            colours.append(draw_view_colours(self.recipe, in_colour=in_colour, seed=self.seed, sample=sample))
        patches = [lesson.patch_tokens for lesson in lessons if lesson.patch_tokens is not None]
        return TaughtBatch(
            torch.from_numpy(np.stack(pixels)),
            torch.from_numpy(np.stack(colours)),
            torch.from_numpy(np.stack(shown)) if shown else None,
            torch.from_numpy(np.stack([lesson.class_token for lesson in lessons])) if lessons else None,
            torch.from_numpy(np.stack(patches)) if patches else None,
            torch.from_numpy(samples),
            replaced,
        )

    def draw(self, photo: UInt8[np.ndarray, "h w c"], image: int, sample: int) -> View:
        """Return the view of a sample; where views come again, it follows from the image and the epoch."""
        height, width = photo.shape[:2]
        key = [sample]
        if self.views is not None:
            key = [whole_number(self.images, image), sample // len(self.images) % self.views]
        return draw_view(width, height, self.recipe, seed=self.seed, key=key)


def _view_of(lesson: Lesson, photo: UInt8[np.ndarray, "h w c"]) -> View:
    """Return the box that the teacher saw, in whole pixels."""
    height, width = photo.shape[:2]
    left, top, right, bottom = (
        round(share * side) for share, side in zip(lesson.box, (width, height, width, height), strict=True)
    )
    left, top = min(left, width - 1), min(top, height - 1)
    return View(Box(left, top, max(right - left, 1), max(bottom - top, 1)), lesson.flip)


def taught_part(taught: Taught, images: ImageSet) -> Int64[np.ndarray, " n"]:
    """Return the numbers of the images that the teacher saw.

    Raises:
        ImageError: it saw none.
    """
    found = np.flatnonzero(taught.counts)
    if not len(found):
        raise ImageError(
            f"the teacher features are of other images: {images.name(0)} is not among them",
            hint="names have to be those of the images in data, or their ends after a slash",
        )
    return found
