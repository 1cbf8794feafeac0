"""Spherical k-means by faiss: every row used, seeded, and on the GPU where faiss sees one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Int64

from dinov2kit.errors import ArgumentError

from .faiss_door import gpu_count, load_faiss
from .records import Watch

ITERATIONS = 50
_BLOCK = 65536  # rows compared with the centroids at a time


def fit_centroids(
    rows: Float[np.ndarray, "n dim"],
    k: int,
    *,
    seed: int = 0,
    iterations: int = ITERATIONS,
    watch: Watch | None = None,
) -> Float32[np.ndarray, "k dim"]:
    """Return `k` centroids of length 1 of the directions of the rows.

    Lloyd's iterations on the unit sphere from a k-means++ start. Every row is used: nothing is subsampled.
    Where fewer than `k` rows differ, centroids coincide; with exactly `k` rows they are the rows.

    Args:
        rows: of any length above 0; only their directions count.
        k: clusters.
        seed: the same seed gives the same centroids on the same machine.
        iterations: of Lloyd's algorithm.
        watch: called when it starts.

    Raises:
        ArgumentError: fewer rows than clusters, or a row that is not finite, or zero.

    Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007.
    """
    if not 1 <= k <= len(rows):
        raise ArgumentError(f"cannot make {k:,} clusters of {len(rows):,} rows; wanted 1 to {len(rows):,}")
    if iterations < 1:
        raise ArgumentError(f"iterations is {iterations}; wanted 1 or more")
    if watch:
        watch("Clustering", 0, None)
    unit, faiss = unit_rows(rows), load_faiss()
    kmeans = faiss.Kmeans(
        unit.shape[1],
        k,
        niter=iterations,
        spherical=True,
        seed=seed,
        init_method=faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS,
        min_points_per_centroid=1,
        max_points_per_centroid=len(unit),
        gpu=gpu_count() > 0,
    )
    kmeans.train(unit)
    centroids = kmeans.centroids
    centroids[~centroids.any(axis=1)] = unit[0]  # its rows cancel out: any direction is as good
    return unit_rows(centroids)


def nearest_centroids(
    rows: Float[np.ndarray, "n dim"], centroids: Float32[np.ndarray, "k dim"], *, count: int = 1
) -> tuple[Int64[np.ndarray, "n count"], Float32[np.ndarray, "n count"]]:
    """Return the `count` nearest centroids of each row, nearest first, and the cosines with them.

    Raises:
        ArgumentError: fewer centroids than `count`, or a row that is not finite, or zero.
    """
    if not 1 <= count <= len(centroids):
        raise ArgumentError(f"count is {count}; wanted 1 to {len(centroids):,}, the number of centroids")
    faiss = load_faiss()
    places = np.empty((len(rows), count), np.int64)
    scores = np.empty((len(rows), count), np.float32)
    for start in range(0, len(rows), _BLOCK):
        some = unit_rows(rows[start : start + _BLOCK])
        stop = start + len(some)
        scores[start:stop], places[start:stop] = faiss.knn(
            some, centroids, count, metric=faiss.METRIC_INNER_PRODUCT
        )
    return places, scores


def unit_rows(rows: Float[np.ndarray, "n dim"]) -> Float32[np.ndarray, "n dim"]:
    """Return a copy of the rows as float32 of length 1.

    Raises:
        ArgumentError: a row is not finite, or zero.
    """
    unit: Float32[np.ndarray, "n dim"] = np.array(rows, np.float32, order="C")
    lengths = np.sqrt(np.einsum("nd,nd->n", unit, unit))
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        raise ArgumentError(
            f"{int(wrong.sum()):,} rows are not finite, or zero; the first is row {wrong.argmax()}"
        )
    unit /= lengths[:, None]
    return unit
