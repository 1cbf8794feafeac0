"""The batched pipeline: order kept, bad files isolated, memory and NaN handled."""

import numpy as np
import pytest
from PIL import Image

from dinov2kit import DeviceMemoryError, ModelIdentity
from dinov2kit.pipeline import describe
from dinov2kit.views import CenterCrop


class MeanColour:
    """An encoder whose descriptor is the mean colour of the image, so that truth is known."""

    def __init__(self, largest_batch: int = 100, nan_above: float = 300.0) -> None:
        self.view = CenterCrop(resize=16, crop=14)
        self.identity = ModelIdentity("mean-colour", "0" * 64, 3, "mean", self.view.describe())
        self.largest_batch, self.nan_above = largest_batch, nan_above
        self.batch_size = 16
        self.batches: list[int] = []

    def embed(self, pixels):
        if len(pixels) > self.largest_batch:
            raise DeviceMemoryError("too many")
        self.batches.append(len(pixels))
        means = pixels.reshape(len(pixels), -1, 3).mean(axis=1).astype(np.float32)
        rows = means / np.linalg.norm(means, axis=1, keepdims=True)
        rows[means[:, 0] > self.nan_above] = np.nan
        return rows.astype(np.float32)


@pytest.fixture
def colours(tmp_path):
    """Thirty plain images, red rising from 1 to 230."""
    paths = []
    for i in range(30):
        path = tmp_path / f"{i:02}.png"
        Image.new("RGB", (40, 30), (1 + i * 8 % 230, 100, 50)).save(path)
        paths.append(path)
    return paths


def truth(i: int) -> np.ndarray:
    row = np.array([1 + i * 8 % 230, 100, 50], np.float32)
    return row / np.linalg.norm(row)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_order_and_values_do_not_depend_on_batches_or_workers(colours, workers, batch_size):
    found = list(describe(MeanColour(), colours, workers=workers, batch_size=batch_size))
    assert [description.path for description in found] == colours
    for i, description in enumerate(found):
        np.testing.assert_allclose(description.descriptor, truth(i), atol=0.01)
        assert (description.width, description.height, description.error) == (40, 30, None)


def test_a_bad_file_costs_no_neighbour(colours):
    colours[3].write_bytes(b"no image")
    colours[10].unlink()
    found = list(describe(MeanColour(), colours, batch_size=4))
    assert [i for i, description in enumerate(found) if description.error] == [3, 10]
    assert all((d.descriptor is None) == bool(d.error) for d in found)


def test_a_batch_of_bad_files_alone_does_not_crash(tmp_path):
    bad = [tmp_path / f"{i}.jpg" for i in range(9)]
    for path in bad:
        path.write_bytes(b"")
    assert all(description.error for description in describe(MeanColour(), bad, batch_size=4))


def test_out_of_memory_halves_the_batch_and_goes_on(colours):
    encoder = MeanColour(largest_batch=3)
    found = list(describe(encoder, colours, batch_size=16))
    assert [d.path for d in found] == colours
    assert max(encoder.batches) == 2  # 16, 8, 4 fail; 2 fits
    np.testing.assert_allclose(found[-1].descriptor, truth(29), atol=0.01)


def test_a_device_too_small_for_one_image_is_an_error(colours):
    with pytest.raises(DeviceMemoryError):
        list(describe(MeanColour(largest_batch=0), colours, batch_size=4))


def test_a_descriptor_that_is_not_finite_is_never_given_out(colours):
    found = list(describe(MeanColour(nan_above=200), colours, batch_size=8))
    wrong = [i for i, description in enumerate(found) if description.error]
    assert wrong == [i for i in range(30) if 1 + i * 8 % 230 > 200]
    assert all("finite" in found[i].error for i in wrong)
