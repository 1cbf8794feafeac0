"""Leaving out items that mean nearly the same as another one, cluster by cluster."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from dinov2kit.errors import ArgumentError, check_choice

from .kmeans import nearest_centroids, unit_rows

ORDERS = ("hard", "easy", "random")
_VALUES = 2**24  # cosines computed at a time


def drop_redundant(
    rows: Float[np.ndarray, "n dim"],
    centroids: Float32[np.ndarray, "k dim"],
    *,
    eps: float,
    order: str = "hard",
    seed: int = 0,
) -> Bool[np.ndarray, " n"]:
    """Say which items to keep: those without an earlier item whose cosine is above 1 - eps.

    An item is compared with the items of its own cluster and of its second-nearest one, so that copies on
    both sides of a border are found. An item counts as earlier even if it is left out itself.

    Args:
        rows: of any length above 0.
        centroids: of `fit_centroids`.
        eps: above 0; more leaves out more.
        order: which of alike items is kept: "hard" the farthest from its centroid, "easy" the nearest,
            "random" any.
        seed: of the random order.

    Raises:
        ArgumentError: `eps` or `order` make no sense, or a row is not finite, or zero.

    Source: Abbas et al., "SemDeDup: Data-efficient learning at web-scale through semantic deduplication",
    2023, Section 3; the second-nearest cluster is not in it.
    """
    if not 0 < eps <= 1:
        raise ArgumentError(f"eps is {eps}; wanted above 0, up to 1")
    return redundancy(rows, centroids, order=order, seed=seed) <= 1 - eps


def redundancy(
    rows: Float[np.ndarray, "n dim"],
    centroids: Float32[np.ndarray, "k dim"],
    *,
    order: str = "hard",
    seed: int = 0,
) -> Float32[np.ndarray, " n"]:
    """Return each item's highest cosine with an earlier item; -1 without one. See `drop_redundant`."""
    check_choice("order", order, ORDERS)
    clusters, scores = nearest_centroids(rows, centroids, count=min(2, len(centroids)))
    keys = {"hard": scores[:, 0], "easy": -scores[:, 0], "random": np.zeros(0)}[order]
    if order == "random":
        keys = np.random.default_rng(seed).random(len(rows))
    rank = np.empty(len(rows), np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(rows))
    highest = np.full(len(rows), -1, np.float32)
    own = np.argsort(clusters[:, 0], kind="stable")
    starts = np.searchsorted(clusters[own, 0], np.arange(len(centroids) + 1))
    guests = np.argsort(clusters[:, -1], kind="stable")
    guest_starts = np.searchsorted(clusters[guests, -1], np.arange(len(centroids) + 1))
    for number in range(len(centroids)):
        inside = own[starts[number] : starts[number + 1]]
        visiting = guests[guest_starts[number] : guest_starts[number + 1]]
        _compare(rows, inside, inside, rank, highest)
        if clusters.shape[1] > 1:
            _compare(rows, visiting, inside, rank, highest)
    return highest


def _compare(
    rows: Float[np.ndarray, "n dim"],
    some: Int64[np.ndarray, " a"],
    others: Int64[np.ndarray, " b"],
    rank: Int64[np.ndarray, " n"],
    highest: Float32[np.ndarray, " n"],
) -> None:
    """Raise `highest` of either side to its highest cosine with an earlier item of the other side."""
    step = max(1, _VALUES // max(len(others), 1))
    right = unit_rows(rows[others])
    for start in range(0, len(some), step):
        left = some[start : start + step]
        cosines = unit_rows(rows[left]) @ right.T
        later = rank[left][:, None] > rank[others]
        earlier = rank[left][:, None] < rank[others]
        highest[left] = np.maximum(highest[left], np.where(later, cosines, -1).max(axis=1, initial=-1))
        highest[others] = np.maximum(highest[others], np.where(earlier, cosines, -1).max(axis=0, initial=-1))
