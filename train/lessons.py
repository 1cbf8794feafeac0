"""What a student learns from, where that is no average of itself: a network, or what it said before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.vit import Tokens
from dinov2kit.weights import LoadedModel, load_model

from .batches import Batch
from .colours import finish_crops, no_colours
from .exporting import head_shapes
from .heads import ProjectionHead
from .parallel import World
from .probe import Embed
from .resolved import Resolved
from .starting import starting_heads
from .taught_batches import TaughtBatch
from .teacher_features import TeacherFeatures
from .teachers import Seen, Teacher, open_teacher
from .train_config import TrainConfig

_WHY = "rule: the teacher has it so"


@dataclass(frozen=True)
class Lessons:
    """A finished teacher: a network that is asked for tokens, or a file of what it said.

    Attributes:
        by: "prototypes" or "features".
        digest: of the teacher.
        teacher: the network, in distillation by features; None where its features are on disk.
        features: what it said of views of the images.
        model: the network, in distillation by prototypes.
        heads: its heads, `dino_head` and perhaps `ibot_head`.
    """

    by: str
    digest: str
    teacher: Teacher | None = None
    features: TeacherFeatures | None = None
    model: LoadedModel | None = None
    heads: nn.ModuleDict | None = None

    def settle(self, resolved: Resolved) -> Resolved:
        """Write into the settings what the teacher decides.

        Raises:
            ArgumentError: something else was given.
        """
        wanted: dict[str, object] = {"distill.by": self.by, "distill.digest": self.digest}
        source = self.features or self.teacher
        if source is not None:
            wanted |= {"distill.class_dim": source.class_dim, "distill.patch_dim": source.patch_dim}
        if self.heads is not None:
            wanted |= self._head_settings()
        for key, value in wanted.items():
            group, name = key.split(".")
            had = getattr(getattr(resolved.config, group), name)
            if not resolved.bends(key) and had not in (value, None, "auto"):
                raise ArgumentError(f"{key} is {had}, and of this teacher it is {value}", hint="leave it out")
        return resolved.choose(wanted, _WHY)

    def embedder(self, config: TrainConfig, world: World) -> Embed | None:
        """Return what makes class tokens of images, to measure the teacher by; None of features on disk."""
        teacher, model = self.teacher, self.model
        if teacher is not None:
            side = self.size(config)
            return lambda pixels: teacher.look(_resized(pixels.to(world.device), side)).class_token
        if model is None:
            return None
        usual = model.normalisation

        def embed(pixels: UInt8[Tensor, "b h w c"]) -> Float[Tensor, "b dim"]:
            plain = no_colours(len(pixels), pixels.shape[3])
            with torch.no_grad():
                crops = finish_crops(pixels.to(world.device), plain, mean=usual.mean, std=usual.std)
                tokens: Tokens = model.vit(crops)
            return tokens.class_token

        return embed

    def _head_settings(self) -> dict[str, object]:
        assert self.heads is not None
        shapes = head_shapes(self.heads.state_dict())
        counts = {name: shape["prototypes"] for name, shape in shapes.items()}
        dino = counts["dino_head"]
        shared = "ibot_head" not in counts
        return {
            "loss.shared_head": shared,
            "loss.prototypes": dino,
            "loss.ibot_prototypes": counts.get("ibot_head", dino),
        }

    def size(self, config: TrainConfig) -> int:
        """Return the side of what the teacher sees, in pixels."""
        multiple = 1 if self.teacher is None else self.teacher.multiple
        nearest = max(round(config.crops.global_size / multiple), 1) * multiple
        return config.distill.size or nearest

    def check(self, config: TrainConfig) -> None:
        """Refuse sides that the teacher does not take.

        Raises:
            ArgumentError: there is one.
        """
        key, side, multiple = "crops.global_size", config.crops.global_size, 1
        if self.model is not None:
            multiple = self.model.vit.config.patch_size
        elif self.teacher is not None and config.distill.size is not None:
            key, side, multiple = "distill.size", config.distill.size, self.teacher.multiple
        if side % multiple:
            nearest = max(round(side / multiple), 1) * multiple
            raise ArgumentError(
                f"{key} is {side}; this teacher takes multiples of {multiple}", hint=f"use {key}={nearest}"
            )

    def ask(self, batch: Batch | TaughtBatch, world: World) -> Seen:
        """Return what the teacher says of a micro-batch, asked now or before."""
        if isinstance(batch, Batch):
            return self._ask_model(batch, world)
        if batch.class_token is not None:
            patches = batch.patch_tokens
            return Seen(
                batch.class_token.to(world.device, non_blocking=True),
                None if patches is None else patches.to(world.device, non_blocking=True),
            )
        assert self.teacher is not None
        assert batch.teacher_pixels is not None
        return self.teacher.look(batch.teacher_pixels.to(world.device, non_blocking=True))

    @torch.no_grad()
    def _ask_model(self, batch: Batch, world: World) -> Seen:
        """Return the tokens of the global crops, which the teacher sees as the student does."""
        assert self.model is not None
        usual, vit = self.model.normalisation, self.model.vit
        pixels = batch.global_pixels.to(world.device, non_blocking=True)
        crops = finish_crops(pixels, batch.global_colours, mean=usual.mean, std=usual.std)
        tokens: Tokens = vit(crops)
        side = pixels.shape[1] // vit.config.patch_size
        return Seen(tokens.class_token, tokens.patch_tokens.reshape(len(crops), side, side, -1))


def open_lessons(config: TrainConfig, world: World, *, precision: str) -> Lessons | None:
    """Open the teacher that the settings name; None where they name none.

    Raises:
        WeightsError: it cannot be had, or has no heads where prototypes are compared.
        ArgumentError: it cannot be used so.
        ImageError: its features cannot be read.
    """
    chosen = config.distill
    if chosen.teacher is None:
        return None
    if _is_features(chosen.teacher):
        _refuse(chosen.by == "prototypes", "features of a teacher have no prototypes", "distill.by=features")
        _refuse(chosen.views is not None, "views are of a teacher that is asked", "leave out distill.views")
        features = TeacherFeatures.open(Path(chosen.teacher).expanduser())
        return Lessons("features", features.digest, features=features)
    foreign = chosen.teacher.startswith(("hf:", "torch:"))
    found = None if foreign else starting_heads(chosen.teacher)
    if chosen.by == "prototypes" or (chosen.by == "auto" and found is not None and chosen.views is None):
        if found is None:
            raise WeightsError(
                f"the teacher {chosen.teacher} has no heads",
                hint="use distill.by=features; released weights come without heads",
            )
        return _with_heads(chosen.teacher, *found, world)
    teacher = open_teacher(
        chosen.teacher, channels=config.reading.channels, device=world.device, precision=precision
    )
    return Lessons("features", teacher.digest, teacher=teacher)


def _with_heads(
    source: str, state: dict[str, torch.Tensor], shapes: dict[str, dict[str, object]], world: World
) -> Lessons:
    model = load_model(source)
    heads = nn.ModuleDict({name: ProjectionHead(**shape) for name, shape in shapes.items()})  # type: ignore[arg-type]
    heads.load_state_dict(state)
    model.vit.to(world.device)
    return Lessons(
        "prototypes",
        model.weights_sha256,
        model=model,
        heads=heads.requires_grad_(False).eval().to(world.device),
    )


def _resized(pixels: UInt8[Tensor, "b h w c"], side: int) -> UInt8[Tensor, "b side side c"]:
    if pixels.shape[1:3] == (side, side):
        return pixels
    planes = pixels.permute(0, 3, 1, 2).float()
    planes = functional.interpolate(
        planes, size=(side, side), mode="bicubic", align_corners=False, antialias=True
    )
    return planes.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _is_features(source: str) -> bool:
    path = Path(source).expanduser()
    return path.suffix.lower() in (".h5", ".hdf5") or (path.is_dir() and any(path.glob("*.h5")))


def _refuse(wrong: bool, said: str, hint: str) -> None:
    if wrong:
        raise ArgumentError(said, hint=hint)
