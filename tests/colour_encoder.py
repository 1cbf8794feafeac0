"""An encoder that describes an image by its mean colour, so that the truth is known; and its paint box."""

from pathlib import Path

import numpy as np
from PIL import Image

from dinov2kit.identity import ModelIdentity
from dinov2kit.views import CenterCrop


class ColourEncoder:
    """Describes an image by its mean colour, and counts what it described."""

    batch_size = 8

    def __init__(self, *_: object, **__: object) -> None:
        self.view = CenterCrop(resize=16, crop=14)
        self.identity = ModelIdentity("colour", "0" * 64, 3, "mean", self.view.describe())
        self.embedded = 0

    @property
    def name(self) -> str:
        return self.identity.name

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        self.embedded += len(pixels)
        means = pixels.reshape(len(pixels), -1, 3).mean(axis=1).astype(np.float32)
        return (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 16)) -> Path:
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path
