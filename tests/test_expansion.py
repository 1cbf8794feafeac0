"""Query expansion: the sum by hand, its two ends, and a cluster that a single query finds only in part."""

from pathlib import Path

import numpy as np
import pytest
from small_index import DIM, MODEL, Shot, content, stat

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import Index
from dinov2kit.indexes.expansion import expand
from dinov2kit.indexes.store import Store


def unit(*values: float) -> np.ndarray:
    row = np.zeros(DIM, np.float32)
    row[: len(values)] = values
    return row / np.linalg.norm(row)


def test_the_sum_is_that_of_the_paper():
    query = unit(1, 0)
    rows = np.stack([unit(0.6, 0.8), unit(-0.6, 0.8)]).astype(np.float16)
    expanded = expand(query, rows, np.array([0.6, -0.6], np.float32))
    assert np.allclose(expanded, unit(1 + 0.216 * 0.6, 0.216 * 0.8), atol=1e-3)  # 0.6 cubed is 0.216
    mean = expand(query, rows[:1], np.array([0.6], np.float32), alpha=0.0)
    assert np.allclose(mean, unit(1.6, 0.8), atol=1e-3)
    assert np.linalg.norm(expanded) == pytest.approx(1, abs=1e-6)


def test_with_a_high_alpha_or_no_answers_the_query_stays_as_it_is():
    query = unit(1, 0)
    rows = np.stack([unit(0.9, 0.4), unit(0.2, 1)]).astype(np.float16)
    scores = (rows.astype(np.float32) @ query).astype(np.float32)
    assert np.allclose(expand(query, rows, scores, alpha=300.0), query, atol=1e-6)
    assert np.array_equal(expand(query, rows[:0], scores[:0]), query)
    lengths = [abs(expand(query, rows, scores, alpha=alpha)[1]) for alpha in (0.0, 1.0, 3.0, 10.0, 30.0)]
    assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("alpha", [-1.0, np.nan, np.inf])
def test_an_alpha_that_makes_no_sense_is_refused(alpha):
    with pytest.raises(ArgumentError, match="alpha"):
        expand(unit(1), np.zeros((0, DIM), np.float16), np.zeros(0, np.float32), alpha=alpha)


@pytest.fixture
def cluster(tmp_path: Path) -> Index:
    """Items on an arc, 15 degrees apart: 1 to 7 are one thing; 8 is another, 50 degrees the other way."""
    Store.create(tmp_path / "ix", MODEL)
    with Store.open(tmp_path / "ix") as store:
        root = store.root_id(Path("/photos"))
        for number, degrees in enumerate([15, 25, 35, 45, 55, 65, 75, -50], 1):
            angle = np.radians(degrees)
            shot = Shot(unit(np.cos(angle), np.sin(angle)))
            store.put(root, f"{number}.jpg".encode(), stat(number), content(number), shot)
        store.commit()
    with Index.open(tmp_path / "ix") as index:
        yield index


def ids(hits) -> list[int]:
    return [hit.id for hit in hits]


def test_expansion_finds_the_members_of_a_cluster_that_the_query_alone_misses(cluster):
    query = unit(1, 0)
    assert ids(cluster.search(query, 8)) == [1, 2, 3, 4, 8, 5, 6, 7]
    assert ids(cluster.search(query, 8, expand=4)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_no_expansion_is_the_plain_answer_and_a_high_alpha_comes_to_it(cluster):
    query = unit(1, 0)
    plain = [(hit.id, hit.score) for hit in cluster.search(query, 8)]
    assert [(hit.id, hit.score) for hit in cluster.search(query, 8, expand=0)] == plain
    high = cluster.search(query, 8, expand=4, alpha=500.0)
    assert ids(high) == [number for number, _ in plain]
    assert [hit.score for hit in high] == pytest.approx([score for _, score in plain], abs=1e-5)


def test_the_query_itself_and_what_the_filters_leave_out_expand_nothing(cluster):
    """Item 1 asks; its nearest are 2 and 3. With itself among them it would count twice."""
    row = cluster.descriptors(np.array([1, 2, 3])).astype(np.float64)
    row /= np.linalg.norm(row, axis=1, keepdims=True)
    cosine = row[1:] @ row[0]
    expected = row[0] + cosine**3 @ row[1:]
    expected /= np.linalg.norm(expected)
    hits = cluster.search(1, 8, expand=2)
    eight = next(hit for hit in hits if hit.id == 8)
    other = cluster.descriptors(np.array([8]))[0].astype(np.float64)
    assert eight.score == pytest.approx(other @ expected / np.linalg.norm(other), abs=1e-4)
    assert ids(cluster.search(1, 8, expand=2, min_score=0.999)) == []
    far = cluster.search(unit(1, 0), 8, expand=5, where="name = '8.jpg'")
    assert far[0].score > np.cos(np.radians(50)) + 0.05  # only the item itself was added


def test_expansion_goes_with_the_mean_only(cluster):
    for agg in ("max", "min", "rrf"):
        with pytest.raises(ArgumentError, match="expansion"):
            cluster.search([1, 2], agg=agg, expand=2)
    with pytest.raises(ArgumentError, match="expand -1"):
        cluster.search(1, expand=-1)
