"""What one image becomes: its tokens and the grid they live on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from dinov2kit.grid import PatchGrid


@dataclass(frozen=True)
class Features:
    """The output tokens of the backbone for one image, after the final norm, in fp32.

    Attributes:
        class_token: the class token.
        patch_tokens: one row per patch of `grid`, row-major; register tokens are never among them.
        register_tokens: the register tokens; no rows for a model without registers.
        grid: where the patches lie in the original image.
    """

    class_token: Float32[Tensor, " dim"]
    patch_tokens: Float32[Tensor, "n_patches dim"]
    register_tokens: Float32[Tensor, "n_registers dim"]
    grid: PatchGrid

    @property
    def global_descriptor(self) -> Float32[Tensor, " dim"]:
        """The class token at length one."""
        return torch.nn.functional.normalize(self.class_token, dim=-1)

    @property
    def local_descriptors(self) -> Float32[Tensor, "n_patches dim"]:
        """The patch tokens, each at length one."""
        return torch.nn.functional.normalize(self.patch_tokens, dim=-1)
