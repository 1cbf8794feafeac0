"""Pictures of results: two images with their matches, and sheets of thumbnails.

Everything is drawn with OpenCV on RGB; OpenCV 5 writes Unicode with its built-in fonts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dinov2kit.errors import ArgumentError
from dinov2kit.files import written_whole
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches
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
SUBPIXEL = 4  # fractional bits of drawn coordinates
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOST_CROPPED = 0.2  # of a photo's area, to fill its tile; otherwise the whole photo is shown


def draw_matches(
    image0: UInt8[np.ndarray, "height0 width0 3"],
    image1: UInt8[np.ndarray, "height1 width1 3"],
    matches: Matches,
    *,
    num: int = 15,
    max_side: int = 1600,
    title: str = "",
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw two images side by side with lines between their matches.

    Kept matches come first, the most confident ones first; they are thick, the others thin. The colour tells
    the confidence (viridis, between the lowest and highest drawn), which the bar beside the title explains.

    Args:
        image0: the original image 0, RGB.
        image1: the original image 1, RGB; both are shown at the same height.
        matches: what `match` returned for the two.
        num: how many matches to draw at most.
        max_side: longer side of the two images together, in pixels.
        title: one line above the images.
    """
    margin, gap, strip = 20, 12, 56
    aspect0, aspect1 = (image.shape[1] / image.shape[0] for image in (image0, image1))
    fitting = min(int((max_side - gap) / (aspect0 + aspect1)), max_side)
    height = max(1, min(fitting, max(len(image0), len(image1), 480)))
    widths = [max(1, round(height * aspect)) for aspect in (aspect0, aspect1)]
    lefts = [margin, margin + widths[0] + gap]
    sheet = np.full((strip + height + margin, max(lefts[1] + widths[1] + margin, 480), 3), PAPER, np.uint8)
    for image, left, width in zip((image0, image1), lefts, widths, strict=True):
        sheet[strip : strip + height, left : left + width] = _resize(image, width, height)
    ranked = np.lexsort((-matches.confidence, ~matches.kept))[:num]
    shown = matches.confidence[ranked]
    low, high = (float(shown.min()), float(shown.max())) if len(shown) else (0.0, 1.0)
    ends0 = _on_sheet(matches.keypoints0[ranked], image0, lefts[0], strip, widths[0], height)
    ends1 = _on_sheet(matches.keypoints1[ranked], image1, lefts[1], strip, widths[1], height)
    colors = _viridis((shown - low) / max(high - low, 1e-6))
    unit = max(1.0, height / 500)
    for index in reversed(range(len(ranked))):  # the best on top
        kept = bool(matches.kept[ranked[index]])
        _draw_line(sheet, ends0[index], ends1[index], colors[index], round((2 if kept else 1) * unit), kept)
    for index in reversed(range(len(ranked))):
        kept = bool(matches.kept[ranked[index]])
        for end in (ends0[index], ends1[index]):
            _draw_dot(sheet, end, colors[index], (5.0 if kept else 3.0) * unit)
    room = sheet.shape[1] - 2 * margin
    if len(ranked):
        room -= _draw_color_bar(sheet, low, high, right=sheet.shape[1] - margin) + 16
    _write(sheet, _fit(title, room, 20, 600), (margin, 36), 20, 600, INK)
    return sheet


def contact_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    captions: Sequence[str],
    *,
    columns: int = 4,
    tile: int = 280,
    highlight: int = 1,
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Lay photos out as tiles with captions, the queries first.

    Args:
        images: RGB photos of any size; each fills its tile when that crops little, else it is shown whole.
        captions: one per photo; the first line is set in bold, a second line (after a line break) plain. What
            is too long loses its middle to an ellipsis.
        columns: tiles per row.
        tile: width of a tile in pixels; its height is three quarters of that.
        highlight: how many of the first photos are queries; they get a coloured frame and a label.

    Raises:
        ArgumentError: there are no photos, or not one caption per photo.
    """
    if not images or len(images) != len(captions) or columns < 1:
        raise ArgumentError(
            f"got {len(images)} photos, {len(captions)} captions and {columns} columns; "
            "wanted a caption for each of at least one photo, in at least one column"
        )
    margin, gap, height, foot = 24, 20, tile * 3 // 4, 54
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = (
        2 * margin + rows * (height + foot) + (rows - 1) * gap,
        2 * margin + columns * tile + (columns - 1) * gap,
    )
    sheet = np.full((*size, 3), PAPER, np.uint8)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        left, top = margin + column * (tile + gap), margin + row * (height + foot + gap)
        sheet[top : top + height, left : left + tile] = _fill_tile(image, tile, height)
        if index < highlight:
            _mark_query(sheet, left, top, tile, height)
        head, _, rest = caption.partition("\n")
        _write(sheet, _fit(head, tile, 17, 600), (left, top + height + 24), 17, 600, INK)
        _write(sheet, _fit(" ".join(rest.split()), tile, 15, 400), (left, top + height + 46), 15, 400, DIM)
    return sheet


def write_image(path: Path, rgb: Image, *, quality: int = 90) -> None:
    """Write an RGB image; the file is complete or not there at all.

    Args:
        path: its suffix is the format: .png, .jpg, .jpeg or .webp.
        rgb: the image.
        quality: of JPEG and WebP, up to 100.

    Raises:
        ArgumentError: the suffix is none of these, or the folder cannot be written.
    """
    from PIL import Image as PillowImage

    if path.suffix.lower() not in FORMATS:
        raise ArgumentError(
            f"cannot write an image as {path.name!r}; wanted a name that ends in {', '.join(FORMATS)}"
        )
    with written_whole(path) as temporary:
        PillowImage.fromarray(rgb).save(temporary, FORMATS[path.suffix.lower()], quality=quality)


def shrink(image: Image, max_side: int) -> UInt8[np.ndarray, "small_height small_width 3"]:
    """Return the image with its longer side at most `max_side` pixels; never enlarged."""
    height, width = image.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    return _resize(image, max(1, round(width * scale)), max(1, round(height * scale)))


def _resize(image: Image, width: int, height: int) -> UInt8[np.ndarray, "new_height new_width 3"]:
    smaller = width * height < image.shape[0] * image.shape[1]
    shape = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=shape), np.uint8)


def _on_sheet(
    points: Keypoints, image: np.ndarray, left: int, top: int, width: int, height: int
) -> Keypoints:
    """Return where pixels of an original image lie on the sheet that shows it at (left, top)."""
    drawn = PatchGrid(
        rows=height,
        cols=width,
        patch_size=1,
        width=image.shape[1],
        height=image.shape[0],
        scale_x=width / image.shape[1],
        scale_y=height / image.shape[0],
        offset_x=float(left),
        offset_y=float(top),
    )
    return drawn.to_cells(points)


def _viridis(shares: Float32[np.ndarray, " n"]) -> list[Color]:
    """Return colours for shares in [0, 1]: viridis without its darkest fifth, which photos swallow."""
    if not len(shares):
        return []
    levels = np.clip(51 + 204 * shares, 0, 255).astype(np.uint8)
    table = cv2.applyColorMap(levels.reshape(-1, 1), cv2.COLORMAP_VIRIDIS).reshape(-1, 3)
    return [(int(red), int(green), int(blue)) for blue, green, red in table]


def _draw_line(
    sheet: np.ndarray, end0: np.ndarray, end1: np.ndarray, color: Color, thickness: int, outlined: bool
) -> None:
    first, second = (tuple(int(v) for v in np.round(end * 2**SUBPIXEL)) for end in (end0, end1))
    if outlined:
        cv2.line(sheet, first, second, BLACK, thickness + 2, cv2.LINE_AA, SUBPIXEL)
    cv2.line(sheet, first, second, color, max(1, thickness), cv2.LINE_AA, SUBPIXEL)


def _draw_dot(sheet: np.ndarray, center: np.ndarray, color: Color, radius: float) -> None:
    place = tuple(int(v) for v in np.round(center * 2**SUBPIXEL))
    cv2.circle(sheet, place, round((radius + 2) * 2**SUBPIXEL), BLACK, cv2.FILLED, cv2.LINE_AA, SUBPIXEL)
    cv2.circle(sheet, place, round(radius * 2**SUBPIXEL), color, cv2.FILLED, cv2.LINE_AA, SUBPIXEL)


def _draw_color_bar(sheet: np.ndarray, low: float, high: float, *, right: int) -> int:
    """Draw the legend of the confidence that ends at `right`; return its width."""
    first, last, length = f"confidence {low:.2f}", f"{high:.2f}", 96
    last_width, first_width = _text_width(last, 15, 400), _text_width(first, 15, 400)
    width = first_width + last_width + length + 16
    _write(sheet, first, (right - width, 34), 15, 400, DIM)
    _write(sheet, last, (right - last_width, 34), 15, 400, DIM)
    left = right - last_width - 8 - length
    sheet[24:36, left : left + length] = _viridis(np.linspace(0, 1, length, dtype=np.float32))
    return width


def _fill_tile(image: Image, width: int, height: int) -> UInt8[np.ndarray, "tile_height tile_width 3"]:
    """Fill a tile with the middle of a photo, or show all of it on a shade when that would crop too much."""
    rows, cols = image.shape[:2]
    contain, cover = sorted((width / cols, height / rows))
    scale = cover if contain / cover >= 1 - MOST_CROPPED else contain
    drawn = _resize(image, max(1, round(cols * scale)), max(1, round(rows * scale)))
    spare_x, spare_y = (
        width - drawn.shape[1],
        height - drawn.shape[0],
    )  # below zero where the photo is cropped
    drawn = drawn[max(0, -spare_y // 2) :, max(0, -spare_x // 2) :][:height, :width]
    tile = np.full((height, width, 3), SHADE, np.uint8)
    top, left = max(0, spare_y // 2), max(0, spare_x // 2)
    tile[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return tile


def _mark_query(sheet: np.ndarray, left: int, top: int, width: int, height: int) -> None:
    cv2.rectangle(sheet, (left - 4, top - 4), (left + width + 3, top + height + 3), ACCENT, 4, cv2.LINE_AA)
    label = _text_width("query", 14, 600) + 18
    cv2.rectangle(sheet, (left - 4, top - 4), (left + label, top + 22), ACCENT, cv2.FILLED)
    _write(sheet, "query", (left + 6, top + 14), 14, 600, PAPER)


def _write(
    sheet: np.ndarray, text: str, origin: tuple[int, int], size: int, weight: int, color: Color
) -> None:
    if text:
        cv2.putText(sheet, text, origin, color, cv2.FontFace("sans"), size, weight)


def _text_width(text: str, size: int, weight: int) -> int:
    box = cv2.getTextSize((0, 0), text, (0, 0), cv2.FontFace("sans"), size, weight)
    return int(box[2])


def _fit(text: str, width: int, size: int, weight: int) -> str:
    """Shorten text to a width in pixels: an ellipsis in the middle, so that the end of a file name stays."""
    text = text.encode("utf-8", "replace").decode()
    if not text or _text_width(text, size, weight) <= width:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
        if _text_width(short, size, weight) <= width:
            return short
    return "…"
