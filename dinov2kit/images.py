"""Image files -> upright RGB pixels, whatever the format, mode, depth or orientation.

JPEGs are decoded at the smallest DCT scale that still has twice the resolution asked for, and resized in one step
from the stored frame; only the small result is turned upright.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.ExifTags import IFD, Base
from PIL.Image import Resampling, Transpose

from dinov2kit.errors import ImageError, KitError
from dinov2kit.formats import HEIC_SUFFIXES, IMAGE_SUFFIXES, MAX_PIXELS, open_encoded, quiet
from dinov2kit.shapes import Image
from dinov2kit.views import Region, View

__all__ = [
    "HEIC_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Picture",
    "Region",
    "Source",
    "load_picture",
    "read_image",
]

Source = Path | str | bytes | PIL.Image.Image | np.ndarray
"""A path, the content of an image file, a PIL image, or an RGB uint8 array (height, width, 3)."""

Box = tuple[float, float, float, float]

_OVERSAMPLING = 2  # decoded pixels per network pixel, at least; 1 costs 9 dB, 2 is visually exact

_UPRIGHT = {  # EXIF orientation -> what turns the stored frame upright
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Picture:
    """A decoded image, ready for the network.

    Attributes:
        pixels: what the view made of the image, upright.
        width: width of the whole upright original, in pixels.
        height: height of the whole upright original, in pixels.
        orientation: EXIF orientation, 1 to 8; 1 where the format has already applied it (TIFF, HEIC).
        taken_at: when the photo was taken, "YYYY-MM-DDTHH:MM:SS" without zone, or None.
    """

    pixels: Image
    width: int
    height: int
    orientation: int = 1
    taken_at: str | None = None


def read_image(source: Source, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Read a whole image at full size: upright, RGB, transparency over white, the first frame of several.

    Args:
        source: path, content of a file, PIL image, or RGB array.
        max_pixels: larger files are refused before they are decoded; at most Pillow's own limit.

    Raises:
        ImageError: there is no such file, or it cannot be decoded as a whole.
    """
    with _opened(source, max_pixels) as image:
        image.load()
        orientation, _ = _read_exif(image)
        return np.array(_turn(_to_rgb(image), orientation))


def load_picture(
    source: Source, view: View, *, max_pixels: int = MAX_PIXELS, region: Region | None = None
) -> Picture:
    """Read an image as a view wants it, decoding no more than that needs.

    Args:
        source: path, content of a file, PIL image, or RGB array.
        view: which part of the image becomes how many pixels.
        max_pixels: larger files are refused before they are decoded; at most Pillow's own limit.
        region: the part of the upright image that `view` is applied to; the rest is not seen.

    Raises:
        ImageError: there is no such file, or it cannot be decoded as a whole.
        ArgumentError: the region is empty or reaches beyond the image.
    """
    with _opened(source, max_pixels) as image:
        scalable = not isinstance(source, PIL.Image.Image) and image.format in ("JPEG", "MPO")
        if not scalable:
            image.load()  # TIFF and PNG know their orientation only afterwards
        orientation, taken_at = _read_exif(image)
        stored_size = image.size
        size = stored_size[::-1] if orientation >= 5 else stored_size
        seen = region.box(*size) if region else (0, 0, *size)
        placement = view.place(seen[2] - seen[0], seen[3] - seen[1])
        left, top, right, bottom = placement.box
        box = (seen[0] + left, seen[1] + top, seen[0] + right, seen[1] + bottom)
        box = _to_stored(box, orientation, stored_size)
        target = (placement.width, placement.height)
        target = target[::-1] if orientation >= 5 else target
        scale = _scale_down(image, box, target) if scalable else 1
        if region:
            box = _cut(image, box, _to_stored(seen, orientation, stored_size), scale)
        ...
