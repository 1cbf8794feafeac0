"""Flow and homographies of sets that are written here, with encoders whose truth is known."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pixel_encoder import PATCH, PixelEncoder
from skimage import data

from dinov2kit.correspondence_eval import EvalSpec, evaluate_correspondence
from dinov2kit.errors import ImageError, MatchError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.keypoint_scores import PairScore
from dinov2kit.matching import MatchSpec
from dinov2kit.scene_sets import (
    corner_summary,
    read_hpatches,
    read_tss,
    score_flow,
    score_scene,
)

SHIFT = 4 * PATCH
ALPHAS = (0.05,)


def flow_file(path: Path, flow: np.ndarray) -> None:
    height, width = flow.shape[:2]
    path.write_bytes(struct.pack("<fii", 202021.25, width, height) + flow.astype("<f4").tobytes())


@pytest.fixture
def tss(tmp_path: Path) -> Path:
    """Return a set of one pair: image 2 is image 1 moved by four patches; some of the truth is unknown."""
    folder = tmp_path / "TSS/JODS/pair_1"
    folder.mkdir(parents=True)
    photo = data.coffee()[: 20 * PATCH, : 34 * PATCH]
    for number, left, shift in ((1, 0, -SHIFT), (2, SHIFT, SHIFT)):
        image = photo[:, left : left + 30 * PATCH]
        Image.fromarray(image).save(folder / f"image{number}.png")
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[60:200, 100:300] = 255
        Image.fromarray(mask).save(folder / f"mask{number}.png")
        flow = np.zeros((*image.shape[:2], 2), np.float32)
        flow[..., 0] = shift
        flow[60:80, 100:120] = 1e10
        flow_file(folder / f"flow{number}.flo", flow)
    return tmp_path / "TSS"


def test_tss_has_both_directions_of_every_pair(tss: Path) -> None:
    one, two = read_tss(tss)
    assert (one.name, two.name) == ("JODS/pair_1:1-2", "JODS/pair_1:2-1")
    assert (one.path0, one.path1) == (two.path1, two.path0)
    assert (two.flow.name, two.mask.name, two.category) == ("flow2.flo", "mask2.png", "JODS")


def test_a_flow_that_is_right_scores_one_and_pixels_without_truth_do_not_count(tss: Path) -> None:
    encoder = PixelEncoder()
    for pair in read_tss(tss):
        sides = [encoder.encode(path) for path in (pair.path0, pair.path1)]
        score = score_flow(pair, *sides, ALPHAS, MatchSpec())
        assert score.points == 140 * 200 - 20 * 20
        assert score.correct[0] == score.points
        assert score.median_px < 2


def test_a_flow_that_is_off_by_more_than_the_threshold_scores_nothing(tss: Path) -> None:
    pair = next(iter(read_tss(tss)))
    flow = np.zeros((20 * PATCH, 30 * PATCH, 2), np.float32)
    flow[..., 0] = -SHIFT + 0.05 * 30 * PATCH + 4
    flow_file(pair.flow, flow)
    sides = [PixelEncoder().encode(path) for path in (pair.path0, pair.path1)]
    assert score_flow(pair, *sides, ALPHAS, MatchSpec()).correct[0] < 0.02 * 140 * 200
    flow_file(pair.flow, flow[:100])
    with pytest.raises(ImageError, match="do not have the size"):
        score_flow(pair, *sides, ALPHAS, MatchSpec())


class MirrorEncoder(PixelEncoder):
    """Sees the image as the spec wants it: mirrored, the tokens mirrored back."""

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        if not (spec and spec.mirrored):
            return super().encode(source, spec)
        seen = source.with_name(f"seen-{source.name}")
        Image.fromarray(np.asarray(Image.open(source))[:, ::-1]).save(seen)
        found = super().encode(seen, spec)
        cells = found.patch_tokens.view(found.grid.rows, found.grid.cols, -1)
        return replace(found, patch_tokens=cells.flip(1).flatten(0, 1))


def test_where_flip_gt_says_so_the_flow_leads_to_the_other_image_mirrored(tss: Path) -> None:
    """Image 2 is stored mirrored and the flow is that to the image before it was; nothing else changes."""
    folder = tss / "JODS/pair_1"
    stored = np.asarray(Image.open(folder / "image2.png"))[:, ::-1]
    Image.fromarray(stored).save(folder / "image2.png")
    (folder / "flip_gt.txt").write_text("1\n")
    pair = next(iter(read_tss(tss)))
    sides = [
        MirrorEncoder().encode(pair.path0),
        MirrorEncoder().encode(pair.path1, FeatureSpec(mirrored=True)),
    ]
    score = score_flow(pair, *sides, ALPHAS, MatchSpec())
    assert (score.points, score.correct[0]) == (140 * 200 - 20 * 20, score.points)
    assert score.median_px < 2
    assert score.extras["fold_over"] < 0.1
    report = evaluate_correspondence(MirrorEncoder(), EvalSpec("tss", tss), pairs=[pair])
    assert report["pck"]["0.05"]["class_mean_image"] == 1
    plain = evaluate_correspondence(
        MirrorEncoder(), EvalSpec("tss", tss), pairs=[replace(pair, mirrored=False)]
    )
    assert plain["pck"]["0.05"]["class_mean_image"] < 0.2


def test_a_pair_whose_flow_is_not_known_anywhere_is_no_pair(tss: Path) -> None:
    pair = next(iter(read_tss(tss)))
    flow_file(pair.flow, np.full((20 * PATCH, 30 * PATCH, 2), 1e10, np.float32))
    sides = [PixelEncoder().encode(path) for path in (pair.path0, pair.path1)]
    with pytest.raises(MatchError, match="known for no pixel"):
        score_flow(pair, *sides, ALPHAS, MatchSpec())


def test_files_that_are_missing_are_named(tss: Path, tmp_path: Path) -> None:
    (tss / "JODS/pair_1/mask2.png").unlink()
    with pytest.raises(ImageError, match=r"mask2\.png is missing"):
        list(read_tss(tss))
    for read in (read_tss, read_hpatches):
        with pytest.raises(ImageError, match="has no"):
            list(read(tmp_path))


@pytest.fixture
def hpatches(tmp_path: Path) -> Path:
    """Return two scenes; image k is image 1 moved by k - 1 patches to the left."""
    noise = np.random.default_rng(0).integers(0, 256, (24 * PATCH, 40 * PATCH, 3), np.uint8)
    for scene in ("v_mug", "i_dc"):
        folder = tmp_path / scene
        folder.mkdir()
        for number in range(1, 7):
            left = (number - 1) * PATCH
            Image.fromarray(noise[:, left : left + 34 * PATCH]).save(folder / f"{number}.ppm")
            if number > 1:
                np.savetxt(folder / f"H_1_{number}", [[1, 0, -left], [0, 1, 0], [0, 0, 1]])
    return tmp_path


def test_hpatches_pairs_the_first_image_with_the_others(hpatches: Path) -> None:
    pairs = list(read_hpatches(hpatches))
    assert [pair.name for pair in pairs[5:7]] == ["v_mug:1-2", "v_mug:1-3"]
    assert {pair.category for pair in pairs} == {"illumination", "viewpoint"}
    assert len(list(read_hpatches(hpatches, drop_large=True))) == 5  # i_dc is one of the large ones


def test_matches_of_a_known_homography_are_accurate_and_its_corners_are_found(hpatches: Path) -> None:
    pair = list(read_hpatches(hpatches))[7]  # v_mug:1-4
    sides = [PixelEncoder().encode(path) for path in (pair.path0, pair.path1)]
    score = score_scene(pair, *sides, (1.0, 3.0, 10.0), MatchSpec())
    assert score.points == score.kept > 400
    assert score.correct[1] / score.points > 0.95
    assert score.extras["corner_px"] < 1
    np.savetxt(pair.homography, [[1, 0, -3 * PATCH + 2.8], [0, 1, 0], [0, 0, 1]])  # 2.8 of 336 are 4 of 480
    moved = score_scene(pair, *sides, (1.0, 3.0, 10.0), MatchSpec())
    assert moved.correct[1] / moved.points < 0.1
    assert moved.correct[2] / moved.points > 0.95
    assert moved.extras["corner_px"] == pytest.approx(4, abs=0.8)


def test_a_broken_homography_is_named(hpatches: Path) -> None:
    pair = next(iter(read_hpatches(hpatches)))
    pair.homography.write_text("1 0 0\n")
    sides = [PixelEncoder().encode(path) for path in (pair.path0, pair.path1)]
    with pytest.raises(ImageError, match="3 x 3"):
        score_scene(pair, *sides, (1.0,), MatchSpec())


def test_the_area_under_the_corner_errors_is_that_of_the_curve() -> None:
    def pair(corner_px: float) -> PairScore:
        return PairScore("", "", {}, 1, 1, (1,), (1,), 0.0, 0.0, {"corner_px": corner_px})

    found = corner_summary([pair(0.5), pair(2.0), pair(4.0), pair(float("inf"))])
    assert found["within_1px"] == 1 / 4
    assert found["within_3px"] == 2 / 4
    assert found["within_5px"] == 3 / 4
    # (0, 0), (0.5, 1/4), (2, 1/2), (3, 1/2): trapezia of the curve, over 3
    assert found["auc_3px"] == pytest.approx((0.5 * 0.25 / 2 + 1.5 * 0.375 + 1 * 0.5) / 3)
    perfect = corner_summary([pair(0.0)] * 4)
    assert perfect["auc_1px"] == 1
