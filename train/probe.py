"""How good a backbone is while it trains: nearest neighbours and effective rank of images that stand still.

The images are prepared once, see `labelled_probe` and `views_probe`. The same backbone then gets the same
score in every run and on any number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from dinov2kit.errors import ArgumentError, check_choice
from dinov2kit.knn import classify

from .rank import rank_me

BATCH = 64  # images at a time
CONTROLS = ("pixels",)

_PIXELS = 32  # side of the images that the control compares

Embed = Callable[[UInt8[Tensor, "b h w c"]], Float[Tensor, "b dim"]]
"""Returns the class tokens of images, in evaluation mode; the images lie on the CPU, the tokens anywhere."""

Gather = Callable[[Float[Tensor, "n dim"]], Float[Tensor, "all dim"]]
"""The rows of all processes, those of rank 0 first; each brings equally many."""


@dataclass(frozen=True)
class ProbeResult:
    """What a backbone was measured to be.

    Attributes:
        knn: share of the queries that their neighbours tell the class of; NaN where a token is not finite.
        knn_kind: "labels", or "views": the class is the image itself, of which the bank has another view.
        rankme: effective rank of the bank, see `rank_me`; None where it was not wanted.
        seconds: how long it took.
    """

    knn: float
    knn_kind: str
    rankme: float | None
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return what a line of metrics says of it."""
        facts = {"knn": self.knn, "knn_kind": self.knn_kind, "seconds": round(self.seconds, 3)}
        return facts if self.rankme is None else {**facts, "rankme": self.rankme}


@dataclass(frozen=True)
class Probe:
    """Images whose classes are known, ready to be embedded again and again.

    Attributes:
        bank: images that vote.
        queries: images that are classified.
        bank_labels: class of each of the bank, from 0.
        query_labels: class of each query.
        kind: "labels" or "views".
        k: how many neighbours vote.
        notes: what was not as asked for, in words.
    """

    bank: UInt8[np.ndarray, "n h w c"]
    queries: UInt8[np.ndarray, "m h w c"]
    bank_labels: Int64[np.ndarray, " n"]
    query_labels: Int64[np.ndarray, " m"]
    kind: str
    k: int
    notes: tuple[str, ...] = ()

    def measure(
        self,
        embed: Embed,
        *,
        rank: int = 0,
        world: int = 1,
        gather: Gather | None = None,
        rankme: bool = True,
    ) -> ProbeResult:
        """Measure a backbone; all processes together, each on every `world`-th batch.

        Every process embeds equally many batches of one size, so that sharded models keep step: the last
        batches begin again with the first images.

        Args:
            embed: the backbone.
            rank: number of this process.
            world: number of processes.
            gather: brings their rows together; needed with several.
            rankme: measure the rank too.

        Returns: the same in every process.

        Raises:
            ArgumentError: there are several processes and nothing to gather by.
        """
        if world > 1 and gather is None:
            raise ArgumentError(f"{world} processes measure together; wanted what gathers their rows")
        started = time.perf_counter()
        count = len(self.bank) + len(self.queries)
        size = min(BATCH, count)
        turns = math.ceil(math.ceil(count / size) / world)
        mine = torch.cat([embed(self._batch(rank + world * turn, size)).detach() for turn in range(turns)])
        rows = mine if gather is None else gather(mine)
        ordered = rows.reshape(world, turns, size, -1).transpose(0, 1).flatten(0, 2)[:count].float().cpu()
        bank = ordered[: len(self.bank)]
        knn = self._knn(bank.numpy(), ordered[len(self.bank) :].numpy())
        found = rank_me(bank) if rankme else None
        return ProbeResult(knn, self.kind, found, time.perf_counter() - started)

    def control(self, kind: str) -> float:
        """Return the score of something that learns nothing, the baseline of every curve.

        Args:
            kind: "pixels": the colours of the images, shrunk to 32 pixels a side, less the mean of the bank.

        Raises:
            ArgumentError: there is no such control.
        """
        check_choice("control", kind, CONTROLS)
        bank, queries = _shrunk(self.bank), _shrunk(self.queries)
        mean = bank.mean(axis=0, dtype=np.float64).astype(np.float32)
        return self._knn(bank - mean, queries - mean)

    def _batch(self, number: int, size: int) -> UInt8[Tensor, "b h w c"]:
        count = len(self.bank) + len(self.queries)
        places = (number * size + np.arange(size)) % count
        of_bank = places < len(self.bank)
        images = np.empty((size, *self.bank.shape[1:]), np.uint8)
        images[of_bank] = self.bank[places[of_bank]]
        images[~of_bank] = self.queries[places[~of_bank] - len(self.bank)]
        return torch.from_numpy(images)

    def _knn(self, bank: Float[np.ndarray, "n dim"], queries: Float[np.ndarray, "m dim"]) -> float:
        if not (np.isfinite(bank).all() and np.isfinite(queries).all()):
            return math.nan
        ranked = classify(bank, self.bank_labels, queries, ks=(self.k,))[self.k]
        return float(np.mean(ranked[:, 0] == self.query_labels))


def _shrunk(images: UInt8[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n dim"]:
    """Return the means of the cells of a lattice over each image, as one row."""
    side = min(_PIXELS, *images.shape[1:3])
    rows = []
    for start in range(0, len(images), BATCH):
        block = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2).float()
        rows.append(torch.nn.functional.adaptive_avg_pool2d(block, side).flatten(1).numpy())
    return np.concatenate(rows)
