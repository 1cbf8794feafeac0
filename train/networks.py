"""Student and teacher: two networks of the same shape, of which the second follows the first."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from dinov2kit.architectures import ViTConfig, find_architecture
from dinov2kit.errors import WeightsError
from dinov2kit.vit import VisionTransformer

from .distill_settings import DistillSettings
from .heads import ProjectionHead
from .parallel import World, share_modules
from .projectors import Projector, TokenMean
from .starting import starting_heads, starting_projectors, starting_weights
from .targets import Centre
from .train_config import TrainConfig
from .train_groups import LossSettings

STATE_BYTES = 20  # for each number that is learned: itself, its gradient, two moments, its mean


@dataclass(frozen=True)
class Networks:
    """What a run trains, and what it learns from.

    Attributes:
        student: `backbone`, `dino_head` and, unless the head is shared, `ibot_head`; where tokens of another
            network are guessed, `backbone`, `class_projector` and perhaps `patch_projector`.
        teacher: the same, frozen; a moving average of the student.
        gram_teacher: an earlier teacher whose patch tokens are kept alike; None where that is not wanted.
        centres: the running means of teacher logits, `dino` and `ibot`, used where targets are centred
            instead of balanced; or of the tokens of another network, `class_token` and `patch_tokens`.
        config: the shape of both backbones.
        guide: the frozen heads of a finished teacher; None where there are none.
        notes: how the weights were made, in sentences.
    """

    student: nn.ModuleDict
    teacher: nn.ModuleDict
    gram_teacher: VisionTransformer | None
    centres: nn.ModuleDict
    config: ViTConfig
    guide: nn.ModuleDict | None = None
    notes: tuple[str, ...] = ()

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher towards the student: teacher = momentum * teacher + (1 - momentum) * student."""
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def release_teacher(self) -> None:
        """Drop what was fetched of a teacher that is cut into pieces: the next step fetches it anew."""
        frozen = [*self.teacher.children(), *([self.gram_teacher] if self.gram_teacher else [])]
        for module in frozen:
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def renew_gram_teacher(self) -> None:
        """Let the Gram teacher be what the teacher is now."""
        if self.gram_teacher is not None:
            now: list[Tensor] = list(self.teacher["backbone"].parameters())
            torch._foreach_copy_(list(self.gram_teacher.parameters()), now)

    def parts(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield all that a checkpoint keeps, by name."""
        yield "student", self.student
        yield "teacher", self.teacher
        yield "centres", self.centres
        if self.gram_teacher is not None:
            yield "gram_teacher", self.gram_teacher


def backbone_config(config: TrainConfig) -> ViTConfig:
    """Return the shape of the backbone that a run trains.

    Raises:
        WeightsError: there is no such architecture.
        ArgumentError: its numbers do not fit together.
    """
    chosen = config.backbone
    return find_architecture(
        config.model,
        image_size=config.crops.global_size,
        ffn=None if chosen.ffn == "auto" else chosen.ffn,
        num_registers=chosen.registers,
        in_channels=config.reading.channels,
        layer_scale=chosen.layer_scale,
    )


def build_networks(
    config: TrainConfig, world: World, *, precision: str, guide: nn.ModuleDict | None = None
) -> Networks:
    """Make student and teacher, equal at the start, on the device and spread over the processes.

    Weights are drawn on the CPU, so that they depend on the seed alone.

    Args:
        config: the settings.
        world: the processes.
        precision: of the networks.
        guide: heads of a finished teacher, on the device.

    Raises:
        WeightsError: what the run should start from cannot be had or does not fit.
    """
    shape = backbone_config(config)
    student = _draw(config, shape)
    notes = _start(student, config, shape)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    gram_teacher, gram_notes = _gram_teacher(config, shape, teacher)
    centres = _centres(config)
    frozen = [*teacher.values(), *([gram_teacher] if gram_teacher else [])]
    for module in (student, centres, *frozen):
        module.to(world.device)
    share_modules([*student.values(), *frozen], world, sharding=_sharding(config, world), precision=precision)
    backbone = student["backbone"]
    assert isinstance(backbone, VisionTransformer)
    backbone.recompute = config.scale.recompute
    if compiles(config, world):
        for network in [backbone, *frozen]:
            for block in network.blocks if isinstance(network, VisionTransformer) else ():
                block.compile(dynamic=False)
    return Networks(student, teacher, gram_teacher, centres, shape, guide, (*notes, *gram_notes))


def compiles(config: TrainConfig, world: World) -> bool:
    """Say whether blocks are compiled: where asked for, or on CUDA in a run that is long enough to pay."""
    if config.scale.compile == "auto":
        return world.device.type == "cuda" and (config.steps or 0) > 2000
    return config.scale.compile == "on"


def _sharding(config: TrainConfig, world: World) -> str:
    """Return how weights are spread: pieces where whole copies would fill a quarter of the device."""
    if config.scale.shard != "auto":
        return config.scale.shard
    if world.device.type != "cuda":
        return "replicate"
    _, memory = torch.cuda.mem_get_info(world.device)
    state = STATE_BYTES * sum(count_parameters(config.loss, config.distill, backbone_config(config)))
    return "fsdp" if 4 * state > memory else "replicate"


@lru_cache(maxsize=32)
def count_parameters(loss: LossSettings, distill: DistillSettings, shape: ViTConfig) -> tuple[int, int]:
    """Return how many numbers are learned: in the backbone, and in its heads or projectors."""
    with torch.device("meta"):
        network = build_modules(loss, distill, shape)
    counts = {name: sum(each.numel() for each in module.parameters()) for name, module in network.items()}
    return counts.pop("backbone"), sum(counts.values())


def build_modules(loss: LossSettings, distill: DistillSettings, shape: ViTConfig) -> nn.ModuleDict:
    """Return a backbone of a shape with the heads or projectors that are wanted, its weights not drawn."""
    if distill.by_features:
        return nn.ModuleDict({"backbone": VisionTransformer(shape), **_projectors(distill, shape.embed_dim)})
    modules: dict[str, nn.Module] = {
        "backbone": VisionTransformer(shape),
        "dino_head": ProjectionHead(
            shape.embed_dim,
            loss.prototypes,
            hidden=loss.hidden,
            bottleneck=loss.bottleneck,
            norm=loss.head_norm,
        ),
    }
    if not loss.shared_head:
        modules["ibot_head"] = ProjectionHead(
            shape.embed_dim,
            loss.ibot_prototypes,
            hidden=loss.hidden,
            bottleneck=loss.ibot_bottleneck,
            norm=loss.head_norm,
        )
    return nn.ModuleDict(modules)


def _projectors(distill: DistillSettings, dim: int) -> dict[str, Projector]:
    assert distill.class_dim is not None, "the teacher said it"
    projectors = {"class_projector": Projector(dim, distill.class_dim, hidden=distill.hidden)}
    if distill.patch_dim is not None and distill.patch_tokens:
        projectors["patch_projector"] = Projector(dim, distill.patch_dim, hidden=distill.hidden)
    return projectors


def _centres(config: TrainConfig) -> nn.ModuleDict:
    distill = config.distill
    if not distill.by_features:
        counts = {"dino": config.loss.prototypes, "ibot": _ibot_prototypes(config)}
        return nn.ModuleDict({name: Centre(count) for name, count in counts.items()})
    dims = {"class_token": distill.class_dim, "patch_tokens": distill.patch_dim}
    return nn.ModuleDict({name: TokenMean(dim) for name, dim in dims.items() if dim is not None})


def _ibot_prototypes(config: TrainConfig) -> int:
    return config.loss.prototypes if config.loss.shared_head else config.loss.ibot_prototypes


def _draw(config: TrainConfig, shape: ViTConfig) -> nn.ModuleDict:
    with torch.device("meta"):
        network = build_modules(config.loss, config.distill, shape)
    network.to_empty(device="cpu")
    with torch.no_grad():  # what stays undrawn must not pass for a weight
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    for number, module in enumerate(network.values()):
        assert isinstance(module, VisionTransformer | ProjectionHead | Projector)
        module.init_weights(torch.Generator().manual_seed((config.seed * 8 + number) % 2**63))
    return network.train()


def _start(student: nn.ModuleDict, config: TrainConfig, shape: ViTConfig) -> list[str]:
    """Put the weights that the run starts from into the student; return what was done, in sentences."""
    if config.init is None:
        return ["all weights are drawn from the seed"]
    notes: list[str] = []
    student["backbone"].load_state_dict(starting_weights(shape, config.init, report=notes.append))
    found = starting_projectors(config.init) if config.distill.by_features else starting_heads(config.init)
    if found is None:
        kind = "projectors" if config.distill.by_features else "heads"
        return [*notes, f"{config.init} has no {kind}: they are drawn from the seed"]
    heads = found if isinstance(found, dict) else found[0]
    for name, module in student.items():
        if name == "backbone":
            continue
        state = {key.removeprefix(f"{name}."): value for key, value in heads.items() if key.startswith(name)}
        notes.append(_start_head(name, module, state))
    return notes


def _start_head(name: str, module: nn.Module, state: Mapping[str, Tensor]) -> str:
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    if {key: value.shape for key, value in state.items()} != shapes:
        return f"the {name} of the start has another shape: a new one is drawn from the seed"
    module.load_state_dict(dict(state))
    return f"the {name} is that of the start"


def _gram_teacher(
    config: TrainConfig, shape: ViTConfig, teacher: nn.ModuleDict
) -> tuple[VisionTransformer | None, list[str]]:
    if not config.loss.gram:
        return None, []
    backbone = teacher["backbone"]
    assert isinstance(backbone, VisionTransformer)
    gram_teacher = copy.deepcopy(backbone)
    if config.loss.gram_from is None:
        return gram_teacher, ["the Gram teacher is the teacher of this run"]
    notes: list[str] = []
    try:
        weights = starting_weights(shape, config.loss.gram_from, report=notes.append)
    except WeightsError as error:
        raise WeightsError(f"loss.gram_from: {error.message}", hint=error.hint) from error
    gram_teacher.load_state_dict(weights)
    return gram_teacher, [f"the Gram teacher: {note}" for note in notes]
