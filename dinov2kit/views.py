"""How an image becomes network pixels: which part of it, at which size.

Everything here is geometry in pixels of the EXIF-upright original, with edges instead of centres: the whole
image is the box (0, 0, width, height).
"""

from __future__ import annotations

from dataclasses import dataclass

from dinov2kit.errors import ArgumentError
from dinov2kit.grid import PatchGrid

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MIN_PATCHES = 4  # per side: fewer leave nothing to match

_DECODE_RULES = {  # part of the model identity: raise `version` when the pixels of any image change
    "version": 1,
    "interpolation": "bicubic-antialias",
    "jpeg": "dct-scaled-2x",
    "alpha": "over-white",
    "mean": list(IMAGENET_MEAN),
    "std": list(IMAGENET_STD),
}


@dataclass(frozen=True)
class Placement:
    """One resize: the part of the original inside `box` becomes `width` x `height` network pixels.

    Attributes:
        box: left, top, right and bottom edge in upright original pixels.
        width: width of the result, in pixels.
        height: height of the result, in pixels.
    """

    box: tuple[float, float, float, float]
    width: int
    height: int


@dataclass(frozen=True)
class Region:
    """A rectangle of the upright original; nothing outside it is seen.

    Attributes:
        left: left edge; 0 is the left edge of the image.
        top: top edge; 0 is the top edge of the image.
        width: width of the rectangle.
        height: height of the rectangle.
        relative: False: all four are pixels; True: all four are fractions, 0 to 1, of the image's sides.
    """

    left: int | float
    top: int | float
    width: int | float
    height: int | float
    relative: bool = False

    def box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return the left, top, right and bottom edge in whole pixels of an image of this size.

        Raises:
            ArgumentError: the rectangle is empty or reaches beyond the image.
        """
        unit_x, unit_y = (width, height) if self.relative else (1, 1)
        left, right = round(self.left * unit_x), round((self.left + self.width) * unit_x)
        top, bottom = round(self.top * unit_y), round((self.top + self.height) * unit_y)
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            asked = f"{self.left:g},{self.top:g},{self.width:g},{self.height:g}"
            raise ArgumentError(
                f"region {asked} is empty or reaches beyond the image of {width}x{height} pixels",
                hint="give left, top, width and height, all inside the upright image",
            )
        return left, top, right, bottom


@dataclass(frozen=True)
class CenterCrop:
    """The standard protocol for global descriptors: shorter side to `resize`, `crop` square from the middle.

    Attributes:
        resize: length of the shorter side before the crop, in pixels.
        crop: side of the square, in pixels.

    Raises:
        ArgumentError: the crop is larger than the resized image.

    Source: evaluation transform of Oquab et al., "DINOv2", 2023: resize 256 bicubic, centre crop 224.
    """

    resize: int = 256
    crop: int = 224

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise ArgumentError(f"cannot crop {self.crop} pixels from a shorter side of {self.resize}")

    def place(self, width: int, height: int) -> Placement:
        """Return the resize that equals "resize the whole image, then crop" for an image of this size.

        The crop starts at a whole pixel of the resized image, rounded half to even, as torchvision does it;
        the middle of the original is up to half a resized pixel away from the middle of the box.
        """
        short, long = min(width, height), max(width, height)
        resized_long = int(self.resize * long / short)
        resized = (self.resize, resized_long) if width <= height else (resized_long, self.resize)
        left, top = (round((side - self.crop) / 2) for side in resized)
        unit_x, unit_y = width / resized[0], height / resized[1]
        box = (left * unit_x, top * unit_y, (left + self.crop) * unit_x, (top + self.crop) * unit_y)
        return Placement(box, self.crop, self.crop)

    def describe(self) -> dict[str, object]:
        """Return everything that changes the pixels, ready for JSON."""
        return {"view": "center-crop", "resize": self.resize, "crop": self.crop, **_DECODE_RULES}


@dataclass(frozen=True)
class KeepAspect:
    """The view for local descriptors: the whole image, both sides rounded to multiples of the patch.

    Attributes:
        size: length of the longer side, in pixels, before rounding.
        patch_size: side of a patch, in pixels.

    Raises:
        ArgumentError: the longer side has fewer than four patches.
    """

    size: int = 518
    patch_size: int = 14

    def __post_init__(self) -> None:
        if self.patch_size < 1 or self.size < MIN_PATCHES * self.patch_size:
            raise ArgumentError(
                f"size {self.size} is too small for patches of {self.patch_size} pixels; "
                f"wanted at least {MIN_PATCHES * self.patch_size}"
            )

    def place(self, width: int, height: int) -> Placement:
        """Return the resize of the whole image; each side has at least four patches."""
        grid = self.grid(width, height)
        box = (0.0, 0.0, float(width), float(height))
        return Placement(box, grid.cols * self.patch_size, grid.rows * self.patch_size)

    def grid(self, width: int, height: int) -> PatchGrid:
        """Return where the patches lie in an original of this size, in pixels."""
        scale = self.size / max(width, height)
        cols = max(MIN_PATCHES, round(width * scale / self.patch_size))
        rows = max(MIN_PATCHES, round(height * scale / self.patch_size))
        return PatchGrid(
            rows=rows,
            cols=cols,
            patch_size=self.patch_size,
            width=width,
            height=height,
            scale_x=cols * self.patch_size / width,
            scale_y=rows * self.patch_size / height,
        )

    def describe(self) -> dict[str, object]:
        """Return everything that changes the pixels, ready for JSON."""
        return {"view": "keep-aspect", "size": self.size, "patch_size": self.patch_size, **_DECODE_RULES}


@dataclass(frozen=True)
class Letterbox:
    """The whole image, fitted into a square and centred; the rest of the square is padding.

    Attributes:
        size: side of the square, in pixels; a multiple of the patch.
        patch_size: side of a patch, in pixels.

    Raises:
        ArgumentError: the square has fewer than four patches a side, or is no multiple of the patch.

    Source: the evaluation of Zhang et al., "A Tale of Two Features" (sd-dino), 2023.
    """

    size: int = 518
    patch_size: int = 14

    def __post_init__(self) -> None:
        _check_square(self.size, self.patch_size)

    def place(self, width: int, height: int) -> Placement:
        """Return the resize of the whole image, without the padding."""
        scale = self.size / max(width, height)
        fitted = (max(1, round(side * scale)) for side in (width, height))
        return Placement((0.0, 0.0, float(width), float(height)), *fitted)

    def grid(self, width: int, height: int) -> PatchGrid:
        """Return where the patches lie in an original of this size; the outer ones may lie on padding."""
        placed = self.place(width, height)
        return PatchGrid(
            rows=self.size // self.patch_size,
            cols=self.size // self.patch_size,
            patch_size=self.patch_size,
            width=width,
            height=height,
            scale_x=placed.width / width,
            scale_y=placed.height / height,
            offset_x=float((self.size - placed.width) // 2),
            offset_y=float((self.size - placed.height) // 2),
        )

    def describe(self) -> dict[str, object]:
        """Return everything that changes the pixels, ready for JSON."""
        return {"view": "letterbox", "size": self.size, "patch_size": self.patch_size, **_DECODE_RULES}


@dataclass(frozen=True)
class Squash:
    """The whole image made square, its aspect ratio lost.

    Attributes:
        size: side of the square, in pixels; a multiple of the patch.
        patch_size: side of a patch, in pixels.

    Raises:
        ArgumentError: the square has fewer than four patches a side, or is no multiple of the patch.

    Source: the evaluation of Tang et al., "Emergent Correspondence from Image Diffusion" (DIFT), 2023.
    """

    size: int = 518
    patch_size: int = 14

    def __post_init__(self) -> None:
        _check_square(self.size, self.patch_size)

    def place(self, width: int, height: int) -> Placement:
        """Return the resize of the whole image."""
        return Placement((0.0, 0.0, float(width), float(height)), self.size, self.size)

    def grid(self, width: int, height: int) -> PatchGrid:
        """Return where the patches lie in an original of this size, in pixels."""
        return PatchGrid(
            rows=self.size // self.patch_size,
            cols=self.size // self.patch_size,
            patch_size=self.patch_size,
            width=width,
            height=height,
            scale_x=self.size / width,
            scale_y=self.size / height,
        )

    def describe(self) -> dict[str, object]:
        """Return everything that changes the pixels, ready for JSON."""
        return {"view": "squash", "size": self.size, "patch_size": self.patch_size, **_DECODE_RULES}


View = CenterCrop | KeepAspect | Letterbox | Squash


def _check_square(size: int, patch_size: int) -> None:
    if patch_size < 1 or size < MIN_PATCHES * patch_size or size % patch_size:
        nearest = max(MIN_PATCHES, round(size / max(1, patch_size))) * max(1, patch_size)
        raise ArgumentError(
            f"a square of {size} pixels cannot be cut into patches of {patch_size}",
            hint=f"use a multiple of the patch, for instance {nearest}",
        )
