"""Pictures of dense flow: an image under it, its directions as colours, and what it does to a grid of lines.

A flow holds (u, v) for every pixel of image 0: pixel (x, y) lies at (x + u, y + v) in image 1. NaN is
unknown.
"""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dinov2kit.drawing import (
    BLACK,
    DIM,
    GAP,
    MARGIN,
    PAPER,
    SUBPIXEL,
    UNKNOWN,
    Color,
    Panel,
    as_color,
    draw_line,
    lay_out,
    text_width,
    viridis,
    write,
    write_title,
)
from dinov2kit.errors import ArgumentError
from dinov2kit.shapes import Image, Keypoints

BLEND = 0.5  # share of image 1 where the certainty is 1
ARROWS = 18  # along the longer side
LINES = 16  # cells of the grid along the longer side
STEPS = 8  # places at which the flow is read along the side of a cell
JUMP = 0.5  # side of a cell; a line breaks where two such places lie further apart
USUAL = 99  # percentile of the lengths that counts as the longest
SHORTEST = 0.1  # pixels that can count as the longest; below, there is no motion
WHEEL = 64  # diameter of the legend of `flow_colors`, in pixels


def draw_warp(
    image0: UInt8[np.ndarray, "height width 3"],
    warped1: UInt8[np.ndarray, "_ _ 3"],
    certainty: Float32[np.ndarray, "_ _"],
    *,
    max_side: int = 1600,
    title: str = "",
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw image 0, image 1 laid over it, and image 1 alone, all as image 0 sees them.

    Args:
        image0: the original image 0, RGB.
        warped1: image 1 warped into image 0, of the same size.
        certainty: of the warp, in [0, 1]; where it is 1, image 1 covers half of image 0. Where it is 0 or
            NaN, image 0 stays alone, and image 1 alone is grey.
        max_side: longer side of the three images together, in pixels.
        title: one line above the images.

    Raises:
        ArgumentError: the three have not the same size.
    """
    _check_size("warped image", warped1, image0)
    _check_size("certainty", certainty, image0)
    share = np.clip(np.nan_to_num(certainty), 0, 1)[..., None]
    both = np.rint(image0 + BLEND * share * (warped1.astype(np.float32) - image0)).astype(np.uint8)
    alone = np.where(share > 0, warped1, np.array(UNKNOWN, np.uint8))
    captions = ["image 0", "image 1 over image 0, where certain", "image 1 as image 0 sees it"]
    sheet, _ = lay_out([[image0, both, alone]], [captions], max_side=max_side)
    write_title(sheet, title)
    return sheet


def draw_flow(
    image0: UInt8[np.ndarray, "height width 3"],
    flow: Float32[np.ndarray, "_ _ 2"],
    *,
    max_side: int = 1600,
    title: str = "",
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw a flow as arrows on image 0, and as colours, with the wheel that explains them.

    Args:
        image0: the original image 0, RGB.
        flow: (u, v) in pixels of image 0; grey where it is NaN.
        max_side: longer side of the two images together, in pixels.
        title: one line above the images.

    Raises:
        ArgumentError: the flow has not the size of the image.
    """
    _check_size("flow", flow, image0)
    lengths = np.linalg.norm(flow[np.isfinite(flow).all(axis=2)], axis=1)
    longest = max(float(np.percentile(lengths, USUAL)), SHORTEST) if len(lengths) else 1.0
    spacing = max(image0.shape[:2]) / ARROWS
    times = _round_down(1.2 * spacing / longest)
    captions = [f"arrows, {times:g} times as long as the flow", "direction and length as colours"]
    if len(lengths) < flow[..., 0].size:
        captions[1] += "; grey is unknown"
    sheet, [[panel0, panel1]] = lay_out([[image0, image0]], [captions], max_side=max_side, strip=WHEEL + 20)
    places = np.rint(panel1.grid.centers()).astype(np.int64)
    x, y = np.clip(places, 0, np.array(flow.shape[1::-1]) - 1).T
    panel1.part(sheet)[:] = flow_colors(flow[y, x], longest).reshape(panel1.part(sheet).shape)
    top, left = panel1.top - 1, panel1.left - 1
    cv2.rectangle(sheet, (left, top), (left + panel1.grid.cols + 1, top + panel1.grid.rows + 1), UNKNOWN)
    x, y = (np.arange(spacing / 2, side, spacing).astype(np.int64) for side in flow.shape[1::-1])
    starts = np.stack(np.meshgrid(x, y), axis=2).reshape(-1, 2)
    steps = flow[starts[:, 1], starts[:, 0]]
    known = np.isfinite(steps).all(axis=1)
    colors = flow_colors(steps[known], longest)
    for start, step, rgb in zip(starts[known].astype(np.float32), steps[known], colors, strict=True):
        _draw_arrow(sheet, panel0, np.stack([start, start + times * step]), as_color(rgb))
    taken = _draw_wheel(sheet, longest, right=sheet.shape[1] - MARGIN)
    write_title(sheet, title, taken=taken)
    return sheet


def draw_grid(
    image0: UInt8[np.ndarray, "height0 width0 3"],
    image1: UInt8[np.ndarray, "height1 width1 3"],
    flow: Float32[np.ndarray, "_ _ 2"],
    *,
    max_side: int = 1600,
    title: str = "",
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw a regular grid of lines on image 0, and the same lines on image 1 where the flow carries them.

    Lines have the colour of their place in image 0 (viridis, from the left and from the top), so that turned
    and mirrored parts show. They are grey in image 0 and break in image 1 where the flow is unknown; they
    break as well where it jumps.

    Args:
        image0: the original image 0, RGB.
        image1: the original image 1, RGB; both are shown at the same height.
        flow: (u, v) in pixels for every pixel of image 0.
        max_side: longer side of the two images together, in pixels.
        title: one line above the images.

    Raises:
        ArgumentError: the flow has not the size of image 0.
    """
    _check_size("flow", flow, image0)
    sheet, [[panel0, panel1]] = lay_out([[image0, image1]], max_side=max_side)
    spacing = max(image0.shape[:2]) / LINES
    longest_step = max(1.0, JUMP * spacing) * max(1.0, max(image1.shape[:2]) / max(image0.shape[:2]))
    thickness = round(2 * panel0.unit)
    for line, share in _lattice(image0.shape[1], image0.shape[0], spacing):
        places = line.astype(np.float32)
        target = places + flow[line[:, 1], line[:, 0]]
        color = as_color(viridis(np.array([share], np.float32))[0])
        draw_line(panel0.part(sheet), panel0.grid.to_cells(places), UNKNOWN, 1, outlined=False)
        for piece in _unbroken(target, longest_step, image1):
            for panel, points in ((panel0, places), (panel1, target)):
                ends = panel.grid.to_cells(points[piece])
                draw_line(panel.part(sheet), ends, color, thickness, outlined=True)
    write_title(sheet, title)
    return sheet


def flow_colors(flow: Float32[np.ndarray, "*shape 2"], longest: float) -> UInt8[np.ndarray, "*shape 3"]:
    """Return a colour for every flow: the hue is its direction, the saturation its length.

    White stands still; opposite directions have complementary hues; grey is unknown (NaN).

    Args:
        flow: (u, v), x to the right and y down.
        longest: the length that has the full colour; what is longer has it too.

    Source: the idea of Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011,
        with the hues of HSV.
    """
    sixths = np.arctan2(flow[..., 1], flow[..., 0])[..., None] * (3 / np.pi) + np.array([0.0, 4.0, 2.0])
    hue = np.clip(np.abs(sixths % 6 - 3) - 1, 0, 1)
    strength = np.clip(np.linalg.norm(flow, axis=-1, keepdims=True) / longest, 0, 1)
    colors = 255 * (1 - strength * (1 - hue))
    known = np.isfinite(flow).all(axis=-1, keepdims=True)
    return np.asarray(np.rint(np.where(known, colors, np.array(UNKNOWN))), np.uint8)


def _check_size(name: str, field: np.ndarray, image0: Image) -> None:
    if field.shape[:2] != image0.shape[:2]:
        raise ArgumentError(
            f"the {name} has {field.shape[1]}x{field.shape[0]} pixels; "
            f"wanted {image0.shape[1]}x{image0.shape[0]}, as image 0"
        )


def _round_down(factor: float) -> float:
    """Return the next lower one of 1, 2, 3, 5, 10, 20, and so on, or their inverses."""
    power = 10.0 ** np.floor(np.log10(factor))
    return float(power * max(digit for digit in (1, 2, 3, 5) if digit <= factor / power + 1e-9))


def _draw_arrow(sheet: np.ndarray, panel: Panel, ends: Keypoints, color: Color) -> None:
    """Draw an arrow between two pixels of the image, cut off where the panel ends."""
    (x0, y0), (x1, y1) = np.rint(panel.grid.to_cells(ends) * 2**SUBPIXEL).astype(int).tolist()
    for thickness, paint in ((4, BLACK), (2, color)):
        width = round(thickness * panel.unit)
        part = panel.part(sheet)
        cv2.arrowedLine(part, (x0, y0), (x1, y1), paint, width, cv2.LINE_AA, SUBPIXEL, tipLength=0.3)


def _draw_wheel(sheet: np.ndarray, longest: float, *, right: int) -> int:
    """Draw the legend of the colours so that it ends at `right`; return its width."""
    y, x = np.mgrid[:WHEEL, :WHEEL].astype(np.float32) - (WHEEL - 1) / 2
    steps = np.stack([x, y], axis=2)
    distance = np.linalg.norm(steps, axis=2)
    inside = np.clip(WHEEL / 2 - distance, 0, 1)[..., None]  # a soft rim
    disc = inside * flow_colors(steps, WHEEL / 2) + (1 - inside) * np.array(PAPER)
    sheet[10 : 10 + WHEEL, right - WHEEL : right] = np.rint(disc)
    text = f"rim: {longest:.3g} px"
    width = WHEEL + GAP + text_width(text, 15, 400)
    write(sheet, text, (right - width, 10 + WHEEL // 2 + 5), 15, 400, DIM)
    return width


def _lattice(width: int, height: int, spacing: float) -> list[tuple[np.ndarray, float]]:
    """Return the pixels along every line of a grid, and its place between the first and last line."""
    lines = []
    sides = (width, height)
    for across in (0, 1):  # lines that follow each other along x, then along y
        cells = [max(1, round(side / spacing)) for side in sides]
        offsets = np.unique(np.rint(np.linspace(0, sides[across] - 1, cells[across] + 1)).astype(np.int64))
        along = np.unique(np.rint(np.linspace(0, sides[1 - across] - 1, cells[1 - across] * STEPS + 1)))
        for offset in offsets:
            line = np.full((len(along), 2), offset)
            line[:, 1 - across] = along
            lines.append((line, float(offset) / max(1, sides[across] - 1)))
    return lines


def _unbroken(target: Keypoints, longest_step: float, image1: Image) -> list[slice]:
    """Return the pieces of a line on image 1 that are known, without jumps, and not far off the image."""
    size = np.array(image1.shape[1::-1])
    near = np.all((target > -size) & (target < 2 * size), axis=1)  # False where it is NaN
    steps = np.linalg.norm(np.diff(target, axis=0), axis=1)
    joined = near[1:] & near[:-1] & (steps <= longest_step)
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], joined, [False]]))).reshape(-1, 2)
    return [slice(start, end + 1) for start, end in bounds.tolist()]
