"""Files that belong together and are no duplicates: raw files, live photos, bursts, names of one file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from PIL.ExifTags import IFD, Base

from dinov2kit.formats import MAX_PIXELS, open_encoded, quiet

from .snapshot import Photo

RAW_SUFFIXES = frozenset({
    *(".3fr", ".arw", ".cr2", ".cr3", ".dcr", ".dng", ".erf", ".fff", ".iiq", ".kdc", ".mef", ".mos", ".mrw"),
    *(".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
})  # fmt: skip
MOVIE_SUFFIXES = frozenset({".mov", ".mp4"})
BURST_SECONDS = 2.0


@dataclass(frozen=True)
class Related:
    """A file that belongs to another and is left alone.

    Attributes:
        path: the file.
        kind: "raw", "live" (the movie of a live photo), "burst", or "hard link" (another name of one file).
        to: what it belongs to.
    """

    path: Path
    kind: str
    to: Path


@dataclass(frozen=True)
class Shot:
    """What the EXIF data of a file says of how it was made; empty where it says nothing.

    Attributes:
        camera: maker and model.
        subsecond: digits after the second of the exposure.
        entries: how many entries there are in all.
    """

    camera: str = ""
    subsecond: str = ""
    entries: int = 0


class Companions:
    """Reads what lies beside photos and inside their EXIF data, each file and folder once."""

    def __init__(self) -> None:
        self._shots: dict[bytes, Shot] = {}
        self._names: dict[Path, dict[str, list[str]]] = {}

    def shot(self, photo: Photo) -> Shot:
        """Return what the EXIF data of a photo says; of equal contents one is read."""
        if photo.digest not in self._shots:
            self._shots[photo.digest] = read_shot(photo.path)
        return self._shots[photo.digest]

    def beside(self, path: Path) -> tuple[Related, ...]:
        """Return the raw file and the movie with the name of a photo, in its folder."""
        if path.suffix.lower() in RAW_SUFFIXES:
            return ()
        found = []
        for name in self._folder(path.parent).get(path.stem, ()):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
            if suffix in RAW_SUFFIXES:
                found.append(Related(path.parent / name, "raw", path))
            elif suffix in MOVIE_SUFFIXES:
                found.append(Related(path.parent / name, "live", path))
        return tuple(found)

    def is_burst(self, one: Photo, other: Photo) -> bool:
        """Say whether two photos are shots of one camera within 2 s, and not the same shot twice.

        A copy carries the time of its original. Where the time is the same to the second, the digits after
        it decide; without these, two pictures of one size count as two shots.
        """
        if one.digest == other.digest or not (one.taken_at and other.taken_at):
            return False
        times = [datetime.fromisoformat(photo.taken_at) for photo in (one, other) if photo.taken_at]
        gap = abs((times[0] - times[1]).total_seconds())
        if gap > BURST_SECONDS:
            return False
        first, second = self.shot(one), self.shot(other)
        if first.camera != second.camera:
            return False
        if gap > 0:
            return True
        if first.subsecond and second.subsecond:
            return first.subsecond != second.subsecond
        return (one.width, one.height) == (other.width, other.height)

    def _folder(self, folder: Path) -> dict[str, list[str]]:
        """Return the raw files and movies of a folder by their names without suffix."""
        if folder not in self._names:
            names: dict[str, list[str]] = {}
            try:
                listed = sorted(path.name for path in folder.iterdir())
            except OSError:
                listed = []
            for name in listed:
                stem, suffix = os.path.splitext(name)  # noqa: PTH122
                if suffix.lower() in RAW_SUFFIXES | MOVIE_SUFFIXES:
                    names.setdefault(stem, []).append(name)
            self._names[folder] = names
        return self._names[folder]


def is_raw_of(one: Path, other: Path) -> bool:
    """Say whether one of two files is the raw file of the other."""
    raw = [path.suffix.lower() in RAW_SUFFIXES for path in (one, other)]
    return one.parent == other.parent and one.stem == other.stem and raw[0] != raw[1]


def read_shot(path: Path) -> Shot:
    """Return what the EXIF data of a file says; empty where it has none or cannot be read."""
    try:
        with quiet, open_encoded(path, max_pixels=MAX_PIXELS) as image:
            exif = image.getexif()
            details = exif.get_ifd(IFD.Exif)
    except Exception:  # codecs raise anything, and a good photo may carry any rubbish here
        return Shot()
    camera = " ".join(str(exif.get(tag, "")).strip("\0 ") for tag in (Base.Make, Base.Model)).strip()
    subsecond = str(details.get(Base.SubsecTimeOriginal, "")).strip("\0 ").rstrip("0")
    return Shot(camera, subsecond, len(exif) + len(details))
