"""Models by name: a weight file, a released model, or random weights to try things with."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from dinov2kit.architectures import ARCHITECTURES, ViTConfig
from dinov2kit.catalogue import DEFAULT_MODEL, ModelSpec, cached_file, find_model, list_models
from dinov2kit.checkpoints import read_checkpoint, state_digest, write_checkpoint
from dinov2kit.download import Progress, pull_model
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.vit import VisionTransformer

__all__ = ["LoadedModel", "ModelFacts", "convert_model", "describe_model", "list_models", "load_model"]

_UNTRAINED = "untrained:"
_SUFFIXES = {".pth", ".pt", ".bin", ".ckpt", ".safetensors"}


@dataclass(frozen=True)
class LoadedModel:
    """A backbone, ready to compute.

    Attributes:
        vit: the model on the CPU, in evaluation mode, its weights frozen, fp32.
        name: the name in the release, "untrained:ARCHITECTURE[:SEED]", or the path as it was given.
        weights_sha256: digest of the tensors in released naming, fp32; the same for every file format.
        format: the format of the file, as `read_checkpoint` says it, or "untrained".
        path: where the file lies; None when there is none.
    """

    vit: VisionTransformer
    name: str
    weights_sha256: str
    format: str
    path: Path | None


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model; what only its file can tell is None while the file is not on this machine.

    Attributes:
        name: as in `LoadedModel`.
        architecture: the name of its shape; None when it has none.
        format: as in `LoadedModel`.
        config: its shape.
        parameters: how many numbers the weights are.
        weights_sha256: as in `LoadedModel`.
        path: where the file lies.
        nbytes: size of the file in bytes.
        url: where a released model comes from.
    """

    name: str
    architecture: str | None
    format: str | None
    config: ViTConfig
    parameters: int
    weights_sha256: str | None
    path: Path | None
    nbytes: int | None
    url: str | None

    @property
    def position_rule(self) -> str:
        """How the position embeddings are fitted to other image sizes."""
        side = self.config.pos_grid
        kind = f"offset {self.config.interpolate_offset:g}" if self.config.interpolate_offset else "to the size"
        smooth = ", antialias" if self.config.interpolate_antialias else ""
        return f"{side} x {side} grid, bicubic {kind}{smooth}"

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        path = None if self.path is None else str(self.path)
        return {**asdict(self), "path": path, "position_rule": self.position_rule}


def load_model(
    name_or_path: str | Path = "auto", *, progress: Progress | None = None, base_url: str | None = None
) -> LoadedModel:
    """Return the backbone that a name or a path means, downloaded first if need be.

    Args:
        name_or_path: a weight file or a folder in Hugging Face layout; "untrained:ARCHITECTURE" or
            "untrained:ARCHITECTURE:SEED" for random weights; a name that `find_model` knows; or "auto": the
            smallest released model.
        progress: as for `pull_model`.
        base_url: as for `pull_model`.

    Raises:
        WeightsError: the model is unknown, cannot be had, or its file is damaged.
    """
    name = str(name_or_path)
    if _holds_weights(path := Path(name).expanduser()):
        return _load(path, name)
    if name.startswith(_UNTRAINED):
        return _untrained(name)
    if name == "auto":
        return _load_default(progress, base_url)
    spec = _find_released(name)
    return _load_released(spec, pull_model(spec.name, progress=progress, base_url=base_url).path)


def describe_model(name_or_path: str | Path) -> ModelFacts:
    """Return what is known of a model, without a download.

    Args:
        name_or_path: as for `load_model`, but not "auto".

    Raises:
        WeightsError: the model is unknown, or its file is damaged.
    """
    name = str(name_or_path)
    if not _holds_weights(Path(name).expanduser()) and not name.startswith(_UNTRAINED):
        spec = _find_released(name)
        if cached_file(spec) is None:
            config = ARCHITECTURES[spec.architecture]
            return ModelFacts(
                spec.name, spec.architecture, None, config, spec.parameters, None, None, None, spec.url()
            )
        name = spec.name
    model = load_model(name)
    shape = replace(model.vit.config, layer_scale=1.0)
    released = not model.name.startswith(_UNTRAINED) and model.name != str(model.path)
    return ModelFacts(
        name=model.name,
        architecture=next((key for key, known in ARCHITECTURES.items() if known == shape), None),
        format=model.format,
        config=model.vit.config,
        parameters=sum(parameter.numel() for parameter in model.vit.parameters()),
        weights_sha256=model.weights_sha256,
        path=model.path,
        nbytes=None if model.path is None else _nbytes(model.path),
        url=None,
    )
