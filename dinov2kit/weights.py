"""Models by name: a weight file, a released model, or random weights to try things with."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import torch

from dinov2kit.architectures import (
    ARCHITECTURES,
    ViTConfig,
    find_architecture,
    name_architecture,
    plain_name,
)
from dinov2kit.catalogue import (
    DEFAULT_MODEL,
    SHIPPED,
    ModelSpec,
    cached_file,
    find_model,
    is_offline,
    list_models,
)
from dinov2kit.checkpoints import FORMATS, read_checkpoint, state_digest, write_checkpoint
from dinov2kit.download import Progress, pull_model
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.normalising import Normalisation, read_image_size, read_normalisation
from dinov2kit.tensor_files import IN_FOLDER, weight_file
from dinov2kit.vit import VisionTransformer

__all__ = ["LoadedModel", "ModelFacts", "convert_model", "describe_model", "list_models", "load_model"]

logger = logging.getLogger(__name__)

_UNTRAINED = "untrained:"
_SUFFIXES = {"released": ".pth", "safetensors": ".safetensors"}


@dataclass(frozen=True)
class LoadedModel:
    """A backbone, ready to compute.

    Attributes:
        vit: the model on the CPU, in evaluation mode, its weights frozen, fp32.
        name: the name in the release, "untrained:ARCHITECTURE[:SEED]", or the path as it was given.
        weights_sha256: `state_digest`; the same for every file format.
        format: the format of the file, as `read_checkpoint` says it, or "untrained".
        path: the file or folder; None when there is none.
        notes: what the reader of the file chose or left out, for a person to read.
        metadata: what a file of ours says besides the weights.
    """

    vit: VisionTransformer
    name: str
    weights_sha256: str
    format: str
    path: Path | None
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def normalisation(self) -> Normalisation:
        """What the model wants pixels to be."""
        return read_normalisation(self.metadata, self.vit.config.in_channels, of=self.name)

    @property
    def image_size(self) -> int:
        """Side of the images that it was trained with, in pixels; 224 where no one says."""
        return read_image_size(self.metadata, of=self.name)


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model; what only its file can tell is None while the file is not on this machine.

    Attributes:
        name: as in `LoadedModel`.
        architecture: the name of its shape; None when it has none.
        config: its shape and rules.
        parameters: how many numbers the weights are.
        url: where a released model comes from; None for others.
        format: as in `LoadedModel`.
        weights_sha256: as in `LoadedModel`.
        path: as in `LoadedModel`.
        nbytes: size of the file in bytes.
        notes: as in `LoadedModel`.
    """

    name: str
    architecture: str | None
    config: ViTConfig
    parameters: int
    url: str | None = None
    format: str | None = None
    weights_sha256: str | None = None
    path: Path | None = None
    nbytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def position_rule(self) -> str:
        """How the position embeddings are fitted to other image sizes."""
        config = self.config
        scale = f"scale with offset {config.interpolate_offset:g}" if config.interpolate_offset else "size"
        smooth = ", antialias" if config.interpolate_antialias else ""
        return f"{config.pos_grid}x{config.pos_grid}, bicubic by {scale}{smooth}"

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        path = None if self.path is None else str(self.path)
        return {**asdict(self), "path": path, "position_rule": self.position_rule}


def load_model(
    name_or_path: str | Path = "auto", *, progress: Progress | None = None, base_url: str | None = None
) -> LoadedModel:
    """Return the backbone that a name or a path means, downloaded first if need be.

    Args:
        name_or_path: a weight file, a folder in Hugging Face layout, or the folder of a training run: its
            latest export; "untrained:ARCHITECTURE" or "untrained:ARCHITECTURE:SEED" for random weights of a
            shape that `find_architecture` knows; a name that `find_model` knows; or "auto": what
            `$DINOKIT_MODEL` says, else the smallest released model, else, where that can neither be found nor
            downloaded, the small model in this package.
        progress: as for `pull_model`.
        base_url: as for `pull_model`.

    Raises:
        WeightsError: the model is unknown, cannot be had, or its file is damaged.
    """
    name = _meant(name_or_path)
    if name == "auto":
        return _load_default(progress, base_url)
    if name.startswith(_UNTRAINED):
        return _draw(name)
    found = _locate(name)
    if isinstance(found, Path):
        return _load(found, name)
    file = pull_model(found.name, progress=progress, base_url=base_url)
    return _load_released(found, file.path)


def describe_model(name_or_path: str | Path) -> ModelFacts:
    """Return what is known of a model, without a download.

    Args:
        name_or_path: as for `load_model`.

    Raises:
        WeightsError: the model is unknown, or its file is damaged.
    """
    meant = _meant(name_or_path)
    name = _default_name() if meant == "auto" else meant
    found = None if name.startswith(_UNTRAINED) else _locate(name)
    url = found.url() if isinstance(found, ModelSpec) and not found.shipped else None
    if isinstance(found, ModelSpec) and cached_file(found) is None:
        config = ARCHITECTURES[found.architecture]
        return ModelFacts(found.name, found.architecture, config, found.parameters, url=url)
    model = load_model(name)
    config = model.vit.config
    return ModelFacts(
        name=model.name,
        architecture=name_architecture(config),
        config=config,
        parameters=sum(parameter.numel() for parameter in model.vit.parameters()),
        url=url,
        format=model.format,
        weights_sha256=model.weights_sha256,
        path=model.path,
        nbytes=None if model.path is None else weight_file(model.path).stat().st_size,
        notes=model.notes,
    )


def convert_model(
    name_or_path: str | Path,
    out: Path,
    *,
    to: str,
    overwrite: bool = False,
    half: bool = False,
    image_size: int | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Write the weights of a model in another format, and return the model.

    Args:
        name_or_path: as for `load_model`.
        out: the file to write; for "hf" the folder.
        to: a format that `write_checkpoint` writes.
        overwrite: replace what is there.
        half: write fp16, which halves the file.
        image_size: side of the images that the model is best at; only "safetensors" can say it.
        progress: as for `load_model`.

    Raises:
        ArgumentError: the format is unknown or cannot hold this model, or `out` does not fit or is taken.
        WeightsError: the model cannot be had.
    """
    if to not in FORMATS:
        raise ArgumentError(f"unknown format {to!r}; wanted one of {', '.join(FORMATS)}")
    wanted = _SUFFIXES.get(to, out.suffix)
    if out.suffix != wanted:
        raise ArgumentError(f"{out} is no name for the format {to}; wanted one that ends in {wanted}")
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not overwrite:
        raise ArgumentError(f"{out} exists already", hint="name another place, or say --overwrite")
    model = load_model(name_or_path, progress=progress)
    if image_size is not None and to != "safetensors":
        raise ArgumentError(f"the format {to} cannot say an image size", hint="use safetensors")
    metadata = None
    if to == "safetensors":
        own = {} if image_size is None else {"image_size": str(image_size)}
        metadata = {**model.metadata, **own}
    dtype = torch.float16 if half else torch.float32
    write_checkpoint(model.vit.state_dict(), model.vit.config, out, format=to, dtype=dtype, metadata=metadata)
    return model


def _meant(name_or_path: str | Path) -> str:
    """Return the name or path, or what the environment says instead of "auto"."""
    name = str(name_or_path)
    return os.environ.get("DINOKIT_MODEL") or name if name == "auto" else name


def _locate(name: str) -> Path | ModelSpec:
    """Return the weight file or folder, or the released model, that a name means."""
    path = Path(name).expanduser()
    if path.is_file() or any((path / part).is_file() for part in ("config.json", *IN_FOLDER)):
        return path
    try:
        return find_model(name)
    except WeightsError:
        if path.is_dir():
            return path  # the reader says what it lacks
        if path.suffix in {*_SUFFIXES.values(), ".pt", ".bin", ".ckpt"} or os.sep in name:
            raise WeightsError(
                f"no such weight file: {name}",
                hint='paths are relative to the current folder; "dinokit models list" has the names',
            ) from None
        if (plain := _known_shape(name)) is not None:
            raise WeightsError(
                f"there are no trained weights of {plain}",
                hint=f"--model {_UNTRAINED}{plain} has random weights, to try things with",
            ) from None
        raise


def _load(path: Path, name: str) -> LoadedModel:
    checkpoint = read_checkpoint(path)
    for note in checkpoint.notes:
        logger.info("%s: %s", path, note)
    vit = VisionTransformer.from_state(checkpoint.config, checkpoint.state).requires_grad_(False)
    digest = state_digest(checkpoint.state, checkpoint.config)
    return LoadedModel(vit, name, digest, checkpoint.format, path, checkpoint.notes, checkpoint.metadata)


def _load_released(spec: ModelSpec, path: Path) -> LoadedModel:
    """Load the file of a model with a name: it must hold what its name says."""
    model = _load(path, spec.name)
    if spec.shipped:
        return model
    config = model.vit.config
    if replace(config, layer_scale=1.0) != ARCHITECTURES[spec.architecture]:
        held = name_architecture(config)
        other = held if held not in (None, spec.architecture) else "another architecture"
        raise WeightsError(
            f"{path} holds {other}, not {spec.architecture}",
            hint=f'delete it and run "dinokit models pull {spec.name}"',
        )
    return model


def _default_name() -> str:
    """Return the name of the model that "auto" means, without a look at the network."""
    here = cached_file(find_model(DEFAULT_MODEL)) is not None
    return SHIPPED.name if is_offline() and not here else DEFAULT_MODEL


def _load_default(progress: Progress | None, base_url: str | None) -> LoadedModel:
    spec = find_model(DEFAULT_MODEL)
    try:
        file = pull_model(spec.name, progress=progress, base_url=base_url, timeout=10.0, retries=1)
    except WeightsError as error:
        if cached_file(spec) is not None:
            raise
        _say_once(
            f"using {SHIPPED.name}, the small model in this package; a better one: "
            f'"dinokit models pull vits14" ({error.message})'
        )
        spec, file = SHIPPED, pull_model(SHIPPED.name)
    return _load_released(spec, file.path)


@lru_cache
def _say_once(said: str) -> None:
    logger.warning("%s", said)


def _draw(name: str) -> LoadedModel:
    """Return a model with random weights; the random state of torch stays as it is.

    LayerScale is 1, not the 1e-5 that training starts from: images must reach the class token.
    """
    architecture, _, seed = name.removeprefix(_UNTRAINED).partition(":")
    if not (seed or "0").isdecimal():
        raise WeightsError(f"unknown model {name!r}", hint="a seed is a whole number")
    try:
        config = find_architecture(architecture)
    except WeightsError as error:
        raise WeightsError(
            f"unknown model {name!r}; wanted {_UNTRAINED}ARCHITECTURE or {_UNTRAINED}ARCHITECTURE:SEED",
            hint=error.hint,
        ) from error
    number = int(seed or "0") % 2**64
    with torch.device("meta"):
        vit = VisionTransformer(config)
    vit = vit.to_empty(device="cpu")
    vit.init_weights(torch.Generator().manual_seed(number))
    vit = vit.eval().requires_grad_(False)
    full_name = f"{_UNTRAINED}{plain_name(architecture)}" + (f":{number}" if number else "")
    return LoadedModel(vit, full_name, state_digest(vit.state_dict(), config), "untrained", None)


def _known_shape(name: str) -> str | None:
    """Return the plain name of an architecture; None where there is none."""
    try:
        find_architecture(name)
    except WeightsError:
        return None
    return plain_name(name)
