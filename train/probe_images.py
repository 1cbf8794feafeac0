"""The images that a probe looks at: which ones, in which order, and their pixels, prepared once.

The choice follows from the seed and the names of the images alone, not from their order or where they lie.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from dinov2kit.contents import open_content
from dinov2kit.decoding import default_workers
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import load_picture
from dinov2kit.labelled_images import SPLIT_FOLDERS, LabelledImage, read_labelled
from dinov2kit.views import CenterCrop

from .image_sets import ImageSet, open_images
from .pixels import PixelRules, Pixels
from .probe import Probe

AS_PHOTOS = PixelRules()  # 3 channels of 8 bits

_MARGIN = 256 / 224  # shorter side over the central square, as DINOv2 is evaluated
_VIEW = 0.75  # side of each of two views over that of the square


class _Candidate(NamedTuple):
    """An image that may be chosen: its name, what it shows, and what reads it."""

    name: str
    label: str
    read: Callable[[CenterCrop], Pixels]


def labelled_probe(
    source: Path | ImageSet,
    *,
    size: int,
    unseen: ImageSet | None = None,
    rules: PixelRules = AS_PHOTOS,
    most: int = 2000,
    k: int = 20,
    seed: int = 0,
) -> Probe:
    """Prepare labelled images: some vote, the others are classified.

    Where the source has train and val, they are the two sides. Else, without `unseen`, half of each class is
    drawn for each side; of an odd number the bank has one more.

    Args:
        source: what `read_labelled` reads, a set of images, or what `open_images` opens as one with labels.
        unseen: labelled images that are classified by those of the source; None takes both from the source.
        size: side of the images, in pixels; the shorter side is 8/7 of it before the central square is cut.
        rules: of channels and values, for files.
        most: most images on each side, spread evenly over the classes.
        k: neighbours that vote; no more than a class has in the bank on average.
        seed: of the draw.

    Raises:
        ImageError: there are no such images, or none of a side can be read.
        ArgumentError: they have no labels, there are fewer than two classes, or none of them has two images.
    """
    if unseen is None:
        bank, queries, notes = _sides(source, rules, seed)
    else:
        bank, queries, notes = _of_labelled_set(source, rules), _of_labelled_set(unseen, rules), []
    bank, queries = (_spread(side, most, seed) for side in (bank, queries))
    known = {candidate.label for candidate in bank}
    strange = sorted({candidate.label for candidate in queries} - known)
    if strange:
        notes.append(f"no image of the bank shows {', '.join(strange[:5])}: images of it are not asked for")
        queries = [candidate for candidate in queries if candidate.label in known]
    if len(known) < 2 or not queries:
        raise ArgumentError(
            f"{len(known)} classes, {len(queries)} images to classify; wanted at least 2 classes of 2 images",
            hint="name images with labels: eval.knn=DIR, with a folder for each class",
        )
    view = CenterCrop(resize=round(size * _MARGIN), crop=size)
    shown_bank, bank = _read(bank, view, notes)
    shown_queries, queries = _read(queries, view, notes)
    numbers = {label: number for number, label in enumerate(sorted(known))}
    per_class = math.ceil(len(bank) / len({candidate.label for candidate in bank}))
    if k > per_class:
        notes.append(f"{per_class} neighbours vote, not {k}: a class has no more images in the bank")
    return Probe(
        bank=shown_bank,
        queries=shown_queries,
        bank_labels=np.array([numbers[candidate.label] for candidate in bank], np.int64),
        query_labels=np.array([numbers[candidate.label] for candidate in queries], np.int64),
        kind="labels",
        k=min(k, per_class),
        notes=tuple(notes),
    )


def views_probe(images: ImageSet, *, size: int, most: int = 2000) -> Probe:
    """Prepare two views of each image that training does not see: does the first find the second?

    The views are the upper left and the lower right corner of the central square, 3/4 of its side long; the
    second one is mirrored. The score is the share of first views whose nearest second view is their own.

    Args:
        images: what is held out.
        size: side of the views, in pixels.
        most: most images, the first of the set.

    Raises:
        ImageError: none of them can be read.
        ArgumentError: there are fewer than two.
    """
    held = _of_set(images, range(min(most, len(images))))
    if len(held) < 2:
        raise ArgumentError(
            f"{len(held)} held-out images to tell apart; wanted at least 2",
            hint="hold out more, eval.holdout=512, or name labelled images, eval.knn=DIR",
        )
    notes: list[str] = []
    side = math.ceil(size / _VIEW)
    squares, held = _read(held, CenterCrop(resize=round(side * _MARGIN), crop=side), notes)
    own = np.arange(len(held), dtype=np.int64)
    return Probe(
        bank=np.ascontiguousarray(squares[:, -size:, -size:][:, :, ::-1]),
        queries=np.ascontiguousarray(squares[:, :size, :size]),
        bank_labels=own,
        query_labels=own,
        kind="views",
        k=1,
        notes=tuple(notes),
    )


def fit_pixels(pixels: Pixels, view: CenterCrop) -> UInt8[np.ndarray, "side side channels"]:
    """Resize and crop an image that is in memory, of any number of channels, as `load_picture` does it."""
    if pixels.shape[2] == 3:
        return load_picture(pixels, view).pixels
    channels = [
        load_picture(np.repeat(one[:, :, None], 3, axis=2), view).pixels for one in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack([channel[:, :, 0] for channel in channels], axis=2)


def _sides(
    source: Path | ImageSet, rules: PixelRules, seed: int
) -> tuple[list[_Candidate], list[_Candidate], list[str]]:
    """Return who may vote, who may be classified, and what is to be said of that."""
    if isinstance(source, Path) and (source.is_dir() or source.suffix.lower() == ".csv"):
        base = source if source.is_dir() else source.parent
        train, val = ([_of_file(image, base, rules) for image in side] for side in _splits(source))
    else:
        train, val = _parted(_of_labelled_set(source, rules))
    if val:
        return train, val, []
    bank, queries = [], []
    for same in _by_class(train, seed).values():
        half = math.ceil(len(same) / 2)
        bank += same[:half]
        queries += same[half:]
    return bank, queries, ["half of each class votes, the other half is classified"]


def _splits(source: Path) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Read train and val; where only one of them is there, or neither, val is empty."""
    found = []
    for split in ("train", "val"):
        try:
            found.append(read_labelled(source, split))
        except ImageError:  # a table with one split
            continue
    if not found:
        read_labelled(source, "train")  # says why
    if len(found) == 2 and not {image.path for image in found[0]} & {image.path for image in found[1]}:
        return found[0], found[1]
    # of a folder with one split the other reading takes the name of the split for a class
    return max(found, key=lambda side: len({image.label for image in side})), []


def _of_file(image: LabelledImage, base: Path, rules: PixelRules) -> _Candidate:
    name = image.path.relative_to(base).as_posix() if image.path.is_relative_to(base) else str(image.path)
    return _Candidate(name, image.label, partial(_read_file, image.path, rules))


def _read_file(path: Path, rules: PixelRules, view: CenterCrop) -> Pixels:
    if rules == AS_PHOTOS:
        return load_picture(path, view).pixels  # decodes no more than the view needs
    try:
        with open_content(path) as file:
            return fit_pixels(rules.decode(file.read()), view)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error


def _of_labelled_set(source: Path | ImageSet, rules: PixelRules) -> list[_Candidate]:
    if isinstance(source, Path):
        images = open_images([source], channels=rules.channels, window=rules.window)
    else:
        images = source
    if images.labels is None:
        raise ArgumentError(
            f"the images of {source if isinstance(source, Path) else 'the set'} have no labels",
            hint="name images with labels: eval.knn=DIR, with a folder for each class",
        )
    return _of_set(images, range(len(images)))


def _parted(candidates: list[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
    """Return train and val of a set whose outermost folders are these; else all of it, and nothing."""
    heads = [candidate.name.partition("/")[0] for candidate in candidates]
    train, val = (
        [candidate for candidate, head in zip(candidates, heads, strict=True) if head in SPLIT_FOLDERS[split]]
        for split in ("train", "val")
    )
    return (train, val) if train and val and len(train) + len(val) == len(candidates) else (candidates, [])


def _of_set(images: ImageSet, index: Sequence[int]) -> list[_Candidate]:
    lock = threading.Lock()  # an archive is read by one thread at a time

    def read(i: int, view: CenterCrop) -> Pixels:
        with lock:
            pixels = images.read(i)
        return fit_pixels(pixels, view)

    names = [images.name(i) for i in index]
    start = os.path.commonprefix(names).rfind("/") + 1  # noqa: RUF071  (whole folders)
    labels = images.labels or [""] * len(images)
    return [
        _Candidate(name[start:], labels[i], partial(read, i)) for name, i in zip(names, index, strict=True)
    ]


def _by_class(candidates: Iterable[_Candidate], seed: int) -> dict[str, list[_Candidate]]:
    """Return the images of each class in drawn order, the classes in drawn order too."""
    classes: dict[str, list[_Candidate]] = defaultdict(list)
    for candidate in sorted(candidates, key=lambda candidate: _draw(candidate.name, seed)):
        classes[candidate.label].append(candidate)
    return {label: classes[label] for label in sorted(classes, key=lambda label: _draw(label, seed))}


def _spread(candidates: Sequence[_Candidate], most: int, seed: int) -> list[_Candidate]:
    """Return at most so many images, the first of each class, then the second of each, and so on."""
    ranked = [
        (place, number, candidate)
        for number, same in enumerate(_by_class(candidates, seed).values())
        for place, candidate in enumerate(same)
    ]
    return [candidate for _, _, candidate in sorted(ranked, key=lambda entry: entry[:2])[:most]]


def _draw(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode("utf-8", "surrogateescape"), digest_size=16).digest()


def _read(
    candidates: Sequence[_Candidate], view: CenterCrop, notes: list[str]
) -> tuple[UInt8[np.ndarray, "n h w c"], list[_Candidate]]:
    """Return the pixels of those that can be read, and who they are; what cannot be read is noted."""
    shown, kept, reasons = [], [], []
    with ThreadPoolExecutor(default_workers()) as threads:
        for candidate, pixels in zip(
            candidates, threads.map(partial(_attempt, view), candidates), strict=True
        ):
            if isinstance(pixels, ImageError):
                reasons.append(pixels)
            else:
                shown.append(pixels)
                kept.append(candidate)
    if not kept:
        raise ImageError(f"none of {len(candidates)} images to measure on can be read; {reasons[0].message}")
    if reasons:
        notes.append(f"{len(reasons)} images cannot be read and are left out; {reasons[0].message}")
    return np.stack(shown), kept


def _attempt(view: CenterCrop, candidate: _Candidate) -> Pixels | ImageError:
    try:
        return candidate.read(view)
    except ImageError as error:
        return error
