"""What an index is measured to give is what it gives; the exact search gives all."""

from pathlib import Path

import numpy as np
import pytest
from small_index import ROOT, Shot, content, make_index, stat

from dinov2kit.errors import ArgumentError
from dinov2kit.identity import ModelIdentity
from dinov2kit.indexes import evaluate_index
from dinov2kit.indexes.ann import refresh
from dinov2kit.indexes.search import Searcher
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store

DIM, N, TAIL = 16, 1500, 40


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index with 16 clusters and, beyond them, items that faiss does not know."""
    directory = tmp_path_factory.mktemp("index") / "ix"
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, DIM))[rng.integers(0, 40, N)] + 0.7 * rng.normal(size=(N, DIM))
    Store.create(directory, ModelIdentity("tiny", "ab" * 32, DIM, "cls", {}))
    with Store.open(directory) as store:
        root = store.root_id(ROOT)
        for place, row in enumerate(rows.astype(np.float32)):
            if place == N - TAIL:
                store.commit()
                refresh(store, factory="IVF16,SQ8", target=0.8)
            store.put(root, b"%d.jpg" % place, stat(place), content(place), Shot(row))
        store.commit()
    return directory


def recall(directory: Path, nprobe: int, k: int, own: np.ndarray) -> float:
    """Count, one item at a time, how many of its true neighbours a search finds."""
    with Snapshot.open(directory) as snapshot:
        rows = snapshot.descriptors(snapshot.ids).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        searcher, shares = Searcher(snapshot), []
        for item in own:
            place = int(np.searchsorted(snapshot.ids, item))
            cosines = rows @ rows[place]
            cosines[place] = -np.inf
            true = set(snapshot.ids[np.argsort(-cosines, kind="stable")[:k]].tolist())
            found, _ = searcher.search(rows[place][None].astype(np.float32), k + 1, nprobe=nprobe)
            shares.append(len(true & set([one for one in found[0].tolist() if one != item][:k])) / k)
    return float(np.mean(shares))


def test_recall_is_the_share_of_true_neighbours_counted_one_by_one(clustered: Path) -> None:
    report = evaluate_index(clustered, nprobes=[1, 3], ks=[1, 10], count=60, seed=2)
    with Snapshot.open(clustered) as snapshot:
        own = np.sort(np.random.default_rng(2).choice(snapshot.ids, 60, replace=False))
    for figures in report["curve"]:
        for k in (1, 10):
            wanted = recall(clustered, figures["nprobe"], k, own)
            assert figures["recall"][str(k)] == pytest.approx(wanted, abs=0.004)
    assert report["curve"][0]["recall"]["10"] < 0.95 < report["exact"]["recall"]["10"] == 1


def test_the_curve_rises_to_full_recall_and_marks_what_the_index_does_by_itself(clustered: Path) -> None:
    report = evaluate_index(clustered, count=50)
    probes = [figures["nprobe"] for figures in report["curve"]]
    assert probes == sorted(probes)
    assert {1, 2, 4, report["nprobe"]} <= set(probes)
    assert [figures["nprobe"] for figures in report["curve"] if figures["tuned"]] == [report["nprobe"]]
    recalls = [figures["recall"]["100"] for figures in report["curve"]]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.99
    assert (report["exact"]["nprobe"], report["exact"]["recall"]) == (None, {"1": 1.0, "10": 1.0, "100": 1.0})
    for figures in (report["exact"], *report["curve"]):
        assert figures["qps"] > 0
        assert figures["qps_batch"] > 0
        assert figures["ms"] <= figures["ms_p95"]
        assert figures["qps"] < 2000 / figures["ms"]


def test_memory_is_that_of_the_codes_and_of_what_they_do_not_hold(clustered: Path) -> None:
    report = evaluate_index(clustered, nprobes=[1], count=5)
    nbytes = next(clustered.glob("ann/gen-*/index.faiss")).stat().st_size
    assert report["memory"] == nbytes + TAIL * DIM * 2
    assert report["memory_flat"] == N * DIM * 4
    assert (report["n"], report["indexed"], report["nlist"]) == (N, N - TAIL, 16)
    assert report["factory"] == "IVF16,SQ8"


def test_an_index_without_faiss_is_exact_and_has_no_curve(tmp_path: Path) -> None:
    report = evaluate_index(make_index(tmp_path / "ix", 30))
    assert report["curve"] == []
    assert report["exact"]["recall"] == {"1": 1.0, "10": 1.0}  # 29 others: no recall@100
    assert (report["factory"], report["queries"], report["memory"]) == ("exact", 30, 30 * 8 * 2)


def test_progress_is_told(clustered: Path) -> None:
    told = []
    evaluate_index(clustered, nprobes=[1, 2], count=5, watch=lambda *seen: told.append(seen))
    assert told == [("Measuring", done, 3) for done in range(4)]


def test_what_an_index_cannot_answer_is_refused(clustered: Path, tmp_path: Path) -> None:
    small = make_index(tmp_path / "ix", 12)
    for directory, arguments, said in (
        (small, {"ks": [12]}, "k is 12; a photo of this index has 11 others"),
        (small, {"ks": [0, 3]}, "k is 0"),
        (small, {"nprobes": [4]}, "nprobe is 4; this index has 0 clusters"),
        (small, {"count": -1}, "-1 queries"),
        (clustered, {"nprobes": [17]}, "nprobe is 17; this index has 16 clusters"),
        (make_index(tmp_path / "one", 1), {}, "wanted 2 or more"),
    ):
        with pytest.raises(ArgumentError, match=said):
            evaluate_index(directory, **arguments)
