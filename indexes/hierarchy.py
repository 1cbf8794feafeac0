"""Hierarchical k-means with resampling, and samples that are balanced over its clusters.

k-means puts most of its centroids where most of the points are. Running it again on few points of each
cluster spreads the centroids evenly over what there is, and k-means of the centroids carries that upwards. A
sample that takes the same number from every cluster, level by level, is then balanced over the concepts of
the collection.

Source: Vo et al., "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach",
TMLR 2024, Algorithm 1 and Section 3.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int64

from dinov2kit.errors import ArgumentError, check_choice

from .kmeans import fit_centroids, nearest_centroids, unit_rows
from .records import Watch

logger = logging.getLogger(__name__)

PICKS = ("random", "closest")


@dataclass(frozen=True)
class Level:
    """One level of clusters.

    Attributes:
        centroids: of length 1.
        parents: of each point of the level below (of each row, at the lowest level), its cluster here.
    """

    centroids: Float32[np.ndarray, "k dim"]
    parents: Int64[np.ndarray, " n"]


def build_hierarchy(
    rows: Float[np.ndarray, "n dim"],
    sizes: Sequence[int],
    *,
    keep: Sequence[int],
    rounds: Sequence[int],
    seed: int = 0,
    watch: Watch | None = None,
) -> list[Level]:
    """Cluster rows, then the centroids, and so on; the lowest level comes first.

    Args:
        rows: of any length above 0; only their directions count.
        sizes: clusters of each level, lowest first, each fewer than the one before.
        keep: of each level, the points nearest to each centroid that resampling keeps; about half of the mean
            cluster is good.
        rounds: of each level, how often to resample; 0 is plain k-means.
        seed: the same seed gives the same levels on the same machine.
        watch: called with the clusterings done and how many there are.

    Raises:
        ArgumentError: the lists do not fit each other or the rows, or a row is not finite, or zero.
    """
    _check(len(rows), sizes, keep, rounds)
    seeds = iter(np.random.default_rng(seed).integers(2**31 - 1, size=sum(rounds) + len(sizes)))
    levels: list[Level] = []
    points, done = rows, 0
    for k, few, times in zip(sizes, keep, rounds, strict=True):
        centroids = fit_centroids(points, k, seed=int(next(seeds)))
        for _ in range(times):
            parents, scores = nearest_centroids(points, centroids)
            near = np.flatnonzero(_ranks(parents[:, 0], -scores[:, 0]) < few)
            new_seed = int(next(seeds))
            done += 1
            if watch:
                watch("Clustering", done, sum(rounds) + len(sizes))
            if len(near) < k:
                logger.warning("resampling to %d points leaves too few for %d clusters", len(near), k)
                continue
            centroids = fit_centroids(points[near], k, seed=new_seed)
        levels.append(Level(centroids, nearest_centroids(points, centroids)[0][:, 0]))
        points, done = centroids, done + 1
        if watch:
            watch("Clustering", done, sum(rounds) + len(sizes))
    return levels


def sample_balanced(
    levels: list[Level],
    target: int,
    *,
    pick: str = "random",
    rows: Float[np.ndarray, "n dim"] | None = None,
    seed: int = 0,
) -> Int64[np.ndarray, " target"]:
    """Return the positions of `target` rows, spread evenly over the clusters of every level, ascending.

    Every cluster gives the same number, or all it has: the largest number that does not exceed the target.
    What is left goes, one each, to clusters drawn from those that have more.

    Args:
        levels: of `build_hierarchy`.
        target: rows wanted; all where there are no more.
        pick: which rows of a lowest cluster, "random" or the "closest" to its centroid.
        rows: what was clustered; only for "closest".
        seed: of all draws.

    Raises:
        ArgumentError: no levels, no target, or no rows to tell the closest.
    """
    check_choice("pick", pick, PICKS)
    if not levels or target < 1:
        raise ArgumentError(f"cannot draw {target} rows from {len(levels)} levels; wanted 1 or more of both")
    lowest = levels[0]
    n = len(lowest.parents)
    if pick == "closest" and (rows is None or len(rows) != n):
        raise ArgumentError(f"the closest can only be told with the {n:,} rows that were clustered")
    rng = np.random.default_rng(seed)
    if target >= n:
        return np.arange(n)
    if pick == "closest" and rows is not None:
        key = -np.einsum("nd,nd->n", unit_rows(rows), lowest.centroids[lowest.parents])
    else:
        key = rng.random(n)
    quotas = _quotas(levels, target, rng)
    chosen = _ranks(lowest.parents, key) < quotas[lowest.parents]
    return np.flatnonzero(chosen)


def _quotas(levels: list[Level], target: int, rng: np.random.Generator) -> Int64[np.ndarray, " k"]:
    """Return how many rows each lowest cluster gives, by sharing the target out from the top down."""
    sizes = [np.bincount(levels[0].parents, minlength=len(levels[0].centroids))]
    for level in levels[1:]:
        sizes.append(
            np.bincount(level.parents, weights=sizes[-1], minlength=len(level.centroids)).astype(int)
        )
    quotas = _share(sizes[-1], target, rng)
    for level, below in zip(reversed(levels[1:]), reversed(sizes[:-1]), strict=True):
        shared = np.zeros(len(below), np.int64)
        order = np.argsort(level.parents, kind="stable")
        starts = np.searchsorted(level.parents[order], np.arange(len(quotas) + 1))
        for parent in np.flatnonzero(quotas):
            children = order[starts[parent] : starts[parent + 1]]
            shared[children] = _share(below[children], int(quotas[parent]), rng)
        quotas = shared
    return quotas


def _share(sizes: Int64[np.ndarray, " k"], total: int, rng: np.random.Generator) -> Int64[np.ndarray, " k"]:
    """Share `total` out over clusters: to each the same, at most its size, and the rest at random."""
    low, high = 0, int(sizes.max(initial=0))
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    quotas: Int64[np.ndarray, " k"] = np.minimum(sizes, low).astype(np.int64)
    more = np.flatnonzero(sizes > low)
    quotas[rng.choice(more, min(total - int(quotas.sum()), len(more)), replace=False)] += 1
    return quotas


def _ranks(clusters: Int64[np.ndarray, " n"], key: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return the place of each point in its cluster, by ascending key, equal keys by position."""
    order = np.lexsort((key, clusters))
    starts = np.searchsorted(clusters[order], clusters[order])
    ranks = np.empty(len(clusters), np.int64)
    ranks[order] = np.arange(len(clusters)) - starts
    return ranks


def _check(n: int, sizes: Sequence[int], keep: Sequence[int], rounds: Sequence[int]) -> None:
    if not len(sizes) == len(keep) == len(rounds) > 0:
        raise ArgumentError(
            f"{len(sizes)} levels, {len(keep)} numbers to keep, {len(rounds)} rounds; wanted as many of each"
        )
    if any(small >= large for large, small in zip([n + 1, *sizes], sizes, strict=False)) or sizes[-1] < 1:
        raise ArgumentError(
            f"levels of {', '.join(map(str, sizes))} clusters for {n:,} rows;"
            f" wanted ever fewer, from at most {n:,}"
        )
    if min(keep) < 1 or min(rounds) < 0:
        raise ArgumentError("a level must keep 1 point or more per cluster, and resample 0 times or more")
