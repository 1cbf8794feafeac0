"""Cluster-based retrieval: which clusters give, how many, and that the draw is even and seeded."""

import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes.cluster_sampling import (
    ClusterUse,
    draw,
    draw_from_clusters,
    normalised_entropy,
)

LABELS = np.repeat(np.arange(5), [10, 20, 30, 5, 0])[np.random.default_rng(0).permutation(65)]


def drawn(hits: list[int], **changed: object) -> np.ndarray:
    settings = {"min_hits": 4, "per_cluster": 8, "cap": 1000, "seed": (0,), **changed}
    return draw_from_clusters(LABELS, np.array(hits), **settings)


def test_clusters_with_enough_queries_give_their_photos_and_others_none() -> None:
    places = drawn([4, 3, 100, 9, 50])
    assert places.tolist() == sorted(set(places.tolist()))
    assert np.bincount(LABELS[places], minlength=5).tolist() == [8, 0, 8, 5, 0]
    assert np.bincount(LABELS[drawn([4, 3, 0, 0, 0], min_hits=3)], minlength=5).tolist() == [8, 8, 0, 0, 0]
    assert drawn([3, 3, 3, 3, 3]).tolist() == []


def test_a_large_limit_gives_whole_clusters() -> None:
    assert drawn([0, 4, 0, 0, 0], per_cluster=99).tolist() == np.flatnonzero(LABELS == 1).tolist()


def test_the_cap_thins_the_union_evenly() -> None:
    counts = np.zeros(5)
    for seed in range(300):
        places = drawn([4, 4, 4, 0, 0], per_cluster=30, cap=12, seed=(seed,))
        assert len(places) == 12
        counts += np.bincount(LABELS[places], minlength=5)
    assert counts / counts.sum() == pytest.approx(np.array([10, 20, 30, 0, 0]) / 60, abs=0.03)


def test_the_draw_within_a_cluster_is_uniform() -> None:
    members = np.flatnonzero(LABELS == 2)
    counts = np.zeros(65)
    for seed in range(600):
        counts[drawn([0, 0, 4, 0, 0], per_cluster=6, seed=(seed,))] += 1
    assert counts[members] / 600 == pytest.approx(6 / 30, abs=0.07)  # 4 standard deviations


def test_a_seed_fixes_the_draw_and_one_cluster_does_not_depend_on_another() -> None:
    alone, beside = drawn([0, 4, 0, 0, 0]), drawn([4, 4, 4, 0, 0])
    assert alone.tolist() == drawn([0, 4, 0, 0, 0]).tolist() != drawn([0, 4, 0, 0, 0], seed=(1,)).tolist()
    assert alone.tolist() == [place for place in beside.tolist() if LABELS[place] == 1]


def test_clusters_of_one_size_are_not_drawn_alike() -> None:
    labels = np.repeat(np.arange(4), 50)
    settings = {"min_hits": 1, "per_cluster": 10, "seed": (0,)}
    places = draw_from_clusters(labels, np.ones(4, np.int64), cap=40, **settings)
    patterns = {tuple(places[labels[places] == cluster] % 50) for cluster in range(4)}
    patterns.add(tuple(draw(np.arange(50), 10, (0,))))  # nor as the cap draws
    assert len(patterns) == 5


def test_a_draw_of_more_than_there_is_gives_all() -> None:
    assert draw(np.array([3, 5, 8]), 3, (0,)).tolist() == [3, 5, 8]
    assert len(draw(np.arange(100), 7, (0,))) == 7


@pytest.mark.parametrize("name", ["min_hits", "per_cluster", "cap"])
def test_a_number_below_one_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=f"{name} 0"):
        drawn([4, 4, 4, 4, 4], **{name: 0})


def test_entropy_is_one_for_an_even_use_and_zero_for_one_cluster() -> None:
    assert normalised_entropy(np.array([7, 7, 7])) == pytest.approx(1)
    assert normalised_entropy(np.array([7, 0, 0])) == 0
    assert normalised_entropy(np.array([2, 2, 0, 0])) == pytest.approx(0.5)
    assert normalised_entropy(np.array([5])) == normalised_entropy(np.array([0, 0])) == 0


def test_clusters_without_photos_do_not_count_as_unused() -> None:
    use = ClusterUse(np.array([9, 9, 0]), np.array([1, 1, 1]), np.array([4, 4, 0]))
    assert use.entropy == pytest.approx(1)
    assert ClusterUse(np.array([9, 9, 9]), use.hits, use.chosen).entropy < 0.7
    assert ClusterUse(np.array([3, 8, 9]), use.hits, np.array([2, 5, 2])).largest(2).tolist() == [1, 2]
