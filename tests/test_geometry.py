"""Geometry is proved on maps whose truth is known; where there is none, the answer must be none."""

import json
import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.geometry import ESTIMATORS, FEWEST, Geometry, GeometryKind, mirror_score, verify
from dinov2kit.matches import Matches

KINDS: tuple[GeometryKind, ...] = ("similarity", "affine", "homography", "fundamental")
MAPS: tuple[GeometryKind, ...] = ("similarity", "affine", "homography")
TRUTH = {
    "similarity": np.array([[1.1, -0.4, 160.0], [0.4, 1.1, -60.0], [0, 0, 1]]),
    "affine": np.array([[1.2, 0.3, 30.0], [-0.1, 0.8, 50.0], [0, 0, 1]]),
    "homography": np.array([[1.1, -0.1, 30.0], [0.2, 0.9, -10.0], [4e-4, -3e-4, 1]]),
}
CAMERA = np.array([[500.0, 0, 250], [0, 500, 250], [0, 0, 1]])
TURN, SHIFT = cv2.Rodrigues(np.array([0.05, 0.25, -0.1]))[0], np.array([1.5, 0.3, 0.2])


def matches_of(points0: np.ndarray, points1: np.ndarray, confidence: np.ndarray | None = None) -> Matches:
    n = len(points0)
    ones = np.ones(n, np.float32)
    return Matches(
        keypoints0=np.asarray(points0, np.float32).reshape(n, 2),
        keypoints1=np.asarray(points1, np.float32).reshape(n, 2),
        score=ones,
        confidence=ones if confidence is None else confidence.astype(np.float32),
        cycle_error=ones,
        uncertainty=ones,
        ratio=ones,
        kept=np.ones(n, bool),
    )


def carried(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    reached = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return reached[:, :2] / reached[:, 2:]


def seen(scene: np.ndarray) -> np.ndarray:
    return carried(scene[:, :2] / scene[:, 2:], CAMERA)


def views(kind: GeometryKind, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same n places in two images, without error: of a plane, or of a space seen by two cameras."""
    rng = np.random.default_rng(seed)
    if kind == "fundamental":
        scene = rng.uniform([-2, -2, 3], [2, 2, 9], (n, 3))
        return seen(scene), seen(scene @ TURN.T + SHIFT)
    points = rng.uniform(0, 500, (n, 2))
    return points, carried(points, TRUTH[kind])


def with_outliers(kind: GeometryKind, n: int, share: float, seed: int = 0) -> tuple[Matches, np.ndarray]:
    """Return exact matches among wrong ones, and which are exact; the confidence knows nothing of it."""
    rng = np.random.default_rng(seed + 1)
    points0, points1 = views(kind, n, seed)
    exact = rng.permutation(n) >= round(share * n)
    points1[~exact] = rng.uniform(points1.min(axis=0), points1.max(axis=0), (int((~exact).sum()), 2))
    return matches_of(points0, points1, rng.random(n)), exact


def epipolar_distance(matrix: np.ndarray, points0: np.ndarray, points1: np.ndarray) -> np.ndarray:
    """How far the points of image 1 lie from the epipolar lines of those of image 0, in pixels."""
    lines = np.column_stack([points0, np.ones(len(points0))]) @ matrix.T
    offset = (np.column_stack([points1, np.ones(len(points1))]) * lines).sum(axis=1)
    return np.abs(offset) / np.hypot(lines[:, 0], lines[:, 1])


def assert_none(found: Geometry, because: str) -> None:
    assert found.matrix is None
    assert not found.inliers.any()
    assert found.reason is not None
    assert because in found.reason


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("seed", range(5))
def test_a_map_of_the_plane_is_recovered_among_forty_percent_of_outliers(
    kind: GeometryKind, seed: int
) -> None:
    matches, exact = with_outliers(kind, 100, 0.4, seed)
    found = verify(matches, kind, cell_px=6.0)
    assert found.reason is None
    assert found.matrix is not None
    fresh = np.random.default_rng(99).uniform(0, 500, (200, 2))
    assert np.abs(carried(fresh, found.matrix) - carried(fresh, TRUTH[kind])).max() < 0.01
    assert found.inliers[exact].all()
    error = np.linalg.norm(carried(matches.keypoints0, TRUTH[kind]) - matches.keypoints1, axis=1)
    np.testing.assert_array_equal(found.inliers, error <= 3)
    assert found.matrix[2, 2] == 1
    if kind != "homography":
        assert found.matrix[2].tolist() == [0, 0, 1]
    if kind == "similarity":
        np.testing.assert_allclose(found.matrix[0, 0], found.matrix[1, 1], atol=1e-12)
        np.testing.assert_allclose(found.matrix[0, 1], -found.matrix[1, 0], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_the_epipolar_geometry_is_recovered_among_forty_percent_of_outliers(seed: int) -> None:
    matches, exact = with_outliers("fundamental", 150, 0.4, seed)
    found = verify(matches, "fundamental", cell_px=6.0)
    assert found.matrix is not None
    assert abs(np.linalg.det(found.matrix)) < 1e-12
    assert np.linalg.norm(found.matrix) == pytest.approx(1)
    assert found.inliers[exact].all()
    fresh0, fresh1 = views("fundamental", 500, seed=99)
    assert np.median(epipolar_distance(found.matrix, fresh0, fresh1)) < 0.05
    assert epipolar_distance(found.matrix, fresh0, fresh1).max() < 0.5
    assert np.median(epipolar_distance(found.matrix, *views("homography", 500))) > 10  # not any pair obeys


@pytest.mark.parametrize("kind", MAPS)
def test_a_misleading_confidence_does_not_hide_the_geometry(kind: GeometryKind) -> None:
    """Seven of ten matches are wrong and the most confident ones: sampling by confidence alone fails here."""
    for seed in range(10):
        matches, exact = with_outliers(kind, 100, 0.7, seed)
        found = verify(replace(matches, confidence=(~exact).astype(np.float32)), kind, cell_px=6.0)
        assert found.inliers[exact].all()


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_the_matches_do_not_sway_the_model(kind: GeometryKind) -> None:
    points0, points1 = views(kind, 400)
    noise = np.random.default_rng(5).normal(0, 0.7, points1.shape)
    found = verify(matches_of(points0, points1 + noise), kind, cell_px=6.0)
    assert found.matrix is not None
    assert found.ratio > 0.99
    away = (
        epipolar_distance(found.matrix, points0, points1)
        if kind == "fundamental"
        else np.linalg.norm(carried(points0, found.matrix) - points1, axis=1)
    )
    assert np.median(away) < 0.25


@pytest.mark.parametrize(
    ("kind", "scale"),
    [(kind, scale) for kind in MAPS for scale in (0.4, 2.5)] + [("fundamental", 0.1), ("fundamental", 10)],
)
def test_the_threshold_is_in_pixels_of_image_1_whatever_the_size_of_image_0(
    kind: GeometryKind, scale: float
) -> None:
    matches, _ = with_outliers(kind, 200, 0.3)
    noisy = matches.keypoints1 + np.random.default_rng(3).normal(0, 0.5, (200, 2)).astype(np.float32)
    matches = replace(matches, keypoints1=noisy)
    straight = verify(matches, kind, cell_px=6.0)
    scaled = verify(replace(matches, keypoints0=matches.keypoints0 * np.float32(scale)), kind, cell_px=6.0)
    assert straight.matrix is not None
    assert scaled.matrix is not None
    assert (straight.inliers == scaled.inliers).mean() > 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_matches_permutes_the_inliers_and_nothing_else(kind: GeometryKind) -> None:
    matches, _ = with_outliers(kind, 120, 0.4)
    rounded = (matches.confidence * 4).round() / 4  # many are equally confident
    matches = replace(matches, confidence=rounded.astype(np.float32))
    straight = verify(matches, kind, cell_px=20.0)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(120)
        permuted = verify(matches.take(order), kind, cell_px=20.0)
        np.testing.assert_array_equal(permuted.matrix, straight.matrix)
        np.testing.assert_array_equal(permuted.inliers, straight.inliers[order])
        assert mirror_score(matches.take(order)) == mirror_score(matches)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_input_gives_the_same_answer_whatever_was_drawn_before(kind: GeometryKind) -> None:
    matches, _ = with_outliers(kind, 60, 0.2)
    first = verify(matches, kind, cell_px=6.0)
    cv2.setRNGSeed(12345)
    np.random.default_rng().random(10)
    second = verify(matches, kind, cell_px=6.0)
    np.testing.assert_array_equal(first.matrix, second.matrix)
    np.testing.assert_array_equal(first.inliers, second.inliers)


@pytest.mark.parametrize(("kind", "fewest"), FEWEST.items())
def test_too_few_matches_give_no_model(kind: GeometryKind, fewest: int) -> None:
    for n in range(fewest):
        found = verify(matches_of(*views(kind, n)), kind, cell_px=6.0)
        assert_none(found, f"there are {n} different matches; the {kind} model takes {fewest}")
        assert len(found.inliers) == found.n_used == n
        assert found.ratio == 0


@pytest.mark.parametrize("kind", MAPS)
def test_eight_inliers_are_wanted_of_a_map_of_the_plane(kind: GeometryKind) -> None:
    for n in range(FEWEST[kind], 8):
        assert_none(verify(matches_of(*views(kind, n)), kind, cell_px=6.0), "wanted at least 8")
    assert verify(matches_of(*views(kind, 8)), kind, cell_px=6.0).inliers.all()


def test_fifteen_inliers_are_wanted_of_a_fundamental_matrix() -> None:
    points0, points1 = views("fundamental", 15, seed=1)
    assert verify(matches_of(points0, points1), "fundamental", cell_px=6.0).inliers.all()
    points1[:3] = points1[2::-1]  # three wrong ones leave twelve
    assert_none(verify(matches_of(points0, points1), "fundamental", cell_px=6.0), "wanted at least 15")


@pytest.mark.parametrize("kind", KINDS)
def test_fifteen_percent_of_inliers_are_wanted(kind: GeometryKind) -> None:
    matches, _ = with_outliers(kind, 400, 0.9)
    found = verify(matches, kind, cell_px=1.0, threshold=0.5)
    assert_none(found, "wanted at least 60")


@pytest.mark.parametrize("kind", KINDS)
def test_identical_matches_count_once(kind: GeometryKind) -> None:
    found = verify(matches_of(np.full((50, 2), 20.0), np.full((50, 2), 30.0)), kind, cell_px=6.0)
    assert_none(found, "there are 1 different matches")
    repeated = [np.tile(points, (20, 1)) for points in views(kind, 3)]
    assert_none(verify(matches_of(*repeated), kind, cell_px=6.0), "there are 3 different matches")


@pytest.mark.parametrize("kind", MAPS)
def test_a_repeated_match_is_an_inlier_each_time(kind: GeometryKind) -> None:
    matches, exact = with_outliers(kind, 50, 0.3)
    twice = matches.take(np.repeat(np.arange(50), 2))
    once, both = verify(matches, kind, cell_px=6.0), verify(twice, kind, cell_px=6.0)
    np.testing.assert_array_equal(both.matrix, once.matrix)
    np.testing.assert_array_equal(both.inliers, np.repeat(once.inliers, 2))
    assert both.ratio == once.ratio >= exact.mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [0, 1.5])
@pytest.mark.parametrize("swapped", [False, True])
def test_matches_that_all_meet_in_one_place_give_no_model(
    kind: GeometryKind, spread: float, swapped: bool
) -> None:
    """A fundamental matrix whose epipole is that place agrees with every such pair, right or wrong."""
    rng = np.random.default_rng(0)
    views_ = rng.uniform(0, 500, (60, 2)), 200 + spread * rng.normal(size=(60, 2))
    found = verify(matches_of(*(views_[::-1] if swapped else views_)), kind, cell_px=6.0)
    assert found.matrix is None
    assert found.reason


@pytest.mark.parametrize("kind", ["affine", "homography", "fundamental"])
@pytest.mark.parametrize("strays", [0, 1])
@pytest.mark.parametrize("noise", [0, 0.5])
def test_matches_on_one_line_fix_no_model_but_a_similarity(
    kind: GeometryKind, strays: int, noise: float
) -> None:
    rng = np.random.default_rng(2)
    points0 = np.outer(rng.uniform(0, 400, 40), [1, 0.7]) + np.array([20, 30])
    points0[:strays] = rng.uniform(0, 500, (strays, 2))
    points1 = carried(points0, TRUTH["similarity"]) + rng.normal(0, noise, (40, 2))
    matches = matches_of(points0, points1)
    found = verify(matches, kind, cell_px=6.0)
    assert found.matrix is None
    assert found.reason
    simpler = verify(matches, "similarity", cell_px=6.0)
    assert simpler.matrix is not None
    np.testing.assert_allclose(simpler.matrix[:2, :2], TRUTH["similarity"][:2, :2], atol=0.01)


def test_a_second_witness_off_the_line_fixes_an_affine_and_a_third_a_homography() -> None:
    rng = np.random.default_rng(2)
    points0 = np.outer(rng.uniform(0, 400, 40), [1, 0.7]) + np.array([20, 30])
    for kind, witnesses in (("affine", 2), ("homography", 3)):
        points0[:witnesses] = np.array([[300.0, 20], [60, 400], [400, 90]])[:witnesses]
        less, enough = points0.copy(), points0
        less[witnesses - 1] = points0[-1] + [10, 7]  # back to the line
        assert_none(verify(matches_of(less, carried(less, TRUTH[kind])), kind, cell_px=6.0), "on one line")
        found = verify(matches_of(enough, carried(enough, TRUTH[kind])), kind, cell_px=6.0)
        assert found.matrix is not None
        assert np.abs(carried(points0, found.matrix) - carried(points0, TRUTH[kind])).max() < 0.1


@pytest.mark.parametrize("noise", [0, 1])
@pytest.mark.parametrize("share", [0, 0.4])
def test_one_plane_fixes_no_epipolar_geometry(noise: float, share: float) -> None:
    for seed in range(5):
        matches, _ = with_outliers("homography", 200, share, seed)
        shaken = matches.keypoints1 + np.random.default_rng(seed).normal(0, noise, (200, 2))
        matches = replace(matches, keypoints1=shaken.astype(np.float32))
        assert_none(verify(matches, "fundamental", cell_px=6.0), "plane")
        assert verify(matches, "homography", cell_px=6.0).matrix is not None


@pytest.mark.parametrize("kind", KINDS)
def test_coordinates_that_are_not_finite_take_no_part(kind: GeometryKind) -> None:
    matches, _ = with_outliers(kind, 100, 0.2)
    broken0, broken1 = matches.keypoints0.copy(), matches.keypoints1.copy()
    broken0[:3], broken1[3:6, 1], broken1[6] = np.nan, np.inf, -np.inf
    found = verify(replace(matches, keypoints0=broken0, keypoints1=broken1), kind, cell_px=6.0)
    without = verify(matches.take(np.arange(7, 100)), kind, cell_px=6.0)
    assert found.n_used == 93
    assert not found.inliers[:7].any()
    np.testing.assert_array_equal(found.matrix, without.matrix)
    np.testing.assert_array_equal(found.inliers[7:], without.inliers)
    nothing = verify(replace(matches, keypoints0=broken0 * np.float32(np.nan)), kind, cell_px=6.0)
    assert_none(nothing, "there are 0 different matches")


@pytest.mark.parametrize("kind", KINDS)
def test_only_kept_matches_take_part(kind: GeometryKind) -> None:
    matches, exact = with_outliers(kind, 100, 0.3)
    found = verify(replace(matches, kept=exact), kind, cell_px=6.0)
    assert found.n_used == exact.sum()
    np.testing.assert_array_equal(found.inliers, exact)
    assert found.ratio == 1
    assert_none(verify(replace(matches, kept=np.zeros(100, bool)), kind, cell_px=6.0), "there are 0")
    few = replace(matches, kept=exact & (np.cumsum(exact) < FEWEST[kind]))
    assert_none(verify(few, kind, cell_px=6.0), f"there are {FEWEST[kind] - 1} ")


def scattered(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.uniform(0, 500, (n, 2)), rng.uniform(0, 500, (n, 2))


def on_a_grid(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    return rng.integers(0, 37, (n, 2)) * 14 + 6.5, rng.integers(0, 37, (n, 2)) * 14 + 6.5


def in_hubs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    hubs = rng.uniform(0, 500, (max(3, n // 6), 2))
    return rng.uniform(0, 500, (n, 2)), hubs[rng.integers(len(hubs), size=n)] + rng.normal(0, 1.5, (n, 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [scattered, on_a_grid, in_hubs])
@pytest.mark.parametrize("n", [16, 60])
def test_wrong_pairs_only_give_no_model(kind: GeometryKind, wrong, n: int) -> None:  # type: ignore[no-untyped-def]
    for seed in range(50):
        rng = np.random.default_rng(seed)
        matches = matches_of(*wrong(rng, n), rng.random(n))
        threshold = (3.0, 7.0, 25.0, 60.0)[seed % 4]
        assert verify(matches, kind, cell_px=14.0, threshold=threshold).matrix is None


def test_the_counts_alone_would_let_chance_models_pass() -> None:
    """Without this, the test of wrong pairs would prove nothing."""
    passed = 0
    for seed in range(50):
        points0, points1 = scattered(np.random.default_rng(seed), 60)
        _, mask = cv2.findFundamentalMat(points0, points1, cv2.USAC_MAGSAC, 10, 0.999, 10_000)
        passed += mask is not None and mask.sum() >= FEWEST["fundamental"]
        assert_none(verify(matches_of(points0, points1), "fundamental", cell_px=20.0), "chance explains")
    assert passed > 25


@pytest.mark.parametrize("kind", KINDS)
def test_what_opencv_refuses_gives_no_model(kind: GeometryKind, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise cv2.error("(-5:Bad argument)")

    def shrug(*_: object, **__: object) -> tuple[None, np.ndarray]:
        return None, np.zeros((60, 1), np.uint8)

    def garble(*_: object, **__: object) -> tuple[np.ndarray, np.ndarray]:
        return np.full((3, 3), np.nan), np.ones((60, 1), np.uint8)

    for answer in (refuse, shrug, garble):
        monkeypatch.setitem(ESTIMATORS, kind, answer)
        assert_none(verify(matches_of(*views(kind, 60)), kind, cell_px=6.0), f"no {kind} model fits")


def test_a_mirror_image_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("affine", "homography"):
        points0, points1 = views(kind, 60)
        mirrored = matches_of(points0, points1 * [-1, 1] + np.array([500, 0]))
        assert_none(verify(mirrored, kind, cell_px=6.0), "mirrors" if kind == "affine" else "no homography")
    squares = cv2.findHomography  # OpenCV's robust estimation refuses the mirror itself, least squares do not
    monkeypatch.setitem(ESTIMATORS, "homography", lambda p0, p1, params: squares(p0, p1, 0))
    assert_none(verify(mirrored, "homography", cell_px=6.0), "mirrors")


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize(
    ("factor", "accepted"), [(4.8, True), (5.2, False), (1 / 4.8, True), (1 / 5.2, False)]
)
def test_areas_change_at_most_twentyfive_fold(kind: GeometryKind, factor: float, accepted: bool) -> None:
    points0, _ = views(kind, 60)
    found = verify(matches_of(points0, points0 * factor), kind, cell_px=2.0, threshold=0.5)
    if accepted:
        assert found.inliers.all()
    else:
        assert_none(found, "changes areas")


def test_the_place_of_the_origin_does_not_change_what_is_accepted() -> None:
    """Cropping an image on the left moves its origin; the determinant of the matrix itself then drifts."""
    points0, points1 = views("homography", 60)
    for shift0, shift1 in (([0, 0], [0, 0]), ([2400, 0], [0, 0]), ([-900, 500], [3000, -4000])):
        matches = matches_of(points0 + np.array(shift0), points1 + np.array(shift1))
        found = verify(matches, "homography", cell_px=6.0)
        assert found.matrix is not None
        np.testing.assert_allclose(carried(matches.keypoints0, found.matrix), matches.keypoints1, atol=0.1)
        if shift0[0] > 0:
            assert not 1 / 25 < np.linalg.det(found.matrix) < 25


@pytest.mark.parametrize("estimator", ["ours", "least squares"])
def test_points_turned_inside_out_are_no_homography(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The horizon x = 250 runs between the points: what lies behind the camera cannot be seen."""
    if estimator == "least squares":  # which finds the matrix, where robust estimation may refuse it
        squares = cv2.findHomography
        monkeypatch.setitem(ESTIMATORS, "homography", lambda p0, p1, params: squares(p0, p1, 0))
    points0 = np.random.default_rng(0).uniform([0, 0], [500, 500], (400, 2))
    points0 = points0[np.abs(points0[:, 0] - 250) > 100]
    horizon = np.array([[1.0, 0.2, 900.0], [0.1, 1.0, 300.0], [-1 / 250, 0, 1]])
    found = verify(matches_of(points0, carried(points0, horizon)), "homography", cell_px=6.0)
    assert_none(found, "inside out" if estimator == "least squares" else "")
    one_side = points0[points0[:, 0] < 250]
    seen_whole = verify(matches_of(one_side, carried(one_side, horizon)), "homography", cell_px=6.0)
    assert seen_whole.inliers.all()


def test_the_threshold_is_half_a_patch_but_at_least_three_pixels() -> None:
    points0, points1 = views("similarity", 50)
    points1[0] += [6, 0]
    matches = matches_of(points0, points1)
    assert verify(matches, "similarity", cell_px=5.0).threshold == 3
    assert not verify(matches, "similarity", cell_px=5.0).inliers[0]
    assert verify(matches, "similarity", cell_px=16.0).threshold == 8
    assert verify(matches, "similarity", cell_px=16.0).inliers.all()
    chosen = verify(matches, "similarity", cell_px=16.0, threshold=4.0)
    assert chosen.threshold == 4
    assert not chosen.inliers[0]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_thresholds_that_make_no_sense_are_refused(value: float) -> None:
    matches = matches_of(*views("similarity", 20))
    with pytest.raises(ArgumentError, match="threshold is"):
        verify(matches, "similarity", cell_px=14.0, threshold=value)
    with pytest.raises(ArgumentError, match="cell_px is"):
        verify(matches, "similarity", cell_px=value)


def test_the_json_says_all_and_survives_json() -> None:
    matches, _ = with_outliers("homography", 100, 0.4)
    found = verify(matches, "homography", cell_px=14.0)
    assert found.matrix is not None
    assert json.loads(json.dumps(found.to_json())) == {
        "type": "homography",
        "matrix": found.matrix.tolist(),
        "threshold_px": 7,
        "inliers": int(found.inliers.sum()),
        "ratio": round(float(found.inliers.mean()), 4),
        "reason": None,
    }
    none = verify(matches_of(*views("affine", 2)), "affine", cell_px=14.0)
    assert json.loads(json.dumps(none.to_json())) == {
        "type": "affine",
        "matrix": None,
        "threshold_px": 7,
        "inliers": 0,
        "ratio": 0,
        "reason": "there are 2 different matches; the affine model takes 6",
    }


@pytest.mark.parametrize("degrees", [0, 30, 90, 180, 270])
def test_turned_pairs_are_not_mirrored_and_mirrored_ones_are_wholly(degrees: float) -> None:
    points = np.random.default_rng(0).uniform(0, 500, (60, 2))
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    turned = 0.5 * points @ turn.T + [20, 300]
    assert mirror_score(matches_of(points, turned)) == 0
    assert mirror_score(matches_of(points, turned * [-1, 1])) == 1
    assert mirror_score(matches_of(points[:4], turned[:4])) == 0
    assert mirror_score(matches_of(points[:4], turned[:4] * [1, -1])) == 1


@pytest.mark.parametrize("kind", MAPS)
def test_noise_and_outliers_blur_the_mirror_score_but_little(kind: GeometryKind) -> None:
    points0, points1 = views(kind, 100)
    noisy = points1 + np.random.default_rng(1).normal(0, 4, points1.shape)
    assert mirror_score(matches_of(points0, noisy)) < 0.05
    matches, _ = with_outliers(kind, 100, 0.2)
    assert 0.1 < mirror_score(matches) < 0.35
    assert mirror_score(replace(matches, keypoints1=matches.keypoints1 * np.float32([-1, 1]))) == (
        pytest.approx(1 - mirror_score(matches))
    )


def test_pairs_that_share_nothing_are_half_mirrored() -> None:
    scores = [mirror_score(matches_of(*scattered(np.random.default_rng(seed), 200))) for seed in range(20)]
    assert np.abs(np.array(scores) - 0.5).max() < 0.1


def test_the_mirror_score_needs_four_different_matches_off_a_line() -> None:
    points = np.random.default_rng(0).uniform(0, 500, (40, 2))
    for n in range(4):
        assert mirror_score(matches_of(points[:n], points[:n])) is None
    assert mirror_score(matches_of(np.tile(points[:3], (5, 1)), np.tile(points[:3], (5, 1)))) is None
    line = np.outer(np.arange(40), [3.0, 2.0])
    assert mirror_score(matches_of(line, points)) is None
    assert mirror_score(matches_of(points, line)) is None
    assert mirror_score(matches_of(points, np.full((40, 2), 7.0))) is None
    matches = matches_of(points, points)
    assert mirror_score(replace(matches, kept=np.arange(40) < 3)) is None
    broken = matches.keypoints1 * np.where(np.arange(40) < 4, 1, np.nan).astype(np.float32)[:, None]
    assert mirror_score(replace(matches, keypoints1=broken)) == 0
