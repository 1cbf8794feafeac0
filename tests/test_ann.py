"""Building, tuning, growing and losing the faiss index of a store; the descriptors are the truth."""

import json
from pathlib import Path

import numpy as np
import pytest
from small_index import ROOT, Shot, content, stat

from dinov2kit.errors import ArgumentError, StoreCorrupt, StoreError
from dinov2kit.identity import ModelIdentity
from dinov2kit.indexes import ann
from dinov2kit.indexes.ann import check_factory, refresh
from dinov2kit.indexes.generation import Generation, read_facts
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.search import Searcher
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.verifying import verify

DIM, N = 32, 3000
SMALL = 100_000  # bytes: too little for exact search or fp16 codes of N rows


def cloud(count: int, seed: int) -> np.ndarray:
    """Return unit rows in loose clusters, as photos are."""
    centres = np.random.default_rng(0).normal(size=(60, DIM))
    rng = np.random.default_rng(seed)
    rows = centres[rng.integers(0, 60, count)] + 0.6 * rng.normal(size=(count, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def add(store: Store, count: int, seed: int) -> list[int]:
    root = store.root_id(ROOT)
    ids = [
        store.put(root, f"{seed}-{place}.jpg".encode(), stat(place), content(seed * 10**6 + place), Shot(row))
        for place, row in enumerate(cloud(count, seed))
    ]
    store.commit()
    return ids


def recall_against_numpy(directory: Path, k: int = 10) -> float:
    """Return recall@k of searching, computed from nothing but the stored descriptors."""
    with Snapshot.open(directory) as snapshot:
        assert snapshot.generation is not None
        rows = snapshot.descriptors(snapshot.ids).astype(np.float64)
        queries = cloud(200, seed=99)
        true = snapshot.ids[np.argsort(-(queries @ rows.T), axis=1)[:, :k]]
        found, _ = Searcher(snapshot).search(queries, k)
        return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(true, found, strict=True)]))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    Store.create(tmp_path / "ix", ModelIdentity("tiny", "ab" * 32, DIM, "cls", {}))
    with Store.open(tmp_path / "ix") as store:
        add(store, N, seed=1)
    return tmp_path / "ix"


def test_a_small_collection_has_no_faiss_index(directory):
    with Store.open(directory) as store:
        assert refresh(store) is None
    assert not (directory / "CURRENT").exists()
    assert list((directory / "ann").iterdir()) == []


@pytest.mark.parametrize(
    ("memory", "kind"), [(SMALL, "RaBitQ"), (180_000, "SQ8"), (N * (2 * DIM + 8) - 1, "SQ8")]
)
def test_the_kind_follows_the_memory_and_reaches_the_recall(directory, memory, kind):
    with Store.open(directory) as store:
        facts = refresh(store, memory=memory)
    assert facts.factory.endswith(kind)
    assert facts.recall >= 0.95
    assert facts.recall_queries == 512
    assert facts.nbytes < 1.3 * memory
    assert recall_against_numpy(directory) >= 0.95 - 2 * facts.recall_ci95
    assert facts.memory == memory
    assert verify(directory, deep=True).ok


def test_a_higher_target_costs_more_probes(directory):
    with Store.open(directory) as store:
        cheap = refresh(store, memory=180_000, target=0.5)
        dear = refresh(store, memory=180_000, target=0.999, rebuild=True)
    assert cheap.nprobe < dear.nprobe
    assert cheap.recall < 0.999 <= dear.recall


def test_what_the_generation_says_of_itself_is_true(directory):
    with Store.open(directory) as store:
        facts = refresh(store, memory=SMALL)
    folder = Layout(directory).read_current()
    assert folder.name == "gen-000001"
    assert (directory / "CURRENT").read_text() == "gen-000001\n"
    assert read_facts(folder) == facts
    said = json.loads((folder / "meta.json").read_bytes())
    assert (said["n"], said["min_id"], said["max_id"], said["trained_n"]) == (N, 1, N, N)
    opened = Generation.open(folder)
    assert opened.nlist == facts.nlist > 1
    assert np.array_equal(opened.ids, np.arange(1, N + 1))


def test_a_second_run_changes_nothing_and_a_short_tail_waits(directory):
    with Store.open(directory) as store:
        first = refresh(store, memory=SMALL)
        assert refresh(store) == first
        add(store, 100, seed=2)
        assert refresh(store) == first  # 100 rows are compared one by one
    assert Layout(directory).read_current().name == "gen-000001"
    assert recall_against_numpy(directory) >= 0.93


def test_a_long_tail_is_added_and_the_dead_are_removed_without_training(directory, monkeypatch):
    monkeypatch.setattr(ann, "TAIL_ROWS", 50)
    with Store.open(directory) as store:
        first = refresh(store, memory=SMALL)
        gone = [record.id for record in list(store.files(1).values())[:400]]
        store.remove(gone)
        added = add(store, 500, seed=2)
        monkeypatch.setattr(ann, "train_empty", lambda *_: pytest.fail("trained again"))
        second = refresh(store)
    assert second.trained_n == first.trained_n == N
    assert second.n == N + 100
    assert second.memory == SMALL
    with Snapshot.open(directory) as snapshot:
        opened = Generation.open(snapshot.generation)
        assert np.array_equal(opened.ids, snapshot.ids)
        assert set(added) <= set(opened.ids.tolist())
        found, _ = opened.search(cloud(50, 5), 100, nprobe=opened.nlist)
        assert set(found[found >= 0].tolist()) <= set(snapshot.ids.tolist())
    assert recall_against_numpy(directory) >= 0.93


def test_a_doubled_collection_is_trained_again(directory, monkeypatch):
    monkeypatch.setattr(ann, "TAIL_ROWS", 50)
    with Store.open(directory) as store:
        refresh(store, memory=SMALL)
        add(store, N + 10, seed=2)
        facts = refresh(store, memory=2 * SMALL)
    assert facts.trained_n == 2 * N + 10


def test_more_memory_gives_up_the_faiss_index(directory):
    with Store.open(directory) as store:
        refresh(store, memory=SMALL)
        assert refresh(store, memory=10**9) is None
        assert refresh(store) is None
    assert not (directory / "CURRENT").exists()


@pytest.mark.parametrize("factory", ["IVF32,PQ8x4", "HNSW16", "SQ8", "PCA16,IVF32,Flat"])
def test_a_factory_string_is_built_and_kept(directory, factory):
    with Store.open(directory) as store:
        facts = refresh(store, factory=factory)
        assert facts.kind == "custom"
        assert facts.factory == factory
        assert refresh(store) == facts
        assert facts.recall > 0.7
        store.remove([record.id for record in list(store.files(1).values())[:1000]])
        store.commit()
    with Snapshot.open(directory) as snapshot:
        found, _ = Searcher(snapshot).search(cloud(40, 3), 20)
        assert set(found.ravel().tolist()) <= set(snapshot.ids.tolist())
    with Store.open(directory) as store:
        assert refresh(store, factory="auto") is None


@pytest.mark.parametrize("factory", ["nonsense", "IVF32,PQ7", "IVF", "IVF999999,Flat"])
def test_a_factory_string_that_faiss_cannot_build_is_an_argument_error(directory, factory):
    with Store.open(directory) as store, pytest.raises(ArgumentError, match="faiss cannot"):
        refresh(store, factory=factory)
    assert not (directory / "CURRENT").exists()


@pytest.mark.parametrize("factory", ["PCA16,HNSW16", "PQ8x4"])
def test_a_kind_that_would_bring_removed_photos_back_is_refused(directory, factory):
    with Store.open(directory) as store, pytest.raises(ArgumentError, match="cannot leave out"):
        refresh(store, factory=factory)


def test_a_wrong_factory_string_is_found_before_any_work():
    check_factory(32, None)
    check_factory(32, "auto")
    check_factory(32, "IVF1024,PQ8")
    with pytest.raises(ArgumentError, match="PQ7"):
        check_factory(32, "IVF1024,PQ7")


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "index.faiss").write_bytes((folder / "index.faiss").read_bytes()[:-100]),
        lambda folder: (folder / "index.faiss").unlink(),
        lambda folder: (folder / "ids.npy").write_bytes(b"garbage"),
        lambda folder: (folder / "meta.json").write_text("{"),
        lambda folder: np.save(folder / "ids.npy", np.arange(5)),
    ],
)
def test_a_damaged_generation_costs_speed_and_no_answer(directory, damage, caplog):
    with Store.open(directory) as store:
        refresh(store, memory=SMALL)
    folder = Layout(directory).read_current()
    damage(folder)
    with pytest.raises(StoreCorrupt, match=folder.name) as caught:
        Generation.open(folder)
    assert "dinokit index" in caught.value.hint
    queries = cloud(5, seed=7)
    with Snapshot.open(directory) as snapshot:
        rows = snapshot.descriptors(snapshot.ids).astype(np.float64)
        found, _ = Searcher(snapshot).search(queries, 3)
        assert np.array_equal(found, snapshot.ids[np.argsort(-(queries @ rows.T), axis=1)[:, :3]])
    assert "every row is compared instead" in caplog.text
    with Store.open(directory) as store:
        refresh(store, memory=SMALL)  # mends it without being asked to rebuild
    assert Layout(directory).read_current().name == "gen-000002"
    assert recall_against_numpy(directory) >= 0.9


def test_a_full_disk_leaves_the_former_generation_in_use(directory, monkeypatch):
    with Store.open(directory) as store:
        refresh(store, memory=SMALL)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Generation, "save", full)
        with pytest.raises(StoreError, match="No space left"):
            refresh(store, memory=SMALL, rebuild=True)
    assert Layout(directory).read_current().name == "gen-000001"


def test_old_generations_go_when_no_reader_needs_them(directory):
    with Store.open(directory) as store:
        refresh(store, memory=SMALL)
        refresh(store, memory=SMALL, rebuild=True)
    assert sorted(folder.name for folder in (directory / "ann").iterdir()) == ["gen-000001", "gen-000002"]
    Store.open(directory, retire_after=0.0).close()
    assert [folder.name for folder in (directory / "ann").iterdir()] == ["gen-000002"]
    assert recall_against_numpy(directory) >= 0.9
