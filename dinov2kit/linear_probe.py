"""Many linear heads trained at once on the same rows: each layer choice, with each learning rate.

Source: the linear evaluation of the released code of Oquab et al., "DINOv2", 2023: SGD with momentum 0.9, no
weight decay, learning rates along half a cosine to 0, a learning rate for a batch of 256 images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from dinov2kit.linear_head import wanted_columns

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
_MOMENTUM, _SPREAD, _RATE_BATCH = 0.9, 0.01, 256


class HeadKey(NamedTuple):
    """Which head: how many blocks it sees, whether it sees the mean patch token, its learning rate."""

    layers: int
    average: bool
    rate: float

    @property
    def name(self) -> str:
        """A name that no other head has."""
        return f"layers {self.layers}{', mean patch' if self.average else ''}, lr {self.rate:g}"


@dataclass
class HeadGroup:
    """The heads that see the same columns, one for each learning rate.

    Attributes:
        layers: of how many of the last blocks they see the class token.
        average: whether they see the mean patch token.
        rates: their learning rates, for a batch of 256.
        weight: of all heads.
        bias: of all heads.
        velocity: the momentum of both.
    """

    layers: int
    average: bool
    rates: tuple[float, ...]
    weight: Float32[Tensor, "heads classes width"]
    bias: Float32[Tensor, "heads classes"]
    velocity: tuple[Tensor, Tensor]

    @classmethod
    def draw(
        cls, layers: int, average: bool, rates: Sequence[float], *, classes: int, dim: int, seed: int
    ) -> HeadGroup:
        """Draw heads: weights with a deviation of 0.01, biases 0; all rates begin with the same."""
        generator = torch.Generator().manual_seed(seed)
        width = (layers + average) * dim
        one = _SPREAD * torch.randn(classes, width, generator=generator)
        weight = one.repeat(len(rates), 1, 1)
        bias = torch.zeros(len(rates), classes)
        velocity = (torch.zeros_like(weight), torch.zeros_like(bias))
        return cls(layers, average, tuple(rates), weight, bias, velocity)

    def to(self, device: torch.device | str) -> HeadGroup:
        """Return the same on a device."""
        weight_velocity, bias_velocity = (each.to(device) for each in self.velocity)
        moved = self.weight.to(device), self.bias.to(device)
        return HeadGroup(self.layers, self.average, self.rates, *moved, (weight_velocity, bias_velocity))

    def logits(self, rows: Float32[Tensor, "n width"]) -> Float32[Tensor, "heads n classes"]:
        """Return the logits of all heads."""
        return torch.baddbmm(
            self.bias[:, None], rows.expand(len(self.rates), -1, -1), self.weight.transpose(1, 2)
        )

    def step(
        self, rows: Float32[Tensor, "n width"], labels: Int64[Tensor, " n"], *, share: float
    ) -> Float32[Tensor, " heads"]:
        """Do one step of SGD on the mean cross-entropy of each head; return the losses before it.

        Args:
            rows: a batch.
            labels: their classes.
            share: of the full learning rates.
        """
        logits = self.logits(rows)
        log_shares = logits.log_softmax(dim=2)
        losses = -log_shares[:, torch.arange(len(rows)), labels].mean(dim=1)
        slope = log_shares.exp()
        slope[:, torch.arange(len(rows)), labels] -= 1
        slope /= len(rows)
        gradients = slope.transpose(1, 2) @ rows, slope.sum(dim=1)
        rates = share * torch.tensor(self.rates, device=rows.device) * len(rows) / _RATE_BATCH
        for values, speed, gradient in zip((self.weight, self.bias), self.velocity, gradients, strict=True):
            speed.mul_(_MOMENTUM).add_(gradient)
            values.sub_(speed * rates.reshape(-1, *[1] * (values.ndim - 1)))
        return losses


@torch.no_grad()
def train_heads(
    rows: Float32[np.ndarray, "views n wide"],
    labels: Int64[np.ndarray, " n"],
    *,
    dim: int,
    classes: int,
    steps: int,
    batch: int = 128,
    rates: Sequence[float] = RATES,
    layers: Sequence[int] = (1, 4),
    seed: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[], None] | None = None,
) -> list[HeadGroup]:
    """Train all heads on the same batches.

    Args:
        rows: of `Encoder.embed_layers`, of several views of each image; epochs go round the views.
        labels: the class of each image, from 0.
        dim: width of a token.
        classes: how many there are.
        steps: of SGD.
        batch: images in a step.
        rates: learning rates for a batch of 256.
        layers: of how many of the last blocks heads see the class token, with and without the mean patch.
        seed: of the weights and of the order.
        device: where it is computed.
        advance: called after each step.

    Returns: a group of heads for each choice of columns.
    """
    groups = [
        HeadGroup.draw(each, average, rates, classes=classes, dim=dim, seed=seed).to(device)
        for each in layers
        for average in (False, True)
    ]
    views, count, _ = rows.shape
    truth = torch.from_numpy(labels)
    order, epoch = np.empty(0, np.int64), 0
    for step in range(steps):
        while len(order) < batch:
            drawn = np.random.default_rng([seed, epoch]).permutation(count)
            order, epoch = np.concatenate([order, drawn + count * (epoch % views)]), epoch + 1
        chosen, order = order[:batch], order[batch:]
        part = rows[chosen // count, chosen % count]
        classes_of = truth[chosen % count].to(device)
        share = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in groups:
            seen = torch.from_numpy(wanted_columns(part, dim, group.layers, group.average))
            group.step(seen.to(device), classes_of, share=share)
        if advance is not None:
            advance()
    return groups


@torch.no_grad()
def rank_classes(
    groups: Sequence[HeadGroup], rows: Float32[np.ndarray, "n wide"], *, dim: int, top: int = 5
) -> dict[HeadKey, Int64[np.ndarray, "n top"]]:
    """Return for each head the best classes of each row, the best first."""
    found: dict[HeadKey, list[np.ndarray]] = {}
    for start in range(0, len(rows), 1024):
        for group in groups:
            seen = torch.from_numpy(
                np.ascontiguousarray(
                    wanted_columns(rows[start : start + 1024], dim, group.layers, group.average)
                )
            )
            logits = group.logits(seen.to(group.weight.device))
            best = logits.topk(min(top, logits.shape[2]), dim=2).indices.cpu().numpy()
            for rate, ranked in zip(group.rates, best, strict=True):
                found.setdefault(HeadKey(group.layers, group.average, rate), []).append(ranked)
    return {key: np.concatenate(parts) for key, parts in found.items()}
