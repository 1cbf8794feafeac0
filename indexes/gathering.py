"""Hits gathered in a folder: copies of their photos, or links to them, numbered in their order."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dinov2kit.contents import find_place, open_content
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.files import written_whole

from .index import Hit

_LONGEST = 200  # bytes of a name that are kept; file systems take 255


@dataclass(frozen=True)
class Gathered:
    """What `gather` did.

    Attributes:
        written: the photo and the new file of each hit.
        failed: the photo and the reason of each hit that has no new file.
    """

    written: tuple[tuple[Path, Path], ...]
    failed: tuple[tuple[Path, str], ...]

    def to_json(self) -> dict[str, object]:
        """Return it as `json.dumps` takes it."""
        return {
            "written": [{"path": str(path), "to": str(target)} for path, target in self.written],
            "failed": [{"path": str(path), "reason": reason} for path, reason in self.failed],
        }


def check_empty(folder: Path) -> None:
    """Refuse, before any work, a folder that `gather` could not fill.

    Raises:
        ArgumentError: it is a file, holds something already, or there is no folder above it.
    """
    if folder.is_dir():
        if any(folder.iterdir()):
            raise ArgumentError(f"{folder} holds files already", hint="name a new folder, or empty it")
    elif folder.exists():
        raise ArgumentError(f"{folder} is a file", hint="name a folder")
    elif not folder.absolute().parent.is_dir():
        raise ArgumentError(f"cannot write {folder}: there is no folder {folder.parent}")


def gather(hits: Sequence[Hit], folder: Path, *, link: bool = False) -> Gathered:
    """Copy the photos of some hits into a folder, as 01-NAME, 02-NAME and so on; nothing is overwritten.

    A photo that lies in an archive is copied out of it, a frame of a video as a TIFF file.

    Args:
        hits: what was found, best first.
        folder: where to; it is made if need be.
        link: make symbolic links to the photos instead of copies.

    Raises:
        ArgumentError: as `check_empty`, or the folder cannot be written. A photo that is gone or cannot be
            read is listed.
    """
    check_empty(folder)
    folder.mkdir(exist_ok=True)
    digits = max(2, len(str(len(hits))))
    written: list[tuple[Path, Path]] = []
    failed: list[tuple[Path, str]] = []
    for rank, hit in enumerate(hits, 1):
        target = folder / f"{rank:0{digits}}-{_name(hit.path)}"
        try:
            if link:
                _link(hit.path, target)
            else:
                _copy(hit.path, target)
        except (ImageError, FileNotFoundError, PermissionError) as error:
            reason = error.message if isinstance(error, ImageError) else error.strerror
            failed.append((hit.path, reason or "it cannot be read"))
        else:
            written.append((hit.path, target))
    return Gathered(tuple(written), tuple(failed))


def _name(path: Path) -> str:
    """Return what to call the copy of a photo: the end of its name, if that is too long."""
    place = find_place(path)
    name = path.name
    if place is not None and place.time is not None:
        name = f"{place.container.stem}-{place.name}.tif"
    return os.fsdecode(os.fsencode(name)[-_LONGEST:])


def _copy(path: Path, target: Path) -> None:
    with open_content(path) as content, written_whole(target) as temporary:
        with temporary.open("wb") as copy:
            shutil.copyfileobj(content, copy)
        if path.is_file():
            shutil.copystat(path, temporary)


def _link(path: Path, target: Path) -> None:
    if find_place(path) is not None:
        raise ImageError("it lies in an archive or a video; only a copy can be made")
    if not path.exists():
        raise ImageError("the file is gone")
    try:
        target.symlink_to(path)
    except OSError as error:
        raise ArgumentError(f"cannot write {target}: {error.strerror or error}") from error
