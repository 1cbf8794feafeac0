"""A backbone as an ONNX file, for programs that have no torch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dinov2kit.errors import ArgumentError, DependencyError, WeightsError
from dinov2kit.files import written_whole
from dinov2kit.positions import interpolate_positions
from dinov2kit.vit import Tokens, VisionTransformer

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_MOST_BYTES = 2**31 - 2**20  # of a protobuf message, but for the graph
_CLOSE = 1e-4  # of the largest number, between onnxruntime and torch


class ClassAndPatchTokens(nn.Module):
    """A backbone that gives plain tensors instead of `Tokens`."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self.vit = vit

    def forward(
        self, images: Float[Tensor, "batch channels side side"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch n_patches dim"]]:
        """Return the class tokens and the patch tokens after the final norm."""
        tokens: Tokens = self.vit(images)
        return tokens.class_token, tokens.patch_tokens


def write_onnx(vit: VisionTransformer, path: Path, *, image_size: int) -> None:
    """Write a backbone for images of one size, any number at once, and run the file once.

    The file takes `images`, normalised, (batch, channels, image_size, image_size), and gives `class_token`
    and `patch_tokens`. Positions are those of this size.

    Args:
        vit: the backbone, fp32, on the CPU.
        path: the file to write.
        image_size: side of the images, in pixels; a multiple of the patch.

    Raises:
        DependencyError: a package is missing.
        ArgumentError: the file cannot be written, or it would be larger than ONNX files can be.
        WeightsError: onnxruntime computes something else from the file.
    """
    _need_packages()
    nbytes = sum(4 * parameter.numel() for parameter in vit.parameters())
    if nbytes > _MOST_BYTES:
        raise ArgumentError(
            f"a model of {nbytes / 1e9:.1f} GB is too large for an ONNX file, which holds 2 GB at most",
            hint="export to safetensors or hf",
        )
    module = ClassAndPatchTokens(_at_one_size(vit, image_size)).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, vit.config.in_channels, image_size, image_size, generator=generator)
    with written_whole(path) as temporary, _quiet():
        torch.onnx.export(
            module,
            (images,),
            temporary,
            input_names=["images"],
            output_names=["class_token", "patch_tokens"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
            external_data=False,
        )
        _check(module, temporary, torch.randn(3, *images.shape[1:], generator=generator))


def _at_one_size(vit: VisionTransformer, image_size: int) -> VisionTransformer:
    """Return the same backbone with the positions of one size stored."""
    config, grid = vit.config, image_size // vit.config.patch_size
    positions = interpolate_positions(
        vit.pos_embed,
        rows=grid,
        cols=grid,
        offset=config.interpolate_offset,
        antialias=config.interpolate_antialias,
    )
    state = {**vit.state_dict(), "pos_embed": positions.detach()}
    return VisionTransformer.from_state(replace(config, pos_grid=grid), state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the user what torch says of packages that this needs not, and of its own future."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _need_packages() -> None:
    import importlib.util

    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise DependencyError(
            f"writing ONNX files needs the packages {', '.join(missing)}",
            hint=f"pip install {' '.join(PACKAGES)}",
        )


def _check(module: nn.Module, path: Path, images: Tensor) -> None:
    """Compare with torch what onnxruntime makes of images that are more than those of the trace."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    found = session.run(["class_token", "patch_tokens"], {"images": images.numpy()})
    with torch.inference_mode():
        wanted = module(images)
    for name, ours, theirs in zip(("class_token", "patch_tokens"), wanted, found, strict=True):
        apart = float((ours - torch.from_numpy(theirs)).abs().max())
        if not apart <= _CLOSE * max(1.0, float(ours.abs().max())):
            raise WeightsError(f"onnxruntime computes another {name}: it differs by {apart:.2g}")
