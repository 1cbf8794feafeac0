"""The DINOv2 vision transformer, numerically equal to the released models.

Tokens stand in the order class token, register tokens, patch tokens (row-major). State-dict names are those
of the released weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dinov2kit.architectures import ARCHITECTURES, ViTConfig
from dinov2kit.blocks import NORM_EPS, Block, Facet, LayerScale
from dinov2kit.errors import ArgumentError
from dinov2kit.packing import draw_rows
from dinov2kit.patch_embed import PatchEmbed, patch_grid
from dinov2kit.positions import interpolate_positions, subdivide_positions

__all__ = ["ARCHITECTURES", "Tokens", "ViTConfig", "VisionTransformer", "interpolate_positions"]


@dataclass(frozen=True)
class Tokens:
    """What the transformer makes of images; for a single image, without the batch axis.

    Attributes:
        class_token: the class token after the final norm.
        register_tokens: the register tokens after the final norm; none for a model without registers.
        patch_tokens: the patch tokens after the final norm, row-major.
        prenorm: all tokens before the final norm.
    """

    class_token: Float[Tensor, "*batch dim"]
    register_tokens: Float[Tensor, "*batch n_registers dim"]
    patch_tokens: Float[Tensor, "*batch n_patches dim"]
    prenorm: Float[Tensor, "*batch n_tokens dim"]


class VisionTransformer(nn.Module):
    """A DINOv2 backbone with freshly initialised weights.

    Attributes:
        config: its shape.
        recompute: whether `forward_packed` keeps no activations inside the blocks and computes them again in
            the backward pass: much less memory, a third more time.

    Source: Oquab et al., "DINOv2", 2023; Darcet et al., "Vision transformers need registers", 2023.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        dim = config.embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.pos_grid**2, dim))
        self.register_tokens: nn.Parameter | None = None
        if config.num_registers:
            self.register_tokens = nn.Parameter(torch.empty(1, config.num_registers, dim))
        self.mask_token = nn.Parameter(torch.empty(1, dim))
        self.patch_embed = PatchEmbed(config.patch_size, dim, config.in_channels)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads=config.num_heads,
                ffn=config.ffn,
                ffn_hidden=config.ffn_hidden,
                layer_scale=config.layer_scale,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.init_weights()

    @classmethod
    def from_state(cls, config: ViTConfig, state: Mapping[str, Tensor]) -> VisionTransformer:
        """Return a model in evaluation mode that holds the tensors of `state` themselves, not copies."""
        with torch.device("meta"):
            vit = cls(config)
        vit.load_state_dict(state, assign=True)
        return vit.eval()

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as the released code does before training from scratch."""
        with torch.no_grad():
            nn.init.trunc_normal_(self.pos_embed, std=0.02, generator=generator)
            nn.init.normal_(self.cls_token, std=1e-6, generator=generator)
            if self.register_tokens is not None:
                nn.init.normal_(self.register_tokens, std=1e-6, generator=generator)
            nn.init.zeros_(self.mask_token)
            bound = 1 / math.sqrt(self.config.in_channels * self.config.patch_size**2)
            for parameter in self.patch_embed.parameters():
                parameter.uniform_(-bound, bound, generator=generator)
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                    nn.init.zeros_(module.bias)
                elif isinstance(module, nn.LayerNorm):
                    module.reset_parameters()
                elif isinstance(module, LayerScale):
                    nn.init.constant_(module.gamma, self.config.layer_scale or 0.0)

    def forward(
        self,
        images: Float[Tensor, "*batch channels height width"],
        masks: Bool[Tensor, "*batch n_patches"] | None = None,
    ) -> Tokens:
        """Compute the tokens of a batch of images, or of a single image.

        Args:
            images: normalised RGB; both sides are multiples of the patch size.
            masks: patches to hide, row-major; the mask token takes their place.

        Raises:
            ArgumentError: the images or masks have a shape that this model cannot take.
        """
        tokens = self._embed(images, masks)
        for block in self.blocks:
            tokens = block(tokens)
        return self._finish(tokens if images.ndim == 4 else tokens[0])

    def forward_packed(
        self,
        images: Sequence[Float[Tensor, "_ channels _ _"]],
        masks: Sequence[Bool[Tensor, "_ _"] | None],
        *,
        drop_path: Sequence[float] = (),
        generator: torch.Generator | None = None,
    ) -> list[Tokens]:
        """Compute the tokens of several batches at once; images of a batch have equal size.

        It equals `forward` of each batch, but for stochastic depth.

        Args:
            images: one batch per size, as for `forward`.
            masks: for each batch the patches to hide, or None.
            drop_path: for each block the share of images that each of its branches skips; empty for none.
            generator: of the stochastic depth; None for the one of torch.

        Raises:
            ArgumentError: the images, masks or shares do not fit this model or each other.
        """
        if not images or len(images) != len(masks) or len(drop_path) not in (0, self.config.depth):
            raise ArgumentError(
                f"{len(images)} batches, {len(masks)} masks and {len(drop_path)} shares to drop; wanted as "
                f"many masks as batches, 1 or more, and {self.config.depth} shares or none"
            )
        batches = [self._embed(batch, mask) for batch, mask in zip(images, masks, strict=True)]
        groups = tuple((len(batch), batch.shape[1]) for batch in batches)
        tokens = torch.cat([batch.flatten(0, 1) for batch in batches])
        rates = drop_path or (0.0,) * self.config.depth
        drawn = draw_rows(groups, rates, device=tokens.device, generator=generator)
        for block, rows in zip(self.blocks, drawn, strict=True):
            if self.recompute and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, rows, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens = block(tokens, rows)
        parts = torch.split(tokens, [b * n for b, n in groups])
        dim = self.config.embed_dim
        return [self._finish(part.view(*group, dim)) for part, group in zip(parts, groups, strict=True)]

    def read_patches(
        self,
        images: Float[Tensor, "batch channels height width"],
        *,
        layer: int = -1,
        facet: Facet = "token",
        norm: bool = True,
        stride: int = 0,
    ) -> tuple[Tokens, Float[Tensor, "batch n_patches dim"]]:
        """Compute the tokens, and what the patches say inside the network.

        Args:
            images: normalised RGB; both sides are multiples of the patch size.
            layer: block to read, from 0; negative numbers count from the last one.
            facet: "token" is the token after the block; "query", "key" and "value" are those of its
                attention, all heads side by side.
            norm: pass tokens through the final norm; the other facets never do.
            stride: pixels from one patch to the next, a divisor of the patch size; 0 is the patch size.

        Returns: the tokens as `forward` has them, and one row per patch, row-major, without any other token.

        Raises:
            ArgumentError: the layer does not exist, the stride does not divide the patch size, or the images
                have a wrong shape.

        Source: Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021 (facets, overlap).
        """
        depth, first_patch = self.config.depth, 1 + self.config.num_registers
        if not -depth <= layer < depth:
            raise ArgumentError(
                f"layer {layer} was asked of a model with {depth}; wanted {-depth} to {depth - 1}"
            )
        tokens = self._embed(images, None, stride)
        for i, block in enumerate(self.blocks):
            before, tokens = tokens, block(tokens)
            if i == layer % depth:
                assert isinstance(block, Block)
                read = tokens if facet == "token" else block.facet(before, facet)
        read = self.norm(read) if norm and facet == "token" else read
        return self._finish(tokens), read[:, first_patch:]

    def _finish(self, tokens: Float[Tensor, "*batch n_tokens dim"]) -> Tokens:
        normed = self.norm(tokens)
        first_patch = 1 + self.config.num_registers
        return Tokens(
            class_token=normed[..., 0, :],
            register_tokens=normed[..., 1:first_patch, :],
            patch_tokens=normed[..., first_patch:, :],
            prenorm=tokens,
        )

    @overload
    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = ...,
        *,
        reshape: bool = ...,
        return_class_token: Literal[False] = ...,
        norm: bool = ...,
    ) -> tuple[Tensor, ...]: ...

    @overload
    def get_intermediate_layers(
        self,
        images: Tensor,
        n: int | Sequence[int] = ...,
        *,
        reshape: bool = ...,
        return_class_token: Literal[True],
        norm: bool = ...,
    ) -> tuple[tuple[Tensor, Tensor], ...]: ...

    def get_intermediate_layers(
        self,
        images: Float[Tensor, "*batch channels height width"],
        n: int | Sequence[int] = 1,
        *,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[Tensor, ...] | tuple[tuple[Tensor, Tensor], ...]:
        """Return the patch tokens after some blocks, in the order of the blocks.

        Args:
            images: as for `forward`.
            n: how many of the last blocks, or which blocks, counted from 0.
            reshape: return maps (batch, dim, rows, cols) instead of rows (batch, n_patches, dim).
            return_class_token: return pairs of patch tokens and class token (batch, dim).
            norm: apply the final norm to each.

        Raises:
            ArgumentError: a block does not exist, or the images have a wrong shape.
        """
        wanted = self._wanted_blocks(n)
        rows, cols = patch_grid(images, self.config)
        first_patch = 1 + self.config.num_registers
        tokens = self._embed(images, None)
        patch_tokens, class_tokens = [], []
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            tokens = block(tokens)
            if i not in wanted:
                continue
            layer = tokens[0] if images.ndim == 3 else tokens
            layer = self.norm(layer) if norm else layer
            patches = layer[..., first_patch:, :]
            if reshape:
                patches = patches.transpose(-1, -2).unflatten(-1, (rows, cols)).contiguous()
            patch_tokens.append(patches)
            class_tokens.append(layer[..., 0, :])
        if return_class_token:
            return tuple(zip(patch_tokens, class_tokens, strict=True))
        return tuple(patch_tokens)

    def _wanted_blocks(self, n: int | Sequence[int]) -> set[int]:
        depth = self.config.depth
        wanted = set(range(depth - n, depth)) if isinstance(n, int) else set(n)
        if not wanted or min(wanted) < 0 or max(wanted) >= depth:
            raise ArgumentError(
                f"blocks {n} were asked of a model with {depth}",
                hint=f"ask for 1 to {depth} last blocks, or for block numbers from 0 to {depth - 1}",
            )
        return wanted

    def _embed(
        self, images: Tensor, masks: Tensor | None, stride: int = 0
    ) -> Float[Tensor, "batch n_tokens dim"]:
        """Turn images into the tokens that the first block takes."""
        rows, cols = patch_grid(images, self.config, stride)
        flat = images.to(self.cls_token.dtype).reshape(-1, *images.shape[-3:])
        patches = self.patch_embed(flat, stride).to(self.cls_token.dtype)  # autocast rounds no position
        if masks is not None:
            if masks.shape != (*images.shape[:-3], rows * cols):
                raise ArgumentError(
                    f"masks of shape {tuple(masks.shape)} for images of shape {tuple(images.shape)}; "
                    f"wanted {rows * cols} patches in each"
                )
            hidden = masks.reshape(-1, rows * cols, 1)
            patches = torch.where(hidden, self.mask_token.to(patches.dtype), patches)
        positions = interpolate_positions(
            self.pos_embed,
            rows=rows,
            cols=cols,
            offset=self.config.interpolate_offset,
            antialias=self.config.interpolate_antialias,
        ).to(patches.dtype)
        between = subdivide_positions(
            positions[:, 1:], rows=rows, cols=cols, parts=self.config.patch_size // stride if stride else 1
        ).to(patches.dtype)
        leading = self.cls_token + positions[:, :1]
        if self.register_tokens is not None:
            leading = torch.cat([leading, self.register_tokens], dim=1)
        return torch.cat([leading.expand(patches.shape[0], -1, -1), patches + between], dim=1)
