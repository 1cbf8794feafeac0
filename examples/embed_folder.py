"""Describe the photos of a folder, and print for each one the photo most like it.

python examples/embed_folder.py [FOLDER] [MODEL]
"""

import sys
from pathlib import Path

import numpy as np

from dinov2kit import Encoder
from dinov2kit.images import list_images
from dinov2kit.pipeline import describe


def main(folder: str = "examples/photos", model: str = "untrained:vitt14") -> None:
    encoder = Encoder(model)
    described = []
    for photo in describe(encoder, list_images([Path(folder)])):
        if photo.descriptor is None:
            print(f"{photo.path}: {photo.error}", file=sys.stderr)
        else:
            described.append(photo)
    matrix = np.stack([photo.descriptor for photo in described])  # (n, dim), every row of length one
    scores = matrix @ matrix.T  # cosines
    np.fill_diagonal(scores, -1)
    for row, photo in enumerate(described):
        best = int(scores[row].argmax())
        print(f"{scores[row, best]:.3f}\t{photo.path.name}\t{described[best].path.name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
