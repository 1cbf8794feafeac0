"""Configs of the DINOv2 release read as settings of ours, with the release's defaults below them.

The release writes lengths in "epochs" of a fixed number of steps, whatever the data, and batches per GPU;
here both become steps and images. DINOv3 files are read as far as their keys are the same; its positions and
piecewise schedules are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dinov2kit.errors import ArgumentError

from .settings import check_names, fit_settings, setting_names
from .train_config import TrainConfig
from .train_groups import AtLeast0, Count, Positive, Share, Whole
from .written import Written

DEFAULTS = "default of the release"
_STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
_LETTERS = {"vit_small": "s", "vit_base": "b", "vit_large": "l", "vit_giant2": "g"}
_WITHOUT_COUNTERPART = (  # keys, or beginnings of keys, that change nothing of what is learned
    "MODEL.",
    "compute_precision.",
    "evaluation.",
    "checkpointing.",
    "train.dataset_path",
    "train.output_dir",
    "train.saveckp_freq",
    "train.seed",
    "train.num_workers",
    "train.cache_dataset",
    "train.compile",
    "train.cudagraphs",
    "train.checkpointing",
    "student.block_chunks",
    "student.interpolate_",
)


class Dino(BaseModel):
    """Section `dino` of a released config."""

    model_config = _STRICT
    loss_weight: AtLeast0 = 1.0
    head_n_prototypes: Count = 65536
    head_bottleneck_dim: Count = 256
    head_nlayers: Literal[3] = 3
    head_hidden_dim: Count = 2048
    koleo_loss_weight: AtLeast0 = 0.1
    koleo_loss_distributed: bool = False
    koleo_topk: Count = 1


class Ibot(BaseModel):
    """Section `ibot` of a released config."""

    model_config = _STRICT
    loss_weight: AtLeast0 = 1.0
    mask_sample_probability: Share = 0.5
    mask_ratio_min_max: tuple[Share, Share] = (0.1, 0.5)
    separate_head: bool = False
    head_n_prototypes: Count = 65536
    head_bottleneck_dim: Count = 256
    head_nlayers: Literal[3] = 3
    head_hidden_dim: Count = 2048


class Train(BaseModel):
    """Section `train` of a released config."""

    model_config = _STRICT
    batch_size_per_gpu: Count = 64
    OFFICIAL_EPOCH_LENGTH: Count = 1250
    centering: Literal["centering", "sinkhorn_knopp"] = "centering"


class Student(BaseModel):
    """Section `student` of a released config."""

    model_config = _STRICT
    arch: Literal["vit_small", "vit_base", "vit_large", "vit_giant2"] = "vit_large"
    patch_size: Count = 16
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.3
    layerscale: Positive = 1e-5
    drop_path_uniform: bool = True
    pretrained_weights: str | None = None
    ffn_layer: Literal["mlp", "swiglu", "swiglufused"] = "mlp"
    qkv_bias: Literal[True] = True
    proj_bias: Literal[True] = True
    ffn_bias: Literal[True] = True
    num_register_tokens: Whole = 0


class Teacher(BaseModel):
    """Section `teacher` of a released config."""

    model_config = _STRICT
    momentum_teacher: Share = 0.992
    final_momentum_teacher: Share = 1.0
    warmup_teacher_temp: Positive = 0.04
    teacher_temp: Positive = 0.07
    warmup_teacher_temp_epochs: AtLeast0 = 30.0


class Optim(BaseModel):
    """Section `optim` of a released config."""

    model_config = _STRICT
    epochs: Positive = 100.0
    weight_decay: AtLeast0 = 0.04
    weight_decay_end: AtLeast0 = 0.4
    base_lr: Positive = 4e-3
    lr: AtLeast0 = 0.0
    warmup_epochs: AtLeast0 = 10.0
    min_lr: AtLeast0 = 1e-6
    clip_grad: AtLeast0 = 3.0
    freeze_last_layer_epochs: AtLeast0 = 1.0
    scaling_rule: Literal["sqrt_wrt_1024", "linear_wrt_256"] = "sqrt_wrt_1024"
    patch_embed_lr_mult: AtLeast0 = 0.2
    layerwise_decay: Annotated[float, Field(gt=0, le=1)] = 0.9
    adamw_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adamw_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999


class Crops(BaseModel):
    """Section `crops` of a released config."""

    model_config = _STRICT
    global_crops_scale: tuple[Share, Share] = (0.32, 1.0)
    local_crops_number: Whole = 8
    local_crops_scale: tuple[Share, Share] = (0.05, 0.32)
    global_crops_size: Count = 224
    local_crops_size: Count = 96


class ReleasedConfig(BaseModel):
    """A config of the DINOv2 release; defaults are those of the release."""

    model_config = _STRICT
    dino: Dino = Dino()
    ibot: Ibot = Ibot()
    train: Train = Train()
    student: Student = Student()
    teacher: Teacher = Teacher()
    optim: Optim = Optim()
    crops: Crops = Crops()


def is_released(written: Mapping[str, Written]) -> bool:
    """Return whether a file is a config of the release: it names settings that are its alone."""
    theirs = set(setting_names(ReleasedConfig)) - set(setting_names(TrainConfig))
    return any(key in theirs or _without_counterpart(key) for key in written)


def translate_released(
    written: Mapping[str, Written], *, gpus: Written | None, given_batch: bool
) -> tuple[dict[str, Written], tuple[str, ...]]:
    """Translate a config of the release.

    Args:
        written: what stands in the file.
        gpus: on how many GPUs it ran, which the file does not say.
        given_batch: the batch is given in another way.

    Returns: settings of ours, and notes on what has no counterpart.

    Raises:
        ArgumentError: the file names an unknown setting or a value that makes no sense, or the batch is not
            known.
    """
    source = next(iter(written.values())).source
    kept = {key: one for key, one in written.items() if not _without_counterpart(key)}
    _refuse_piecewise(kept)
    kept = {key.replace("n_storage_tokens", "num_register_tokens"): one for key, one in kept.items()}
    check_names(kept, setting_names(ReleasedConfig))
    released = fit_settings(ReleasedConfig, kept)
    rows = _translation(released, dino3="optim.base_lr" not in kept and released.optim.lr > 0)
    settings = {}
    for key, (value, keys) in rows.items():
        stands = any(name in kept for name in keys.split())
        settings[key] = Written(str(value), (value,), source if stands else DEFAULTS)
    if not given_batch:
        count = _count_gpus(gpus, released.train.batch_size_per_gpu, source)
        batch = released.train.batch_size_per_gpu * count
        why = f"{source}: {released.train.batch_size_per_gpu} for each of {count} GPUs"
        settings["batch"] = Written(str(batch), (batch,), why)
    left_out = [key for key in written if key not in kept and "n_storage_tokens" not in key]
    notes = [f"{source}: left out, having no counterpart here: {', '.join(left_out)}"] if left_out else []
    return settings, tuple(notes)


def _translation(released: ReleasedConfig, *, dino3: bool) -> dict[str, tuple[object, str]]:
    """Return our settings with the keys that each comes from."""
    dino, ibot, student, teacher = released.dino, released.ibot, released.student, released.teacher
    optim, crops, length = released.optim, released.crops, released.train.OFFICIAL_EPOCH_LENGTH
    own_head = ibot if ibot.separate_head else dino
    heads = "ibot" if ibot.separate_head else "dino"
    rate = 4 * optim.lr if dino3 else optim.base_lr  # DINOv3 multiplies by 4 in its code
    if optim.scaling_rule == "linear_wrt_256" and not dino3:
        rate *= 4
    every = " train.OFFICIAL_EPOCH_LENGTH"

    def steps(epochs: float) -> int:
        return round(epochs * length)

    return {
        "preset": (None, ""),
        "model": (
            f"vit{_LETTERS[student.arch]}{student.patch_size}",
            "student.arch student.patch_size",
        ),
        "init": (student.pretrained_weights or None, "student.pretrained_weights"),
        "steps": (steps(optim.epochs), "optim.epochs" + every),
        "backbone.ffn": ("mlp" if student.ffn_layer == "mlp" else "swiglu", "student.ffn_layer"),
        "backbone.registers": (student.num_register_tokens, "student.num_register_tokens"),
        "backbone.drop_path": (student.drop_path_rate, "student.drop_path_rate"),
        "backbone.drop_path_uniform": (student.drop_path_uniform, "student.drop_path_uniform"),
        "backbone.layer_scale": (student.layerscale, "student.layerscale"),
        "crops.global_size": (crops.global_crops_size, "crops.global_crops_size"),
        "crops.local_size": (crops.local_crops_size, "crops.local_crops_size"),
        "crops.local_count": (crops.local_crops_number, "crops.local_crops_number"),
        "crops.global_scale": (crops.global_crops_scale, "crops.global_crops_scale"),
        "crops.local_scale": (crops.local_crops_scale, "crops.local_crops_scale"),
        "masks.share": (ibot.mask_sample_probability, "ibot.mask_sample_probability"),
        "masks.ratio": (ibot.mask_ratio_min_max, "ibot.mask_ratio_min_max"),
        "loss.dino": (dino.loss_weight, "dino.loss_weight"),
        "loss.ibot": (ibot.loss_weight, "ibot.loss_weight"),
        "loss.koleo": (dino.koleo_loss_weight, "dino.koleo_loss_weight"),
        "loss.koleo_distributed": (dino.koleo_loss_distributed, "dino.koleo_loss_distributed"),
        "loss.koleo_top_k": (dino.koleo_topk, "dino.koleo_topk"),
        "loss.prototypes": (dino.head_n_prototypes, "dino.head_n_prototypes"),
        "loss.ibot_prototypes": (own_head.head_n_prototypes, f"{heads}.head_n_prototypes"),
        "loss.bottleneck": (dino.head_bottleneck_dim, "dino.head_bottleneck_dim"),
        "loss.ibot_bottleneck": (own_head.head_bottleneck_dim, f"{heads}.head_bottleneck_dim"),
        "loss.hidden": (dino.head_hidden_dim, "dino.head_hidden_dim"),
        "loss.shared_head": (not ibot.separate_head, "ibot.separate_head"),
        "loss.centring": (
            "softmax" if released.train.centering == "centering" else "sinkhorn",
            "train.centering",
        ),
        "teacher.momentum": (
            (teacher.momentum_teacher, teacher.final_momentum_teacher),
            "teacher.momentum_teacher teacher.final_momentum_teacher",
        ),
        "teacher.temperature": (
            (teacher.warmup_teacher_temp, teacher.teacher_temp),
            "teacher.warmup_teacher_temp teacher.teacher_temp",
        ),
        "teacher.temperature_warmup": (
            steps(teacher.warmup_teacher_temp_epochs),
            "teacher.warmup_teacher_temp_epochs" + every,
        ),
        "optim.lr": (rate, "optim.base_lr optim.lr optim.scaling_rule"),
        "optim.lr_rule": (optim.scaling_rule.partition("_")[0], "optim.scaling_rule"),
        "optim.min_lr": (optim.min_lr, "optim.min_lr"),
        "optim.warmup": (steps(optim.warmup_epochs), "optim.warmup_epochs" + every),
        "optim.weight_decay": (
            (optim.weight_decay, optim.weight_decay_end),
            "optim.weight_decay optim.weight_decay_end",
        ),
        "optim.layer_decay": (optim.layerwise_decay, "optim.layerwise_decay"),
        "optim.patch_embed": (optim.patch_embed_lr_mult, "optim.patch_embed_lr_mult"),
        "optim.betas": ((optim.adamw_beta1, optim.adamw_beta2), "optim.adamw_beta1 optim.adamw_beta2"),
        "optim.clip": (optim.clip_grad, "optim.clip_grad"),
        "optim.freeze_last_layer": (
            steps(optim.freeze_last_layer_epochs),
            "optim.freeze_last_layer_epochs" + every,
        ),
    }


def _without_counterpart(key: str) -> bool:
    return key.startswith(_WITHOUT_COUNTERPART)


def _refuse_piecewise(written: Mapping[str, Written]) -> None:
    piecewise = next((key for key in written if key.startswith("schedules.")), None)
    if piecewise is not None:
        raise ArgumentError(
            f"{piecewise}{written[piecewise].place} is a piecewise schedule, which cannot be translated",
            hint="remove the section, and give optim.lr, optim.warmup, teacher.momentum and so on",
        )


def _count_gpus(gpus: Written | None, each: int, source: str) -> int:
    """Return how many GPUs share the batch."""
    if gpus is None:
        raise ArgumentError(
            f"{source} has {each} images for each GPU, but not how many GPUs there were",
            hint=f"add gpus=32, or batch={32 * each} for the images of all",
        )
    count = gpus.readings[0]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise ArgumentError(f"gpus is {gpus.text!r}; wanted a whole number from 1")
    return count
