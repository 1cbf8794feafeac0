"""Whole evaluations on images whose cosines are known, so that every score can be counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint

from dinov2kit import set_scores
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.retrieval_eval import RetrievalSpec, evaluate_retrieval, read_retrieval_set, set_digest
from dinov2kit.retrieval_sets import Query, RetrievalSet, Setup

HUES = {  # degrees in the plane of red and green: the cosine of two is that of their difference
    "index/a/00.png": 0,
    "index/a/20.png": 20,
    "index/b/10.png": 10,
    "index/b/80.png": 80,
    "query/a/04.png": 4,
    "query/b/17.png": 17,
    "query/c/40.png": 40,
}


def hue(degrees: float) -> tuple[int, int, int]:
    red, green = (round(250 * f(np.radians(degrees))) for f in (np.cos, np.sin))
    return red, green, 0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, degrees in HUES.items():
        paint(tmp_path / "set" / name, hue(degrees))
    return tmp_path / "set"


def test_scores_are_those_counted_by_hand(root: Path) -> None:
    report = evaluate_retrieval(ColourEncoder(), RetrievalSpec("folders", root))
    # 4 finds 0, 10, 20, 80; 17 finds 20, 10, 0, 80; 40 has no match and only disturbs the pairs
    first, second = report["queries"]
    assert (first["path"], second["path"]) == tuple(str(root / name) for name in list(HUES)[4:6])
    assert (first["ap"], second["ap"]) == (pytest.approx((1 + 2 / 3) / 2), pytest.approx((1 / 2 + 2 / 4) / 2))
    assert (first["first_rank"], second["first_rank"]) == (1, 2)
    scores = report["setups"]["all"]
    assert scores["n"] == 2
    assert scores["map"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert scores["map_at_r"] == pytest.approx((1 / 2 + (1 / 2) / 2) / 2)
    assert scores["recall"] == {"1": 0.5, "5": 1.0, "10": 1.0}
    assert (report["n_queries"], report["n_index"]) == (3, 4)
    assert set(report["per_group"]) == {"a", "b"}
    assert report["per_group"]["b"]["all"]["map"] == second["ap"]
    assert report["micro"]["pairs"] == 12
    assert report["micro"]["matches"] == 4


@pytest.mark.parametrize("most", [4, 7, 12, 4_000_000])
def test_the_micro_average_precision_is_that_of_all_pairs_sorted(root: Path, monkeypatch, most) -> None:
    """Of more pairs than are ranked, those that score lower are not found."""
    monkeypatch.setattr(set_scores, "MOST_PAIRS", most)
    monkeypatch.setattr(set_scores, "_MEMORY", most)
    report = evaluate_retrieval(ColourEncoder(), RetrievalSpec("folders", root))
    names = list(HUES)
    rows = np.array([hue(HUES[name]) for name in names], float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = sorted(
        (-float(rows[query] @ rows[item]), names[query].split("/")[1] == names[item].split("/")[1])
        for query in range(4, 7)
        for item in range(4)
    )
    found, area = 0, 0.0
    for place, (_, right) in enumerate(pairs[:most], 1):
        found += right
        area += right * found / place
    assert report["micro"]["ap"] == pytest.approx(area / 4)
    assert report["micro"]["pairs"] == min(most, 12)
    assert report["setups"]["all"]["map"] == pytest.approx(2 / 3)


def test_setups_score_the_same_ranking_with_other_positives_and_junk(tmp_path: Path) -> None:
    degrees = (2, 4, 6, 8, 10)
    index = tuple(paint(tmp_path / f"{number}.png", hue(number)) for number in degrees)
    query = paint(tmp_path / "query.png", hue(0))
    matches = {"easy": np.array([2]), "hard": np.array([4]), "junk": np.array([0])}
    setups = {
        "easy": Setup(("easy",), ("junk", "hard")),
        "medium": Setup(("easy", "hard"), ("junk",)),
        "hard": Setup(("hard",), ("junk", "easy")),
        "never": Setup(("none",), ()),
    }
    chosen = RetrievalSet("x", index, (Query(query, matches),), setups, rule="trapezoid")
    spec = RetrievalSpec("roxford5k", tmp_path)
    report = evaluate_retrieval(ColourEncoder(), spec, chosen=chosen)
    assert {name: facts["map"] for name, facts in report["setups"].items()} == {
        "easy": pytest.approx((0 + 1 / 2) / 2),  # rank 2 of 1, 2, 3
        "medium": pytest.approx(((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2),  # ranks 2 and 4
        "hard": pytest.approx((0 + 1 / 3) / 2),  # rank 3
    }
    assert report["setups"]["medium"]["precision"] == {"1": 0.0, "5": 0.5, "10": 0.5}
    assert report["micro"] is None


def test_an_image_never_finds_itself(tmp_path: Path) -> None:
    table = tmp_path / "set.csv"
    lines = ["path,label"]
    for number, label in ((0, "a"), (3, "a"), (50, "b"), (53, "b"), (54, "c")):
        paint(tmp_path / f"{number}.png", hue(number))
        lines.append(f"{number}.png,{label}")
    table.write_text("\n".join(lines))
    report = evaluate_retrieval(ColourEncoder(), RetrievalSpec("csv", table, ks=(1, 2)))
    assert report["setups"]["all"]["n"] == 4  # c is alone
    assert report["setups"]["all"]["recall"] == {"1": 0.75, "2": 1.0}  # 53 finds 54 first
    assert report["n_index"] == 5


def test_images_that_cannot_be_read_are_left_out_on_both_sides_and_listed(root: Path) -> None:
    straight = evaluate_retrieval(ColourEncoder(), RetrievalSpec("folders", root))
    for name in ("index/a/bad.jpg", "query/a/bad.jpg"):
        (root / name).write_bytes(b"rubbish")
    report = evaluate_retrieval(ColourEncoder(), RetrievalSpec("folders", root))
    assert [Path(row["path"]).name for row in report["skipped"]] == ["bad.jpg", "bad.jpg"]
    for key in ("setups", "micro", "n_queries", "n_index", "queries"):
        assert report[key] == straight[key], key


def test_a_report_has_every_setting_and_an_interrupted_run_goes_on_to_the_same(root: Path, tmp_path) -> None:
    out = tmp_path / "report.json"
    spec = RetrievalSpec("folders", root, ks=(1, 3), limit=2, seed=5)
    chosen = read_retrieval_set(spec)

    def stop(path: Path) -> None:
        if path == chosen.index[-2]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_retrieval(ColourEncoder(), spec, out=out, batch_size=1, advance=stop)
    assert list(out.with_name("report.json.partial").iterdir())
    encoder = ColourEncoder()
    resumed = evaluate_retrieval(encoder, spec, out=out)
    assert encoder.embedded == 1
    straight = evaluate_retrieval(ColourEncoder(), spec)
    assert {**resumed, "runtime_s": 0} == {**straight, "runtime_s": 0}
    assert json.loads(out.read_text()) == {
        "schema": "dinokit.eval-retrieval/1",
        **json.loads(json.dumps(resumed)),
    }
    assert not out.with_name("report.json.partial").exists()
    assert resumed["model"] == {"name": "colour", "weights_sha256": "0" * 64}
    assert resumed["preprocess"]["crop"] == 14
    told = [resumed[key] for key in ("dataset", "root", "ks", "rule", "limit", "seed", "distractors")]
    assert told == ["folders", str(root), [1, 3], "average", 2, 5, None]
    with pytest.raises(ArgumentError, match="exists already"):
        evaluate_retrieval(ColourEncoder(), spec, out=out)
    evaluate_retrieval(ColourEncoder(), spec, out=out, overwrite=True)


def test_a_cache_serves_later_runs_and_stays(root: Path, tmp_path: Path) -> None:
    spec = RetrievalSpec("folders", root)
    for embedded in (7, 0):
        encoder = ColourEncoder()
        out = tmp_path / f"{embedded}.json"
        evaluate_retrieval(encoder, spec, out=out, cache=tmp_path / "cache")
        assert encoder.embedded == embedded
    assert list((tmp_path / "cache").iterdir())


def test_the_digest_of_a_set_moves_with_its_truth_and_not_with_its_place(root: Path, tmp_path: Path) -> None:
    here = set_digest(read_retrieval_set(RetrievalSpec("folders", root)))
    root.rename(tmp_path / "moved")
    assert set_digest(read_retrieval_set(RetrievalSpec("folders", tmp_path / "moved"))) == here
    (tmp_path / "moved/index/a/20.png").rename(tmp_path / "moved/index/b/20.png")
    assert set_digest(read_retrieval_set(RetrievalSpec("folders", tmp_path / "moved"))) != here


def test_what_cannot_be_scored_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="unknown data set 'oxford'"):
        RetrievalSpec("oxford", root)
    with pytest.raises(ArgumentError, match="k is 0"):
        RetrievalSpec("folders", root, ks=(0,))
    with pytest.raises(ArgumentError, match="limit is -1"):
        RetrievalSpec("folders", root, limit=-1)
    paint(tmp_path / "alone/a/1.png", hue(1))
    paint(tmp_path / "alone/b/2.png", hue(2))
    with pytest.raises(ImageError, match="no query of folders has a match"):
        evaluate_retrieval(ColourEncoder(), RetrievalSpec("folders", tmp_path / "alone"))
