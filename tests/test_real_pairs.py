"""Real photos with a known truth: two views of one scene with random weights, and the lists of test data."""

import os
from pathlib import Path

import numpy as np
import pytest
from skimage import data

from dinov2kit import Encoder, FeatureSpec, match
from dinov2kit.keypoint_sets import read_pairs_json

DATA = Path(os.environ.get("DINOKIT_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
PAIRS = DATA / "keypoints" / "spair_pfpascal"


def test_keypoints_of_a_stereo_pair_land_on_their_true_disparity() -> None:
    left, right, disparity = data.stereo_motorcycle()
    encoder = Encoder("untrained:vitt14", precision="fp32", device="cpu")
    found = match(*[encoder.encode(view, FeatureSpec(size=420)) for view in (left, right)], num=60)
    col, row = np.rint(found.keypoints0).astype(int).T
    moved = disparity[row, col]
    known = np.isfinite(moved)
    truth = found.keypoints0[known] - np.stack([moved[known], np.zeros(known.sum())], axis=1)
    error = np.linalg.norm(found.keypoints1[known] - truth, axis=1)
    assert known.sum() >= 50
    assert np.mean(error < 14) > 0.7  # by chance it is below 0.01
    assert np.median(error) < 7  # a patch is 25 pixels wide here


@pytest.mark.skipif(not PAIRS.is_dir(), reason="needs the test data; say where it is with DINOKIT_TEST_DATA")
def test_the_list_of_real_pairs_is_read_whole() -> None:
    pairs = list(read_pairs_json(PAIRS))
    assert len(pairs) == 271
    assert sum(len(pair.keypoints0) for pair in pairs) == 2082
    assert sum(pair.box1 is None for pair in pairs) == 65  # those of PF-PASCAL
    assert all(pair.path0.exists() and pair.path1.exists() for pair in pairs)
