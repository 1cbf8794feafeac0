"""Folders where removed copies wait: hidden, on the disk where they were, their tree preserved."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dinov2kit.errors import ImageError

from .layout import move_durably

FOLDER = ".dinokit-quarantine"  # hidden: no walk of ours enters it


def quarantine_place(path: Path, run: str, *, roots: Sequence[Path], named: Path | None) -> Path:
    """Return where a file goes.

    Args:
        path: absolute path of the file.
        run: each has its own folder.
        roots: the indexed folders; the innermost that holds the file gets the quarantine, so that a rename is
            enough. A file outside of all of them goes into a quarantine beside it.
        named: a folder of the user to take instead; the whole path of the file is kept below it.
    """
    if named is not None:
        return named.absolute() / FOLDER / run / path.relative_to(path.anchor)
    holding = [root for root in roots if root in path.parents]
    base = max(holding, key=lambda root: len(root.parts), default=path.parent)
    return base / FOLDER / run / path.relative_to(base)


def check_disk(place: Path, device: int) -> None:
    """Refuse a place that a rename cannot reach from a device.

    Raises:
        ImageError: its nearest folder that exists lies on another device.
    """
    folder = next(folder for folder in place.parents if folder.exists())
    if folder.stat().st_dev != device:
        raise _elsewhere(place)


def run_folder(place: Path) -> Path:
    """Return the folder of the run that a place in a quarantine belongs to."""
    return next(folder for folder in place.parents if folder.parent.name == FOLDER)


def move_file(source: Path, target: Path) -> None:
    """Rename a file to a place where nothing is.

    Raises:
        ImageError: something is there, it lies on another disk, or the system refuses.
    """
    if os.path.lexists(target):
        raise ImageError(f"{target} exists")
    try:
        move_durably(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise _elsewhere(target) from error
        raise ImageError(f"it cannot be moved: {error.strerror or error}") from error


def clear_away(place: Path) -> None:
    """Remove the folders of a quarantine above a file that has left it, as far as they are empty."""
    with suppress(OSError):
        for folder in place.parents:
            if FOLDER not in folder.parts:
                return
            folder.rmdir()


def _elsewhere(place: Path) -> ImageError:
    return ImageError(f"{place.parent} is on another disk", hint="name a folder on the disk of the file")
