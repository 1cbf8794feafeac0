"""Cluster-based retrieval: photos from those clusters of a pool that a query set falls into.

Source: Oquab et al., "DINOv2", 2023, appendix A: 100,000 clusters; every cluster with more than 3 images of
the query set gives 10,000 images; at most 1 million per query set. How they are drawn is not said: here
uniformly, by a seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import ArgumentError


@dataclass(frozen=True)
class ClusterUse:
    """How much of each cluster was chosen, in the order of the clusters' numbers.

    Attributes:
        pool: photos in it.
        hits: queries in it; zero for modes without queries.
        chosen: photos chosen from it.
    """

    pool: Int64[np.ndarray, " k"]
    hits: Int64[np.ndarray, " k"]
    chosen: Int64[np.ndarray, " k"]

    @property
    def entropy(self) -> float:
        """Entropy of the choice over the clusters that hold photos; 1 is even, 0 is all from one."""
        return normalised_entropy(self.chosen[self.pool > 0])

    def largest(self, count: int) -> Int64[np.ndarray, " c"]:
        """Return the clusters that gave most, then those that hold most."""
        return np.lexsort((-self.pool, -self.chosen))[:count].astype(np.int64)


def draw_from_clusters(
    labels: Int64[np.ndarray, " n"],
    hits: Int64[np.ndarray, " k"],
    *,
    min_hits: int,
    per_cluster: int,
    cap: int,
    seed: tuple[int, ...],
) -> Int64[np.ndarray, " m"]:
    """Draw photos for one query set.

    Args:
        labels: cluster of each photo of the pool.
        hits: queries of the set in each cluster.
        min_hits: queries that a cluster needs to be drawn from.
        per_cluster: the most photos from one cluster.
        cap: the most photos; more are thinned out evenly.
        seed: of the draw; each cluster has its own, so that one does not depend on another.

    Returns: places in the pool, ascending.

    Raises:
        ArgumentError: a number is below 1.
    """
    if min(min_hits, per_cluster, cap) < 1:
        raise ArgumentError(f"min_hits {min_hits}, per_cluster {per_cluster}, cap {cap}; wanted 1 or more")
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(hits) + 1))
    drawn = [np.zeros(0, np.int64)]
    for cluster in np.flatnonzero(hits >= min_hits):
        members = order[bounds[cluster] : bounds[cluster + 1]]
        # NumPy takes a seed as the same when zeros follow, so clusters count from 1 here
        drawn.append(draw(members, per_cluster, (*seed, int(cluster) + 1)))
    return draw(np.sort(np.concatenate(drawn)), cap, seed)


def draw(places: Int64[np.ndarray, " n"], most: int, seed: tuple[int, ...]) -> Int64[np.ndarray, " m"]:
    """Return `most` of the places, drawn uniformly without repeating, in their order; all of fewer."""
    if len(places) <= most:
        return places
    chosen = np.random.default_rng(seed).choice(len(places), most, replace=False)
    return places[np.sort(chosen)]


def normalised_entropy(counts: Int64[np.ndarray, " k"]) -> float:
    """Return the entropy of a distribution as a share of that of the even one: 1 is even, 0 is all in one."""
    if len(counts) < 2 or not counts.sum():
        return 0.0
    shares = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(shares * np.log(shares)).sum() / np.log(len(counts))))  # not -0.0
