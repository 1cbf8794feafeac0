"""How photos are chosen from a pool: five modes, each with its accounting and its use of clusters.

Source: Oquab et al., "DINOv2", 2023, appendix A (retrieve, cluster); Vo et al., "Automatic Data Curation for
Self-Supervised Learning", 2024 (hkmeans); Abbas et al., "SemDeDup", 2023 (semdedup).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from jaxtyping import Float16, Float32, Int64

from dinov2kit.errors import ArgumentError

from .cluster_sampling import ClusterUse, draw, draw_from_clusters
from .curate_report import Accounting
from .curate_sets import Queries
from .curate_spec import CurateSpec, auto_clusters, auto_keep, auto_levels
from .curated_files import Chosen
from .hierarchy import Level, build_hierarchy, sample_balanced
from .kmeans import fit_centroids, nearest_centroids
from .records import Watch
from .retrieval_sampling import retrieve
from .scan import FoundIds, FoundScores
from .search import Searcher
from .semantic_dedup import redundancy
from .snapshot import Snapshot
from .stages import Arrays, StageCache

_PIECE, _BATCH = 4096, 512  # queries whose hits are kept together; queries searched at once


@dataclass(frozen=True)
class Choice:
    """What a mode chose.

    Attributes:
        chosen: the rows.
        accounting: asked and returned.
        clusters: their use; None for modes without.
        rest: why the other photos of the pool were not chosen, in words.
    """

    chosen: Chosen
    accounting: Accounting
    clusters: ClusterUse | None
    rest: str


@dataclass(frozen=True)
class Chooser:
    """Chooses photos from a pool.

    Attributes:
        snapshot: the index.
        ids: the items of it that may be chosen, ascending.
        queries: what is looked for.
        spec: what is asked.
        cache: keeps the results of long stages.
        watch: called with the stage of the work.
    """

    snapshot: Snapshot
    ids: Int64[np.ndarray, " n"]
    queries: Queries
    spec: CurateSpec
    cache: StageCache
    watch: Watch

    def choose(self) -> Choice:
        """Choose by the mode of the spec.

        Raises:
            ArgumentError: the pool is smaller than what is asked for, or no cluster has enough queries.
        """
        target = self.spec.target_size
        if target is not None and target > len(self.ids):
            raise ArgumentError(
                f"the target size is {target:,}, and there are {len(self.ids):,} photos to choose from",
                hint="ask for fewer, or filter less",
            )
        modes: dict[str, Callable[[], Choice]] = {
            "retrieve": self._retrieve,
            "cluster": self._cluster,
            "hkmeans": self._hkmeans,
            "semdedup": self._semdedup,
            "random": self._random,
        }
        return modes[self.spec.mode]()

    def _retrieve(self) -> Choice:
        spec = self.spec
        found = retrieve(
            self._search,
            len(self.queries),
            spec.k,
            pool=len(self.ids),
            on_collision=spec.on_collision,
            max_depth=spec.max_depth,
        )
        chosen = Chosen.of(
            found.ids,
            score=found.score,
            rank=found.rank,
            query=found.query,
            query_set=self.queries.set_of[found.query],
        )
        accounting = Accounting(found.asked, found.returned, found.unique, found.collisions, found.shortfall)
        return Choice(chosen, accounting, None, "near no query")

    def _search(self, places: Int64[np.ndarray, " m"], depth: int) -> tuple[FoundIds, FoundScores]:
        """Look up candidates, piece by piece, so that an interrupted search goes on."""

        def search_piece(some: Int64[np.ndarray, " p"], done: int, _: Path) -> Arrays:
            parts = []
            for start in range(0, len(some), _BATCH):
                self.watch("Searching", done + start, len(places))
                queries = self.queries.descriptors(some[start : start + _BATCH])
                parts.append(self._searcher.search(queries, depth, allowed=allowed))
            self.watch("Searching", done + len(some), len(places))
            ids, scores = zip(*parts, strict=True)
            return {"ids": np.concatenate(ids), "scores": np.concatenate(scores)}

        allowed = self.ids if len(self.ids) < len(self.snapshot) else None
        pieces = []
        for start in range(0, len(places), _PIECE):
            some = places[start : start + _PIECE]
            facts = {**self._state, "queries": self._asked, "places": some, "depth": depth}
            pieces.append(self.cache.run("search", facts, partial(search_piece, some, start)))
        ids, scores = (np.concatenate([piece[name] for piece in pieces]) for name in ("ids", "scores"))
        return ids, scores

    def _cluster(self) -> Choice:
        spec = self.spec
        centroids, labels, scores = self._clusters()
        nearest, _ = nearest_centroids(self.queries.descriptors(np.arange(len(self.queries))), centroids)
        hits = np.zeros((len(self.queries.sets), len(centroids)), np.int64)
        np.add.at(hits, (self.queries.set_of, nearest[:, 0]), 1)
        owner = np.full(len(self.ids), -1)
        drawn = 0
        for number, own in enumerate(hits):
            places = draw_from_clusters(
                labels,
                own,
                min_hits=spec.min_hits,
                per_cluster=spec.per_cluster,
                cap=spec.cap,
                seed=(spec.seed, number),
            )
            drawn += len(places)
            free = places[owner[places] < 0]
            owner[free] = number
        taken = np.flatnonzero(owner >= 0)
        if not len(taken):
            raise ArgumentError(
                f"no cluster that holds photos has {spec.min_hits} of the queries; the most is {hits.max()}",
                hint="give more queries, or lower --min-hits or --clusters",
            )
        chosen = Chosen.of(
            self.ids[taken], score=scores[taken], query_set=owner[taken], cluster=labels[taken, None]
        )
        twice = drawn - len(taken)
        accounting = Accounting(drawn, len(taken), len(taken), twice, twice)
        return Choice(chosen, accounting, _use(labels, taken, hits.sum(axis=0)), "not drawn from its cluster")

    def _hkmeans(self) -> Choice:
        spec, n = self.spec, len(self.ids)
        sizes = spec.levels or auto_levels(n)
        if sizes[0] > n:
            raise ArgumentError(
                f"cannot make {sizes[0]:,} clusters of {n:,} photos", hint="give smaller --levels"
            )
        keep, rounds = spec.keep or auto_keep(n, sizes), spec.rounds(len(sizes))

        def build(_: Path) -> Arrays:
            built = build_hierarchy(
                self._rows, sizes, keep=keep, rounds=rounds, seed=spec.seed, watch=self.watch
            )
            arrays = {f"centroids{place}": level.centroids for place, level in enumerate(built)}
            return arrays | {f"parents{place}": level.parents for place, level in enumerate(built)}

        facts = {**self._state, "sizes": sizes, "keep": keep, "rounds": rounds, "seed": spec.seed}
        kept = self.cache.run("hierarchy", facts, build)
        levels = [Level(kept[f"centroids{place}"], kept[f"parents{place}"]) for place in range(len(sizes))]
        rows = self._rows if spec.pick == "closest" else None
        taken = sample_balanced(levels, int(spec.target_size or n), pick=spec.pick, rows=rows, seed=spec.seed)
        paths = [levels[0].parents]
        for level in levels[1:]:
            paths.append(level.parents[paths[-1]])
        cluster = np.stack([labels[taken] for labels in reversed(paths)], axis=1)
        score = _cosines(self.snapshot, self.ids[taken], levels[0].centroids, levels[0].parents[taken])
        chosen = Chosen.of(self.ids[taken], score=score, cluster=cluster)
        hits = np.zeros(len(levels[-1].centroids), np.int64)
        return Choice(chosen, _plain(taken), _use(paths[-1], taken, hits), "its clusters gave others")

    def _semdedup(self) -> Choice:
        spec = self.spec
        centroids, labels, scores = self._clusters()

        def compare(_: Path) -> Arrays:
            self.watch("Comparing", 0, None)
            return {"highest": redundancy(self._rows, centroids, seed=spec.seed)}

        facts = {**self._state, "centroids": centroids, "seed": spec.seed}
        highest = self.cache.run("redundancy", facts, compare)["highest"]  # for any eps
        taken = np.flatnonzero(highest <= 1 - spec.eps)
        chosen = Chosen.of(self.ids[taken], score=scores[taken], cluster=labels[taken, None])
        use = _use(labels, taken, np.zeros(len(centroids), np.int64))
        return Choice(chosen, _plain(taken), use, "redundant")

    def _random(self) -> Choice:
        taken = draw(self.ids, int(self.spec.target_size or 0), (self.spec.seed,))
        return Choice(Chosen.of(taken), _plain(taken), None, "not drawn")

    def _clusters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the centroids, and for each photo its cluster and the cosine with the centroid."""
        count = self.spec.clusters or auto_clusters(len(self.ids))

        def cluster(_: Path) -> Arrays:
            centroids = fit_centroids(self._rows, count, seed=self.spec.seed, watch=self.watch)
            labels, scores = nearest_centroids(self._rows, centroids)
            return {"centroids": centroids, "labels": labels[:, 0], "scores": scores[:, 0]}

        kept = self.cache.run("clusters", {**self._state, "count": count, "seed": self.spec.seed}, cluster)
        return kept["centroids"], kept["labels"], kept["scores"]

    @cached_property
    def _searcher(self) -> Searcher:
        return Searcher(self.snapshot)

    @cached_property
    def _rows(self) -> Float16[np.ndarray, "n dim"]:
        return self.snapshot.descriptors(self.ids)

    @property
    def _state(self) -> dict[str, object]:
        return {**pool_state(self.snapshot), "chosen_from": self.ids}

    @property
    def _asked(self) -> list[object]:
        return [one.state for one in self.queries.sets]


def pool_state(snapshot: Snapshot) -> dict[str, object]:
    """Return what tells an index from another one, or from itself at another time."""
    generation = None if snapshot.generation is None else snapshot.generation.name
    return {"uuid": snapshot.card.uuid, "ids": snapshot.ids, "generation": generation}


def _use(
    labels: Int64[np.ndarray, " n"], taken: Int64[np.ndarray, " m"], hits: Int64[np.ndarray, " k"]
) -> ClusterUse:
    return ClusterUse(
        np.bincount(labels, minlength=len(hits)), hits, np.bincount(labels[taken], minlength=len(hits))
    )


def _plain(taken: np.ndarray) -> Accounting:
    return Accounting(len(taken), len(taken), len(taken), 0, 0)


def _cosines(
    snapshot: Snapshot,
    ids: Int64[np.ndarray, " m"],
    centroids: Float32[np.ndarray, "k dim"],
    labels: Int64[np.ndarray, " m"],
) -> Float32[np.ndarray, " m"]:
    """Return the cosine of each photo with the centroid of its cluster."""
    cosines = np.empty(len(ids), np.float32)
    for start in range(0, len(ids), _PIECE):
        some = slice(start, start + _PIECE)
        rows = snapshot.descriptors(ids[some]).astype(np.float64)
        own = centroids[labels[some]].astype(np.float64)
        products = np.einsum("nd,nd->n", rows, own)
        cosines[some] = products / (np.linalg.norm(rows, axis=1) * np.linalg.norm(own, axis=1))
    return cosines
