"""What is left out has an earlier item that is alike, across borders of clusters too."""

import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import semantic_dedup
from dinov2kit.indexes.kmeans import fit_centroids, nearest_centroids
from dinov2kit.indexes.semantic_dedup import drop_redundant, redundancy

CENTROIDS = np.eye(2, dtype=np.float32)


def at(*degrees: float) -> np.ndarray:
    """Return points of the circle; 0 and 90 degrees are the centroids, 45 is the border."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def within(degrees: float) -> float:
    """Return the eps that calls items alike whose directions differ by less than so many degrees."""
    return 1 - float(np.cos(np.radians(degrees)))


def plain(rows: np.ndarray, centroids: np.ndarray, order: str) -> np.ndarray:
    """Restate the rule with a loop over all pairs of items that share a cluster as nearest or second."""
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines, to_centroids = rows @ rows.T, rows @ centroids.T
    near = np.argsort(-to_centroids, axis=1, kind="stable")[:, :2]
    highest = np.full(len(rows), -1.0)
    for j in range(len(rows)):
        for i in range(len(rows)):
            keys = [to_centroids[one, near[one, 0]] * (1 if order == "hard" else -1) for one in (i, j)]
            earlier = (keys[0], i) < (keys[1], j)
            meet = near[i, 0] in near[j] or near[j, 0] in near[i]
            if earlier and meet:
                highest[j] = max(highest[j], cosines[i, j])
    return highest


@pytest.mark.parametrize(("order", "kept"), [("hard", [False, True, True]), ("easy", [True, False, True])])
def test_of_two_alike_items_the_far_or_the_near_one_stays(order, kept):
    assert drop_redundant(at(3, 5, 30), CENTROIDS, eps=within(4), order=order).tolist() == kept


def test_the_distance_that_counts_as_alike_is_eps():
    rows = at(10, 15, 25)
    for degrees, kept in ((4.9, [1, 1, 1]), (5.1, [0, 1, 1]), (10.1, [0, 0, 1])):
        assert drop_redundant(rows, CENTROIDS, eps=within(degrees)).tolist() == [bool(one) for one in kept]


def test_an_item_that_is_left_out_still_counts_as_earlier():
    """Of a chain 30, 26, 22 with steps within eps, only the first stays, as in SemDeDup."""
    assert drop_redundant(at(22, 26, 30), CENTROIDS, eps=within(5)).tolist() == [False, False, True]


def test_copies_on_both_sides_of_a_border_are_found():
    rows = at(44.5, 45.5, 10, 80)
    assert len(np.unique(nearest_centroids(rows[:2], CENTROIDS)[0])) == 2
    kept = drop_redundant(rows, CENTROIDS, eps=within(2))
    assert kept.sum() == 3
    assert kept[2:].all()


def test_of_equal_rows_one_stays():
    rows = np.repeat(at(10, 40, 70), 5, axis=0)
    for order in ("hard", "easy", "random"):
        kept = drop_redundant(rows, CENTROIDS, eps=1e-3, order=order)
        assert kept.reshape(3, 5).sum(axis=1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("order", ["hard", "easy"])
@pytest.mark.parametrize("values", [2**24, 100])
def test_the_highest_cosines_are_those_of_all_pairs(monkeypatch, order, values):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(25, 6))[rng.integers(0, 25, 150)] + 0.3 * rng.normal(size=(150, 6))
    rows = rows.astype(np.float32)
    centroids = fit_centroids(rows, 12)
    monkeypatch.setattr(semantic_dedup, "_VALUES", values)
    found = redundancy(rows, centroids, order=order)
    assert np.allclose(found, plain(rows, centroids, order), atol=1e-5)
    kept = drop_redundant(rows, centroids, eps=0.05, order=order)
    assert 0 < kept.sum() < 150
    assert np.array_equal(kept, found <= 0.95)


def test_a_random_order_depends_on_the_seed_only_and_covers_all_pairs():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(10, 6))[rng.integers(0, 10, 200)] + 0.2 * rng.normal(size=(200, 6))).astype("f")
    centroids = fit_centroids(rows, 4)
    masks = [drop_redundant(rows, centroids, eps=0.1, order="random", seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    near = nearest_centroids(rows, centroids)[0][:, 0]
    for kept in masks:
        alike = (unit[~kept] @ unit.T > 0.9 - 1e-5).sum(axis=1) > 1
        assert alike.all()  # nothing was left out for nothing
        pairs = (unit[kept] @ unit[kept].T > 0.9 + 1e-5) & (near[kept][:, None] == near[kept])
        assert pairs.sum() == kept.sum()  # and no two alike ones of a cluster stayed


def test_one_cluster_is_the_whole_matrix_and_empty_clusters_do_no_harm():
    rows = at(1, 20, 21, 50)
    for centroids in (at(30), np.concatenate([at(30), at(30), -at(30)])):
        assert drop_redundant(rows, centroids, eps=within(2)).sum() == 3
    assert drop_redundant(rows[:0], CENTROIDS, eps=0.1).shape == (0,)


def test_orders_and_eps_that_make_no_sense():
    for eps in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ArgumentError, match="wanted above 0"):
            drop_redundant(at(1, 2), CENTROIDS, eps=eps)
    with pytest.raises(ArgumentError, match="unknown order 'far'"):
        drop_redundant(at(1, 2), CENTROIDS, eps=0.1, order="far")
    with pytest.raises(ArgumentError, match="the first is row 1"):
        drop_redundant(np.array([[1, 0], [0, 0]], np.float32), CENTROIDS, eps=0.1)
