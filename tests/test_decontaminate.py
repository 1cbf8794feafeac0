"""Copies and evaluation leaks: the threshold, chains, who stays; planted leaks are gone, all of them."""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from curate_pool import blobs, make_pool
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2kit.indexes import CurateSpec, Snapshot, curate
from dinov2kit.indexes.decontaminate import choose_keepers, connected, find_contaminated
from dinov2kit.indexes.graph import Edges

HALF, ONE, TWO = [0.5, 0.5, 0.5, 0.5], [1.0, 0, 0, 0], [0, 1.0, 0, 0]  # exact in fp16; HALF is 0.5 from both


def edges(*triples: tuple[int, int, float]) -> Edges:
    source, target, score = zip(*triples, strict=True) if triples else ((), (), ())
    return Edges(np.array(source, np.int64), np.array(target, np.int64), np.array(score, np.float32))


def at_angles(*degrees: float) -> np.ndarray:
    """Return rows in one plane, so that the cosine of two is that of the difference of their angles."""
    turns = np.radians(np.array(degrees, float))
    return np.stack([np.cos(turns), np.sin(turns), 0 * turns, 0 * turns], axis=1)


def kept(pool: Path, **spec: object) -> list[int]:
    """Return the ids that are left when everything that is left is drawn."""
    with Snapshot.open(pool) as snapshot:
        counts = {"mode": "semdedup", "eps": 1e-3, "clusters": 1, **spec}
        report = curate(snapshot, CurateSpec(**counts), pool / "x.jsonl", load_encoder=no_encoder)
        gone = report.stages[-1].why
        assert not gone, gone  # the mode itself dropped nothing
    return [
        int(line.split('"id": ')[1].split(",")[0]) for line in (pool / "x.jsonl").read_text().splitlines()
    ]


def no_encoder() -> object:
    raise AssertionError("nothing has to be described")


def test_an_edge_counts_only_above_the_threshold_and_inside_the_pool() -> None:
    found = connected(edges((1, 2, 0.5), (1, 3, 0.50001), (2, 9, 0.9)), 0.5, np.array([1, 2, 3]))
    assert (found.source.tolist(), found.target.tolist()) == ([1], [3])


def test_the_one_with_most_pixels_stays_then_the_lowest_id() -> None:
    pixels = {1: 100, 2: 400, 3: 400, 4: 1, 5: 7, 6: 7}

    def read(ids: np.ndarray) -> np.ndarray:
        assert 4 not in ids  # it has no copy
        return np.array([pixels[number] for number in ids])

    keepers = choose_keepers(np.arange(1, 7), edges((1, 3, 0.99), (2, 3, 0.99), (5, 6, 0.99)), read)
    assert keepers.tolist() == [2, 2, 2, 4, 5, 5]


def test_without_edges_all_stay() -> None:
    keepers = choose_keepers(np.arange(1, 4), edges(), lambda ids: np.zeros(len(ids), np.int64))
    assert keepers.tolist() == [1, 2, 3]


def test_a_chain_takes_the_component_and_direct_takes_the_photo() -> None:
    pairs = edges((1, 2, 0.97), (2, 3, 0.97), (4, 5, 0.97))
    ids, hits = np.arange(1, 7), np.array([3])
    assert find_contaminated(ids, hits, pairs, chain=True).tolist() == [True] * 3 + [False] * 3
    assert find_contaminated(ids, hits, pairs, chain=False).tolist() == [False, False, True] + [False] * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=14), st.sets(st.integers(1, 12)))
def test_chains_are_what_a_walk_along_the_edges_reaches(pairs: list, hits: set) -> None:
    pairs = [(a, b) for a, b in pairs if a < b]
    reached, front = set(hits), set(hits)
    while front:
        front = {b for pair in pairs for a, b in (pair, pair[::-1]) if a in front} - reached
        reached |= front
    found = find_contaminated(
        np.arange(1, 13), np.array(sorted(hits), np.int64), edges(*((*p, 0.9) for p in pairs)), chain=True
    )
    assert set((np.flatnonzero(found) + 1).tolist()) == reached


def test_exactly_at_the_threshold_is_no_copy_and_no_leak(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", [ONE, HALF])
    val = make_pool(tmp_path / "val", [TWO], root=Path("/val"))
    assert kept(pool, dedup=0.5) == [1, 2]
    (pool / "x.jsonl").unlink()
    assert kept(pool, dedup=0.4999) == [1]
    (pool / "x.jsonl").unlink()
    assert kept(pool, exclude_near=(val,), exclude_threshold=0.5) == [1, 2]
    (pool / "x.jsonl").unlink()
    assert kept(pool, exclude_near=(val,), exclude_threshold=0.4999, chain=False) == [1]


def test_a_chain_of_unlike_photos_goes_whole_and_directly_only_its_end(tmp_path: Path) -> None:
    pool = make_pool(tmp_path / "pool", at_angles(0, 10, 20, 90))  # neighbours are at cos 10 = 0.985
    val = make_pool(tmp_path / "val", at_angles(-8), root=Path("/val"))
    assert kept(pool, exclude_near=(val,), exclude_threshold=0.98) == [4]
    (pool / "x.jsonl").unlink()
    assert kept(pool, exclude_near=(val,), exclude_threshold=0.98, chain=False) == [2, 3, 4]


def test_dropping_the_copy_that_leaks_does_not_hide_the_leak(tmp_path: Path) -> None:
    rows = at_angles(0, 10, 90)  # the second is a copy of the first, and like the evaluation photo
    pool = make_pool(tmp_path / "pool", rows, sizes=[(900, 900), (90, 90), (90, 90)])
    val = make_pool(tmp_path / "val", at_angles(19), root=Path("/val"))
    assert kept(pool, dedup=0.98, exclude_near=(val,), exclude_threshold=0.98) == [3]


def test_photos_outside_the_filter_connect_nothing(tmp_path: Path) -> None:
    sizes = [(640, 480), (64, 48), (640, 480)]
    pool = make_pool(tmp_path / "pool", at_angles(0, 10, 20), sizes=sizes)
    assert kept(pool, dedup=0.98, where="width > 100") == [1, 3]


@pytest.mark.parametrize("chain", [True, False])
def test_all_planted_leaks_are_gone_and_nothing_else(tmp_path: Path, chain: bool) -> None:
    rng = np.random.default_rng(3)
    clean, val_rows = blobs(60, 5, dim=16, spread=0.15, seed=1), blobs(40, 1, dim=16, spread=0.0, seed=2)
    near = np.repeat(val_rows, 3, axis=0) + 0.02 * rng.normal(size=(120, 16))
    leaks = np.concatenate([np.repeat(val_rows, 90, axis=0)[:450], near, val_rows])  # exact copies, near ones
    rows = np.concatenate([clean, leaks])
    order = rng.permutation(len(rows))
    model = make_pool.__kwdefaults__["model"]
    model = type(model)(model.name, model.weights_sha256, 16, model.pooling, model.preprocess)
    pool = make_pool(tmp_path / "pool", rows[order], model=model)
    val = make_pool(tmp_path / "val", val_rows, root=Path("/val"), model=model)
    spec = CurateSpec(mode="random", target_size=1, exclude_near=(val,), chain=chain)
    with ExitStack() as stack:
        snapshot = stack.enter_context(Snapshot.open(pool))
        stored = snapshot.descriptors(snapshot.ids).astype(float)
        others = stack.enter_context(Snapshot.open(val))
        true = others.descriptors(others.ids).astype(float)
        cosines = (stored / np.linalg.norm(stored, axis=1, keepdims=True)) @ (
            true / np.linalg.norm(true, axis=1, keepdims=True)
        ).T
        leaking = set(snapshot.ids[(cosines > 0.96).any(axis=1)].tolist())
        assert len(leaking) >= 600
        assert leaking >= {int(np.flatnonzero(order == len(clean) + place)[0]) + 1 for place in range(450)}
        report = curate(snapshot, spec, load_encoder=no_encoder)
    stage = report.stages[0]
    assert stage.name == f"exclude {val}"
    assert stage.why["near"] == len(leaking)
    assert stage.dropped == sum(stage.why.values())
    if not chain:
        assert stage.left == len(rows) - len(leaking)
