"""Several queries at once: every aggregation against comparing all items, and how deep it looks."""

import numpy as np
import pytest
from small_index import DIM, direction, make_index

from dinov2kit.indexes import aggregate
from dinov2kit.indexes.aggregate import nearest
from dinov2kit.indexes.search import Searcher
from dinov2kit.indexes.snapshot import Snapshot

COUNT = 600


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    with Snapshot.open(make_index(tmp_path_factory.mktemp("aggregate") / "ix", COUNT)) as opened:
        yield opened


def truth(snapshot, queries: np.ndarray, agg: str) -> dict[int, float]:
    """Return the score of every item, best first, by its cosines to all queries in float64."""
    rows = snapshot.descriptors(snapshot.ids).astype(np.float64)
    cosine = queries.astype(np.float64) @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    if agg == "rrf":
        ranks = np.argsort(np.argsort(-cosine, axis=1), axis=1) + 1
        score = (1 / (60 + ranks)).sum(axis=0)
    else:
        score = getattr(cosine, agg)(axis=0)
    order = np.lexsort((snapshot.ids, -score.astype(np.float32)))
    return {int(snapshot.ids[place]): float(score[place]) for place in order}


class Counted:
    """A search that notes how many items it was asked for."""

    def __init__(self, snapshot) -> None:
        self.searcher, self.depths = Searcher(snapshot), []

    def __call__(self, queries, k):
        self.depths.append(k)
        return self.searcher.search(queries, k)


def asked(*seeds: int) -> np.ndarray:
    return np.stack([direction(seed) for seed in seeds])


@pytest.mark.parametrize("agg", ["max", "min", "rrf"])
@pytest.mark.parametrize("seeds", [(9001,), (9001, 9002), (9003, 9004, 9005, 9006, 9007)])
@pytest.mark.parametrize("count", [1, 10, 100])
def test_an_aggregation_finds_what_comparing_all_items_finds(snapshot, agg, seeds, count):
    queries = asked(*seeds)
    ids, scores = nearest(snapshot, Counted(snapshot), queries, count, agg)
    expected = truth(snapshot, queries, agg)
    assert ids.tolist() == list(expected)[:count]
    assert np.allclose(scores, list(expected.values())[:count], atol=1e-6)


def test_an_item_that_is_good_for_all_queries_is_found_though_no_list_has_it_early(snapshot, monkeypatch):
    """Opposite queries: what is nearest to one is furthest from the other, and the answer lies between."""
    monkeypatch.setattr(aggregate, "_FIRST_DEPTH", 4)
    one = direction(9001)
    queries = np.stack([one, -0.9 * one + 0.43589 * direction(9002)])
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    expected = list(truth(snapshot, queries, "min"))[:5]
    first, _ = Searcher(snapshot).search(queries, 20)
    assert not set(expected) & set(first.ravel().tolist())
    search = Counted(snapshot)
    ids, _ = nearest(snapshot, search, queries, 5, "min")
    assert ids.tolist() == expected
    assert search.depths == sorted(search.depths)
    assert search.depths[0] == 20


def test_lists_grow_only_as_far_as_the_proof_needs(snapshot, monkeypatch):
    monkeypatch.setattr(aggregate, "_FIRST_DEPTH", 4)
    near = direction(9001) + 0.05 * direction(9002)
    queries = np.stack([direction(9001), near / np.linalg.norm(near)]).astype(np.float32)
    search = Counted(snapshot)
    ids, _ = nearest(snapshot, search, queries, 2, "min")
    assert ids.tolist() == list(truth(snapshot, queries, "min"))[:2]
    assert search.depths == [8]


def test_where_lists_would_grow_too_long_all_items_are_compared(snapshot, monkeypatch):
    monkeypatch.setattr(aggregate, "_FIRST_DEPTH", 4)
    monkeypatch.setattr(aggregate, "_DEEPEST", 16)
    monkeypatch.setattr(aggregate, "_BLOCK", 100)
    queries = np.stack([direction(9001), -direction(9001) + 0.1 * direction(9002)]).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    search = Counted(snapshot)
    expected = truth(snapshot, queries, "min")
    ids, scores = nearest(snapshot, search, queries, 3, "min", left_out=tuple(expected)[:1])
    assert ids.tolist() == list(expected)[1:4]
    assert np.allclose(scores, list(expected.values())[1:4], atol=1e-6)
    assert search.depths == [16]


@pytest.mark.parametrize("agg", ["mean", "max", "min", "rrf"])
def test_what_is_left_out_or_not_allowed_is_never_found_and_places_are_filled(snapshot, agg):
    queries = asked(9001) if agg == "mean" else asked(9001, 9002)
    allowed = snapshot.ids[::3]
    searcher = Searcher(snapshot)

    def search(rows, k):
        return searcher.search(rows, k, allowed=allowed)

    whole = nearest(snapshot, search, queries, len(allowed), agg, allowed=allowed)[0]
    assert sorted(whole.tolist()) == allowed.tolist()
    without = tuple(whole[:2].tolist())
    ids, _ = nearest(snapshot, search, queries, 5, agg, allowed=allowed, left_out=without)
    if agg != "rrf":  # there the ranks of the others change
        assert ids.tolist() == whole[2:7].tolist()
    assert not set(without) & set(ids.tolist())
    assert len(ids) == 5
    everything, _ = nearest(snapshot, search, queries, 10_000, agg, allowed=allowed, left_out=without)
    assert set(everything.tolist()) == set(allowed.tolist()) - set(without)


def test_reciprocal_ranks_are_those_of_what_may_be_found(snapshot):
    """Two lists by hand: 7 is first and third, 8 second in both, 9 is left out of the first place of one."""
    lists = np.array([[7, 8, 5, -1], [9, 6, 8, 7]])

    def search(queries, k):
        return lists, np.zeros(lists.shape, np.float32)

    ids, scores = nearest(snapshot, search, np.zeros((2, DIM), np.float32), 9, "rrf", left_out=(9,))
    assert ids.tolist() == [7, 8, 6, 5]
    assert np.allclose(scores, [1 / 61 + 1 / 63, 1 / 62 + 1 / 62, 1 / 61, 1 / 63])


def test_equal_scores_come_by_their_ids(snapshot):
    twice = asked(9001, 9001)
    for agg in ("max", "min"):
        ids, scores = nearest(snapshot, Counted(snapshot), twice, 10, agg)
        alone, cosine = Searcher(snapshot).search(twice[:1], 10)
        assert ids.tolist() == alone[0].tolist()
        assert np.allclose(scores, cosine[0], atol=1e-7)
    lists = np.array([[4, 3], [3, 4]])
    ids, _ = nearest(snapshot, lambda *_: (lists, np.zeros((2, 2), np.float32)), twice, 2, "rrf")
    assert ids.tolist() == [3, 4]
