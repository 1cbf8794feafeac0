"""Every way of counting is checked against numbers worked out by hand."""

import json

import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.keypoint_scores import PairScore, errors, pck, score_pair, summarise

TRUTH = np.zeros((4, 2), np.float32)
PREDICTED = np.array(
    [[0, 0], [3, 4], [6, 8], [np.nan, 0]], np.float32
)  # 0, 5 and 10 pixels off, and no answer


def test_an_error_that_equals_the_threshold_counts_only_when_that_is_asked() -> None:
    assert pck(PREDICTED, TRUTH, 5.0).tolist() == [True, False, False, False]
    assert pck(PREDICTED, TRUTH, 5.0, inclusive=True).tolist() == [True, True, False, False]
    assert pck(PREDICTED, TRUTH, 10.1).tolist() == [True, True, True, False]


def test_no_answer_is_never_right() -> None:
    assert errors(PREDICTED, TRUTH).tolist() == [0, 5, 10, np.inf]
    assert not pck(PREDICTED, TRUTH, 1e30)[3]


def score(name: str, right: int, points: int, category: str, **more: object) -> PairScore:
    """Make a pair of which some points have no error and the others one of 100 pixels; its length is 100."""
    distance = np.array([0.0] * right + [100.0] * (points - right), np.float32)
    kept = np.arange(points) < more.pop("kept", points)
    return score_pair(name, distance, 100.0, (0.1, 0.5), kept=kept, category=category, **more)


SCORES = [
    score("a", 1, 2, "cat", kept=1),
    score("b", 8, 8, "cat", kept=6),
    score("c", 0, 10, "dog", kept=3),
]


def test_per_image_per_point_and_per_class_means_differ_as_they_should() -> None:
    found = summarise(SCORES, (0.1, 0.5))
    assert (found["n_pairs"], found["n_points"]) == (3, 20)
    at = found["pck"]["0.1"]
    assert at["image"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert at["point"] == pytest.approx(9 / 20)
    assert at["class_mean"] == pytest.approx((9 / 10 + 0) / 2)
    assert at["class_weighted"] == pytest.approx((2 * 9 / 10 + 1 * 0) / 3)
    assert at["class_mean_image"] == pytest.approx(((1 / 2 + 1) / 2 + 0) / 2)
    assert at["kept"] == pytest.approx(7 / 10)
    assert found["kept_share"] == pytest.approx(10 / 20)
    assert found["per_class"]["cat"]["pck_image"]["0.1"] == pytest.approx(3 / 4)
    assert found["per_class"]["dog"]["points"] == 10


def test_every_alpha_has_its_own_threshold() -> None:
    distance = np.array([4.0, 12.0, 60.0], np.float32)
    found = score_pair("p", distance, 50.0, (0.1, 0.25, 2.0), kept=np.array([True, False, True]))
    assert found.correct == (1, 2, 3)
    assert found.kept_correct == (1, 1, 2)
    assert found.median_px == 12
    assert found.mean_error == pytest.approx((4 + 12 + 60) / 3 / 50)


def test_buckets_hold_the_pairs_that_name_them() -> None:
    scores = [
        score("a", 1, 2, "cat", buckets={"viewpoint": "0"}),
        score("b", 2, 2, "cat", buckets={"viewpoint": "2", "scale": "1"}),
    ]
    per_bucket = summarise(scores, (0.1, 0.5))["per_bucket"]
    assert {name: row["pck_point"]["0.1"] for name, row in per_bucket.items()} == {
        "scale=1": 1.0,
        "viewpoint=0": 0.5,
        "viewpoint=2": 1.0,
    }


def test_the_order_of_pairs_does_not_matter() -> None:
    assert summarise(SCORES[::-1], (0.1, 0.5)) == summarise(SCORES, (0.1, 0.5))


def test_a_score_survives_json() -> None:
    for one in (*SCORES, score_pair("x", np.array([np.inf], np.float32), 9.0, (0.1,), kept=np.array([True]))):
        assert PairScore.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_a_pair_without_a_match_is_wrong_and_leaves_the_errors_of_the_others() -> None:
    none = score_pair("z", np.zeros(0, np.float32), 1.0, (0.1, 0.5), kept=np.zeros(0, bool), category="dog")
    found = summarise([score("a", 2, 2, "cat"), none], (0.1, 0.5))
    assert found["pck"]["0.1"]["image"] == 0.5
    assert found["pck"]["0.1"]["class_mean"] == 0.5
    assert (found["mean_norm_error"], found["median_px"]) == (0, 0)


def test_nothing_to_score_is_an_error_and_not_a_zero() -> None:
    with pytest.raises(ArgumentError, match="no keypoint"):
        summarise([], (0.1,))
