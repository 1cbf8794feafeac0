"""Losses on descriptors of two views whose correspondence is known."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def info_nce(
    descriptors0: Float[Tensor, "n dim"], descriptors1: Float[Tensor, "n dim"], logit_scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return how badly each keypoint is told from all others, in both directions.

    Args:
        descriptors0: of the keypoints in view 0, of length one.
        descriptors1: of the same keypoints in view 1.
        logit_scale: logarithm of the factor of the cosines.

    Source: van den Oord et al., "Representation Learning with Contrastive Predictive Coding", 2018,
        equation 4; symmetric as in Radford et al. (CLIP), 2021.
    """
    logits = logit_scale.exp() * descriptors0 @ descriptors1.T
    same = torch.arange(len(logits), device=logits.device)
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, same) + cross_entropy(logits.T, same)) / 2


def gaussian_cross_entropy(
    descriptors0: Float[Tensor, "n dim"],
    descriptors1: Float[Tensor, "n_patches dim"],
    cells1: Float[Tensor, "n 2"],
    *,
    rows: int,
    cols: int,
    sigma: float,
    logit_scale: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Return how far the similarity maps of keypoints are from a Gaussian around their true places.

    It is the cross-entropy above its least value, the entropy of the Gaussian: 0 is perfect for every sigma.

    Args:
        descriptors0: of the keypoints in view 0, of length one.
        descriptors1: of all cells of view 1, row-major, of length one.
        cells1: where the keypoints are in view 1, in its cell frame.
        rows: cells from top to bottom.
        cols: cells from left to right.
        sigma: of the Gaussian, in cells.
        logit_scale: as for `info_nce`.

    Source: the dense loss of MARCO (Gaussian targets, sigma annealed during training).
    """
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(cols), indexing="ij")
    places = torch.stack([x.flatten(), y.flatten()], dim=1).to(cells1)
    distances = (cells1[:, None] - places).square().sum(dim=2)
    wanted = torch.log_softmax(-distances / (2 * sigma**2), dim=1)
    found = torch.log_softmax(logit_scale.exp() * descriptors0 @ descriptors1.T, dim=1)
    return torch.nn.functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def one_cycle(progress: float, peak: float) -> float:
    """Return the learning rate at a share of the training: a cosine up for 30 %, then one down to nothing.

    Source: Smith and Topin, "Super-Convergence", 2018; shape and factors of torch's `OneCycleLR`.
    """
    low, end, rise = peak / 25, peak / 25e4, 0.3
    start, stop, part = (
        (low, peak, progress / rise) if progress < rise else (peak, end, (progress - rise) / (1 - rise))
    )
    return stop + (start - stop) * (1 + math.cos(math.pi * part)) / 2
