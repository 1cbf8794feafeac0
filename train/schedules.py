"""What changes in the course of a run: learning rates, weight decay, momentum and temperature, by step.

All are pure functions of the step, so a resumed run needs no state for them. Steps count from 0; the value of
step s is used in the update number s + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dinov2kit.errors import ArgumentError

from .train_config import TrainConfig, span_steps


@dataclass(frozen=True)
class Rates:
    """The values of one step.

    Attributes:
        lr: learning rate, before the factors of the parameter groups.
        last_layer_lr: that of the prototypes.
        weight_decay: before the factors of the parameter groups.
        momentum: of the teacher, in the moving average after this step.
        temperature: of the teacher's softmax.
    """

    lr: float
    last_layer_lr: float
    weight_decay: float
    momentum: float
    temperature: float


def cosine(
    step: int, *, peak: float, final: float, steps: int, warmup: int = 0, start: float = 0.0, freeze: int = 0
) -> float:
    """Return the value of a cosine schedule with a warm-up.

    First come `freeze` zeros, then `warmup` values on a line from `start` to `peak`, both included, then half
    a cosine from `peak`, included, towards `final`, which is reached at `steps` and kept.

    Args:
        step: from 0.
        peak: where the warm-up ends and the cosine begins.
        final: the value from `steps` on.
        steps: length of the whole schedule.
        warmup: length of the line.
        start: first value of the line.
        freeze: length of the zeros.

    Source: `CosineScheduler` of the released code.
    """
    if step >= steps:
        return final
    if step < freeze:
        return 0.0
    if step < freeze + warmup:
        return start + (peak - start) * (step - freeze) / max(warmup - 1, 1)
    turn = math.pi * (step - freeze - warmup) / (steps - freeze - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(turn))


def linear(step: int, *, start: float, final: float, steps: int) -> float:
    """Return the value on a line of `steps` values from `start` to `final`, both included, then `final`.

    Source: the teacher temperature of the released code.
    """
    return cosine(step, peak=final, final=final, steps=steps, warmup=steps, start=start)


def schedule_at(config: TrainConfig, step: int) -> Rates:
    """Return the rates of a step; beyond the end of the run those of its end.

    Args:
        config: settled, so that its length stands in `steps`.
        step: from 0.

    Raises:
        ArgumentError: the length of the run is not known in steps yet.
    """
    if config.steps is None:
        raise ArgumentError("the length of the run is not known in steps", hint="set steps, or settle first")
    steps, optim, teacher = config.steps, config.optim, config.teacher
    warmup = span_steps(optim.warmup, steps)
    lr = cosine(step, peak=config.peak_lr, final=optim.min_lr, steps=steps, warmup=warmup)
    decay, momentum = optim.weight_decay, teacher.momentum
    return Rates(
        lr=lr,
        last_layer_lr=0.0 if step < span_steps(optim.freeze_last_layer, steps) else lr,
        weight_decay=cosine(step, peak=decay[0], final=decay[1], steps=steps),
        momentum=cosine(step, peak=momentum[0], final=momentum[1], steps=steps),
        temperature=linear(
            step,
            start=teacher.temperature[0],
            final=teacher.temperature[1],
            steps=span_steps(teacher.temperature_warmup, steps),
        ),
    )


def backbone_frozen(config: TrainConfig, step: int) -> bool:
    """Return whether the heads still learn alone at a step."""
    return config.steps is not None and step < span_steps(config.optim.freeze_backbone, config.steps)
