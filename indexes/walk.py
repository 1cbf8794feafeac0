"""Which images lie below a folder, in archives and videos too: names and stats, no content is read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dinov2kit.archives import COMPRESSED_SUFFIXES, TAR_SUFFIX, compressed_suffix
from dinov2kit.contents import CONTAINER_SUFFIXES, look_inside
from dinov2kit.images import HEIC_SUFFIXES, IMAGE_SUFFIXES
from dinov2kit.videos import VIDEO_SUFFIXES, check_every, frame_time

from .records import FileStat

SKIPPED_FOLDERS = ("node_modules", "@eaDir", ".*")  # thumbnails and bins of photo stations begin with a dot


@dataclass(frozen=True)
class WalkRules:
    """What a walk takes and leaves.

    Attributes:
        include: globs over the path below the folder, or the file name; if given, a file must match one.
        exclude: globs; a file or folder that matches one is left out.
        follow_symlinks: enter folders behind symbolic links, each once; links to files are always followed.
        one_file_system: do not enter folders on other devices.
        min_size: smaller files are left out, in bytes; empty ones never, they are damaged.
        tars: enter the tar archives that are met; one that is walked itself is entered anyway.
        every: take the frames of videos so many seconds apart; None enters no video. For the globs a frame is
            its video.

    Raises:
        ArgumentError: `every` is no such time.
        DependencyError: there are frames to take, and the package av is missing.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_symlinks: bool = False
    one_file_system: bool = False
    min_size: int = 0
    tars: bool = False
    every: float | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            check_every(self.every)

    def takes(self, relpath: bytes) -> bool:
        """Say whether the globs take a file, by its path below the folder."""
        path = os.fsdecode(relpath)
        video, _, name = path.rpartition("/")
        path = video if video and frame_time(name) is not None else path
        parts = path.split("/")
        parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
        return all(self.enters(parent) for parent in parents) and self.takes_file(path)

    def takes_file(self, path: str) -> bool:
        """Say whether the globs take a file whose folders are entered, by its path below the root."""
        return not path.rpartition("/")[2].startswith(".") and self.selects(path)

    def selects(self, path: str) -> bool:
        """Say whether the globs take a file, hidden or not, by its path below the root."""
        return not self._excluded(path) and (not self.include or _matches(path, self.include))

    def enters(self, relpath: str) -> bool:
        """Say whether the walk goes into a folder, by its path below the root."""
        return not (_matches(relpath.rpartition("/")[2], SKIPPED_FOLDERS) or self._excluded(relpath))

    def _excluded(self, path: str) -> bool:
        return _matches(path, self.exclude)


@dataclass
class Walk:
    """What a walk found; filled while `images` is consumed.

    Attributes:
        folder: where it begins: a folder, an archive or a video.
        rules: what it takes.
        unsupported: how many files of each suffix are no images that can be read here.
        errors: (path, reason) of folders and files that could not be looked at.
        damaged: (path, reason) of archives and videos that may hold more than was found.
        closed: archives and videos that were not entered, or not to their end, by path below the folder.
        videos: those that were entered, by path below the folder.
    """

    folder: Path
    rules: WalkRules = field(default_factory=WalkRules)
    unsupported: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[Path, str]] = field(default_factory=list)
    damaged: list[tuple[Path, str]] = field(default_factory=list)
    closed: set[str] = field(default_factory=set)
    videos: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._readable = IMAGE_SUFFIXES if find_spec("pillow_heif") else IMAGE_SUFFIXES - HEIC_SUFFIXES

    def images(self) -> Iterator[tuple[bytes, FileStat]]:
        """Yield the images, by path below the folder, with their stats, in the order of their names.

        Members of an archive come in the order in which they lie there, frames in that of their times.
        """
        try:
            top = self.folder.stat()
            if is_container(self.folder):
                yield from self.inside("", self.folder)
                return
        except OSError as error:
            self.errors.append((self.folder, error.strerror or str(error)))
            return
        yield from self._below("", top, top.st_dev, set())

    def reads(self, name: str, where: str = "") -> bool:
        """Say whether a file is an image by its name; if not, count it, and `where` it is."""
        suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122
        if suffix in self._readable:
            return True
        self.unsupported[(compressed_suffix(name) or suffix or "(none)") + where] += 1
        return False

    def may_hold(self, relpath: bytes) -> bool:
        """Say whether a photo may still lie where it was, in an archive or video that was not entered."""
        if not self.closed:
            return False
        parts = os.fsdecode(relpath).split("/")
        return any("/".join(parts[:count]) in self.closed for count in range(len(parts)))

    def inside(self, relative: str, container: Path) -> Iterator[tuple[bytes, FileStat]]:
        """Yield the images in an archive or a video, if the rules say so, by path below the folder.

        Args:
            relative: the path of the container below the folder; empty when it is walked itself.
            container: the file.

        Raises:
            OSError: it cannot be read.
        """
        suffix = container.suffix.lower()
        entered = (self.rules.tars or not relative) if suffix == TAR_SUFFIX else self.rules.every is not None
        if not entered:
            self.unsupported[suffix] += 1
            self.closed.add(relative)
            return
        if suffix != TAR_SUFFIX:
            self.videos.add(relative)
        found = look_inside(container, every=self.rules.every or 1.0)
        if found.damage is not None:
            self.damaged.append((container, found.damage))
            self.closed.add(relative)
        if found.left_out:
            self.unsupported["(unsafe name or sparse) in a tar"] += found.left_out
        takes = self._takes_member(len(relative) + 1 if relative else 0) if suffix == TAR_SUFFIX else None
        for name, (size, mtime_ns, place) in found.entries:
            path = f"{relative}/{os.fsdecode(name)}" if relative else os.fsdecode(name)
            if takes is None or takes(path, size):
                yield os.fsencode(path), FileStat(size, mtime_ns, place)

    def _takes_member(self, start: int) -> Callable[[str, int], bool]:
        """Return what says whether a member counts, by path (its name begins at `start`) and size."""
        enters = cache(self.rules.enters)

        def takes(path: str, size: int) -> bool:
            cuts = (at for at in range(start, len(path)) if path[at] == "/")
            if not (all(enters(path[:at]) for at in cuts) and self.rules.takes_file(path)):
                return False
            return self.reads(path, " in a tar") and not 0 < size < self.rules.min_size

        return takes

    def _below(
        self, relative: str, here: os.stat_result, device: int, seen: set[tuple[int, int]]
    ) -> Iterator[tuple[bytes, FileStat]]:
        if (here.st_dev, here.st_ino) in seen:  # a link that leads back, or a second way to the same folder
            return
        seen.add((here.st_dev, here.st_ino))
        place = self.folder / relative if relative else self.folder
        try:
            with os.scandir(place) as entries:
                listed = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            self.errors.append((place, error.strerror or str(error)))
            return
        for entry in listed:
            path = f"{relative}/{entry.name}" if relative else entry.name
            try:
                yield from self._entry(entry, path, device, seen)
            except FileNotFoundError:  # gone since it was listed, or a link to nowhere
                continue
            except OSError as error:
                self.errors.append((Path(entry.path), error.strerror or str(error)))

    def _entry(
        self, entry: os.DirEntry[str], path: str, device: int, seen: set[tuple[int, int]]
    ) -> Iterator[tuple[bytes, FileStat]]:
        if entry.is_dir(follow_symlinks=self.rules.follow_symlinks):
            if self.rules.enters(path):
                here = entry.stat()
                if here.st_dev == device or not self.rules.one_file_system:
                    yield from self._below(path, here, device, seen)
            return
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path per file doubles the time
        is_tar = suffix == TAR_SUFFIX and self.rules.enters(path)
        if not (is_tar or self.rules.takes_file(path)) or entry.is_dir():
            return
        if (is_tar or suffix in VIDEO_SUFFIXES) and entry.is_file():
            yield from self.inside(path, Path(entry.path))
            return
        if not self.reads(entry.name):
            return
        facts = entry.stat()
        if facts.st_size >= self.rules.min_size or not facts.st_size:
            yield os.fsencode(path), FileStat(facts.st_size, facts.st_mtime_ns, facts.st_ino)


def is_container(path: Path) -> bool:
    """Say whether a path is that of an archive or a video which images can be read from."""
    return path.suffix.lower() in CONTAINER_SUFFIXES and path.is_file()


def advise(unsupported: Counter[str]) -> list[str]:
    """Return how files that were left out can be read, in a sentence for each kind."""
    videos = sum(unsupported[suffix] for suffix in VIDEO_SUFFIXES)
    heic = sum(unsupported[suffix] for suffix in HEIC_SUFFIXES)
    packed = sum(unsupported[suffix] for suffix in COMPRESSED_SUFFIXES)
    said = (
        ("HEIC files", heic, "to read them: pip install 'dinov2kit[heic]'"),
        ("tar archives", unsupported[TAR_SUFFIX], "to index the images in them: --tar"),
        ("videos", videos, "to index frames of them: --video"),
        ("compressed archives", packed, "they can be read once they are decompressed to .tar"),
    )
    return [f"{what} left out: {count:,}; {how}" for what, count, how in said if count]


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(name, glob) or fnmatchcase(path, glob.strip("/")) for glob in globs)
