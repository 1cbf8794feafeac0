"""Pictures of what the descriptors say: the similarity of one place, and principal components as colours.

The door to every style of picture; lines and dots are drawn in `draw`, dense flow in `flow_pictures`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from dinov2kit.draw import draw_dots, draw_matches
from dinov2kit.drawing import (
    DIM,
    GAP,
    LEAST_COLUMN,
    MARGIN,
    PALETTE,
    PAPER,
    STRIP,
    Panel,
    draw_color_bar,
    draw_ring,
    draw_star,
    fit,
    fitting_height,
    lay_out,
    shares_of,
    viridis,
    write,
    write_title,
)
from dinov2kit.errors import ArgumentError
from dinov2kit.flow_pictures import draw_flow, draw_grid, draw_warp
from dinov2kit.grid import PatchGrid
from dinov2kit.shapes import Image

__all__ = ["draw_dots", "draw_flow", "draw_grid", "draw_heat", "draw_matches", "draw_pca", "draw_warp"]

DARK = 0.4  # brightness of a photo behind what is drawn over it
VEIL = (0.3, 0.58)  # how far the least similar colour covers the photo, and how much further the most similar
CHANNELS = ("red", "green", "blue")


def draw_heat(
    image0: UInt8[np.ndarray, "height0 width0 3"],
    image1: UInt8[np.ndarray, "height1 width1 3"],
    point: Float32[np.ndarray, " 2"],
    similarity: Float32[np.ndarray, "rows cols"],
    grid1: PatchGrid,
    *,
    max_side: int = 1600,
    title: str = "",
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw how similar every place of image 1 is to one point of image 0.

    A star marks the point, a ring the patch of image 1 that is most similar. Image 1 is dark and grey under
    the similarity (viridis, between its lowest and highest), which is interpolated between patch centres.

    Args:
        image0: the original image 0, RGB.
        image1: the original image 1, RGB; both are shown at the same height.
        point: (x, y) in pixels of image 0.
        similarity: cosine of the point to every patch of `grid1`. What is not finite, or lies on padding, has
            no colour.
        grid1: where the patches lie in image 1.
        max_side: longer side of the two images together, in pixels.
        title: one line above the images.

    Raises:
        ArgumentError: the similarity is not that of the grid, or no patch on the image has one.
    """
    if similarity.shape != (grid1.rows, grid1.cols):
        raise ArgumentError(
            f"got a similarity of {similarity.shape} patches; wanted {(grid1.rows, grid1.cols)}, as the grid"
        )
    known = np.isfinite(similarity) & grid1.inside().reshape(similarity.shape)
    if not known.any():
        raise ArgumentError("no patch of image 1 has a similarity to the point")
    visible = np.where(known, similarity, np.float32(np.nan))
    best = grid1.centers()[int(np.nanargmax(visible))]
    captions = [f"query {_in_words(point)}", f"best {_in_words(best)}, cosine {np.nanmax(visible):.2f}"]
    sheet, [[panel0, panel1]] = lay_out([[image0, image1]], [captions], max_side=max_side)
    shares, low, high = shares_of(visible)
    photo = panel1.part(sheet)
    upsampled = _interpolate(np.where(known, shares, np.float32(np.nan)), grid1, panel1)
    cover = np.where(np.isfinite(upsampled), VEIL[0] + VEIL[1] * upsampled, 0)[..., None]
    photo[:] = np.rint((1 - cover) * _darkened(photo) + cover * viridis(np.nan_to_num(upsampled)))
    draw_star(sheet, panel0.on_sheet(point[None])[0], PALETTE[3], 13 * panel0.unit)
    draw_ring(sheet, panel1.on_sheet(best[None])[0], PAPER, 13 * panel1.unit)
    taken = draw_color_bar(sheet, "cosine", low, high, right=sheet.shape[1] - MARGIN)
    write_title(sheet, title, taken=taken)
    return sheet


def draw_pca(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    rgb_maps: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    grids: Sequence[PatchGrid],
    captions: Sequence[str],
    explained: Sequence[float],
    foregrounds: Sequence[Bool[np.ndarray, "_ _"] | None],
    *,
    max_side: int = 1600,
    title: str = "",
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw photos, and below each the colours of its patches, in as many columns as make them largest.

    A single photo has its colours beside it.

    A patch is a plain rectangle where it lies on the photo. Where it is background or lies on padding, the
    photo is dark and grey.

    Args:
        images: the original images, RGB; all are shown at the same height.
        rgb_maps: per image the colours of its patches (rows, cols, 3).
        grids: per image where its patches lie.
        captions: per image one line of text below it.
        explained: share of the variance that red, green and blue hold, in [0, 1].
        foregrounds: per image which patches to colour (rows, cols); None for all.
        max_side: longer side of all images together, in pixels.
        title: one line above the images.

    Raises:
        ArgumentError: there are no images, not one of everything for each, or an array does not fit its grid.
    """
    _check_pca(images, rgb_maps, grids, captions, foregrounds)
    rows, texts = _arrange(images, captions, max_side)
    line = "variance explained: " + ", ".join(
        f"{channel} {share:.0%}" for channel, share in zip(CHANNELS, explained, strict=False)
    )
    strip = STRIP + 24 if title else STRIP
    sheet, panels = lay_out(rows, texts, max_side=max_side, strip=strip)
    painted = panels[0][1:] if len(images) == 1 else [panel for row in panels[1::2] for panel in row]
    for panel, rgb_map, grid, foreground in zip(painted, rgb_maps, grids, foregrounds, strict=True):
        photo = panel.part(sheet)
        row, column, covered = _nearest_cells(grid, panel)
        shown = grid.inside().reshape(grid.rows, grid.cols)
        shown = shown if foreground is None else shown & foreground
        colored = (covered & shown[row, column])[..., None]
        photo[:] = np.where(colored, rgb_map[row, column], np.rint(_darkened(photo)))
    write_title(sheet, title)
    room = sheet.shape[1] - 2 * MARGIN
    write(sheet, fit(line, room, 15, 400), (MARGIN, strip - 20), 15, 400, DIM)
    return sheet


def _check_pca(
    images: Sequence[np.ndarray],
    rgb_maps: Sequence[np.ndarray],
    grids: Sequence[PatchGrid],
    captions: Sequence[str],
    foregrounds: Sequence[np.ndarray | None],
) -> None:
    counts = [len(column) for column in (images, rgb_maps, grids, captions, foregrounds)]
    if not images or len(set(counts)) > 1:
        raise ArgumentError(
            "got {} images, {} maps, {} grids, {} captions and {} foregrounds; "
            "wanted one of each for at least one image".format(*counts)
        )
    for index, (rgb_map, foreground, grid) in enumerate(zip(rgb_maps, foregrounds, grids, strict=True)):
        for patches in (rgb_map, foreground):
            if patches is not None and patches.shape[:2] != (grid.rows, grid.cols):
                raise ArgumentError(
                    f"the colours or the foreground of image {index} have {patches.shape[:2]} patches; "
                    f"wanted {(grid.rows, grid.cols)}, as its grid"
                )


def _arrange(
    images: Sequence[np.ndarray], captions: Sequence[str], max_side: int
) -> tuple[list[Sequence[np.ndarray]], list[Sequence[str]]]:
    """Return the rows of a sheet, and their captions: one image beside itself, several above themselves."""
    if len(images) == 1:
        return [[images[0], images[0]]], [[captions[0], ""]]

    def stacked(columns: int) -> list[Sequence[np.ndarray]]:
        starts = range(0, len(images), columns)
        return [images[start : start + columns] for start in starts for _ in range(2)]

    most = min(len(images), max(1, (max_side + GAP) // (LEAST_COLUMN + GAP)))
    heights = {columns: fitting_height(stacked(columns), max_side=max_side) for columns in range(1, most + 1)}
    columns = max(heights, key=lambda count: (heights[count], count))
    starts = range(0, len(images), columns)
    return stacked(columns), [text for start in starts for text in ((), captions[start : start + columns])]


def _nearest_cells(
    grid: PatchGrid, panel: Panel
) -> tuple[
    Int64[np.ndarray, "height width"], Int64[np.ndarray, "height width"], Bool[np.ndarray, "height width"]
]:
    """Return for every pixel of a panel its nearest patch, as row and column, and whether one covers it."""
    cells = _cells_under(grid, panel)
    column, row = (
        np.clip(np.rint(cells[..., axis]).astype(np.int64), 0, count - 1)
        for axis, count in enumerate((grid.cols, grid.rows))
    )
    reach = grid.patch_size / (2 * grid.stride)
    covered = (np.abs(cells - np.stack([column, row], axis=2)) <= reach).all(axis=2)
    return row, column, covered


def _interpolate(
    values: Float32[np.ndarray, "rows cols"], grid: PatchGrid, panel: Panel
) -> Float32[np.ndarray, "height width"]:
    """Return values between patch centres for every pixel of a panel: bilinear over those that are finite.

    Around the outermost centres their value goes on for the width of a patch; beyond, it is NaN.
    """
    cells = _cells_under(grid, panel)
    known = np.isfinite(values).astype(np.float32)
    total, weight = (
        cv2.remap(part, cells[..., 0], cells[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for part in (np.nan_to_num(values) * known, known)
    )
    reach = max(1.0, grid.patch_size / (2 * grid.stride))
    near = ((cells >= -reach) & (cells <= np.array([grid.cols, grid.rows]) - 1 + reach)).all(axis=2)
    return np.where(near & (weight > 0), total / np.maximum(weight, 1e-6), np.nan).astype(np.float32)


def _cells_under(grid: PatchGrid, panel: Panel) -> Float32[np.ndarray, "height width 2"]:
    """Return where the pixels of a panel lie in the cell frame of a patch grid of the same image."""
    return grid.to_cells(panel.grid.centers()).reshape(panel.grid.rows, panel.grid.cols, 2)


def _darkened(photo: Image) -> Float32[np.ndarray, "height width 3"]:
    """Return a photo in dark grey, so that colours stand out on it."""
    grey = np.asarray(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), np.float32)
    return np.repeat(DARK * grey[..., None], 3, axis=2)


def _in_words(point: Float32[np.ndarray, " 2"]) -> str:
    return f"({round(float(point[0]))}, {round(float(point[1]))})"
