"""Teachers: frozen networks, and what they see in crops, which is what a student is to see there.

A teacher takes the same pixels as the student, uint8, and normalises them itself. What it sees is fp32.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinov2kit.errors import ArgumentError, KitError, WeightsError, check_choice
from dinov2kit.weights import load_model

from .colours import finish_crops, no_colours
from .foreign_teachers import (
    HUGGING_FACE,
    NAMED_CODE,
    OpenedNetwork,
    digest_network,
    open_hugging_face,
    open_named_code,
)
from .teacher_outputs import Output, read_output

PRECISIONS = ("fp32", "bf16")

_PROBE_SIDE = 64  # pixels, at least
_ALIKE = 0.05  # how far what is seen of an image alone may be from what is seen of it in a batch; bf16: 0.01


class Seen(NamedTuple):
    """What a teacher sees in images.

    Attributes:
        class_token: of the whole image.
        patch_tokens: of its places, row-major; None for a teacher that has none.
    """

    class_token: Float[Tensor, "b dim"]
    patch_tokens: Float[Tensor, "b rows cols dim2"] | None


@runtime_checkable
class Teacher(Protocol):
    """What a student learns from."""

    @property
    def name(self) -> str:
        """Name of its model, or the source that it was opened from."""

    @property
    def digest(self) -> str:
        """SHA-256 of what it computes."""

    @property
    def class_dim(self) -> int:
        """Length of its class token."""

    @property
    def patch_dim(self) -> int | None:
        """Length of its patch tokens; None where it has none."""

    @property
    def multiple(self) -> int:
        """Of how many pixels the sides of its images are multiples."""

    def look(self, pixels: UInt8[Tensor, "b h w c"]) -> Seen:
        """Return what it sees in images."""


def open_teacher(source: str, *, channels: int = 3, device: torch.device, precision: str = "fp32") -> Teacher:
    """Open a frozen network as a teacher.

    Sources:

    - What `load_model` takes: a name such as vitl14, a weight file, the folder of a run,
      "untrained:vits14:3". Class token and patch tokens are those after the final norm.
    - "hf:ORG/NAME" or "hf:FOLDER": what `AutoModel` of transformers opens; of two towers, the visual one. Its
      `last_hidden_state` is read like the output of code, as told below.
    - "torch:package.module:name": code of the user, which IS RUN: the module is imported, also from the
      current folder, and `name()` is called unless `name` is a torch.nn.Module already. It takes normalised
      images (b, channels, h, w) in fp32. Attributes of it may say `mean` and `std` (lists for pixels from 0
      to 1; else those of ImageNet) and `multiple` (of how many pixels sides are multiples; else 32).

    The output of code is one of:

    - (b, dim): the class token; there are no patch tokens.
    - (b, dim, rows, cols): a map; the class token is its mean.
    - (b, n, dim): tokens. The patches are the last of them, row-major, as many as grow with the image; the
      class token is the first of the others, which may be registers; where there is no other, the mean.
    - a pair: the class token (b, dim), and a map or the tokens of the patches alone.
    - a dict: such a pair named class_token and patch_tokens, or x_norm_clstoken and x_norm_patchtokens as in
      the released code; or `last_hidden_state`, a map or tokens. Other entries do not count.

    The network is asked for random images at once, so that one that cannot teach is found here. `multiple` of
    the teacher is such that every patch is whole.

    Args:
        source: as above.
        channels: of the images.
        device: where it computes; its weights are moved there once.
        precision: "fp32", or "bf16" for an autocast to it.

    Raises:
        ArgumentError: the precision is unknown, or the network takes other images, returns something else, or
            sees other things in an image alone than in a batch.
        WeightsError: the network cannot be had, or returns what is not finite.
        DependencyError: a package is missing.
    """
    check_choice("precision", precision, PRECISIONS)
    if source.startswith(HUGGING_FACE):
        opened = open_hugging_face(source, channels=channels)
    elif source.startswith(NAMED_CODE):
        opened = open_named_code(source, channels=channels)
    else:
        opened = _open_own(source, channels=channels)
    return NetworkTeacher(opened, channels=channels, device=device, precision=precision)


class NetworkTeacher:
    """A frozen network as a `Teacher`.

    Args:
        opened: the network; from now on it is frozen and on the device.
        channels: of the images.
        device: where it computes.
        precision: "fp32" or "bf16".

    Raises:
        ArgumentError: as for `open_teacher`.
        WeightsError: as for `open_teacher`.
    """

    def __init__(self, opened: OpenedNetwork, *, channels: int, device: torch.device, precision: str) -> None:
        self.name, self.digest, self.multiple = opened.name, opened.digest, opened.multiple
        self.channels, self.device, self.precision = channels, device, precision
        self._call, self._normalisation = opened.call, opened.normalisation
        self._leading = 0  # tokens before those of the patches
        opened.network.eval().requires_grad_(False).to(device)
        seen = self._probe()
        self.class_dim = seen.class_token.shape[1]
        self.patch_dim = None if seen.patch_tokens is None else seen.patch_tokens.shape[3]

    def look(self, pixels: UInt8[Tensor, "b h w c"]) -> Seen:
        """Return what the network sees in images, without a gradient, on its device, in fp32.

        Args:
            pixels: of crops, on any device; sides are multiples of `multiple`.

        Raises:
            ArgumentError: the images have other channels or sides, or the network returns something else
                than at its opening.
        """
        height, width, channels = pixels.shape[1:]
        if channels != self.channels:
            raise ArgumentError(f"{self.name} sees {self.channels} channels; the images have {channels}")
        if height % self.multiple or width % self.multiple or not height or not width:
            raise ArgumentError(
                f"images of {height} x {width} pixels for {self.name}; wanted sides that are multiples of "
                f"{self.multiple}"
            )
        return self._arrange(self._forward(pixels), height, width)

    @torch.no_grad()
    def _forward(self, pixels: UInt8[Tensor, "b h w c"]) -> Output:
        """Return what the network returns, the same under any autocast of the caller."""
        mean, std = self._normalisation.mean, self._normalisation.std
        images = finish_crops(
            pixels.to(self.device), no_colours(len(pixels), self.channels), mean=mean, std=std
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self._call(images)
        return read_output(output, len(pixels), of=self.name)

    @torch.no_grad()
    def _arrange(self, output: Output, height: int, width: int) -> Seen:
        """Return class token and grid of an output for images of this size."""
        class_token, patches = output
        if patches is None:
            assert class_token is not None
            return Seen(class_token.float(), None)
        if patches.ndim == 4:
            grid = patches.float().permute(0, 2, 3, 1)
            mean = patches.float().mean((2, 3))
        else:
            tokens = patches.float()
            places = tokens[:, self._leading :]
            rows, cols = self._fitted(places.shape[1], height, width)
            grid = places.reshape(len(places), rows, cols, -1)
            mean = tokens[:, 0] if self._leading else tokens.mean(1)
        return Seen(mean if class_token is None else class_token.float(), grid)

    def _fitted(self, count: int, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns that so many patches of an image of this size have."""
        rows = round(math.sqrt(count * height / width))
        if not rows or count % rows:
            raise self._refusal(f"returns {count} patch tokens for an image of {height} x {width} pixels")
        return rows, count // rows

    def _probe(self) -> Seen:
        """Return what is seen in two small random images; find how tokens are read, and what cannot teach."""
        side = self.multiple * math.ceil(_PROBE_SIDE / self.multiple)
        generator = torch.Generator().manual_seed(0)
        wide = torch.randint(
            0, 256, (2, side, 2 * side, self.channels), dtype=torch.uint8, generator=generator
        )
        square = wide[:, :, :side]
        output = self._try(square)
        if output.class_token is None and output.patches is not None and output.patches.ndim == 3:
            self._leading = self._count_leading(output.patches, self._try(wide).patches, side)
        seen = self._arrange(output, side, side)
        alone = self._arrange(self._try(square[:1]), side, side)
        for found, other in zip(seen, alone, strict=True):
            if found is None or other is None:
                continue
            if not found.isfinite().all():
                raise WeightsError(f"{self.name} returns numbers that are not finite")
            if (found[:1] - other).norm() > _ALIKE * found[:1].norm():
                raise ArgumentError(
                    f"{self.name} sees other things in an image alone than in a batch, or the second time",
                    hint="a teacher draws nothing at random, as masked autoencoders do, and normalises by "
                    "no batch",
                )
        if seen.patch_tokens is not None:
            rows, cols = seen.patch_tokens.shape[1:3]
            if rows != cols:
                raise self._refusal(f"returns {rows} x {cols} patches for an image of {side} x {side} pixels")
            if rows > 1 and side % rows == 0:
                self.multiple = math.lcm(self.multiple, side // rows)
        return seen

    def _try(self, pixels: UInt8[Tensor, "b h w c"]) -> Output:
        """Return what the network returns at its opening, where it may fail in any way."""
        try:
            return self._forward(pixels)
        except KitError:
            raise
        except Exception as error:  # code of others may raise anything
            size = " x ".join(map(str, (self.channels, *pixels.shape[1:3])))
            raise ArgumentError(
                f"{self.name} fails on images of {size}: {type(error).__name__}: "
                f"{str(error).partition(chr(10))[0]}",
                hint=f"wanted a network for {self.channels} channels and any sides that are multiples of "
                f"{self.multiple}; a module says its own in its attribute multiple",
            ) from error

    def _count_leading(self, tokens: Tensor, more: Tensor | None, side: int) -> int:
        """Return how many tokens are of no patch: those that are as many in an image twice as wide."""
        count, wider = tokens.shape[1], 0 if more is None else more.shape[1]
        leading = 2 * count - wider
        if not 0 <= leading < count:
            raise self._refusal(
                f"returns {count} tokens for an image of {side} x {side} pixels and {wider} for one twice "
                "as wide"
            )
        return leading

    def _refusal(self, fault: str) -> ArgumentError:
        return ArgumentError(
            f"{self.name} {fault}",
            hint="wanted one token for each patch of a grid, row-major, or a map (b, dim, rows, cols)",
        )


def _open_own(source: str, *, channels: int) -> OpenedNetwork:
    loaded = load_model(source)
    vit = loaded.vit
    if vit.config.in_channels != channels:
        raise ArgumentError(f"{source} takes images of {vit.config.in_channels} channels, not of {channels}")

    def call(images: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        tokens = vit(images)
        return tokens.class_token, tokens.patch_tokens

    digest = digest_network("dinov2", {"weights": loaded.weights_sha256}, {}, loaded.normalisation)
    return OpenedNetwork(loaded.name, vit, call, loaded.normalisation, vit.config.patch_size, digest)
