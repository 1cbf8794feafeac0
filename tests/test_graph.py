"""Pairs of alike items are those of a sort of all cosines, whatever the blocks and the interruptions."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from small_index import ROOT, Shot, content, stat

from dinov2kit.errors import ArgumentError, StoreError, StoreMismatch
from dinov2kit.identity import ModelIdentity
from dinov2kit.indexes import graph, graph_copies, graph_search
from dinov2kit.indexes.faiss_door import gpu_count
from dinov2kit.indexes.graph import Edges, all_pairs, components, cross_pairs, expect_cost
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store

DIM, N = 16, 900


def cloud(seed: int, count: int = N) -> np.ndarray:
    """Return clustered rows, many close to each other, with two rows that many items share."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(60, DIM))
    rows = centres[rng.integers(0, 60, count)] + 0.2 * rng.normal(size=(count, DIM))
    rows[3:60:7] = rows[3]
    rows[100:130] = rows[100]
    return rows.astype(np.float32)


def fill(directory: Path, rows: np.ndarray, *, weights: str = "ab", removed: int = 0) -> Path:
    """Make an index of these rows, the item of row i being i + 1; then remove every removed-th."""
    Store.create(directory, ModelIdentity("tiny", weights * 32, rows.shape[1], "cls", {}))
    with Store.open(directory) as store:
        root = store.root_id(ROOT)
        for place, row in enumerate(rows):
            store.put(root, b"%d.jpg" % place, stat(place), content(place), Shot(row))
        if removed:
            store.remove([record.id for record in list(store.files(root).values())[::removed]])
        store.commit()
    return directory


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    with Snapshot.open(fill(tmp_path_factory.mktemp("graph") / "ix", cloud(1), removed=11)) as opened:
        yield opened


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    with Snapshot.open(fill(tmp_path_factory.mktemp("other") / "ix", cloud(2, 400))) as opened:
        yield opened


def cosines(a: Snapshot, b: Snapshot) -> np.ndarray:
    left, right = (one.descriptors(one.ids).astype(np.float64) for one in (a, b))
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return (left @ right.T).astype(np.float32)


def truth(a: Snapshot, b: Snapshot, k: int, min_score: float) -> dict[tuple[int, int], float]:
    """Return the pairs by sorting everything: of each descriptor one item first, then by score, by id."""
    scores, stored, pairs = cosines(a, b), [row.tobytes() for row in b.descriptors(b.ids)], {}
    for i, own in enumerate(a.ids.tolist()):
        ranked, seen = [], {}
        for j, near in enumerate(b.ids.tolist()):
            if (a is not b or i != j) and scores[i, j] >= min_score:
                seen[stored[j]] = seen.get(stored[j], 0) + 1
                ranked.append((seen[stored[j]] > 1, -scores[i, j], near))
        for _, score, near in sorted(ranked)[:k]:
            pairs[(min(own, near), max(own, near)) if a is b else (own, near)] = -score
    return pairs


def same(edges: Edges, pairs: dict[tuple[int, int], float]) -> bool:
    found = list(zip(edges.source.tolist(), edges.target.tolist(), strict=True))
    assert found == sorted(set(found))
    wanted = np.array([pairs[pair] for pair in sorted(pairs)], np.float32)
    return found == sorted(pairs) and np.allclose(edges.score, wanted, atol=1e-6)


def equal(a: Edges, b: Edges) -> bool:
    names = ("source", "target", "score")
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize(("k", "min_score"), [(64, 0.9), (5, 0.9), (1, 0.5), (3, -1.0)])
def test_exact_pairs_are_those_of_the_sort(snapshot, other, k, min_score):
    assert same(all_pairs(snapshot, k=k, min_score=min_score), truth(snapshot, snapshot, k, min_score))
    assert same(cross_pairs(snapshot, other, k=k, min_score=min_score), truth(snapshot, other, k, min_score))


@pytest.mark.parametrize("memory", [10**9, 24_000, 1])
def test_an_inverted_file_finds_nearly_all_pairs_with_true_scores(snapshot, other, memory):
    for found, pairs in (
        (
            all_pairs(snapshot, min_score=0.95, exact=False, memory=memory),
            truth(snapshot, snapshot, 64, 0.95),
        ),
        (
            cross_pairs(snapshot, other, min_score=0.95, exact=False, memory=memory),
            truth(snapshot, other, 64, 0.95),
        ),
    ):
        scores = dict(
            zip(zip(found.source.tolist(), found.target.tolist(), strict=True), found.score, strict=True)
        )
        assert scores.keys() <= pairs.keys()
        assert len(scores) >= 0.98 * len(pairs)
        assert all(abs(scores[pair] - pairs[pair]) < 1e-6 for pair in scores)


@pytest.mark.parametrize("exact", [True, False])
def test_pairs_do_not_depend_on_the_size_of_the_blocks(snapshot, monkeypatch, exact):
    straight = all_pairs(snapshot, k=6, min_score=0.8, exact=exact)
    assert len(straight.source) > 1000
    for block, rows, links in ((7, 50, 30), (1000, 65536, 2**21)):
        monkeypatch.setattr(graph, "BLOCK", block)
        monkeypatch.setattr(graph_copies, "_BLOCK", rows)
        monkeypatch.setattr(graph_copies, "_LINKS", links)
        monkeypatch.setattr(graph, "_VALUES", 10 * DIM * block)
        assert equal(all_pairs(snapshot, k=6, min_score=0.8, exact=exact), straight)


def test_copies_are_one_component_and_hide_nothing(tmp_path):
    rng = np.random.default_rng(5)
    one, far = rng.normal(size=(2, DIM))
    near = one / np.linalg.norm(one) + 0.2 * far / np.linalg.norm(far)
    rows = np.concatenate([np.tile(one, (200, 1)), np.tile(near, (100, 1)), rng.normal(size=(50, DIM))])
    order = rng.permutation(len(rows))
    with Snapshot.open(fill(tmp_path / "ix", rows[order].astype(np.float32))) as opened:
        for exact in (True, False):
            edges = all_pairs(opened, min_score=0.95, exact=exact)
            label = components(opened.ids, edges)
            copies = opened.ids[order < 300]
            assert (label[order < 300] == copies[0]).all()  # also the two sets of copies are joined
            assert len(np.unique(label)) == 51
            twins = all_pairs(opened, min_score=0.9999, exact=exact)
            label = components(opened.ids, twins)
            assert len(np.unique(label)) == 52


def test_of_equally_near_items_the_lowest_ids_are_taken(tmp_path):
    middle, turn = np.eye(1, DIM), 0.1 * np.eye(12, DIM, 1)
    ring = middle + np.concatenate([turn, -turn])[np.random.default_rng(0).permutation(24)]
    with (
        Snapshot.open(fill(tmp_path / "one", middle.astype(np.float32))) as one,
        Snapshot.open(fill(tmp_path / "ring", ring.astype(np.float32))) as around,
    ):
        assert len(np.unique(cosines(one, around))) == 1
        for exact in (True, False):
            edges = cross_pairs(one, around, k=7, min_score=0.9, exact=exact)
            assert edges.target.tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_a_score_is_the_same_from_both_sides(snapshot, other):
    there = cross_pairs(snapshot, other, k=400, min_score=0.5)
    back = cross_pairs(other, snapshot, k=900, min_score=0.5)
    assert len(there.source) > 1000
    order = np.lexsort((back.source, back.target))
    assert np.array_equal(there.source, back.target[order])
    assert np.array_equal(there.score, back.score[order])


@pytest.mark.parametrize("exact", [True, False])
def test_a_resumed_run_equals_a_straight_run(snapshot, tmp_path, monkeypatch, exact, caplog):
    monkeypatch.setattr(graph, "BLOCK", 100)
    monkeypatch.setattr(graph_search, "default_memory", lambda: 1)  # the coarsest codes
    settings = {"k": 6, "min_score": 0.8, "exact": exact}
    straight = all_pairs(snapshot, **settings)

    def interrupt(stage, done, total):
        if stage == "Comparing" and done == 300:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        all_pairs(snapshot, **settings, work=tmp_path, watch=interrupt)
    (folder,) = tmp_path.iterdir()
    assert len(list(folder.glob("block-*.npz"))) == 3
    searched = []
    plain = graph_search.Proposer.search
    monkeypatch.setattr(
        graph_search.Proposer, "search", lambda self, rows: (searched.append(len(rows)), plain(self, rows))[1]
    )
    monkeypatch.setattr(graph_search, "default_memory", lambda: 10**12)  # the plan stays as it was
    monkeypatch.setattr(graph_search, "train_empty", None)
    if exact is False:
        assert (folder / "ivf.faiss").exists()
    resumed = all_pairs(snapshot, **settings, work=tmp_path)
    assert equal(resumed, straight)
    assert sum(searched) == len(np.unique(snapshot.descriptors(snapshot.ids), axis=0)) - 300
    searched.clear()
    assert equal(all_pairs(snapshot, **settings, work=tmp_path), straight)
    assert searched == []
    block = sorted(folder.glob("block-*.npz"))[2]
    block.write_bytes(block.read_bytes()[:-30])
    with caplog.at_level(logging.WARNING):
        assert equal(all_pairs(snapshot, **settings, work=tmp_path), straight)
    assert searched == [100]
    assert "block 2 cannot be used" in caplog.text


def test_blocks_of_another_state_or_other_settings_are_never_used(tmp_path):
    directory, work = fill(tmp_path / "ix", cloud(3, 200)), tmp_path / "work"
    with Snapshot.open(directory) as opened:
        first = all_pairs(opened, min_score=0.8, work=work)
        assert equal(all_pairs(opened, min_score=0.95, work=work), all_pairs(opened, min_score=0.95))
        assert equal(all_pairs(opened, k=2, min_score=0.8, work=work), all_pairs(opened, k=2, min_score=0.8))
    with Store.open(directory) as store:  # as many items as before
        root = store.root_id(ROOT)
        store.remove([list(store.files(root).values())[50].id])
        store.put(root, b"new.jpg", stat(777), content(777), Shot(cloud(3, 200)[7]))
        store.commit()
    with Snapshot.open(directory) as opened:
        assert len(opened) == 200
        later = all_pairs(opened, min_score=0.8, work=work)
        assert equal(later, all_pairs(opened, min_score=0.8))
        assert not equal(later, first)
    twin = fill(tmp_path / "twin", cloud(4, 200))  # the same ids in another index
    with Snapshot.open(twin) as opened:
        assert equal(all_pairs(opened, min_score=0.8, work=work), all_pairs(opened, min_score=0.8))
    assert len(list(work.iterdir())) == 5


def test_a_killed_run_goes_on(tmp_path):
    directory, work = fill(tmp_path / "ix", cloud(6, 600)), tmp_path / "work"
    program = """
import sys, time
from pathlib import Path
from dinov2kit.indexes import graph
from dinov2kit.indexes.snapshot import Snapshot
graph.BLOCK = 20
with Snapshot.open(Path(sys.argv[1])) as snapshot:
    graph.all_pairs(snapshot, min_score=0.8, work=Path(sys.argv[2]), watch=lambda *_: time.sleep(0.05))
"""
    child = subprocess.Popen([sys.executable, "-c", program, str(directory), str(work)])
    deadline = time.monotonic() + 60
    while len(list(work.glob("*/block-*.npz"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = len(list(work.glob("*/block-*.npz")))
    assert 3 <= before < 25
    with Snapshot.open(directory) as opened, pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "BLOCK", 20)
        assert equal(all_pairs(opened, min_score=0.8, work=work), all_pairs(opened, min_score=0.8))
    assert len(list(work.glob("*/block-*.npz"))) > before


def test_the_log_says_how_many_items_are_saturated(snapshot, caplog):
    with caplog.at_level(logging.INFO):
        all_pairs(snapshot, k=4, min_score=0.9)
    scores = cosines(snapshot, snapshot)
    full = int(((scores >= 0.9).sum(axis=1) - 1 >= 4).sum())
    assert 0 < full < len(snapshot)
    assert f"{full} of {len(snapshot)} items have 4 neighbours or more" in caplog.text


def test_an_index_with_nothing_or_one_item_has_no_pairs(tmp_path, snapshot):
    for count in (0, 1):
        with Snapshot.open(fill(tmp_path / str(count), cloud(1)[:count])) as few:
            for exact in (True, None):
                edges = all_pairs(few, min_score=-1.0, exact=exact)
                assert len(edges.source) == len(edges.target) == len(edges.score) == 0
                assert len(cross_pairs(few, snapshot, k=3, min_score=-1.0, exact=exact).source) == 3 * count
                assert len(
                    cross_pairs(snapshot, few, k=3, min_score=-1.0, exact=exact).source
                ) == count * len(snapshot)
            assert components(few.ids, edges).tolist() == few.ids.tolist()


def test_pairs_that_make_no_sense(snapshot, tmp_path):
    for wrong in ({"k": 0, "min_score": 0.9}, {"min_score": 1.5}, {"min_score": float("nan")}):
        with pytest.raises(ArgumentError, match="wanted 1 or more, and a cosine"):
            all_pairs(snapshot, **wrong)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        all_pairs(snapshot, min_score=0.9, work=tmp_path / "file")
    with (
        Snapshot.open(fill(tmp_path / "big", cloud(1)[:5], weights="cd")) as strange,
        pytest.raises(StoreMismatch, match="with weights cdcd"),
    ):
        cross_pairs(snapshot, strange, min_score=0.9)


def random_edges(n: int, count: int, seed: int) -> Edges:
    rng = np.random.default_rng(seed)
    source, target = np.sort(rng.integers(0, n, (2, count)), axis=0)
    return Edges(source, target, np.ones(count, np.float32))


@pytest.mark.parametrize("count", [0, 1, 300, 600, 5000])
def test_components_are_those_of_scipy(count):
    n = 1000
    edges = random_edges(n, count, count)
    ids = 3 * np.arange(n) + 7
    label = components(ids, Edges(ids[edges.source], ids[edges.target], edges.score))
    graph_of = coo_array((edges.score, (edges.source, edges.target)), shape=(n, n))
    _, wanted = connected_components(graph_of, directed=False)
    lowest = np.array([ids[wanted == one].min() for one in range(wanted.max() + 1)])
    assert np.array_equal(label, lowest[wanted])


def test_long_chains_stars_and_any_order_of_ids_are_one_component():
    n = 20_000
    rng = np.random.default_rng(0)
    for chain in (np.arange(n), np.arange(n)[::-1], rng.permutation(n)):
        edges = Edges(chain[:-1].copy(), chain[1:].copy(), np.ones(n - 1, np.float32))
        assert (components(np.arange(n), edges) == 0).all()
    star = Edges(np.arange(n - 1), np.full(n - 1, n - 1), np.ones(n - 1, np.float32))
    assert (components(rng.permutation(n), star) == 0).all()
    with pytest.raises(ArgumentError, match="item 19999, which is not"):
        components(np.arange(n - 1), star)


def test_the_cost_grows_with_the_items_and_names_the_way():
    few, many = expect_cost(10_000, 384), expect_cost(1_000_000, 384)
    assert few.ann is None
    assert "every pair" in few.text
    assert many.ann is not None
    assert "1,000,000 items" in many.text
    assert "IVF" in many.text
    assert few.seconds < many.seconds
    assert few.nbytes < many.nbytes
    assert expect_cost(1_000_000, 384, others=1000).ann is None
    assert (expect_cost(10**6, 384, min_score=0.6).nprobe, many.nprobe) == (16, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("exact", [True, False])
def test_pairs_on_a_gpu_are_those_of_the_cpu(snapshot, monkeypatch, exact):
    if not gpu_count():
        pytest.skip("needs a faiss that sees a GPU")
    there = all_pairs(snapshot, k=64, min_score=0.9, exact=exact)
    monkeypatch.setattr(graph_search, "on_gpu", lambda _: None)
    monkeypatch.setattr(graph_search, "rows_on_gpu", lambda *_: None)
    here = all_pairs(snapshot, k=64, min_score=0.9, exact=exact)
    pairs = [set(zip(one.source.tolist(), one.target.tolist(), strict=True)) for one in (there, here)]
    assert len(pairs[0] & pairs[1]) > 0.99 * len(pairs[0] | pairs[1])
