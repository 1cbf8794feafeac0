"""Classical descriptors of whole images: raw pixels, colours, directions of edges, and the last two together.

The settings are the best of those tried on the classes of Imagenette: directions of edges in cells of 16 or
32 of 128 pixels and of 8 or 16 of 64, in 9 or 12 axes or 18 directions, plain, rooted, centred or whitened;
colours in HSV, Lab or RGB. "Fitted" descriptors are projected onto the main directions of photos of the pool,
which holds no test image and has no labels, and divided by the root of the deviation there.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from retrieval import colour_histogram, raw_pixels

from dinov2kit import ModelIdentity
from dinov2kit.images import load_picture
from dinov2kit.views import CenterCrop

SIDE, CELL, DIRECTIONS = 128, 32, 18  # pixels, pixels, of a full turn
HIGHEST = 0.2  # what one direction can have of a block, against a single strong edge
POOL_IMAGES, MAIN_DIRECTIONS = 600, 128
COLOUR_SHARE = 0.5  # length of the colours beside that of the edges


class ClassicalEncoder:
    """Describes an image in several ways at once, each of length 1, side by side; `readings` tells them.

    Args:
        root: folder of the test data, with `pool/`.
    """

    readings: Mapping[str, slice]

    def __init__(self, root: Path) -> None:
        self.view, self.batch_size = CenterCrop(SIDE, SIDE), 16
        with zipfile.ZipFile(root / "pool/pool-00.zip") as archive:  # in random order
            names = archive.namelist()[:POOL_IMAGES]
            pool = np.stack([load_picture(archive.read(name), self.view).pixels for name in names])
        self._edges, self._colours = Projection(oriented_gradients(pool)), Projection(colours(pool))
        self.readings, start = {}, 0
        for name, rows in self._described(pool[:1]).items():
            self.readings[name] = slice(start, start + rows.shape[1])
            start += rows.shape[1]
        self.identity = ModelIdentity("classical", "", start, "none", self.view.describe())

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return a row per image."""
        return np.concatenate(list(self._described(pixels).values()), axis=1)

    def _described(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        edges, histograms = oriented_gradients(pixels), colours(pixels)
        fitted = unit(self._edges.apply(edges))
        return {
            "raw pixels 32x32": unit(np.stack([raw_pixels(image) for image in pixels])),
            "colour histogram": unit(histograms),
            "HOG": unit(edges),
            "HOG, fitted": fitted,
            "HOG and colours, fitted": unit(
                np.concatenate([fitted, COLOUR_SHARE * unit(self._colours.apply(histograms))], axis=1)
            ),
        }


class Projection:
    """Main directions of some rows of length 1, each divided by the root of its deviation.

    Source: the whitening of Jegou and Chum, "Negative evidences and co-occurrences in image retrieval", ECCV
        2012, here only half way.
    """

    def __init__(self, rows: np.ndarray) -> None:
        self._mean = unit(rows).mean(axis=0)
        _, deviations, directions = np.linalg.svd(unit(rows) - self._mean, full_matrices=False)
        kept = slice(MAIN_DIRECTIONS)
        self._onto = directions[kept].T / np.sqrt(deviations[kept])

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Return what rows are in these directions."""
        projected: np.ndarray = (unit(rows) - self._mean) @ self._onto
        return projected


def colours(pixels: np.ndarray) -> np.ndarray:
    """Return a joint histogram per image; the cosine of its roots is the Hellinger kernel."""
    return np.stack([colour_histogram(image) for image in pixels])


def oriented_gradients(pixels: np.ndarray) -> np.ndarray:
    """Return HOG of square images: cells of `CELL` pixels, blocks of 2 x 2 cells, a full turn of directions.

    Edges from dark to bright and from bright to dark differ, which tells things better than axes do.

    Source: Dalal and Triggs, "Histograms of Oriented Gradients for Human Detection", CVPR 2005.
    """
    grey = np.stack([cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in pixels]).astype(np.float32)
    x, y = np.zeros_like(grey), np.zeros_like(grey)
    x[:, :, 1:-1] = grey[:, :, 2:] - grey[:, :, :-2]
    y[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    turn = np.arctan2(y, x) / (2 * np.pi) * DIRECTIONS - 0.5
    below = np.floor(turn)
    upper = turn - below  # the share of the next direction
    side = grey.shape[1] // CELL
    cell = np.arange(side).repeat(CELL)
    place = (np.arange(len(grey))[:, None, None] * side + cell[:, None]) * side + cell
    shape = (len(grey), side, side, DIRECTIONS)
    cells = np.zeros(shape)
    for step, share in ((0, 1 - upper), (1, upper)):
        bins = place * DIRECTIONS + (below.astype(int) + step) % DIRECTIONS
        cells += np.bincount(bins.ravel(), (np.hypot(x, y) * share).ravel(), cells.size).reshape(shape)
    corners = (cells[:, :-1, :-1], cells[:, :-1, 1:], cells[:, 1:, :-1], cells[:, 1:, 1:])
    blocks = np.minimum(unit(np.concatenate(corners, axis=3)), HIGHEST)
    return unit(blocks).reshape(len(grey), -1).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1; one that says nothing looks equally like all others."""
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    even = np.full_like(rows, rows.shape[-1] ** -0.5)
    scaled: np.ndarray = np.where(lengths > 0, rows / np.maximum(lengths, 1e-12), even)
    return scaled.astype(np.float32)
