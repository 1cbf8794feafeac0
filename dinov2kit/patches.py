"""What stands between an image and its local descriptors: padding, turning, and what position alone causes.

Images are normalised tensors (batch, channels, height, width); patch rows are row-major.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dinov2kit.errors import ArgumentError
from dinov2kit.features import FeatureSpec
from dinov2kit.grid import PatchGrid


def pad_to_grid(
    images: Float[Tensor, "batch channels height width"], grid: PatchGrid
) -> Float[Tensor, "batch channels grid_height grid_width"]:
    """Put an image where its grid says that it lies; the padding is the mean colour, which is 0 here."""
    height, width = grid.rows * grid.patch_size, grid.cols * grid.patch_size
    left, top = int(grid.offset_x), int(grid.offset_y)
    right, bottom = width - images.shape[3] - left, height - images.shape[2] - top
    return torch.nn.functional.pad(images, (left, right, top, bottom))


def turn(
    images: Float[Tensor, "batch channels height width"], spec: FeatureSpec
) -> Float[Tensor, "batch channels _ _"]:
    """Mirror and turn images as the network is to see them."""
    seen: Tensor = torch.rot90(images.flip(3) if spec.mirrored else images, spec.turns, (2, 3))
    return seen


def turn_back(
    rows: Float[Tensor, "n_patches dim"], grid: PatchGrid, spec: FeatureSpec
) -> Float[Tensor, "n_patches dim"]:
    """Put the patches of a turned image into the order of the upright grid; the inverse of `turn`."""
    shape = (grid.cols, grid.rows) if spec.turns % 2 else (grid.rows, grid.cols)
    upright: Tensor = torch.rot90(rows.view(*shape, rows.shape[1]), -spec.turns, (0, 1))
    back: Tensor = upright.flip(1) if spec.mirrored else upright
    return back.reshape(len(rows), -1)


def main_directions(rows: Float[Tensor, "n_patches dim"], count: int) -> Float[Tensor, "dim count"]:
    """Return the directions in which the descriptors of one image differ most, orthonormal.

    Of an image without content these are the directions of position.

    Raises:
        ArgumentError: there are not so many directions.

    Source: the positional debiasing of INSID3, for DINOv3: normalise, centre, singular vectors.
    """
    most = min(rows.shape[0] - 1, rows.shape[1])
    if not 0 < count <= most:
        raise ArgumentError(f"{count} directions were to be projected out; this image has 1 to {most}")
    centred = torch.nn.functional.normalize(rows.double(), dim=1)
    centred = centred - centred.mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    main: Tensor = directions[:count].T.to(rows.dtype)
    return main


def project_out(
    rows: Float[Tensor, "n_patches dim"], directions: Float[Tensor, "dim count"]
) -> Float[Tensor, "n_patches dim"]:
    """Remove what lies in some directions; what is left is orthogonal to all of them."""
    return rows - (rows @ directions) @ directions.T
