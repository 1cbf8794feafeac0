"""`curate`: a training set from a pool of photos, chosen and accounted for.

In this order: the filter; copies go; what is like an evaluation photo goes; the queries themselves go; then
the mode chooses. Long stages are kept and taken up again, so a changed setting costs only what depends on it.
The same index, spec and seed give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import ArgumentError

from .changes import check_folders
from .curate_modes import Chooser, pool_state
from .curate_page import write_curate_page
from .curate_report import CurateReport, Dropped, Stage
from .curate_sets import LoadEncoder, PhotoSet, Queries, find_own, open_set
from .curate_spec import CurateSpec
from .curated_files import check_free, check_out, write_chosen
from .decontaminate import choose_keepers, connected, find_contaminated
from .graph import Edges, all_pairs, cross_pairs
from .records import Watch
from .snapshot import Snapshot
from .stages import Arrays, StageCache
from .update import UpdateRules

FOLDER = "curate"  # in the index: results of stages, and the descriptors of folders of queries


def curate(
    snapshot: Snapshot,
    spec: CurateSpec,
    out: Path | None = None,
    *,
    load_encoder: LoadEncoder,
    page: Path | None = None,
    overwrite: bool = False,
    work: Path | None = None,
    fresh: bool = False,
    exact: bool | None = None,
    rules: UpdateRules | None = None,
    watch: Watch | None = None,
) -> CurateReport:
    """Choose photos from a pool, and write which.

    It may be interrupted at any time: what was finished is taken up again.

    Args:
        snapshot: the pool.
        spec: what is asked.
        out: the file of the chosen photos: ``.jsonl``, ``.parquet``, ``.txt`` or ``.tar``; None writes none.
        load_encoder: returns the model of the pool; called when a photo of a folder has to be described.
        page: an HTML report with pictures; None writes none.
        overwrite: replace existing files.
        work: where results of stages are kept, if not in the index.
        fresh: compute every stage anew.
        exact: compare every pair of photos for copies; None leaves that to their number.
        rules: how folders of queries and evaluation photos are read.
        watch: called with the stage of the work.

    Raises:
        ArgumentError: a file exists, no photo is left, or the pool is too small for what is asked.
        ImageError: a folder is not there, or has no photo.
        StoreMismatch: an index of queries or evaluation photos has another model.
        StoreError: results of stages cannot be kept.
        DependencyError: pyarrow or faiss is missing.
    """
    if out is not None:
        check_out(out, overwrite=overwrite)
    if page is not None:
        check_free(page, overwrite=overwrite)
    named = [*(spec.queries if spec.asks else ()), *spec.exclude_near]
    check_folders(named)
    watch = watch or (lambda *_: None)
    cache = StageCache(work or snapshot.layout.directory / FOLDER, fresh=fresh)
    with ExitStack() as stack:
        ids = snapshot.ids if spec.where is None else snapshot.where(spec.where)
        rules = rules or UpdateRules()
        sets = [
            open_set(path, snapshot, cache.folder, load_encoder, stack, rules=rules, watch=watch)
            for path in named
        ]
        asked, avoided = (
            sets[: len(named) - len(spec.exclude_near)],
            sets[len(named) - len(spec.exclude_near) :],
        )
        pool = _Pool(snapshot, spec, cache, watch, exact)
        pool.narrow("where", [Dropped.plainly("where", "filtered out", np.setdiff1d(snapshot.ids, ids))])
        pool.drop_copies()
        pool.drop_contaminated(avoided)
        pool.drop_own(asked)
        queries = Queries(asked)
        choice = Chooser(snapshot, pool.ids, queries, spec, cache, watch).choose()
        rest = np.setdiff1d(pool.ids, choice.chosen.ids)
        pool.narrow(spec.mode, [Dropped.plainly(spec.mode, choice.rest, rest)], step=True)
        unreadable = [fault for one in sets for fault in one.unreadable]
        if out is not None:
            watch("Writing", 0, len(choice.chosen))
            unreadable += write_chosen(out, snapshot, queries, choice.chosen, spec.mode)
        report = CurateReport(
            index=snapshot.layout.directory,
            model=snapshot.card.model.name,
            mode=spec.mode,
            seed=spec.seed,
            queries=len(queries),
            stages=tuple(pool.stages),
            accounting=choice.accounting,
            clusters=choice.clusters,
            out=out,
            page=page,
            unreadable=tuple(unreadable),
            computed=tuple(cache.computed),
            reused=tuple(cache.reused),
            work=cache.folder,
        )
        if page is not None:
            write_curate_page(page, report, snapshot, choice.chosen, pool.dropped, avoided)
    return report


@dataclass
class _Pool:
    """The photos that are left, and what became of the others."""

    snapshot: Snapshot
    spec: CurateSpec
    cache: StageCache
    watch: Watch
    exact: bool | None
    stages: list[Stage] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids: Int64[np.ndarray, " n"] = self.snapshot.ids
        self._filtered = self.ids

    def narrow(self, name: str, losses: Sequence[Dropped], *, step: bool = False) -> None:
        """Take photos out of the pool, and note it; a stage that took none is noted only as a `step`."""
        gone = np.concatenate([loss.ids for loss in losses])
        came = len(self.ids)
        self.ids = np.setdiff1d(self.ids, gone)
        if len(gone) or step:
            why = {loss.reason: len(loss.ids) for loss in losses if len(loss.ids)}
            self.stages.append(Stage(name, came, len(self.ids), why))
            self.dropped += losses
        if not len(self.ids):
            raise ArgumentError(
                f"no photo is left of {len(self.snapshot):,}: {name} dropped the last {came:,}",
                hint="the index is empty" if not came else "filter less, or raise the thresholds",
            )

    def drop_copies(self) -> None:
        """Keep one of each group of photos that are copies of each other."""
        self._filtered = self.ids
        if self.spec.dedup is None:
            return
        edges = connected(self._pairs, self.spec.dedup, self.ids)
        keepers = choose_keepers(self.ids, edges, self._pixels)
        copies = keepers != self.ids
        none = np.full(int(copies.sum()), np.nan, np.float32)
        loss = Dropped("dedup", "copy", self.ids[copies], keepers[copies], none)
        self.narrow("dedup", [loss], step=True)

    def drop_contaminated(self, sets: Sequence[PhotoSet]) -> None:
        """Drop what is like a photo of one of the sets; copies that went before carry a chain on."""
        threshold, chain = self.spec.exclude_threshold, self.spec.chain
        edges = connected(self._pairs, threshold, self._filtered) if sets and chain else _NO_EDGES
        for number, one in enumerate(sets):
            near = self._near(one)
            above = (near.score > threshold) & np.isin(near.source, self._filtered)
            hits = near.source[above]
            gone = find_contaminated(self._filtered, hits, edges, chain=chain)
            gone_ids = np.intersect1d(self.ids, self._filtered[gone])
            own = above & np.isin(near.source, gone_ids)
            stage = f"exclude {one.name}"
            direct = Dropped(
                stage, "near", near.source[own], near.target[own], near.score[own], reference=number
            )
            linked = Dropped.plainly(stage, "connected", np.setdiff1d(gone_ids, direct.ids))
            self.narrow(stage, [direct, linked], step=True)

    def drop_own(self, sets: Sequence[PhotoSet]) -> None:
        """Drop the photos of the query sets themselves."""
        own = np.intersect1d(self.ids, find_own(self.snapshot, sets))
        self.narrow("queries", [Dropped.plainly("queries", "query itself", own)])

    @cached_property
    def _pairs(self) -> Edges:
        """The pairs of the whole index, down to the lower of the thresholds."""
        spec = self.spec
        wanted = [spec.dedup] if spec.dedup is not None else []
        wanted += [spec.exclude_threshold] if spec.exclude_near and spec.chain else []
        lowest = min(wanted)

        def compare(folder: Path) -> Arrays:
            found = all_pairs(
                self.snapshot, min_score=lowest, exact=self.exact, work=folder, watch=self.watch
            )
            return dict(vars(found))

        facts = {**pool_state(self.snapshot), "min_score": lowest, "exact": self.exact}
        return Edges(**self.cache.run("pairs", facts, compare))

    def _near(self, one: PhotoSet) -> Edges:
        """Return the nearest photo of a set for each photo of the index, where it is near enough."""
        lowest = self.spec.exclude_threshold

        def compare(folder: Path) -> Arrays:
            found = cross_pairs(
                self.snapshot,
                one.snapshot,
                k=1,
                min_score=lowest,
                exact=self.exact,
                work=folder,
                watch=self.watch,
            )
            return dict(vars(found))

        facts = {**pool_state(self.snapshot), "set": one.state, "min_score": lowest, "exact": self.exact}
        return Edges(**self.cache.run("near", facts, compare))

    def _pixels(self, ids: Int64[np.ndarray, " m"]) -> Int64[np.ndarray, " m"]:
        photos = self.snapshot.photos(ids)
        return np.array([photo.width * photo.height for photo in photos], np.int64)


_NO_EDGES = Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
