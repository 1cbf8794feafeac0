"""What `dinokit train` is told: every setting of a training run, its meaning and its default."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, model_validator

from .distill_settings import DistillSettings
from .train_groups import (
    FROZEN,
    BackboneSettings,
    Count,
    CropSettings,
    LossSettings,
    MaskSettings,
    OptimSettings,
    Positive,
    ReadingSettings,
    Span,
    TeacherSettings,
    Whole,
    span_steps,
)
from .train_run_groups import CheckpointSettings, EvalSettings, ScaleSettings

__all__ = ["BUDGETS", "Span", "TrainConfig", "span_steps"]

BUDGETS = ("epochs", "images", "hours", "steps")


class TrainConfig(BaseModel):
    """Settings of a training run. What is left at its default, presets and rules may still choose.

    Attributes:
        data: folder, file or archive with the images, or several; `drawn-shapes` or `drawn-shapes:5000` draws
            simple shapes instead.
        out: folder of the run; the same command goes on with an unfinished run there.
        model: the backbone, such as vits14, vitb14_reg or vitl16.
        init: what to start from: a released model by name, a weight file or a run; null: random weights.
        preset: the preset whose values stand below the others.
        epochs: length of the run in passes over the images.
        images: length of the run in images.
        hours: length of the run in hours, from the speed of the first steps.
        steps: length of the run in steps.
        batch: images in one step, over all devices.
        seed: of everything random.
        device: as for `Encoder`.
        overwrite: replace a run in `out` that has other settings.
        log_every: steps between two lines of metrics.
        sinks: where the numbers go besides metrics.jsonl: "tensorboard", "wandb".
        backbone: what the model name leaves open.
        reading: how images become numbers.
        crops: how views are cut and coloured.
        masks: which patches are hidden.
        loss: losses, heads and targets.
        teacher: the moving average.
        optim: AdamW and its schedules.
        distill: what is learned from a finished network.
        scale: how the work is laid on the devices.
        eval: what is measured on the way.
        checkpoint: when the run is saved.
    """

    model_config = FROZEN

    data: Path | tuple[Path, ...]
    out: Path
    model: str = "vits14"
    init: str | None = None
    preset: str | None = None
    epochs: Positive | None = None
    images: Count | None = None
    hours: Positive | None = None
    steps: Count | None = None
    batch: Count = 1024
    seed: Whole = 0
    device: str = "auto"
    overwrite: bool = False
    log_every: Count = 20
    sinks: tuple[Literal["tensorboard", "wandb"], ...] = ()
    backbone: BackboneSettings = BackboneSettings()
    reading: ReadingSettings = ReadingSettings()
    crops: CropSettings = CropSettings()
    masks: MaskSettings = MaskSettings()
    loss: LossSettings = LossSettings()
    teacher: TeacherSettings = TeacherSettings()
    optim: OptimSettings = OptimSettings()
    distill: DistillSettings = DistillSettings()
    scale: ScaleSettings = ScaleSettings()
    eval: EvalSettings = EvalSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()

    @model_validator(mode="after")
    def _agree(self) -> TrainConfig:
        lengths = [f"{name}={getattr(self, name):g}" for name in BUDGETS if getattr(self, name) is not None]
        if len(lengths) > 1:
            raise ValueError(f"one length of the run, not {' and '.join(lengths)}: leave out all but one")
        if isinstance(self.data, tuple) and not self.data:
            raise ValueError("at least one source of images in data")
        if self.scale.micro_batch is not None and self.scale.micro_batch > self.batch:
            raise ValueError(
                f"a scale.micro_batch of at most the batch, {self.batch}, not {self.scale.micro_batch}"
            )
        if self.optim.freeze_backbone and self.init is None:
            raise ValueError("init, when optim.freeze_backbone is set: random weights must not stand still")
        return self

    @property
    def sources(self) -> list[Path]:
        """The folders, files and archives with images."""
        return [self.data] if isinstance(self.data, Path) else list(self.data)

    @property
    def peak_lr(self) -> float:
        """The highest learning rate of this run."""
        return self.optim.peak_lr(self.batch)

    def learning(self) -> dict[str, object]:
        """Return the settings that change what is learned, ready for JSON; they name no place of a file."""
        apart = {
            "data",
            "out",
            "preset",
            "device",
            "overwrite",
            "log_every",
            "sinks",
            "eval",
            "checkpoint",
            "scale",
        }
        chosen = self.model_dump(mode="json", exclude=apart)
        chosen["reading"].pop("workers")
        chosen["reading"].pop("most_bad")
        for place in ("teacher", "cache"):  # who the teacher is, its digest says
            chosen["distill"].pop(place)
        chosen["eval"] = {"holdout": self.eval.holdout}
        chosen["scale"] = {"precision": self.scale.precision}
        return chosen
