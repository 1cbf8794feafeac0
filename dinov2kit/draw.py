"""Pictures of results: two images with their matches, and sheets of thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from dinov2kit.drawing import (
    ACCENT,
    BLACK,
    CAPITALS,
    DIM,
    INK,
    MARGIN,
    PALETTE,
    PAPER,
    SHADE,
    Color,
    as_color,
    draw_color_bar,
    draw_dot,
    draw_line,
    fit,
    lay_out,
    resize,
    shares_of,
    text_width,
    viridis,
    write,
    write_labels,
    write_title,
)
from dinov2kit.errors import ArgumentError
from dinov2kit.files import written_whole
from dinov2kit.matches import Matches
from dinov2kit.shapes import Image

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
MOST_CROPPED = 0.2  # of a photo's area, to fill its tile; otherwise the whole photo is shown
TITLE_ROOM = 160  # pixels of the title that an additional legend must leave


def draw_matches(
    image0: UInt8[np.ndarray, "height0 width0 3"],
    image1: UInt8[np.ndarray, "height1 width1 3"],
    matches: Matches,
    *,
    num: int = 15,
    max_side: int = 1600,
    title: str = "",
    inliers: Bool[np.ndarray, " n"] | None = None,
    labels: Sequence[str] = (),
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
        inliers: which matches a geometric model explains; then these come first and are thick, whether they
            were kept or not.
        labels: a text for every match, written beside both of its ends; none at all by default.

    Raises:
        ArgumentError: there are not as many inliers, or labels, as matches.
    """
    strong = matches.kept if inliers is None else inliers
    kinds = ("kept", "not kept") if inliers is None else ("inlier", "outlier")
    _check_count("inliers", strong, matches)
    texts = _one_each(labels, matches)
    drawn = _strongest(matches, strong, num)
    sheet, [[panel0, panel1]] = lay_out([[image0, image1]], max_side=max_side)
    ends = np.stack(
        [panel0.on_sheet(matches.keypoints0[drawn]), panel1.on_sheet(matches.keypoints1[drawn])], axis=1
    )
    shares, low, high = shares_of(matches.confidence[drawn])
    colors = [as_color(rgb) for rgb in viridis(shares)]
    unit = panel0.unit
    for index in reversed(range(len(drawn))):  # the best on top
        thick = bool(strong[drawn[index]])
        draw_line(sheet, ends[index], colors[index], round((2 if thick else 1) * unit), outlined=thick)
    for index in reversed(range(len(drawn))):
        for end in ends[index]:
            draw_dot(sheet, end, colors[index], (5.0 if strong[drawn[index]] else 3.0) * unit)
    for panel, places in ((panel0, ends[:, 0]), (panel1, ends[:, 1])):
        write_labels(sheet, panel, places, [texts[row] for row in drawn], 7 * unit)
    taken = 0
    if len(drawn):
        taken = draw_color_bar(sheet, "confidence", low, high, right=sheet.shape[1] - MARGIN)
    if not strong[drawn].all():
        taken = _draw_line_key(sheet, kinds, taken, unit)
    write_title(sheet, title, taken=taken)
    return sheet


def draw_dots(
    image0: UInt8[np.ndarray, "height0 width0 3"],
    image1: UInt8[np.ndarray, "height1 width1 3"],
    matches: Matches,
    *,
    num: int = 15,
    max_side: int = 1600,
    title: str = "",
    labels: Sequence[str] = (),
) -> UInt8[np.ndarray, "sheet_height sheet_width 3"]:
    """Draw two images side by side with a disc at both ends of each match, and no lines.

    The discs of a match have the same colour and the same number, which is its row, and its `id` in JSON. The
    eight colours stay apart for the colour-blind; further matches repeat them with other numbers.

    Args:
        image0: the original image 0, RGB.
        image1: the original image 1, RGB; both are shown at the same height.
        matches: what `match` returned for the two.
        num: how many matches to draw at most; kept ones first, the most confident ones first.
        max_side: longer side of the two images together, in pixels.
        title: one line above the images.
        labels: a text for every match, written beside both of its discs; none at all by default.

    Raises:
        ArgumentError: there are not as many labels as matches.
    """
    texts = _one_each(labels, matches)
    drawn = _strongest(matches, matches.kept, num)
    sheet, [panels] = lay_out([[image0, image1]], max_side=max_side)
    for panel, keypoints in zip(panels, (matches.keypoints0, matches.keypoints1), strict=True):
        places = panel.on_sheet(keypoints[drawn])
        for index in reversed(range(len(drawn))):  # the best on top
            color = PALETTE[index % len(PALETTE)]
            _draw_numbered_dot(sheet, places[index], color, str(drawn[index]), panel.unit)
        write_labels(sheet, panel, places, [texts[row] for row in drawn], 13 * panel.unit)
    write_title(sheet, title)
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
        write(sheet, fit(head, tile, 17, 600), (left, top + height + 24), 17, 600, INK)
        write(sheet, fit(rest, tile, 15, 400), (left, top + height + 46), 15, 400, DIM)
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
    return resize(image, max(1, round(width * scale)), max(1, round(height * scale)))


def _one_each(labels: Sequence[str], matches: Matches) -> list[str]:
    """Return the text of every match: empty ones where there are no labels at all."""
    texts = list(labels) or [""] * len(matches)
    _check_count("labels", texts, matches)
    return texts


def _check_count(name: str, column: Sequence[str] | np.ndarray, matches: Matches) -> None:
    if len(column) != len(matches):
        raise ArgumentError(f"got {len(column)} {name}; wanted one for each of the {len(matches)} matches")


def _strongest(matches: Matches, strong: Bool[np.ndarray, " n"], num: int) -> Int64[np.ndarray, " k"]:
    """Return the rows to draw: the strong ones first, the most confident ones first, none without a place."""
    ranked = np.lexsort((-matches.confidence, ~strong))
    placed = np.isfinite(matches.keypoints0).all(axis=1) & np.isfinite(matches.keypoints1).all(axis=1)
    return np.asarray(ranked[placed[ranked]][:num], np.int64)


def _draw_line_key(sheet: np.ndarray, kinds: tuple[str, str], taken: int, unit: float) -> int:
    """Explain thick and thin lines left of a legend that takes `taken` pixels; return what both take.

    Where that would leave the title too little room, nothing is drawn.
    """
    sample, widths = 26, [text_width(kind, 15, 400) for kind in kinds]
    width = taken + 28 + sum(widths) + 2 * (sample + 8) + 20
    left = sheet.shape[1] - MARGIN - width
    if left < MARGIN + TITLE_ROOM:
        return taken
    for kind, text, thickness in zip(kinds, widths, (2, 1), strict=True):
        ends = np.array([[left, 29], [left + sample, 29]], np.float32)
        draw_line(sheet, ends, DIM, round(thickness * unit), outlined=thickness == 2)
        write(sheet, kind, (left + sample + 8, 34), 15, 400, DIM)
        left += sample + 8 + text + 20
    return width


def _draw_numbered_dot(
    sheet: np.ndarray, center: Float32[np.ndarray, " 2"], color: Color, number: str, unit: float
) -> None:
    """Draw a disc with its number in black or white, whichever stands out more."""
    size = round(13 * unit)
    draw_dot(sheet, center, color, 10 * unit)
    luminance = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
    x, y = float(center[0]) - text_width(number, size, 600) / 2, float(center[1]) + CAPITALS * size / 2
    write(sheet, number, (round(x + 0.5), round(y + 0.5)), size, 600, BLACK if luminance > 110 else PAPER)


def _fill_tile(image: Image, width: int, height: int) -> UInt8[np.ndarray, "tile_height tile_width 3"]:
    """Fill a tile with the middle of a photo, or show all of it on a shade when that would crop too much."""
    rows, cols = image.shape[:2]
    contain, cover = sorted((width / cols, height / rows))
    scale = cover if contain / cover >= 1 - MOST_CROPPED else contain
    drawn = resize(image, max(1, round(cols * scale)), max(1, round(rows * scale)))
    # Below zero where the photo is cropped:
    spare_x, spare_y = width - drawn.shape[1], height - drawn.shape[0]
    drawn = drawn[max(0, -spare_y // 2) :, max(0, -spare_x // 2) :][:height, :width]
    tile = np.full((height, width, 3), SHADE, np.uint8)
    top, left = max(0, spare_y // 2), max(0, spare_x // 2)
    tile[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    return tile


def _mark_query(sheet: np.ndarray, left: int, top: int, width: int, height: int) -> None:
    cv2.rectangle(sheet, (left - 4, top - 4), (left + width + 3, top + height + 3), ACCENT, 4, cv2.LINE_AA)
    label = text_width("query", 14, 600) + 18
    cv2.rectangle(sheet, (left - 4, top - 4), (left + label, top + 22), ACCENT, cv2.FILLED)
    write(sheet, "query", (left + 6, top + 14), 14, 600, PAPER)
