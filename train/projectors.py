"""From the tokens of a student to those of its teacher, and the mean of what the teacher says."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup, all_reduce


class Projector(nn.Module):
    """Guess a token of the teacher from one of the student.

    Args:
        dim: width of the student's token.
        target: width of the teacher's.
        hidden: width of the hidden layer; 0 for a linear projector.
    """

    def __init__(self, dim: int, target: int, *, hidden: int = 0) -> None:
        super().__init__()
        layers = [nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, target)] if hidden else []
        self.layers = nn.Sequential(*(layers or [nn.Linear(dim, target)]))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw all weights as those of a head."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Float[Tensor, "*n dim"]) -> Float[Tensor, "*n target"]:
        """Return a guess for each token."""
        guessed: Tensor = self.layers(tokens)
        return guessed


class TokenMean(nn.Module):
    """The mean of the teacher's tokens over all that was seen so far; targets are taken from it.

    What all tokens share says nothing of an image. Without it, a cosine of 0.6 would come for free.

    Args:
        dim: width of a token.
    """

    mean: Tensor
    steps: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("steps", torch.zeros(()))

    @torch.no_grad()
    def follow(self, known: Sequence[tuple[Tensor, ...]], group: ProcessGroup | None) -> None:
        """Count the tokens of one step in, as one mean of all micro-batches and processes."""
        batch = torch.stack([tokens.reshape(-1, tokens.shape[-1]).float().mean(dim=0) for (tokens,) in known])
        mean = batch.mean(dim=0)
        if group is not None:
            all_reduce(mean, group=group)
            mean /= group.size()
        self.steps += 1
        self.mean += (mean - self.mean) / self.steps


def on_grid(patch_tokens: Float[Tensor, "b rows cols dim"], *, count: int) -> Float[Tensor, "b {count} dim"]:
    """Resize maps of tokens to a square of so many patches: bilinear, with antialias where it shrinks."""
    side, maps = math.isqrt(count), patch_tokens.permute(0, 3, 1, 2).float()
    if maps.shape[2:] != (side, side):
        maps = functional.interpolate(
            maps, size=(side, side), mode="bilinear", align_corners=False, antialias=True
        )
    return maps.flatten(2).transpose(1, 2)
