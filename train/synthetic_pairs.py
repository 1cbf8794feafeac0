"""Two views of one photo with known correspondence: what training without labels compares.

View 1 is a crop of the photo; view 0 is bent, seen in perspective, and perhaps mirrored. A place of view 0 is
carried to view 1 in closed form. Everything follows from the seed and the index of the draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8
from numpy.random import Generator, Philox

from dinov2kit.shapes import Image, Keypoints

MARGIN = 1.25  # side of the photo over that of a view: room to crop and to turn

_MEAN_COLOUR = (124.0, 116.0, 104.0)  # of ImageNet: what the network takes for nothing
_WAVES = 3
_LATTICE_SHARE = 2.5  # places tried for each point wanted


@dataclass(frozen=True)
class Warp:
    """Where a pixel of each view lies in the photo; (x, y), the centre of the first pixel is (0, 0).

    Attributes:
        size: side of both views, in pixels.
        perspective: homography from bent pixels of view 0 to the photo.
        shifts: (x, y) amplitudes of the waves that bend view 0, in pixels.
        waves: (x, y) wave numbers of each, in radians per pixel.
        phases: of each, in radians.
        mirrored: whether view 0 is mirrored left to right, before all else.
        crop: scale, left and top of view 1 in the photo, in its pixels.
    """

    size: int
    perspective: Float64[np.ndarray, "3 3"]
    shifts: Float64[np.ndarray, "count 2"]
    waves: Float64[np.ndarray, "count 2"]
    phases: Float64[np.ndarray, " count"]
    mirrored: bool
    crop: tuple[float, float, float]

    def to_photo(self, points0: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Carry places of view 0 to the photo."""
        flipped = points0 * [-1, 1] + [self.size - 1, 0] if self.mirrored else points0
        bent = flipped + np.sin(flipped @ self.waves.T + self.phases) @ self.shifts
        seen = np.column_stack([bent, np.ones(len(bent))]) @ self.perspective.T
        places: np.ndarray = seen[:, :2] / seen[:, 2:]
        return places

    def carry(self, points0: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Carry places of view 0 to view 1."""
        scale, left, top = self.crop
        places: np.ndarray = (self.to_photo(points0) - [left, top]) / scale
        return places

    def view0(self, photo: Image) -> UInt8[np.ndarray, "size size 3"]:
        """Return the warped view; what lies beyond the photo has the mean colour."""
        y, x = np.mgrid[: self.size, : self.size]
        places = self.to_photo(np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64))
        charts = places.astype(np.float32).T.reshape(2, self.size, self.size)
        how = (cv2.INTER_LINEAR, None, cv2.BORDER_CONSTANT, _MEAN_COLOUR)
        return np.asarray(cv2.remap(photo, charts[0], charts[1], *how), np.uint8)

    def view1(self, photo: Image) -> UInt8[np.ndarray, "size size 3"]:
        """Return the crop."""
        scale, left, top = self.crop
        chart = np.array([[scale, 0, left], [0, scale, top]])
        how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        side = (self.size, self.size)
        return np.asarray(
            cv2.warpAffine(photo, chart, side, flags=how, borderMode=cv2.BORDER_REPLICATE), np.uint8
        )


@dataclass(frozen=True)
class SyntheticPair:
    """Two views of one photo, and places that show the same in both.

    Attributes:
        view0: the warped view.
        view1: the crop.
        points0: (x, y) in pixels of view 0.
        points1: the same places in pixels of view 1.
    """

    view0: Image
    view1: Image
    points0: Keypoints
    points1: Keypoints


def keyed(seed: int, *key: int) -> Generator:
    """Return random numbers that depend on the seed and the key alone, whatever was drawn before."""
    return Generator(Philox(np.random.SeedSequence([seed, *key])))


def make_pair(
    photo: Image,
    size: int,
    *,
    seed: int,
    index: int,
    num: int,
    flips: bool = False,
    mirrored: bool = False,
    jitter: float = 1.0,
) -> SyntheticPair:
    """Make two views of a photo.

    Args:
        photo: square, its side about `MARGIN` times `size`.
        size: side of the views, in pixels.
        seed: of everything random.
        index: number of the draw; the same seed and index give the same pair.
        num: most points; those of view 0 that are visible in view 1, spread out.
        flips: mirror view 0 in half of the draws.
        mirrored: mirror view 0.
        jitter: strength of the change of colours; 0 is none.
    """
    random = keyed(seed, index)
    warp = draw_warp(random, size, photo.shape[0], mirrored=mirrored or (flips and random.random() < 0.5))
    points0 = _scattered(random, size, num)
    points1 = warp.carry(points0)
    seen = _within(points0, size) & _within(points1, size) & _within(warp.to_photo(points0), photo.shape[0])
    chosen = random.permutation(np.flatnonzero(seen))[:num]
    views = [recolour(view, random, jitter) for view in (warp.view0(photo), warp.view1(photo))]
    return SyntheticPair(
        view0=views[0],
        view1=views[1],
        points0=points0[chosen].astype(np.float32),
        points1=points1[chosen].astype(np.float32),
    )


def draw_warp(random: Generator, size: int, side: int, *, mirrored: bool) -> Warp:
    """Draw how two views of `size` pixels lie in a square photo of `side` pixels."""
    seen = random.uniform(0.8, 1.0) * side  # by view 1, in pixels of the photo
    scale = seen / size
    left, top = random.uniform(0, side - seen, 2)
    half = random.uniform(0.3, 0.52) * side
    angle, middle = math.radians(random.uniform(-30, 30)), side / 2 + random.uniform(-0.1, 0.1, 2) * side
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) + random.uniform(-0.2, 0.2, (4, 2))
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    quad = middle + half * corners @ turn
    edge = size - 0.5
    square = np.array([[-0.5, -0.5], [edge, -0.5], [edge, edge], [-0.5, edge]])
    cycles = random.uniform(-1.0, 1.0, (_WAVES, 2))  # across the view
    steepness = 0.08 * random.integers(0, 2)  # of each wave; half of the views are not bent
    waves = 2 * math.pi * cycles / size
    lengths = np.maximum(np.linalg.norm(waves, axis=1, keepdims=True), math.pi / size)
    return Warp(
        size=size,
        perspective=cv2.getPerspectiveTransform(square.astype(np.float32), quad.astype(np.float32)),
        shifts=steepness * _directions(random) / lengths,
        waves=waves,
        phases=random.uniform(0, 2 * math.pi, _WAVES),
        mirrored=mirrored,
        crop=(scale, left + scale / 2 - 0.5, top + scale / 2 - 0.5),
    )


def recolour(view: Image, random: Generator, strength: float) -> Image:
    """Change brightness, contrast, colour balance and saturation, and blur at times."""
    if not strength:
        return view
    values = view.astype(np.float32)
    if random.random() < 0.3 * strength:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), random.uniform(0.3, 1.2)), np.float32)
    gains = np.exp(strength * (random.normal(0, 0.2) + random.normal(0, 0.06, 3)))
    contrast, saturation = (
        np.exp(strength * random.normal(0, 0.2)),
        math.exp(strength * random.normal(0, 0.3)),
    )
    values = (values - values.mean()) * contrast + values.mean()
    grey = values @ np.array([0.299, 0.587, 0.114], np.float32)
    values = (grey[..., None] + (values - grey[..., None]) * saturation) * gains
    recoloured: Image = np.clip(np.round(values), 0, 255).astype(np.uint8)
    return recoloured


def _directions(random: Generator) -> Float64[np.ndarray, "count 2"]:
    angles = random.uniform(0, 2 * math.pi, _WAVES)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _scattered(random: Generator, size: int, num: int) -> Float64[np.ndarray, "n 2"]:
    """Return places all over a view, one in each square of a lattice, never closer than half a square."""
    count = math.ceil(math.sqrt(_LATTICE_SHARE * num))
    y, x = np.mgrid[:count, :count]
    corners = np.stack([x.ravel(), y.ravel()], axis=1)
    within = (random.random(2) + random.random((count * count, 2))) / 2
    places: np.ndarray = (corners + within) * (size / count) - 0.5
    return places


def _within(points: Float64[np.ndarray, "n 2"], side: int) -> Bool[np.ndarray, " n"]:
    within: np.ndarray = ((points >= 0) & (points <= side - 1)).min(axis=1)
    return within
