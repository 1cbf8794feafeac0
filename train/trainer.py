"""One step of training: all micro-batches of a batch, one update of the student, the teacher follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from dinov2kit.errors import DeviceMemoryError, KitError
from dinov2kit.vit import Tokens

from .batches import Batch
from .colours import finish_crops, no_colours
from .feature_step import feature_losses, view_crops
from .masks import draw_masks
from .networks import Networks, build_networks
from .optimizer import build_optimizer, clip_by_module, set_rates
from .parallel import World, average_gradients_now
from .projectors import TokenMean
from .schedules import Rates, backbone_frozen, schedule_at
from .ssl_step import GLOBAL_CROPS, StepLosses, arithmetic, make_views, normalisation, step_losses
from .targets import Centre, TargetStatistics
from .taught_batches import TaughtBatch
from .teachers import Seen
from .train_config import TrainConfig, span_steps

_DEPTH = 3  # a key of random numbers: which samples stochastic depth drops
_MOST_SPOILT = 3  # updates in a row whose loss or gradient is not finite


@dataclass
class Meter:
    """Sums of what the steps since the last line of metrics measured.

    Attributes:
        steps: how many.
        sums: by name of the number.
    """

    steps: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, numbers: Mapping[str, float]) -> None:
        """Count one step in."""
        self.steps += 1
        for name, number in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + number

    def means(self) -> dict[str, float]:
        """Return the mean of each number over the steps, and start anew."""
        means = {name: total / self.steps for name, total in self.sums.items()}
        self.steps, self.sums = 0, {}
        return means


class SpoiltError(KitError):
    """Loss or gradients were not finite, several times in a row."""


class Trainer:
    """A student, its teacher and its optimiser, one step after the other.

    Args:
        config: settled, with its length in steps and its micro-batch.
        world: the processes.
        precision: "fp32" or "bf16", of the networks; losses and updates are in fp32.
        guide: heads of a finished teacher, where prototypes of one are compared.

    Raises:
        WeightsError: what the run starts from cannot be had or does not fit.
    """

    def __init__(
        self, config: TrainConfig, world: World, *, precision: str, guide: nn.ModuleDict | None = None
    ) -> None:
        self.config, self.world, self.precision = config, world, precision
        self.networks: Networks = build_networks(config, world, precision=precision, guide=guide)
        self._modules: dict[str, nn.Module] = dict(self.networks.student.items())
        self.optimizer = build_optimizer(self._modules, config)
        self.step = 0
        self.spoilt = 0

    @property
    def micro_batches(self) -> int:
        """How many micro-batches each process does in a step."""
        micro = self.config.scale.micro_batch
        assert micro is not None, "the plan chose it"
        return self.config.batch // (micro * self.world.size)

    @property
    def rates(self) -> Rates:
        """The rates of the next step."""
        return schedule_at(self.config, self.step)

    def update(
        self,
        batches: Sequence[Batch | TaughtBatch],
        *,
        look: bool,
        lessons: Sequence[Seen | None] | None = None,
    ) -> tuple[dict[str, float], TargetStatistics | None]:
        """Do one step.

        Args:
            batches: the micro-batches of this process.
            look: return the statistics of the last targets too, which cost a moment.
            lessons: what a finished teacher says of each of them.

        Returns: what was measured, means over micro-batches and processes, by the names of the metrics;
            `grad_norm/...` is the length before clipping.

        Raises:
            SpoiltError: loss or gradients are not finite for the third time in a row; one or two such steps
                are left out.
            DeviceMemoryError: the batch does not fit the device.
        """
        config, rates = self.config, self.rates
        set_rates(self.optimizer, rates, backbone_frozen=backbone_frozen(config, self.step))
        self._refresh_gram_teacher()
        masks = self._masks()
        terms: dict[str, Tensor] = {}
        statistics = None
        known: list[Mapping[str, tuple[Tensor, ...]]] = []
        self.optimizer.zero_grad()
        try:
            for number, (batch, seen) in enumerate(zip(batches, lessons or repeat(None), strict=False)):
                last = number + 1 == self.micro_batches
                average_gradients_now(self._modules.values(), last=last)
                losses = self._losses(batch, seen, number, masks)
                torch.autograd.backward(losses.total / self.micro_batches)
                for name, term in {**losses.terms, "loss": losses.total.detach()}.items():
                    terms[name] = terms.get(name, torch.zeros_like(term)) + term / self.micro_batches
                known.append(losses.known)
                if look and last and losses.targets is not None:
                    statistics = losses.targets.statistics(self.world.group)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"out of memory on {self.world.device}: {str(error).splitlines()[0]}",
                hint=f"use scale.micro_batch below {config.scale.micro_batch}, or scale.recompute=true",
            ) from error
        norms = clip_by_module(self._modules, config.optim.clip)
        names = [*terms, *(f"grad_norm/{name}" for name in norms)]
        measured = self.world.mean(torch.stack([*terms.values(), *norms.values()]).float()).tolist()
        self._finish(rates, known, finite=all(map(math.isfinite, measured)))
        numbers = dict(zip(names, measured, strict=True))
        if "ibot" in numbers:
            numbers["ibot"] /= numbers.pop("masked") or 1.0
        return numbers, statistics

    def _finish(
        self, rates: Rates, known: Sequence[Mapping[str, tuple[Tensor, ...]]], *, finite: bool
    ) -> None:
        """Move centres and weights, unless the step is spoilt."""
        if finite:
            self._move_centres(known)
        self.networks.release_teacher()
        if finite:
            self.optimizer.step()
            self.networks.follow(rates.momentum)
        self.spoilt = 0 if finite else self.spoilt + 1
        if self.spoilt >= _MOST_SPOILT:
            raise SpoiltError(
                f"loss or gradients are not finite in {self.spoilt} steps in a row, the last one {self.step}",
                hint="lower optim.lr, lengthen optim.warmup, or use scale.precision=fp32; the batch is saved",
            )
        self.step += 1

    def _losses(
        self,
        batch: Batch | TaughtBatch,
        seen: Seen | None,
        number: int,
        masks: Bool[np.ndarray, "crops n"] | None,
    ) -> StepLosses:
        """Compute the losses of a micro-batch."""
        config, world, generator = self.config, self.world, self._generator(number)
        if isinstance(batch, TaughtBatch):
            assert seen is not None
            crops = view_crops(batch, config, world)
            with arithmetic(world, self.precision):
                return feature_losses(self.networks, crops, seen, config, world, generator=generator)
        views = make_views(batch, None if masks is None else self._masks_of(masks, number), config, world)
        with arithmetic(world, self.precision):
            return step_losses(
                self.networks,
                views,
                config,
                world,
                temperature=self.rates.temperature,
                generator=generator,
                gram=self.step >= span_steps(config.loss.gram_start, config.steps or 0),
                lesson=seen,
            )

    def _move_centres(self, known: Sequence[Mapping[str, tuple[Tensor, ...]]]) -> None:
        """Let the centres follow all that the teacher said in this step, whatever its micro-batches."""
        for name in known[-1]:
            centre = self.networks.centres[name]
            assert isinstance(centre, Centre | TokenMean)
            centre.follow([one[name] for one in known], self.world.group)

    def _refresh_gram_teacher(self) -> None:
        chosen, steps = self.config.loss, self.config.steps or 0
        if self.networks.gram_teacher is None:
            return
        start = span_steps(chosen.gram_start, steps)
        every = None if chosen.gram_every is None else max(span_steps(chosen.gram_every, steps), 1)
        first = self.step == start and chosen.gram_from is None
        if first or (every is not None and self.step > start and (self.step - start) % every == 0):
            self.networks.renew_gram_teacher()

    def _masks(self) -> Bool[np.ndarray, "crops n"] | None:
        """Return the masks of the whole step, which all processes draw alike; None of a finished teacher."""
        config = self.config
        if config.distill.teacher is not None:
            return None
        side = config.crops.global_size // self.networks.config.patch_size
        return draw_masks(
            GLOBAL_CROPS * config.batch,
            side,
            side,
            share=config.masks.share,
            ratio=config.masks.ratio,
            seed=config.seed,
            step=self.step,
        )

    def _masks_of(self, masks: Bool[np.ndarray, "crops n"], number: int) -> Bool[Tensor, "two_b n"]:
        """Return the masks of the crops in one micro-batch of this process."""
        micro = self.config.batch // (self.micro_batches * self.world.size)
        start = (number * self.world.size + self.world.rank) * micro
        by_crop = masks.reshape(GLOBAL_CROPS, self.config.batch, -1)
        mine = by_crop[:, start : start + micro].reshape(GLOBAL_CROPS * micro, -1)
        return torch.from_numpy(np.ascontiguousarray(mine))

    def _generator(self, number: int) -> torch.Generator:
        """Return the random numbers of stochastic depth; they depend on step, micro-batch and process."""
        key = np.random.SeedSequence([self.config.seed, _DEPTH, self.step, number, self.world.rank])
        seed = int(key.generate_state(1, np.uint64)[0]) >> 1
        return torch.Generator(self.world.device).manual_seed(seed)

    @torch.no_grad()
    def embed(self, pixels: UInt8[Tensor, "b h w c"]) -> Float[Tensor, "b dim"]:
        """Return the class tokens of the teacher; all processes call this equally often."""
        usual = normalisation(self.config)
        uncoloured = no_colours(len(pixels), pixels.shape[3])
        images = finish_crops(pixels.to(self.world.device), uncoloured, mean=usual.mean, std=usual.std)
        with arithmetic(self.world, self.precision):
            tokens = self.networks.teacher["backbone"](images)
        assert isinstance(tokens, Tokens)
        return tokens.class_token.float()
