"""Images of several sizes in one sequence of tokens, and branches of a block that skip some of the images.

A packed sequence holds the tokens of all images one after another, group by group; the images of a group have
equal size. Norms and linear layers then work on one long matrix; only attention must know where images end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dinov2kit.errors import ArgumentError

Groups = tuple[tuple[int, int], ...]  # of every group: how many images, how many tokens each has


class Kept(NamedTuple):
    """For which images of a packed sequence a residual branch is computed.

    Attributes:
        groups: the images that are kept.
        images: how many each group has, kept or not.
        rows: where the kept tokens stand in the packed sequence; None when all are kept.
    """

    groups: Groups
    images: tuple[int, ...]
    rows: Int64[Tensor, " kept_tokens"] | None


class Rows(NamedTuple):
    """What a block must know of the packed sequence that it gets; plain numbers and tensors only.

    Attributes:
        attention: the images that take part in the attention.
        ffn: the images that take part in the feed-forward network.
    """

    attention: Kept
    ffn: Kept


def draw_rows(
    groups: Groups,
    rates: Sequence[float],
    *,
    device: torch.device,
    generator: torch.Generator | None = None,
) -> list[Rows]:
    """Draw which images each branch of each block is computed for.

    Of the b images of a group a branch keeps max(floor(b (1 - rate)), 1). Groups and branches draw apart.
    Nothing is drawn where all images are kept.

    Args:
        groups: the packed sequence.
        rates: one share of images to drop per block, 0 or more and below 1.
        device: where the tokens are.
        generator: where the random numbers come from; None for the one of torch.

    Raises:
        ArgumentError: a rate is no such share.

    Source: Huang et al., "Deep networks with stochastic depth", 2016; in this form the list path of
        `NestedTensorBlock` in the released code of Oquab et al., "DINOv2", 2023.
    """
    for rate in rates:
        if not 0 <= rate < 1:
            raise ArgumentError(f"a share of {rate:g} images to drop; wanted 0 or more and below 1")
    images = tuple(count for count, _ in groups)
    everything = Kept(groups, images, None)

    def draw(rate: float) -> Kept:
        kept = tuple((min(max(int(b * (1 - rate)), 1), b), n) for b, n in groups)
        if kept == groups:
            return everything
        first, rows = 0, []
        for (b, n), (k, _) in zip(groups, kept, strict=True):
            of = device if generator is None else generator.device
            chosen = torch.randperm(b, generator=generator, device=of)[:k].to(device)
            tokens = first + n * chosen[:, None] + torch.arange(n, device=device)
            rows.append(tokens.flatten())
            first += b * n
        return Kept(kept, images, torch.cat(rows))

    return [Rows(attention=draw(rate), ffn=draw(rate)) for rate in rates]


def take_kept(tokens: Float[Tensor, "total dim"], kept: Kept) -> Float[Tensor, "kept_tokens dim"]:
    """Return the tokens of the images that are kept."""
    return tokens if kept.rows is None else tokens.index_select(0, kept.rows)


def add_kept(
    tokens: Float[Tensor, "total dim"],
    residual: Float[Tensor, "kept_tokens dim"],
    kept: Kept,
    gamma: Float[Tensor, " dim"] | None,
) -> Float[Tensor, "total dim"]:
    """Add a residual to the tokens that it was computed for; of k kept images of b, b / k times.

    Then the mean over all draws is what all images would get.

    Args:
        tokens: the packed sequence.
        residual: one row for each kept token.
        kept: which ones these are; not all of them.
        gamma: the LayerScale factors; None for none.

    Returns: a new packed sequence of the same dtype.
    """
    assert kept.rows is not None
    parts = torch.split(residual, [k * n for k, n in kept.groups])
    scaled = []
    for part, b, (k, _) in zip(parts, kept.images, kept.groups, strict=True):
        factor = b / max(k, 1)
        scaled.append(part * factor if gamma is None else part * (gamma * factor))
    return tokens.index_add(0, kept.rows, torch.cat(scaled).to(tokens.dtype))
