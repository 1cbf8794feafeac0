"""What makes photos copies: equal content, or pixels that agree. Computed once per content, on demand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import ImageError

from .copy_candidates import Pairs, cosines, distinct_pairs, near_by_hash, near_by_model
from .copy_check import Comparer
from .copy_crop import CropChecker
from .copy_scope import ids_of
from .copy_signatures import read_signatures
from .groups import Link, two_steps
from .records import Watch
from .related import Companions, Related
from .snapshot import Photo, Snapshot

SAME = Link(None, "same content")
_CROPS = 8  # nearest of each photo that are looked at for a common part
_CHECKED = 65536  # pairs at a time


class Evidence:
    """Tells which contents are copies of which.

    Args:
        snapshot: the index.
        photos: to compare, by ascending id.
        watch: called with the stage of the work.

    Attributes:
        contents: per photo, the place of its content.
        firsts: of each content the first photo, which stands for all.
        unread: contents whose pixels cannot be read, and why.
        bursts: pairs that are alike because they are shots of one burst.
        neighbours: contents that are copies of each other, as far as they were compared.
    """

    def __init__(self, snapshot: Snapshot, photos: Sequence[Photo], watch: Watch) -> None:
        self.snapshot = snapshot
        self.watch = watch
        places: dict[bytes, int] = {}
        self.contents = [places.setdefault(photo.digest, len(places)) for photo in photos]
        self.firsts: list[Photo] = []
        for photo, content in zip(photos, self.contents, strict=True):
            if content == len(self.firsts):
                self.firsts.append(photo)
        self.ids = ids_of(self.firsts)
        self._all_ids = ids_of(photos)
        self.companions = Companions()
        self.unread: dict[int, str] = {}
        self.bursts: dict[tuple[int, int], Related] = {}
        self.neighbours: dict[int, set[int]] = defaultdict(set)
        self._links: dict[tuple[int, int], Link | None] = {}
        self._threshold = 1.0
        self._comparer: Comparer | None = None
        self._crops: CropChecker | None = None

    def look_near(
        self,
        *,
        threshold: float,
        k: int,
        verify: str,
        flips: bool,
        allow_crop: bool,
        exact: bool | None,
        workers: int,
        work: Path | None,
    ) -> None:
        """Compare all contents; afterwards `neighbours` and `link` know of near copies as well.

        Args as of `DedupRules` and `find_duplicates`.
        """
        self._threshold = threshold
        edges = near_by_model(
            self.snapshot, self._all_ids, k=k, min_score=threshold, exact=exact, work=work, watch=self.watch
        )
        contents = np.array(self.contents, np.int64)
        ends = [contents[np.searchsorted(self._all_ids, end)] for end in (edges.source, edges.target)]
        pairs = np.stack(ends, axis=1)
        pairs = distinct_pairs(pairs[ends[0] != ends[1]])
        if verify != "none":
            self._comparer = self._read(verify=verify, flips=flips, workers=workers, work=work)
            self._crops = CropChecker(flips=flips) if allow_crop else None
            near = near_by_hash(
                self._comparer, k=k, advance=lambda done, total: self.watch("Comparing hashes", done, total)
            )
            pairs = distinct_pairs(np.concatenate([pairs, near]))
        self._decide(pairs, note_all=False)

    def picture_sides(self, content: int) -> tuple[int, int] | None:
        """Return width and height of a photo without the border around it; None where it has none."""
        return None if self._comparer is None else self._comparer.signatures.picture_sides(content)

    def around(self, content: int) -> set[int]:
        """Return the contents that may be copies of one, itself among them."""
        return two_steps(content, self.neighbours) | {content}

    def link(self, content: int, others: Sequence[int]) -> dict[int, Link]:
        """Return which contents are copies of one, and why."""
        asked = sorted({other for other in others if other != content})
        new = [other for other in asked if _key(content, other) not in self._links]
        if new:
            pairs = np.array([_key(content, other) for other in new], np.int64).reshape(-1, 2)
            self._decide(pairs, note_all=True)
        found = {other: self._links[_key(content, other)] for other in asked}
        return {other: link for other, link in found.items() if link is not None} | {content: SAME}

    def _read(self, *, verify: str, flips: bool, workers: int, work: Path | None) -> Comparer:
        signatures, self.unread = read_signatures(
            [photo.path for photo in self.firsts],
            workers=workers,
            work=work,
            keys=[photo.digest for photo in self.firsts],
            advance=lambda done: self.watch("Reading", done, len(self.firsts)),
        )
        return Comparer(signatures, verify=verify, flips=flips)

    def _decide(self, pairs: Pairs, *, note_all: bool) -> None:
        """Note which pairs are copies; with `note_all` also which are none."""
        for start in range(0, len(pairs), _CHECKED):
            self.watch("Verifying", start, len(pairs))
            some = pairs[start : start + _CHECKED]
            scores = cosines(self.snapshot, self.ids[some[:, 0]], self.ids[some[:, 1]])
            found = self._check(some, scores)
            for (one, other), score, text in zip(some.tolist(), scores.tolist(), found, strict=True):
                link = None if text is None or self._is_burst(one, other) else Link(score, text)
                if link is not None or note_all:
                    self._links[one, other] = link
                if link is not None:
                    self.neighbours[one].add(other)
                    self.neighbours[other].add(one)

    def _check(self, pairs: Pairs, scores: np.ndarray) -> list[str | None]:
        """Return for each pair what shows that it is one picture; None where nothing does."""
        if self._comparer is None:
            return ["not verified" if score >= self._threshold else None for score in scores.tolist()]
        checks = self._comparer.check(pairs[:, 0], pairs[:, 1])
        texts = [checks.one(place).text if checks.passed[place] else None for place in range(len(pairs))]
        if self._crops is not None:
            open_pairs = np.flatnonzero(~checks.passed & (scores >= self._threshold))
            for place in _nearest(pairs[open_pairs], scores[open_pairs]):
                texts[open_pairs[place]] = self._check_crop(*pairs[open_pairs[place]].tolist())
        return texts

    def _check_crop(self, one: int, other: int) -> str | None:
        assert self._crops is not None
        try:
            check = self._crops.check(self.firsts[one].path, self.firsts[other].path)
        except ImageError:
            return None  # gone or damaged since its signature was read
        return check.text if check.passed else None

    def _is_burst(self, one: int, other: int) -> bool:
        first, second = self.firsts[one], self.firsts[other]
        if not self.companions.is_burst(first, second):
            return False
        self.bursts[one, other] = Related(second.path, "burst", first.path)
        return True


def _key(one: int, other: int) -> tuple[int, int]:
    return (one, other) if one < other else (other, one)


def _nearest(pairs: Pairs, scores: np.ndarray) -> Int64[np.ndarray, " m"]:
    """Return the places of the pairs that are among the nearest of one of their photos."""
    taken: dict[int, int] = defaultdict(int)
    chosen = []
    for place in np.lexsort((pairs[:, 1], pairs[:, 0], -scores)):
        one, other = pairs[place].tolist()
        if min(taken[one], taken[other]) < _CROPS:
            chosen.append(place)
            taken[one] += 1
            taken[other] += 1
    return np.sort(np.array(chosen, np.int64))
