"""What the student should say: soft assignments of teacher rows to prototypes.

Targets are a softmax of the teacher's logits over a temperature, shifted by one number per prototype. That
number keeps prototypes in use: it is found by Sinkhorn-Knopp, or it is a running mean. Many rows are never in
memory at once: their logits are computed again, chunk by chunk, when they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.distributed import ProcessGroup, ReduceOp

from dinov2kit.errors import ArgumentError

_KEPT = 1 << 28  # bytes of targets that are kept; more are computed again when asked for
_CHUNK = {"cpu": 1 << 23, "cuda": 1 << 27}  # bytes of logits at a time: what fits a cache, what fills a GPU
_MOMENTUM = 0.9  # of a centre


@dataclass(frozen=True)
class TargetStatistics:
    """How sharp targets are, and how evenly they use the prototypes; entropies in nats.

    Attributes:
        entropy: mean over rows of the entropy of a row; 0 is one prototype for certain, ln k is no choice.
        marginal_entropy: entropy of the mean row; ln k uses all prototypes alike, 0 is a collapse into one.
        prototypes_used: share of the prototypes that are the largest of at least one row.
    """

    entropy: float
    marginal_entropy: float
    prototypes_used: float


class Targets:
    """Targets of teacher rows: softmax over prototypes of logit / temperature + shift.

    `sinkhorn_targets` and `centred_targets` make them. They are computed in fp32 at least, without gradients
    and without autocast.

    Args:
        logits: of the rows, over the temperature.
        shift: what is added to them, for each prototype.
    """

    def __init__(self, logits: _Logits, shift: Float[Tensor, " k"]) -> None:
        self._logits, self._shift = logits, shift
        self._kept: Tensor | None = None
        if logits.kept is not None:  # they become the targets in their own memory
            for part in logits.chunks():
                logits.kept[part] = torch.softmax(logits.kept[part] + shift, dim=1)
            self._kept = logits.kept

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._logits)

    @torch.no_grad()
    def rows(self, index: Int64[Tensor, " m"]) -> Float[Tensor, "m k"]:
        """Return the targets of some rows, in the order asked for; each sums to 1."""
        if self._kept is not None:
            return self._kept[index]
        return torch.softmax(self._logits.rows(index).add_(self._shift), dim=1)

    @torch.no_grad()
    def statistics(self, group: ProcessGroup | None = None) -> TargetStatistics:
        """Measure the targets, not a number where there is no row. This waits for the device.

        Args:
            group: processes whose rows count too; all must ask. None for the rows of this one.
        """
        k = len(self._shift)
        places = torch.arange(len(self), device=self._shift.device)
        mass, largest, entropy = self._shift.new_zeros(k), self._shift.new_zeros(k), self._shift.new_zeros(1)
        for part in self._logits.chunks():
            rows = self.rows(places[part])
            mass += rows.sum(dim=0)
            largest += torch.bincount(rows.argmax(dim=1), minlength=k)
            entropy += torch.special.entr(rows).sum()
        sums = torch.cat([mass, largest, entropy, entropy.new_full((1,), len(self))])
        if group is not None:
            distributed.all_reduce(sums, group=group)
        count = sums[-1]
        used = (sums[k : 2 * k] > 0).sum() * count / count  # without rows not a number, like the others
        return TargetStatistics(
            entropy=float(sums[-2] / count),
            marginal_entropy=float(torch.special.entr(sums[:k] / count).sum()),
            prototypes_used=float(used / k),
        )


class _Logits:
    """Logits over a temperature: kept where they are small, else computed again when asked for."""

    def __init__(
        self, embeddings: Float[Tensor, "m b"], prototypes: Float[Tensor, "k b"], temperature: float
    ) -> None:
        if not temperature > 0:
            raise ArgumentError(f"temperature is {temperature}; wanted above 0")
        kind = torch.promote_types(torch.promote_types(embeddings.dtype, prototypes.dtype), torch.float32)
        self.embeddings = embeddings.detach().to(kind) / temperature
        self.prototypes = prototypes.detach().to(kind)
        size = len(embeddings) * len(prototypes) * kind.itemsize
        self.kept: Tensor | None = None
        self.kept = self.rows(slice(None)) if size <= _KEPT else None

    def __len__(self) -> int:
        return len(self.embeddings)

    def rows(self, index: Tensor | slice) -> Float[Tensor, "m k"]:
        if self.kept is not None:
            return self.kept[index]
        with torch.autocast(self.embeddings.device.type, enabled=False):
            return self.embeddings[index] @ self.prototypes.T

    def chunks(self) -> Iterator[slice]:
        step = rows_at_once(self.prototypes)
        yield from (slice(start, start + step) for start in range(0, len(self), step))


def rows_at_once(prototypes: Float[Tensor, "k b"]) -> int:
    """Return how many rows are best compared with prototypes at a time."""
    most = _CHUNK.get(prototypes.device.type, _CHUNK["cpu"])
    return max(64, most // (len(prototypes) * max(4, prototypes.itemsize)))


@torch.no_grad()
def sinkhorn_targets(
    embeddings: Float[Tensor, "m b"],
    prototypes: Float[Tensor, "k b"],
    *,
    temperature: float,
    iterations: int = 3,
    group: ProcessGroup | None = None,
) -> Targets:
    """Return targets that use all prototypes about equally, by Sinkhorn-Knopp.

    The table of exp(logit / temperature) is scaled in turn, so that all prototypes have the same sum and all
    rows the sum 1; the last scaling is that of rows. Logarithms of the scales are kept, not the table: no
    logit is too large and no prototype too far. What the released code divides by besides (the total, k and
    the number of rows) is the same for the whole table, and the last scaling undoes it.

    Args:
        embeddings: rows of the teacher, before the prototypes.
        prototypes: of the teacher.
        temperature: of the teacher.
        iterations: how often both are scaled.
        group: processes whose rows are balanced together; all must call this. They may have different
            numbers of rows, also none. None for the rows of this one.

    Raises:
        ArgumentError: temperature or iterations are not above 0.

    Source: Cuturi, "Sinkhorn Distances", 2013; three iterations as in Caron et al., "SwAV", 2020, and the
        released code of DINOv2.
    """
    if iterations < 1:
        raise ArgumentError(f"{iterations} iterations; wanted 1 or more")
    logits = _Logits(embeddings, prototypes, temperature)
    sums = logits.prototypes.new_full((len(prototypes),), -torch.inf)  # of each prototype, as a logarithm
    for part in logits.chunks():
        sums = torch.logaddexp(sums, logits.rows(part).logsumexp(dim=0))
    shift = -_logsumexp_over(group, sums)
    for _ in range(iterations - 1):
        # Each prototype has the sum 1 and no row more than k: once rows are scaled, none has less than 1 / k.
        sums = torch.zeros_like(shift)
        for part in logits.chunks():
            sums += torch.softmax(logits.rows(part) + shift, dim=1).sum(dim=0)
        if group is not None:
            distributed.all_reduce(sums, group=group)
        shift -= sums.log()
    return Targets(logits, shift)


def centred_targets(
    embeddings: Float[Tensor, "m b"],
    prototypes: Float[Tensor, "k b"],
    centre: Float[Tensor, " k"],
    *,
    temperature: float,
) -> Targets:
    """Return targets that are a softmax of (logit - centre) / temperature.

    Args:
        embeddings: rows of the teacher, before the prototypes.
        prototypes: of the teacher.
        centre: of a `Centre`, from earlier steps.
        temperature: of the teacher.

    Raises:
        ArgumentError: the temperature is not above 0.

    Source: Caron et al., "DINO", 2021, equation 4 and algorithm 1.
    """
    logits = _Logits(embeddings, prototypes, temperature)
    return Targets(logits, -centre.detach().to(logits.prototypes.dtype) / temperature)


class Centre(nn.Module):
    """A running mean of the teacher's logits, zero at first.

    Use it for the targets of a step, then update it: the centre is always that of the steps before, as in
    the released code, and a checkpoint after the step has all of it.

    Args:
        prototypes: how many.

    Source: Caron et al., "DINO", 2021, equation 4; momentum 0.9 as released.
    """

    centre: Tensor

    def __init__(self, prototypes: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(prototypes))

    def follow(self, known: Sequence[tuple[Tensor, ...]], group: ProcessGroup | None) -> None:
        """Move the centre by one step: by the rows of all its micro-batches, and the prototypes."""
        self.update(torch.cat([rows for rows, _ in known]), known[-1][1], group=group)

    @torch.no_grad()
    def update(
        self,
        embeddings: Float[Tensor, "m b"],
        prototypes: Float[Tensor, "k b"],
        group: ProcessGroup | None = None,
    ) -> None:
        """Move the centre towards the mean logits of some rows; no rows move nothing.

        Args:
            embeddings: rows of the teacher, before the prototypes.
            prototypes: of the teacher, the same in all processes.
            group: processes whose rows count too, also where some have none; all must call this.
        """
        kind = self.centre.dtype
        sums = torch.cat(
            [embeddings.to(kind).sum(dim=0), embeddings.new_full((1,), len(embeddings)).to(kind)]
        )
        if group is not None:
            distributed.all_reduce(sums, group=group)
        with torch.autocast(
            sums.device.type, enabled=False
        ):  # the mean of products is the product of the mean
            mean = prototypes.to(kind) @ (sums[:-1] / sums[-1].clamp(min=1))
        self.centre.lerp_(mean, (1 - _MOMENTUM) * (sums[-1] > 0).to(kind))


def _logsumexp_over(group: ProcessGroup | None, numbers: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Return the logsumexp over processes, some of which may have nothing: -inf."""
    if group is None:
        return numbers
    largest = numbers.clone()
    distributed.all_reduce(largest, ReduceOp.MAX, group=group)
    total = (numbers - largest).exp()
    distributed.all_reduce(total, group=group)
    return largest + total.log()
