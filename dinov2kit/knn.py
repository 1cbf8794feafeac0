"""Weighted kNN: the classes of the nearest labelled images vote, the nearer the louder.

Blocks of queries are compared with blocks of the bank, so that memory does not grow with either.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from dinov2kit.errors import ArgumentError

TEMPERATURE = 0.07
KS = (10, 20, 100, 200)
TOP = 5  # how many classes are ranked

_MEMORY = 1 << 26  # bytes of scores at a time
_BANK_BLOCK, _QUERIES = 1 << 16, 4096  # rows at a time, at most


def nearest(
    bank: Float[np.ndarray, "n dim"],
    queries: Float[np.ndarray, "m dim"],
    k: int,
    *,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Int64[np.ndarray, "b k"], Float32[np.ndarray, "b k"]]]:
    """Yield the k nearest rows of the bank for the next few queries, best first, equal scores by row.

    Args:
        bank: descriptors of any length above 0.
        queries: the same.
        k: how many.
        device: what computes.

    Yields: for each of the next queries, rows of the bank and their cosines.

    Raises:
        ArgumentError: the bank has fewer than k rows.
    """
    check_bank(len(bank), [k])
    width = min(len(bank), _BANK_BLOCK)
    step = max(1, min(_QUERIES, _MEMORY // (4 * (width + k))))
    for start in range(0, len(queries), step):
        asked = _unit(queries[start : start + step], device)
        scores = torch.zeros((len(asked), 0), device=device)
        places = torch.zeros((len(asked), 0), dtype=torch.int64, device=device)
        for first in range(0, len(bank), width):
            block = asked @ _unit(bank[first : first + width], device).T
            kept = places.shape[1]
            scores, columns = _best(torch.cat([scores, block], dim=1), k)
            places = torch.cat([places, places.new_zeros(len(asked), 1)], dim=1)  # something to gather from
            earlier = places.gather(1, columns.clamp(max=kept))
            places = torch.where(columns < kept, earlier, columns - kept + first)
        yield places.cpu().numpy(), scores.cpu().numpy()


def vote(
    places: Int64[np.ndarray, "m max_k"],
    scores: Float32[np.ndarray, "m max_k"],
    labels: Int64[np.ndarray, " n"],
    ks: Sequence[int],
    *,
    temperature: float = TEMPERATURE,
) -> dict[int, Int64[np.ndarray, "m top"]]:
    """Return for each k the classes with the most votes, best first, equal votes by class.

    The weights are a softmax of the cosines over temperature, over all neighbours given; for each k the first
    k of them vote. A class without a vote is -1.

    Args:
        places: rows of the bank, nearest first, as `nearest` gives them.
        scores: their cosines.
        labels: class of each row of the bank, from 0.
        ks: how many neighbours vote; none above the number given.
        temperature: of the softmax.

    Raises:
        ArgumentError: a k is out of range, or the temperature is not above 0.

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018;
        the evaluation of Oquab et al., "DINOv2", 2023.
    """
    check_bank(places.shape[1], ks)
    if not temperature > 0:
        raise ArgumentError(f"temperature is {temperature}; wanted above 0")
    weights = np.exp((scores.astype(np.float64) - scores.max(axis=1, keepdims=True)) / temperature)
    weights /= weights.sum(axis=1, keepdims=True)
    voters = labels[places]
    votes = np.zeros((len(places), int(labels.max()) + 1))
    rows = np.arange(len(places))
    found, done = {}, 0
    for k in sorted(set(ks)):
        for at in range(done, k):
            votes[rows, voters[:, at]] += weights[:, at]
        done = k
        order = np.argsort(-votes, axis=1, kind="stable")[:, :TOP]
        found[k] = np.where(np.take_along_axis(votes, order, axis=1) > 0, order, -1).astype(np.int64)
    return found


def classify(
    bank: Float[np.ndarray, "n dim"],
    labels: Int64[np.ndarray, " n"],
    queries: Float[np.ndarray, "m dim"],
    *,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
    device: torch.device | str = "cpu",
) -> dict[int, Int64[np.ndarray, "m top"]]:
    """Return for each k the classes of each query, best first, see `vote`.

    Raises:
        ArgumentError: the bank has fewer rows than the largest k, or an argument is out of range.
    """
    check_bank(len(bank), ks)
    parts = [
        vote(places, scores, labels, ks, temperature=temperature)
        for places, scores in nearest(bank, queries, max(ks), device=device)
    ]
    return {k: np.concatenate([part[k] for part in parts]) for k in sorted(set(ks))}


def draw_shots(labels: Int64[np.ndarray, " n"], shots: int, *, seed: int) -> Int64[np.ndarray, " s"]:
    """Return the rows of a bank with so many images of each class, drawn without repetition, ascending.

    A class that has fewer gives all that it has.

    Raises:
        ArgumentError: shots is below 1.
    """
    if shots < 1:
        raise ArgumentError(f"{shots} shots; wanted 1 or more images per class")
    rng = np.random.default_rng(seed)
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    rows: Int64[np.ndarray, " s"] = np.sort(np.concatenate(drawn)).astype(np.int64)
    return rows


def check_bank(count: int, ks: Sequence[int]) -> None:
    """Refuse numbers of neighbours that a bank does not have.

    Raises:
        ArgumentError: there is no k, one is below 1, or one is above the number of images in the bank.
    """
    if not ks or min(ks) < 1:
        raise ArgumentError(f"k is {min(ks, default='missing')}; wanted 1 or more")
    if max(ks) > count:
        raise ArgumentError(
            f"k is {max(ks)}, but the bank has only {count} images",
            hint=f"ask for {count} neighbours or fewer, or add images",
        )


def _unit(rows: Float[np.ndarray, "n dim"], device: torch.device | str) -> Float[Tensor, "n dim"]:
    moved = torch.from_numpy(np.ascontiguousarray(rows, np.float32)).to(device)
    return torch.nn.functional.normalize(moved, dim=1)


def _best(scores: Float[Tensor, "m wide"], k: int) -> tuple[Float[Tensor, "m k"], Int64[Tensor, "m k"]]:
    """Return the k best scores of each row and their columns, best first, equal ones by column."""
    k = min(k, scores.shape[1])
    cut = scores.topk(k, dim=1).values[:, -1:]
    keep = scores >= cut
    surplus = keep.sum(dim=1) > k
    if surplus.any():  # of those at the cut, the first that fit
        level = scores[surplus] == cut[surplus]
        left = k - (scores[surplus] > cut[surplus]).sum(dim=1, keepdim=True)
        keep[surplus] &= ~level | (level.cumsum(dim=1, dtype=torch.int32) <= left)
    columns = keep.nonzero()[:, 1].view(len(scores), k)
    best, order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    return best, columns.gather(1, order)
