"""Networks of others, opened for teaching: models of transformers, and modules that the user wrote."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dinov2kit.catalogue import is_offline
from dinov2kit.errors import ArgumentError, DependencyError, KitError, WeightsError
from dinov2kit.normalising import Normalisation, usual_normalisation

HUGGING_FACE, NAMED_CODE = "hf:", "torch:"

USUAL_MULTIPLE = 32  # pixels: the stride of most convolutional networks

_PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")

_PASSING = ("_name_or_path", "transformers_version", "architectures", "dtype")  # say nothing of the function


@dataclass(frozen=True)
class OpenedNetwork:
    """A network before anything was asked of it.

    Attributes:
        name: the source that it was opened from.
        network: on the CPU, fp32.
        call: takes normalised images, and gives what `teacher_outputs.read_output` reads.
        normalisation: what it wants pixels to be.
        multiple: of how many pixels the sides of its images are multiples.
        digest: SHA-256 of what it computes, as far as that can be told.
    """

    name: str
    network: nn.Module
    call: Callable[[Tensor], object]
    normalisation: Normalisation
    multiple: int
    digest: str


def open_hugging_face(source: str, *, channels: int) -> OpenedNetwork:
    """Open what `AutoModel` of transformers makes of a folder or a name; of two towers, the visual one.

    Code that comes with a model is not run. Pixels are normalised as its preprocessor file says, else as
    usual. `$DINOKIT_OFFLINE` forbids the network.

    Args:
        source: "hf:ORG/NAME" or "hf:FOLDER".
        channels: of the images.

    Raises:
        DependencyError: transformers is missing, or a package that this model needs.
        WeightsError: there is no such model, or weights are missing.
        ArgumentError: it takes images of another number of channels.
    """
    try:
        from transformers import AutoModel
    except ImportError as error:
        raise DependencyError(f"{source} needs transformers", hint="pip install 'transformers>=5'") from error
    place, offline = _hub_place(source), is_offline()
    with _their_silence():
        try:
            model, report = AutoModel.from_pretrained(
                place,
                local_files_only=offline,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except ImportError as error:
            raise DependencyError(f"{source} cannot be opened: {_first_line(error)}") from error
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            forbids = "; $DINOKIT_OFFLINE forbids downloads" if offline and not Path(place).is_dir() else ""
            raise WeightsError(
                f"{source} cannot be opened: {_first_line(error)}{forbids}",
                hint="wanted hf:ORG/NAME of the Hugging Face hub, or hf:FOLDER with config.json and weights",
            ) from error
    lacking = sorted(name for name in report["missing_keys"] if not _is_pooler(name))
    if lacking:
        raise WeightsError(f"{source} lacks {len(lacking)} tensors of its network: {', '.join(lacking[:3])}")
    tower = getattr(model, "vision_model", model)
    wanted = getattr(tower.config, "num_channels", channels)
    if wanted != channels:
        raise ArgumentError(f"{source} takes images of {wanted} channels, not of {channels}")
    with _their_silence():
        normalisation = _read_preprocessor(place, channels, offline=offline, of=source)
    facts = {key: value for key, value in tower.config.to_diff_dict().items() if key not in _PASSING}
    state = {name: value for name, value in tower.state_dict().items() if not _is_pooler(name)}
    interpolates = "interpolate_pos_encoding" in inspect.signature(tower.forward).parameters

    def call(images: Tensor) -> object:
        return tower(images, interpolate_pos_encoding=True) if interpolates else tower(images)

    digest = digest_network(f"hf {type(tower).__name__}", facts, state, normalisation)
    return OpenedNetwork(source, tower, call, normalisation, _patch_size(tower.config), digest)


def open_named_code(source: str, *, channels: int) -> OpenedNetwork:
    """Run code of the user, and open the module that it names; `teachers.open_teacher` says how it is read.

    Args:
        source: "torch:package.module:name".
        channels: of the images.

    Raises:
        ArgumentError: the name is no such text, there is no such thing, its code fails, or it is no module.
    """
    module_name, _, name = source.removeprefix(NAMED_CODE).partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ArgumentError(
            f"{source!r} names no code; wanted torch:package.module:name",
            hint="for instance torch:my_teachers:build for the function build of my_teachers.py here",
        )
    with _current_folder_first():
        try:
            named = getattr(importlib.import_module(module_name), name)
            network = named() if callable(named) and not isinstance(named, nn.Module) else named
        except KitError:
            raise
        except Exception as error:  # code of the user may raise anything
            raise ArgumentError(
                f"{source} cannot be opened: {type(error).__name__}: {_first_line(error)}",
                hint="modules are looked for in the current folder and among the installed packages",
            ) from error
    if not isinstance(network, nn.Module):
        raise ArgumentError(
            f"{source} is a {type(network).__name__}; wanted a torch.nn.Module, or what returns one"
        )
    network = network.to("cpu", torch.float32)
    normalisation = _stated_normalisation(network, channels, of=source)
    multiple = getattr(network, "multiple", USUAL_MULTIPLE)
    if type(multiple) is not int or multiple < 1:
        raise ArgumentError(f"the attribute multiple of {source} is {multiple!r}; wanted a number of pixels")
    digest = digest_network(source, {}, network.state_dict(), normalisation)
    return OpenedNetwork(source, network, network, normalisation, multiple, digest)


def digest_network(
    kind: str, facts: Mapping[str, object], state: Mapping[str, object], normalisation: Normalisation
) -> str:
    """Return the SHA-256 of what is known of a teacher.

    Args:
        kind: what network it is.
        facts: what its tensors do not say.
        state: its tensors by name; other things in it do not count.
        normalisation: of its images.
    """
    told = [kind, facts, normalisation.mean, normalisation.std]
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for name, value in state.items():
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _current_folder_first() -> Iterator[None]:
    """Let modules be found in the current folder, before all others, as `python -m` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _hub_place(source: str) -> str:
    """Return a folder that exists, or a name that the hub may know."""
    name = source.removeprefix(HUGGING_FACE)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return str(folder)
    if not name or name[0] in "./~" or name.count("/") > 1:
        raise WeightsError(
            f"there is no folder {name!r}",
            hint="wanted hf:ORG/NAME of the Hugging Face hub, or hf:FOLDER with config.json and weights",
        )
    return name


@contextmanager
def _their_silence() -> Iterator[None]:
    """Let transformers draw no bar and write no report; what is wrong is raised."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _is_pooler(name: str) -> bool:
    """Say whether a tensor belongs to a pooler: it is not used, and drawn anew where a file lacks it."""
    return "pooler" in name.split(".")


def _patch_size(config: object) -> int:
    """Return the side of a patch, in pixels; the usual multiple where a model of transformers has none."""
    size = getattr(config, "patch_size", None) or USUAL_MULTIPLE
    return size if isinstance(size, int) else math.lcm(*size)


def _read_preprocessor(place: str, channels: int, *, offline: bool, of: str) -> Normalisation:
    """Return what a model of transformers wants pixels to be; the usual where nothing beside it says."""
    from transformers import AutoImageProcessor

    usual = usual_normalisation(channels)
    try:
        told = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            place, local_files_only=offline, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError) as error:
        beside = any((Path(place) / name).is_file() for name in _PREPROCESSORS)
        if isinstance(error, OSError) and not beside:
            return usual
        raise WeightsError(f"the preprocessor of {of} cannot be read: {_first_line(error)}") from error
    if not getattr(told, "do_normalize", True):
        mean, std = (0.0,) * channels, (1.0,) * channels
    else:
        mean = getattr(told, "image_mean", None) or usual.mean
        std = getattr(told, "image_std", None) or usual.std
    white = 255.0 * (getattr(told, "rescale_factor", 1 / 255) if getattr(told, "do_rescale", True) else 1.0)
    return _normalisation(mean, std, channels, white=white, of=f"the preprocessor of {of}")


def _stated_normalisation(network: nn.Module, channels: int, *, of: str) -> Normalisation:
    """Return what the attributes mean and std of a module say; the usual where it has neither."""
    mean, std = getattr(network, "mean", None), getattr(network, "std", None)
    if mean is None and std is None:
        return usual_normalisation(channels)
    return _normalisation(mean, std, channels, of=of)


def _normalisation(mean: object, std: object, channels: int, *, white: float = 1.0, of: str) -> Normalisation:
    """Return a mean and deviation of each channel, told for pixels from 0 to `white`."""
    try:
        if not isinstance(mean, (list, tuple)) or not isinstance(std, (list, tuple)):
            raise TypeError  # a tensor may be what the module itself normalises by
        read = Normalisation(tuple(float(v) / white for v in mean), tuple(float(v) / white for v in std))
    except (TypeError, ValueError):
        read = None
    if read is None or read.channels != channels:
        raise ArgumentError(
            f"{of} has a mean of {mean} and a std of {std} for {channels} channels",
            hint="wanted lists of one number per channel, for pixels from 0 to 1, each std above 0",
        )
    return read


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
