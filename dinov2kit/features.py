"""What one image becomes: its tokens and the grid they live on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float32
from torch import Tensor

from dinov2kit.blocks import Facet
from dinov2kit.errors import ArgumentError, check_choice
from dinov2kit.grid import PatchGrid
from dinov2kit.views import KeepAspect, Letterbox, Squash

Resize = Literal["keep", "letterbox", "squash"]
_VIEWS: dict[str, type[KeepAspect | Letterbox | Squash]] = {
    "keep": KeepAspect,
    "letterbox": Letterbox,
    "squash": Squash,
}


@dataclass(frozen=True)
class FeatureSpec:
    """Which local descriptors of an image are wanted: everything that changes them but the model.

    Attributes:
        size: longer side of the network input, in pixels.
        resize: "keep" the aspect ratio, both sides rounded to patches; "letterbox" or "squash" to a square.
        layer: block whose output is read; -1 is the last one, as for a Python list.
        facet: what is read there: the token after the block, or its query, key or value in the attention.
        norm: whether tokens pass the final norm; the facets of the attention never do.
        stride: network pixels from one patch to the next: 0 is the patch size, a divisor of it overlaps.
        debias: how many directions that depend on the position alone are projected out.
        turns: quarter turns, counter-clockwise, at which the network sees the image; the tokens are turned
            back, so that the grid is always that of the upright image.
        mirrored: whether the network sees the image mirrored left to right, before it is turned; the tokens
            are mirrored back.

    Raises:
        ArgumentError: a value is none of these.
    """

    size: int = 518
    resize: Resize = "keep"
    layer: int = -1
    facet: Facet = "token"
    norm: bool = True
    stride: int = 0
    debias: int = 0
    turns: int = 0
    mirrored: bool = False

    def __post_init__(self) -> None:
        check_choice("resize", self.resize, get_args(Resize))
        check_choice("facet", self.facet, get_args(Facet))
        if self.stride < 0 or self.debias < 0:
            raise ArgumentError(f"stride is {self.stride} and debias {self.debias}; wanted 0 or more")
        if self.turns not in range(4):
            raise ArgumentError(f"turns is {self.turns}; wanted 0 to 3 quarter turns")

    def view(self, patch_size: int) -> KeepAspect | Letterbox | Squash:
        """Return how an image becomes network pixels for a model with this patch size."""
        return _VIEWS[self.resize](size=self.size, patch_size=patch_size)

    def describe(self) -> dict[str, object]:
        """Return every choice, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Features:
    """What the backbone says of one image, in fp32.

    Attributes:
        class_token: the class token after the final norm.
        patch_tokens: one row per patch of `grid`, row-major, as the `FeatureSpec` wants them; register tokens
            are never among them.
        register_tokens: the register tokens after the final norm; no rows for a model without registers.
        grid: where the patches lie in the original image.
        magnitudes: length of each patch token before the final norm, which betrays artefact tokens; None
            where it is not known.
    """

    class_token: Float32[Tensor, " dim"]
    patch_tokens: Float32[Tensor, "n_patches dim"]
    register_tokens: Float32[Tensor, "n_registers dim"]
    grid: PatchGrid
    magnitudes: Float32[Tensor, " n_patches"] | None = None

    @property
    def global_descriptor(self) -> Float32[Tensor, " dim"]:
        """The class token at length one."""
        return torch.nn.functional.normalize(self.class_token, dim=-1)

    @property
    def local_descriptors(self) -> Float32[Tensor, "n_patches dim"]:
        """The patch tokens, each at length one."""
        return torch.nn.functional.normalize(self.patch_tokens, dim=-1)
