"""Colours change as the plain formulas say, in every order, and alone as in a batch, to the bit."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d
from torch import Tensor

from dinov2kit.errors import ArgumentError
from dinov2kit.train import colours
from dinov2kit.train.colours import (
    BLUR,
    BRIGHTNESS,
    COLOURS,
    CONTRAST,
    GREY,
    HUE,
    ORDER,
    ORDERS,
    SATURATION,
    SOLARISE,
    finish_crops,
    no_colours,
)

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255,) * 3}  # what comes out is what went in, from 0 to 255
STEPS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}
STEPS |= {"grey": GREY, "blur": BLUR, "solarise": SOLARISE}


def luminance(image: np.ndarray) -> np.ndarray:
    shares = [0.299, 0.587, 0.114] if image.shape[2] == 3 else [1 / image.shape[2]] * image.shape[2]
    return (image @ np.array(shares))[..., None]


def turned(image: np.ndarray, turn: float) -> np.ndarray:
    """Turn the hue pixel by pixel, by the HSV of Python's library."""
    flat = []
    for pixel in image.reshape(-1, 3) / 255:
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        flat.append(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value))
    return 255 * np.array(flat).reshape(image.shape)


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    taps = np.exp(-(np.arange(-4, 5) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    return convolve1d(convolve1d(image, taps, axis=0, mode="mirror"), taps, axis=1, mode="mirror")


def restated(image: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Do all steps in fp64, from 0 to 255, as the recipe and torchvision tell them."""
    values = image.astype(np.float64)
    for step in ORDERS[int(vector[ORDER])]:
        amount = float(vector[step])
        if step == BRIGHTNESS:
            values = np.clip(values * (1 + amount), 0, 255)
        elif step == CONTRAST:
            mean = np.rint(luminance(values)).mean()
            values = np.clip((1 + amount) * values - amount * mean, 0, 255)
        elif step == SATURATION and image.shape[2] == 3:
            values = np.clip((1 + amount) * values - amount * luminance(values), 0, 255)
        elif step == HUE and amount and image.shape[2] == 3:
            values = turned(values, amount)
    if vector[GREY] and image.shape[2] == 3:
        values = np.repeat(luminance(values), 3, axis=2)
    if vector[BLUR]:
        values = blurred(values, float(vector[BLUR]))
    return np.where(values < 128, values, 255 - values) if vector[SOLARISE] else values


def drawn(count: int, seed: int = 0) -> Tensor:
    """Vectors of all kinds: each of the steps is there and is not, amounts are larger than usual."""
    rng = np.random.default_rng(seed)
    vectors = np.zeros((count, COLOURS), np.float32)
    for step in (BRIGHTNESS, CONTRAST, SATURATION):
        vectors[:, step] = rng.uniform(-0.8, 0.8, count) * (rng.random(count) < 0.8)
    vectors[:, HUE] = rng.uniform(-0.5, 0.5, count) * (rng.random(count) < 0.8)
    vectors[:, ORDER] = np.arange(count) % len(ORDERS)
    vectors[:, GREY] = rng.random(count) < 0.2
    vectors[:, BLUR] = rng.uniform(0.1, 2, count) * (rng.random(count) < 0.5)
    vectors[:, SOLARISE] = rng.random(count) < 0.2
    return torch.from_numpy(vectors)


def pictures(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8))


def assert_restated(pixels: Tensor, vectors: Tensor, atol: float = 2e-3) -> None:
    channels = pixels.shape[3]
    found = finish_crops(pixels, vectors, mean=(0.0,) * channels, std=(1 / 255,) * channels)
    for image, vector, values in zip(pixels.numpy(), vectors.numpy(), found.numpy(), strict=True):
        wanted = restated(image, vector).transpose(2, 0, 1)
        np.testing.assert_allclose(values, wanted, atol=atol, rtol=0, err_msg=str(vector))


def test_all_steps_in_all_orders_are_the_plain_restatement() -> None:
    vectors = drawn(72)
    assert set(vectors[:, ORDER].tolist()) == set(range(24))
    vectors[:, SOLARISE] = 0  # it tears apart what rounding has put on both sides of 128
    assert_restated(pictures(72, 25, 16), vectors)


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("amount", [-0.37, 0.31])
def test_each_step_by_itself_is_the_plain_restatement(name: str, amount: float) -> None:
    vectors = no_colours(2, 3)
    vectors[:, STEPS[name]] = 1.0 if name in ("grey", "solarise") else abs(amount) * 3
    if name in ("brightness", "contrast", "saturation", "hue"):
        vectors[:, STEPS[name]] = amount
    pixels = pictures(2, 30, 20)
    assert_restated(pixels, vectors)
    assert not torch.equal(
        finish_crops(pixels, vectors, **PLAIN), finish_crops(pixels, no_colours(2, 3), **PLAIN)
    )


def test_known_colours_become_what_anyone_expects() -> None:
    pixels = torch.tensor([[[[255, 0, 0], [0, 255, 255], [90, 90, 90], [0, 0, 0]]]], dtype=torch.uint8)
    third = no_colours(1, 3)
    third[:, HUE] = 1 / 3
    found = finish_crops(pixels, third, **PLAIN)[0, :, 0].T.round().tolist()
    assert found == [[0, 255, 0], [255, 0, 255], [90, 90, 90], [0, 0, 0]]  # red to green, cyan to magenta
    dull = no_colours(1, 3)
    dull[:, SATURATION] = -1
    found = finish_crops(pixels, dull, **PLAIN)[0, :, 0].T.round().tolist()
    assert found == [[76] * 3, [179] * 3, [90] * 3, [0] * 3]
    flipped = no_colours(1, 3)
    flipped[:, SOLARISE] = 1
    edge = torch.tensor([[[[127, 128, 255]]]], dtype=torch.uint8)
    assert finish_crops(edge, flipped, **PLAIN).flatten().round().tolist() == [127, 127, 0]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_no_colours_leave_the_normalised_pixels(channels: int) -> None:
    mean, std = [0.1 + 0.1 * i for i in range(channels)], [0.2 + 0.05 * i for i in range(channels)]
    pixels = pictures(3, 6, 7, channels)
    found = finish_crops(pixels, no_colours(3, channels), mean=mean, std=std)
    wanted = (pixels.numpy() / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(found.numpy(), wanted.transpose(0, 3, 1, 2), atol=2e-6)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_numbers_of_channels_have_brightness_contrast_blur_and_solarisation(channels: int) -> None:
    vectors = drawn(24, seed=channels)
    vectors[:, SOLARISE] = 0
    assert_restated(pictures(24, 25, 16, channels), vectors)


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (2, 3), (4, 4), (5, 9), (3, 40)])
def test_crops_smaller_than_the_blur_are_mirrored_as_often_as_it_takes(size: tuple[int, int]) -> None:
    vectors = no_colours(2, 3)
    vectors[:, BLUR] = torch.tensor([0.6, 2.0])
    assert_restated(pictures(2, *size), vectors)


def together_or_alone(pixels: Tensor, vectors: Tensor) -> None:
    size = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
    together = finish_crops(pixels, vectors, **size)
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(pixels)))
    assert torch.equal(finish_crops(pixels[order], vectors[order], **size), together[order])
    for row in range(0, len(pixels), 5):
        alone = finish_crops(pixels[row : row + 1], vectors[row : row + 1], **size)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("at_once", [1, 4, 1000])
def test_a_crop_becomes_the_same_to_the_bit_whatever_is_beside_it(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    pixels, vectors = pictures(49, 31, 29), drawn(49)
    usual = finish_crops(pixels, vectors, **PLAIN)
    monkeypatch.setattr(colours, "_at_once", lambda _: at_once)
    together_or_alone(pixels, vectors)
    assert torch.equal(finish_crops(pixels, vectors, **PLAIN), usual)


def test_the_mean_of_large_crops_is_exact() -> None:
    """A sum of single-precision numbers would stop counting at 2 ** 24."""
    pixels = torch.full((1, 600, 500, 3), 201, dtype=torch.uint8)
    vectors = no_colours(1, 3)
    vectors[:, CONTRAST] = -1
    assert torch.equal(finish_crops(pixels, vectors, **PLAIN), torch.full((1, 3, 600, 500), 201.0))


def test_pixels_and_vectors_are_left_as_they_are_and_none_is_no_error() -> None:
    pixels, vectors = pictures(4, 9, 9), drawn(4)
    before = pixels.clone(), vectors.clone()
    finish_crops(pixels, vectors, **PLAIN)
    assert torch.equal(pixels, before[0])
    assert torch.equal(vectors, before[1])
    assert finish_crops(pixels[:0], vectors[:0], **PLAIN).shape == (0, 3, 9, 9)


def test_numbers_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ArgumentError, match="1 means and 1 deviations for 3 channels"):
        finish_crops(pictures(2, 4, 4), no_colours(2, 3), mean=(0.5,), std=(0.5,))
    with pytest.raises(ArgumentError, match="wanted 8 numbers"):
        finish_crops(pictures(2, 4, 4), torch.zeros(2, 5), **PLAIN)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_does_the_same_mathematics_and_keeps_images_apart() -> None:
    pixels, vectors = pictures(48, 40, 33), drawn(48)
    vectors[:, SOLARISE] = 0
    found = finish_crops(pixels.cuda(), vectors.cuda(), **PLAIN).cpu()
    torch.testing.assert_close(found, finish_crops(pixels, vectors, **PLAIN), atol=1e-3, rtol=0)
    together_or_alone(pixels.cuda(), vectors)
