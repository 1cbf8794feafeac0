"""Which photo of a group stays: rules in the order of the user, and the reason in words."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cmp_to_key
from pathlib import Path
from typing import Any

from dinov2kit.errors import ArgumentError

from .related import Companions
from .snapshot import Photo

RULES = ("resolution", "bytes", "exif", "oldest", "newest", "smallest", "path")
KEEP = ("resolution", "bytes", "exif", "oldest", "path")
_LOOK = {"oldest", "newest", "path"}  # rules that say nothing about the content


@dataclass(frozen=True)
class _Rule:
    """A lower key is the better keeper; `words` says why the first photo beats the second."""

    key: Callable[[Photo], Any]
    words: Callable[[Photo, Photo], str]


def parse_keep(text: str) -> tuple[str, ...]:
    """Read rules as people write them: "resolution,bytes,path", or "in:/photos/best,resolution".

    Raises:
        ArgumentError: there is none, or a word is no rule.
    """
    rules = tuple(word.strip() for word in text.split(",") if word.strip())
    strange = [rule for rule in rules if rule not in RULES and not rule.startswith("in:")]
    if strange or not rules or "in:" in rules:
        raise ArgumentError(
            f"unknown rule {(strange or rules or ('',))[0]!r} in --keep; wanted some of"
            f" {', '.join(RULES)}, in:DIR",
            hint="the first rule that tells two photos apart decides: --keep resolution,bytes,path",
        )
    return rules


class KeeperRules:
    """Ranks photos.

    Args:
        keep: rules as `parse_keep` returns them; what they leave open, the path decides.
        reference: folder whose photos come before all others.
        sides: width and height of a photo without a border around it; None where it has none.
        tied: ids of photos that share their content on disk with other names (hard links).
        companions: reads EXIF data, and what lies beside a photo.
    """

    def __init__(
        self,
        keep: Sequence[str] = KEEP,
        *,
        reference: Path | None = None,
        sides: Callable[[Photo], tuple[int, int] | None] = lambda photo: None,
        tied: Collection[int] = (),
        companions: Companions | None = None,
    ) -> None:
        self._sides = sides
        self._tied = tied
        self._companions = companions or Companions()
        self._rules = [self._inside(reference, "in the reference folder")] if reference else []
        names = list(keep) + ([] if "path" in keep else ["path"])
        first = next(place for place, name in enumerate(names) if name in _LOOK)
        for place, name in enumerate(names):
            if place == first:  # of equal pictures, one whose removal would tear something apart
                self._rules.append(self._ties())
            folder = Path(os.path.abspath(name[3:])) if name.startswith("in:") else None  # noqa: PTH100
            self._rules.append(self._inside(folder, f"in {folder}") if folder else self._rule(name))

    def order(self, photos: Iterable[Photo]) -> list[Photo]:
        """Return photos, the best keeper first."""
        return sorted(photos, key=cmp_to_key(self._compare))

    def reason(self, keeper: Photo, others: Sequence[Photo]) -> str:
        """Say in words why a keeper comes before the best of the others."""
        rival = self.order(others)[0]
        for rule in self._rules:
            if rule.key(keeper) != rule.key(rival):
                return rule.words(keeper, rival)
        return "the same in every respect"

    def _compare(self, one: Photo, other: Photo) -> int:
        for rule in self._rules:
            first, second = rule.key(one), rule.key(other)
            if first != second:
                return -1 if first < second else 1
        return 0

    def _rule(self, name: str) -> _Rule:
        rules = {
            "resolution": _Rule(lambda photo: -self._area(photo), self._say_resolution),
            "smallest": _Rule(
                lambda photo: photo.size, lambda a, b: f"smallest: {a.size:,} bytes < {b.size:,}"
            ),
            "bytes": _Rule(lambda photo: -photo.size, lambda a, b: f"bytes {a.size:,} > {b.size:,}"),
            "exif": _Rule(
                lambda photo: -self._entries(photo),
                lambda a, b: f"EXIF entries {self._entries(a)} > {self._entries(b)}",
            ),
            "oldest": _Rule(
                lambda photo: photo.mtime_ns, lambda a, b: f"oldest: {_time(a, b)} < {_time(b, a)}"
            ),
            "newest": _Rule(
                lambda photo: -photo.mtime_ns, lambda a, b: f"newest: {_time(a, b)} > {_time(b, a)}"
            ),
            "path": _Rule(_path_key, _say_path),
        }
        return rules[name]

    def _inside(self, folder: Path, words: str) -> _Rule:
        return _Rule(lambda photo: not photo.path.is_relative_to(folder), lambda a, b: words)

    def _ties(self) -> _Rule:
        def key(photo: Photo) -> int:
            beside = 0 if photo.id in self._tied else len(self._companions.beside(photo.path))
            return -2 if photo.id in self._tied else -min(beside, 1)

        def words(one: Photo, other: Photo) -> str:
            if one.id in self._tied:
                return "it has other names on disk"
            return f"{self._companions.beside(one.path)[0].path.name} belongs to it"

        return _Rule(key, words)

    def _size(self, photo: Photo) -> tuple[int, int]:
        return self._sides(photo) or (photo.width, photo.height)

    def _area(self, photo: Photo) -> int:
        width, height = self._size(photo)
        return width * height

    def _entries(self, photo: Photo) -> int:
        return self._companions.shot(photo).entries

    def _say_resolution(self, one: Photo, other: Photo) -> str:
        first, second = (
            f"{width}x{height}" + (" without its border" if self._sides(photo) else "")
            for photo in (one, other)
            for width, height in [self._size(photo)]
        )
        return f"resolution {first} > {second}"


def _time(photo: Photo, beside: Photo) -> str:
    """Return when a file was last written, as exactly as it takes to tell it from the one beside it."""
    moment = datetime.fromtimestamp(photo.mtime_ns // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S")
    same = photo.mtime_ns // 10**9 == beside.mtime_ns // 10**9
    return moment + (f".{photo.mtime_ns % 10**9:09d}" if same else "")


def _path_key(photo: Photo) -> tuple[int, bytes]:
    """The shorter path comes first: "a.jpg" before "a (1).jpg"."""
    whole = os.fsencode(photo.path)
    return len(whole), whole


def _say_path(one: Photo, other: Photo) -> str:
    shorter = len(os.fsencode(one.path)) < len(os.fsencode(other.path))
    return "the shorter path" if shorter else "the first path by name"
