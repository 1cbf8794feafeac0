"""Sample-based retrieval: who gets a photo that several queries want, and whether the counts add up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes.retrieval_sampling import Retrieved, retrieve


class Lookup:
    """A search over a known matrix of cosines, (queries, photos); the id of photo i is 10 * i."""

    def __init__(self, scores: list[list[float]] | np.ndarray) -> None:
        self.scores = np.array(scores, np.float32)
        self.calls: list[tuple[list[int], int]] = []

    def __call__(self, places: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((places.tolist(), depth))
        rows = self.scores[places]
        order = np.argsort(-rows, axis=1, kind="stable")[:, :depth].astype(np.int64)
        found = np.take_along_axis(rows, order, axis=1)
        missing = depth - order.shape[1]
        if missing > 0:
            order = np.pad(order, ((0, 0), (0, missing)), constant_values=-1)
            found = np.pad(found, ((0, 0), (0, missing)), constant_values=-np.inf)
        return np.where(order >= 0, order * 10, -1), found


def run(scores: np.ndarray, k: int, rule: str, **settings: int) -> Retrieved:
    scores = np.array(scores, np.float32)
    return retrieve(Lookup(scores), len(scores), k, pool=scores.shape[1], on_collision=rule, **settings)


def rows_of(found: Retrieved) -> list[tuple[int, int, int]]:
    return list(zip(found.query.tolist(), found.ids.tolist(), found.rank.tolist(), strict=True))


def greedy(scores: np.ndarray, k: int) -> list[tuple[int, int, int]]:
    """Return what "next" means, by sorting all pairs: (query, id, rank)."""
    pairs = []
    for query, row in enumerate(scores.astype(np.float32)):
        for rank, photo in enumerate(np.argsort(-row, kind="stable")):
            pairs.append((-row[photo], query, rank, int(photo)))
    need, owned, taken = [k] * len(scores), set(), []
    for _, query, rank, photo in sorted(pairs):
        if need[query] and photo not in owned:
            owned.add(photo)
            need[query] -= 1
            taken.append((query, 10 * photo, rank + 1))
    return sorted(taken, key=lambda row: (row[0], row[2]))


CONTESTED = np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.6]])  # both want the first photo


def test_a_contested_photo_goes_to_the_more_similar_query_and_the_other_takes_its_next() -> None:
    found = run(CONTESTED, 1, "next")
    assert rows_of(found) == [(0, 0, 1), (1, 10, 2)]
    assert found.score.tolist() == pytest.approx([0.9, 0.7])
    swapped = run(CONTESTED[::-1], 1, "next")
    assert rows_of(swapped) == [(0, 10, 2), (1, 0, 1)]


def test_equal_pairs_are_taken_in_the_order_of_the_queries() -> None:
    assert rows_of(run(np.full((3, 3), 0.5), 1, "next")) == [(0, 0, 1), (1, 10, 2), (2, 20, 3)]


def test_a_contested_photo_is_dropped_for_the_less_similar_query_or_kept_for_both() -> None:
    assert rows_of(run(CONTESTED, 1, "drop")) == [(0, 0, 1)]
    assert rows_of(run(CONTESTED[::-1], 1, "drop")) == [(1, 0, 1)]
    assert rows_of(run(CONTESTED, 1, "keep")) == [(0, 0, 1), (1, 0, 1)]
    for rule, counts in {"next": (2, 2, 2, 0), "drop": (2, 1, 1, 1), "keep": (2, 2, 1, 0)}.items():
        found = run(CONTESTED, 1, rule)
        assert (found.asked, found.returned, found.unique, found.shortfall) == counts
        assert found.collisions == 1


def test_a_pool_smaller_than_what_is_asked_for_is_given_out_whole() -> None:
    found = run(np.random.default_rng(0).random((5, 7)), 3, "next")
    assert (found.asked, found.returned, found.shortfall) == (15, 7, 8)
    assert sorted(found.ids.tolist()) == [10 * photo for photo in range(7)]


def test_a_query_ends_with_a_shortfall_where_it_may_not_look_further() -> None:
    scores = np.tile(np.linspace(0.9, 0.1, 40), (4, 1))  # all queries want the same, in the same order
    found = run(scores, 2, "next", max_depth=5)
    assert (found.asked, found.returned, found.shortfall) == (8, 5, 3)
    assert found.rank.max() == 5
    assert run(scores, 2, "next", max_depth=8).shortfall == 0


def test_queries_that_run_out_look_further_together() -> None:
    scores = np.tile(np.linspace(0.9, 0.1, 400), (40, 1))
    lookup = Lookup(scores)
    found = retrieve(lookup, 40, 4, pool=400, on_collision="next")
    assert (found.returned, found.unique) == (160, 160)
    assert lookup.calls[0] == (list(range(40)), 32)
    assert [depth for _, depth in lookup.calls] == [
        32,
        128,
        400,
    ]  # one search for all, and each 4 times deeper
    assert rows_of(found) == greedy(scores, 4)


matrices = st.integers(1, 6).flatmap(
    lambda photos: st.lists(
        st.lists(st.integers(0, 4), min_size=photos, max_size=photos), min_size=1, max_size=6
    )
)


@settings(max_examples=80, deadline=None)
@given(matrices, st.integers(1, 4))
def test_the_counts_always_add_up(scores: list[list[int]], k: int) -> None:
    matrix = np.array(scores) / 4
    queries, pool = matrix.shape
    found = {rule: run(matrix, k, rule) for rule in ("next", "drop", "keep")}
    nearest = np.argsort(-matrix, axis=1, kind="stable")[:, :k]
    for rule in found.values():
        assert rule.asked == k * queries == rule.returned + rule.shortfall
        assert rule.collisions == nearest.size - len(np.unique(nearest))
        assert np.bincount(rule.query, minlength=queries).max() <= k
        assert len(set(zip(rule.query.tolist(), rule.ids.tolist(), strict=True))) == rule.returned
        assert rule.score == pytest.approx(matrix[rule.query, rule.ids // 10])
        assert rows_of(rule) == sorted(rows_of(rule), key=lambda row: (row[0], row[2]))
    missing = queries * max(k - pool, 0)
    assert found["keep"].shortfall == missing
    assert found["keep"].unique == found["keep"].returned - found["keep"].collisions
    assert found["drop"].shortfall == missing + found["drop"].collisions
    assert found["drop"].unique == found["drop"].returned == found["keep"].unique
    assert set(found["drop"].ids) == set(found["keep"].ids)
    assert found["next"].unique == found["next"].returned == min(k * queries, pool)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 120), st.integers(1, 3), st.booleans())
def test_looking_step_by_step_is_the_same_as_sorting_all_pairs(
    seed: int, queries: int, pool: int, k: int, ties: bool
) -> None:
    rng = np.random.default_rng(seed)
    wanted = rng.random(pool)  # all queries like much the same, so they collide
    scores = wanted + 0.05 * rng.random((queries, pool))
    scores = np.round(scores, 1) if ties else scores
    assert rows_of(run(scores, k, "next")) == greedy(scores, k)


def test_a_search_that_finds_other_neighbours_when_it_looks_deeper_gives_no_photo_twice() -> None:
    exact = Lookup(np.tile(np.linspace(0.9, 0.1, 200), (20, 1)))

    def forgetful(places: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        ids, scores = exact(places, min(depth + 3, 200))
        keep = np.arange(ids.shape[1]) % 11 != (0 if depth < 100 else 5)  # misses others each time
        ids, scores = ids[:, keep][:, :depth], scores[:, keep][:, :depth]
        lack = depth - ids.shape[1]
        return np.pad(ids, ((0, 0), (0, lack)), constant_values=-1), np.pad(scores, ((0, 0), (0, lack)))

    assert (forgetful(np.arange(1), 32)[0] >= 0).sum() < 32  # fewer than asked for is not the end
    found = retrieve(forgetful, 20, 4, pool=200, on_collision="next")
    assert found.returned == found.unique == 80


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"on_collision": "share"}, "unknown collision rule 'share'"),
        ({"k": 0}, "k 0"),
        ({"k": 5, "max_depth": 4}, "max_depth 4"),
        ({"pool": 0}, "pool 0"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, object], said: str) -> None:
    settings = {"k": 1, "pool": 3, **changed}
    with pytest.raises(ArgumentError, match=said):
        retrieve(Lookup(CONTESTED), 2, **settings)
