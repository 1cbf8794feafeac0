"""Bringing an index in line with folders of photos: only what is new or changed is opened and described."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Literal

from dinov2kit.errors import PruneRefused
from dinov2kit.images import MAX_PIXELS
from dinov2kit.pipeline import Description, GlobalEncoder, describe

from .changes import UNSCANNED, Changes, Sighting
from .contents import hashed, read_stat
from .engine import Engine, Reading
from .listed import survey
from .records import Described, FileRecord, FileStat, Known, Watch
from .store import Store
from .update_report import UpdateReport
from .walk import WalkRules

logger = logging.getLogger(__name__)

Prune = Literal["auto", "never", "force"]

COMMIT_ROWS, COMMIT_SECONDS = 8192, 60.0
MOST_GONE_SHARE, MOST_GONE_FILES = 0.3, 10  # more than both at once looks like an unmounted disk


@dataclass(frozen=True)
class UpdateRules:
    """How an update works.

    Attributes:
        walk: which files count.
        listed: if given, only these files count, wherever they lie, and nothing is removed; absolute paths.
        verify_hash: open every file and compare its content; stats are not trusted.
        retry_errors: try again what could not be read before.
        prune: what happens to photos that are no longer there: "auto" removes them unless the disk looks
            unmounted, "never" keeps them, "force" removes them in any case.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder; 0 takes what suits it.
        timeout: seconds that one file may take to decode in a worker.
        max_pixels: larger images are refused before they are decoded.
    """

    walk: WalkRules = field(default_factory=WalkRules)
    listed: frozenset[Path] | None = None
    verify_hash: bool = False
    retry_errors: bool = False
    prune: Prune = "auto"
    workers: int = 0
    batch_size: int = 0
    timeout: float = 30.0
    max_pixels: int = MAX_PIXELS


def update(
    store: Store,
    folders: Sequence[Path],
    load_encoder: Callable[[], GlobalEncoder],
    rules: UpdateRules,
    *,
    watch: Watch,
    stop: Callable[[], bool],
    engine: Engine | None = None,
) -> UpdateReport:
    """Bring an open store in line with folders, and commit.

    Args:
        store: with nothing uncommitted.
        folders: absolute paths, none inside another.
        load_encoder: called when the first image has to be described, if any.
        rules: how.
        watch: called with the stage of the work.
        stop: asked between files; when it says True, what was begun is finished and committed.
        engine: reads and describes the files elsewhere; then `load_encoder` has to travel.

    Raises:
        PruneRefused: too many photos are gone at once; everything else is done and committed.
        StoreError: the disk is full or fails; everything up to the last commit stays.
        DeviceMemoryError: not even one image fits the device.
    """
    run = _Update(store, load_encoder, rules, watch, stop, engine)
    watch("Scanning", 0, None)
    found = survey(
        store,
        folders,
        rules.walk,
        listed=rules.listed,
        open_unchanged=rules.verify_hash,
        retry_errors=rules.retry_errors,
        seen=lambda count: watch("Scanning", count, None),
    )
    run.apply(found)
    return run.report


class _Update:
    """One run: what waits to be described, and what has been done."""

    def __init__(
        self,
        store: Store,
        load_encoder: Callable[[], GlobalEncoder],
        rules: UpdateRules,
        watch: Watch,
        stop: Callable[[], bool],
        engine: Engine | None,
    ) -> None:
        self.store = store
        self.rules = rules
        self.report = UpdateReport()
        self._load_encoder = load_encoder
        self._watch = watch
        self._stop = stop
        self._engine = engine
        self._waiting: dict[bytes, list[Sighting]] = {}  # content -> files that have it
        self._order: deque[bytes] = deque()  # contents on their way through the model
        self._gone: dict[bytes, list[FileRecord]] = {}  # content -> files that are no longer where they were
        self._displaced: dict[bytes, Known | None] = {}  # what changed files held
        self._done = self._total = 0
        self._committed = self._begun = time.monotonic()

    def apply(self, found: list[Changes]) -> None:
        report = self.report
        for changes in found:
            report.unchanged += changes.unchanged
            report.errors += changes.failed
            report.unread += changes.walk.errors
            report.unsupported.update(changes.walk.unsupported)
            for record, relpath in changes.adopted:
                stat = FileStat(record.size, record.mtime_ns, record.inode)
                self.store.move(record.id, changes.root.id, relpath, stat)
            for record in changes.gone.values():
                if record.hash is not None and record.item_id is not None:
                    self._gone.setdefault(record.hash, []).append(record)
        self._total = sum(len(changes.sightings) for changes in found)
        sightings = [sighting for changes in found for sighting in changes.sightings]
        self._open(sightings) if self._engine is None else self._take(self._engine, sightings)
        self._commit()
        report.interrupted = self._done < self._total
        refusals = [] if report.interrupted else [self._prune(changes) for changes in found]
        report.seconds = time.monotonic() - self._begun
        self.store.record_run(time.time() - report.seconds, report.to_json())
        self.store.commit()
        for refusal in refusals:
            if refusal is not None:
                raise refusal

    def _open(self, sightings: Iterable[Sighting]) -> None:
        """Hash all files, and describe those whose content the index does not have."""
        contents = self._new_contents(sightings)
        first = next(contents, None)
        if first is None:
            return
        encoder = self._load_encoder()
        rules = self.rules
        descriptions = describe(
            encoder,
            chain([first], contents),
            workers=rules.workers,
            batch_size=rules.batch_size,
            timeout=rules.timeout,
            max_pixels=rules.max_pixels,
        )
        for description in descriptions:
            digest = self._order.popleft()
            self.report.described += description.descriptor is not None
            for sighting in self._waiting.pop(digest):
                self._keep(sighting, digest, description)
            self._commit_now_and_then()

    def _take(self, engine: Engine, sightings: list[Sighting]) -> None:
        """See to all files in their order, by what an engine reads in them."""
        everything = engine.read(sightings, self.store, self._load_encoder, self.rules, self._stop)
        with closing(everything) as readings:
            for sighting, reading in readings:
                self.report.described += reading.descriptor is not None
                if reading.digest is None:
                    self._fail(sighting, None, reading.error or "it cannot be read")
                elif not self._is_known(sighting, reading.digest):
                    self._keep(sighting, reading.digest, reading)
                self._commit_now_and_then()

    def _new_contents(self, sightings: Iterable[Sighting]) -> Iterator[Path]:
        """Yield one path for each content that has to be described; see to all other files on the way."""
        for sighting, digest in hashed(sightings, self._stop):
            if isinstance(digest, OSError):
                self._fail(sighting, None, digest.strerror or str(digest))
            elif digest in self._waiting:
                self._waiting[digest].append(sighting)
            elif not self._is_known(sighting, digest):
                self._waiting[digest] = [sighting]
                self._order.append(digest)
                yield sighting.path
            self._commit_now_and_then()

    def _is_known(self, sighting: Sighting, digest: bytes) -> bool:
        """Note a file whose content needs no model; say whether it was one."""
        store, record = self.store, sighting.record
        if record is not None and record.hash == digest:
            if record.item_id is not None:
                store.touch(record.id, sighting.stat)
                self.report.unchanged += 1
                return self._advance()
            if record.error is not None and not self.rules.retry_errors:
                return self._fail(sighting, digest, record.error)
        elif record is not None and record.item_id is not None and record.hash is not None:
            self._displaced[record.hash] = store.find_hash(record.hash)
        if gone := self._gone.get(digest):
            store.move(gone.pop().id, sighting.root.id, sighting.relpath, sighting.stat)
            self.report.moved += 1
            return self._advance()
        if known := store.find_hash(digest) or self._displaced.get(digest):
            return self._put(sighting, digest, known)
        return False

    def _keep(self, sighting: Sighting, digest: bytes, description: Description | Reading) -> None:
        """Store what the model said of a file."""
        if description.descriptor is None:
            self._fail(sighting, digest, description.error or "it has no descriptor")
        elif read_stat(sighting.path) != sighting.stat:
            self._fail(sighting, None, "it changed while it was read; the next run reads it again")
        else:
            self._put(sighting, digest, description)

    def _put(self, sighting: Sighting, digest: bytes, described: Described) -> Literal[True]:
        self.store.put(sighting.root.id, sighting.relpath, sighting.stat, digest, described)
        if sighting.record is not None and sighting.record.item_id is not None:
            self.report.changed += 1
        else:
            self.report.new += 1
        return self._advance()

    def _fail(self, sighting: Sighting, digest: bytes | None, reason: str) -> Literal[True]:
        self.store.put_error(sighting.root.id, sighting.relpath, sighting.stat, digest, reason)
        self.report.errors.append((sighting.path, reason))
        return self._advance()

    def _advance(self) -> Literal[True]:
        """Count a file as seen to."""
        self._done += 1
        self._watch("Indexing", self._done, self._total)
        return True

    def _commit_now_and_then(self) -> None:
        if self.store.pending >= COMMIT_ROWS or time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        self.store.commit()
        self._committed = time.monotonic()
        if self._engine is not None:
            self._engine.committed()

    def _prune(self, changes: Changes) -> PruneRefused | None:
        """Remove what is gone and was not found elsewhere, unless that looks like an accident."""
        if changes.listed:
            return None
        left = {record.id for records in self._gone.values() for record in records}
        lost = [record for record in changes.gone.values() if record.item_id is None or record.id in left]
        unread = changes.walk.errors and self.rules.prune != "force"
        if self.rules.prune == "never" or unread:
            self.report.kept += len(lost)
            return None
        missed = len(lost) - changes.thinned
        refusal = None if self.rules.prune == "force" else _accident(changes, missed)
        if refusal is not None:
            self.report.kept += len(lost)
            return refusal
        self.store.remove([record.id for record in lost])
        self.report.removed += len(lost)
        if changes.folder == changes.root.path:
            self.store.set_device(changes.root.id, changes.folder.stat().st_dev)
        return None


def _accident(changes: Changes, lost: int) -> PruneRefused | None:
    """Return a refusal when the photos of a folder look unreachable rather than removed."""
    if lost <= 0:
        return None
    devices = (UNSCANNED, changes.folder.stat().st_dev)
    moved_disk = changes.folder == changes.root.path and changes.root.fs_id not in devices
    if not changes.found:
        why = "looks unmounted"
    elif moved_disk:
        why = "lies on another disk than before"
    elif lost > max(MOST_GONE_FILES, MOST_GONE_SHARE * changes.known):
        why = "has lost many at once"
    else:
        return None
    return PruneRefused(
        f"refusing to remove {lost:,} of {changes.known:,} files from the index: {changes.folder} {why}",
        hint="check the disk, or confirm with --prune force; everything else is up to date",
    )
