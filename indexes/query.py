"""What can be asked: images, folders, items, descriptors, each with its weight; and what stands for them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float16, Float32

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import Source, list_images, load_picture
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.views import Region

from .contents import read_stat
from .expansion import expand
from .records import FileStat
from .snapshot import Snapshot

Query = Source | int
"""An image as `dinov2kit.images.Source` says, a folder of images, an item id, the text "id:123", or a
descriptor: numbers along one axis, as the model of the index makes them."""

Regions = Region | Sequence[Region | None] | None
"""The part of each query image that is asked for: the same for all, or one for each query, None the whole."""

NOISE = 1e-3  # of the sum of the weights; what fp16 leaves when a photo is subtracted from itself is below it

_ID = re.compile(r"id:(\d+)")


@dataclass(frozen=True)
class Part:
    """One image, item or descriptor that a question consists of.

    Attributes:
        descriptor: L2-normalised.
        weight: how much it counts; below 0 it is asked to be unlike it.
        source: the image; None for a bare descriptor.
        id: the item that it is; None where the index has none.
        region: the part of the image that is asked for; None: the whole.
    """

    descriptor: Float32[np.ndarray, " dim"]
    weight: float
    source: Source | None
    id: int | None
    region: Region | None


@dataclass(frozen=True)
class Question:
    """Some queries made ready.

    Attributes:
        descriptor: what they are together: the weighted sum of their descriptors, L2-normalised.
        parts: what it consists of, one for each image.
    """

    descriptor: Float32[np.ndarray, " dim"]
    parts: tuple[Part, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The items that are asked for, as far as the index has them, each once."""
        return tuple(dict.fromkeys(part.id for part in self.parts if part.id is not None and part.weight > 0))

    @property
    def unwanted_ids(self) -> tuple[int, ...]:
        """The items that the answer shall be unlike, as far as the index has them, each once."""
        return tuple(dict.fromkeys(part.id for part in self.parts if part.id is not None and part.weight < 0))

    @property
    def sources(self) -> tuple[Source, ...]:
        """The images that are asked for."""
        return tuple(part.source for part in self.parts if part.source is not None and part.weight > 0)

    @property
    def descriptors(self) -> Float32[np.ndarray, "m dim"]:
        """The descriptor of each part."""
        return np.stack([part.descriptor for part in self.parts])

    def expanded(
        self, rows: Float16[np.ndarray, "n dim"], scores: Float32[np.ndarray, " n"], alpha: float
    ) -> Question:
        """Return the question with its best answers added to its descriptor; see `expansion.expand`."""
        return replace(self, descriptor=expand(self.descriptor, rows, scores, alpha=alpha))


def ask(
    snapshot: Snapshot,
    queries: Sequence[Query],
    load_encoder: Callable[[], GlobalEncoder],
    *,
    weights: Sequence[float] | None = None,
    region: Regions = None,
) -> Question:
    """Return the question that some queries are together: the weighted sum of their descriptors.

    A file that the index has is not opened while it is as it was; without any other no model is loaded.

    Args:
        snapshot: the index.
        queries: at least one.
        load_encoder: called when an image has to be described.
        weights: how much each query counts; below 0 it is subtracted. A folder gives its weight to each of
            its images. Without them all images count the same.
        region: the part of each image that is asked for.

    Raises:
        ArgumentError: there is no query, no such item, a weight is 0 or not finite, the queries cancel each
            other out, a region of something that is no image, or a descriptor that the index cannot have.
        ImageError: an image cannot be read.
    """
    if not queries:
        raise ArgumentError("there is no query", hint="name an image, a folder, or id:NUMBER")
    asked = list(_flat(queries, _checked_weights(weights, len(queries)), _regions(region, len(queries))))
    parts = tuple(_ready(snapshot, load_encoder, *one) for one in asked)
    return Question(combine(parts), parts)


def combine(parts: Sequence[Part]) -> Float32[np.ndarray, " dim"]:
    """Return the weighted sum of the descriptors of some parts, L2-normalised.

    Raises:
        ArgumentError: they cancel each other out.
    """
    weights = np.array([part.weight for part in parts], np.float64)
    total: np.ndarray = weights @ np.stack([part.descriptor for part in parts]).astype(np.float64)
    length = float(np.linalg.norm(total))
    if length < NOISE * np.abs(weights).sum():
        raise ArgumentError("the descriptors of these queries cancel each other out", hint="ask one by one")
    return (total / length).astype(np.float32)


def read_vectors(path: Path) -> list[Query]:
    """Read descriptors to ask for from a .npy file: one, or a matrix with one in each row.

    Raises:
        ArgumentError: it is no such file.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no .npy file"
        raise ArgumentError(f"cannot read descriptors from {path}: {reason}") from error
    if not isinstance(rows, np.ndarray):
        raise ArgumentError(f"{path} holds several arrays", hint="write one of them to a .npy file")
    if rows.ndim not in (1, 2) or not rows.size or not np.issubdtype(rows.dtype, np.floating):
        held = f"{path} holds {rows.dtype} {rows.shape}"
        raise ArgumentError(f"{held}; wanted floating-point numbers, one descriptor or one in each row")
    return list(np.atleast_2d(rows))


def _checked_weights(weights: Sequence[float] | None, count: int) -> list[float]:
    checked = [1.0] * count if weights is None else [float(weight) for weight in weights]
    if len(checked) != count:
        raise ArgumentError(f"there are {len(checked)} weights for {count} queries")
    for weight in checked:
        if not math.isfinite(weight) or weight == 0:
            raise ArgumentError(f"a weight is {weight:g}; wanted a finite number that is not 0")
    return checked


def _regions(region: Regions, count: int) -> list[Region | None]:
    regions = [region] * count if region is None or isinstance(region, Region) else list(region)
    if len(regions) != count:
        raise ArgumentError(
            f"there are {len(regions)} regions for {count} queries", hint="give one, or one each"
        )
    return regions


def _flat(
    queries: Sequence[Query], weights: list[float], regions: list[Region | None]
) -> Iterator[tuple[Query, float, Region | None]]:
    """Replace folders by their images, and "id:123" by 123."""
    for query, weight, region in zip(queries, weights, regions, strict=True):
        if isinstance(query, str) and (found := _ID.fullmatch(query)):
            yield int(found[1]), weight, region
        elif isinstance(query, (str, Path)):
            for path in list_images([Path(query)]):
                yield path, weight, region
        else:
            yield query, weight, region


def _ready(
    snapshot: Snapshot,
    load_encoder: Callable[[], GlobalEncoder],
    query: Query,
    weight: float,
    region: Region | None,
) -> Part:
    """Return a query with its descriptor: the stored one where that is still right."""
    if isinstance(query, np.ndarray) and query.ndim == 1 and np.issubdtype(query.dtype, np.floating):
        if region is not None:
            raise ArgumentError("a region needs an image, not a descriptor")
        return Part(_checked_vector(query, snapshot.dim), weight, None, None, None)
    known: int | None
    source: Source
    if isinstance(query, int):
        known, source = query, snapshot.photos(np.array([query]))[0].path
    else:
        known, source = _find(snapshot, query), query
    trusted = region is None and (isinstance(query, int) or _as_it_was(snapshot, known))
    if known is not None and trusted:
        row = snapshot.descriptors(np.array([known]))[0].astype(np.float32)
        return Part(row / np.linalg.norm(row), weight, source, known, None)
    return Part(_describe(load_encoder(), source, region), weight, source, known, region)


def _checked_vector(vector: Float[np.ndarray, " n"], dim: int) -> Float32[np.ndarray, " dim"]:
    if len(vector) != dim:
        raise ArgumentError(
            f"the descriptor has {len(vector)} numbers, the index {dim} per photo",
            hint="descriptors have to come from the model of the index",
        )
    row = vector.astype(np.float32)
    length = float(np.linalg.norm(row))
    if not (math.isfinite(length) and length > 0):
        raise ArgumentError("the descriptor is not finite, or zero")
    return row / np.float32(length)


def _find(snapshot: Snapshot, query: Query) -> int | None:
    """Return the item of a file; by the path as it was given, then with links followed."""
    if not isinstance(query, Path):
        return None
    known = snapshot.find(query)
    return snapshot.find(query.resolve()) if known is None else known


def _as_it_was(snapshot: Snapshot, item: int | None) -> bool:
    """Say whether the file of an item still looks as the index saw it."""
    if item is None:
        return False
    photo = snapshot.photos(np.array([item]))[0]
    stat = read_stat(photo.path)
    return stat is not None and stat == FileStat(photo.size, photo.mtime_ns, stat.inode)


def _describe(encoder: GlobalEncoder, source: Source, region: Region | None) -> Float32[np.ndarray, " dim"]:
    picture = load_picture(source, encoder.view, region=region)
    row: Float32[np.ndarray, " dim"] = encoder.embed(picture.pixels[None])[0]
    if not np.isfinite(row).all():
        named = source if isinstance(source, (str, Path)) else "the image given"
        raise ImageError(f"{named}: the model gave no finite descriptor")
    return row
