"""A page of groups of copies, to look at before anything is removed: the keeper framed, then the copies."""

from __future__ import annotations

from pathlib import Path

from dinov2kit.files import written_whole
from dinov2kit.page import Section, Tile, sections_page

from .copy_groups import CopyGroup, Duplicates, FoundCopy
from .gallery import thumbnail
from .snapshot import Photo

SHOWN_GROUPS, SHOWN_COPIES = 200, 11


def write_duplicates_page(path: Path, found: Duplicates, *, groups: int = SHOWN_GROUPS) -> None:
    """Write a page of the groups: one HTML file with the thumbnails inside.

    Args:
        path: the file.
        found: what is shown.
        groups: how many are shown at most, those that free most; the page says how many there are.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    shown = found.groups[:groups]
    freed = shown_bytes(found.reclaimable)
    note = f"{found.copies:,} copies in {len(found.groups):,} groups; {freed} can be freed."
    if len(shown) < len(found.groups):
        note += f" Shown are the {len(shown):,} groups that free most."
    note += f" {found.photos:,} photos of {found.index}, {found.model}. The framed photo stays."
    page = sections_page("Copies", [_section(group) for group in shown], note=note)
    with written_whole(path) as temporary:
        temporary.write_text(page, "utf-8")


def shown_bytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e3:,.0f} kB"


def _section(group: CopyGroup) -> Section:
    lowest = "same content" if group.min_score is None else f"lowest score {group.min_score:.3f}"
    heading = (
        f"Group {group.number} · frees {shown_bytes(group.reclaimable)} · {lowest} · kept: {group.reason}"
    )
    tiles = [
        Tile(thumbnail(group.keeper.path), group.keeper.path.name, None, _facts(group.keeper), framed=True)
    ]
    tiles += [_copy_tile(copy) for copy in group.copies[:SHOWN_COPIES]]
    if len(group.copies) > SHOWN_COPIES:
        heading += f" · {len(group.copies) - SHOWN_COPIES:,} more copies"
    if group.related:
        heading += " · left alone: " + ", ".join(
            f"{entry.path.name} ({entry.kind})" for entry in group.related
        )
    return Section(heading, tiles=tiles)


def _copy_tile(copy: FoundCopy) -> Tile:
    return Tile(
        thumbnail(copy.photo.path), copy.photo.path.name, copy.score, f"{copy.check}; {_facts(copy.photo)}"
    )


def _facts(photo: Photo) -> str:
    return f"{photo.width} x {photo.height}, {shown_bytes(photo.size)}, {photo.path.parent}"
