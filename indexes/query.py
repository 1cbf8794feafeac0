"""What can be asked: an image, a folder, an item, or several; and the descriptor that stands for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import Source, list_images, load_picture
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.views import Region

from .contents import read_stat
from .records import FileStat
from .snapshot import Snapshot

Query = Source | int
"""An image as `dinov2kit.images.Source` says, a folder of images, an item id, or the text "id:123"."""

_ID = re.compile(r"id:(\d+)")


@dataclass(frozen=True)
class Question:
    """A query made ready.

    Attributes:
        descriptor: L2-normalised.
        ids: the items that the query consists of, as far as the index has them.
        sources: the images that it consists of.
    """

    descriptor: Float32[np.ndarray, " dim"]
    ids: tuple[int, ...]
    sources: tuple[Source, ...]


def ask(
    snapshot: Snapshot,
    queries: Sequence[Query],
    load_encoder: Callable[[], GlobalEncoder],
    *,
    region: Region | None = None,
) -> Question:
    """Return the question that some queries are together: the mean of their descriptors.

    A file that the index has is not opened while it is as it was; without any other no model is loaded.

    Args:
        snapshot: the index.
        queries: at least one.
        load_encoder: called when an image has to be described.
        region: the part of each image that is asked for.

    Raises:
        ArgumentError: there is no query, no such item, or a region of something that is no image.
        ImageError: an image cannot be read.
    """
    if not queries:
        raise ArgumentError("there is no query", hint="name an image, a folder, or id:NUMBER")
    rows: list[np.ndarray] = []
    ids: list[int] = []
    sources: list[Source] = []
    for query in _flat(queries):
        if isinstance(query, int):
            if region is not None:
                raise ArgumentError("a region needs an image, not an id", hint="name the file instead")
            known: int | None = query
            source: Source = snapshot.photos(np.array([query]))[0].path
        else:
            known, source = _find(snapshot, query), query
        trusted = isinstance(query, int) or (region is None and _as_it_was(snapshot, known))
        if known is not None and trusted:
            rows.append(snapshot.descriptors(np.array([known]))[0].astype(np.float32))
        else:
            rows.append(_describe(load_encoder(), source, region))
        ids += [known] if known is not None else []
        sources.append(source)
    mean = np.mean(np.stack(rows), axis=0)
    length = float(np.linalg.norm(mean))
    if length < 1e-6:
        raise ArgumentError("the descriptors of these queries cancel each other out", hint="ask one by one")
    return Question((mean / length).astype(np.float32), tuple(dict.fromkeys(ids)), tuple(sources))


def _flat(queries: Sequence[Query]) -> list[Query]:
    """Replace folders by their images, and "id:123" by 123."""
    flat: list[Query] = []
    for query in queries:
        if isinstance(query, str) and (found := _ID.fullmatch(query)):
            flat.append(int(found[1]))
        elif isinstance(query, (str, Path)):
            flat += list_images([Path(query)])
        else:
            flat.append(query)
    return flat


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
