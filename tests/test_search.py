"""Every way to the nearest items gives the answer of a sort of all cosines."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_index import ROOT, Shot, content, stat

from dinov2kit.errors import ArgumentError
from dinov2kit.identity import ModelIdentity
from dinov2kit.indexes import ann, search
from dinov2kit.indexes.ann import refresh
from dinov2kit.indexes.faiss_door import gpu_count
from dinov2kit.indexes.search import Searcher
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store

DIM, N = 24, 1200


def cloud(count: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(30, DIM))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 30, count)] + 0.5 * rng.normal(size=(count, DIM))
    rows[count // 2] = rows[0]  # the same photo twice
    return rows.astype(np.float32)


def fill(directory: Path, *, faiss: bool) -> None:
    """Make an index with a faiss index of most items, a tail that it does not know, and dead items."""
    Store.create(directory, ModelIdentity("tiny", "ab" * 32, DIM, "cls", {}))
    with Store.open(directory) as store:
        root = store.root_id(ROOT)
        for place, row in enumerate(cloud(N, 1)):
            if place == N - 200 and faiss:
                store.commit()
                refresh(store, memory=30_000)
            store.put(root, b"%d.jpg" % place, stat(place), content(place), Shot(row))
        records = list(store.files(root).values())
        store.remove([record.id for record in records[::7]])
        store.commit()


@pytest.fixture(scope="module", params=["rows", "faiss"])
def snapshot(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param) / "ix"
    fill(directory, faiss=request.param == "faiss")
    with Snapshot.open(directory) as opened:
        assert (opened.generation is not None) == (request.param == "faiss")
        yield opened


def truth(snapshot: Snapshot, queries: np.ndarray, k: int, allowed: np.ndarray | None = None):
    """Return ids and cosines by sorting everything, equal cosines by id."""
    ids = snapshot.ids if allowed is None else np.intersect1d(allowed, snapshot.ids)
    rows = snapshot.descriptors(ids).astype(np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    queries = queries.astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    scores = (queries @ rows.T).astype(np.float32)
    order = np.lexsort((np.broadcast_to(ids, scores.shape), -scores), axis=1)[:, :k]
    return ids[order], np.take_along_axis(scores, order, axis=1)


def test_exact_search_is_the_sort(snapshot):
    queries = cloud(50, 2)
    ids, scores = truth(snapshot, queries, 15)
    found, cosines = Searcher(snapshot).search(queries, 15, exact=True)
    assert np.array_equal(found, ids)
    assert np.allclose(cosines, scores, atol=1e-6)


def test_searching_finds_nearly_all_with_true_scores_and_nothing_dead(snapshot):
    queries = cloud(50, 2)
    ids, _ = truth(snapshot, queries, 10)
    found, scores = Searcher(snapshot).search(queries, 10)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, ids, strict=True)]) >= 0.93
    assert set(found.ravel().tolist()) <= set(snapshot.ids.tolist())
    rows = snapshot.descriptors(found.ravel()).astype(np.float64).reshape(*found.shape, DIM)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    unit = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    assert np.allclose(scores, np.einsum("qkd,qd->qk", rows, unit), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_without_a_faiss_index_every_count_of_queries_gives_the_sort(tmp_path):
    fill(tmp_path / "ix", faiss=False)
    with Snapshot.open(tmp_path / "ix") as opened:
        queries = cloud(40, 3)
        ids, scores = truth(opened, queries, 12)
        searcher = Searcher(opened)
        together = searcher.search(queries, 12)  # one matrix product
        single = [searcher.search(query[None], 12) for query in queries]  # rows in memory
        assert np.array_equal(together[0], ids)
        assert np.array_equal(np.concatenate([found for found, _ in single]), ids)
        assert np.array_equal(np.concatenate([cosines for _, cosines in single]), together[1])
        assert np.allclose(together[1], scores, atol=1e-6)


def test_the_tail_that_faiss_does_not_know_is_found(snapshot):
    newest = snapshot.ids[-1:]
    query = snapshot.descriptors(newest).astype(np.float32)
    found, scores = Searcher(snapshot).search(query, 1)
    assert found.tolist() == [newest.tolist()]
    assert scores[0, 0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("few", [True, False])
def test_a_filter_is_exact_when_it_leaves_few_and_holds_when_it_leaves_many(snapshot, monkeypatch, few):
    if not few:
        monkeypatch.setattr(search, "FEW_ROWS", 10)
    queries = cloud(20, 4)
    allowed = snapshot.ids[1::2]
    found, _ = Searcher(snapshot).search(queries, 10, allowed=allowed)
    assert set(found.ravel().tolist()) <= set(allowed.tolist())
    ids, _ = truth(snapshot, queries, 10, allowed)
    if few or snapshot.generation is None:
        assert np.array_equal(found, ids)
    assert np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, ids, strict=True)]) >= 0.9


def test_a_filter_never_brings_dead_or_unknown_items_back(snapshot, monkeypatch):
    monkeypatch.setattr(search, "FEW_ROWS", 0)
    asked = np.arange(0, 3 * N)
    found, _ = Searcher(snapshot).search(cloud(20, 4), 30, allowed=asked)
    assert set(found.ravel().tolist()) <= set(snapshot.ids.tolist())
    nothing, scores = Searcher(snapshot).search(cloud(3, 4), 5, allowed=np.array([10**7]))
    assert (nothing == -1).all()
    assert np.isneginf(scores).all()


def test_equal_photos_come_by_id(snapshot):
    with_twin = [1, N // 2 + 1]
    alive = [number for number in with_twin if number in snapshot.ids]
    query = cloud(N, 1)[:1]
    found, scores = Searcher(snapshot).search(query, 2, exact=True)
    assert found[0, : len(alive)].tolist() == alive
    assert scores[0, 0] == pytest.approx(1, abs=2e-6)


def test_more_than_there_is_fills_up_with_none(snapshot):
    found, scores = Searcher(snapshot).search(cloud(2, 5), N + 50, exact=True)
    n = len(snapshot)
    assert set(found[0, :n].tolist()) == set(snapshot.ids.tolist())
    assert (found[:, n:] == -1).all()
    assert np.isneginf(scores[:, n:]).all()


def test_the_length_of_a_query_does_not_matter(snapshot):
    query = cloud(1, 6)
    once, twice = (Searcher(snapshot).search(scale * query, 5) for scale in (1.0, 250.0))
    assert np.array_equal(once[0], twice[0])
    assert np.allclose(once[1], twice[1], atol=1e-6)


def test_more_probes_find_at_least_as_much(snapshot):
    queries = cloud(60, 7)
    ids, _ = truth(snapshot, queries, 10)
    searcher = Searcher(snapshot)

    def recall(nprobe):
        found, _ = searcher.search(queries, 10, nprobe=nprobe)
        return np.mean([len(set(a) & set(b)) for a, b in zip(found, ids, strict=True)])

    assert recall(1) <= recall(1000)
    assert recall(1000) >= 9.9


def test_threads_share_a_searcher(snapshot):
    searcher = Searcher(snapshot)
    queries = [cloud(1, seed) for seed in range(10, 40)]
    alone = [Searcher(snapshot).search(query, 8) for query in queries]
    with ThreadPoolExecutor(8) as threads:
        shared = list(threads.map(lambda query: searcher.search(query, 8), queries))
    for (ids, scores), (others, again) in zip(alone, shared, strict=True):
        assert np.array_equal(ids, others)
        assert np.array_equal(scores, again)


@pytest.mark.parametrize(
    ("query", "k", "nprobe", "said"),
    [
        (np.ones((1, DIM)), 0, None, "k is 0"),
        (np.ones((1, DIM)), 5, 0, "nprobe 0"),
        (np.ones((1, DIM + 1)), 5, None, f"{DIM + 1} numbers"),
        (np.zeros((1, DIM)), 5, None, "zero"),
        (np.full((1, DIM), np.nan), 5, None, "not finite"),
    ],
)
def test_questions_that_make_no_sense(snapshot, query, k, nprobe, said):
    with pytest.raises(ArgumentError, match=said):
        Searcher(snapshot).search(query.astype(np.float32), k, nprobe=nprobe)


def test_an_empty_index_answers_with_nothing(tmp_path):
    Store.create(tmp_path / "ix", ModelIdentity("tiny", "ab" * 32, DIM, "cls", {}))
    with Store.open(tmp_path / "ix") as store:
        assert ann.refresh(store, memory=1) is None
    with Snapshot.open(tmp_path / "ix") as opened:
        found, _ = Searcher(opened).search(cloud(2, 1), 3)
        assert (found == -1).all()
        assert (Searcher(opened).search(cloud(40, 1), 3, exact=True)[0] == -1).all()
        assert len(Searcher(opened).search(cloud(2, 1)[:0], 3)[0]) == 0


@pytest.mark.gpu
def test_rows_on_a_gpu_give_the_answer_of_the_cpu(snapshot):
    if not gpu_count():
        pytest.skip("needs a faiss that sees a GPU")
    queries = cloud(40, 8)
    ids, scores = truth(snapshot, queries, 12)
    allowed = snapshot.ids[::2]
    for some, filtered in ((None, ids), (allowed, truth(snapshot, queries, 12, allowed)[0])):
        found, cosines = Searcher(snapshot).search(queries, 12, allowed=some)
        assert np.mean(found == filtered) > (0.999 if snapshot.generation is None else 0.9)
        if some is None and snapshot.generation is None:
            assert np.allclose(cosines, scores, atol=1e-6)
