"""Views of an image: two large crops and some small ones, cut and mirrored; how to colour them is drawn too.

Everything random follows from the seed, the number of the sample and the number of the view: each view has
its own stretch of one stream of numbers. Boxes are in whole pixels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from .colours import BLUR, BRIGHTNESS, COLOURS, CONTRAST, GREY, HUE, ORDER, ORDERS, SATURATION, SOLARISE
from .pixels import Pixels
from .synthetic_pairs import keyed

GLOBAL_CROPS = 2

_VIEWS, _ALONE, _ALONE_COLOURS = 5, 12, 13  # keys of random numbers
_TRIES, _NUMBERS = 10, 54  # of a box; random numbers of a view: 4 for each try, the flip, and the colours
_RATIOS = (math.log(3 / 4), math.log(4 / 3))  # width over height of a box
_SIGMAS = (0.1, 2.0)  # of the blur, in pixels

_NEAR, _CUBIC, _HALVED = 1.1, 1.7, 3.0  # how many pixels become one: see `_resize`
_MOST_CHANNELS = 4  # that cv2 resizes


@dataclass(frozen=True)
class CropRecipe:
    """How views are cut and coloured.

    Attributes:
        global_size: side of the two large crops, in pixels.
        local_size: side of the small ones.
        local_count: how many small ones.
        global_scale: smallest and largest share of the area of the image in a large crop.
        local_scale: the same for a small one.
        flip: chance of a mirrored view.
        jitter: chance of a change of brightness, contrast, saturation and hue.
        brightness: most that the factor differs from 1.
        contrast: the same.
        saturation: the same.
        hue: most that the hue turns, of a whole turn.
        grey: chance of a grey view.
        blur: chance of blur in the first large crop, the second, and the small ones. In the released code
            these are in effect 0, 0.9 and 0.5.
        solarise: chance of solarisation in the second large crop.
    """

    global_size: int = 224
    local_size: int = 98
    local_count: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grey: float = 0.2
    blur: tuple[float, float, float] = (0.0, 0.9, 0.5)
    solarise: float = 0.2


class Crops(NamedTuple):
    """The views of one image and what `finish_crops` is to do with their colours."""

    global_pixels: UInt8[np.ndarray, "2 g g c"]
    local_pixels: UInt8[np.ndarray, "many l l c"]
    global_colours: Float32[np.ndarray, "2 p"]
    local_colours: Float32[np.ndarray, "many p"]


class Box(NamedTuple):
    """A part of an image, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


def cut_crops(pixels: Pixels, recipe: CropRecipe, *, seed: int, sample: int) -> Crops:
    """Cut the views of an image, as torchvision's RandomResizedCrop does, and draw how they are coloured.

    Where crops are less than a third as wide as their box, they are cut from the image halved as often as it
    takes, and the edges of the box are moved to whole pixels of that, by less than a pixel of the crop.

    Args:
        pixels: of any size from 1 x 1 and any number of channels.
        recipe: how.
        seed: of everything random, 0 or more.
        sample: number of the sample in the run, 0 or more.

    Source: the released code (augmentations); torchvision's RandomResizedCrop (bicubic, antialiased).
    """
    count, channels = GLOBAL_CROPS + recipe.local_count, pixels.shape[2]
    numbers = keyed(seed, _VIEWS, sample).random((count, _NUMBERS))
    colours = _draw_colours(numbers[:, 4 * _TRIES + 1 :], recipe, in_colour=channels == 3)
    halves = [np.ascontiguousarray(pixels)]

    def cut(drawn: list[list[float]], size: int, scale: tuple[float, float]) -> UInt8[np.ndarray, "n s s c"]:
        views = np.empty((len(drawn), size, size, channels), np.uint8)
        for view, row in zip(views, drawn, strict=True):
            box = draw_box(row, pixels.shape[1], pixels.shape[0], scale)
            _fill(view, _part(halves, box, size), mirrored=row[4 * _TRIES] < recipe.flip)
        return views

    drawn = numbers.tolist()
    return Crops(
        cut(drawn[:GLOBAL_CROPS], recipe.global_size, recipe.global_scale),
        cut(drawn[GLOBAL_CROPS:], recipe.local_size, recipe.local_scale),
        colours[:GLOBAL_CROPS],
        colours[GLOBAL_CROPS:],
    )


class View(NamedTuple):
    """One view of an image: a part of it, perhaps mirrored."""

    box: Box
    mirrored: bool


def draw_view(width: int, height: int, recipe: CropRecipe, *, seed: int, key: Sequence[int]) -> View:
    """Draw a view of an image as a large crop is drawn, where views stand alone.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        recipe: how.
        seed: of everything random, 0 or more.
        key: what the view follows from besides the seed.
    """
    numbers = keyed(seed, _ALONE, *key).random(4 * _TRIES + 1).tolist()
    return View(draw_box(numbers, width, height, recipe.global_scale), numbers[4 * _TRIES] < recipe.flip)


def cut_view(pixels: Pixels, view: View, size: int) -> UInt8[np.ndarray, "{size} {size} c"]:
    """Cut one view of an image, see `cut_crops`."""
    cut = np.empty((size, size, pixels.shape[2]), np.uint8)
    part = _part([np.ascontiguousarray(pixels)], view.box, size)
    _fill(cut, part, mirrored=view.mirrored)
    return cut


def draw_view_colours(
    recipe: CropRecipe, *, in_colour: bool, seed: int, sample: int
) -> Float32[np.ndarray, " p"]:
    """Draw how a view that stands alone is coloured: as a small crop is."""
    numbers = keyed(seed, _ALONE_COLOURS, sample).random((GLOBAL_CROPS + 1, _NUMBERS - 4 * _TRIES - 1))
    *_, colours = _draw_colours(numbers, recipe, in_colour=in_colour)
    return np.asarray(colours, np.float32)


def draw_box(numbers: list[float], width: int, height: int, scale: tuple[float, float]) -> Box:
    """Draw a box of a random area and shape in an image; after ten that do not fit, the middle of the image.

    Args:
        numbers: at least 40, evenly distributed from 0 to 1.
        width: of the image, in pixels.
        height: of the image, in pixels.
        scale: smallest and largest share of the area of the image.
    """
    for at in range(0, 4 * _TRIES, 4):
        share, shape, across, down = numbers[at : at + 4]
        area = width * height * (scale[0] + share * (scale[1] - scale[0]))
        ratio = math.exp(_RATIOS[0] + shape * (_RATIOS[1] - _RATIOS[0]))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(across * (width - w + 1)), int(down * (height - h + 1)), w, h)
    narrowest, widest = map(math.exp, _RATIOS)
    w, h = width, height
    if width / height < narrowest:
        h = round(width / narrowest)
    elif width / height > widest:
        w = round(height * widest)
    return Box((width - w) // 2, (height - h) // 2, w, h)


def _draw_colours(
    numbers: Float64[np.ndarray, "n drawn"], recipe: CropRecipe, *, in_colour: bool
) -> Float32[np.ndarray, "n p"]:
    """Draw the vectors of `finish_crops`."""
    count = len(numbers)
    colours = np.zeros((count, COLOURS), np.float32)
    jittered = numbers[:, 0] < recipe.jitter
    steps = [(BRIGHTNESS, recipe.brightness), (CONTRAST, recipe.contrast)]
    if in_colour:
        steps.append((SATURATION, recipe.saturation))
        colours[:, HUE] = jittered * recipe.hue * (2 * numbers[:, 4] - 1)
        colours[:, GREY] = numbers[:, 6] < recipe.grey
    for step, most in steps:
        least = max(-most, -1.0)  # a factor is never below 0
        colours[:, step] = jittered * (least + numbers[:, 1 + step] * (most - least))
    colours[:, ORDER] = jittered * np.floor(len(ORDERS) * numbers[:, 5])
    first, second, local = recipe.blur
    chances = np.array([first, second] + [local] * (count - GLOBAL_CROPS))
    colours[:, BLUR] = (numbers[:, 7] < chances) * (_SIGMAS[0] + numbers[:, 8] * (_SIGMAS[1] - _SIGMAS[0]))
    colours[1, SOLARISE] = numbers[1, 9] < recipe.solarise
    return colours


def _part(halves_: list[np.ndarray], box: Box, size: int) -> UInt8[np.ndarray, "h w c"]:
    """Return the pixels of a box, halved until fewer than three of them become one.

    Args:
        halves_: the image, halved zero times, once, twice ..; what is missing is added.
        box: in pixels of the image.
        size: of the crop.
    """
    level, most = 0, max(box.width, box.height) / size
    while most >= _HALVED and min(box.width, box.height) >= 2 << level:
        most, level = most / 2, level + 1
        if level == len(halves_):
            last = halves_[-1]
            height, width = last.shape[0] // 2, last.shape[1] // 2
            halves_.append(_resized(last[: 2 * height, : 2 * width], width, height, cv2.INTER_AREA))
    photo = halves_[level]
    left, top = (
        min(round(start / (1 << level)), limit - 1)
        for start, limit in zip((box.left, box.top), (photo.shape[1], photo.shape[0]), strict=True)
    )
    width, height = (max(round(side / (1 << level)), 1) for side in (box.width, box.height))
    return photo[top : top + height, left : left + width]


def _fill(view_: UInt8[np.ndarray, "s s c"], part: UInt8[np.ndarray, "h w c"], *, mirrored: bool) -> None:
    """Resize a part of an image to a view.

    cv2 has no antialiased cubic, and averages areas slowly. So up to 1.1 pixels become one by cubic
    interpolation; of more, twice as many are interpolated, and then averaged in pairs: cubically up to 1.7,
    linearly above, which with the average is about what an area gives.
    """
    size = view_.shape[0]
    shrink = [side / size for side in part.shape[:2]]
    height, width = (size * (1 + (times > _NEAR)) for times in shrink)
    how = cv2.INTER_CUBIC if max(shrink) < _CUBIC else cv2.INTER_LINEAR
    view = _resized(_resized(part, width, height, how), size, size, cv2.INTER_AREA)
    if mirrored and view.shape[2] <= _MOST_CHANNELS:
        cv2.flip(view, 1, dst=view_)
    else:
        view_[:] = view[:, ::-1] if mirrored else view


def _resized(
    pixels: UInt8[np.ndarray, "h w c"], width: int, height: int, how: int
) -> UInt8[np.ndarray, "{height} {width} c"]:
    if pixels.shape[:2] == (height, width):
        return pixels
    channels = pixels.shape[2]
    if channels > _MOST_CHANNELS:
        starts = range(0, channels, _MOST_CHANNELS)
        groups = (np.ascontiguousarray(pixels[:, :, start : start + _MOST_CHANNELS]) for start in starts)
        return np.concatenate([_resized(group, width, height, how) for group in groups], axis=2)
    resized = cv2.resize(pixels, (width, height), interpolation=how)
    return np.asarray(resized, np.uint8).reshape(height, width, channels)
