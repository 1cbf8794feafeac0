"""Which patches of images show a thing and which its surroundings, without training; or as mask files say.

Scores are per patch that lies on the image; masks are per patch of the whole grid, row-major, and padding is
never foreground.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.images import read_image
from dinov2kit.principal import FLAT, descriptors, principal_axes, visible_cells

LEAST, MOST = 0.02, 0.95  # shares of an image that can be a foreground
SPECK = 0.01  # share of an image under which a connected part is dropped
TIE = 0.1  # the border decides nothing when a share this close to one half of it is foreground: see `_mark`
WHITE = 127  # luminance above which a pixel of a mask file is foreground

Mode = Literal["pca", "class-similarity", "files", "none"]


@dataclass(frozen=True)
class Foreground:
    """Which patches of each image are foreground.

    Attributes:
        masks: one per image over its whole grid, row-major; None: nothing is known, every patch may count.
        mode: how they were found: by the first principal component, by the similarity to the class token,
            from mask files, or not at all.
        shares: share of the patches on each image that is foreground; empty without masks.
        reason: why a better way was not taken, in words; None where it was.
    """

    masks: tuple[Bool[np.ndarray, " _"], ...] | None
    mode: Mode
    shares: tuple[float, ...]
    reason: str | None = None


@dataclass(frozen=True)
class _Frame:
    """The part of a grid that shows the image.

    Attributes:
        grid: the whole grid.
        visible: which of its patches show the image; the other arrays have one entry for each of these.
        border: whether a patch has a neighbour that does not.
        centrality: 1 in the middle of the image, 0 at its edges.
    """

    grid: PatchGrid
    visible: Bool[np.ndarray, " n_patches"]
    border: Bool[np.ndarray, " n"]
    centrality: Float64[np.ndarray, " n"]

    def place(self, chosen: Bool[np.ndarray, " n"]) -> Bool[np.ndarray, " n_patches"]:
        """Return a mask over the whole grid."""
        mask = np.zeros(self.grid.n_patches, bool)
        mask[self.visible] = chosen
        return mask

    def share(self, mask: Bool[np.ndarray, " n_patches"]) -> float:
        """Return which share of the visible patches a mask holds."""
        return float(mask.sum() / self.visible.sum())


def find_foreground(features: Sequence[Features], *, multi: bool = False) -> Foreground:
    """Find what the images have in common against their surroundings: one image, two, or many.

    The first principal component of all descriptors together is cut in two by Otsu's threshold; the side that
    touches the borders of the images less is the foreground. Where that leaves next to nothing or nearly all
    of an image, as it does when the images differ most in their backgrounds, each image is cut by itself at
    the similarity of its patches to its class token. Where that fails as well there is no mask.

    Args:
        features: features of the images, from one model.
        multi: keep every part of a foreground that is no speck, not only the largest of each image.

    Raises:
        ArgumentError: there is no image.
        MatchError: the features come from different models, are not finite, or lie on padding alone.

    Source: Oquab et al., "DINOv2", 2023, section 7.6 (first component); Otsu, "A threshold selection method
        from gray-level histograms", 1979.
    """
    cells = visible_cells(features)
    rows = [part[visible] for part, visible in zip(descriptors(features), cells, strict=True)]
    frames = [_frame(one.grid) for one in features]
    axes = principal_axes(rows, 1)
    if axes.total < FLAT:
        return Foreground(None, "none", (), "all patches have the same descriptor")
    by_component = [axes.scores(part)[:, 0] for part in rows]
    masks = _mark(by_component, frames, jointly=True, multi=multi)
    unfit = _why_unfit(masks, frames, "the first principal component")
    if unfit is None:
        return _found(masks, frames, "pca")
    similar = [
        part @ one.global_descriptor.cpu().numpy().astype(np.float64)
        for part, one in zip(rows, features, strict=True)
    ]
    by_class = [one - one.mean() for one in similar]  # their level differs from image to image
    masks = _mark(by_class, frames, jointly=False, multi=multi)
    also_unfit = _why_unfit(masks, frames, "the similarity to the class token")
    if also_unfit is None:
        return _found(masks, frames, "class-similarity", unfit)
    return Foreground(None, "none", (), f"{unfit}; {also_unfit}")


def otsu_threshold(scores: Float64[np.ndarray, " n"]) -> float:
    """Return the value that splits scores into the two groups with the largest variance between them.

    Every split of the sorted scores is tried, so no histogram has to be chosen; the value lies half-way
    between the two scores that it separates.

    Source: Otsu, "A threshold selection method from gray-level histograms", 1979, equation 18.
    """
    ordered = np.sort(scores)
    if len(ordered) < 2:
        return float(ordered[0])
    below = np.arange(1, len(ordered))
    sums = np.cumsum(ordered - ordered.mean())[:-1]
    split = int((sums**2 / (below * below[::-1])).argmax())
    return float((ordered[split] + ordered[split + 1]) / 2)


def clean_mask(
    mask: Bool[np.ndarray, " n_patches"], grid: PatchGrid, *, multi: bool = False
) -> Bool[np.ndarray, " n_patches"]:
    """Smooth a mask and drop its small parts.

    Each patch follows the majority of the 3 x 3 patches around it that lie on the image, and stays as it is
    where they are even. Then connected parts (sides or corners) under 1 % of the image are dropped, and all
    but the largest one unless `multi`.
    """
    visible = grid.inside().reshape(grid.rows, grid.cols)
    marked = mask.reshape(visible.shape) & visible
    votes, seats = 2 * _sum_around(marked), _sum_around(visible)  # at most 18 and 9: they fit their 8 bits
    smooth = visible & ((votes > seats) | ((votes == seats) & marked))
    _, labels, facts, _ = cv2.connectedComponentsWithStats(smooth.astype(np.uint8), connectivity=8)
    areas = facts[1:, cv2.CC_STAT_AREA]  # label 0 is what is not marked
    kept = np.flatnonzero(areas >= SPECK * visible.sum()) + 1
    if len(kept) and not multi:
        kept = np.array([areas.argmax() + 1])
    clean: np.ndarray = np.isin(labels, kept).ravel()
    return clean


def read_mask(path: Path, grid: PatchGrid) -> Bool[np.ndarray, " n_patches"]:
    """Read a mask drawn on an image: white is foreground.

    A patch is foreground when at least half of its area on the image is. A pixel is white when its luminance
    is above 127 of 255; what is transparent counts as white.

    Args:
        path: an image file of any kind, as large as the upright image that it belongs to.
        grid: where the patches of that image lie.

    Raises:
        ImageError: it cannot be read, or has another size.
    """
    bright = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY) > WHITE
    height, width = bright.shape
    if (width, height) != (grid.width, grid.height):
        raise ImageError(
            f"mask {path} has {width}x{height} pixels; wanted {grid.width}x{grid.height}, as its image has",
            hint="draw the mask on the upright image at full size",
        )
    across = _overlaps(grid.cols, grid.stride, grid.patch_size, grid.offset_x, grid.scale_x, width)
    down = _overlaps(grid.rows, grid.stride, grid.patch_size, grid.offset_y, grid.scale_y, height)
    covered = down @ bright @ across.T
    area = np.outer(down.sum(axis=1), across.sum(axis=1))
    white: np.ndarray = covered >= (0.5 - 1e-9) * area  # sums of fractions of pixels are not exact
    white &= grid.inside().reshape(white.shape)
    return white.ravel()


def read_foreground(paths: Sequence[Path], grids: Sequence[PatchGrid]) -> Foreground:
    """Read one mask file per image, in the order of the images.

    Raises:
        ArgumentError: there are more or fewer files than images.
        ImageError: as `read_mask`.
    """
    if len(paths) != len(grids):
        raise ArgumentError(
            f"got {len(paths)} mask files for {len(grids)} images; wanted one per image, in the same order"
        )
    masks = [read_mask(path, grid) for path, grid in zip(paths, grids, strict=True)]
    return _found(masks, [_frame(grid) for grid in grids], "files")


def _frame(grid: PatchGrid) -> _Frame:
    visible = grid.inside()
    neighbours = _sum_around(visible.reshape(grid.rows, grid.cols)).ravel()
    places = grid.centers()[visible].astype(np.float64)
    low, high = places.min(axis=0), places.max(axis=0)
    reach = (high - low) / 2 + np.array(grid.cell_px) / 2  # from the middle to the outer edges of the patches
    return _Frame(
        grid=grid,
        visible=visible,
        border=neighbours[visible] < 9,
        centrality=(1 - np.abs(places - (low + high) / 2) / reach).prod(axis=1),
    )


def _mark(
    scores: Sequence[Float64[np.ndarray, " _"]], frames: Sequence[_Frame], *, jointly: bool, multi: bool
) -> list[Bool[np.ndarray, " _"]]:
    """Cut scores in two, choose the side that is foreground, and clean it up.

    The scores are turned first so that they are high in the middle of the images: then neither the sign that
    they came with nor a symmetry of their distribution matters. The high side is foreground unless most of
    the border is. What cuts the border does so in runs of ten patches and more, so the 144 patches around a
    grid of 37 x 37 are at most 14 independent witnesses: a share near one half is uncertain by 0.13 for one
    image and by 0.09 for two. Within `TIE` of one half the middle has the last word.

    Args:
        scores: for each image one score per visible patch.
        frames: of the images.
        jointly: one threshold for all images, else one for each.
        multi: as for `find_foreground`.
    """
    joint = np.concatenate(scores)
    if np.concatenate([frame.centrality for frame in frames]) @ joint < 0:
        scores, joint = [-one for one in scores], -joint
    high = [one > otsu_threshold(joint if jointly else one) for one in scores]
    on_border = np.concatenate([side[frame.border] for side, frame in zip(high, frames, strict=True)])
    turned = on_border.mean() > 0.5 + TIE
    return [
        clean_mask(frame.place(~side if turned else side), frame.grid, multi=multi)
        for side, frame in zip(high, frames, strict=True)
    ]


def _why_unfit(masks: Sequence[np.ndarray], frames: Sequence[_Frame], means: str) -> str | None:
    """Say which image has next to no foreground, or next to no background; None where all have both."""
    for index, (mask, frame) in enumerate(zip(masks, frames, strict=True)):
        if not LEAST <= frame.share(mask) <= MOST:
            return f"by {means} {frame.share(mask):.1%} of image {index} would be foreground"
    return None


def _found(
    masks: Sequence[np.ndarray], frames: Sequence[_Frame], mode: Mode, reason: str | None = None
) -> Foreground:
    shares = tuple(frame.share(mask) for frame, mask in zip(frames, masks, strict=True))
    return Foreground(tuple(masks), mode, shares, reason)


def _sum_around(cells: Bool[np.ndarray, "rows cols"]) -> UInt8[np.ndarray, "rows cols"]:
    """Count the true cells among the 3 x 3 around each; there are none outside the grid."""
    return np.asarray(
        cv2.boxFilter(cells.astype(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    )


def _overlaps(
    count: int, stride: int, patch_size: int, offset: float, scale: float, length: int
) -> Float64[np.ndarray, "count length"]:
    """Return how much of each pixel, in one direction, each patch covers: 0 to 1.

    Everything is an edge here: patch i reaches over network pixels i * stride to i * stride + patch_size, and
    pixel j of the original from j to j + 1.
    """
    starts = (np.arange(count)[:, None] * stride - offset) / scale
    pixels = np.arange(length)
    ends = starts + patch_size / scale
    overlaps: np.ndarray = np.minimum(ends, pixels + 1) - np.maximum(starts, pixels)
    return overlaps.clip(min=0)
