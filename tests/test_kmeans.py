"""Spherical k-means finds known clusters, uses every row, and says what it cannot cluster."""

import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import kmeans
from dinov2kit.indexes.faiss_door import gpu_count
from dinov2kit.indexes.kmeans import fit_centroids, nearest_centroids

DIM = 16


def blobs(per_cluster: list[int], *, noise: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return rows around orthogonal directions, and their clusters."""
    rng = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(len(per_cluster)), per_cluster)
    rows = np.eye(len(per_cluster), DIM)[clusters] + noise * rng.normal(size=(len(clusters), DIM))
    order = rng.permutation(len(rows))
    return rows[order].astype(np.float32), clusters[order]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_centroids_are_the_mean_directions_of_known_clusters():
    rows, clusters = blobs([400, 30, 3, 90])
    centroids = fit_centroids(rows, 4)
    means = unit(np.stack([unit(rows[clusters == one]).sum(axis=0) for one in range(4)]))
    match = np.argmax(means @ centroids.T, axis=1)
    assert sorted(match) == [0, 1, 2, 3]
    assert np.allclose(centroids[match], means, atol=1e-5)
    places, scores = nearest_centroids(rows, centroids)
    assert np.array_equal(places[:, 0], match[clusters])
    assert np.allclose(scores[:, 0], np.einsum("nd,nd->n", unit(rows), means[clusters]), atol=1e-5)


def test_every_centroid_is_the_mean_direction_of_the_rows_that_are_nearest_by_cosine():
    """The fixed point of the iterations on the sphere; that of plain k-means has shorter centroids."""
    tight, _ = blobs([200, 200], noise=0.1)
    loose, _ = blobs([300, 300, 300], noise=0.7, seed=1)
    rows = np.concatenate([tight, loose])
    centroids = fit_centroids(rows, 6, iterations=200)
    nearest = nearest_centroids(rows, centroids)[0][:, 0]
    means = unit(np.stack([unit(rows[nearest == one]).sum(axis=0) for one in range(6)]))
    assert np.allclose(centroids, means, atol=1e-5)


def test_no_row_is_left_out_silently():
    """faiss alone looks at 256 rows per cluster; the mean of all is not the mean of those."""
    rows = np.concatenate([np.tile([1.0, 0.0], (3000, 1)), [[0.0, 1.0]] * 1000]).astype(np.float32)
    (centroid,) = fit_centroids(rows, 1)
    assert np.allclose(centroid, unit(np.array([3000.0, 1000.0])), atol=1e-5)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_only_directions_count_and_rows_stay_as_they_are(kind):
    rows, _ = blobs([60, 60, 60])
    rows = unit(rows).astype(kind)
    scaled = (rows * np.random.default_rng(1).choice([0.5, 1, 2, 4], (len(rows), 1))).astype(kind)
    before = scaled.copy()
    once, twice = fit_centroids(rows, 3), fit_centroids(scaled, 3)
    assert once.dtype == np.float32
    assert np.allclose(once, twice, atol=1e-4)
    assert np.allclose(np.linalg.norm(once, axis=1), 1, atol=1e-6)
    assert np.array_equal(scaled, before)


def test_the_same_seed_gives_the_same_centroids():
    rows, _ = blobs([50] * 8, noise=0.4)
    assert np.array_equal(fit_centroids(rows, 20, seed=3), fit_centroids(rows, 20, seed=3))
    assert not np.array_equal(fit_centroids(rows, 20, seed=3), fit_centroids(rows, 20, seed=4))


def test_the_start_spreads_over_rare_clusters():
    """A start of random rows misses the rare ones nearly always; k-means++ takes the far ones."""
    rows, clusters = blobs([3000, 3, 3, 3, 3, 3], noise=0.001)
    for seed in range(5):
        places, _ = nearest_centroids(rows, fit_centroids(rows, 6, seed=seed))
        assert len(np.unique(places[clusters > 0, 0])) == 5


def test_as_many_clusters_as_rows_are_the_rows():
    rows, _ = blobs([2, 3, 4])
    centroids = fit_centroids(rows, 9)
    assert np.allclose(centroids, unit(rows), atol=1e-6)


def test_with_fewer_different_rows_than_clusters_every_row_is_a_centroid():
    rows = np.repeat(np.eye(3, DIM, dtype=np.float32), 20, axis=0)
    centroids = fit_centroids(rows, 7)
    assert np.isfinite(centroids).all()
    assert np.allclose(nearest_centroids(rows, centroids)[1], 1, atol=1e-5)


def test_rows_that_cancel_out_still_have_a_centroid_of_length_1():
    rows = np.array([[1, 0], [-1, 0]] * 10, np.float32)
    assert np.linalg.norm(fit_centroids(rows, 1)) == pytest.approx(1)


def test_the_nearest_centroids_are_those_of_the_sort(monkeypatch):
    rows, _ = blobs([40] * 5, noise=0.5)
    centroids = unit(np.random.default_rng(2).normal(size=(12, DIM))).astype(np.float32)
    cosines = unit(rows) @ centroids.T
    order = np.argsort(-cosines, axis=1)[:, :4]
    monkeypatch.setattr(kmeans, "_BLOCK", 33)
    places, scores = nearest_centroids(rows, centroids, count=4)
    assert np.array_equal(places, order)
    assert np.allclose(scores, np.take_along_axis(cosines, order, axis=1), atol=1e-6)
    assert nearest_centroids(rows[:0], centroids, count=4)[0].shape == (0, 4)


@pytest.mark.parametrize(("row", "value"), [(7, np.nan), (7, np.inf), (slice(7, 8), 0.0)])
def test_rows_without_a_direction_are_refused_by_name(row, value):
    rows, _ = blobs([10, 10])
    rows[row] = value
    for work in (lambda: fit_centroids(rows, 2), lambda: nearest_centroids(rows, rows[:2])):
        with pytest.raises(ArgumentError, match="1 rows are not finite, or zero; the first is row 7"):
            work()


def test_clusterings_that_make_no_sense():
    rows, _ = blobs([5, 5])
    for k in (0, 11):
        with pytest.raises(ArgumentError, match=f"{k} clusters of 10 rows; wanted 1 to 10"):
            fit_centroids(rows, k)
    with pytest.raises(ArgumentError, match="iterations is 0"):
        fit_centroids(rows, 2, iterations=0)
    for count in (0, 3):
        with pytest.raises(ArgumentError, match=f"count is {count}; wanted 1 to 2"):
            nearest_centroids(rows, rows[:2], count=count)


@pytest.mark.gpu
def test_centroids_of_a_gpu_are_those_of_the_cpu(monkeypatch):
    if not gpu_count():
        pytest.skip("needs a faiss that sees a GPU")
    rows, _ = blobs([400, 30, 3, 90])
    there = fit_centroids(rows, 4)
    monkeypatch.setattr(kmeans, "gpu_count", lambda: 0)
    here = fit_centroids(rows, 4)
    assert np.allclose(there, here, atol=1e-4)
    assert np.array_equal(nearest_centroids(rows, there)[0], nearest_centroids(rows, here)[0])
