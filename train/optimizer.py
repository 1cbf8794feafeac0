"""AdamW for a student: groups of parameters with their own factors, and clipping of each module by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import AdamW

from .schedules import Rates
from .train_config import TrainConfig

_BELOW_BLOCKS = ("pos_embed", "patch_embed", "mask_token", "cls_token", "register_tokens")
_TOKENS = ("pos_embed", "mask_token", "cls_token", "register_tokens", "weight_g")


def lr_factors(backbone: nn.Module, *, layer_decay: float, patch_embed: float) -> dict[str, float]:
    """Return the factor of the learning rate of every parameter of a vision transformer.

    The final norm has 1, the last block `layer_decay`, each block below once more, tokens and embeddings once
    more than the first block; the patch embedding `patch_embed` times that.

    Source: the released code, `get_vit_lr_decay_rate`.
    """
    names = [name for name, _ in backbone.named_parameters()]
    blocks = {name: int(found[1]) for name in names if (found := re.search(r"(?:^|\.)blocks\.(\d+)\.", name))}
    depth = 1 + max(blocks.values(), default=-1)
    factors = {}
    for name in names:
        below = any(part in name for part in _BELOW_BLOCKS)
        layer = 0 if below else blocks.get(name, depth) + 1
        factors[name] = layer_decay ** (depth + 1 - layer) * (patch_embed if "patch_embed" in name else 1.0)
    return factors


def decays(name: str, *, decay_tokens: bool) -> bool:
    """Return whether the weights of a parameter decay: not those of biases, norms and LayerScale.

    Args:
        name: of the parameter in its module.
        decay_tokens: whether tokens, positions and the norms of the prototypes do.

    Source: the released code, which lets tokens decay.
    """
    if name.endswith(".bias") or "norm" in name or "gamma" in name:
        return False
    return decay_tokens or not any(part in name for part in _TOKENS)


def parameter_groups(
    modules: Mapping[str, nn.Module] | nn.ModuleDict, config: TrainConfig
) -> list[dict[str, object]]:
    """Gather the parameters that learn into groups of equal factors, one module after another.

    Each group holds `params` and four numbers: `lr_factor`, `decay_factor`, and whether its parameters are
    prototypes, `last_layer`, or belong to the backbone, `backbone`.

    Args:
        modules: the student: "backbone", "dino_head" and, if it has one of its own, "ibot_head".
        config: layer decay, patch embedding and decay of tokens.
    """
    groups: dict[tuple[str, float, bool, bool], list[nn.Parameter]] = {}
    for module_name, module in modules.items():
        factors = (
            lr_factors(module, layer_decay=config.optim.layer_decay, patch_embed=config.optim.patch_embed)
            if module_name == "backbone"
            else {}
        )
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            key = (
                module_name,
                factors.get(name, 1.0),
                decays(name, decay_tokens=config.optim.decay_tokens),
                "last_layer" in name,
            )
            groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_factor": factor,
            "decay_factor": float(decay),
            "last_layer": last_layer,
            "backbone": module_name == "backbone",
        }
        for (module_name, factor, decay, last_layer), parameters in groups.items()
    ]


def build_optimizer(modules: Mapping[str, nn.Module] | nn.ModuleDict, config: TrainConfig) -> AdamW:
    """Return AdamW over the student; `set_rates` gives its groups their rates before every step."""
    return AdamW(
        parameter_groups(modules, config),
        lr=config.peak_lr,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay[0],
        fused=True,  # on a CPU too: a quarter of the time of foreach, and the same to the bit in every run
    )


def set_rates(optimizer: torch.optim.Optimizer, rates: Rates, *, backbone_frozen: bool) -> None:
    """Give every group its learning rate and weight decay of this step.

    Args:
        optimizer: of `build_optimizer`.
        rates: of this step.
        backbone_frozen: give the backbone a learning rate of 0, with which its weights do not decay either.
    """
    for group in optimizer.param_groups:
        lr = rates.last_layer_lr if group["last_layer"] else rates.lr
        group["lr"] = 0.0 if backbone_frozen and group["backbone"] else lr * group["lr_factor"]
        group["weight_decay"] = rates.weight_decay * group["decay_factor"]


def clip_by_module(
    modules: Mapping[str, nn.Module] | nn.ModuleDict, limit: float
) -> dict[str, Float[Tensor, ""]]:
    """Shorten the gradient of each module to a length, each by itself, and return the lengths before.

    Args:
        modules: as for `build_optimizer`; parameters may be sharded.
        limit: longest L2 norm; 0 shortens nothing.

    Returns: the L2 norm of the whole gradient of each module, as a tensor on its device.

    Source: the released code clips backbone and heads apart.
    """
    norms: dict[str, Tensor] = {}
    for name, module in modules.items():
        parameters = [parameter for parameter in module.parameters() if parameter.grad is not None]
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        norms[name] = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if limit:
            clip_grads_with_norm_(parameters, limit, norms[name])
    return norms
