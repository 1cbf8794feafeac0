"""Encoder: images -> descriptors and features, on one device, in the precision that is safe there."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from dinov2kit.errors import ArgumentError, DeviceError, DeviceMemoryError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.images import Source, load_picture
from dinov2kit.normalising import suitable_view
from dinov2kit.patches import main_directions, pad_to_grid, project_out, turn, turn_back
from dinov2kit.shapes import Descriptors, ImageBatch
from dinov2kit.vit import Tokens, VisionTransformer
from dinov2kit.weights import LoadedModel, load_model

logger = logging.getLogger(__name__)

SAFE_COSINE = 0.999  # bf16 must agree with fp32 this well, or fp32 is used


class Encoder:
    """A DINOv2 backbone that takes images as they are.

    Args:
        model: a catalogue name ("dinov2_vits14", "vitb14-reg"), a weight file, the folder of a training run,
            "untrained:ARCHITECTURE", "auto", or a model that `load_model` returned.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        precision: "fp32", "bf16", or "auto": bf16 where the device computes it fast and the first batch
            agrees with fp32 to a cosine of 0.999.

    Raises:
        WeightsError: the weights are unknown, missing or damaged.
        DeviceError: the device is absent.
        ArgumentError: the precision is unknown, or the model takes neither colour nor grey images.
    """

    def __init__(
        self, model: str | Path | LoadedModel = "auto", *, device: str = "auto", precision: str = "auto"
    ) -> None:
        if precision not in ("auto", "fp32", "bf16"):
            raise ArgumentError(f"unknown precision {precision!r}; wanted auto, fp32 or bf16")
        loaded = model if isinstance(model, LoadedModel) else load_model(str(model))
        self.device = _choose_device(device)
        self.vit: VisionTransformer = loaded.vit.to(self.device).eval()
        self.patch_size = loaded.vit.config.patch_size
        self.view = suitable_view(loaded.image_size, self.patch_size)
        self.normalisation = loaded.normalisation
        self.normalisation.check_photos()
        self.identity = ModelIdentity(
            name=loaded.name,
            weights_sha256=loaded.weights_sha256,
            dim=loaded.vit.config.embed_dim,
            pooling="cls",
            preprocess={**self.view.describe(), **self.normalisation.describe()},
        )
        self.batch_size = 64 if self.device.type == "cuda" else 8
        self._directions: dict[tuple[int, int, FeatureSpec], Tensor] = {}
        self._undecided = precision == "auto" and computes_bf16(self.device)
        if precision == "bf16":
            self.vit = self.vit.to(torch.bfloat16)

    @property
    def name(self) -> str:
        """The catalogue name or path of the model."""
        return self.identity.name

    @property
    def dim(self) -> int:
        """Length of a descriptor."""
        return self.identity.dim

    @property
    def precision(self) -> str:
        """The arithmetic in use: "fp32" or "bf16"."""
        return "bf16" if next(self.vit.parameters()).dtype is torch.bfloat16 else "fp32"

    def embed(self, pixels: ImageBatch) -> Descriptors:
        """Return the global descriptor of every prepared image: its class token, L2-normalised.

        Args:
            pixels: images as `view` prepares them, RGB.

        Raises:
            DeviceMemoryError: the batch does not fit the device.
        """
        tokens = self._tokens(pixels)
        return torch.nn.functional.normalize(tokens.class_token.float(), dim=-1).cpu().numpy()

    @torch.inference_mode()
    def embed_layers(self, pixels: ImageBatch, layers: int = 4) -> Float32[np.ndarray, "n wide"]:
        """Return what linear heads take of every prepared image.

        Args:
            pixels: images as `view` prepares them, RGB.
            layers: of how many of the last blocks the class token is wanted.

        Returns: the class tokens of the last blocks, in their order, and the mean patch token of the last
            block, each after the final norm: (layers + 1) * dim numbers.

        Raises:
            ArgumentError: the model has not so many blocks.
            DeviceMemoryError: the batch does not fit the device.

        Source: the linear classifiers of the released code.
        """
        with _memory_errors(self.device):
            images = self._rounded(self._normalised(pixels))
            found = self.vit.get_intermediate_layers(images, layers, return_class_token=True)
        patches, _ = found[-1]
        rows = [class_token.float() for _, class_token in found] + [patches.float().mean(dim=1)]
        return torch.cat(rows, dim=1).cpu().numpy()

    def encode(self, source: Source, spec: FeatureSpec | None = None) -> Features:
        """Return the tokens of one whole image.

        Args:
            source: path, encoded bytes, PIL image, or RGB array.
            spec: which local descriptors are wanted; None: those after the last block and the final norm, the
                aspect ratio kept, the longer side at 518 pixels.

        Raises:
            ImageError: the image cannot be read.
            ArgumentError: the model has no such layer, stride or number of directions.
            DeviceMemoryError: the image does not fit the device at this size.
        """
        spec = spec or FeatureSpec()
        view = spec.view(self.patch_size)
        picture = load_picture(source, view)
        whole = view.grid(picture.width, picture.height)
        grid = whole.overlapped(spec.stride)
        images = pad_to_grid(self._normalised(picture.pixels[None]), whole)
        tokens, patches = self._read(images, spec)
        patches = turn_back(patches, grid, spec)
        if spec.debias:
            patches = project_out(patches, self._position_directions(whole, spec))
        before_norm = turn_back(tokens.prenorm[0, -grid.n_patches :].float(), grid, spec)
        return Features(
            class_token=tokens.class_token[0].float(),
            patch_tokens=patches,
            register_tokens=tokens.register_tokens[0].float(),
            grid=grid,
            magnitudes=torch.linalg.vector_norm(before_norm, dim=1),
        )

    def _position_directions(self, whole: PatchGrid, spec: FeatureSpec) -> Tensor:
        """Return what a black image of this shape varies in; computed once for each shape."""
        key = (whole.rows, whole.cols, spec)
        if key not in self._directions:
            side = whole.patch_size
            black = np.zeros((1, whole.rows * side, whole.cols * side, 3), np.uint8)
            _, patches = self._read(self._normalised(black), spec)
            self._directions = {key: main_directions(patches, spec.debias)}  # only the last: it may be large
        return self._directions[key]

    @torch.inference_mode()
    def _read(self, images: Tensor, spec: FeatureSpec) -> tuple[Tokens, Tensor]:
        """Return all tokens of an image, and its patch rows as the spec wants them, still turned, in fp32."""
        with _memory_errors(self.device):
            tokens, patches = self.vit.read_patches(
                self._rounded(turn(images, spec)),
                layer=spec.layer,
                facet=spec.facet,
                norm=spec.norm,
                stride=spec.stride,
            )
        return tokens, patches[0].float()

    @torch.inference_mode()
    def _tokens(self, pixels: ImageBatch) -> Tokens:
        with _memory_errors(self.device):
            tokens: Tokens = self.vit(self._rounded(self._normalised(pixels)))
            return tokens

    def _normalised(self, pixels: ImageBatch) -> Tensor:
        return self.normalisation.apply(torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device))

    def _rounded(self, images: Tensor) -> Tensor:
        """Return the images in the arithmetic of the network, which the first ones decide."""
        if self._undecided:
            self._decide_precision(images[:4])
        return images.to(next(self.vit.parameters()).dtype)

    def _decide_precision(self, images: Tensor) -> None:
        """Take bf16 when it agrees with fp32 on the first images."""
        half = copy.deepcopy(self.vit).to(torch.bfloat16)
        exact, rounded = self.vit(images), half(images.to(torch.bfloat16))
        cosine = torch.nn.functional.cosine_similarity
        worst_class = cosine(exact.class_token, rounded.class_token.float(), dim=-1).min().item()
        mean_patch = cosine(exact.patch_tokens, rounded.patch_tokens.float(), dim=-1).mean().item()
        if min(worst_class, mean_patch) >= SAFE_COSINE:
            self.vit = half
        logger.info(
            "bf16 against fp32: class %.5f, patches %.5f; %s", worst_class, mean_patch, self.precision
        )
        self._undecided = False


def suitable_size(device: str) -> int:
    """Return the longer side for local descriptors that a device computes in a second or less.

    Raises:
        DeviceError: the device is absent.
    """
    return 840 if _choose_device(device).type == "cuda" else 518


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without CUDA
        raise DeviceError(
            f"device {device!r} cannot be used: {str(error).splitlines()[0]}",
            hint="use --device cpu, or run: dinokit doctor",
        ) from error
    return chosen


def computes_bf16(device: torch.device) -> bool:
    """Say whether the device multiplies bf16 faster than fp32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public in torch 2.13
    return any(bool(getattr(torch.cpu, name, lambda: False)()) for name in probes)


@contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU allocator raises a plain one
        if not isinstance(error, torch.OutOfMemoryError) and "not enough memory" not in str(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise DeviceMemoryError(
            f"out of memory on {device}: {str(error).splitlines()[0]}",
            hint="use a smaller --batch or --size, or --device cpu",
        ) from error
