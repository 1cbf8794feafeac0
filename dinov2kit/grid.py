"""Patch grid <-> pixels of the original image: the only home of the half pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, Int64

from dinov2kit.errors import MatchError
from dinov2kit.shapes import Keypoints


@dataclass(frozen=True)
class PatchGrid:
    """Where the patches of one encoded image lie in the original image.

    The original image was scaled by (`scale_x`, `scale_y`) and shifted by (`offset_x`, `offset_y`) network
    pixels (positive: padding was added; negative: it was cropped) before it was cut into patches.

    Attributes:
        rows: number of patches from top to bottom.
        cols: number of patches from left to right.
        patch_size: side of a patch in pixels of the network input.
        width: width of the original image, in pixels.
        height: height of the original image, in pixels.
        scale_x: network pixels per original pixel, horizontally.
        scale_y: network pixels per original pixel, vertically.
        offset_x: where the left edge of the original lies in the network input, in network pixels.
        offset_y: where the top edge of the original lies in the network input, in network pixels.
        stride: network pixels from one patch to the next; 0 stands for `patch_size`: no overlap.
    """

    rows: int
    cols: int
    patch_size: int
    width: int
    height: int
    scale_x: float
    scale_y: float
    offset_x: float = 0.0
    offset_y: float = 0.0
    stride: int = 0

    def __post_init__(self) -> None:
        if not self.stride:
            object.__setattr__(self, "stride", self.patch_size)

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return self.rows * self.cols

    @property
    def cell_px(self) -> tuple[float, float]:
        """How far apart neighbouring patches lie in x and y, in pixels of the original image."""
        return self.stride / self.scale_x, self.stride / self.scale_y

    def overlapped(self, stride: int) -> PatchGrid:
        """Return the grid of this image cut into patches `stride` network pixels apart; 0 changes nothing."""
        if stride in (0, self.stride):
            return self
        rows, cols = ((count - 1) * self.stride // stride + 1 for count in (self.rows, self.cols))
        return replace(self, rows=rows, cols=cols, stride=stride)

    def part(self, top: int, left: int, rows: int, cols: int) -> PatchGrid:
        """Return the grid of some neighbouring rows and columns of this one."""
        shift_x, shift_y = left * self.stride, top * self.stride
        offset_x, offset_y = self.offset_x - shift_x, self.offset_y - shift_y
        return replace(self, rows=rows, cols=cols, offset_x=offset_x, offset_y=offset_y)

    def visible(self) -> PatchGrid:
        """Return the part of this grid whose patch centres lie on the original image, not on padding.

        Raises:
            MatchError: there is no such patch.
        """
        inside = self.inside().reshape(self.rows, self.cols)
        rows, cols = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if not len(rows):
            raise MatchError(f"no patch of the {self.rows}x{self.cols} grid has its centre on the image")
        return self.part(int(rows[0]), int(cols[0]), len(rows), len(cols))

    def cell_of(self, cells: Keypoints) -> Int64[np.ndarray, " n"]:
        """Return the row-major index of the patch that each (x, y) in the cell frame is nearest to."""
        col, row = np.rint(cells).astype(np.int64).clip(0, [self.cols - 1, self.rows - 1]).T
        index: np.ndarray = row * self.cols + col
        return index

    def to_cells(self, pixels: Keypoints) -> Keypoints:
        """Convert (x, y) from the pixel frame to the cell frame."""
        scale, offset = self._affine()
        return np.asarray(((pixels + 0.5) * scale + offset - self.patch_size / 2) / self.stride, np.float32)

    def to_pixels(self, cells: Keypoints) -> Keypoints:
        """Convert (x, y) from the cell frame to the pixel frame; the inverse of `to_cells`."""
        scale, offset = self._affine()
        return np.asarray((cells * self.stride + self.patch_size / 2 - offset) / scale - 0.5, np.float32)

    def centers(self) -> Float32[np.ndarray, "n_patches 2"]:
        """Return the (x, y) pixel position of every patch centre, row-major."""
        y, x = np.mgrid[: self.rows, : self.cols]
        return self.to_pixels(np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32))

    def inside(self) -> Bool[np.ndarray, " n_patches"]:
        """Say for every patch whether its centre lies on the original image (not on padding), row-major."""
        return self.contains(self.centers())

    def contains(self, pixels: Keypoints) -> Bool[np.ndarray, " n"]:
        """Say for every (x, y) in the pixel frame whether it lies on the original image; NaN does not."""
        x, y = pixels.T
        on_image: np.ndarray = (x > -0.5) & (y > -0.5) & (x < self.width - 0.5) & (y < self.height - 0.5)
        return on_image

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        scale = np.array([self.scale_x, self.scale_y], np.float64)
        return scale, np.array([self.offset_x, self.offset_y], np.float64)
