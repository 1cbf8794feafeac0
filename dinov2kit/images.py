"""Image files -> upright RGB pixels, whatever the format, mode, depth or orientation.

JPEGs are decoded at the smallest DCT scale that still has twice the resolution asked for, and resized in one
step from the stored frame; only the small result is turned upright.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import PIL.Image
from PIL.ExifTags import IFD, Base
from PIL.Image import Resampling, Transpose

from dinov2kit.contents import is_there, open_content
from dinov2kit.errors import ImageError, KitError
from dinov2kit.formats import HEIC_SUFFIXES, IMAGE_SUFFIXES, MAX_PIXELS, open_encoded, quiet
from dinov2kit.shapes import Image
from dinov2kit.views import Placement, Region, View

__all__ = [
    "HEIC_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Picture",
    "Region",
    "Source",
    "image_digest",
    "is_there",
    "list_images",
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


def list_images(sources: Sequence[Path]) -> list[Path]:
    """Return the files named, and the images inside the folders named, sorted within each folder.

    Raises:
        ImageError: a source does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for source in sources:
        if source.is_dir():
            inside = (path for path in source.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            found += sorted(path for path in inside if path.is_file())
        elif is_there(source):
            found.append(source)
        else:
            raise ImageError(
                f"no such image or folder: {source}", hint="paths are relative to the current folder"
            )
    if not found:
        raise ImageError(f"no images in {', '.join(map(str, sources))}")
    return found


def image_digest(path: Path) -> str:
    """Return the SHA-256 of an image file.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with open_content(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except ImageError as error:
        raise ImageError(f"cannot read {path}: {error.message}", hint=error.hint) from error
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error


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
            image.load()  # PNG and TIFF know their orientation only afterwards
        orientation, taken_at = _read_exif(image)
        frame = _Frame(*image.size, orientation)
        width, height = frame.upright(image.size)
        x0, y0, x1, y1 = region.box(width, height) if region else (0, 0, width, height)
        placed = view.place(x1 - x0, y1 - y0)
        left, top, right, bottom = placed.box
        box = frame.to_stored((x0 + left, y0 + top, x0 + right, y0 + bottom))
        seen = frame.to_stored((float(x0), float(y0), float(x1), float(y1)))
        scale = _scale_down(image, box, frame.upright((placed.width, placed.height))) if scalable else 1
        small = _resize(image, box, placed, frame=frame, seen=seen, scale=scale)
        return Picture(np.array(_turn(small, orientation)), width, height, orientation, taken_at)


@dataclass(frozen=True)
class _Frame:
    """The frame in which a file stores its pixels; boxes are left, top, right and bottom edges."""

    width: int
    height: int
    orientation: int

    def upright(self, size: tuple[int, int]) -> tuple[int, int]:
        """Carry a width and a height from one frame to the other; it is the same either way."""
        return size if self.orientation < 5 else (size[1], size[0])

    def to_stored(self, box: Box) -> Box:
        """Carry a box from the upright frame to the stored one."""
        left, top, right, bottom = box
        if self.orientation >= 5:
            left, top, right, bottom = top, left, bottom, right
        if self.orientation in (2, 3, 7, 8):
            left, right = self.width - right, self.width - left
        if self.orientation in (3, 4, 6, 7):
            top, bottom = self.height - bottom, self.height - top
        return left, top, right, bottom


def _scale_down(image: PIL.Image.Image, box: Box, target: tuple[int, int]) -> int:
    """Have a JPEG decoded 2, 4 or 8 times smaller where `box` keeps twice the resolution of `target`."""
    reserve = min((box[2] - box[0]) / target[0], (box[3] - box[1]) / target[1]) / _OVERSAMPLING
    scale = next((scale for scale in (8, 4, 2) if scale <= reserve), 1)
    if scale > 1:
        image.draft(None, (image.width // scale, image.height // scale))
    return scale


def _resize(
    image: PIL.Image.Image, box: Box, placed: Placement, *, frame: _Frame, seen: Box, scale: int
) -> PIL.Image.Image:
    """Resize `box` of the stored frame, of which `image` is a copy `scale` times smaller; sees only `seen`.

    The upright horizontal goes first, unless that alone would enlarge the image. Left to itself, Pillow takes
    the direction that is cheaper, and the rounding in between would depend on orientation and version.
    """
    width, height = frame.upright((placed.width, placed.height))
    x0, y0, x1, y1 = (edge / scale for edge in box)
    left, right = _read_by(x0, x1, width, (seen[0] / scale, seen[2] / scale))
    top, bottom = _read_by(y0, y1, height, (seen[1] / scale, seen[3] / scale))
    if (left, top, right, bottom) != (0, 0, *image.size):
        image = image.crop((left, top, right, bottom))
    rgb = _to_rgb(image)
    x0, x1 = max(x0 - left, 0.0), min(x1 - left, rgb.width)
    y0, y1 = max(y0 - top, 0.0), min(y1 - top, rgb.height)
    enlarges_x, enlarges_y = width > x1 - x0, height > y1 - y0
    if enlarges_y if enlarges_x != enlarges_y else frame.orientation < 5:
        rgb = rgb.resize((width, rgb.height), Resampling.BICUBIC, box=(x0, 0, x1, rgb.height))
        return rgb.resize((width, height), Resampling.BICUBIC, box=(0, y0, width, y1))
    rgb = rgb.resize((rgb.width, height), Resampling.BICUBIC, box=(0, y0, rgb.width, y1))
    return rgb.resize((width, height), Resampling.BICUBIC, box=(x0, 0, x1, height))


def _read_by(start: float, stop: float, count: int, limits: tuple[float, float]) -> tuple[int, int]:
    """Return the first pixel, and the one after the last, that `count` bicubic samples of a stretch read."""
    reach = 2 * max((stop - start) / count, 1.0) + 1
    return math.floor(max(start - reach, limits[0])), math.ceil(min(stop + reach, limits[1]))


def _turn(image: PIL.Image.Image, orientation: int) -> PIL.Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert any mode to RGB of 8 bits; what is transparent becomes white."""
    if image.mode == "F":
        raise ImageError(
            "its pixels are floating-point numbers, which have no fixed white",
            hint="convert it to 8 or 16 bits per channel first",
        )
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale grey of 16 bits, 0 to 65535, to 0 to 255, rounded to nearest; Pillow itself would clip it."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(f"its pixels are integers from {low} to {high}; wanted at most 16 bits, 0 to 65535")
    return PIL.Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


@contextmanager
def _opened(source: Source, max_pixels: int) -> Iterator[PIL.Image.Image]:
    """Yield the image, and give every failure in the block the name of the source."""
    try:
        with quiet:
            if isinstance(source, PIL.Image.Image):
                yield _checked(source)
            elif isinstance(source, np.ndarray):
                yield _checked(_from_array(source))
            else:
                encoded = source if isinstance(source, bytes) else Path(source)
                with open_encoded(encoded, max_pixels=max_pixels) as image:
                    yield _checked(image)
    except ImageError as error:
        raise ImageError(f"{_name(source)}: {error.message}", hint=error.hint) from error
    except KitError:
        raise
    except Exception as error:  # codecs raise anything on damaged files
        raise ImageError(f"{_name(source)}: {_explain(error)}") from error


def _name(source: Source) -> str:
    if isinstance(source, (str, Path)):
        return os.fspath(source)
    return {bytes: "the bytes given", np.ndarray: "the array given"}.get(type(source), "the image given")


def _explain(error: Exception) -> str:
    """Say in one line what an exception of the file system or of a codec means for the user."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PIL.Image.DecompressionBombError):
        return f"too large: {str(error).partition(',')[0]}"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, PIL.UnidentifiedImageError):
        return "damaged: its header cannot be read"
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be read: {error.strerror}"
    detail = str(error).partition("\n")[0] or type(error).__name__
    return f"damaged or truncated ({detail})"


def _checked(image: PIL.Image.Image) -> PIL.Image.Image:
    if 0 in image.size:
        raise ImageError("the image has no pixels")
    return image


def _from_array(array: np.ndarray) -> PIL.Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(f"it is {array.dtype} {array.shape}; wanted RGB as uint8 (height, width, 3)")
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _read_exif(image: PIL.Image.Image) -> tuple[int, str | None]:
    """Return the orientation and the time of the photo; broken EXIF counts as none."""
    try:
        exif = image.getexif()
        orientation = exif.get(Base.Orientation, 1)
    except Exception:  # a good image may carry any rubbish here
        return 1, None
    orientation = orientation if isinstance(orientation, int) and orientation in _UPRIGHT else 1
    try:
        original = exif.get_ifd(IFD.Exif).get(Base.DateTimeOriginal)
    except Exception:
        original = None
    return orientation, _to_iso(original) or _to_iso(exif.get(Base.DateTime))


def _to_iso(stamp: object) -> str | None:
    """Convert "2024:05:31 14:03:59" of EXIF to ISO 8601; an unset or impossible time is None."""
    digits = re.sub(r"\D", "", stamp)[:14] if isinstance(stamp, str) else ""
    if len(digits) < 14:
        return None
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S").isoformat(timespec="seconds")
    except ValueError:
        return None
