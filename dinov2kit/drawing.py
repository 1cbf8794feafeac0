"""What pictures are made of: sheets with images side by side, colours, lines, marks and text.

Everything is drawn in place with OpenCV on RGB. A place on a sheet is (x, y) in pixels of the sheet, and the
centre of its first pixel is (0, 0). OpenCV 5 writes Unicode with its built-in fonts.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float32, Int32, UInt8

from dinov2kit.grid import PatchGrid
from dinov2kit.shapes import Image, Keypoints

Color = tuple[int, int, int]

PAPER, INK, DIM, SHADE, ACCENT = (
    (255, 255, 255),
    (24, 24, 27),
    (113, 113, 122),
    (240, 240, 243),
    (37, 99, 235),
)
BLACK: Color = (0, 0, 0)
UNKNOWN: Color = (160, 160, 160)  # where a dense picture has nothing to show

# The palette of Okabe and Ito, "Color Universal Design", 2002; white replaces its black, as rings are black.
PALETTE: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (255, 255, 255),
)
SUBPIXEL = 4  # fractional bits of drawn coordinates
MARGIN, GAP, STRIP, FOOT = 20, 12, 56, 44  # around a sheet, between images, for the title, for captions
LEAST_SHEET, LEAST_COLUMN = 480, 160  # so that a title, and a caption, find room
CAPITALS = 0.75  # height of a capital or digit as a share of the size of its text


@dataclass(frozen=True)
class Panel:
    """Where a whole image is shown on a sheet.

    Attributes:
        left: its first column on the sheet.
        top: its first row on the sheet.
        grid: the image, cut into one cell for every pixel of the sheet that shows it.
    """

    left: int
    top: int
    grid: PatchGrid

    @property
    def unit(self) -> float:
        """Thickness of a thin line, in pixels of the sheet."""
        return max(1.0, self.grid.rows / 500)

    def on_sheet(self, points: Keypoints) -> Keypoints:
        """Return where pixels of the image lie on the sheet."""
        return self.grid.to_cells(points) + np.array([self.left, self.top], np.float32)

    def part(self, sheet: np.ndarray) -> np.ndarray:
        """Return the part of the sheet that shows the image; what is drawn on it is drawn on the sheet."""
        return sheet[self.top : self.top + self.grid.rows, self.left : self.left + self.grid.cols]


def lay_out(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]],
    captions: Sequence[Sequence[str]] = (),
    *,
    max_side: int,
    strip: int = STRIP,
) -> tuple[np.ndarray, list[list[Panel]]]:
    """Show images in rows, all of them at the same height; return the sheet and the panels, row by row.

    Args:
        rows: the images; small ones are enlarged.
        captions: for every row one line of text for each image, or no text.
        max_side: longer side of all images together, in pixels.
        strip: height of the empty space above, where the title goes.
    """
    captions = captions or [()] * len(rows)
    least = LEAST_COLUMN if any(captions) else 1
    height = max(1, fitting_height(rows, max_side=max_side, least=least))
    widths = [_widths(row, height, max_side) for row in rows]
    widest = max(_extent(row, least) for row in widths)
    feet = [FOOT if texts else GAP for texts in captions]
    feet[-1] = max(feet[-1], MARGIN)
    size = strip + height * len(rows) + sum(feet), max(widest + 2 * MARGIN, LEAST_SHEET)
    sheet = np.full((*size, 3), PAPER, np.uint8)
    panels, top = [], strip
    for row, texts, spans, foot in zip(rows, captions, widths, feet, strict=True):
        placed, left = [], MARGIN
        for image, width, text in zip(row, spans, texts or [""] * len(row), strict=True):
            placed.append(_show(sheet, image, left, top, width, height))
            room = max(width, least) if len(placed) < len(row) else size[1] - MARGIN - left
            write(sheet, fit(text, room, 15, 400), (left, top + height + 22), 15, 400, DIM)
            left += max(width, least) + GAP
        panels.append(placed)
        top += height + foot
    return sheet, panels


def fitting_height(
    rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]], *, max_side: int, least: int = LEAST_COLUMN
) -> int:
    """Return the largest height of all images that `max_side` allows; 0 where there is none.

    Args:
        rows: the images.
        max_side: longer side of all images together, in pixels.
        least: what an image takes of the width of its row at least, in pixels.
    """
    highest = max(LEAST_SHEET, *(len(image) for row in rows for image in row))
    highest = min(highest, (max_side - GAP * (len(rows) - 1)) // len(rows))

    def widest(height: int) -> int:
        return max(_extent(_widths(row, height, sys.maxsize), least) for row in rows)

    return bisect_right(range(1, max(0, highest) + 1), max_side, key=widest)


def _widths(row: Sequence[UInt8[np.ndarray, "_ _ 3"]], height: int, max_side: int) -> list[int]:
    """Return how wide the images of a row are; squeezed where even one line of pixels is too wide."""
    widths = [max(1, round(height * image.shape[1] / image.shape[0])) for image in row]
    squeeze = min(1.0, (max_side - GAP * (len(row) - 1)) / sum(widths))
    return [max(1, int(width * squeeze)) for width in widths]


def _extent(widths: Sequence[int], least: int) -> int:
    """Return how wide a row is when no image takes less than `least`."""
    return sum(max(width, least) for width in widths) + GAP * (len(widths) - 1)


def _show(sheet: np.ndarray, image: Image, left: int, top: int, width: int, height: int) -> Panel:
    grid = PatchGrid(
        rows=height,
        cols=width,
        patch_size=1,
        width=image.shape[1],
        height=image.shape[0],
        scale_x=width / image.shape[1],
        scale_y=height / image.shape[0],
    )
    panel = Panel(left, top, grid)
    panel.part(sheet)[:] = resize(image, width, height)
    return panel


def resize(image: Image, width: int, height: int) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """Return the image with this size in pixels."""
    smaller = width * height < image.shape[0] * image.shape[1]
    shape = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=shape), np.uint8)


def viridis(shares: Float32[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Return colours for shares in [0, 1]: viridis without its darkest fifth, which photos swallow."""
    levels = np.arange(51, 256, dtype=np.uint8).reshape(-1, 1)
    table = np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS))[:, 0, ::-1]
    return np.asarray(table[np.rint(204 * np.clip(shares, 0, 1)).astype(np.int64)], np.uint8)


def as_color(rgb: np.ndarray) -> Color:
    """Return a colour that OpenCV takes."""
    red, green, blue = rgb
    return int(red), int(green), int(blue)


def draw_line(
    sheet: np.ndarray, ends: Float32[np.ndarray, "n 2"], color: Color, thickness: int, *, outlined: bool
) -> None:
    """Draw straight lines from place to place, on black when `outlined`."""
    places = [_subpixels(ends).reshape(-1, 1, 2)]
    if outlined:
        cv2.polylines(sheet, places, False, BLACK, thickness + 2, cv2.LINE_AA, SUBPIXEL)
    cv2.polylines(sheet, places, False, color, max(1, thickness), cv2.LINE_AA, SUBPIXEL)


def draw_dot(sheet: np.ndarray, center: Float32[np.ndarray, " 2"], color: Color, radius: float) -> None:
    """Draw a disc in a black ring, 2 pixels wide."""
    x, y = _subpixels(center).tolist()
    for reach, paint in ((radius + 2, BLACK), (radius, color)):
        cv2.circle(sheet, (x, y), round(reach * 2**SUBPIXEL), paint, cv2.FILLED, cv2.LINE_AA, SUBPIXEL)


def draw_ring(sheet: np.ndarray, center: Float32[np.ndarray, " 2"], color: Color, radius: float) -> None:
    """Draw a ring, black on both sides, that leaves what lies inside it visible."""
    x, y = _subpixels(center).tolist()
    for thickness, paint in ((5, BLACK), (2, color)):
        cv2.circle(sheet, (x, y), round(radius * 2**SUBPIXEL), paint, thickness, cv2.LINE_AA, SUBPIXEL)


def draw_star(sheet: np.ndarray, center: Float32[np.ndarray, " 2"], color: Color, radius: float) -> None:
    """Draw a star with five points and a black outline."""
    angles = np.pi * (np.arange(10) / 5 - 0.5)
    reach = radius * np.where(np.arange(10) % 2, 0.42, 1.0)
    corners = center + np.stack([np.cos(angles), np.sin(angles)], axis=1) * reach[:, None]
    places = [_subpixels(corners.astype(np.float32)).reshape(-1, 1, 2)]
    cv2.polylines(sheet, places, True, BLACK, 5, cv2.LINE_AA, SUBPIXEL)
    cv2.fillPoly(sheet, places, color, cv2.LINE_AA, SUBPIXEL)


def write_labels(
    sheet: np.ndarray, panel: Panel, places: Keypoints, labels: Sequence[str], radius: float
) -> None:
    """Write a label beside each place, where it covers least of the other labels and marks.

    All of it stays on the panel; where the panel is too small for a label, there is none.

    Args:
        sheet: what to write on.
        panel: the image to which the places belong.
        places: in pixels of the sheet.
        labels: one text for every place, or an empty one.
        radius: how much room the mark at each place takes, in pixels.
    """
    size = round(14 * panel.unit)
    start = np.array([panel.left, panel.top])
    taken = [np.array([*(place - radius), *(place + radius)]) for place in places]
    for (x, y), text in zip(places, labels, strict=True):
        short = fit(text, panel.grid.cols // 2, size, 600)
        width, height, off = text_width(short, size, 600) + 10, size + 6, radius + 3
        room = np.array([panel.grid.cols - width, panel.grid.rows - height])
        if not short or room.min() < 0:
            continue
        corners = [
            (x + off, y - height / 2),
            (x - off - width, y - height / 2),
            (x - width / 2, y - off - height),
            (x - width / 2, y + off),
        ]
        inside = [np.clip(np.rint(corner), start, start + room) for corner in corners]
        boxes = [np.concatenate([corner, corner + np.array([width, height])]) for corner in inside]
        costs = [sum(_shared(box, other) for other in taken) for box in boxes]
        taken.append(boxes[int(np.argmin(costs))])
        left, top, right, bottom = (int(v) for v in taken[-1])
        under = sheet[top:bottom, left:right]
        under[:] = (0.25 * under + 0.75 * np.array(INK)).astype(np.uint8)
        baseline = round((top + bottom + CAPITALS * size) / 2)
        write(sheet, short, (left + 5, baseline), size, 600, PAPER)


def _shared(box: np.ndarray, other: np.ndarray) -> float:
    """Return the area that two boxes (left, top, right, bottom) have in common."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    return float(np.prod(np.maximum(sides, 0)))


def shares_of(values: Float32[np.ndarray, "*shape"]) -> tuple[Float32[np.ndarray, "*shape"], float, float]:
    """Return the values as shares of their span, and its ends; where all are the same, the shares are 1.

    Values that are not finite become the share 0.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if high <= low:
        return np.isfinite(values).astype(np.float32), low, high
    shares = np.where(np.isfinite(values), (values - low) / (high - low), 0)
    return shares.astype(np.float32), low, high


def draw_color_bar(sheet: np.ndarray, name: str, low: float, high: float, *, right: int) -> int:
    """Draw the legend of `viridis` in the title strip so that it ends at `right`; return its width."""
    first, last, length = f"{name} {low:.2f}", f"{high:.2f}", 96
    last_width, first_width = text_width(last, 15, 400), text_width(first, 15, 400)
    width = first_width + last_width + length + 16
    write(sheet, first, (right - width, 34), 15, 400, DIM)
    write(sheet, last, (right - last_width, 34), 15, 400, DIM)
    left = right - last_width - 8 - length
    sheet[24:36, left : left + length] = viridis(np.linspace(0, 1, length, dtype=np.float32))
    return width


def write_title(sheet: np.ndarray, title: str, *, taken: int = 0) -> None:
    """Write the title above the images; a legend takes the last `taken` pixels of the line."""
    room = sheet.shape[1] - 2 * MARGIN - (taken + 16 if taken else 0)
    write(sheet, fit(title, room, 20, 600), (MARGIN, 36), 20, 600, INK)


def write(
    sheet: np.ndarray, text: str, origin: tuple[int, int], size: int, weight: int, color: Color
) -> None:
    """Write one line of text; `origin` is the left end of its baseline."""
    if text:
        cv2.putText(sheet, text, origin, color, cv2.FontFace("sans"), size, weight)


def text_width(text: str, size: int, weight: int) -> int:
    """Return how wide a line of text is, in pixels."""
    box = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), size, weight)
    return int(box[2])


def fit(text: str, width: int, size: int, weight: int) -> str:
    """Shorten text to a width in pixels: an ellipsis in the middle, so that the end of a file name stays."""
    text = " ".join(text.encode("utf-8", "replace").decode().split())
    if not text or text_width(text, size, weight) <= width:
        return text

    def shortened(kept: int) -> str:
        return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"

    lengths = range(2, len(text))
    fitting = bisect_right(lengths, width, key=lambda kept: text_width(shortened(kept), size, weight))
    return shortened(lengths[fitting - 1]) if fitting else "…"


def _subpixels(places: Float32[np.ndarray, "*shape"]) -> Int32[np.ndarray, "*shape"]:
    return np.asarray(np.round(places * 2**SUBPIXEL), np.int32)
