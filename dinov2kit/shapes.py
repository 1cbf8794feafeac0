"""The legend: axis names, units and coordinate frames used in every annotation.

Axes
    batch               images computed together
    height, width       pixels
    rows, cols          patches of a `PatchGrid`; n_patches = rows * cols, row-major
    dim                 width of a descriptor (`embed_dim` of the backbone)
    n, k                rows of a list; kept neighbours or matches

Frames
    pixel               (x, y) in the original, EXIF-upright image; the centre of its top-left pixel is (0, 0)
    cell                (x, y) in a patch grid; the centre of its top-left patch is (0, 0)
    Only `grid.py` converts between them.

Units
    score               cosine similarity in [-1, 1], higher is better; it is not a probability
"""

from __future__ import annotations

from jaxtyping import Float32, UInt8
from numpy import ndarray

Image = UInt8[ndarray, "height width 3"]
ImageBatch = UInt8[ndarray, "batch height width 3"]
Descriptors = Float32[ndarray, "n dim"]
Keypoints = Float32[ndarray, "n 2"]
