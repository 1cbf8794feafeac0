"""The groups of settings of a training run, and the span: a share of the run or a number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
AtLeast0 = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]


def _span_in_words(value: object, check: Callable[[object], object]) -> object:
    """Say once what both kinds of a span would have been."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError("a share of the run from 0.0 to 1.0, or a whole number of steps") from None


Span = Annotated[Whole | Share, WrapValidator(_span_in_words)]
"""A float from 0 to 1 is a share of the run, an int is steps: 1.0 is the whole run, 1 is one step."""

FROZEN = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def span_steps(span: Span, steps: int) -> int:
    """Return how many steps of a run of `steps` a span is; a share is rounded to the nearest step."""
    return round(span * steps) if isinstance(span, float) else span


class BackboneSettings(BaseModel):
    """What the model name leaves open.

    Attributes:
        ffn: "mlp", "swiglu", or "auto": as the model name has it.
        registers: register tokens; null: as the model name says.
        drop_path: rate of stochastic depth.
        drop_path_uniform: the same rate in every block; else it rises from 0 to the rate.
        layer_scale: initial value of the LayerScale factors.
    """

    model_config = FROZEN

    ffn: Literal["auto", "mlp", "swiglu"] = "auto"
    registers: Whole | None = None
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path_uniform: bool = True
    layer_scale: Positive = 1e-5


class ReadingSettings(BaseModel):
    """How images become numbers.

    Attributes:
        channels: of an image; 3 is colour, 1 grey, others are read as they are.
        window: lowest and highest value of 16-bit and float images; null: the whole range.
        mean: of each channel, from 0 to 1; null: ImageNet's for 3 channels, else 0.5.
        std: of each channel; null: ImageNet's for 3 channels, else 0.25.
        workers: processes that read images; null: as many as the machine bears.
        most_bad: share of unreadable images above which the run stops.
    """

    model_config = FROZEN

    channels: Count = 3
    window: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    workers: Whole | None = None
    most_bad: Share = 0.01

    @model_validator(mode="after")
    def _agree(self) -> ReadingSettings:
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"a window from low to high, not {list(self.window)}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.channels:
                raise ValueError(
                    f"as many values in {name} as there are channels: {self.channels}, not {len(values)}"
                )
        return self


class CropSettings(BaseModel):
    """How the views of an image are cut and coloured.

    Attributes:
        global_size: side of the two global crops, a multiple of the patch.
        local_size: side of the local crops, a multiple of the patch.
        local_count: how many local crops; 0 for none.
        global_scale: smallest and largest share of the image's area in a global crop.
        local_scale: the same for a local crop.
        flip: chance of a mirrored view.
        jitter: chance of colour jitter.
        brightness: strength of the jitter.
        contrast: strength of the jitter.
        saturation: strength of the jitter.
        hue: strength of the jitter, of a turn; at most 0.5.
        grey: chance of a grey view.
        blur: "released": chances 0 / 0.9 / 0.5 for the first and second global and the local crops, as the
            released code has them; "written": 1 / 0.1 / 0.5, as the recipe was meant; "none": never, for
            images of few pixels.
        solarise: chance of solarisation, second global crop alone.
    """

    model_config = FROZEN

    global_size: Count = 224
    local_size: Count = 98
    local_count: Whole = 8
    global_scale: tuple[Share, Share] = (0.32, 1.0)
    local_scale: tuple[Share, Share] = (0.05, 0.32)
    flip: Share = 0.5
    jitter: Share = 0.8
    brightness: Share = 0.4
    contrast: Share = 0.4
    saturation: Share = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grey: Share = 0.2
    blur: Literal["released", "written", "none"] = "released"
    solarise: Share = 0.2

    @property
    def blur_chances(self) -> tuple[float, float, float]:
        """The chance of blur in the first global, the second global and the local crops."""
        chances = {"released": (0.0, 0.9, 0.5), "written": (1.0, 0.1, 0.5), "none": (0.0, 0.0, 0.0)}
        return chances[self.blur]

    @model_validator(mode="after")
    def _agree(self) -> CropSettings:
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} from small to large and above 0, not {[low, high]}")
        return self


class MaskSettings(BaseModel):
    """Which patches of the global crops are hidden from the student.

    Attributes:
        share: of the global crops that are masked at all.
        ratio: smallest and largest share of hidden patches in them.
    """

    model_config = FROZEN

    share: Share = 0.5
    ratio: tuple[Share, Share] = (0.1, 0.5)

    @model_validator(mode="after")
    def _agree(self) -> MaskSettings:
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"a ratio from small to large, not {list(self.ratio)}")
        return self


class LossSettings(BaseModel):
    """The losses, the heads and the targets.

    Attributes:
        dino: weight of the loss of class tokens against prototypes.
        ibot: weight of the loss of masked patch tokens; 0 leaves it out.
        koleo: weight of the spread of class tokens; 0 leaves it out.
        koleo_distributed: look for nearest neighbours among the crops of all devices.
        koleo_top_k: how many nearest neighbours of each.
        gram: weight of the Gram loss of patch tokens; 0 leaves it out.
        gram_from: run or weights of the Gram teacher; null: the run's own teacher as it is at `gram_start`.
        gram_start: when the Gram loss begins.
        gram_every: how often the Gram teacher is replaced by the teacher; null: never.
        gram_scale: how much larger the crops are that the Gram teacher sees.
        prototypes: of the head of class tokens.
        ibot_prototypes: of the head of patch tokens.
        hidden: width inside the heads.
        bottleneck: length of what is compared with the prototypes.
        ibot_bottleneck: the same in the head of patch tokens.
        shared_head: one head for class and patch tokens.
        head_norm: last layer of the heads, "weight" normalised as in DINOv2 or "plain" as in DINOv3.
        centring: how targets are kept from collapsing, "sinkhorn" or "softmax" with a moving centre.
        student_temperature: of the student's softmax.
    """

    model_config = FROZEN

    dino: AtLeast0 = 1.0
    ibot: AtLeast0 = 1.0
    koleo: AtLeast0 = 0.1
    koleo_distributed: bool = False
    koleo_top_k: Count = 1
    gram: AtLeast0 = 0.0
    gram_from: str | None = None
    gram_start: Span = 0
    gram_every: Span | None = None
    gram_scale: Literal[1, 2] = 1
    prototypes: Annotated[int, Field(ge=2)] = 65536
    ibot_prototypes: Annotated[int, Field(ge=2)] = 65536
    hidden: Count = 2048
    bottleneck: Count = 256
    ibot_bottleneck: Count = 256
    shared_head: bool = True
    head_norm: Literal["weight", "plain"] = "weight"
    centring: Literal["sinkhorn", "softmax"] = "sinkhorn"
    student_temperature: Positive = 0.1

    @model_validator(mode="after")
    def _agree(self) -> LossSettings:
        shapes = (self.prototypes, self.bottleneck), (self.ibot_prototypes, self.ibot_bottleneck)
        if self.shared_head and shapes[0] != shapes[1]:
            raise ValueError(
                f"equal prototypes and bottleneck for a shared head, not {shapes[0]} and {shapes[1]}: set "
                "ibot_prototypes and ibot_bottleneck to the same, or shared_head=false"
            )
        if not (self.dino or self.ibot):
            raise ValueError("a weight above 0 for dino or ibot, else nothing is learned")
        if self.gram_every is not None and not self.gram_every:
            raise ValueError("gram_every above 0; null never replaces the Gram teacher")
        return self


class TeacherSettings(BaseModel):
    """The moving average that the student learns from.

    Attributes:
        momentum: at the start and at the end, along a cosine.
        temperature: of the teacher's softmax, at the start and at the end, along a line.
        temperature_warmup: how long the line is.
    """

    model_config = FROZEN

    momentum: tuple[Share, Share] = (0.992, 1.0)
    temperature: tuple[Positive, Positive] = (0.04, 0.07)
    temperature_warmup: Span = 0.3


class OptimSettings(BaseModel):
    """AdamW and its schedules.

    Attributes:
        lr: highest learning rate, for a batch of 1,024.
        lr_rule: what another batch makes of it: "sqrt" times the root of batch / 1,024, "linear" times
            batch / 1,024, "none" leaves it.
        min_lr: learning rate at the end, whatever the batch.
        warmup: how long the learning rate rises from 0.
        weight_decay: at the start and at the end, along a cosine.
        decay_tokens: decay class, register and mask tokens, positions and the norms of the prototypes too, as
            the released code does.
        layer_decay: factor of the learning rate from one block to the one below.
        patch_embed: factor of the learning rate of the patch embedding.
        betas: of AdamW.
        clip: longest gradient of each module, backbone and heads apart; 0 does not clip.
        freeze_last_layer: how long the prototypes stand still.
        freeze_backbone: how long the heads learn alone.
    """

    model_config = FROZEN

    lr: Positive = 4e-3
    lr_rule: Literal["sqrt", "linear", "none"] = "sqrt"
    min_lr: AtLeast0 = 1e-6
    warmup: Span = 0.1
    weight_decay: tuple[AtLeast0, AtLeast0] = (0.04, 0.4)
    decay_tokens: bool = True
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    patch_embed: AtLeast0 = 0.2
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    clip: AtLeast0 = 3.0
    freeze_last_layer: Span = 0.01
    freeze_backbone: Span = 0

    def peak_lr(self, batch: int) -> float:
        """Return the highest learning rate for a global batch.

        Source: the released code, `sqrt_wrt_1024`. The `linear_wrt_256` of DINO and DINOv3 with a rate of x
        is "linear" with 4 x.
        """
        share = batch / 1024
        return self.lr * {"sqrt": math.sqrt(share), "linear": share, "none": 1.0}[self.lr_rule]
