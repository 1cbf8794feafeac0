"""The runner on pairs whose truth is known: what is right scores one, and an interrupted run goes on."""

import json
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from PIL import Image
from pixel_encoder import PATCH, PixelEncoder
from typer.testing import CliRunner

from dinov2kit.cli import app
from dinov2kit.correspondence_eval import DataSet, EvalSpec, evaluate_correspondence, read_pairs
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.matching import MatchSpec

SHIFT = 2 * PATCH


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return six pairs of an image and itself moved; pair k marks the first k of ten keypoints wrong."""
    noise = np.random.default_rng(1).integers(0, 256, (20 * PATCH, 32 * PATCH, 3), np.uint8)
    images = tmp_path / "set/images"
    images.mkdir(parents=True)
    Image.fromarray(noise[:, : 30 * PATCH]).save(images / "a.png")
    Image.fromarray(noise[:, SHIFT:]).save(images / "b.png")
    rng = np.random.default_rng(0)
    entries = []
    for wrong in range(6):
        cells = rng.choice(18 * 24, 10, replace=False)
        points = np.stack([cells % 24 + 4, cells // 24 + 1], axis=1) * PATCH + (PATCH - 1) / 2
        truth = points - [SHIFT, 0] + np.array([[0, 90]] * wrong + [[0, 0]] * (10 - wrong))
        entry = {"src": "a.png", "trg": "b.png", "src_kps": points.tolist(), "trg_kps": truth.tolist()}
        entries.append(
            {**entry, "category": "even" if wrong % 2 == 0 else "odd", "trg_bbox": [0, 0, 200, 100]}
        )
    (tmp_path / "set/pairs.json").write_text(json.dumps(entries))
    return tmp_path / "set"


def spec(root: Path, **more: object) -> EvalSpec:
    return EvalSpec("pairs", root, alphas=(0.1, 0.5), **more)


def test_pixels_that_moved_by_a_known_way_score_exactly_what_was_marked_right(root: Path) -> None:
    report = evaluate_correspondence(PixelEncoder(), spec(root))
    at = report["pck"]["0.1"]
    assert (report["n_pairs"], report["n_points"]) == (6, 60)
    assert at["image"] == at["point"] == pytest.approx((60 - 15) / 60)
    assert at["class_mean"] == pytest.approx((24 / 30 + 21 / 30) / 2)
    assert report["pck"]["0.5"]["point"] == 1  # 90 is less than 0.5 * 200
    assert report["per_class"]["odd"]["pck_point"]["0.1"] == pytest.approx(21 / 30)
    assert report["length"] == "auto"
    assert report["matching"]["max_cycle"] == 1.0
    assert len(report["pairs"]) == 6


@pytest.mark.parametrize(("length", "share"), [("bbox", 45 / 60), ("img", 45 / 60), ("bbox-kp", 45 / 60)])
def test_every_length_is_the_one_that_its_name_says(root: Path, length: str, share: float) -> None:
    """90 pixels are wrong at alpha 0.1 of any length; the alpha at which they are right tells the length."""
    report = evaluate_correspondence(PixelEncoder(), spec(root, length=length))
    assert report["pck"]["0.1"]["point"] == pytest.approx(share)
    entry = json.loads((root / "pairs.json").read_text())[5]
    extent = np.ptp(np.array(entry["trg_kps"]), axis=0).max()
    expected = {"bbox": 200, "img": 30 * PATCH, "bbox-kp": extent}[length]
    alphas = tuple((90 + off) / expected for off in (-4, 4))
    narrow = EvalSpec("pairs", root, alphas=alphas, length=length)
    found = evaluate_correspondence(PixelEncoder(), narrow, pairs=read_pairs(narrow)[5:])["pck"]
    assert [at["point"] for at in found.values()] == [0.5, 1.0]


def test_an_interrupted_run_goes_on_and_ends_like_a_straight_one(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"

    def stop(name: str, at: int = 3) -> None:
        if name.startswith(f"{at:05}"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_correspondence(PixelEncoder(), spec(root), out=out, advance=stop)
    partial = out.with_name("report.json.partial")
    assert len(partial.read_text().splitlines()) == 5
    with partial.open("a") as file:
        file.write('{"name": "0000')  # a line that a kill cut off
    encoder = PixelEncoder()
    resumed = evaluate_correspondence(encoder, spec(root), out=out)
    straight = evaluate_correspondence(PixelEncoder(), spec(root))
    assert {**resumed, "runtime_s": 0} == {**straight, "runtime_s": 0}
    written = json.loads(out.read_text())
    assert written == json.loads(json.dumps({"schema": "dinokit.eval-correspondence/1", **resumed}))
    assert not partial.exists()
    assert encoder.encoded == ["a.png", "b.png"]  # each image once, and none of the pairs that were done


def test_an_unfinished_run_with_other_settings_is_not_mixed_in(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_correspondence(PixelEncoder(), spec(root), out=out, advance=stop)
    with pytest.raises(ArgumentError, match="other settings"):
        evaluate_correspondence(PixelEncoder(), spec(root, matching=MatchSpec(refine="none")), out=out)
    out.write_text("mine")
    with pytest.raises(ArgumentError, match="exists already"):
        evaluate_correspondence(PixelEncoder(), spec(root), out=out)


def test_an_unfinished_run_on_other_keypoints_is_not_mixed_in(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.json"

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_correspondence(PixelEncoder(), spec(root), out=out, advance=stop)
    entries = json.loads((root / "pairs.json").read_text())
    entries[0]["trg_kps"][0][0] += 1
    (root / "pairs.json").write_text(json.dumps(entries))
    with pytest.raises(ArgumentError, match="other settings"):
        evaluate_correspondence(PixelEncoder(), spec(root), out=out)


@pytest.mark.parametrize(
    ("change", "length", "reason"),
    [
        ({"src_kps": [], "trg_kps": []}, "auto", "no keypoint is in both"),
        ({"trg_bbox": [5, 5, 5, 5]}, "auto", "0 pixels long"),
        ({"src_kps": [[50, 50]], "trg_kps": [[22, 50]]}, "bbox-kp", "0 pixels long"),
        ({"src_kps": [[1000, 900]], "trg_kps": [[22, 50]]}, "auto", "far outside an image of 420x280"),
        ({"src_kps": [[50, 50]], "trg_kps": [[1000, 900]]}, "auto", "far outside an image of 420x280"),
    ],
)
def test_a_pair_that_cannot_be_measured_is_left_out_with_its_reason(
    root: Path, change: dict[str, object], length: str, reason: str
) -> None:
    entries = json.loads((root / "pairs.json").read_text())
    entries[2] |= change
    (root / "pairs.json").write_text(json.dumps(entries))
    report = evaluate_correspondence(PixelEncoder(), spec(root, length=length))
    (row,) = report["skipped"]
    assert row["pair"] == "00002:a-b"
    assert reason in row["reason"]
    assert (report["n_pairs"], report["n_points"]) == (5, 50)


def test_a_keypoint_on_the_edge_is_read_from_the_image(root: Path) -> None:
    entries = json.loads((root / "pairs.json").read_text())[:1]
    entries[0] |= {"src_kps": [[420, 280]], "trg_kps": [[392, 280]]}
    (root / "pairs.json").write_text(json.dumps(entries))
    assert evaluate_correspondence(PixelEncoder(), spec(root))["pck"]["0.1"]["point"] == 1


def test_the_order_of_keypoints_does_not_matter(root: Path) -> None:
    before = evaluate_correspondence(PixelEncoder(), spec(root))
    entries = json.loads((root / "pairs.json").read_text())
    for entry in entries:
        entry["src_kps"], entry["trg_kps"] = entry["src_kps"][::-1], entry["trg_kps"][::-1]
    (root / "pairs.json").write_text(json.dumps(entries))
    after = evaluate_correspondence(PixelEncoder(), spec(root))
    assert (after["pck"], after["per_class"]) == (before["pck"], before["per_class"])
    assert after["pairs_sha256"] != before["pairs_sha256"]


def test_pairs_that_were_written_are_a_set_with_the_same_score(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinov2kit.cli.options.local_encoder", lambda given: PixelEncoder())
    listed = tmp_path / "drawn.json"
    command = ["eval", "correspondence", "pairs", "--json", "--root"]
    drawn = CliRunner().invoke(app, [*command, str(root), "--limit", "3", "--pairs-out", str(listed)])
    again = CliRunner().invoke(app, [*command, str(listed)])
    assert (drawn.exit_code, again.exit_code) == (0, 0)
    first, second = json.loads(drawn.stdout), json.loads(again.stdout)
    assert first["n_pairs"] == second["n_pairs"] == 3
    assert first["pck"] == second["pck"]
    refused = CliRunner().invoke(app, [*command, str(root), "--pairs-out", str(listed)])
    assert refused.exit_code == 2
    assert "exists already" in refused.stderr


def test_a_broken_image_is_left_out_with_its_reason(root: Path) -> None:
    entries = json.loads((root / "pairs.json").read_text())
    entries[2]["trg"] = "absent.png"
    (root / "pairs.json").write_text(json.dumps(entries))
    report = evaluate_correspondence(PixelEncoder(), spec(root))
    assert report["n_pairs"] == 5
    assert [row["pair"] for row in report["skipped"]] == ["00002:a-absent"]
    for entry in entries:
        entry["src"] = "absent.png"
    (root / "pairs.json").write_text(json.dumps(entries))
    with pytest.raises(ImageError, match="none of 6 pairs"):
        evaluate_correspondence(PixelEncoder(), spec(root))


def test_a_draw_is_the_same_for_the_same_seed(root: Path) -> None:
    drawn = [[pair.name for pair in read_pairs(spec(root, limit=3, seed=seed))] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] == sorted(drawn[0])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"dataset": "coco"}, {"split": "train"}, {"length": "area"}, {"alphas": (0.0,)}, {"limit": -1}),
        {"dataset": "tss", "length": "bbox"},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(
    root: Path, wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of tests
    with pytest.raises(ArgumentError):
        EvalSpec(**{"dataset": "pairs", "root": root, **wrong})


def test_every_set_names_what_is_missing(tmp_path: Path) -> None:
    for name in DataSet.__args__:
        with pytest.raises(ImageError, match=r"missing|has no"):
            read_pairs(EvalSpec(name, tmp_path))


def test_the_command_prints_every_mean_and_writes_the_report(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinov2kit.cli.options.local_encoder", lambda given: PixelEncoder())
    command = ["eval", "correspondence", "pairs", "--root", str(root), "--alpha", "0.1"]
    result = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    rows = dict(line.split("\t") for line in result.stdout.splitlines())
    assert rows["pck"] == "0.1"
    assert (rows["image"], rows["point"]) == ("75.00", "75.00")
    assert "6 pairs, 60 keypoints of pairs" in result.stderr
    document = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert document["schema"] == "dinokit.eval-correspondence/1"
    written = json.loads((tmp_path / "r.json").read_text())
    assert document["pck"] == written["pck"]
    assert CliRunner().invoke(app, [*command, "--out", str(tmp_path / "r.json")]).exit_code == 2
    assert CliRunner().invoke(app, [*command[:4], str(tmp_path / "absent")]).exit_code == 3


def test_strict_makes_a_pair_that_is_left_out_a_failure(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinov2kit.cli.options.local_encoder", lambda given: PixelEncoder())
    entries = json.loads((root / "pairs.json").read_text())
    entries[0]["src"] = "absent.png"
    (root / "pairs.json").write_text(json.dumps(entries))
    command = ["eval", "correspondence", "pairs", "--root", str(root)]
    assert CliRunner().invoke(app, command).exit_code == 0
    strict = CliRunner().invoke(app, [*command, "--strict"])
    assert strict.exit_code == 1
    assert "left out 00000:absent-b" in strict.stderr
