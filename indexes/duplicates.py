"""`find_duplicates`: which photos of an index are copies, which of them stays, and why.

Nothing is changed here. Candidates come from the model and from perceptual hashes; whether two photos are
copies, their pixels decide.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinov2kit.errors import ArgumentError, check_choice

from .calibration import read_threshold
from .copy_check import VERIFY
from .copy_evidence import SAME, Evidence
from .copy_groups import CopyGroup, Duplicates, FoundCopy
from .copy_scope import Scope, choose_photos
from .graph import Edges, components, expect_cost
from .groups import Link, split_stars
from .keeper import KEEP, KeeperRules, parse_keep
from .records import Watch
from .related import is_raw_of
from .snapshot import Photo, Snapshot

THRESHOLD = 0.96
SCOPES = ("both", "exact", "near")
_READ_SECONDS = 0.03  # to decode a photo of 12 megapixels at a small scale, on one core


@dataclass(frozen=True)
class DedupRules:
    """What counts as a copy, and which photo stays.

    Attributes:
        scope: "exact": equal contents, which reads no pixel; "near": copies that are alike; or "both".
        threshold: cosine from which the model proposes a pair; None takes that of `calibrate`, else 0.96.
        verify: how pixels decide: "phash", "pixel" or "none"; see `copy_check.Comparer`.
        flips: mirrored copies count.
        allow_crop: a part of the other photo counts, if the model proposes the pair.
        keep: which photo stays; see `keeper.parse_keep`.
        within: only photos in this folder.
        reference: photos in this folder are never proposed, and are kept before all others.
        across_dirs: only copies in another folder than the keeper.
        where: an SQL expression that holds for the photos to compare.
        k: neighbours of each photo that are looked at.
        exact_graph: compare all descriptors; None chooses.

    Raises:
        ArgumentError: a value makes no sense.
    """

    scope: str = "both"
    threshold: float | None = None
    verify: str = "phash"
    flips: bool = False
    allow_crop: bool = False
    keep: tuple[str, ...] = KEEP
    within: Path | None = None
    reference: Path | None = None
    across_dirs: bool = False
    where: str | None = None
    k: int = 64
    exact_graph: bool | None = None

    def __post_init__(self) -> None:
        check_choice("scope", self.scope, SCOPES)
        check_choice("verification", self.verify, VERIFY)
        parse_keep(",".join(self.keep))
        if self.k < 1 or (self.threshold is not None and not -1 <= self.threshold <= 1):
            raise ArgumentError(
                f"k is {self.k}, threshold {self.threshold}; wanted 1 or more, and -1 to 1 (a cosine)"
            )
        if self.verify == "none" and (self.flips or self.allow_crop):
            raise ArgumentError(
                "without verification no pixel is read, so --flips and --allow-crop do nothing"
            )


def find_duplicates(
    snapshot: Snapshot,
    rules: DedupRules | None = None,
    *,
    workers: int = 0,
    work: Path | None = None,
    watch: Watch | None = None,
) -> Duplicates:
    """Find the copies among the photos of an index; only reads.

    Args:
        snapshot: the index.
        rules: what counts as a copy, and which photo stays.
        workers: decoding processes; 0 decodes here.
        work: folder for finished parts: an interrupted run goes on there, and the next run is faster.
        watch: called with the stage of the work.

    Raises:
        ArgumentError: a folder of the rules holds no indexed photo, `where` is not allowed, or `work` cannot
            be written.
    """
    rules, watch, begun = rules or DedupRules(), watch or (lambda *_: None), time.monotonic()
    if work is not None:
        _make_folder(work)
    threshold = read_threshold(snapshot) if rules.threshold is None else rules.threshold
    threshold = THRESHOLD if threshold is None else threshold
    scope = choose_photos(
        snapshot,
        within=rules.within,
        reference=rules.reference,
        where=rules.where,
        shared_only=rules.scope == "exact",
        watch=watch,
    )
    evidence = Evidence(snapshot, scope.photos, watch)
    if rules.scope != "exact":
        evidence.look_near(
            threshold=threshold,
            k=rules.k,
            verify=rules.verify,
            flips=rules.flips,
            allow_crop=rules.allow_crop,
            exact=rules.exact_graph,
            workers=workers,
            work=work,
        )
    groups = _Grouping(scope, evidence, rules).groups()
    unread = [
        (photo.path, evidence.unread[content])
        for photo, content in zip(scope.photos, evidence.contents, strict=True)
        if content in evidence.unread
    ]
    related = sorted(
        [*scope.names, *evidence.bursts.values()], key=lambda entry: (entry.kind, entry.to, entry.path)
    )
    return Duplicates(
        snapshot.layout.directory,
        snapshot.card.model.name,
        _settings(rules, threshold),
        scope.considered,
        groups,
        tuple(related),
        tuple(sorted([*scope.skipped, *unread])),
        time.monotonic() - begun,
    )


def expect_dedup(snapshot: Snapshot, rules: DedupRules, *, workers: int = 0) -> str | None:
    """Say in one line what `find_duplicates` costs; None where it costs nothing to speak of."""
    if rules.scope == "exact":
        return None
    graph = expect_cost(len(snapshot), snapshot.dim, rules.k)
    if rules.verify == "none":
        return graph.text
    minutes = len(snapshot) * _READ_SECONDS / max(workers, 1) / 60
    reading = f"reading {len(snapshot):,} photos: up to {minutes:,.0f} min with {max(workers, 1)} processes"
    return f"{graph.text}; {reading}" if minutes >= 1 else graph.text


def _make_folder(work: Path) -> None:
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot make the folder {work}: {error.strerror}") from error


class _Grouping:
    """Cuts the photos that are copies of each other into groups."""

    def __init__(self, scope: Scope, evidence: Evidence, rules: DedupRules) -> None:
        self._scope, self._evidence, self._rules = scope, evidence, rules
        self._contents = {
            photo.id: content for photo, content in zip(scope.photos, evidence.contents, strict=True)
        }
        self._by_content: dict[int, list[Photo]] = defaultdict(list)
        for photo in scope.photos:
            if self._contents[photo.id] not in evidence.unread:  # what cannot be read any more is left alone
                self._by_content[self._contents[photo.id]].append(photo)
        self._photos = {photo.id: photo for photo in scope.photos}
        self._keeper = KeeperRules(
            rules.keep,
            reference=rules.reference,
            sides=lambda photo: evidence.picture_sides(self._contents[photo.id]),
            tied=scope.tied,
            companions=evidence.companions,
        )

    def groups(self) -> tuple[CopyGroup, ...]:
        stars = []
        for photos in self._connected():
            order = self._keeper.order(photos)
            stars += split_stars([photo.id for photo in order], self._around, self._link)
        found = [
            (
                self._photos[star.keeper],
                [(self._photos[number], link) for number, link in star.members.items()],
            )
            for star in stars
        ]
        found.sort(key=lambda entry: (-sum(photo.size for photo, _ in entry[1]), entry[0].path))
        return tuple(self._group(number, *entry) for number, entry in enumerate(found, 1))

    def _connected(self) -> list[list[Photo]]:
        """Return the photos that chains of copies join, for each chain those of all its contents."""
        pairs = [
            (one, other) for one, near in self._evidence.neighbours.items() for other in near if one < other
        ]
        source, target = np.array(pairs, np.int64).reshape(-1, 2).T
        contents = np.arange(len(self._evidence.firsts))
        roots = components(contents, Edges(source, target, np.ones(len(pairs), np.float32)))
        joined: dict[int, list[Photo]] = defaultdict(list)
        for content, root in zip(contents.tolist(), roots.tolist(), strict=True):
            joined[root] += self._by_content[content]
        return [photos for photos in joined.values() if len(photos) > 1]

    def _around(self, number: int) -> list[int]:
        near = self._evidence.around(self._contents[number])
        return [photo.id for content in near for photo in self._by_content[content]]

    def _link(self, keeper: int, others: Sequence[int]) -> dict[int, Link]:
        """Return which photos are copies of a keeper and may go."""
        chosen = [other for other in others if self._may_go(self._photos[keeper], self._photos[other])]
        found = self._evidence.link(self._contents[keeper], [self._contents[other] for other in chosen])
        links = {other: found.get(self._contents[other]) for other in chosen}
        near_only = self._rules.scope == "near"
        return {
            other: link
            for other, link in links.items()
            if link is not None and not (near_only and link is SAME)
        }

    def _may_go(self, keeper: Photo, other: Photo) -> bool:
        if other.id in self._scope.protected or is_raw_of(keeper.path, other.path):
            return False
        return not (self._rules.across_dirs and keeper.path.parent == other.path.parent)

    def _group(self, number: int, keeper: Photo, copies: Sequence[tuple[Photo, Link]]) -> CopyGroup:
        photos = [photo for photo, _ in copies]
        paths = [keeper.path, *(photo.path for photo in photos)]
        beside = [entry for path in paths for entry in self._evidence.companions.beside(path)]
        names = [entry for entry in self._scope.names if entry.to in paths] if self._scope.names else []
        found = tuple(FoundCopy(photo, link.score, link.check) for photo, link in copies)
        return CopyGroup(number, keeper, self._keeper.reason(keeper, photos), found, (*beside, *names))


def _settings(rules: DedupRules, threshold: float) -> dict[str, object]:
    folders = {name: str(folder) for name in ("within", "reference") if (folder := getattr(rules, name))}
    return {
        **{name: value for name, value in vars(rules).items() if value is not None},
        **folders,
        "keep": list(rules.keep),
        "threshold": threshold,
    }
