"""Levels of clusters cover rare classes evenly, and samples share a target out exactly."""

import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes.hierarchy import Level, build_hierarchy, sample_balanced
from dinov2kit.indexes.kmeans import fit_centroids, nearest_centroids


def zipf_classes(n: int, count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    odds = np.arange(1, count + 1) ** -1.2
    classes = rng.choice(count, n, p=odds / odds.sum())
    rows = rng.normal(size=(count, dim))[classes] + 0.5 * rng.normal(size=(n, dim))
    return rows.astype(np.float32), classes


def entropy(classes: np.ndarray, count: int) -> float:
    share = np.bincount(classes, minlength=count) / len(classes)
    return -(share[share > 0] * np.log(share[share > 0])).sum() / np.log(count)


@pytest.fixture(scope="module")
def zipf():
    rows, classes = zipf_classes(8000, 60, 32)
    return rows, classes, build_hierarchy(rows, [300, 60], keep=[10, 3], rounds=[10, 10], seed=0)


def tree(*parents: list[int]) -> list[Level]:
    """Return levels by hand: of each level, the cluster of every point below; centroids do not matter."""
    counts = [max(one) + 1 for one in parents]
    return [
        Level(np.eye(k, 8, dtype=np.float32), np.array(one)) for k, one in zip(counts, parents, strict=True)
    ]


def test_a_hierarchical_sample_covers_rare_classes_that_others_miss(zipf):
    rows, classes, levels = zipf
    centroids = fit_centroids(rows, 300)
    flat = [Level(centroids, nearest_centroids(rows, centroids)[0][:, 0])]
    for target in (300, 1000):
        random = np.random.default_rng(0).choice(len(rows), target, replace=False)
        assert entropy(classes[random], 60) < 0.75
        assert entropy(classes[sample_balanced(flat, target, seed=0)], 60) < 0.93
        assert entropy(classes[sample_balanced(levels, target, seed=0)], 60) >= 0.95


def test_without_rounds_a_level_is_k_means_of_the_level_below(zipf):
    rows = zipf[0][:1000]
    levels = build_hierarchy(rows, [50, 10, 3], keep=[1, 1, 1], rounds=[0, 0, 0], seed=5)
    points = rows
    for level, k in zip(levels, (50, 10, 3), strict=True):
        assert level.centroids.shape == (k, 32)
        places, scores = nearest_centroids(points, level.centroids)
        assert np.array_equal(level.parents, places[:, 0])
        points = level.centroids
    _, scores = nearest_centroids(rows, levels[0].centroids)
    _, fitted = nearest_centroids(rows, fit_centroids(rows, 50, seed=1))
    assert scores.mean() == pytest.approx(fitted.mean(), abs=0.03)
    drawn = fit_centroids(rows[:50], 50)
    assert scores.mean() > nearest_centroids(rows, drawn)[1].mean() + 0.05


def test_resampling_clusters_the_nearest_points_of_every_cluster(monkeypatch):
    """Of 90 points here and 10 there, two centroids both see 3 after one round."""
    rng = np.random.default_rng(1)
    rows = np.concatenate([[[1, 0, 0]] * 90, [[0, 1, 0]] * 10]) + 0.05 * rng.normal(size=(100, 3))
    seen = []

    def remember(points, k, *, seed):
        seen.append(points)
        return fit_centroids(points, k, seed=seed)

    monkeypatch.setattr("dinov2kit.indexes.hierarchy.fit_centroids", remember)
    (level,) = build_hierarchy(rows.astype(np.float32), [2], keep=[3], rounds=[1])
    whole, sampled = seen
    assert np.array_equal(whole, rows.astype(np.float32))
    assert len(sampled) == 6
    places, scores = nearest_centroids(rows, fit_centroids(rows, 2, seed=0))
    for one in (0, 1):
        inside = np.flatnonzero(places[:, 0] == one)
        nearest = inside[np.argsort(-scores[inside, 0])[:3]]
        assert {tuple(row) for row in rows[nearest].astype(np.float32)} <= {tuple(row) for row in sampled}
    assert np.array_equal(level.parents, nearest_centroids(rows, level.centroids)[0][:, 0])


def test_resampling_that_leaves_too_few_points_keeps_the_clusters(caplog):
    rows = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    (level,) = build_hierarchy(rows, [5], keep=[1], rounds=[2])
    assert level.centroids.shape == (5, 3)
    assert "leaves too few for 5 clusters" in caplog.text


def test_the_same_seed_gives_the_same_levels_and_samples(zipf):
    rows, _, levels = zipf
    again = build_hierarchy(rows, [300, 60], keep=[10, 3], rounds=[10, 10], seed=0)
    for one, other in zip(levels, again, strict=True):
        assert np.array_equal(one.centroids, other.centroids)
        assert np.array_equal(one.parents, other.parents)
    assert np.array_equal(sample_balanced(levels, 500, seed=3), sample_balanced(again, 500, seed=3))
    assert not np.array_equal(sample_balanced(levels, 500, seed=3), sample_balanced(levels, 500, seed=4))


def test_a_sample_has_exactly_the_target_and_takes_as_equally_as_it_can(zipf):
    levels = zipf[2]
    tops = levels[1].parents[levels[0].parents]
    sizes = np.bincount(tops, minlength=60)
    for target in (1, 59, 60, 61, 1234, 7999):
        chosen = sample_balanced(levels, target, seed=1)
        assert len(chosen) == target == len(np.unique(chosen))
        assert (np.diff(chosen) > 0).all()
        taken = np.bincount(tops[chosen], minlength=60)
        cut = next(c for c in range(8000, -1, -1) if np.minimum(sizes, c).sum() <= target)
        assert ((taken == np.minimum(sizes, cut)) | ((taken == cut + 1) & (sizes > cut))).all()


def test_a_target_is_shared_out_from_the_top_down():
    """20 rows: a big cluster of two small and one large below, and a small one. By hand."""
    below = [0] * 2 + [1] * 2 + [2] * 12 + [3] * 4
    levels = tree(below, [0, 0, 0, 1])
    counts = np.bincount(np.array(below)[sample_balanced(levels, 12, seed=0)], minlength=4)
    assert counts.tolist() == [2, 2, 4, 4]  # 8 from the big one, of which 4 from its large one
    counts = np.bincount(np.array(below)[sample_balanced(levels, 6, seed=0)], minlength=4)
    assert counts.tolist() == [1, 1, 1, 3]
    for target in (20, 21, 10**9):
        assert sample_balanced(levels, target, seed=0).tolist() == list(range(20))


def test_what_is_left_goes_to_any_of_the_larger_clusters():
    levels = tree([0] + [1] * 50 + [2] * 50 + [3] * 50)
    extra = set()
    for seed in range(30):
        taken = np.bincount(levels[0].parents[sample_balanced(levels, 11, seed=seed)], minlength=4)
        assert taken[0] == 1
        assert sorted(taken[1:]) == [3, 3, 4]
        extra.add(int(taken.argmax()))
    assert extra == {1, 2, 3}


def test_a_random_pick_takes_every_row_of_a_cluster_equally_often():
    levels = tree([0] * 10 + [1] * 5)
    taken = np.zeros(15)
    for seed in range(400):
        taken[sample_balanced(levels, 4, seed=seed)] += 1
    assert np.abs(taken[:10] / 400 - 0.2).max() < 0.07
    assert np.abs(taken[10:] / 400 - 0.4).max() < 0.09


def test_the_closest_are_those_with_the_highest_cosine_to_their_centroid(zipf):
    rows, _, levels = zipf
    chosen = sample_balanced(levels, 900, pick="closest", rows=rows, seed=2)
    same = sample_balanced(levels, 900, pick="closest", rows=rows * 4, seed=2)
    assert np.array_equal(chosen, same)
    _, scores = nearest_centroids(rows, levels[0].centroids)
    for one in np.unique(levels[0].parents[chosen]):
        inside = np.flatnonzero(levels[0].parents == one)
        taken = np.isin(inside, chosen)
        assert scores[inside[taken]].min() >= scores[inside[~taken]].max(initial=-1) - 1e-6


@pytest.mark.parametrize(
    ("sizes", "keep", "rounds", "said"),
    [
        ([50], [1], [], "1 levels, 1 numbers to keep, 0 rounds"),
        ([], [], [], "0 levels"),
        ([101], [1], [0], "levels of 101 clusters for 100 rows"),
        ([10, 10], [1, 1], [0, 0], "levels of 10, 10 clusters"),
        ([10, 0], [1, 1], [0, 0], "levels of 10, 0 clusters"),
        ([10], [0], [1], "must keep 1 point or more"),
        ([10], [1], [-1], "must keep 1 point or more"),
    ],
)
def test_levels_that_make_no_sense(zipf, sizes, keep, rounds, said):
    with pytest.raises(ArgumentError, match=said):
        build_hierarchy(zipf[0][:100], sizes, keep=keep, rounds=rounds)


def test_samples_that_make_no_sense(zipf):
    rows, _, levels = zipf
    for levels_given, target in ((levels, 0), ([], 5)):
        with pytest.raises(ArgumentError, match="cannot draw"):
            sample_balanced(levels_given, target, seed=0)
    with pytest.raises(ArgumentError, match="unknown pick 'c'"):
        sample_balanced(levels, 5, pick="c", seed=0)
    for given in (None, rows[1:]):
        with pytest.raises(ArgumentError, match="closest can only be told with the 8,000 rows"):
            sample_balanced(levels, 5, pick="closest", rows=given, seed=0)
