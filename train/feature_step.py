"""The losses of one batch of distillation by features: how far the student's guess is from the teacher.

A distance is 1 less the cosine between what the projector makes of a token of the student and the token of
the teacher less the mean of all its tokens. The teacher's map is resized to the patches of the student, so
patch sizes, sides and widths may differ.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor, nn

from dinov2kit.vit import Tokens, VisionTransformer

from .colours import finish_crops
from .koleo import koleo
from .networks import Networks
from .parallel import World
from .projectors import TokenMean, on_grid
from .ssl_step import StepLosses, depth_rates, normalisation
from .taught_batches import TaughtBatch
from .teachers import Seen
from .train_config import TrainConfig


def feature_losses(
    networks: Networks,
    crops: Float[Tensor, "b c g g"],
    seen: Seen,
    config: TrainConfig,
    world: World,
    *,
    generator: torch.Generator,
) -> StepLosses:
    """Compute the losses of a batch.

    Args:
        networks: the student, and the means of the teacher's tokens.
        crops: the views, ready for the network.
        seen: the tokens of the teacher.
        config: the weights of the losses.
        world: the processes.
        generator: of the stochastic depth.
    """
    backbone = networks.student["backbone"]
    assert isinstance(backbone, VisionTransformer)
    (tokens,) = backbone.forward_packed(
        [crops], [None], drop_path=depth_rates(backbone, config), generator=generator
    )
    targets, guesses = targets_of(seen, tokens), guesses_of(networks.student, tokens)
    distances = {
        name: 1 - cosines(guesses[name], targets[name], networks.centres[name]).mean() for name in guesses
    }
    chosen = config.distill
    total = chosen.class_token * distances["class_token"]
    if "patch_tokens" in distances:
        total = total + chosen.patch_tokens * distances["patch_tokens"]
    terms = {f"{name}_distance": distance.detach() for name, distance in distances.items()}
    if config.loss.koleo:
        group = world.group if config.loss.koleo_distributed else None
        spread = koleo(tokens.class_token, group=group, top_k=config.loss.koleo_top_k)
        total, terms["koleo"] = total + config.loss.koleo * spread, spread.detach()
    return StepLosses(total, terms, None, {name: (target,) for name, target in targets.items()})


def view_crops(batch: TaughtBatch, config: TrainConfig, world: World) -> Float[Tensor, "b c g g"]:
    """Bring the views of a batch to the device and finish them there."""
    usual = normalisation(config)
    pixels = batch.pixels.to(world.device, non_blocking=True)
    return finish_crops(pixels, batch.colours, mean=usual.mean, std=usual.std)


def targets_of(seen: Seen, tokens: Tokens) -> dict[str, Float[Tensor, "*b target"]]:
    """Return the teacher's tokens, those of patches on the student's grid; by the name of the token."""
    targets: dict[str, Tensor] = {"class_token": seen.class_token.float()}
    if seen.patch_tokens is not None:
        targets["patch_tokens"] = on_grid(seen.patch_tokens, count=tokens.patch_tokens.shape[1])
    return targets


def guesses_of(modules: nn.ModuleDict, tokens: Tokens) -> dict[str, Float[Tensor, "*b target"]]:
    """Return what the projectors make of the student's tokens, by the name of the token."""
    guesses: dict[str, Tensor] = {"class_token": modules["class_projector"](tokens.class_token)}
    if "patch_projector" in modules:
        guesses["patch_tokens"] = modules["patch_projector"](tokens.patch_tokens)
    return guesses


def cosines(
    guess: Float[Tensor, "*b target"], target: Float[Tensor, "*b target"], mean: nn.Module
) -> Float[Tensor, "*b"]:
    """Return the cosine of each guess with its target, which is taken from the mean; in fp32."""
    assert isinstance(mean, TokenMean)
    return functional.cosine_similarity(guess.float(), target - mean.mean, dim=-1, eps=1e-6)
