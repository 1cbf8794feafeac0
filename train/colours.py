"""Changes of colour of many crops at once, on the device where they are: the second half of augmentation.

What is done to a crop stands in a vector that was drawn when it was cut; zero everywhere is no change. Values
are from 0 to 255 until the end and are not rounded between the steps. Nothing but sums, products and
comparisons of single values is used, and means are sums of whole numbers: the result for a crop is the same
to the bit whatever else is in its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from dinov2kit.errors import ArgumentError
from dinov2kit.normalising import LUMINANCE

BRIGHTNESS, CONTRAST, SATURATION, HUE, ORDER, GREY, BLUR, SOLARISE = range(8)
"""Places in the vector: three factors less 1, a turn of the hue, the number of the order of these four,
whether the crop becomes grey, the sigma of the blur in pixels (0 is none), whether it is solarised."""

COLOURS = 8  # numbers of the vector
ORDERS = tuple(permutations((BRIGHTNESS, CONTRAST, SATURATION, HUE)))

_WHITE = 255.0
_SOLARISED_ABOVE = 127.99999  # the number before 128
_REACH = 4  # of the blur to each side: a kernel of 9
_SMALL, _TOGETHER = 1 << 15, 1 << 20  # values of a crop; of the small crops that a CPU changes together

_Planes = Float32[Tensor, "b c h w"]
_Work = Callable[[_Planes, list[float]], None]


def no_colours(count: int, channels: int) -> Float32[Tensor, "count p"]:
    """Return vectors that change nothing; they are the same for any number of channels."""
    return torch.zeros(count, COLOURS)


@torch.no_grad()
def finish_crops(
    pixels: UInt8[Tensor, "b h w c"],
    colours: Float32[Tensor, "b p"],
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> Float32[Tensor, "b c h w"]:
    """Change colours as drawn, in the order of the release: jitter, grey, blur, solarise, normalise.

    Brightness, contrast, saturation and hue are those of torchvision, hue by a turn in HSV, each crop in the
    random order that was drawn for it. Saturation, hue and grey need three channels and are left out for
    other numbers. What is to be done is read on the CPU: vectors that are elsewhere are waited for.

    Args:
        pixels: of the crops, on the device that is to finish them.
        colours: as `cut_crops` draws them.
        mean: of each channel, on pixels from 0 to 1.
        std: of each channel, above 0.

    Returns: what the network takes, on the device of the pixels.

    Raises:
        ArgumentError: there are not as many vectors as crops, or as many means as channels.

    Source: the released code (augmentations); torchvision's ColorJitter, RandomGrayscale, GaussianBlur and
        RandomSolarize.
    """
    count, height, width, channels = pixels.shape
    if len(mean) != channels or len(std) != channels:
        raise ArgumentError(
            f"{len(mean)} means and {len(std)} deviations for {channels} channels; wanted one for each"
        )
    if colours.shape != (count, COLOURS):
        raise ArgumentError(
            f"colours of shape {tuple(colours.shape)} for {count} crops; wanted {COLOURS} numbers for each"
        )
    vectors = colours.tolist()
    shift = _each([value * _WHITE for value in mean], pixels).view(1, -1, 1, 1)
    scale = _each([1 / (value * _WHITE) for value in std], pixels).view(1, -1, 1, 1)
    finished = torch.empty(count, channels, height, width, device=pixels.device)
    on_cpu = pixels.device.type == "cpu"
    together = _at_once(height * width * channels) if on_cpu else max(count, 1)
    for start in range(0, count, together):
        some = slice(start, start + together)
        planes = pixels[some].permute(0, 3, 1, 2).contiguous().float()
        _recolour(planes, vectors[some])
        torch.sub(planes, shift, out=finished[some]).mul_(scale)
    return finished


def _at_once(values: int) -> int:
    """Return how many crops a CPU takes: a large one alone stays in its cache, small ones share Python."""
    return 1 if values > _SMALL else max(_TOGETHER // values, 1)


def _recolour(planes_: _Planes, vectors: list[list[float]]) -> None:
    """Do all that the vectors of a few crops say."""
    in_colour = planes_.shape[1] == len(LUMINANCE)
    orders = [ORDERS[int(vector[ORDER])] for vector in vectors]
    for place in range(len(ORDERS[0])):
        for step, work in (_JITTER if in_colour else _JITTER_OF_ANY).items():
            rows = [row for row, order in enumerate(orders) if order[place] == step and vectors[row][step]]
            _change(planes_, rows, work, [vectors[row][step] for row in rows])
    for step, work in (_REST if in_colour else _REST_OF_ANY).items():
        rows = [row for row, vector in enumerate(vectors) if vector[step]]
        _change(planes_, rows, work, [vectors[row][step] for row in rows])


def _change(planes_: _Planes, rows: list[int], work: _Work, amounts: list[float]) -> None:
    """Change some of the crops in place, each by its amount."""
    if not rows:
        return
    if len(rows) == len(planes_):
        work(planes_, amounts)
        return
    where = torch.tensor(rows, device=planes_.device)
    part = planes_[where]
    work(part, amounts)
    planes_[where] = part


def _brighten(planes_: _Planes, amounts: list[float]) -> None:
    planes_.mul_(_each(amounts, planes_) + 1).clamp_(max=_WHITE)


def _contrast(planes_: _Planes, amounts: list[float]) -> None:
    """Blend with the mean luminance, rounded in every pixel so that the sum is exact in any order."""
    each = _each(amounts, planes_)
    rows = _luminance(planes_).round_().sum(dim=3)  # below 2**24
    total = rows.to(torch.int32).sum(dim=2, dtype=torch.int32)
    mean = total[..., None, None] / (planes_.shape[2] * planes_.shape[3])
    planes_.mul_(each + 1).sub_(mean * each).clamp_(0, _WHITE)


def _saturate(planes_: _Planes, amounts: list[float]) -> None:
    each = _each(amounts, planes_)
    grey = _luminance(planes_).mul_(each)
    planes_.mul_(each + 1).sub_(grey).clamp_(0, _WHITE)


def _turn_hue(planes_: _Planes, amounts: list[float]) -> None:
    """Add to the hue of HSV and keep saturation and value.

    Let M, m and C = M - m be the largest of the three values, the smallest, and their difference, and h the
    hue in turns. Then 6 h C = |g - b| + max(0, max(g, b) - r) + 2 max(0, min(g, b) - r), with the sign of
    g - b, and a channel whose own hue is n / 3 is m + C clamp(6 |frac(h - n / 3) - 1 / 2| - 1, 0, 1).
    """
    red, green, blue = (planes_[:, number, None] for number in range(3))
    high, low = torch.maximum(green, blue), torch.minimum(green, blue)
    dark = torch.minimum(low, red)
    chroma = torch.maximum(high, red).sub_(dark)
    hue = high - low
    hue.add_(high.sub_(red).clamp_(min=0))
    hue.add_(low.sub_(red).clamp_(min=0).mul_(2))
    hue.copysign_(torch.sub(green, blue, out=high))
    dark.sub_(chroma)
    chroma.mul_(6)
    hue.div_(chroma.clamp(min=1e-30)).add_(_each(amounts, planes_))
    own = _each([2.0, 5 / 3, 4 / 3], planes_).view(1, -1, 1, 1)  # 2 - n / 3: nothing is below 0
    torch.add(hue, own, out=planes_)
    planes_.frac_().sub_(0.5).abs_().clamp_(1 / 6, 1 / 3).mul_(chroma).add_(dark).clamp_(0, _WHITE)


def _grey(planes_: _Planes, _: list[float]) -> None:
    planes_.copy_(_luminance(planes_))


def _blur(planes_: _Planes, sigmas: list[float]) -> None:
    """Blur by a Gaussian of nine taps, first down, then across; edges are mirrored."""
    shapes = [[math.exp(-((tap / sigma) ** 2) / 2) for tap in range(_REACH + 1)] for sigma in sigmas]
    taps = [[value / (2 * sum(shape) - shape[0]) for value in shape] for shape in shapes]
    weights = [_each(column, planes_) for column in zip(*taps, strict=True)]
    sums = torch.empty_like(planes_)
    for axis in (2, 3):
        length = planes_.shape[axis]
        sides = [_mirrored(length, start, planes_) for start in (-_REACH, length)]
        before, after = (planes_.index_select(axis, side) for side in sides)
        padded = torch.cat([before, planes_, after], dim=axis)
        planes_.mul_(weights[0])
        for tap in range(1, _REACH + 1):
            left, right = (padded.narrow(axis, start, length) for start in (_REACH - tap, _REACH + tap))
            planes_.add_(torch.add(left, right, out=sums).mul_(weights[tap]))


def _solarise(planes_: _Planes, _: list[float]) -> None:
    bright = (planes_ - _SOLARISED_ABOVE).mul_(1e30).clamp_(0, 1)  # faster than a comparison and a choice
    planes_.add_(bright.mul_(_WHITE - 2 * planes_))


_JITTER_OF_ANY: dict[int, _Work] = {BRIGHTNESS: _brighten, CONTRAST: _contrast}
_JITTER: dict[int, _Work] = {**_JITTER_OF_ANY, SATURATION: _saturate, HUE: _turn_hue}
_REST_OF_ANY: dict[int, _Work] = {BLUR: _blur, SOLARISE: _solarise}
_REST: dict[int, _Work] = {GREY: _grey, **_REST_OF_ANY}


def _each(amounts: Sequence[float], like: Tensor) -> Float32[Tensor, "b 1 1 1"]:
    """Return one number for each crop, ready to be combined with its values."""
    return torch.tensor(amounts, dtype=torch.float32, device=like.device).view(-1, 1, 1, 1)


def _luminance(planes: _Planes) -> Float32[Tensor, "b 1 h w"]:
    """Return the luminance of colours; the mean of any other number of channels."""
    count = planes.shape[1]
    shares = LUMINANCE if count == len(LUMINANCE) else (1 / count,) * count
    total = planes[:, :1] * shares[0]
    for number in range(1, count):
        total += planes[:, number, None] * shares[number]
    return total


def _mirrored(length: int, start: int, like: Tensor) -> Int64[Tensor, " reach"]:
    """Return where the four places from `start` on lie after mirroring at the edges, as often as it takes."""
    last = length - 1
    places = [last - abs(place % max(2 * last, 1) - last) for place in range(start, start + _REACH)]
    return torch.tensor(places, device=like.device)
