"""The photos of a training run: which are learned from, which are held out, and in which order they come."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import load_picture
from dinov2kit.shapes import Image
from dinov2kit.views import CenterCrop

from .synthetic_pairs import keyed

_DIGESTED = 2**18  # bytes of a file that its digest reads: enough to tell photos apart, quick on large ones
_ORDER, _MOST_UNREADABLE = 1, 0.5  # a key of random numbers; a share of the photos


@dataclass(frozen=True)
class PhotoSplit:
    """Photos for training and photos held out; equal contents are on the same side.

    Attributes:
        training: files, in the order given.
        held_out: files that training never sees, one for each content, in the order of their digests.
        digest: of both lists of contents; the same where the files were moved or renamed.
    """

    training: tuple[Path, ...]
    held_out: tuple[Path, ...]
    digest: str


def content_digest(path: Path) -> str:
    """Return a digest of the length and the first 256 KiB of a file.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.blake2b(file.read(_DIGESTED), digest_size=16)
        digest.update(str(path.stat().st_size).encode())
    except OSError as error:
        raise ImageError(f"{path}: it cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def split_photos(paths: Sequence[Path], share: float, *, never: Collection[str] = ()) -> PhotoSplit:
    """Hold out the photos whose digests come first: a random choice that depends on contents alone.

    Args:
        paths: the photos.
        share: of the different contents to hold out, more than 0; at least one is.
        never: digests of photos to leave out altogether, for instance because others measure on them.

    Raises:
        ArgumentError: fewer than two different photos are left.
        ImageError: a file cannot be read.
    """
    digests = {path: content_digest(path) for path in paths}
    contents = sorted(set(digests.values()) - set(never))
    if len(contents) < 2:
        raise ArgumentError(
            f"{len(contents)} different photos to train on; wanted at least 2, one of them to hold out",
            hint="name a folder with more photos: images=photos/",
        )
    held = contents[: min(len(contents) - 1, max(1, math.ceil(share * len(contents))))]
    learned = set(contents[len(held) :])
    kept = [path for path in paths if digests[path] in learned]
    one_each = {digests[path]: path for path in reversed(paths)}
    lists = "\n".join([*held, "-", *(digests[path] for path in kept)])
    return PhotoSplit(
        training=tuple(kept),
        held_out=tuple(one_each[digest] for digest in held),
        digest=hashlib.sha256(lists.encode()).hexdigest(),
    )


@dataclass
class PhotoStream:
    """Photos in an order that follows from the seed and the number of the draw; each once in every round.

    Attributes:
        paths: the photos.
        side: side of the central square they are read as, in pixels.
        seed: of the order.
        unreadable: indexes of photos that could not be read; the next one stands in for each.
    """

    paths: tuple[Path, ...]
    side: int
    seed: int
    unreadable: set[int] = field(default_factory=set)
    _round: tuple[int, np.ndarray] = field(default=(-1, np.empty(0, np.int64)), init=False)

    def index(self, draw: int) -> int:
        """Return which photo the draw is."""
        number, place = divmod(draw, len(self.paths))
        if self._round[0] != number:
            self._round = (number, keyed(self.seed, _ORDER, number).permutation(len(self.paths)))
        return int(self._round[1][place])

    def read(self, index: int) -> tuple[int, Image]:
        """Return a photo, or the next one that can be read, and its index.

        Raises:
            ImageError: more than half of the photos cannot be read.
        """
        view = CenterCrop(resize=self.side, crop=self.side)
        for step in range(len(self.paths)):
            chosen = (index + step) % len(self.paths)
            if chosen in self.unreadable:
                continue
            try:
                return chosen, load_picture(self.paths[chosen], view).pixels
            except ImageError as error:
                self.unreadable.add(chosen)
                if len(self.unreadable) > _MOST_UNREADABLE * len(self.paths):
                    raise ImageError(
                        f"{len(self.unreadable)} of {len(self.paths)} photos cannot be read; the last: "
                        f"{error.message}",
                        hint=error.hint,
                    ) from error
        raise ImageError(f"none of {len(self.paths)} photos can be read")
