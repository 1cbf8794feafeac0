"""Files of named tensors: opened without running anything that they may contain, written whole or not at all."""

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

from dinov2kit.errors import WeightsError
from dinov2kit.files import written_whole
from dinov2kit.weight_files import why_no_weights

_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")  # of Hugging Face


def weight_file(path: Path) -> Path:
    """Return the file itself; in a folder, the one that Hugging Face puts there."""
    if not path.is_dir():
        return path
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return path / name
    if (path / ".metadata").is_file():
        raise WeightsError(
            f"{path} is a sharded training checkpoint, not a weight file",
            hint="export it first: dinokit runs export",
        )
    raise WeightsError(f"the folder {path} has no weights; wanted {' or '.join(_IN_FOLDER)} in it")


def load_tensors(path: Path) -> tuple[Mapping[str, object], dict[str, str]]:
    """Return what a file holds, and its safetensors metadata, without running anything that it may contain."""
    try:
        with path.open("rb") as file:
            head = file.read(64)
        pointer = head.startswith(b"version https://git-lfs")
        trouble = "it is a git-lfs pointer to the real file" if pointer else why_no_weights(path)
        if trouble and not head.startswith(b"\x80"):  # a pickle of torch before 1.6
            hint = "fetch the real file: git lfs pull" if pointer else _WANTED
            raise WeightsError(f"{path} is no usable weight file: {trouble}", hint=hint)
        if head[8:9] == b"{":
            return _load_safetensors(path)
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path} holds Python objects{f' ({found[1]})' if found else ''} that could run code; "
            "it was not opened",
            hint="wanted tensors only: save model.state_dict() again where you trust the file",
        ) from error
    except (RuntimeError, EOFError, SafetensorError, UnicodeDecodeError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} is damaged or no weight file: {reason}", hint="fetch the file again"
        ) from error
    if not isinstance(saved, Mapping):
        raise WeightsError(f"{path} holds one {type(saved).__name__}, not named tensors", hint=_WANTED)
    return saved, {}


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


