"""Position embeddings of grids that differ from the stored one: another size, or overlapping patches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor


def interpolate_positions(
    pos_embed: Float[Tensor, "1 n_stored dim"], *, rows: int, cols: int, offset: float, antialias: bool
) -> Float[Tensor, "1 n_wanted dim"]:
    """Fit stored position embeddings to a grid of rows x cols patches; the class entry stays first.

    The released weights without registers were made with an offset of 0.1 patch: the sampling positions then
    follow the factor (rows + 0.1) / side, not the true ratio. It is part of their published behaviour.

    Args:
        pos_embed: the class entry, then the entries of a square grid, row-major.
        rows: wanted patches from top to bottom.
        cols: wanted patches from left to right.
        offset: added to rows and cols before the scale is computed; 0 uses the true ratio.
        antialias: smooth when the grid shrinks.

    Returns: `pos_embed` itself when the grid is as stored, else bicubic interpolation in fp32.
    """
    side = math.isqrt(pos_embed.shape[1] - 1)
    if rows == cols == side:
        return pos_embed
    exact = pos_embed.float()
    stored = exact[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    fitted = functional.interpolate(
        stored,
        size=None if offset else (rows, cols),
        scale_factor=((rows + offset) / side, (cols + offset) / side) if offset else None,
        mode="bicubic",
        align_corners=False,
        antialias=antialias,
    )
    assert fitted.shape[-2:] == (rows, cols)
    return torch.cat([exact[:, :1], fitted.flatten(2).transpose(1, 2)], dim=1)


def subdivide_positions(
    positions: Float[Tensor, "1 n_patches dim"], *, rows: int, cols: int, parts: int
) -> Float[Tensor, "1 n_between dim"]:
    """Give overlapping patches the position embeddings of where their centres lie between whole patches.

    A patch that starts i / parts of the way from one patch to the next lies there in the plane of positions
    too; every `parts`-th patch keeps its embedding. Stretching the stored grid to the larger count of patches
    instead would move all positions but the middle one.

    Args:
        positions: one embedding per patch without overlap, row-major, without the class entry.
        rows: patches without overlap from top to bottom.
        cols: patches without overlap from left to right.
        parts: patch size over stride.

    Returns: embeddings of ((rows - 1) * parts + 1) x ((cols - 1) * parts + 1) patches, row-major, bicubic.
    """
    if parts == 1:
        return positions
    stored = positions.float().reshape(1, rows, cols, -1).permute(0, 3, 1, 2)
    size = ((rows - 1) * parts + 1, (cols - 1) * parts + 1)
    between = functional.interpolate(stored, size=size, mode="bicubic", align_corners=True)
    between[..., ::parts, ::parts] = stored
    return between.flatten(2).transpose(1, 2)
