"""The losses of one batch: what the student sees in masked and local crops against what the teacher sees.

Source: Oquab et al., "DINOv2", 2023, section 4 and the released code; Siméoni et al., "DINOv3", 2025 (Gram).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from dinov2kit.normalising import Normalisation, usual_normalisation
from dinov2kit.vit import Tokens, VisionTransformer

from .batches import Batch
from .colours import finish_crops, no_colours
from .crops import CropRecipe
from .gram import gram_loss
from .heads import ProjectionHead
from .koleo import koleo
from .networks import Networks
from .parallel import World
from .projectors import on_grid
from .soft_cross_entropy import soft_cross_entropy
from .targets import Centre, Targets, centred_targets, sinkhorn_targets
from .teachers import Seen
from .train_config import TrainConfig

GLOBAL_CROPS = 2


@dataclass(frozen=True)
class Views:
    """Crops on the device, ready for the network; the index of a crop is its number times b plus its image.

    Attributes:
        global_crops: two of each of b images.
        local_crops: the small ones.
        gram_crops: the global ones again, larger and without changes of colour; None without a Gram teacher.
        masks: the patches of the global crops that the student does not see; None where it sees all.
    """

    global_crops: Float[Tensor, "two_b c g g"]
    local_crops: Float[Tensor, "many_b c l l"]
    gram_crops: Float[Tensor, "two_b c h h"] | None
    masks: Bool[Tensor, "two_b n"] | None

    @property
    def images(self) -> int:
        """How many images the crops are of."""
        return len(self.global_crops) // GLOBAL_CROPS


@dataclass(frozen=True)
class StepLosses:
    """The losses of one batch.

    Attributes:
        total: what is minimised.
        terms: each loss by its name in the metrics, detached, unweighted. The DINO terms are mean
            cross-entropies in nats; `ibot` over `masked`, the share of masked crops, is one.
        targets: the targets of the class tokens, for their statistics; None where there are no prototypes.
        known: what the teacher said, by the name of the centre that follows it after the step; empty where
            targets are balanced.
    """

    total: Float[Tensor, ""]
    terms: Mapping[str, Tensor]
    targets: Targets | None
    known: Mapping[str, tuple[Tensor, ...]]


def make_views(
    batch: Batch, masks: Bool[Tensor, "two_b n"] | None, config: TrainConfig, world: World
) -> Views:
    """Bring a batch to the device and finish its crops there."""
    usual = normalisation(config)

    def finish(pixels: UInt8[Tensor, "b h w c"], colours: Tensor) -> Tensor:
        return finish_crops(pixels, colours, mean=usual.mean, std=usual.std)

    device = world.device
    global_pixels = batch.global_pixels.to(device, non_blocking=True)
    local_pixels = batch.local_pixels.to(device, non_blocking=True)
    gram_crops = None
    if config.loss.gram:
        gram_crops = finish(global_pixels, no_colours(len(global_pixels), config.reading.channels))
        if config.loss.gram_scale == 2:
            global_pixels = _halved(global_pixels)
    return Views(
        global_crops=finish(global_pixels, batch.global_colours),
        local_crops=finish(local_pixels, batch.local_colours),
        gram_crops=gram_crops,
        masks=None if masks is None else masks.to(device, non_blocking=True),
    )


def crop_recipe(config: TrainConfig) -> CropRecipe:
    """Return how crops are cut; with a Gram teacher that sees more, the global ones are cut that large."""
    chosen = config.crops
    larger = config.loss.gram_scale if config.loss.gram else 1
    return CropRecipe(
        global_size=larger * chosen.global_size,
        local_size=chosen.local_size,
        local_count=chosen.local_count,
        global_scale=chosen.global_scale,
        local_scale=chosen.local_scale,
        flip=chosen.flip,
        jitter=chosen.jitter,
        brightness=chosen.brightness,
        contrast=chosen.contrast,
        saturation=chosen.saturation,
        hue=chosen.hue,
        grey=chosen.grey,
        blur=chosen.blur_chances,
        solarise=chosen.solarise,
    )


def normalisation(config: TrainConfig) -> Normalisation:
    """Return what pixels are normalised by."""
    reading = config.reading
    usual = usual_normalisation(reading.channels)
    return Normalisation(reading.mean or usual.mean, reading.std or usual.std)


def _halved(pixels: UInt8[Tensor, "b h w c"]) -> UInt8[Tensor, "b half_h half_w c"]:
    """Shrink to half the side; every pixel is the rounded mean of four."""
    wide = pixels.to(torch.int16)
    total = wide[:, ::2, ::2] + wide[:, 1::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, 1::2]
    return ((total + 2) // 4).to(torch.uint8)


def arithmetic(world: World, precision: str) -> AbstractContextManager[object]:
    """Return the block in which networks compute: bf16 where that is chosen, else as weights are."""
    if precision == "bf16":
        return torch.autocast(world.device.type, torch.bfloat16)
    return nullcontext()


def step_losses(
    networks: Networks,
    views: Views,
    config: TrainConfig,
    world: World,
    *,
    temperature: float,
    generator: torch.Generator,
    gram: bool = True,
    lesson: Seen | None = None,
) -> StepLosses:
    """Compute all losses of a batch.

    Every process has its own images; targets are balanced over the images of all.

    Args:
        networks: student and teacher.
        views: the crops.
        config: the weights of the losses.
        world: the processes.
        temperature: of the teacher.
        generator: of the stochastic depth.
        gram: whether the Gram loss counts already.
        lesson: the tokens of a finished teacher, of the same global crops; None: those of the moving average.
            Every patch counts then, and none is masked.
    """
    b, chosen = views.images, config.loss
    student_global, student_local = _student_tokens(networks, views, config, generator)
    counted = views.masks
    if counted is None:
        counted = student_global.patch_tokens.new_ones(
            student_global.patch_tokens.shape[:2], dtype=torch.bool
        )
    image, patch = counted.nonzero(as_tuple=True)
    with torch.no_grad():
        if lesson is None:
            teacher = _forward(networks.teacher["backbone"], [views.global_crops], [None])[0]
            said_cls, said_patches, heads = teacher.class_token, teacher.patch_tokens, networks.teacher
        else:
            assert networks.guide is not None
            assert lesson.patch_tokens is not None
            said_cls, said_patches = lesson.class_token, on_grid(lesson.patch_tokens, count=counted.shape[1])
            heads = networks.guide
    hidden = student_global.patch_tokens[image, patch]
    cls_rows = torch.cat([student_local.class_token, student_global.class_token])
    student = _project(networks.student, cls_rows, hidden)
    with torch.no_grad():
        known = _project(heads, said_cls, said_patches[image, patch])
        targets = {
            name: _targets(networks.centres[name], *rows, config=config, world=world, temperature=temperature)
            for name, rows in known.items()
        }
    local, both = len(student_local.class_token), len(student_global.class_token)
    terms = config.crops.local_count * GLOBAL_CROPS + GLOBAL_CROPS
    rows, prototypes = student["dino"]
    of_image = torch.arange(b, device=rows.device)
    seen = torch.stack([of_image, of_image + b], dim=1).repeat(config.crops.local_count, 1)
    dino_local = _cross_entropy(rows[:local], prototypes, targets["dino"], seen, 2 / (terms * b), config)
    swapped = torch.cat([of_image + b, of_image])[:, None]
    dino_global = _cross_entropy(rows[local:], prototypes, targets["dino"], swapped, 1 / (terms * b), config)
    weight = (1 / (both * counted.sum(dim=1).clamp(min=1).float()))[image]
    rows, prototypes = student["ibot"]
    masked = torch.arange(len(rows), device=rows.device)[:, None]
    ibot = soft_cross_entropy(
        rows, prototypes, targets["ibot"], masked, weight, temperature=chosen.student_temperature
    )
    spread = [
        koleo(
            crop,
            group=world.group if chosen.koleo_distributed else None,
            top_k=chosen.koleo_top_k,
        )
        for crop in student_global.class_token.chunk(GLOBAL_CROPS)
    ]
    total = chosen.dino * (dino_local + dino_global) + chosen.ibot * ibot
    total = total + chosen.koleo * torch.stack(spread).sum()
    said = {
        "dino_local": dino_local * terms / (GLOBAL_CROPS * config.crops.local_count or 1),
        "dino_global": dino_global * terms / GLOBAL_CROPS,
        "ibot": ibot,
        "masked": weight.sum(),
        "koleo": torch.stack(spread).mean(),
    }
    if networks.gram_teacher is not None and views.gram_crops is not None:
        loss = _gram(networks.gram_teacher, student_global, views, config)
        total = total + (chosen.gram if gram else 0.0) * loss
        said["gram"] = loss
    detached = {name: term.detach() for name, term in said.items()}
    followed = known if chosen.centring == "softmax" else {}
    return StepLosses(total, detached, targets["dino"], followed)


def _student_tokens(
    networks: Networks, views: Views, config: TrainConfig, generator: torch.Generator
) -> tuple[Tokens, Tokens]:
    backbone = networks.student["backbone"]
    tokens = _forward(
        backbone,
        [views.global_crops, views.local_crops],
        [views.masks, None],
        drop_path=depth_rates(backbone, config),
        generator=generator,
    )
    return tokens[0], tokens[1]


def depth_rates(backbone: nn.Module, config: TrainConfig) -> list[float]:
    """Return the rate of stochastic depth of each block; none where there is no stochastic depth."""
    assert isinstance(backbone, VisionTransformer)
    depth, rate = backbone.config.depth, config.backbone.drop_path
    if not rate:
        return []
    return [rate] * depth if config.backbone.drop_path_uniform else torch.linspace(0, rate, depth).tolist()


def _forward(backbone: nn.Module, *arguments: object, **settings: object) -> list[Tokens]:
    assert isinstance(backbone, VisionTransformer)
    tokens: list[Tokens] = backbone.forward_packed(*arguments, **settings)  # type: ignore[arg-type]
    return tokens


def _project(
    network: nn.ModuleDict, cls_rows: Float[Tensor, "n dim"], patch_rows: Float[Tensor, "m dim"]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return rows on the unit sphere and the prototypes, for both losses; each head is called once."""
    dino_head = network["dino_head"]
    assert isinstance(dino_head, ProjectionHead)
    if "ibot_head" not in network:
        rows, prototypes = dino_head.project(torch.cat([cls_rows, patch_rows]))
        return {
            "dino": (rows[: len(cls_rows)], prototypes),
            "ibot": (rows[len(cls_rows) :], prototypes),
        }
    ibot_head = network["ibot_head"]
    assert isinstance(ibot_head, ProjectionHead)
    return {"dino": dino_head.project(cls_rows), "ibot": ibot_head.project(patch_rows)}


def _targets(
    centre: nn.Module,
    rows: Float[Tensor, "n b"],
    prototypes: Float[Tensor, "k b"],
    *,
    config: TrainConfig,
    world: World,
    temperature: float,
) -> Targets:
    if config.loss.centring == "sinkhorn":
        return sinkhorn_targets(rows, prototypes, temperature=temperature, group=world.group)
    assert isinstance(centre, Centre)
    return centred_targets(rows, prototypes, centre.centre, temperature=temperature)


def _cross_entropy(
    rows: Float[Tensor, "m b"],
    prototypes: Float[Tensor, "k b"],
    targets: Targets,
    pick: Int64[Tensor, "m t"],
    weight: float,
    config: TrainConfig,
) -> Float[Tensor, ""]:
    weights = torch.full((len(rows),), weight, device=rows.device)
    return soft_cross_entropy(
        rows, prototypes, targets, pick, weights, temperature=config.loss.student_temperature
    )


def _gram(
    gram_teacher: VisionTransformer, student: Tokens, views: Views, config: TrainConfig
) -> Float[Tensor, ""]:
    """Compare how alike the patches of an image are, in the student and in the Gram teacher."""
    assert views.gram_crops is not None
    with torch.no_grad():
        known = _forward(gram_teacher, [views.gram_crops], [None])[0].patch_tokens
        if config.loss.gram_scale == 2:
            side = config.crops.global_size // gram_teacher.config.patch_size
            rows = known.float().transpose(1, 2).reshape(len(known), -1, 2 * side, 2 * side)
            shrunk = functional.interpolate(rows, size=(side, side), mode="bicubic", align_corners=False)
            known = shrunk.flatten(2).transpose(1, 2)
    return gram_loss(student.patch_tokens, known)
