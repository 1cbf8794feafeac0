"""Patch grid <-> pixels of the original image: the only home of the half pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32

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

    @property
    def n_patches(self) -> int:
        """Number of patches."""
        return self.rows * self.cols

    @property
    def patch_px(self) -> tuple[float, float]:
        """Width and height of one patch in pixels of the original image."""
        return self.patch_size / self.scale_x, self.patch_size / self.scale_y

    def to_cells(self, pixels: Keypoints) -> Keypoints:
        """Convert (x, y) from the pixel frame to the cell frame."""
        scale, offset = self._affine()
        return np.asarray(((pixels + 0.5) * scale + offset) / self.patch_size - 0.5, np.float32)

    def to_pixels(self, cells: Keypoints) -> Keypoints:
        """Convert (x, y) from the cell frame to the pixel frame; the inverse of `to_cells`."""
        scale, offset = self._affine()
        return np.asarray(((cells + 0.5) * self.patch_size - offset) / scale - 0.5, np.float32)

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
