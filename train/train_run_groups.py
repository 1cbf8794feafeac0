"""The groups of settings that say how a training run is done, not what it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, model_validator

from .train_groups import FROZEN, AtLeast0, Count, Span, Whole


class ScaleSettings(BaseModel):
    """How the work is laid on the devices.

    Attributes:
        precision: "bf16" or "fp32" arithmetic; "auto" takes bf16 where the device has it. Weights, losses and
            optimiser are fp32 in any case.
        compile: compile the blocks; "auto" does so on CUDA in a run that is long enough.
        recompute: keep no activations inside the blocks and compute them twice: less memory, slower.
        shard: "fsdp" divides weights and optimiser among the devices, "replicate" gives each all of them;
            "auto" divides when they would fill much of a device.
        micro_batch: images on a device at once; null: as many as fit. The rest of the batch is accumulated.
    """

    model_config = FROZEN

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    recompute: bool = False
    shard: Literal["auto", "fsdp", "replicate"] = "auto"
    micro_batch: Count | None = None


class EvalSettings(BaseModel):
    """What is measured while the run goes on.

    Attributes:
        every: how often.
        knn: labelled images for nearest neighbours: a folder of class folders, a csv or a zip; null: the
            labels of the training images if they lie in class folders, else views of held-out images.
        k: neighbours.
        most: most images on each side, bank and queries.
        holdout: images that training never sees, when there are no labels; 0 for none.
        rankme: measure the effective rank of the class tokens.
    """

    model_config = FROZEN

    every: Span = 0.05
    knn: Path | None = None
    k: Count = 20
    most: Count = 2000
    holdout: Whole = 512
    rankme: bool = True


class CheckpointSettings(BaseModel):
    """When the run is saved.

    Attributes:
        every_minutes: longest time between two checkpoints.
        every: longest span between two checkpoints; null: the time alone counts.
        keep_last: how many of the latest are kept.
        keep_best: keep the one with the best nearest-neighbour score too.
    """

    model_config = FROZEN

    every_minutes: AtLeast0 = 20.0
    every: Span | None = None
    keep_last: Count = 3
    keep_best: bool = True

    @model_validator(mode="after")
    def _agree(self) -> CheckpointSettings:
        if self.every is not None and not self.every:
            raise ValueError("every above 0; null leaves it to every_minutes")
        return self
