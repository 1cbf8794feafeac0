"""What a run starts from: the weights of another model, fitted to the shape that the run wants."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor

from dinov2kit.architectures import ViTConfig
from dinov2kit.checkpoints import released_shapes
from dinov2kit.errors import WeightsError
from dinov2kit.positions import interpolate_positions
from dinov2kit.tensor_files import load_tensors, weight_file
from dinov2kit.weights import load_model

from .exporting import HEADS_FILE, PROJECTORS_FILE, read_heads

_SHAPE = ("embed_dim", "depth", "num_heads", "ffn", "ffn_hidden")  # what cannot be fitted

State = dict[str, Tensor]
Report = Callable[[str], object]


def starting_weights(config: ViTConfig, init: str | Path, *, report: Report) -> State:
    """Return weights for a new backbone, from a released model, a weight file or a run.

    Positions, the patch embedding, registers and LayerScale are fitted to the new shape; all else must agree.

    Args:
        config: the shape of the new backbone.
        init: what `load_model` takes.
        report: gets one sentence about the source, and one for each thing that was changed.

    Returns: all tensors in released naming, fp32, on the CPU.

    Raises:
        WeightsError: the model cannot be had, or has another depth or width.
    """
    model = load_model(init)
    source = model.vit.config
    if any(getattr(config, name) != getattr(source, name) for name in _SHAPE):
        raise WeightsError(
            f"{init} does not fit: it has {_shape(source)}; the run wants {_shape(config)}",
            hint="choose the model of the run like that of its start, or leave out init",
        )
    report(f"the backbone starts from {model.name}")
    state = {name: tensor.detach().clone() for name, tensor in model.vit.state_dict().items()}
    _fit_patches(state, source, config, report)
    if source.pos_grid != config.pos_grid:
        old, new = source.pos_grid, config.pos_grid
        state["pos_embed"] = resize_positions(state["pos_embed"], new)
        report(f"positions are resized from {old} x {old} to {new} x {new} patches")
    _fit_registers(state, config, report)
    _fit_layer_scale(state, source, config, report)
    return {name: state[name] for name in released_shapes(config)}


def starting_heads(init: str | Path) -> tuple[State, dict[str, dict[str, object]]] | None:
    """Return the heads that lie beside the weights of a run, and their shapes; None where there are none.

    Args:
        init: as for `starting_weights`.

    Raises:
        WeightsError: they are damaged.
    """
    path = Path(init).expanduser()
    try:
        beside = weight_file(path).with_name(HEADS_FILE)
    except WeightsError:  # a folder without weights, named like a released model
        return None
    if not path.exists() or not beside.is_file():
        return None
    state, shapes = read_heads(beside)
    return (state, shapes) if state else None


def starting_projectors(init: str | Path) -> State | None:
    """Return the projectors that lie beside the weights of a run; None where there are none.

    Args:
        init: as for `starting_weights`.

    Raises:
        WeightsError: they are damaged.
    """
    path = Path(init).expanduser()
    try:
        beside = weight_file(path).with_name(PROJECTORS_FILE)
    except WeightsError:  # a folder without weights, named like a released model
        return None
    if not path.exists() or not beside.is_file():
        return None
    tensors, _ = load_tensors(beside)
    return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


def resize_positions(
    pos_embed: Float[Tensor, "1 n_stored dim"], grid: int
) -> Float[Tensor, "1 n_wanted dim"]:
    """Resize stored positions to a square grid: bicubic, in fp32, with antialias where the grid shrinks."""
    side = math.isqrt(pos_embed.shape[1] - 1)
    return interpolate_positions(pos_embed, rows=grid, cols=grid, offset=0.0, antialias=grid < side)


def resize_patch_embedding(
    weight: Float[Tensor, "dim channels stored stored"], patch_size: int
) -> Float[Tensor, "dim channels wanted wanted"]:
    """Resize the weights of a patch embedding so that they see in a resized patch what they saw before.

    With B the matrix that resizes a patch of pixels, the new weights minimise the mean of (w'·Bx - w·x)² over
    patches x of independent pixels: w' = pinv(Bᵀ) w. Where patches grow, w'·Bx = w·x for every patch.

    Args:
        weight: of square patches.
        patch_size: wanted side, in pixels.

    Source: Beyer et al., "FlexiViT: One model for all patch sizes", 2023, section 3.4.
    """
    stored = weight.shape[-1]
    pixels = torch.eye(stored**2, dtype=torch.float64).reshape(-1, 1, stored, stored)
    resized = functional.interpolate(
        pixels, size=(patch_size, patch_size), mode="bilinear", align_corners=False, antialias=True
    )
    inverse = torch.linalg.pinv(resized.flatten(1))  # row i of what it inverts is the resized pixel i
    fitted: Tensor = weight.double().flatten(2) @ inverse.T
    return fitted.reshape(*weight.shape[:2], patch_size, patch_size).to(weight.dtype)


def spread_channels(
    weight: Float[Tensor, "dim stored height width"], channels: int
) -> Float[Tensor, "dim channels height width"]:
    """Give a patch embedding other channels: each gets the mean of the old ones.

    What is equal in all channels is seen as strongly as before.
    """
    stored = weight.shape[1]
    return weight.mean(dim=1, keepdim=True).repeat(1, channels, 1, 1) * (stored / channels)


def _shape(config: ViTConfig) -> str:
    return ", ".join(f"{name} {getattr(config, name)}" for name in _SHAPE)


def _fit_patches(state: State, source: ViTConfig, config: ViTConfig, report: Report) -> None:
    name = "patch_embed.proj.weight"
    if source.in_channels != config.in_channels:
        state[name] = spread_channels(state[name], config.in_channels)
        report(f"the patch embedding is spread from {source.in_channels} to {config.in_channels} channels")
    if source.patch_size != config.patch_size:
        state[name] = resize_patch_embedding(state[name], config.patch_size)
        report(f"the patch embedding is resized from {source.patch_size} to {config.patch_size} pixels")


def _fit_registers(state: State, config: ViTConfig, report: Report) -> None:
    stored = state.pop("register_tokens", torch.empty(1, 0, config.embed_dim))
    have, want = stored.shape[1], config.num_registers
    if want > have:
        generator = torch.Generator().manual_seed(0)  # almost zero, as at the start of any training
        new = 1e-6 * torch.randn(1, want - have, config.embed_dim, generator=generator)
        stored = torch.cat([stored, new], dim=1)
        report(f"{want - have} of {want} register tokens are new")
    elif want < have:
        report(f"{have - want} of {have} register tokens are left out")
    if want:
        state["register_tokens"] = stored[:, :want]


def _fit_layer_scale(state: State, source: ViTConfig, config: ViTConfig, report: Report) -> None:
    """Add factors of 1, or multiply the last layer of each branch by the factors that shall go."""
    have, want = source.layer_scale is not None, config.layer_scale is not None
    if have == want:
        return
    last = {"ls1": "attn.proj", "ls2": "mlp.w3" if config.ffn == "swiglu" else "mlp.fc2"}
    for i in range(config.depth):
        for scale, layer in last.items():
            if want:
                state[f"blocks.{i}.{scale}.gamma"] = torch.ones(config.embed_dim)
                continue
            gamma = state.pop(f"blocks.{i}.{scale}.gamma")
            state[f"blocks.{i}.{layer}.weight"] *= gamma[:, None]
            state[f"blocks.{i}.{layer}.bias"] *= gamma
    report("LayerScale is new, with factors of 1" if want else "LayerScale is multiplied into the weights")
