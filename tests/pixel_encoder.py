"""An encoder that describes each patch by its pixels, so that the truth is known; and views to encode."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinov2kit.errors import ImageError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity

PATCH = 14


class PixelEncoder:
    """Describes each patch by its pixels at the size the image has, and lists the files it encoded."""

    def __init__(self, weights: str = "0" * 64) -> None:
        self.identity = ModelIdentity("pixels", weights, PATCH * PATCH * 3, "cls", {})
        self.encoded: list[str] = []

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        self.encoded.append(source.name)
        try:
            pixels = np.asarray(Image.open(source).convert("RGB"), np.float32)
        except OSError as error:
            raise ImageError(f"cannot read {source}") from error
        height, width = pixels.shape[:2]
        rows, cols = height // PATCH, width // PATCH
        cut = pixels[: rows * PATCH, : cols * PATCH].reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2)
        tokens = torch.from_numpy(cut.reshape(rows * cols, -1).copy())
        tokens = tokens - tokens.mean(dim=1, keepdim=True)
        scale = (spec or FeatureSpec()).size / 518
        grid = PatchGrid(rows, cols, PATCH, width, height, scale, scale)
        return Features(tokens.mean(dim=0), tokens, tokens[:2] / 3, grid, tokens.norm(dim=1))


def paint_views(folder: Path, names: list[str], *, rows: int = 5, cols: int = 8) -> None:
    """Write images of one texture of noise; each is moved by one patch to the right of the one before."""
    sides = (rows * PATCH, (cols + len(names)) * PATCH, 3)
    texture = np.random.default_rng(0).integers(0, 256, sides, np.uint8)
    for index, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(texture[:, index * PATCH : (index + cols) * PATCH]).save(path)
