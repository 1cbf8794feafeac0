"""The shapes of the vision transformers that this project knows; needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches

from dinov2kit.errors import ArgumentError, WeightsError

_SIZES = {  # embed_dim, depth, num_heads, registers of a name without _reg, feed-forward network
    "n": (96, 3, 3, 0, "mlp"),  # nano: for tests and demonstrations
    "t": (192, 12, 3, 4, "mlp"),
    "s": (384, 12, 6, 0, "mlp"),
    "b": (768, 12, 12, 0, "mlp"),
    "l": (1024, 24, 16, 0, "mlp"),
    "g": (1536, 40, 24, 0, "swiglu"),
}
_NAME = re.compile(rf"vit([{''.join(_SIZES)}])([1-9]\d{{0,3}})(_reg([1-9]\d{{0,3}})?)?")
_GRID = 37  # patches along a side of the images that the released models ended with


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
        in_channels: channels of an image.

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
    in_channels: int = 3

    def __post_init__(self) -> None:
        positive = ("embed_dim", "depth", "num_heads", "ffn_hidden", "patch_size", "pos_grid", "in_channels")
        for name in positive:
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


def plain_name(name: str) -> str:
    """Reduce the spellings of the name of an architecture to one."""
    plain = name.strip().lower().replace("-", "_").removeprefix("dinov2_")
    return plain.removesuffix("4") if plain.endswith("_reg4") else plain


def find_architecture(
    name: str,
    *,
    image_size: int | None = None,
    ffn: str | None = None,
    num_registers: int | None = None,
    in_channels: int = 3,
    layer_scale: float | None = 1.0,
) -> ViTConfig:
    """Return the shape that a name means: a size, the side of a patch, and perhaps registers.

    Args:
        name: for instance "vits14", "vitl16" or "vitb14_reg"; sizes are n (nano), t, s, b, l and g; "_reg"
            means 4 registers, "_reg8" means 8.
        image_size: side of the images that the model is trained with, in pixels: they decide the stored grid
            of positions; None for 37 x 37 patches.
        ffn: "mlp" or "swiglu"; None for what the size has.
        num_registers: register tokens; None for what the name says.
        in_channels: channels of an image.
        layer_scale: initial value of the LayerScale factors; None for a model without them.

    Raises:
        WeightsError: there is no such name; the hint has the nearest ones.
        ArgumentError: the numbers do not make a transformer, or images cannot be cut into such patches.
    """
    plain = plain_name(name)
    known = ARCHITECTURES.get(plain) or _parse(plain)
    if known is None:
        raise WeightsError(f"there is no architecture {name!r}", hint=_nearest(plain))
    registers = known.num_registers if num_registers is None else num_registers
    offset, antialias = released_interpolation(registers)
    chosen = known.ffn if ffn is None else ffn
    hidden = swiglu_hidden(known.embed_dim) if chosen == "swiglu" else 4 * known.embed_dim
    if image_size is not None and (image_size < known.patch_size or image_size % known.patch_size):
        nearest = max(round(image_size / known.patch_size), 1) * known.patch_size
        raise ArgumentError(
            f"images of {image_size} pixels cannot be cut into patches of {known.patch_size}",
            hint=f"use a multiple of {known.patch_size}, for instance {nearest}",
        )
    return replace(
        known,
        ffn=chosen,
        ffn_hidden=known.ffn_hidden if chosen == known.ffn else hidden,
        num_registers=registers,
        pos_grid=known.pos_grid if image_size is None else image_size // known.patch_size,
        interpolate_offset=offset,
        interpolate_antialias=antialias,
        in_channels=in_channels,
        layer_scale=layer_scale,
    )


def name_architecture(config: ViTConfig) -> str | None:
    """Return the name of a shape, whatever its images and its LayerScale are; None when it has none."""

    def apart(shape: ViTConfig) -> ViTConfig:
        return replace(shape, pos_grid=_GRID, in_channels=3, layer_scale=1.0)

    named = {name: shape for name, shape in ARCHITECTURES.items() if shape.patch_size == config.patch_size}
    for size in _SIZES:
        for registers in ("", "_reg", f"_reg{config.num_registers}"):
            name = f"vit{size}{config.patch_size}{registers}"
            if name not in named and (shape := _parse(name)) is not None:
                named[name] = shape
    return next((name for name, shape in named.items() if apart(shape) == apart(config)), None)


def _parse(plain: str) -> ViTConfig | None:
    found = _NAME.fullmatch(plain)
    if found is None:
        return None
    embed_dim, depth, num_heads, registers, ffn = _SIZES[found[1]]
    if found[3]:
        registers = int(found[4] or 4)
    offset, antialias = released_interpolation(registers)
    return ViTConfig(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        ffn_hidden=4 * embed_dim if ffn == "mlp" else swiglu_hidden(embed_dim),
        ffn=ffn,
        num_registers=registers,
        patch_size=int(found[2]),
        pos_grid=_GRID,
        interpolate_offset=offset,
        interpolate_antialias=antialias,
    )


def _nearest(plain: str) -> str:
    names = [f"vit{size}{patch}{end}" for size in _SIZES for patch in (4, 8, 14, 16) for end in ("", "_reg")]
    near = get_close_matches(plain, names, n=3, cutoff=0.6)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    sizes = ", ".join(_SIZES)
    return f"{meant}names are vit, a size ({sizes}), the side of a patch, perhaps _reg: vitt14, vitl16_reg"


def _known(name: str) -> ViTConfig:
    shape = _parse(name)
    assert shape is not None
    return shape


ARCHITECTURES: dict[str, ViTConfig] = {
    name: _known(name)
    for name in (
        "vitt14",
        *(f"vit{size}14{registers}" for registers in ("", "_reg") for size in "sblg"),
    )
}
