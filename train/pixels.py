"""Encoded images and arrays -> the pixels that training sees: uint8, a fixed number of channels.

With 3 channels every image becomes what `read_image` makes of it, with 1 its luminance; JPEGs take a faster
way to the same pixels. Other numbers of channels are taken as they are stored, from TIFF, PNG and arrays.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8

from dinov2kit.errors import ArgumentError, DependencyError, ImageError
from dinov2kit.formats import MAX_PIXELS, identify
from dinov2kit.images import read_image

Pixels = UInt8[np.ndarray, "height width channels"]

NPY_MAGIC = b"\x93NUMPY"

_SIXTEEN_BITS = 16  # of a PNG, per channel
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}  # JPEG markers that stand alone
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers that say how large the image is


@dataclass(frozen=True)
class PixelRules:
    """What becomes of the pixels of a file or an array.

    Attributes:
        channels: how many there are in the result.
        window: the values that become 0 and 255, for images of more than 8 bits; what lies beyond is cut off.
            None takes 16 bits as 0 to 65535 and refuses what has no such range.
    """

    channels: int = 3
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise ArgumentError(f"{self.channels} channels; wanted 1 or more")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ArgumentError(f"a window from {self.window[0]} to {self.window[1]}; wanted low below high")

    @property
    def as_photos(self) -> bool:
        """Whether the result is RGB or grey, so that every image can become it."""
        return self.channels in (1, 3)

    def decode(self, encoded: bytes) -> Pixels:
        """Decode the content of an image file, or of an .npy file that holds one image; upright.

        Raises:
            ImageError: it is damaged, or its channels or its values do not fit. No file is named.
            DependencyError: a TIFF whose channels or values are wanted as stored, while tifffile is missing.
        """
        if encoded.startswith(NPY_MAGIC):
            return self.convert(_load_npy(encoded))
        kind = identify(encoded[:64])
        if kind == "JPEG" and self.as_photos and _is_plain_jpeg(encoded):
            return self._decode_jpeg(encoded)
        as_stored = not self.as_photos or self.window is not None
        if kind == "TIFF" and as_stored:
            return self.convert(_read_tiff(encoded))
        if kind == "PNG" and (not self.as_photos or (as_stored and encoded[24:25] == bytes([_SIXTEEN_BITS]))):
            return self.convert(_read_png(encoded))
        try:
            photo = read_image(encoded)
        except ImageError as error:
            raise ImageError(error.message.removeprefix("the bytes given: "), hint=error.hint) from error
        return self._to_channels(photo)

    def convert(self, values: np.ndarray) -> Pixels:
        """Convert an image (height, width) or (height, width, channels) of any type of numbers.

        Raises:
            ImageError: it is no such image, or its channels or its values do not fit.
        """
        if values.ndim not in (2, 3) or 0 in values.shape:
            raise ImageError(
                f"an array of shape {values.shape}; wanted one image, (height, width) or (..., channels)"
            )
        eight_bits = self._to_eight_bits(values)
        return self._to_channels(eight_bits if values.ndim == 3 else eight_bits[:, :, None])

    def _decode_jpeg(self, encoded: bytes) -> Pixels:
        grey = self.channels == 1
        flag = cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR_RGB
        photo = cv2.imdecode(np.frombuffer(encoded, np.uint8), flag)  # turned upright by its EXIF
        if photo is None:
            raise ImageError("damaged or truncated")
        return np.asarray(photo[:, :, None] if grey else photo, np.uint8)

    def _to_eight_bits(self, values: np.ndarray) -> UInt8[np.ndarray, "*shape"]:
        if values.dtype == np.uint8:
            return np.array(values)
        if self.window is not None and values.dtype.kind in "uif":
            low, high = self.window
            inside = np.clip(np.nan_to_num(values.astype(np.float64), nan=low), low, high)
            return np.rint((inside - low) * (255 / (high - low))).astype(np.uint8)
        if values.dtype == np.uint16:
            return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        raise ImageError(
            f"its pixels are {values.dtype}, which has no fixed black and white",
            hint="say which values become 0 and 255 by a window, for instance (0, 1)"
            if values.dtype.kind in "uif"
            else "wanted numbers: uint8, uint16, or others with a window",
        )

    def _to_channels(self, pixels: UInt8[np.ndarray, "height width stored"]) -> Pixels:
        stored = pixels.shape[2]
        if stored == self.channels:
            return np.ascontiguousarray(pixels)
        if (stored, self.channels) == (1, 3):
            return np.repeat(pixels, 3, axis=2)
        if (stored, self.channels) == (3, 1):
            return np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)[:, :, None])
        raise ImageError(f"it has {_count(stored)}; wanted {self.channels}")


def _count(channels: int) -> str:
    return "1 channel" if channels == 1 else f"{channels} channels"


def _is_plain_jpeg(encoded: bytes) -> bool:
    """Say whether a JPEG is grey or in colour, not CMYK, and no larger than is read; unsure is no."""
    at = 2
    while at + 10 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in _FRAMES:
            height, width = (int.from_bytes(encoded[at + k : at + k + 2], "big") for k in (5, 7))
            return encoded[at + 9] in (1, 3) and 0 < height * width <= MAX_PIXELS
        if marker == 0xFF:  # padding
            at += 1
        elif marker in _NO_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return False


def _load_npy(encoded: bytes) -> np.ndarray:
    try:
        loaded: np.ndarray = np.load(io.BytesIO(encoded), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError) as error:
        raise ImageError(f"damaged or truncated ({str(error).partition(chr(10))[0]})") from error
    return loaded


def _read_png(encoded: bytes) -> np.ndarray:
    """Return the channels of a PNG as they are stored, in the order red, green, blue, alpha."""
    stored = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None:
        raise ImageError("damaged or truncated")
    if stored.ndim == 3:
        order = [2, 1, 0, *range(3, stored.shape[2])]  # cv2 has blue first
        return np.ascontiguousarray(stored[:, :, order])
    return np.asarray(stored)


def _read_tiff(encoded: bytes) -> np.ndarray:
    """Return the channels of a TIFF as they are stored, be they samples, planes or pages; not turned.

    Neither cv2 nor Pillow is asked: of planes, of more than 4 samples and of samples without a colour they
    read a part, or something else.
    """
    try:
        import tifffile
    except ImportError as error:
        raise DependencyError(
            "TIFF files with channels or values as they are stored need the package tifffile",
            hint="pip install tifffile",
        ) from error
    try:
        with tifffile.TiffFile(io.BytesIO(encoded)) as file:
            series: Any = file.series[0]
            stored, axes = np.asarray(series.asarray()), str(series.axes)
    except Exception as error:  # codecs raise anything on damaged files
        raise ImageError(f"damaged, or a TIFF that tifffile cannot read ({error})") from error
    if "Y" not in axes or "X" not in axes or stored.ndim > 3:
        raise ImageError(f"a TIFF of shape {stored.shape} with the axes {axes}; wanted one image")
    if stored.ndim == 3:
        (channel,) = (at for at, axis in enumerate(axes) if axis not in "YX")
        stored = np.moveaxis(stored, channel, 2)
    return stored
