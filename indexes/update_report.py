"""What bringing an index in line with folders has done, in numbers and reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class UpdateReport:
    """What an update did.

    Attributes:
        new: photos added; those whose content was known are not described again.
        changed: photos whose content is another than before.
        moved: photos found again at another place.
        unchanged: photos as they were.
        removed: photos that are gone.
        kept: photos that are gone but stay in the index, because nothing was to be removed or a folder could
            not be read.
        unsupported: how many files of each suffix are no images that can be read here.
        errors: (path, reason) of files that cannot be described, those of earlier runs included.
        unread: (path, reason) of folders that could not be read.
        described: images that went through the model; on a cluster copies of a new photo may do so, too.
        seconds: how long it took.
        interrupted: whether it was stopped before the end.
    """

    new: int = 0
    changed: int = 0
    moved: int = 0
    unchanged: int = 0
    removed: int = 0
    kept: int = 0
    unsupported: Counter[str] = field(default_factory=Counter)
    errors: list[tuple[Path, str]] = field(default_factory=list)
    unread: list[tuple[Path, str]] = field(default_factory=list)
    described: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def found(self) -> int:
        """Image files that were met, good or bad."""
        return self.new + self.changed + self.moved + self.unchanged + len(self.errors)

    def to_json(self) -> dict[str, object]:
        """Return the report as `json.dumps` takes it."""
        return {
            "new": self.new,
            "changed": self.changed,
            "moved": self.moved,
            "unchanged": self.unchanged,
            "removed": self.removed,
            "kept": self.kept,
            "unsupported": dict(self.unsupported),
            "errors": len(self.errors),
            "described": self.described,
            "seconds": round(self.seconds, 3),
            "interrupted": self.interrupted,
        }
