"""A built-in set of small drawn images: ten kinds of figures, told apart by their shapes and nothing else.

Place, size, turn and all colours are drawn at random, so that pixels alone say little about the kind. First
trials and tests train on it: there is nothing to download, and it shows quickly whether a backbone learns.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from jaxtyping import Float32, Float64

from dinov2kit.errors import ArgumentError

from .pixels import PixelRules, Pixels
from .synthetic_pairs import keyed

Outline = Float64[np.ndarray, "corners 2"]

_DRAWING = 3  # a key of random numbers
_FINER = 4  # each pixel is drawn as 4 x 4 and averaged
_FRACTION = 4  # bits of a drawn pixel to which corners are rounded
_LIGHT, _DARK, _TINT = (
    207.5,
    47.5,
    95.0,
)  # of 255: means of the brighter and the darker part, and their spread
_RADII = (0.17, 0.25)  # of the figure, in sides of the image
_SHADE, _NOISE = 40.0, 10.0  # of 255: how far the ground changes across the image; deviation of each pixel


def _arc(start: float, stop: float, *, radius: float = 1.0, centre: float = 0.0) -> Outline:
    """Return a part of a circle, in degrees."""
    angles = np.radians(np.linspace(start, stop, 32))
    return np.stack([centre + radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _spikes(points: int, inner: float) -> Outline:
    angles = np.arange(2 * points) * math.pi / points
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def _box(left: float, top: float, right: float, bottom: float) -> Outline:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _turned_four_times(corners: Outline) -> Float64[np.ndarray, "four_times 2"]:
    quarter = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([corners @ np.linalg.matrix_power(quarter, turn) for turn in range(4)])


_CELLS = [
    (0.46 * col - 0.69, 0.46 * row - 0.69) for row in range(3) for col in range(3) if (row + col) % 2 == 0
]
_FIGURES: dict[str, list[Outline]] = {  # kind -> outlines within the unit circle; what two enclose is a hole
    "disc": [_arc(0.0, 360.0, radius=0.9)],
    "ring": [_arc(0.0, 360.0), _arc(0.0, 360.0, radius=0.55)],
    "square": [_spikes(2, 1.0)],
    "triangle": [np.array([[math.cos(turn), math.sin(turn)] for turn in 2 * math.pi / 3 * np.arange(3)])],
    "star": [_spikes(5, 0.4)],
    "cross": [_turned_four_times(np.array([[1.0, -0.28], [1.0, 0.28], [0.28, 0.28]]))],
    "crescent": [np.concatenate([_arc(51.3, 308.7), _arc(282.6, 77.4, radius=0.8, centre=0.45)])],
    "stripes": [_box(-0.7, top, 0.7, top + 0.28) for top in (-0.7, -0.14, 0.42)],
    "checks": [_box(left, top, left + 0.46, top + 0.46) for left, top in _CELLS],
    "arrow": [
        np.array([[1.0, 0.0], [0.1, 0.8], [0.1, 0.25], [-1, 0.25], [-1, -0.25], [0.1, -0.25], [0.1, -0.8]])
    ],
}
KINDS = tuple(_FIGURES)


@dataclass(frozen=True)
class DrawnShapes:
    """Drawn images; image i is of kind i % 10, and depends on the seed and on i alone.

    Attributes:
        count: how many images there are.
        side: of the images, in pixels.
        seed: of everything random; another seed is another set, for instance one to hold out.
        channels: 3 is RGB, 1 its luminance.
    """

    count: int = 10_000
    side: int = 24
    seed: int = 0
    channels: int = 3

    def __post_init__(self) -> None:
        if self.count < 1 or self.side < 8 or self.seed < 0:
            raise ArgumentError(
                f"{self.count} drawn images of {self.side} pixels with seed {self.seed}; wanted 1 or more "
                "images of 8 pixels or more, and a seed of 0 or more"
            )
        if self.channels not in (1, 3):
            raise ArgumentError(f"drawn images with {self.channels} channels; wanted 1 or 3")

    @cached_property
    def labels(self) -> list[str]:
        """The kind of each image."""
        return [KINDS[index % len(KINDS)] for index in range(self.count)]

    @property
    def digest(self) -> str:
        """Of the settings."""
        facts = f"drawn-shapes/1 {self.count} {self.side} {self.seed}"
        return hashlib.blake2b(facts.encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        """Return the kind and the number of an image."""
        return f"drawn-shapes[{index}] ({KINDS[index % len(KINDS)]})"

    def read(self, index: int) -> Pixels:
        """Draw an image.

        Raises:
            ArgumentError: there is no such image.
        """
        if not 0 <= index < self.count:
            raise ArgumentError(f"drawn image {index} of {self.count}")
        random = keyed(self.seed, _DRAWING, index)
        u = random.random(16)
        figure = self._draw_figure(KINDS[index % len(KINDS)], u[:4])
        levels = (_LIGHT, _DARK) if u[12] < 0.5 else (_DARK, _LIGHT)
        ground, colour = (
            level + _TINT * (drawn - 0.5) for level, drawn in zip(levels, (u[4:7], u[7:10]), strict=True)
        )
        ramp = np.arange(self.side, dtype=np.float32) / np.float32(self.side) - np.float32(0.5)
        shade = _SHADE * (u[10] * ramp[:, None] + u[11] * ramp[None, :])
        values = random.standard_normal((self.side, self.side, 3), np.float32) * np.float32(_NOISE)
        values += ground.astype(np.float32)
        values += shade[:, :, None]
        values += figure[:, :, None] * (colour - ground).astype(np.float32)
        pixels = np.clip(values + 0.5, 0, 255).astype(np.uint8)
        return PixelRules(self.channels).convert(pixels)

    def _draw_figure(self, kind: str, u: Float64[np.ndarray, " four"]) -> Float32[np.ndarray, "side side"]:
        """Return for each pixel the share that the figure covers."""
        side = self.side * _FINER
        radius = (_RADII[0] + (_RADII[1] - _RADII[0]) * u[0]) * side
        place = radius + (side - 2 * radius) * u[1:3]
        turn = 2 * math.pi * u[3]
        matrix = radius * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
        canvas = np.zeros((side, side), np.uint8)
        unit = 1 << _FRACTION
        corners = [
            np.rint((outline @ matrix + place - 0.5) * unit).astype(np.int32) for outline in _FIGURES[kind]
        ]
        cv2.fillPoly(canvas, corners, 255, cv2.LINE_8, _FRACTION)
        small = cv2.resize(canvas, (self.side, self.side), interpolation=cv2.INTER_AREA)
        return np.asarray(small, np.float32) / np.float32(255)
