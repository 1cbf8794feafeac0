"""The shapes of the vision transformers that this project knows; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from dinov2kit.errors import ArgumentError


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The shape of a vision transformer and its rule for other image sizes.

    Attributes:
        embed_dim: length of a token.
        depth: number of blocks.
        num_heads: heads of the attention; the released models have 64 channels in each.
        ffn_hidden: hidden width of the feed-forward network.
        ffn: "mlp" (GELU) or "swiglu".
        num_registers: number of register tokens.
        patch_size: side of a patch, in pixels.
        pos_grid: side of the stored grid of position embeddings, in patches.
        interpolate_offset: added to the wanted grid before the scale of the interpolation is computed, in
            patches; 0 interpolates to the wanted size itself.
        interpolate_antialias: whether that interpolation smooths when it shrinks the grid.
        layer_scale: initial value of the LayerScale factors; None for a model without them.

    Raises:
        ArgumentError: the numbers do not make a transformer.
    """

    embed_dim: int
    depth: int
    num_heads: int
    ffn_hidden: int
    ffn: str = "mlp"
    num_registers: int = 0
    patch_size: int = 14
    pos_grid: int = 37
    interpolate_offset: float = 0.1
    interpolate_antialias: bool = False
    layer_scale: float | None = 1.0

    def __post_init__(self) -> None:
        for name in ("embed_dim", "depth", "num_heads", "ffn_hidden", "patch_size", "pos_grid"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        if self.num_registers < 0:
            raise ArgumentError(f"num_registers is {self.num_registers}; wanted 0 or more")
        if self.embed_dim % self.num_heads:
            raise ArgumentError(
                f"embed_dim {self.embed_dim} cannot be divided among {self.num_heads} heads",
                hint="choose embed_dim as a multiple of num_heads",
            )
        if self.ffn not in ("mlp", "swiglu"):
            raise ArgumentError(f"unknown ffn {self.ffn!r}; wanted mlp or swiglu")


def swiglu_hidden(embed_dim: int, mlp_ratio: float = 4.0) -> int:
    """Return the hidden width of a SwiGLU with about as many parameters as an MLP of that ratio."""
    return (int(int(embed_dim * mlp_ratio) * 2 / 3) + 7) // 8 * 8


def released_interpolation(num_registers: int) -> tuple[float, bool]:
    """Return the offset and the antialias of the released weights: they differ with and without registers."""
    return (0.0, True) if num_registers else (0.1, False)


def _released(embed_dim: int, depth: int, num_heads: int, num_registers: int, ffn: str = "mlp") -> ViTConfig:
    offset, antialias = released_interpolation(num_registers)
    return ViTConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        ffn_hidden=4 * embed_dim if ffn == "mlp" else swiglu_hidden(embed_dim),
        ffn=ffn,
        num_registers=num_registers,
        interpolate_offset=offset,
        interpolate_antialias=antialias,
    )


ARCHITECTURES: dict[str, ViTConfig] = {
    "vitt14": _released(192, 12, 3, 4),
    "vits14": _released(384, 12, 6, 0),
    "vitb14": _released(768, 12, 12, 0),
    "vitl14": _released(1024, 24, 16, 0),
    "vitg14": _released(1536, 40, 24, 0, "swiglu"),
    "vits14_reg": _released(384, 12, 6, 4),
    "vitb14_reg": _released(768, 12, 12, 4),
    "vitl14_reg": _released(1024, 24, 16, 4),
    "vitg14_reg": _released(1536, 40, 24, 4, "swiglu"),
}
