"""Edited copies of an image, as people and programs make them: what a search for duplicates should find.

The kinds are those by which copy detection is usually tried: JPEG of low quality, half the size, a crop, a
mirror image, a border, another brightness. A copy depends on the image, the kind and the seed only.
"""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL.Image import Resampling

from dinov2kit.errors import check_choice
from dinov2kit.shapes import Image

Copy = UInt8[np.ndarray, "new_height new_width 3"]
KINDS = ("jpeg", "resize", "crop", "flip", "border", "brightness")
JPEG_QUALITY = 50
RESIZE = 0.5  # of each side
CROP = 0.8  # of each side that is left
BORDER = (0.03, 0.08)  # width as a share of the shorter side
BRIGHTNESS = ((0.7, 0.85), (1.15, 1.35))  # factors: darker, lighter


def make_copy(image: Image, kind: str, *, seed: int = 0) -> Copy:
    """Return an edited copy of an image.

    Args:
        image: RGB pixels; it stays as it is.
        kind: "jpeg" at quality 50; "resize" to half of each side; "crop" to 0.8 of each side, anywhere;
            "flip" left to right; "border" of one grey around it; "brightness" times 0.7 to 0.85, or 1.15 to
            1.35.
        seed: decides where the crop lies, how the border looks, and how bright the copy is.

    Raises:
        ArgumentError: the kind is unknown.
    """
    check_choice("kind of copy", kind, KINDS)
    chance = np.random.default_rng((seed, KINDS.index(kind)))
    if kind == "jpeg":
        return _compressed(image)
    if kind == "resize":
        return _resized(image)
    if kind == "crop":
        return _cropped(image, chance)
    if kind == "flip":
        return image[:, ::-1].copy()
    if kind == "border":
        return _bordered(image, chance)
    return _relit(image, chance)


def _compressed(image: Image) -> Copy:
    encoded = io.BytesIO()
    PIL.Image.fromarray(image).save(encoded, "JPEG", quality=JPEG_QUALITY)
    with PIL.Image.open(encoded) as decoded:
        return np.array(decoded)


def _resized(image: Image) -> Copy:
    height, width = image.shape[:2]
    size = max(round(width * RESIZE), 1), max(round(height * RESIZE), 1)
    return np.array(PIL.Image.fromarray(image).resize(size, Resampling.BICUBIC))


def _cropped(image: Image, chance: np.random.Generator) -> Copy:
    height, width = image.shape[:2]
    rows, cols = max(round(height * CROP), 1), max(round(width * CROP), 1)
    top, left = int(chance.integers(height - rows + 1)), int(chance.integers(width - cols + 1))
    return image[top : top + rows, left : left + cols].copy()


def _bordered(image: Image, chance: np.random.Generator) -> Copy:
    width = max(round(min(image.shape[:2]) * float(chance.uniform(*BORDER))), 1)
    grey = int(chance.integers(256))
    return np.pad(image, ((width, width), (width, width), (0, 0)), constant_values=grey)


def _relit(image: Image, chance: np.random.Generator) -> Copy:
    factor = float(chance.uniform(*BRIGHTNESS[int(chance.integers(len(BRIGHTNESS)))]))
    return np.clip(np.rint(image * factor), 0, 255).astype(np.uint8)
