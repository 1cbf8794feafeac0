"""Exact search against a sort of all cosines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinov2kit.indexes.scan import merge, nothing, rescore, scan


def rows_of(seed: int, n: int, dim: int = 6) -> np.ndarray:
    """Return fp16 rows of which many are equal, so that ties happen."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(-2, 3, (n, dim)).astype(np.float32) + np.float32(0.25)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def blocks_of(ids: np.ndarray, rows: np.ndarray, size: int):
    for start in range(0, len(ids), size):
        yield ids[start : start + size], rows[start : start + size]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 90), st.integers(1, 12), st.integers(1, 40))
def test_scan_is_a_sort_with_ties_by_id(seed, n, k, size):
    ids = np.sort(np.random.default_rng(seed).choice(1000, n, replace=False)).astype(np.int64)
    rows = rows_of(seed, n)
    queries = rows_of(seed + 1, 3).astype(np.float32)
    found, scores = scan(queries, blocks_of(ids, rows, size), k)
    kept = min(k, n)
    best = -np.sort(-(queries.astype(np.float64) @ rows.astype(np.float64).T), axis=1)[:, :kept]
    assert np.allclose(scores[:, :kept], best, atol=1e-6)
    assert all(len(set(line[:kept])) == kept for line in found)
    assert (found[:, kept:] == -1).all()
    assert np.isneginf(scores[:, kept:]).all()
    rescored, again = rescore(queries, found, lambda some: rows[np.searchsorted(ids, some)], k)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    cosines = (queries.astype(np.float64) @ rows.astype(np.float64).T) / lengths
    for one, (found_ids, score) in enumerate(zip(rescored, again, strict=True)):
        line = found_ids[found_ids >= 0]
        truth = cosines[one, np.searchsorted(ids, line)].astype(np.float32)
        assert np.array_equal(truth, score[: len(line)])
        ordered = sorted(zip(-truth, line, strict=True))
        assert [int(number) for _, number in ordered] == line.tolist()


def test_many_equal_rows_at_the_cut_come_by_id():
    rows = np.repeat(np.eye(2, dtype=np.float16), 500, axis=0)
    ids = np.arange(1000, dtype=np.int64)[::-1].copy()
    found, scores = scan(np.array([[0.0, 1.0]], np.float32), [(ids, rows)], 7)
    assert found.tolist() == [[0, 1, 2, 3, 4, 5, 6]]
    assert (scores == 1).all()


def test_no_rows_and_no_queries_give_an_empty_answer():
    query = np.ones((2, 3), np.float32)
    ids, scores = scan(query, [], 4)
    assert np.array_equal(ids, nothing(2, 4)[0])
    assert np.isneginf(scores).all()
    assert scan(query[:0], [(np.array([1]), np.ones((1, 3), np.float16))], 4)[0].shape == (0, 4)


def test_merge_prefers_real_ids_over_none():
    left = (np.array([[5, -1]]), np.array([[0.5, 9.0]], np.float32))
    right = (np.array([[3, 4]]), np.array([[0.5, -0.9]], np.float32))
    ids, scores = merge([left, right], 4)
    assert ids.tolist() == [[3, 5, 4, -1]]
    assert scores.tolist() == [pytest.approx([0.5, 0.5, -0.9, -np.inf])]


def test_a_score_does_not_depend_on_the_length_that_fp16_left():
    row = np.array([[0.6, 0.8]], np.float32)
    stored = (row * 1.0004).astype(np.float16)
    _, scores = rescore(row, np.array([[7]]), lambda ids: stored, 1)
    assert scores[0, 0] <= 1.0
    assert scores[0, 0] == pytest.approx(1.0, abs=1e-6)
