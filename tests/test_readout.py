"""The read-out is proved on fields whose truth is known in closed form; no weights are involved."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dinov2kit.correspondence import correspond, summarise_columns
from dinov2kit.readout import Field, ReadOut, read_out, read_peaks, sample, window_around

ROWS = COLS = 30
PATCH = 14.0


class Waves:
    """A smooth random field of unit descriptors over the whole plane (random Fourier features)."""

    def __init__(self, dim: int = 256, length: float = 2.5, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.frequency = rng.normal(0, 1 / length, (2, dim))
        self.phase = rng.uniform(0, 2 * np.pi, dim)

    def __call__(self, cells: np.ndarray) -> Tensor:
        waves = torch.from_numpy(np.cos(cells @ self.frequency + self.phase)).float()
        return torch.nn.functional.normalize(waves, dim=1)


def all_cells(rows: int, cols: int) -> np.ndarray:
    y, x = np.mgrid[:rows, :cols]
    return np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)


def random_field(rows: int, cols: int, dim: int = 128, seed: int = 0) -> Field:
    generator = torch.Generator().manual_seed(seed)
    descriptors = torch.nn.functional.normalize(torch.randn(rows * cols, dim, generator=generator), dim=1)
    return Field(descriptors, rows, cols)


def affine_pair(waves: Waves) -> tuple[Field, Field, np.ndarray, np.ndarray]:
    """Field 1 is field 0 seen through a rotation, a scale and a shift: cells0 = turn @ cells1 + shift."""
    angle, scale = np.deg2rad(12), 1.1
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([2.3, -1.7])
    cells1 = all_cells(ROWS, COLS)
    field0 = Field(waves(cells1), ROWS, COLS)
    field1 = Field(waves(cells1 @ turn.T + shift), ROWS, COLS)
    queries = np.random.default_rng(1).uniform(0, ROWS - 1, (800, 2))
    truth = (queries - shift) @ np.linalg.inv(turn).T
    central = ((truth > 3) & (truth < ROWS - 4)).all(axis=1)
    return field0, field1, queries[central], truth[central]


def test_the_window_softmax_finds_a_known_affine_map_to_a_pixel_where_the_argmax_cannot() -> None:
    field0, field1, queries, truth = affine_pair(Waves())
    found = correspond(torch.from_numpy(queries).float(), field0, field1).reading
    error = np.linalg.norm(found.cells.numpy() - truth, axis=1) * PATCH
    peak = found.peak.numpy()
    argmax = np.linalg.norm(np.stack([peak % COLS, peak // COLS], axis=1) - truth, axis=1) * PATCH
    assert np.median(error) < 1.0
    assert 3.0 < np.median(argmax) < 8.0


def test_a_target_near_a_border_is_not_pulled_inwards() -> None:
    cells = all_cells(ROWS, COLS)
    rng = np.random.default_rng(2)
    biases, cut_biases = [], []
    for seed in range(4):
        waves = Waves(length=5.0, seed=seed)
        field = Field(waves(cells), ROWS, COLS)
        truth = np.stack([rng.uniform(-0.5, 2.5, 200), rng.uniform(5, ROWS - 6, 200)], axis=1)
        similarity = waves(truth) @ field.descriptors.T
        reading = read_out(similarity, ROWS, COLS)
        biases.append((reading.cells.numpy() - truth)[:, 0].mean() * PATCH)
        near = (
            np.abs(cells[None] - cells[reading.peak.numpy()][:, None]).max(axis=2) <= 2
        )  # cut by the border
        votes = torch.softmax(similarity.masked_fill(~torch.from_numpy(near), -torch.inf) / 0.04, dim=1)
        cut = votes @ torch.from_numpy(cells).float()
        cut_biases.append((cut.numpy() - truth)[:, 0].mean() * PATCH)
    assert abs(np.mean(biases)) < 0.6
    assert np.mean(cut_biases) > 1.5  # what the symmetric window avoids


def test_an_image_matches_itself_exactly_and_confidently() -> None:
    field = random_field(12, 17)
    cells = torch.from_numpy(all_cells(12, 17)).float()
    found = correspond(cells, field, field)
    torch.testing.assert_close(found.reading.cells, cells, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.reading.score, torch.ones(12 * 17))
    assert found.cycle_error.max() < 1e-4
    assert found.reading.variance.max() < 1e-4
    assert found.mutual.all()
    assert found.confidence.min() > 0.9
    assert found.confidence.max() <= 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_the_features_by_a_quarter_turns_the_points_exactly(turns: int) -> None:
    rows, cols = 11, 16
    field0 = random_field(rows, cols)
    grid = torch.rot90(field0.descriptors.view(rows, cols, -1), turns)
    field1 = Field(grid.flatten(0, 1).contiguous(), grid.shape[0], grid.shape[1])
    names = torch.rot90(torch.arange(rows * cols).view(rows, cols), turns).flatten()
    truth = torch.from_numpy(all_cells(*grid.shape[:2])).float()[torch.argsort(names)]
    found = correspond(torch.from_numpy(all_cells(rows, cols)).float(), field0, field1)
    torch.testing.assert_close(found.reading.cells, truth, atol=1e-4, rtol=0)


def test_flipping_the_features_mirrors_the_points_exactly() -> None:
    field0 = random_field(9, 13)
    flipped = field0.descriptors.view(9, 13, -1).flip(1).flatten(0, 1).contiguous()
    cells = torch.from_numpy(all_cells(9, 13)).float()
    found = correspond(cells, field0, Field(flipped, 9, 13))
    truth = torch.stack([12 - cells[:, 0], cells[:, 1]], dim=1)
    torch.testing.assert_close(found.reading.cells, truth, atol=1e-4, rtol=0)


def test_a_weak_peak_is_read_inside_its_window_and_not_pulled_to_the_centre() -> None:
    generator = torch.Generator().manual_seed(3)
    similarity = torch.rand(1, ROWS * COLS, generator=generator) * 0.1
    row, col = 24, 6
    similarity[0, row * COLS + col] = 0.15
    reading = read_out(similarity, ROWS, COLS)
    radius = ReadOut().radius_in(ROWS, COLS)
    assert (reading.cells[0] - torch.tensor([col, row])).abs().max() <= radius
    zeroed = torch.zeros_like(similarity)  # what masking with zero instead of -inf would give
    window = window_around(torch.tensor([row * COLS + col]), ROWS, COLS, radius)
    zeroed[0, window.cells[0]] = similarity[0, window.cells[0]]
    leaked = torch.softmax(zeroed / 0.04, dim=1) @ torch.from_numpy(all_cells(ROWS, COLS)).float()
    assert (leaked[0] - torch.tensor([col, row])).abs().max() > radius


def test_a_forbidden_cell_is_never_an_answer() -> None:
    similarity = torch.zeros(1, 25)
    similarity[0, 12] = -torch.inf
    similarity[0, 18] = 0.4
    reading = read_out(similarity, 5, 5)
    assert reading.peak.item() == 18
    assert torch.isfinite(reading.cells).all()


def test_windows_shrink_on_both_sides_at_a_border() -> None:
    window = window_around(torch.tensor([0 * 10 + 1, 5 * 10 + 5]), 10, 10, 2)
    near, central = window.open.view(2, 5, 5)
    assert near.nonzero().tolist() == [[2, 1], [2, 2], [2, 3]]  # one to each side in x, none in y
    assert central.all()


def test_sampling_is_exact_on_cells_linear_between_them_and_constant_beyond_the_border() -> None:
    field = random_field(4, 5, dim=16)
    grid = field.descriptors.view(4, 5, -1)
    on, between, beyond = sample(field, torch.tensor([[3.0, 2.0], [0.25, 0.5], [-3.0, 9.0]]))
    torch.testing.assert_close(on, grid[2, 3])
    blend = 0.375 * (grid[0, 0] + grid[1, 0]) + 0.125 * (grid[0, 1] + grid[1, 1])
    torch.testing.assert_close(between, blend / blend.norm())
    torch.testing.assert_close(beyond, grid[3, 0])


def test_variance_is_that_of_the_votes() -> None:
    similarity = torch.full((1, 81), -10.0)
    similarity[0, [40 - 1, 40, 40 + 1]] = torch.tensor([0.3, 0.3001, 0.3])
    variance = read_out(similarity, 9, 9).variance[0]
    assert variance[0].item() == pytest.approx(2 / 3, abs=1e-3)
    assert variance[1].item() == pytest.approx(0, abs=1e-6)


def test_confidence_is_the_dual_softmax_written_out() -> None:
    field0, field1 = random_field(6, 7, dim=8, seed=4), random_field(8, 5, dim=8, seed=5)
    cells = torch.from_numpy(all_cells(6, 7)).float()
    found = correspond(cells, field0, field1)
    similarity = field0.descriptors @ field1.descriptors.T
    joint = torch.softmax(similarity / 0.1, dim=1) * torch.softmax(similarity / 0.1, dim=0)
    window = window_around(found.reading.peak, 8, 5, ReadOut().radius_in(8, 5))
    best = joint.gather(1, window.cells).masked_fill(~window.open, 0).amax(dim=1)
    expected = best.sqrt() * torch.exp(-found.cycle_error.square() / 2)
    torch.testing.assert_close(found.confidence, expected, atol=1e-5, rtol=1e-4)


def test_mutual_neighbours_are_those_of_the_full_similarity() -> None:
    field0, field1 = random_field(6, 7, dim=8, seed=4), random_field(8, 5, dim=8, seed=5)
    found = correspond(torch.from_numpy(all_cells(6, 7)).float(), field0, field1)
    similarity = field0.descriptors @ field1.descriptors.T
    expected = similarity.argmax(dim=0)[similarity.argmax(dim=1)] == torch.arange(42)
    assert torch.equal(found.mutual, expected)
    assert 0 < int(expected.sum()) < 42


def test_a_parabola_finds_the_top_of_a_parabola_and_a_bare_peak_stays_on_its_cell() -> None:
    cells = torch.from_numpy(all_cells(9, 11)).float()
    top = torch.tensor([6.3, 3.8])
    similarity = 0.8 - 0.02 * (cells - top).square().sum(dim=1)[None]
    torch.testing.assert_close(
        read_out(similarity, 9, 11, ReadOut("parabola")).cells[0], top, atol=1e-4, rtol=0
    )
    bare = read_out(similarity, 9, 11, ReadOut("none"))
    assert bare.cells[0].tolist() == [6, 4]
    assert bare.variance.min() > 0  # the window still says how sharp the peak is


def test_a_parabola_needs_both_neighbours() -> None:
    similarity = torch.zeros(3, 25)
    similarity[0, 0] = 1  # a corner
    similarity[1, [12, 13]] = torch.tensor([1.0, 0.9])
    similarity[1, 11] = -torch.inf  # a closed neighbour in x, none in y
    found = read_out(similarity, 5, 5, ReadOut("parabola")).cells  # the third row is a plateau
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]]))


def test_a_colder_window_is_closer_to_the_peak_and_a_wider_one_sees_further() -> None:
    similarity = torch.zeros(1, 121)
    similarity[0, [60, 61, 64]] = torch.tensor([0.5, 0.45, 0.45])
    shift = {
        (radius, temperature): read_out(similarity, 11, 11, ReadOut("window", radius, temperature)).cells[
            0, 0
        ]
        for radius in (2, 4)
        for temperature in (0.02, 0.2)
    }
    assert 5 < shift[2, 0.02] < shift[2, 0.2]
    assert shift[4, 0.02] > shift[2, 0.02]
    expected = np.exp(0.45 / 0.02) / (np.exp(0.5 / 0.02) + np.exp(0.45 / 0.02) + 23)
    assert shift[2, 0.02].item() == pytest.approx(5 + expected, abs=1e-3)


def test_the_peaks_of_a_query_are_those_of_its_repeats_best_first() -> None:
    similarity = torch.full((1, 400), 0.1)
    for cell, height in ((42, 0.7), (43, 0.69), (250, 0.9), (358, 0.8)):
        similarity[0, cell] = height
    peaks = read_peaks(similarity, 20, 20, 3)
    assert [peak.peak.item() for peak in peaks] == [250, 358, 42]  # 43 stands in the window of 42
    assert peaks[0].second.item() == pytest.approx(0.8)
    assert similarity.max() == pytest.approx(0.9)  # the argument is left as it was


def test_a_closed_cell_is_no_answer_and_no_competitor() -> None:
    field0, field1 = random_field(6, 7, dim=8, seed=4), random_field(8, 5, dim=8, seed=5)
    cells = torch.from_numpy(all_cells(6, 7)).float()
    open0, open1 = (torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.6 for n in (42, 40))
    found = correspond(cells, replace(field0, open=open0), replace(field1, open=open1))
    similarity = field0.descriptors @ field1.descriptors.T
    closed = similarity.masked_fill(~open1, -torch.inf)
    torch.testing.assert_close(found.reading.peak, closed.argmax(dim=1))
    rows = torch.softmax(closed / 0.1, dim=1)
    columns = torch.softmax(similarity.masked_fill(~open0[:, None], -torch.inf) / 0.1, dim=0)
    window = window_around(found.reading.peak, 8, 5, ReadOut().radius_in(8, 5))
    best = (rows * columns).gather(1, window.cells).masked_fill(~window.open, 0).amax(dim=1)
    expected = best.sqrt() * torch.exp(-found.cycle_error.square() / 2)
    torch.testing.assert_close(found.confidence[open0], expected[open0], atol=1e-5, rtol=1e-4)


def test_chunked_equals_unchunked() -> None:
    waves = Waves()
    field0, field1, queries, _ = affine_pair(waves)
    cells = torch.from_numpy(queries).float()
    whole = correspond(cells, field0, field1)
    chunked = correspond(cells, field0, field1, max_bytes=200_000)
    assert len(field0.descriptors) > 200_000 // (4 * 4 * ROWS * COLS)
    torch.testing.assert_close(chunked.reading.cells, whole.reading.cells, atol=1e-4, rtol=0)
    torch.testing.assert_close(chunked.confidence, whole.confidence, atol=1e-5, rtol=0)
    torch.testing.assert_close(chunked.cycle_error, whole.cycle_error, atol=1e-4, rtol=0)
    assert torch.equal(chunked.mutual, whole.mutual)
    few = summarise_columns(field0, field1, max_bytes=1)
    torch.testing.assert_close(few.total, summarise_columns(field0, field1).total)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu() -> None:
    field0, field1, queries, _ = affine_pair(Waves())
    cells = torch.from_numpy(queries).float()
    there = [Field(field.descriptors.cuda(), field.rows, field.cols) for field in (field0, field1)]
    found = correspond(cells.cuda(), *there)
    expected = correspond(cells, field0, field1)
    torch.testing.assert_close(found.reading.cells.cpu(), expected.reading.cells, atol=1e-3, rtol=0)
    torch.testing.assert_close(found.confidence.cpu(), expected.confidence, atol=1e-4, rtol=0)
