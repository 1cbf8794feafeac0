"""Linear heads: what they take of an encoder, and the files that hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dinov2kit.encoder import Encoder
from dinov2kit.errors import WeightsError
from dinov2kit.identity import ModelIdentity
from dinov2kit.shapes import ImageBatch
from dinov2kit.tensor_files import load_tensors, save_safetensors
from dinov2kit.views import CenterCrop

SCHEMA = "1"
RELEASED_LAYERS = (1, 4)


class TokenEncoder:
    """An encoder whose rows are what linear heads take, see `Encoder.embed_layers`; they have any length.

    Args:
        encoder: the backbone.
        layers: of how many of the last blocks the class token is wanted.
    """

    def __init__(self, encoder: Encoder, layers: int) -> None:
        self._encoder, self.layers = encoder, layers

    @property
    def identity(self) -> ModelIdentity:
        """What makes rows comparable."""
        own = self._encoder.identity
        return replace(own, dim=(self.layers + 1) * own.dim, pooling=f"cls of {self.layers}, mean patch")

    @property
    def view(self) -> CenterCrop:
        """How an image becomes pixels."""
        return self._encoder.view

    @property
    def batch_size(self) -> int:
        """How many images at once suit the device."""
        return self._encoder.batch_size

    def embed(self, pixels: ImageBatch) -> Float32[np.ndarray, "n wide"]:
        """Return a row for each image."""
        return self._encoder.embed_layers(pixels, self.layers)


@dataclass(frozen=True)
class LinearHead:
    """A linear layer from tokens to classes.

    Attributes:
        weight: one row for each class.
        bias: one number for each class.
        layers: of how many of the last blocks it takes the class token.
        average: whether it takes the mean patch token, too.
        classes: their names; empty where the file names none.
        weights_sha256: of the backbone that it was trained on; "" where the file does not say.
    """

    weight: Float32[Tensor, "classes width"]
    bias: Float32[Tensor, " classes"]
    layers: int
    average: bool
    classes: tuple[str, ...] = ()
    weights_sha256: str = ""

    def columns(self, rows: Float32[np.ndarray, "n wide"], dim: int) -> Float32[Tensor, "n width"]:
        """Return what the head takes of rows of `Encoder.embed_layers`, also of those with more layers."""
        return torch.from_numpy(np.ascontiguousarray(wanted_columns(rows, dim, self.layers, self.average)))

    def logits(self, rows: Float32[np.ndarray, "n wide"], dim: int) -> Float32[Tensor, "n classes"]:
        """Return the logits of the rows of `Encoder.embed_layers`."""
        return self.columns(rows, dim) @ self.weight.T + self.bias


def wanted_columns(
    rows: Float32[np.ndarray, "n wide"], dim: int, layers: int, average: bool
) -> Float32[np.ndarray, "n width"]:
    """Return the class tokens of the last `layers` blocks and perhaps the mean patch token."""
    there = rows.shape[1] // dim - 1
    first = (there - layers) * dim
    return rows[:, first:] if average else rows[:, first : there * dim]


def write_head(path: Path, head: LinearHead) -> None:
    """Write a head as safetensors; the file appears whole.

    Raises:
        ArgumentError: it cannot be written.
    """
    facts = {
        "dinov2kit_linear_head": SCHEMA,
        "layers": str(head.layers),
        "avgpool": json.dumps(head.average),
        "classes": json.dumps(head.classes),
        "weights_sha256": head.weights_sha256,
    }
    save_safetensors({"weight": head.weight, "bias": head.bias}, path, facts)


def read_head(path: Path, *, dim: int) -> LinearHead:
    """Read a head that `write_head` wrote, or one of the release: a .pth with `weight` and `bias`.

    Args:
        path: the file.
        dim: width of the tokens that it will be given; a released head says by its width what it takes.

    Raises:
        WeightsError: the file is no head, is damaged, or belongs to a backbone of another width.

    Source: the released heads take the class tokens of one or four blocks, and the mean patch token.
    """
    tensors, facts = load_tensors(path)
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.ndim != 2:
        raise WeightsError(f"{path} holds no linear head", hint="wanted tensors named weight and bias")
    if bias.shape != weight.shape[:1]:
        raise WeightsError(f"{path}: {len(weight)} rows of weights and {bias.shape} of biases")
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise WeightsError(f"{path} holds numbers that are not finite", hint="train the head again")
    layers, average, classes = _said(path, facts)
    if not layers:  # the width alone; a head of a wider backbone may be some other multiple of dim
        layers = next((each for each in RELEASED_LAYERS if weight.shape[1] == (each + 1) * dim), 0)
    if layers < 1 or weight.shape[1] != (layers + average) * dim:
        raise WeightsError(
            f"{path} takes {weight.shape[1]} numbers, which are no tokens of {dim}",
            hint="give the model that the head belongs to by --model",
        )
    if classes and len(classes) != len(weight):
        raise WeightsError(f"{path} names {len(classes)} classes and has {len(weight)}")
    sha = facts.get("weights_sha256", "")
    return LinearHead(weight.float(), bias.float(), layers, average, classes, sha)


def _said(path: Path, facts: Mapping[str, str]) -> tuple[int, bool, tuple[str, ...]]:
    """Return layers, average and classes as `write_head` wrote them; 0 layers where it wrote nothing.

    Raises:
        WeightsError: they cannot be read.
    """
    schema = facts.get("dinov2kit_linear_head")
    if schema is None:
        return 0, True, ()
    if schema != SCHEMA:
        raise WeightsError(f"{path} is a linear head of version {schema}; wanted {SCHEMA}")
    try:
        layers, average = int(facts["layers"]), json.loads(facts["avgpool"])
        classes = json.loads(facts["classes"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{path} does not say which tokens it takes: {error!r}") from error
    if layers < 1 or not isinstance(average, bool) or not isinstance(classes, list):
        raise WeightsError(f"{path} says {layers} layers, avgpool {average}, classes {classes}")
    return layers, average, tuple(map(str, classes))


def top_classes(scores: Float32[Tensor, "n classes"], k: int) -> Sequence[tuple[list[int], list[float]]]:
    """Return the k best classes of each row with their share of the softmax, the best first."""
    shares, places = scores.softmax(dim=1).topk(min(k, scores.shape[1]), dim=1)
    return list(zip(places.tolist(), shares.tolist(), strict=True))
