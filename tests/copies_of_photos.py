"""Real photos, small, and copies of them as people make them."""

import io
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image
from skimage import data

NAMES = ("cat", "coffee", "rocket", "astronaut", "retina", "immunohistochemistry")


@cache
def photo(name: str, side: int = 200) -> np.ndarray:
    """Return a photo of scikit-image, its longer side as asked."""
    image = PIL.Image.fromarray(np.ascontiguousarray(getattr(data, name)()[..., :3]))
    image.thumbnail((side, side))
    return np.array(image)


def write(path: Path, pixels: np.ndarray, quality: int = 95, **settings: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=quality, **settings)
    return path


def resized(pixels: np.ndarray, width: float = 0.5, height: float = 0.5) -> np.ndarray:
    rows, cols = pixels.shape[:2]
    return np.array(PIL.Image.fromarray(pixels).resize((round(cols * width), round(rows * height))))


def compressed(pixels: np.ndarray, quality: int = 50) -> np.ndarray:
    encoded = io.BytesIO()
    PIL.Image.fromarray(pixels).save(encoded, "JPEG", quality=quality)
    return np.array(PIL.Image.open(encoded))


def brighter(pixels: np.ndarray, factor: float = 1.3) -> np.ndarray:
    return np.clip(pixels * factor, 0, 255).astype(np.uint8)


def framed(pixels: np.ndarray, colour: tuple[int, int, int] = (250, 250, 250), width: int = 20) -> np.ndarray:
    rows, cols = pixels.shape[:2]
    canvas = np.full((rows + 2 * width, cols + 2 * width, 3), colour, np.uint8)
    canvas[width:-width, width:-width] = pixels
    return canvas


def captioned(pixels: np.ndarray) -> np.ndarray:
    copy = pixels.copy()
    copy[int(0.8 * len(copy)) :] = 240
    return copy
