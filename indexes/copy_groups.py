"""What `find_duplicates` found: groups of copies, what belongs to them, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from .dedup_plan import DedupPlan, PlannedFile, PlannedGroup, Removal, path_facts
from .related import Related
from .snapshot import Photo


@dataclass(frozen=True)
class FoundCopy:
    """A photo that may go: `score` is its cosine with the keeper, None where the content is the same."""

    photo: Photo
    score: float | None
    check: str


@dataclass(frozen=True)
class CopyGroup:
    """Copies of one photo.

    Attributes:
        number: from 1, in the order of the groups.
        keeper: the photo that stays.
        reason: why it does.
        copies: those that may go, the best first.
        related: files that belong to keeper or copies and are left alone.
    """

    number: int
    keeper: Photo
    reason: str
    copies: tuple[FoundCopy, ...]
    related: tuple[Related, ...] = ()

    @property
    def min_score(self) -> float | None:
        """The lowest score; None where all contents are the same."""
        return min((copy.score for copy in self.copies if copy.score is not None), default=None)

    @property
    def reclaimable(self) -> int:
        """Bytes of the copies."""
        return sum(copy.photo.size for copy in self.copies)


@dataclass(frozen=True)
class Duplicates:
    """What `find_duplicates` found.

    Attributes:
        index: directory of the index.
        model: name of its model.
        settings: how the groups were found, as JSON takes it.
        photos: how many photos the rules let through.
        groups: of copies, the most reclaimable bytes first.
        related: bursts and names of one file, which are no duplicates.
        skipped: (path, reason) of photos that were left out.
        seconds: how long it took.
    """

    index: Path
    model: str
    settings: dict[str, object]
    photos: int
    groups: tuple[CopyGroup, ...]
    related: tuple[Related, ...]
    skipped: tuple[tuple[Path, str], ...]
    seconds: float = field(compare=False)

    @property
    def copies(self) -> int:
        """How many photos may go."""
        return sum(len(group.copies) for group in self.groups)

    @property
    def reclaimable(self) -> int:
        """Bytes of the photos that may go."""
        return sum(group.reclaimable for group in self.groups)

    def to_plan(self) -> DedupPlan:
        """Return the groups as a plan that can be written, edited and applied."""
        groups = tuple(
            PlannedGroup(
                group.number,
                _planned(group.keeper),
                tuple(Removal(_planned(copy.photo), copy.score, copy.check) for copy in group.copies),
                (),
                group.reason,
                group.min_score,
            )
            for group in self.groups
        )
        return DedupPlan(str(self.index), self.model, self.settings, groups)

    def to_json(self) -> dict[str, object]:
        """Return everything as `json.dumps` takes it."""
        return {
            "index": str(self.index),
            "model": self.model,
            "settings": self.settings,
            "photos": self.photos,
            "groups": [_group_facts(group) for group in self.groups],
            "copies": self.copies,
            "reclaimable": self.reclaimable,
            "related": [_related_facts(entry) for entry in self.related],
            "skipped": [{**path_facts(path), "reason": reason} for path, reason in self.skipped],
            "seconds": round(self.seconds, 3),
        }


def _planned(photo: Photo) -> PlannedFile:
    return PlannedFile(photo.path, photo.digest.hex(), photo.size, photo.mtime_ns, photo.width, photo.height)


def _photo_facts(photo: Photo) -> dict[str, object]:
    facts = {"width": photo.width, "height": photo.height, "bytes": photo.size, "taken_at": photo.taken_at}
    return {"id": photo.id, **path_facts(photo.path), **facts}


def _group_facts(group: CopyGroup) -> dict[str, object]:
    copies = [{**_photo_facts(copy.photo), "score": copy.score, "check": copy.check} for copy in group.copies]
    return {
        "group": group.number,
        "keep": _photo_facts(group.keeper),
        "reason": group.reason,
        "copies": copies,
        "related": [_related_facts(entry) for entry in group.related],
        "min_score": group.min_score,
        "reclaimable": group.reclaimable,
    }


def _related_facts(entry: Related) -> dict[str, object]:
    return {**path_facts(entry.path), "kind": entry.kind, "to": path_facts(entry.to)["path"]}
