"""Which files lie below a folder: names and stats only, nothing is opened."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from dinov2kit.images import HEIC_SUFFIXES, IMAGE_SUFFIXES

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
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    follow_symlinks: bool = False
    one_file_system: bool = False
    min_size: int = 0

    def takes(self, relpath: bytes) -> bool:
        """Say whether the globs take a file, by its path below the folder."""
        path = os.fsdecode(relpath)
        parts = path.split("/")
        parents = ["/".join(parts[:count]) for count in range(1, len(parts))]
        return all(self.enters(parent) for parent in parents) and self.takes_file(path)

    def takes_file(self, path: str) -> bool:
        """Say whether the globs take a file whose folders are entered, by its path below the root."""
        hidden = path.rpartition("/")[2].startswith(".")
        return not (hidden or self._excluded(path)) and (not self.include or _matches(path, self.include))

    def enters(self, relpath: str) -> bool:
        """Say whether the walk goes into a folder, by its path below the root."""
        return not (_matches(relpath.rpartition("/")[2], SKIPPED_FOLDERS) or self._excluded(relpath))

    def _excluded(self, path: str) -> bool:
        return _matches(path, self.exclude)


@dataclass
class Walk:
    """What a walk found; filled while `images` is consumed.

    Attributes:
        folder: where it begins.
        rules: what it takes.
        unsupported: how many files of each suffix are no images that can be read here.
        errors: (path, reason) of folders and files that could not be looked at.
    """

    folder: Path
    rules: WalkRules = field(default_factory=WalkRules)
    unsupported: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[Path, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._readable = IMAGE_SUFFIXES if find_spec("pillow_heif") else IMAGE_SUFFIXES - HEIC_SUFFIXES

    def images(self) -> Iterator[tuple[bytes, FileStat]]:
        """Yield the image files, by path below the folder, with their stats, in the order of their names."""
        seen: set[tuple[int, int]] = set()
        try:
            top = self.folder.stat()
        except OSError as error:
            self.errors.append((self.folder, error.strerror or str(error)))
            return
        yield from self._below("", top, top.st_dev, seen)

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
        if not self.rules.takes_file(path) or entry.is_dir():
            return
        suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a Path per file doubles the time
        if suffix not in self._readable:
            self.unsupported[suffix or "(none)"] += 1
            return
        facts = entry.stat()
        if facts.st_size >= self.rules.min_size or not facts.st_size:
            yield os.fsencode(path), FileStat(facts.st_size, facts.st_mtime_ns, facts.st_ino)


def _matches(path: str, globs: tuple[str, ...]) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatchcase(name, glob) or fnmatchcase(path, glob.strip("/")) for glob in globs)
