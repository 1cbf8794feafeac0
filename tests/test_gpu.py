"""What is copied to a GPU, and that it answers there as on the CPU."""

from threading import Thread

import numpy as np
import pytest

from dinov2kit.indexes import gpu
from dinov2kit.indexes.faiss_door import gpu_count, load_faiss
from dinov2kit.indexes.gpu import on_gpu, rows_on_gpu

DIM, N = 32, 2000
COPIED = ("Flat", "IDMap,Flat", "IVF16,Flat", "IVF16,SQfp16", "IVF16,SQ8")
KEPT = ("HNSW16", f"RR{DIM},IVF16,RaBitQ", "SQ8")


def rows(count: int, seed: int) -> np.ndarray:
    centres = np.random.default_rng(0).normal(size=(20, DIM))
    rng = np.random.default_rng(seed)
    made = centres[rng.integers(0, 20, count)] + 2 * rng.normal(size=(count, DIM))
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)


def built(factory: str):
    faiss = load_faiss()
    index = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(rows(N, 1))
    if "IVF" in factory or "IDMap" in factory:
        index.add_with_ids(rows(N, 1), np.arange(N) + 7)
    else:
        index.add(rows(N, 1))
    return index


@pytest.fixture
def card(monkeypatch):
    """Pretend to have a GPU: what is copied there is a clone."""
    faiss, copied = load_faiss(), []
    monkeypatch.setattr(gpu, "gpu_count", lambda: 1)
    monkeypatch.setattr(gpu, "_room_for", lambda nbytes: copied.append(nbytes) or "memory")
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda _, card, index: faiss.clone_index(index), raising=False
    )
    return copied


@pytest.mark.parametrize("factory", COPIED)
def test_flat_and_ivf_indexes_are_copied_and_probe_what_is_asked(card, factory):
    index = built(factory)
    there = on_gpu(index)
    queries = rows(50, 2)
    probes = 3 if "IVF" in factory else None
    ids, scores = there.search(queries, 10, nprobe=probes)
    if probes:
        load_faiss().extract_index_ivf(index).nprobe = probes
        assert not np.array_equal(ids, on_gpu(index).search(queries, 10, nprobe=1)[0])
    wanted, found = index.search(queries, 10)
    assert np.array_equal(ids, found)
    assert np.array_equal(scores, wanted)
    bytes_per_row = {"SQ8": DIM, "SQfp16": 2 * DIM}.get(factory.rpartition(",")[2], 4 * DIM)
    assert card[0] == N * (bytes_per_row + 8)


@pytest.mark.parametrize("factory", KEPT)
def test_kinds_without_a_gpu_version_stay_on_the_cpu(card, factory):
    assert on_gpu(built(factory)) is None
    assert card == []


def test_what_does_not_fit_or_fails_stays_on_the_cpu(card, monkeypatch, caplog):
    index = built("IVF16,Flat")

    def fail(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(load_faiss(), "index_cpu_to_gpu", fail)
    assert on_gpu(index) is None
    assert "stays on the CPU: out of memory" in caplog.text
    monkeypatch.setattr(gpu, "_room_for", lambda _: None)
    assert on_gpu(index) is None
    assert rows_on_gpu(DIM, N, iter([])) is None


def test_without_a_gpu_nothing_is_copied(monkeypatch):
    monkeypatch.setattr(gpu, "gpu_count", lambda: 0)
    assert on_gpu(built("IVF16,Flat")) is None
    assert rows_on_gpu(DIM, N, iter([rows(N, 1).astype(np.float16)])) is None


@pytest.mark.gpu
@pytest.mark.parametrize("factory", COPIED)
def test_a_copy_on_a_gpu_answers_as_the_original(factory):
    if not gpu_count():
        pytest.skip("needs a faiss that sees a GPU")
    index = built(factory)
    there = on_gpu(index)
    assert there is not None
    queries = rows(200, 2)
    probes = 16 if "IVF" in factory else None  # all: no cluster is missed by rounding
    ids, scores = there.search(queries, 10, nprobe=probes)
    if probes:
        load_faiss().extract_index_ivf(index).nprobe = probes
    wanted, found = index.search(queries, 10)
    assert np.mean(ids == found) > 0.99
    assert np.allclose(scores, wanted, atol=2e-3)


@pytest.mark.gpu
def test_rows_on_a_gpu_answer_as_a_flat_index_and_threads_share_them():
    if not gpu_count():
        pytest.skip("needs a faiss that sees a GPU")
    halves = rows(N, 1).astype(np.float16)
    there = rows_on_gpu(DIM, N, iter([halves[:1500], halves[1500:]]))
    assert there is not None
    wanted = rows(100, 2) @ halves.astype(np.float32).T
    answers = []
    threads = [Thread(target=lambda: answers.append(there.search(rows(100, 2), 5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    for ids, scores in answers:
        assert np.mean(ids == np.argsort(-wanted, axis=1)[:, :5]) > 0.98
        assert np.allclose(scores, np.take_along_axis(wanted, ids, axis=1), atol=2e-3)
