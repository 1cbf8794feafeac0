"""What was found, as pictures: a contact sheet and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from dinov2kit.draw import contact_sheet, write_image
from dinov2kit.errors import ImageError
from dinov2kit.files import written_whole
from dinov2kit.images import Source, load_picture
from dinov2kit.page import Tile, results_page
from dinov2kit.views import KeepAspect

from .index import Hit

SIDE = 480  # pixels of the longer side of a thumbnail
_NOT_THERE = np.full((3, 4, 3), 208, np.uint8)  # a grey tile

Thumbnail = UInt8[np.ndarray, "height width 3"]


def thumbnail(source: Source) -> Thumbnail:
    """Read an image at a size that is good to look at; what cannot be read becomes grey."""
    try:
        return load_picture(source, KeepAspect(size=SIDE, patch_size=1)).pixels
    except ImageError:
        return _NOT_THERE.repeat(60, axis=0).repeat(60, axis=1)


def write_montage(path: Path, queries: Sequence[Source], hits: Sequence[Hit], *, columns: int = 4) -> None:
    """Write a contact sheet: the queries framed, then the hits with their scores.

    Args:
        path: .jpg, .png or .webp.
        queries: images that were asked about.
        hits: what was found.
        columns: pictures per row.

    Raises:
        ArgumentError: unknown suffix, or the folder cannot be written.
    """
    images = [thumbnail(query) for query in queries] + [thumbnail(hit.path) for hit in hits]
    captions = [f"query\n{query_name(query)}" for query in queries]
    captions += [f"{hit.score:.3f}\n{hit.path.name}" for hit in hits]
    write_image(path, contact_sheet(images, captions, columns=columns, highlight=len(queries)))


def write_page(path: Path, queries: Sequence[Source], hits: Sequence[Hit], *, title: str, note: str) -> None:
    """Write a page of the queries and hits: one HTML file with the thumbnails inside.

    Args:
        path: the file.
        queries: images that were asked about.
        hits: what was found.
        title: heading.
        note: one sentence below it.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    asked = [Tile(thumbnail(query), query_name(query)) for query in queries]
    found = [Tile(thumbnail(hit.path), hit.path.name, hit.score, _detail(hit)) for hit in hits]
    with written_whole(path) as temporary:
        temporary.write_text(results_page(title, asked, found, note=note), "utf-8")


def query_name(query: Source) -> str:
    """Return what to call a query: its file name, if it has one."""
    return Path(query).name if isinstance(query, (str, Path)) else "image"


def _detail(hit: Hit) -> str:
    facts = [
        f"{hit.width} x {hit.height}",
        *([hit.taken_at[:10]] if hit.taken_at else []),
        str(hit.path.parent),
    ]
    return ("gone; " if hit.gone else "") + ", ".join(facts)
