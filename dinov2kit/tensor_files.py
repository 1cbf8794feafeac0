"""Files of named tensors: opened without running what they may contain, written whole or not at all."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.files import written_whole
from dinov2kit.weight_files import why_no_weights

WANTED = (
    "wanted a DINOv2 backbone: released, Hugging Face, timm, a training checkpoint, or an export of dinokit"
)

_DAMAGE = (  # what torch and safetensors raise on files that are not as they should be
    pickle.UnpicklingError,
    SafetensorError,
    RuntimeError,
    EOFError,
    ValueError,
    KeyError,
)
IN_FOLDER = (  # of Hugging Face, and of a training run
    "model.safetensors",
    "pytorch_model.bin",
    "export/teacher.safetensors",
)


def weight_file(path: Path) -> Path:
    """Return the file itself; in a folder, the one that Hugging Face puts there, or the export of a run.

    Raises:
        WeightsError: the folder has no such file.
    """
    if not path.is_dir():
        return path
    for name in IN_FOLDER:
        if (path / name).is_file():
            return path / name
    if (path / "run.json").is_file():
        raise WeightsError(
            f"the training run {path} has no exported model yet",
            hint="it gets one at its first evaluation and at its end; the same train command goes on with it",
        )
    if (path / ".metadata").is_file():
        raise WeightsError(
            f"{path} is a sharded training checkpoint, not a weight file",
            hint="export it first: dinokit runs export",
        )
    raise WeightsError(f"the folder {path} has no weights; wanted {' or '.join(IN_FOLDER)} in it")


def load_tensors(path: Path) -> tuple[Mapping[str, object], dict[str, str]]:
    """Return what a file holds and its safetensors metadata.

    Raises:
        WeightsError: the file is missing, damaged, not of tensors, or could run code.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
        pointer = head.startswith(b"version https://git-lfs")
        trouble = "it is a git-lfs pointer to the real file" if pointer else why_no_weights(path)
        if trouble and not head.startswith(b"\x80"):  # a pickle of torch before 1.6
            hint = "fetch the real file: git lfs pull" if pointer else WANTED
            raise WeightsError(f"{path} is no usable weight file: {trouble}", hint=hint)
        if head[8:9] == b"{":
            return _load_safetensors(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except _DAMAGE as error:
        code = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if code:
            raise WeightsError(
                f"{path} holds Python objects ({code[1]}) that could run code; it was not opened",
                hint="wanted tensors only: save model.state_dict() again where you trust the file",
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} is damaged or no weight file: {reason}", hint="fetch the file again"
        ) from error
    if not isinstance(saved, Mapping):
        raise WeightsError(f"{path} holds one {type(saved).__name__}, not named tensors", hint=WANTED)
    return saved, {}


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        ArgumentError: the place cannot be written.
    """
    alone = {name: _alone(tensor) for name, tensor in tensors.items()}
    with written_whole(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user wants new files; save_file lets no one else read
        try:
            save_file(alone, temporary, metadata=dict(metadata))
        except SafetensorError as error:  # it hides the OSError: a missing folder, a full disk
            raise ArgumentError(f"cannot write {path}: {error}") from error
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


def save_pickle(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a flat PyTorch file.

    Raises:
        ArgumentError: the place cannot be written.
    """
    alone = {name: _alone(tensor) for name, tensor in tensors.items()}
    with written_whole(path) as temporary, temporary.open("wb") as file:
        torch.save(alone, file)
        file.flush()
        os.fsync(file.fileno())


def _alone(tensor: Tensor) -> Tensor:
    """Return the tensor in memory that it shares with nothing else."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)
