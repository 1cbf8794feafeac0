"""What a model takes for an image: mean and deviation of each channel, colour or grey, and the size.

A weight file of ours says so where it differs from what the released models saw.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.views import IMAGENET_MEAN, IMAGENET_STD, CenterCrop

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue; ITU-R BT.601, as cv2 and Pillow have it

_SIZE, _MARGIN = 224, 256 / 224  # of the standard protocol: crop, and shorter side over crop


@dataclass(frozen=True)
class Normalisation:
    """What is subtracted from pixels between 0 and 1, and what they are then divided by.

    Attributes:
        mean: of every channel.
        std: of every channel.

    Raises:
        ArgumentError: the numbers do not belong together, or cannot be divided by.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        finite = all(map(math.isfinite, (*self.mean, *self.std)))
        if not finite or len(self.mean) != len(self.std) or not all(std > 0 for std in self.std):
            raise ArgumentError(
                f"a mean of {self.mean} and a deviation of {self.std}; "
                "wanted one number of each per channel, deviations above 0"
            )

    @property
    def channels(self) -> int:
        """How many channels an image has."""
        return len(self.mean)

    def apply(
        self, pixels: UInt8[Tensor, "batch height width 3"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Turn RGB pixels into what the network takes; one channel takes their luminance.

        Raises:
            ArgumentError: the network takes neither colour nor grey.
        """
        self.check_photos()
        values = pixels.float()
        if self.channels == 1:
            values = values @ torch.tensor(LUMINANCE, device=pixels.device)[:, None]
        mean = torch.tensor(self.mean, device=pixels.device) * 255
        std = torch.tensor(self.std, device=pixels.device) * 255
        return ((values - mean) / std).permute(0, 3, 1, 2)

    def check_photos(self) -> None:
        """Refuse a network that cannot see photos.

        Raises:
            ArgumentError: it takes neither colour nor grey.
        """
        if self.channels not in (1, 3):
            raise ArgumentError(
                f"the model takes images of {self.channels} channels; photos have 3, or 1 if they are grey",
                hint="call the network itself with arrays of yours: load_model(...).vit(images)",
            )

    def texts(self) -> dict[str, str]:
        """Return what a weight file says of this; nothing for the one of the released models."""
        if self == Normalisation():
            return {}
        return {"mean": json.dumps(list(self.mean)), "std": json.dumps(list(self.std))}

    def describe(self) -> dict[str, object]:
        """Return what a view does not say of the pixels, ready for JSON."""
        return {} if self == Normalisation() else {"mean": list(self.mean), "std": list(self.std)}


def usual_normalisation(channels: int) -> Normalisation:
    """Return the normalisation where none is named: that of ImageNet for colour, else 0.5 and 0.25."""
    return Normalisation() if channels == 3 else Normalisation((0.5,) * channels, (0.25,) * channels)


def read_normalisation(texts: Mapping[str, str], channels: int, *, of: str) -> Normalisation:
    """Read what `Normalisation.texts` wrote.

    Args:
        texts: the metadata of a weight file.
        channels: of the model.
        of: name of the model, for errors.

    Raises:
        WeightsError: the texts are damaged, or belong to another number of channels.
    """
    if "mean" not in texts and "std" not in texts:
        return usual_normalisation(channels)
    try:
        mean, std = (tuple(float(value) for value in json.loads(texts[key])) for key in ("mean", "std"))
        read = Normalisation(mean, std)
    except (KeyError, ValueError, TypeError) as error:
        raise WeightsError(f"{of} has a damaged mean and std in its metadata: {error}") from error
    if read.channels != channels:
        raise WeightsError(f"{of} has a mean and std of {read.channels} numbers for {channels} channels")
    return read


def read_image_size(texts: Mapping[str, str], *, of: str) -> int:
    """Return the side of the images that a model was trained with, in pixels; 224 where none is named.

    Args:
        texts: the metadata of a weight file.
        of: name of the model, for errors.

    Raises:
        WeightsError: the text is no such number.
    """
    size = texts.get("image_size", str(_SIZE))
    if not size.isdecimal() or int(size) < 1:
        raise WeightsError(f"{of} has a damaged image_size in its metadata: {size!r}")
    return int(size)


def suitable_view(image_size: int, patch_size: int) -> CenterCrop:
    """Return the view for global descriptors of a model that was trained with images of this size.

    Args:
        image_size: side of those images, in pixels; the crop has it, but for what is no whole patch.
        patch_size: side of a patch, in pixels.

    Returns: the standard protocol for 224 pixels; the same share of the image for others.
    """
    crop = max(image_size // patch_size, 1) * patch_size
    return CenterCrop(resize=round(crop * _MARGIN), crop=crop)
