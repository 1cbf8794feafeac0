"""The kNN evaluation of images whose neighbours are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.knn_eval import KnnSpec, accuracy, evaluate_knn, few_shot

SHADES = {"red": (250, 0), "mix": (180, 180), "green": (0, 250)}


def fill(root: Path, per_class: int = 6) -> Path:
    """Write shades of three colours; of the two greens to classify, one looks red."""
    for label, (red, green) in SHADES.items():
        for number in range(per_class):
            paint(root / f"train/{label}/{number}.png", (max(0, red - number), max(0, green - number), 0))
        paint(root / f"val/{label}/0.png", (red, green, 6))
    paint(root / "val/green/1.png", (250, 4, 0))
    return root


def test_accuracy_is_what_the_colours_say(tmp_path: Path) -> None:
    root = fill(tmp_path)
    report = evaluate_knn(ColourEncoder(), KnnSpec(root, root, ks=(1, 6, 18)))
    assert report["knn"]["1"] == {"top1": 0.75, "top5": 0.75, "class_mean": pytest.approx(2.5 / 3)}
    assert report["knn"]["6"] == report["knn"]["1"]
    assert report["knn"]["18"] == {"top1": 0.75, "top5": 1.0, "class_mean": pytest.approx(2.5 / 3)}
    assert report["best"] == {"k": 1, "top1": 0.75}
    assert report["per_class"] == {"green": 0.5, "mix": 1.0, "red": 1.0}
    assert (report["n_train"], report["n_val"], report["n_classes"]) == (18, 4, 3)
    told = [report[key] for key in ("train", "val", "ks", "temperature", "shots", "tries", "seed")]
    assert told == [str(root), str(root), [1, 6, 18], 0.07, [], 1, 0]


def test_two_folders_and_two_tables_give_what_one_root_gives(tmp_path: Path) -> None:
    root = fill(tmp_path / "set")
    wanted = evaluate_knn(ColourEncoder(), KnnSpec(root, root, ks=(3,)))["knn"]
    assert evaluate_knn(ColourEncoder(), KnnSpec(root / "train", root / "val", ks=(3,)))["knn"] == wanted
    lines = ["path,label,split"]
    for path in sorted(root.rglob("*.png")):
        lines.append(f"{path.relative_to(tmp_path)},{path.parent.name},{path.parent.parent.name}")
    table = tmp_path / "set.csv"
    table.write_text("\n".join(lines))
    assert evaluate_knn(ColourEncoder(), KnnSpec(table, table, ks=(3,)))["knn"] == wanted


def test_k_not_given_are_those_of_the_protocol_that_fit(tmp_path: Path) -> None:
    root = fill(tmp_path, per_class=8)
    assert list(evaluate_knn(ColourEncoder(), KnnSpec(root, root))["knn"]) == ["10", "20"]
    small = fill(tmp_path / "small", per_class=2)
    with pytest.raises(ArgumentError, match="the bank has only 6 images"):
        evaluate_knn(ColourEncoder(), KnnSpec(small, small))
    encoder = ColourEncoder()
    with pytest.raises(ArgumentError, match="k is 100, but the bank has only 24 images"):
        evaluate_knn(encoder, KnnSpec(root, root, ks=(10, 100)))
    assert encoder.embedded == 0  # refused before any work


def test_few_shots_are_mean_and_deviation_over_the_tries(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels, truth = np.repeat(np.arange(4), 50), np.repeat(np.arange(4), 20)
    centres = rng.normal(size=(4, 6))
    bank = (centres[labels] + rng.normal(size=(200, 6))).astype(np.float32)
    queries = (centres[truth] + rng.normal(size=(80, 6))).astype(np.float32)
    spec = KnnSpec(tmp_path, tmp_path, ks=(1, 10, 20), tries=5)
    found = few_shot(spec, 10, bank, labels, queries, truth)
    assert list(found) == ["1", "10"]  # k up to the shots
    assert list(few_shot(spec, 3, bank, labels, queries, truth)) == ["1", "3"]  # and the shots themselves
    singles = [
        few_shot(KnnSpec(tmp_path, tmp_path, ks=(10,), seed=seed), 10, bank, labels, queries, truth)["10"]
        for seed in range(5)
    ]
    means = [single["top1"]["mean"] for single in singles]
    assert found["10"]["top1"]["mean"] == pytest.approx(np.mean(means))
    assert found["10"]["top1"]["std"] == pytest.approx(np.std(means))
    assert np.std(means) > 0
    assert all(single["top1"]["std"] == 0 for single in singles)


def test_accuracy_counts_first_five_and_classes() -> None:
    ranked = np.array([[0, 1, 2], [1, 0, 2], [2, 1, -1], [2, 1, -1]])
    found = accuracy(ranked, np.array([0, 0, 0, 2]))
    assert found == {"top1": 0.5, "top5": 0.75, "class_mean": pytest.approx((1 / 3 + 1) / 2)}


def test_a_report_is_written_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    root = fill(tmp_path / "set")
    (root / "train/red/bad.jpg").write_bytes(b"rubbish")
    out, spec = tmp_path / "report.json", KnnSpec(root, root, ks=(3,), shots=(2,), tries=2)

    def stop(path: Path) -> None:
        if path.parent.parent.name == "val":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_knn(ColourEncoder(), spec, out=out, batch_size=1, advance=stop)
    encoder = ColourEncoder()
    resumed = evaluate_knn(encoder, spec, out=out)
    assert encoder.embedded == 3
    straight = evaluate_knn(ColourEncoder(), spec)
    assert {**resumed, "runtime_s": 0} == {**straight, "runtime_s": 0}
    assert [Path(row["path"]).name for row in resumed["skipped"]] == ["bad.jpg"]
    assert json.loads(out.read_text()) == {"schema": "dinokit.eval-knn/1", **json.loads(json.dumps(resumed))}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "set"]
    with pytest.raises(ArgumentError, match="exists already"):
        evaluate_knn(ColourEncoder(), spec, out=out)


def test_sides_that_do_not_fit_are_refused_before_any_work(tmp_path: Path) -> None:
    root = fill(tmp_path)
    encoder = ColourEncoder()
    with pytest.raises(ArgumentError, match="would vote for themselves"):
        evaluate_knn(encoder, KnnSpec(root / "train", root / "train", ks=(1,)))
    paint(root / "val/violet/1.png", (120, 0, 120))
    with pytest.raises(ArgumentError, match=r"has classes that .* has not: violet"):
        evaluate_knn(encoder, KnnSpec(root, root, ks=(1,)))
    with pytest.raises(ImageError, match="no such folder"):
        evaluate_knn(encoder, KnnSpec(root / "train", tmp_path / "nowhere", ks=(1,)))
    with pytest.raises(ArgumentError, match="there is no folder"):
        evaluate_knn(encoder, KnnSpec(root, root, ks=(1,)), out=tmp_path / "no" / "report.json")
    assert encoder.embedded == 0
    for wrong in ({"ks": (0,)}, {"shots": (-1,)}, {"tries": 0}, {"temperature": 0.0}):
        with pytest.raises(ArgumentError, match="wanted"):
            KnnSpec(root, root, **wrong)
