"""Curation as a whole: each mode on known pools, the same bytes each time, and only what changed anew."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from curate_pool import MODEL, blobs, make_pool
from small_index import Shot, content, stat

from dinov2kit import ModelIdentity
from dinov2kit.errors import ArgumentError, ImageError, StoreError, StoreMismatch
from dinov2kit.indexes import CurateReport, CurateSpec, Snapshot, curate, curate_modes, curating
from dinov2kit.indexes.cluster_sampling import normalised_entropy
from dinov2kit.indexes.curate_spec import auto_clusters, auto_keep, auto_levels
from dinov2kit.indexes.search import Searcher
from dinov2kit.indexes.store import Store

GROUPS, EACH = 6, 20


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return blobs(GROUPS, EACH, seed=5)


@pytest.fixture
def pool(tmp_path: Path, rows: np.ndarray) -> Path:
    """Six groups of twenty photos; item i + 1 is of group i // 20."""
    return make_pool(tmp_path / "pool.idx", rows)


@pytest.fixture
def seed_index(tmp_path: Path, rows: np.ndarray) -> Path:
    """Five queries like group 0, three like group 1, four like group 2."""
    near = np.concatenate([rows[:5], rows[20:23], rows[40:44]])
    return make_pool(tmp_path / "seed.idx", near + 0.001, root=Path("/seed"))


def no_encoder() -> object:
    raise AssertionError("nothing has to be described")


def run(pool: Path, out: Path | None = None, *, spec: dict | None = None, **settings: object) -> CurateReport:
    with Snapshot.open(pool) as snapshot:
        return curate(snapshot, CurateSpec(**(spec or {})), out, load_encoder=no_encoder, **settings)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def group(number: int) -> int:
    return (number - 1) // EACH


def test_retrieval_gives_the_nearest_photos_with_where_they_come_from(pool, seed_index, rows, tmp_path):
    spec = {"queries": (seed_index,), "k": 2, "on_collision": "keep"}
    report = run(pool, tmp_path / "x.jsonl", spec=spec)
    with Snapshot.open(pool) as ours, Snapshot.open(seed_index) as theirs:
        asked, stored = (one.descriptors(one.ids).astype(float) for one in (theirs, ours))
    cosines = asked @ (stored / np.linalg.norm(stored, axis=1, keepdims=True)).T
    found = rows_of(tmp_path / "x.jsonl")
    assert [(row["query_id"], row["rank"]) for row in found] == [
        (query, rank) for query in range(1, 13) for rank in (1, 2)
    ]
    for query in range(12):
        nearest = np.argsort(-cosines[query])[:2] + 1
        assert {row["id"] for row in found[2 * query : 2 * query + 2]} == set(nearest.tolist())
    first = found[0]
    assert first["path"] == f"/photos/{first['id'] - 1}.jpg"
    assert (first["source"], first["mode"], first["query"]) == ("pool.idx", "retrieve", "/seed/0.jpg")
    assert (first["query_set"], first["cluster"]) == (str(seed_index), [])
    assert first["score"] == pytest.approx(cosines[0].max(), abs=1e-3)
    assert report.accounting.asked == 24 == report.accounting.returned
    assert report.accounting.unique == len({row["id"] for row in found})


def test_a_contested_photo_is_returned_once_and_the_counts_add_up(pool, tmp_path):
    same = make_pool(tmp_path / "same.idx", np.tile([0.1, 0.2, 0.3, 0.4], (7, 1)), root=Path("/same"))
    for rule, expected in {
        "next": (70, 70, 70, 0),
        "drop": (70, 10, 10, 60),
        "keep": (70, 70, 10, 0),
    }.items():
        out = tmp_path / f"{rule}.jsonl"
        report = run(pool, out, spec={"queries": (same,), "k": 10, "on_collision": rule})
        counts = report.accounting
        assert (counts.asked, counts.returned, counts.unique, counts.shortfall) == expected
        assert counts.collisions == 60
        ids = [row["id"] for row in rows_of(out)]
        assert (len(ids), len(set(ids))) == (counts.returned, counts.unique)
        assert report.stages[-1].left == counts.unique
    report = run(pool, spec={"queries": (same,), "k": 30})
    assert (report.accounting.returned, report.accounting.shortfall) == (120, 90)


def test_clusters_with_enough_queries_give_photos_for_each_query_set_once(pool, seed_index, rows, tmp_path):
    second = make_pool(tmp_path / "more.idx", rows[40:48] + 0.001, root=Path("/more"))
    spec = {"mode": "cluster", "queries": (seed_index, second), "clusters": GROUPS, "per_cluster": 15}
    report = run(pool, tmp_path / "x.jsonl", spec=spec)
    found = rows_of(tmp_path / "x.jsonl")
    ids = [row["id"] for row in found]
    assert ids == sorted(set(ids))
    by_set = Counter((row["query_set"], group(row["id"])) for row in found)
    assert by_set[(str(seed_index), 0)] == 15
    assert by_set[(str(seed_index), 2)] == 15  # four queries are enough
    assert {key[1] for key in by_set} == {0, 2}  # three are not
    twice = 15 - by_set[(str(second), 2)]
    counts = report.accounting
    assert (counts.asked, counts.returned, counts.collisions, counts.shortfall) == (
        45,
        45 - twice,
        twice,
        twice,
    )
    assert 0 < twice < 15
    use = report.clusters
    assert use.pool.tolist() == [EACH] * GROUPS
    assert sorted(use.hits.tolist()) == [0, 0, 0, 3, 5, 12]
    assert use.chosen.sum() == len(found)
    for row in found:
        assert use.chosen[row["cluster"][0]] > 0
        assert row["score"] > 0.9
    few = run(pool, spec={**spec, "cap": 9})
    assert few.accounting.asked == 18


def test_balanced_sampling_takes_the_same_from_every_group(tmp_path):
    sizes = [600, 200, 80, 60, 30, 30]
    centres = blobs(6, 1, dim=4, spread=0.0, seed=5)
    pulled = np.repeat(centres, sizes, axis=0) + 0.05 * np.random.default_rng(1).normal(size=(1000, 4))
    pool = make_pool(tmp_path / "pool.idx", pulled)
    labels = np.repeat(np.arange(6), sizes)
    entropies = {}
    for mode, more in {"hkmeans": {"levels": (60, 6), "resample": (3,)}, "random": {}}.items():
        out = tmp_path / f"{mode}.jsonl"
        report = run(pool, out, spec={"mode": mode, "target_size": 120, **more})
        found = rows_of(out)
        ids = [row["id"] for row in found]
        assert len(ids) == len(set(ids)) == 120
        assert ids == sorted(ids)
        assert vars(report.accounting) == {
            "asked": 120, "returned": 120, "unique": 120, "collisions": 0, "shortfall": 0,
        }  # fmt: skip
        entropies[mode] = normalised_entropy(np.bincount(labels[np.array(ids) - 1], minlength=6))
        if mode == "hkmeans":
            assert (
                report.clusters.chosen.tolist()
                == np.bincount([row["cluster"][0] for row in found], minlength=6).tolist()
            )
            tops = {}
            for row in found:  # a path: a lower cluster lies in one upper cluster only
                top, leaf = row["cluster"]
                assert tops.setdefault(leaf, top) == top
            assert max(tops) > 6
            assert min(row["score"] for row in found) > 0.9
    assert entropies["hkmeans"] > 0.95
    assert entropies["random"] < 0.8


def test_the_closest_to_the_centroid_can_be_picked(pool, tmp_path):
    scores = {}
    for pick in ("random", "closest"):
        spec = {"mode": "hkmeans", "target_size": 12, "levels": (6,), "pick": pick}
        run(pool, tmp_path / f"{pick}.jsonl", spec=spec)
        scores[pick] = np.mean([row["score"] for row in rows_of(tmp_path / f"{pick}.jsonl")])
    assert scores["closest"] > scores["random"]


def test_what_says_the_same_is_left_out_and_no_pair_that_alike_stays(pool, tmp_path):
    report = run(pool, tmp_path / "x.jsonl", spec={"mode": "semdedup", "eps": 0.02, "clusters": 6})
    found = rows_of(tmp_path / "x.jsonl")
    assert {group(row["id"]) for row in found} == set(range(GROUPS))
    with Snapshot.open(pool) as snapshot:
        kept = snapshot.descriptors(np.array([row["id"] for row in found])).astype(float)
    cosines = kept @ kept.T - 2 * np.eye(len(kept))
    assert cosines.max() <= 0.98 + 2e-3
    assert report.stages[-1].why == {"redundant": GROUPS * EACH - len(found)}
    assert len(found) < GROUPS * EACH / 2


MODES = {
    "retrieve": {"k": 3},
    "cluster": {"clusters": 6, "per_cluster": 7},
    "hkmeans": {"target_size": 30, "levels": (12, 3)},
    "semdedup": {"eps": 0.01, "clusters": 6},
    "random": {"target_size": 30},
}


@pytest.mark.parametrize("mode", MODES)
def test_the_same_index_and_seed_give_the_same_bytes(pool, seed_index, tmp_path, mode):
    spec = {"mode": mode, **MODES[mode]}
    if mode in ("retrieve", "cluster"):
        spec["queries"] = (seed_index,)
    for suffix in (".jsonl", ".txt", ".parquet"):
        run(pool, tmp_path / f"first{suffix}", spec=spec)
        again = run(pool, tmp_path / f"again{suffix}", spec=spec)
        assert not again.computed
        assert (tmp_path / f"first{suffix}").read_bytes() == (tmp_path / f"again{suffix}").read_bytes()
    fresh = run(pool, tmp_path / "fresh.jsonl", spec=spec, fresh=True)
    assert not fresh.reused
    run(pool, tmp_path / "elsewhere.jsonl", spec=spec, work=tmp_path / "work")
    files = [tmp_path / f"{name}.jsonl" for name in ("first", "fresh", "elsewhere")]
    assert len({file.read_bytes() for file in files}) == 1
    paths = (tmp_path / "first.txt").read_text().splitlines()
    listed = rows_of(tmp_path / "first.jsonl")
    assert [row["path"] for row in listed] == paths
    assert pyarrow.parquet.read_table(tmp_path / "first.parquet").to_pylist() == listed
    if mode in ("cluster", "hkmeans", "random"):
        run(pool, tmp_path / "other.txt", spec={**spec, "seed": 1})
        assert (tmp_path / "other.txt").read_text().splitlines() != paths


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """Count the calls of everything that takes long."""
    counted: Counter[str] = Counter()

    def count(place: object, name: str) -> None:
        real = getattr(place, name)

        def counting(*arguments: object, **settings: object) -> object:
            counted[name] += 1
            return real(*arguments, **settings)

        monkeypatch.setattr(place, name, counting)

    for place, names in {
        curating: ("all_pairs", "cross_pairs"),
        curate_modes: ("fit_centroids", "build_hierarchy", "redundancy"),
        Searcher: ("search",),
    }.items():
        for name in names:
            count(place, name)
    return counted


def test_a_changed_setting_costs_only_what_depends_on_it(pool, seed_index, rows, tmp_path, calls):
    val = make_pool(tmp_path / "val.idx", rows[119:] + 0.001, root=Path("/val"))
    base = {
        "mode": "cluster",
        "queries": (seed_index,),
        "clusters": 6,
        "exclude_near": (val,),
        "dedup": 0.9999995,
    }

    def cost(**changed: object) -> dict[str, int]:
        calls.clear()
        run(pool, spec={**base, **changed})
        return dict(calls)

    assert cost() == {"all_pairs": 1, "cross_pairs": 1, "fit_centroids": 1}
    assert cost() == {}
    assert cost(min_hits=3, per_cluster=4, cap=7) == {}
    assert cost(chain=False) == {"all_pairs": 1}  # only down to the other threshold; the same photos are left
    assert cost(dedup=0.999999) == {}  # the pairs reach down to the lower threshold, and no copy is that near
    assert cost(seed=1) == {"fit_centroids": 1}
    assert cost(clusters=5) == {"fit_centroids": 1}
    assert cost(exclude_threshold=0.97) == {"all_pairs": 1, "cross_pairs": 1}
    assert cost(mode="semdedup") == {"redundancy": 1}
    assert cost(mode="semdedup", eps=0.2) == {}
    balanced = {"mode": "hkmeans", "levels": (12, 3), "resample": (2,)}
    assert cost(**balanced, target_size=9) == {"build_hierarchy": 1}
    assert cost(**balanced, target_size=12, pick="closest") == {}
    assert cost(**balanced, target_size=9, keep=(3, 2)) == {"build_hierarchy": 1}
    assert cost(mode="retrieve") == {"search": 1}
    assert cost(mode="retrieve", on_collision="drop") == {"search": 1}  # it looks less far
    assert cost(mode="retrieve", on_collision="keep", seed=9) == {}
    assert cost(mode="retrieve", where="id <= 60") == {"search": 1}


def test_new_photos_in_the_index_are_seen(pool, seed_index, rows, calls):
    spec = {"queries": (seed_index,), "k": 1, "dedup": 0.99999}
    run(pool, spec=spec)
    with Store.open(pool) as store:
        shot = Shot(rows[0] + np.float32(0.001))
        store.put(store.root_id(Path("/photos")), b"new.jpg", stat(9), content(9), shot)
        store.commit()
    calls.clear()
    report = run(pool, spec=spec)
    assert report.stages[0].came == GROUPS * EACH + 1
    assert calls["all_pairs"] == calls["search"] == 1


def test_an_interrupted_run_goes_on_where_it_was(pool, tmp_path, calls, monkeypatch):
    spec = {"mode": "hkmeans", "target_size": 30, "levels": (12, 3), "dedup": 0.9999}

    def break_off(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    whole = run(pool, tmp_path / "whole.jsonl", spec=spec, work=tmp_path / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(curate_modes, "build_hierarchy", break_off)
        with pytest.raises(KeyboardInterrupt):
            run(pool, tmp_path / "x.jsonl", spec=spec)
    assert not (tmp_path / "x.jsonl").exists()
    calls.clear()
    report = run(pool, tmp_path / "x.jsonl", spec=spec)
    assert dict(calls) == {"build_hierarchy": 1}
    assert (report.reused, report.computed) == (("pairs",), ("hierarchy",))
    assert (tmp_path / "x.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert report.accounting == whole.accounting


def test_the_stages_add_up_from_the_whole_index_to_the_rows(pool, seed_index, rows, tmp_path):
    val = make_pool(tmp_path / "val.idx", rows[20:25] + 0.001, root=Path("/val"))
    spec = {"queries": (seed_index,), "where": "id > 2", "dedup": 0.9995, "exclude_near": (val,)}
    report = run(pool, spec={**spec, "exclude_threshold": 0.9999, "chain": False})
    names = [stage.name for stage in report.stages]
    assert names == ["where", "dedup", f"exclude {val}", "retrieve"]
    assert report.stages[0].came == GROUPS * EACH
    for stage, following in zip(report.stages, [*report.stages[1:], None], strict=True):
        assert stage.came - stage.left == stage.dropped == sum(stage.why.values())
        assert following is None or following.came == stage.left
    assert report.stages[0].why == {"filtered out": 2}
    assert report.stages[-1].left == report.accounting.unique
    document = report.to_json()
    assert document["stages"][0] == {"name": "where", "in": 120, "out": 118, "dropped": {"filtered out": 2}}
    json.dumps(document)


def test_queries_that_lie_in_the_pool_are_not_returned(pool, rows, tmp_path):
    inside = make_pool(tmp_path / "seed.idx", rows[:4])  # the same paths as items 1 to 4
    report = run(pool, tmp_path / "x.jsonl", spec={"queries": (inside,), "k": 2})
    assert report.stages[0].why == {"query itself": 4}
    assert not {1, 2, 3, 4} & {row["id"] for row in rows_of(tmp_path / "x.jsonl")}


def test_the_results_of_stages_can_be_kept_elsewhere(pool, tmp_path):
    spec = {"mode": "semdedup", "clusters": 6}
    report = run(pool, spec=spec, work=tmp_path / "work")
    assert report.work == tmp_path / "work"
    assert not (pool / "curate").exists()
    (pool / "curate").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be kept in") as caught:
        run(pool, spec=spec)
    assert "--work DIR" in str(caught.value.hint)
    assert run(pool, spec={"mode": "random", "target_size": 3}).accounting.returned == 3  # needs no stage


def test_a_page_shows_counts_clusters_and_why_photos_went(pool, rows, tmp_path):
    val = make_pool(tmp_path / "val.idx", rows[20:21], root=Path("/val"))
    spec = {"mode": "semdedup", "clusters": 6, "exclude_near": (val,), "dedup": 0.9999, "chain": False}
    page, again = tmp_path / "x.html", tmp_path / "y.html"
    report = run(pool, spec=spec, page=page)
    text = page.read_text()
    for said in ("Stages", "entropy", "redundant", "near", "like /val/0.jpg", "semdedup, seed 0, 120 photos"):
        assert said in text
    assert "<script" not in text
    assert text.count("<tr>") == 1 + len(report.stages) + 2 + 1 + 6
    run(pool, spec=spec, page=again)
    assert again.read_text() == text


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"mode": "sort"}, "unknown mode 'sort'; wanted one of retrieve"),
        ({"on_collision": "share"}, "unknown collision rule"),
        ({"pick": "best"}, "unknown pick"),
        ({}, "mode retrieve needs queries"),
        ({"mode": "cluster"}, "mode cluster needs queries"),
        ({"mode": "hkmeans"}, "mode hkmeans needs a target size"),
        ({"mode": "semdedup", "target_size": 5}, "mode semdedup has no target size"),
        ({"mode": "random", "target_size": 0}, "target_size is 0"),
        (
            {"mode": "hkmeans", "target_size": 5, "levels": (20, 20)},
            "levels are 20,20; wanted them descending",
        ),
        ({"mode": "hkmeans", "target_size": 5, "levels": (5, 20)}, "wanted them descending"),
        ({"mode": "hkmeans", "target_size": 5, "levels": ()}, "levels is empty"),
        ({"mode": "hkmeans", "target_size": 5, "levels": (9, 3), "keep": (4,)}, "r has 1 numbers for 2"),
        ({"mode": "hkmeans", "target_size": 5, "keep": (4,)}, "need levels"),
        ({"mode": "hkmeans", "target_size": 5, "resample": (-1,)}, "resample is -1"),
        ({"mode": "semdedup", "eps": 0.0}, "eps is 0"),
        ({"mode": "semdedup", "dedup": 1.0}, "dedup is 1; wanted a cosine"),
        ({"mode": "semdedup", "exclude_threshold": -2.0}, "exclude_threshold is -2"),
        ({"mode": "semdedup", "seed": -1}, "seed is -1"),
        ({"queries": (Path("x"),), "k": 0}, "k is 0"),
        ({"queries": (Path("x"),), "k": 9, "max_depth": 8}, "max_depth is 8, below k"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_when_it_is_made(spec, said):
    with pytest.raises(ArgumentError, match=said):
        CurateSpec(**spec)


@pytest.mark.parametrize(
    ("spec", "out", "error", "said"),
    [
        ({"mode": "random", "target_size": 121}, "x.jsonl", ArgumentError, "121, and there are 120 photos"),
        ({"mode": "hkmeans", "target_size": 9, "levels": (500,)}, "x.jsonl", ArgumentError, "500 clusters"),
        (
            {"mode": "random", "target_size": 1, "where": "id > 999"},
            "x.jsonl",
            ArgumentError,
            "no photo is left",
        ),
        ({"mode": "random", "target_size": 1}, "x.csv", ArgumentError, "no suffix that can be written"),
        ({"mode": "random", "target_size": 1}, "there.txt", ArgumentError, "there.txt exists"),
        ({"mode": "random", "target_size": 1}, "no/x.txt", ArgumentError, "there is no folder"),
        ({"queries": (Path("nowhere"),)}, "x.jsonl", ImageError, "nowhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(pool, tmp_path, calls, spec, out, error, said):
    (tmp_path / "there.txt").write_text("mine")
    with pytest.raises(error, match=said):
        run(pool, tmp_path / out, spec=spec)
    assert (tmp_path / "there.txt").read_text() == "mine"
    assert not calls
    assert not (tmp_path / "x.jsonl").exists()


def test_too_few_queries_in_every_cluster_is_said(pool, seed_index):
    with pytest.raises(
        ArgumentError, match="no cluster that holds photos has 6 of the queries; the most is 5"
    ):
        run(pool, spec={"mode": "cluster", "queries": (seed_index,), "clusters": 6, "min_hits": 6})


def test_an_index_of_another_model_is_refused(pool, tmp_path):
    other = ModelIdentity("large", "cd" * 32, 4, "cls", MODEL.preprocess)
    wrong = make_pool(tmp_path / "wrong.idx", np.eye(4), model=other)
    with pytest.raises(StoreMismatch, match=r"wrong.idx cannot be compared with the pool.*tiny.*large"):
        run(pool, spec={"queries": (wrong,)})


def test_photos_that_are_gone_are_listed_and_left_out_of_a_tar(pool, tmp_path):
    report = run(pool, tmp_path / "x.tar", spec={"mode": "random", "target_size": 3})
    assert [reason for _, reason in report.unreadable] == ["No such file or directory"] * 3
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == []


@pytest.mark.parametrize(
    ("n", "clusters", "levels"),
    [
        (1, 1, (1,)),
        (40, 2, (1,)),
        (1_000, 50, (40, 4)),
        (10_000, 64, (400, 40, 4)),
        (50_000, 64, (2_000, 200, 20)),
        (500_000, 417, (20_000, 2_000, 200)),
        (744_000_000, 620_000, (29_760_000, 2_976_000, 297_600)),
    ],
)
def test_sizes_follow_the_pool(n, clusters, levels):
    assert auto_clusters(n) == clusters
    assert auto_levels(n) == levels
    assert all(keep >= 1 for keep in auto_keep(n, levels))
    CurateSpec(mode="hkmeans", target_size=1, levels=levels, keep=auto_keep(n, levels))


def test_resampling_keeps_half_of_the_mean_cluster():
    assert auto_keep(500_000, (20_000, 2_000, 200)) == (12, 5, 5)
