"""How images are cut into patches, and patches become tokens."""

from __future__ import annotations

import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor, nn

from dinov2kit.architectures import ViTConfig
from dinov2kit.errors import ArgumentError


class PatchEmbed(nn.Module):
    """A linear map of every patch."""

    def __init__(self, patch_size: int, embed_dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(
        self, images: Float[Tensor, "batch channels height width"], stride: int = 0
    ) -> Float[Tensor, "batch n_patches dim"]:
        """Cut images into patches, row-major, and embed them; a `stride` below the patch overlaps them."""
        if not stride:
            embedded: Tensor = self.proj(images)
        else:
            embedded = functional.conv2d(images, self.proj.weight, self.proj.bias, stride=stride)
        return embedded.flatten(2).transpose(1, 2)


def patch_grid(images: Tensor, config: ViTConfig, stride: int = 0) -> tuple[int, int]:
    """Return the rows and columns of patches in an image.

    Args:
        images: (batch, channels, height, width), or one image without the batch axis.
        config: the shape of the backbone.
        stride: pixels from one patch to the next that the caller wants; 0 is the patch size.

    Raises:
        ArgumentError: the images cannot be cut into patches, or the stride does not divide them.
    """
    channels, patch = config.in_channels, config.patch_size
    if images.ndim not in (3, 4) or images.shape[-3] != channels:
        raise ArgumentError(
            f"images of shape {tuple(images.shape)}; "
            f"wanted (batch, {channels}, height, width) or ({channels}, height, width)"
        )
    height, width = images.shape[-2:]
    if height % patch or width % patch or not height or not width:
        nearest = [max(round(side / patch), 1) * patch for side in (height, width)]
        raise ArgumentError(
            f"images of {height} x {width} pixels (height x width) cannot be cut into patches of {patch}",
            hint=f"resize or crop to multiples of {patch}, for instance {nearest[0]} x {nearest[1]}",
        )
    if stride and patch % stride:
        raise ArgumentError(
            f"a stride of {stride} pixels does not divide patches of {patch}",
            hint="patches are shared by whole parts only: use half a patch, or none",
        )
    return height // patch, width // patch
