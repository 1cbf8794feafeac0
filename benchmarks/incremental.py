"""A run of `dinokit index` over files that have not changed: names and stats only.

    python benchmarks/incremental.py [--files 100000]

The files are tiny and all different; a stand-in describes them, because only the second run is measured.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from setting import describe_setting

from dinov2kit import ModelIdentity
from dinov2kit.indexes import index_photos
from dinov2kit.views import CenterCrop


class Constant:
    """Describes every image alike."""

    batch_size = 256

    def __init__(self) -> None:
        self.view = CenterCrop(resize=4, crop=4)
        self.identity = ModelIdentity("constant", "0" * 64, 384, "cls", self.view.describe())

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return the same row for each image."""
        return np.full((len(pixels), 384), 384**-0.5, np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000)
    options = parser.parse_args()
    print(describe_setting())
    with tempfile.TemporaryDirectory() as name:
        os.environ["DINOKIT_HOME"] = str(Path(name) / "home")
        photos = Path(name) / "photos"
        for number in range(options.files):
            path = photos / f"{number // 1000:03}" / f"{number:06}.bmp"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.frombuffer((number * 2654435761 % 2**48).to_bytes(12, "big"), np.uint8).reshape(
                2, 2, 3
            )
            Image.fromarray(pixels).save(path)
        first = index_photos(Path(name) / "ix", [photos], encoder=Constant()).report
        print(f"first run: {first.new:,} new, {first.seconds:.1f} s")
        for _ in range(3):
            started = time.perf_counter()
            again = index_photos(Path(name) / "ix", [photos]).report
            seconds = time.perf_counter() - started
            print(f"again: {again.unchanged:,} unchanged, {again.described} described, {seconds:.2f} s")


if __name__ == "__main__":
    main()
