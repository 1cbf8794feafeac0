"""The names that training code, Hugging Face and timm give to the tensors of a DINOv2 backbone.

Everything here turns dicts of tensors into dicts of tensors; nothing reads files or checks shapes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

HEADS = (  # what may stand beside a backbone and is left out
    "head.",
    "classifier.",
    "linear_head.",
    "decode_head.",
    "dino_head.",
    "ibot_head.",
    "dino_loss.",
    "ibot_patch_loss.",
)

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_NESTS = ("teacher", "model", "student", "state_dict")  # in the order of preference
_BACKBONES = ("teacher.backbone.", "student.backbone.", "backbone.")

_HF_PREFIXES = ("dinov2.", "dinov2_with_registers.")
_HF_OUTSIDE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_HF_BLOCK = {  # released part of a block: its parts in files, stacked in this order
    "norm1": ("norm1",),
    "attn.qkv": ("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    "attn.proj": ("attention.output.dense",),
    "ls1": ("layer_scale1",),
    "norm2": ("norm2",),
    "mlp.fc1": ("mlp.fc1",),
    "mlp.fc2": ("mlp.fc2",),
    "mlp.w12": ("mlp.weights_in",),
    "mlp.w3": ("mlp.weights_out",),
    "ls2": ("layer_scale2",),
}
_HF_BLOCK_IN_MEMORY = {  # what transformers 5 calls them between loading and saving
    "attn.qkv": ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    "attn.proj": ("attention.o_proj",),
    "mlp.w12": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.w3": ("mlp.down_proj",),
}
_FROM_HF = {
    theirs: (ours, place)
    for table in (_HF_BLOCK, _HF_BLOCK_IN_MEMORY)
    for ours, parts in table.items()
    for place, theirs in enumerate(parts)
}

_SIGNS = (  # a pattern that some name matches, and what such a file is
    (r"rope_embed\.periods|storage_tokens|(model\.)?layer\.0\.attention\.q_proj", "a DINOv3 backbone"),
    (r".*_flat_param", "one shard of an FSDP training checkpoint"),
    (r"decode_head\.", "a segmentation or depth head"),
    (r"(dino|ibot)_head\.", "a projection head of training"),
    (r"(module\.)?layer1\.0\.conv1\.", "a ResNet"),
    (r"encoder\.layers\.encoder_layer_0\.", "a ViT of torchvision"),
    (r"visual\.|transformer\.resblocks\.|text_model\.", "an image and text model"),
    (r"(\w+\.)?encoder\.layer\.0\.", "a Hugging Face transformer that is not DINOv2"),
    (r"blocks\.0\.norm1\.weight", "a ViT that is not DINOv2"),
)


@dataclass(frozen=True)
class Translation:
    """Tensors under their released names.

    Attributes:
        tensors: the backbone, and whatever had no translation under its own name.
        format: "released", "training", "hf" or "timm".
        notes: what was chosen, left out or filled in, for a person to read.
    """

    tensors: dict[str, Tensor]
    format: str
    notes: tuple[str, ...]


def translate(saved: Mapping[str, object]) -> Translation | None:
    """Find the backbone in what a file holds; None when the names are not those of any known format."""
    tensors, notes = _unwrap(saved)
    training = bool(notes)
    tensors, left_out = _without_heads(tensors)
    if any(name.endswith("encoder.layer.0.layer_scale1.lambda1") for name in tensors):
        tensors, kind = _from_hugging_face(tensors), "hf"
    elif {"pos_embed", "blocks.0.ls1.gamma"} <= tensors.keys() and "mask_token" not in tensors:
        tensors, kind = _from_timm(tensors), "timm"
    elif {"cls_token", "mask_token", "blocks.0.norm1.weight"} <= tensors.keys() and not _is_dinov3(tensors):
        kind = "training" if training else "released"
    else:
        return None
    if "mask_token" not in tensors and "cls_token" in tensors:
        tensors["mask_token"] = torch.zeros_like(tensors["cls_token"].reshape(1, -1))
        notes.append("no mask token: zeros")
    if left_out:
        notes.append("left out: " + ", ".join(left_out))
    return Translation(tensors, kind, tuple(notes))


def to_hugging_face(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return released tensors under the names that `transformers` reads."""
    outside = {ours: theirs for theirs, ours in _HF_OUTSIDE.items()}
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name in outside:
            renamed[outside[name]] = tensor
            continue
        _, i, part = name.split(".", 2)
        module, _, kind = part.rpartition(".")
        parts = _HF_BLOCK[module]
        for theirs, piece in zip(parts, tensor.chunk(len(parts)), strict=True):
            renamed[f"encoder.layer.{i}.{theirs}.{'lambda1' if kind == 'gamma' else kind}"] = piece
    return renamed


def looks_like(names: Iterable[str]) -> str:
    """Say in words what a file with these names probably is."""
    known = sorted(names)
    if set(known) and set(known) <= {"weight", "bias"}:
        return "a linear classification head"
    for pattern, meaning in _SIGNS:
        if any(re.match(pattern, name) for name in known):
            return meaning
    return "tensors named " + ", ".join(known[:3]) + (", …" if len(known) > 3 else "") if known else "nothing"


def names_in(saved: Mapping[str, object]) -> list[str]:
    """Return the names of all tensors, as `translate` sees them."""
    return list(_unwrap(saved)[0])


def _unwrap(saved: Mapping[str, object]) -> tuple[dict[str, Tensor], list[str]]:
    """Open nested dicts, drop the names of wrappers, choose a backbone, join chunks of blocks."""
    notes: list[str] = []
    for _ in _NESTS:  # no deeper: a pickle may contain itself
        inner = {key: value for key in _NESTS if isinstance(value := saved.get(key), Mapping)}
        if not inner:
            break
        nest, saved = next(iter(inner.items()))
        notes.append(f"from {nest!r}")
    tensors: dict[str, Tensor] = {}
    for name, value in saved.items():
        if isinstance(value, Tensor):
            plain = ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
            tensors[plain] = value
    if any(set(str(name).split(".")) & _WRAPPERS for name in saved):
        notes.append("wrapper names dropped")
    for prefix in _BACKBONES:
        if any(name.startswith(prefix) for name in tensors):
            tensors = _below(prefix, tensors)
            notes.append(f"from {prefix.removesuffix('.')!r}")
            break
    flat = {re.sub(r"^blocks\.\d+\.(?=\d+\.)", "blocks.", name): name for name in tensors}
    if len(flat) == len(tensors) and flat.keys() != tensors.keys():
        tensors = {name: tensors[nested] for name, nested in flat.items()}
        notes.append("blocks in chunks")
    return tensors, notes


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under a prefix without it, and the others but for the rest of both networks."""
    networks = ("teacher.", "student.") if prefix.startswith(("teacher.", "student.")) else ()
    below = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            below[name.removeprefix(prefix)] = tensor
        elif not name.startswith(networks):
            below[name] = tensor
    return below


def _is_dinov3(names: Iterable[str]) -> bool:
    return any(name.startswith(("rope_embed.", "storage_tokens")) for name in names)


def _without_heads(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(HEADS)}
    return kept, sorted({name.split(".")[0] for name in tensors if name not in kept})


def _from_hugging_face(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        plain = name
        for prefix in _HF_PREFIXES:
            plain = plain.removeprefix(prefix)
        found = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias|lambda1)", plain)
        if found and found[2] in _FROM_HF:
            ours, place = _FROM_HF[found[2]]
            kind = "gamma" if found[3] == "lambda1" else found[3]
            stacks.setdefault(f"blocks.{found[1]}.{ours}.{kind}", {})[place] = tensor
        else:
            renamed[_HF_OUTSIDE.get(plain, name)] = tensor
    for name, parts in stacks.items():
        pieces = [parts[place] for place in sorted(parts)]
        renamed[name] = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
    return renamed


def _from_timm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename what timm renamed; a class position that it added to the class token stays there."""
    renamed = dict(tensors)
    if "reg_token" in renamed:
        renamed["register_tokens"] = renamed.pop("reg_token")
    positions = renamed.get("pos_embed")
    if (
        positions is not None
        and positions.ndim == 3
        and math.isqrt(positions.shape[1]) ** 2 == positions.shape[1]
    ):
        renamed["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    rows, cols = (renamed.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    if rows is not None and cols is not None and len(rows) == 2 * cols.shape[-1]:  # a packed SwiGLU
        fused = {".mlp.fc1.": ".mlp.w12.", ".mlp.fc2.": ".mlp.w3."}
        for theirs, ours in fused.items():
            renamed = {name.replace(theirs, ours): tensor for name, tensor in renamed.items()}
    return renamed
