"""Weighted kNN is what the protocol says in plain NumPy, in the golden case, at ties and in blocks."""

import numpy as np
import pytest
import torch

from dinov2kit import knn
from dinov2kit.errors import ArgumentError
from dinov2kit.knn import classify, draw_shots, nearest, vote


def restated(bank, labels, queries, ks, temperature):
    """Do it one query at a time, in float64, as the protocol is told: softmax, one-hot, sum, sort."""
    bank = bank.astype(np.float64) / np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    ranked = {k: [] for k in ks}
    for query in queries.astype(np.float64):
        cosines = bank @ (query / np.linalg.norm(query))
        near = np.argsort(-cosines, kind="stable")[: max(ks)]
        weights = np.exp(cosines[near] / temperature) / np.exp(cosines[near] / temperature).sum()
        onehot = np.eye(labels.max() + 1)[labels[near]] * weights[:, None]
        for k in ks:
            votes = onehot[:k].sum(axis=0)
            order = np.argsort(-votes, kind="stable")[:5]
            ranked[k].append([label if votes[label] > 0 else -1 for label in order])
    return {k: np.array(rows) for k, rows in ranked.items()}


def cloud(count: int, seed: int, classes: int = 9, dim: int = 12) -> tuple[np.ndarray, np.ndarray]:
    centres = np.random.default_rng(0).normal(size=(classes, dim))
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    return (centres[labels] + 1.5 * rng.normal(size=(count, dim))).astype(np.float32), labels


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_it_is_the_plain_restatement(temperature) -> None:
    (bank, labels), (queries, truth) = cloud(500, 1), cloud(120, 2)
    ks = (1, 10, 20, 100, 200)
    found = classify(bank, labels, queries, ks=ks, temperature=temperature)
    wanted = restated(bank, labels, queries, ks, temperature)
    assert list(found) == list(ks)
    for k in ks:
        assert np.array_equal(found[k], wanted[k]), k
    assert 0.3 < (found[20][:, 0] == truth).mean() < 0.95  # neither a trivial nor an impossible set


@pytest.mark.parametrize(("block", "memory"), [(7, 1), (64, 1 << 14), (1 << 16, 1 << 26)])
def test_blocks_do_not_change_the_answer(monkeypatch, block, memory) -> None:
    """Small whole numbers times powers of two have exact cosines, so that ties are ties in every block."""
    rng = np.random.default_rng(3)
    bank = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 150)] * 2.0 ** rng.integers(-2, 3, (150, 1))
    queries = np.eye(4, dtype=np.float32)[rng.integers(0, 4, 20)]
    monkeypatch.setattr(knn, "_BANK_BLOCK", block)
    monkeypatch.setattr(knn, "_MEMORY", memory)
    parts = list(nearest(bank.astype(np.float32), queries, 60))
    places, scores = (np.concatenate([part[side] for part in parts]) for side in (0, 1))
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    order = np.argsort(-(queries @ unit.T), axis=1, kind="stable")[:, :60]
    assert np.array_equal(places, order)  # equal scores in the order of the bank
    assert np.array_equal(scores, np.take_along_axis(queries @ unit.T, order, axis=1).astype(np.float32))
    assert len(parts) == (20 if memory == 1 else 1 if memory == 1 << 26 else len(parts))


def test_a_case_counted_by_hand() -> None:
    """Cosines 1, 0.8 and 0.6 at a temperature of 0.2 weigh e^0, e^-1 and e^-2."""
    bank = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
    labels = np.array([2, 0, 0, 1])
    ranked = classify(bank, labels, np.array([[2, 0]], np.float32), ks=(1, 2, 3, 4), temperature=0.2)
    assert ranked[1].tolist() == [[2, -1, -1]]
    assert ranked[2].tolist() == ranked[3].tolist() == [[2, 0, -1]]  # 1 > 0.368 + 0.135
    assert ranked[4].tolist() == [[2, 0, 1]]
    soft = classify(bank, labels, np.array([[2, 0]], np.float32), ks=(3,), temperature=1.0)
    assert soft[3].tolist() == [[0, 2, -1]]  # e^-0.2 + e^-0.4 = 1.489 > 1


def test_equal_votes_go_to_the_lower_class() -> None:
    places, scores = np.array([[0, 1]]), np.array([[0.5, 0.5]], np.float32)
    assert vote(places, scores, np.array([1, 0]), [2])[2].tolist() == [[0, 1]]
    assert vote(places, scores, np.array([1, 0]), [1])[1].tolist() == [[1, -1]]


def test_one_scale_of_all_descriptors_and_one_permutation_of_the_bank_change_nothing() -> None:
    (bank, labels), (queries, _) = cloud(200, 4), cloud(40, 5)
    found = classify(bank, labels, queries, ks=(5, 20))
    order = np.random.default_rng(6).permutation(200)
    scaled = classify(3 * bank[order], labels[order], queries / 7, ks=(5, 20))
    assert all(np.array_equal(found[k], scaled[k]) for k in found)


@pytest.mark.parametrize("ks", [(201,), (10, 500), (0,), ()])
def test_k_beyond_the_bank_is_refused(ks) -> None:
    bank, labels = cloud(200, 7)
    said = "the bank has only 200 images" if ks and max(ks) > 200 else "wanted 1 or more"
    with pytest.raises(ArgumentError, match=said):
        classify(bank, labels, bank[:3], ks=ks)


def test_other_nonsense_is_refused() -> None:
    bank, labels = cloud(50, 8)
    with pytest.raises(ArgumentError, match="temperature is 0"):
        classify(bank, labels, bank[:3], ks=(5,), temperature=0.0)
    with pytest.raises(ArgumentError, match="0 shots"):
        draw_shots(labels, 0, seed=0)


def test_shots_are_so_many_of_each_class_and_others_with_another_seed() -> None:
    labels = np.repeat(np.arange(5), [20, 20, 20, 20, 3])
    rows = draw_shots(labels, 4, seed=0)
    assert np.bincount(labels[rows]).tolist() == [4, 4, 4, 4, 3]
    assert np.array_equal(rows, np.unique(rows))
    assert np.array_equal(rows, draw_shots(labels, 4, seed=0))
    assert not np.array_equal(rows, draw_shots(labels, 4, seed=1))
    assert len({tuple(draw_shots(labels[:20], 1, seed=seed)) for seed in range(60)}) > 12  # any of the 20


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_classes() -> None:
    (bank, labels), (queries, _) = cloud(500, 1), cloud(120, 2)
    here = classify(bank, labels, queries, ks=(10, 20))
    there = classify(bank, labels, queries, ks=(10, 20), device="cuda")
    assert np.mean([np.mean(here[k] == there[k]) for k in here]) > 0.99
