"""Maps from scattered keypoints, against closed forms and SciPy; and what they make of images."""

import numpy as np
import pytest
import torch
from scipy.interpolate import LinearNDInterpolator, RBFInterpolator
from skimage import data

from dinov2kit import warping
from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.warping import (
    DenseFlow,
    fold_over,
    interpolate,
    mesh_flow,
    parametric_flow,
    swap_object,
    warp_to_0,
)

WIDTH, HEIGHT = 90, 60


def pixels(width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y], axis=2).astype(np.float32)


def scattered(n: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, 2)) * [WIDTH - 1, HEIGHT - 1]).astype(np.float32)


def swirl(places: np.ndarray) -> np.ndarray:
    """A smooth map that is not affine: its flow varies by 6 pixels."""
    x, y = places[..., 0], places[..., 1]
    bent = [1.1 * x - 0.2 * y + 3 * np.sin(y / 15), 0.1 * x + 0.9 * y + 3 * np.cos(x / 20) - 5]
    return np.stack(bent, axis=-1).astype(np.float32)


def flow_of(flow: np.ndarray, certainty: float | np.ndarray = 1.0) -> DenseFlow:
    """A flow field as it is, valid where it is finite."""
    valid = np.isfinite(flow).all(axis=2)
    sure = np.where(valid, certainty, 0).astype(np.float32)
    return DenseFlow(np.asarray(flow, np.float32), sure, valid, 0.0)


def shift(u: float, v: float, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.tile(np.array([u, v], np.float32), (height, width, 1))


def noise(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- maps from keypoints


def test_the_affine_map_is_that_of_least_squares() -> None:
    points0, noisy = scattered(40), swirl(scattered(40))
    found = parametric_flow(points0, noisy, WIDTH, HEIGHT)
    terms = np.c_[points0, np.ones(40)].astype(np.float64)
    matrix = np.linalg.inv(terms.T @ terms) @ terms.T @ noisy
    expected = np.c_[pixels().reshape(-1, 2), np.ones(WIDTH * HEIGHT)] @ matrix
    np.testing.assert_allclose(found.flow + pixels(), expected.reshape(HEIGHT, WIDTH, 2), atol=1e-3)
    assert found.valid.all()
    assert (found.certainty == 1).all()


def test_a_spline_without_ridge_is_that_of_scipy_and_goes_through_its_keypoints() -> None:
    points0 = np.rint(scattered(60))
    points0 = np.unique(points0, axis=0)
    points1 = swirl(points0)
    found = parametric_flow(points0, points1, WIDTH, HEIGHT, kind="tps", ridge=0.0)
    reference = RBFInterpolator(points0, points1, kernel="thin_plate_spline", degree=1)
    expected = reference(pixels().reshape(-1, 2)).reshape(HEIGHT, WIDTH, 2)
    np.testing.assert_allclose(found.flow + pixels(), expected, atol=1e-2)
    x, y = points0.astype(int).T
    np.testing.assert_allclose(found.flow[y, x], points1 - points0, atol=1e-2)


def test_a_spline_with_ridge_is_that_of_scipy_with_as_much_smoothing() -> None:
    """Its smoothing is the ridge times n points times their squared spread, the unit of r^2 log r."""
    points0 = scattered(80)
    points1 = (swirl(points0) + np.random.default_rng(1).normal(0, 2, (80, 2))).astype(np.float32)
    spread = np.square(points0 - points0.mean(axis=0)).sum(axis=1).mean()
    for ridge in (1e-3, 1e-1):
        found = parametric_flow(points0, points1, WIDTH, HEIGHT, kind="tps", ridge=ridge)
        reference = RBFInterpolator(
            points0, points1, kernel="thin_plate_spline", degree=1, smoothing=80 * spread * ridge
        )
        expected = reference(pixels().reshape(-1, 2)).reshape(HEIGHT, WIDTH, 2)
        np.testing.assert_allclose(found.flow + pixels(), expected, atol=1e-2)


def test_the_more_bending_costs_the_closer_a_spline_is_to_the_affine_map() -> None:
    points0 = scattered(60)
    straight = parametric_flow(points0, swirl(points0), WIDTH, HEIGHT).flow
    apart = [
        np.abs(
            parametric_flow(points0, swirl(points0), WIDTH, HEIGHT, kind="tps", ridge=ridge).flow - straight
        )
        for ridge in (0.0, 1e-3, 1e-1, 1e7)
    ]
    far = [float(difference.max()) for difference in apart]
    assert far[0] > far[1] > far[2] > 100 * far[3]
    assert far[3] < 1e-2


def test_a_ridge_means_the_same_for_images_of_any_size() -> None:
    points0 = scattered(60)
    points1 = swirl(points0)
    small = parametric_flow(points0, points1, WIDTH, HEIGHT, kind="tps", ridge=1e-2).flow
    large = parametric_flow(points0 * 8, points1 * 8, WIDTH * 8, HEIGHT * 8, kind="tps", ridge=1e-2).flow
    np.testing.assert_allclose(large[::8, ::8], small * 8, atol=0.05)


def test_thousands_of_keypoints_bend_a_spline_at_300_of_them_and_average_their_noise() -> None:
    points0 = scattered(3000)
    points1 = (swirl(points0) + np.random.default_rng(1).normal(0, 2, (3000, 2))).astype(np.float32)
    found = parametric_flow(points0, points1, WIDTH, HEIGHT, kind="tps", ridge=1e-4)
    errors = np.linalg.norm(found.flow + pixels() - swirl(pixels()), axis=2)
    assert np.median(errors) < 0.5
    assert errors.max() < 3


def test_a_spline_on_a_lattice_is_the_spline_at_every_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    points0 = scattered(50)
    every = parametric_flow(points0, swirl(points0), WIDTH, HEIGHT, kind="tps")
    monkeypatch.setattr(warping, "MOST_NODES", 700)  # a node for every third pixel
    some = parametric_flow(points0, swirl(points0), WIDTH, HEIGHT, kind="tps")
    np.testing.assert_allclose(some.flow, every.flow, atol=0.05)
    np.testing.assert_allclose(some.flow[::3, ::3], every.flow[::3, ::3], atol=1e-4)


def test_points_given_twice_do_no_harm() -> None:
    points0 = scattered(30)
    once = parametric_flow(points0, swirl(points0), WIDTH, HEIGHT, kind="tps").flow
    doubled = np.concatenate([points0, points0])
    twice = parametric_flow(doubled, swirl(doubled), WIDTH, HEIGHT, kind="tps").flow
    np.testing.assert_allclose(twice, once, atol=1e-2)
    np.testing.assert_allclose(
        mesh_flow(doubled, swirl(doubled), WIDTH, HEIGHT).flow,
        mesh_flow(points0, swirl(points0), WIDTH, HEIGHT).flow,
        atol=1e-3,
    )


def test_a_mesh_is_the_piecewise_linear_interpolation_of_scipy() -> None:
    points0 = scattered(300)
    found = mesh_flow(points0, swirl(points0), WIDTH, HEIGHT)
    expected = LinearNDInterpolator(points0, swirl(points0))(pixels().reshape(-1, 2)).reshape(
        HEIGHT, WIDTH, 2
    )
    np.testing.assert_array_equal(found.valid, np.isfinite(expected[..., 0]))
    np.testing.assert_allclose(found.flow + pixels(), expected, atol=1e-2)
    assert 0.8 < found.valid.mean() < 1
    assert found.fold_over == 0


def test_a_mesh_of_three_points_is_one_triangle_and_keypoints_off_the_image_are_welcome() -> None:
    corners = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    found = mesh_flow(corners, corners * 2, 20, 20)
    x, y = pixels(20, 20)[..., 0], pixels(20, 20)[..., 1]
    np.testing.assert_array_equal(found.valid, x + y <= 10)
    np.testing.assert_allclose(found.flow[found.valid], pixels(20, 20)[found.valid], atol=1e-5)
    around = np.array([[-100, -100], [300, -100], [-100, 300]], np.float32)
    whole = mesh_flow(around, around + 7, 20, 20)
    assert whole.valid.all()
    np.testing.assert_allclose(whole.flow, 7, atol=1e-4)


def test_the_hull_of_a_mesh_has_no_dents() -> None:
    """A keypoint just within the upper border makes a triangle so flat that its circle is very large."""
    points0 = np.array([[0, 0], [45, 0.2], [89, 0], [0, 59], [89, 59]], np.float32)
    found = mesh_flow(points0, points0 + 3, WIDTH, HEIGHT)
    assert found.valid.all()
    np.testing.assert_allclose(found.flow, 3, atol=1e-4)


@pytest.mark.parametrize("make", [mesh_flow, parametric_flow])
def test_keypoints_that_make_no_map_are_refused(make) -> None:
    line = np.array([[x, 2 * x + 1] for x in range(20)], np.float32)
    with pytest.raises(MatchError, match=r"the 20 keypoints .*do not"):
        make(line, line, WIDTH, HEIGHT)
    slanted = np.array([[x, x / 3 + 0.1] for x in range(20)], np.float32)  # but for rounding
    with pytest.raises(MatchError, match=r"the 20 keypoints .*do not"):
        make(slanted, slanted, WIDTH, HEIGHT)
    with pytest.raises(MatchError, match=r"the 5 keypoints .*do not"):
        make(np.full((5, 2), 3, np.float32), scattered(5), WIDTH, HEIGHT)
    with pytest.raises(MatchError, match="2 keypoints and 2 answers; wanted 3 or more"):
        make(line[:2], line[:2], WIDTH, HEIGHT)
    bad = scattered(9)
    bad[4, 1] = np.nan
    for pair in ((bad, scattered(9)), (scattered(9), bad)):
        with pytest.raises(MatchError, match="not finite"):
            make(*pair, WIDTH, HEIGHT)


def test_a_ridge_below_zero_is_refused() -> None:
    for ridge in (-1.0, np.inf, np.nan):
        with pytest.raises(ArgumentError, match="wanted 0 or more"):
            parametric_flow(scattered(9), scattered(9), WIDTH, HEIGHT, kind="tps", ridge=ridge)


def test_the_fold_over_is_the_share_of_cells_that_are_turned_over() -> None:
    places = pixels(5, 4)
    assert fold_over(places) == 0
    assert fold_over(places * np.float32([1, -1])) == 1
    assert fold_over(-places) == 0  # turned by 180 degrees, not over
    assert fold_over(places[..., ::-1].copy()) == 1
    places[1, 2] = np.nan  # a corner of 4 of the 12 cells
    places[3, 4] = [0, 0]  # drags one cell of the other 8 over itself
    assert fold_over(places) == 1 / 8
    assert fold_over(places[:1]) == 0
    assert fold_over(np.full((3, 3, 2), np.nan, np.float32)) == 0


def test_interpolation_is_bilinear_by_hand() -> None:
    lattice = np.array([[[0, 5], [10, 5]], [[20, 5], [50, 5]]], np.float32)
    found = interpolate(lattice, np.array([0, 0.25, 1]), np.array([0.5, 1]))
    np.testing.assert_allclose(found[..., 0], [[10, 15, 30], [20, 27.5, 50]], atol=1e-5)
    np.testing.assert_allclose(found[..., 1], 5, atol=1e-6)


# --- images


@pytest.mark.parametrize(("u", "v"), [(0, 0), (7, 4), (-13, 5), (3, -59), (200, 0)])
def test_an_image_under_a_whole_shift_is_the_shifted_image(u: int, v: int) -> None:
    """And white where image 1 has ended; image 1 has another size than image 0."""
    image1 = noise(100, 70)
    expected = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)
    for y in range(HEIGHT):
        for x in range(WIDTH):
            if 0 <= x + u < 100 and 0 <= y + v < 70:
                expected[y, x] = image1[y + v, x + u]
    np.testing.assert_array_equal(warp_to_0(image1, flow_of(shift(u, v))), expected)


def test_between_pixels_an_image_is_bilinear_and_its_outer_half_pixels_are_its_own() -> None:
    image1 = noise().astype(float)
    warped = warp_to_0(image1.astype(np.uint8), flow_of(shift(0.5, 0)))
    np.testing.assert_allclose(warped[:, :-1], (image1[:, 1:] + image1[:, :-1]) / 2, atol=1)
    assert (warped[:, -1] == 255).all()  # at width - 0.5 the image has ended
    warped = warp_to_0(image1.astype(np.uint8), flow_of(shift(0.4, 0)))
    np.testing.assert_array_equal(warped[:, -1], image1[:, -1])  # not mixed with the paper


def test_there_is_paper_where_there_is_no_flow() -> None:
    flow = shift(1, 0)
    flow[10:20, 30:40] = np.nan
    warped = warp_to_0(np.zeros((HEIGHT, WIDTH, 3), np.uint8), flow_of(flow))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[10:20, 30:40] = expected[:, -1] = True
    np.testing.assert_array_equal(warped == 255, np.repeat(expected[..., None], 3, axis=2))


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    photo0, photo1 = data.astronaut()[:HEIGHT, :WIDTH].copy(), data.coffee()[:70, :100].copy()
    flow = parametric_flow(scattered(20), swirl(scattered(20)), WIDTH, HEIGHT)
    mask = np.hypot(*(pixels() - [45, 30]).T).T < 20
    whole = [warp_to_0(photo1, flow), swap_object(photo0, photo1, flow, mask), flow.to_unit_grid(100, 70)]
    monkeypatch.setattr(warping, "BAND", 7 * WIDTH)
    assert len(list(flow.bands())) == 9
    parts = [warp_to_0(photo1, flow), swap_object(photo0, photo1, flow, mask), flow.to_unit_grid(100, 70)]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_unit_grid_ends_at_the_outer_edges_of_image_1() -> None:
    """The centre of the first of 4 pixels is an eighth of the image from its edge, -1 + 1/4."""
    unit = flow_of(shift(0, 0, 4, 2)).to_unit_grid(4, 2)
    np.testing.assert_allclose(unit[0, :, 0], [-0.75, -0.25, 0.25, 0.75], atol=1e-6)
    np.testing.assert_allclose(unit[:, 0, 1], [-0.5, 0.5], atol=1e-6)
    np.testing.assert_allclose(flow_of(shift(-0.5, -0.5, 1, 1)).to_unit_grid(640, 480)[0, 0], [-1, -1])
    hole = shift(0, 0, 4, 2)
    hole[1, 2] = np.nan
    assert np.argwhere(np.isnan(flow_of(hole).to_unit_grid(4, 2))).tolist() == [[1, 2, 0], [1, 2, 1]]


def test_torch_reads_the_unit_grid_as_the_same_warp() -> None:
    photo = data.chelsea()
    points0 = scattered(30)
    flow = parametric_flow(points0, points0 * 2.5 + 10 * np.sin(points0 / 30), WIDTH, HEIGHT, kind="tps")
    unit = torch.from_numpy(flow.to_unit_grid(photo.shape[1], photo.shape[0]))[None]
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float()
    read = torch.nn.functional.grid_sample(image, unit, align_corners=False)[0].permute(1, 2, 0).numpy()
    inside = (np.abs(unit[0].numpy()) < 1 - 2 / 300).all(axis=2)
    assert inside.mean() > 0.9
    difference = np.abs(warp_to_0(photo, flow).astype(float) - read)[inside]
    assert difference.max() <= 3  # OpenCV rounds places to 1/32 pixel
    assert difference.mean() < 0.6


def test_a_swap_paints_inside_the_mask_and_nowhere_else() -> None:
    image0, image1 = noise(), noise(seed=1)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:40, 20:70] = True
    swapped = swap_object(image0, image1, flow_of(shift(0, 0), 0.3), mask)
    np.testing.assert_array_equal(swapped[~mask], image0[~mask])
    np.testing.assert_array_equal(swapped[mask], image1[mask])  # alike everywhere, so sure everywhere


def test_a_swap_has_a_soft_edge_on_large_images() -> None:
    image0, image1 = np.zeros((100, 1000, 3), np.uint8), np.full((100, 1000, 3), 200, np.uint8)
    mask = np.zeros((100, 1000), bool)
    mask[:, 500:] = True
    row = swap_object(image0, image1, flow_of(shift(0, 0, 1000, 100)), mask)[50, :, 0]
    np.testing.assert_array_equal(row[495:512], [0] * 5 + list(range(20, 201, 20)) + [200] * 2)


def test_a_swap_fades_where_the_flow_is_less_certain_than_usual_or_there_is_none() -> None:
    image0, image1 = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.full((HEIGHT, WIDTH, 3), 200, np.uint8)
    certainty = np.full((HEIGHT, WIDTH), 0.4)
    certainty[:, :10], certainty[:, 10:20] = 0.1, 0.9
    flow = shift(0, 0)
    flow[:, 30:35] = np.nan
    flow[:, 40:45] = 500
    row = swap_object(image0, image1, flow_of(flow, certainty), np.ones((HEIGHT, WIDTH), bool))[30, :, 0]
    expected = np.full(WIDTH, 200)
    expected[:10], expected[30:35], expected[40:45] = 50, 0, 0
    np.testing.assert_array_equal(row, expected)


def test_a_swap_of_nothing_changes_nothing() -> None:
    image0, image1, everywhere = noise(), noise(seed=1), np.ones((HEIGHT, WIDTH), bool)
    for flow, mask in (
        (flow_of(shift(0, 0)), ~everywhere),
        (flow_of(shift(0, 0), 0.0), everywhere),
        (flow_of(shift(999, 0)), everywhere),
    ):
        np.testing.assert_array_equal(swap_object(image0, image1, flow, mask), image0)


def test_a_swap_of_images_that_do_not_fit_is_refused() -> None:
    mask = np.ones((HEIGHT, WIDTH), bool)
    with pytest.raises(ArgumentError, match="90x60, 90x60, 50x40 pixels; wanted one size"):
        swap_object(noise(), noise(), flow_of(shift(0, 0, 50, 40)), mask)
