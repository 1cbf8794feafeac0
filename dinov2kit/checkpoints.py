"""Weight files: reading every format that DINOv2 backbones come in, strictly, and writing three of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from dinov2kit.architectures import ViTConfig, released_interpolation, swiglu_hidden
from dinov2kit.blocks import NORM_EPS
from dinov2kit.dialects import looks_like, names_in, to_hugging_face, translate
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.files import written_whole
from dinov2kit.tensor_files import WANTED, load_tensors, save_pickle, save_safetensors, weight_file
from dinov2kit.vit import VisionTransformer

FORMATS = ("released", "safetensors", "hf")  # what `write_checkpoint` writes

_SCHEMA = 1  # of our own safetensors files; it stands in their metadata under "dinov2kit"


@dataclass(frozen=True)
class Checkpoint:
    """A backbone as a file holds it.

    Attributes:
        config: its shape and rules.
        state: all tensors in released naming and order, fp32, on the CPU.
        format: "released", "training", "hf", "timm" or "safetensors" (our own export).
        notes: what was chosen, left out or filled in, for a person to read.
        metadata: the texts that an export of ours carries.
    """

    config: ViTConfig
    state: dict[str, Tensor]
    format: str
    notes: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a backbone from a file of any known format, or from a Hugging Face folder.

    Projection and classification heads (`dialects.HEADS`) are left out; any other tensor that is missing,
    surplus or of a wrong shape is an error. Position embeddings follow the rule of the released weights with
    or without registers, but for exports of ours, which carry their rule.

    Raises:
        WeightsError: the file is missing, damaged, or holds something else; the message says what.
    """
    file = weight_file(Path(path))
    saved, metadata = load_tensors(file)
    if "dinov2kit" in metadata:
        tensors = {name: value for name, value in saved.items() if isinstance(value, Tensor)}
        config = _own_config(file, metadata)
        texts = {key: text for key, text in metadata.items() if key not in ("dinov2kit", "config")}
        return Checkpoint(config, _strict(file, config, tensors), "safetensors", metadata=texts)
    translation = translate(saved)
    if translation is None:
        raise WeightsError(f"{file} holds {looks_like(names_in(saved))}, not DINOv2", hint=WANTED)
    num_heads = _heads_beside(file, translation.tensors) if translation.format == "hf" else None
    try:
        config = infer_config(translation.tensors, num_heads=num_heads)
    except WeightsError as error:
        raise WeightsError(f"{file}: {error.message}", hint=WANTED) from error
    state = _strict(file, config, translation.tensors)
    return Checkpoint(config, state, translation.format, translation.notes)


def write_checkpoint(
    state: Mapping[str, Tensor],
    config: ViTConfig,
    path: Path | str,
    *,
    format: str = "safetensors",
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a backbone; a file appears whole or not at all.

    Args:
        state: all tensors, in released naming.
        config: the shape and rules of the backbone.
        path: the file; for "hf" the folder, which gets `model.safetensors` and `config.json`.
        format: "released" (a flat .pth), "safetensors" (released names, the config in the metadata) or "hf".
        dtype: torch.float32 or torch.float16.
        metadata: texts for a "safetensors" file to carry, for instance its name.

    Raises:
        ArgumentError: the place cannot be written, or the format cannot say what `config` says.
        WeightsError: the state does not fit the config, or its values do not fit the dtype.
    """
    path = Path(path)
    if format not in FORMATS:
        raise ArgumentError(f"unknown format {format!r}; wanted one of {', '.join(FORMATS)}")
    if dtype not in (torch.float32, torch.float16):
        raise ArgumentError(f"weights are written as float32 or float16, not as {dtype}")
    if metadata and format != "safetensors":
        raise ArgumentError(f"the format {format!r} carries no metadata", hint='use format="safetensors"')
    exact = _strict(path, config, state)
    _refuse_what_cannot_be_said(config, exact, format)
    tensors = _rounded(exact, dtype)
    if format == "released":
        save_pickle(tensors, path)
    elif format == "safetensors":
        own = {"dinov2kit": str(_SCHEMA), "config": json.dumps(asdict(config))}
        save_safetensors(tensors, path, {**(metadata or {}), **own})
    else:
        _write_hf_folder(path, to_hugging_face(tensors), _hf_config(config, dtype))


def state_digest(state: Mapping[str, Tensor], config: ViTConfig) -> str:
    """Return the SHA-256 of the function that a backbone computes, the same for every file format.

    It covers names, shapes and fp32 values in released order, and what shapes do not tell: heads and the rule
    for positions. Two things that cannot change an unmasked output do not count: the mask token, and how the
    class token and its position, which are only ever added, share their sum (timm stores the sum).
    """
    untold = [config.num_heads, config.interpolate_offset, config.interpolate_antialias]
    digest = hashlib.sha256(json.dumps(untold).encode())
    summed = {
        "cls_token": state["cls_token"].float() + state["pos_embed"][:, :1].float(),
        "pos_embed": state["pos_embed"][:, 1:],
    }
    for name in released_shapes(config):
        if name == "mask_token":
            continue
        values = summed.get(name, state[name]).detach().cpu().float().contiguous().numpy()
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.astype("<f4", copy=False).data)
    return digest.hexdigest()


def infer_config(state: Mapping[str, Tensor], *, num_heads: int | None = None) -> ViTConfig:
    """Read the shape of a backbone off its tensors; the rule for positions is the released one.

    Args:
        state: tensors in released naming.
        num_heads: heads of the attention, if known; else 64 channels are taken for each.

    Raises:
        WeightsError: the shapes are not those of a DINOv2 backbone.
    """
    needed = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.attn.qkv.weight": 2}
    optional = {"register_tokens": 3, "blocks.0.mlp.w3.weight": 2, "blocks.0.mlp.fc2.weight": 2}
    for name, ndim in (needed | optional).items():
        if name in needed and name not in state:
            raise WeightsError(f"there is no tensor {name}")
        if name in state and state[name].ndim != ndim:
            raise WeightsError(f"{name} has shape {list(state[name].shape)}; wanted {ndim} axes")
    dim = state["cls_token"].shape[-1]
    pos_grid = math.isqrt(max(state["pos_embed"].shape[1] - 1, 0))
    registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
    out = state.get("blocks.0.mlp.w3.weight", state.get("blocks.0.mlp.fc2.weight"))
    if out is None:
        raise WeightsError("there is no feed-forward network: neither blocks.0.mlp.fc2 nor blocks.0.mlp.w3")
    if num_heads is None and dim % 64:
        raise WeightsError(f"embed_dim {dim} is no multiple of 64, so the number of heads is unknown")
    offset, antialias = released_interpolation(registers)
    try:
        return ViTConfig(
            embed_dim=dim,
            depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
            num_heads=num_heads or dim // 64,
            ffn_hidden=out.shape[-1],
            ffn="swiglu" if "blocks.0.mlp.w3.weight" in state else "mlp",
            num_registers=registers,
            patch_size=state["patch_embed.proj.weight"].shape[-1],
            in_channels=state["patch_embed.proj.weight"].shape[1],
            pos_grid=pos_grid,
            interpolate_offset=offset,
            interpolate_antialias=antialias,
            layer_scale=1.0 if "blocks.0.ls1.gamma" in state else None,
        )
    except ArgumentError as error:
        raise WeightsError(error.message) from error


def released_shapes(config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a backbone, in released order."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in VisionTransformer(config).state_dict().items()}


def _strict(path: Path, config: ViTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors in released order and fp32, or say what does not fit."""
    shapes = released_shapes(config)
    faults = {
        "missing": [name for name in shapes if name not in tensors],
        "not expected": [name for name in tensors if name not in shapes],
        "of a wrong shape": [
            f"{name} {list(tensors[name].shape)} (wanted {list(shape)})"
            for name, shape in shapes.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ],
        "no floating-point numbers": [
            name for name in shapes if name in tensors and not tensors[name].is_floating_point()
        ],
    }
    found = [
        f"{len(names)} tensors are {fault}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        for fault, names in faults.items()
        if names
    ]
    if found:
        raise WeightsError(f"{path} is no complete DINOv2 backbone: {'; '.join(found)}", hint=WANTED)
    return {name: tensors[name].detach().cpu().float() for name in shapes}


def _own_config(path: Path, metadata: Mapping[str, str]) -> ViTConfig:
    try:
        if int(metadata["dinov2kit"]) > _SCHEMA:
            raise WeightsError(f"{path} was written by a newer dinov2kit", hint="update dinov2kit")
        return ViTConfig(**json.loads(metadata["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} has a damaged config in its metadata: {error}") from error


def _heads_beside(path: Path, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the number of heads that a Hugging Face config.json beside these very weights names."""
    try:
        facts = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        own = facts["hidden_size"] == tensors["cls_token"].shape[-1]
        return int(facts["num_attention_heads"]) if own else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _refuse_what_cannot_be_said(config: ViTConfig, state: Mapping[str, Tensor], format: str) -> None:
    """Raise when a reader of the format would take the state for another function."""
    if format == "safetensors":
        return
    unknown_heads = format != "hf" and config.embed_dim % 64 != 0
    understood = infer_config(state, num_heads=config.num_heads if format == "hf" or unknown_heads else None)
    differences = [
        f"{name} {value}"
        for name, value in asdict(config).items()
        if name != "layer_scale" and value != getattr(understood, name)
    ]
    if unknown_heads:
        differences.append(f"num_heads {config.num_heads}")
    if format == "hf" and config.layer_scale is None:
        differences.append("no LayerScale")
    if format == "hf" and _mlp_ratio(config) is None:
        differences.append(f"ffn_hidden {config.ffn_hidden}")
    if differences:
        raise ArgumentError(
            f"the format {format!r} cannot say: {', '.join(differences)}", hint='use format="safetensors"'
        )


def _write_hf_folder(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot make the folder {path}: {error.strerror or error}") from error
    save_safetensors(tensors, path / "model.safetensors", {"format": "pt"})
    with written_whole(path / "config.json") as temporary:
        temporary.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _mlp_ratio(config: ViTConfig) -> int | None:
    """Return the whole ratio that gives `ffn_hidden`, if there is one."""
    for ratio in range(1, 17):
        mlp, swiglu = ratio * config.embed_dim, swiglu_hidden(config.embed_dim, float(ratio))
        if config.ffn_hidden == (swiglu if config.ffn == "swiglu" else mlp):
            return ratio
    return None


def _hf_config(config: ViTConfig, dtype: torch.dtype) -> dict[str, object]:
    registers = {"num_register_tokens": config.num_registers} if config.num_registers else {}
    return {
        "architectures": ["Dinov2WithRegistersModel" if registers else "Dinov2Model"],
        "model_type": "dinov2_with_registers" if registers else "dinov2",
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": _mlp_ratio(config),
        "use_swiglu_ffn": config.ffn == "swiglu",
        "image_size": config.pos_grid * config.patch_size,
        "patch_size": config.patch_size,
        "num_channels": config.in_channels,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": NORM_EPS,
        "layerscale_value": config.layer_scale,
        "dtype": str(dtype).removeprefix("torch."),
        **registers,
    }


def _rounded(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    rounded = {name: tensor.to(dtype).contiguous() for name, tensor in state.items()}
    for name, tensor in rounded.items():
        if not tensor.isfinite().all():
            raise WeightsError(f"{name} is not finite as {dtype}")
    return rounded
