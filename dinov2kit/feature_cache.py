"""Features that were computed once and are kept on disk.

A cache is named by the features file that it feeds, for instance `features.h5`. Its entries lie beside it, in
`features.h5.parts/`: one small file per image, model and `FeatureSpec`, written whole and never changed. A
kill at any moment leaves every entry complete or absent, and a new run adds to those of an old one.
`write_features` makes `features.h5` itself from them, in the layout of hloc, which knows an image by its name
alone and cannot hold two specs of it.

Patch tokens are kept as fp16, everything else as it is. fp16 rounds each component by up to 2^-11 of itself,
so the cosine between a token and its rounded self is above 1 - 2^-22; scores move by less than 0.001.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import torch

from dinov2kit.errors import ArgumentError, ImageError, MatchError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.files import written_whole
from dinov2kit.grid import PatchGrid
from dinov2kit.hloc import FEATURES, image_names, make_folder, new_file, own_file, write_image_group
from dinov2kit.identity import ModelIdentity
from dinov2kit.images import image_digest
from dinov2kit.pairs import LocalEncoder

logger = logging.getLogger(__name__)

MEMORY = 2**30  # bytes of features that are kept for the next pairs
ENTRY = "dinokit.image-features/1"  # part of every key: raise it when features change for the same input


class FeatureCache:
    """Features on disk, by key.

    Args:
        path: the features file that the cache feeds; its entries lie in `path` + ".parts".
        device: where features that are found go.

    Attributes:
        path: as given.
        hits: how many features were found.
        misses: how many were not.
    """

    def __init__(self, path: Path, *, device: torch.device | str = "cpu") -> None:
        self.path = path
        self.hits = self.misses = 0
        self._device = device

    def load(self, key: str) -> Features | None:
        """Return the features kept under a key; None: there are none, or their file is damaged."""
        entry = self._entry(key)
        found = None
        if entry.exists():
            try:
                found = _read_entry(entry, self._device)
            except (OSError, KeyError, ValueError, TypeError) as error:
                logger.warning("%s is damaged, its image is encoded anew: %s", entry, error)
        self.hits, self.misses = self.hits + (found is not None), self.misses + (found is None)
        return found

    def store(self, key: str, features: Features) -> Features:
        """Keep features, and return them as `load` will: rounded. What fp16 cannot hold is not kept.

        Raises:
            ArgumentError: the entry cannot be written.
        """
        half = features.patch_tokens.half()
        if not bool(torch.isfinite(half).all()):
            return features
        arrays = {
            "class_token": features.class_token,
            "patch_tokens": half,
            "register_tokens": features.register_tokens,
            "magnitudes": features.magnitudes,
        }
        entry = self._entry(key)
        make_folder(entry.parent)
        with written_whole(entry) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["schema"] = ENTRY
            file.attrs.update(vars(features.grid))
            for name, tensor in arrays.items():
                if tensor is not None:
                    checked = {"fletcher32": True} if tensor.numel() else {}
                    file.create_dataset(name, data=tensor.cpu().numpy(), **checked)
        return replace(features, patch_tokens=half.float())

    def _entry(self, key: str) -> Path:
        return self.path.with_name(self.path.name + ".parts") / key[:2] / f"{key}.h5"


class CachedEncoder:
    """An encoder that looks into a cache first, and keeps there what it had to compute.

    The features are the same whether they were found or not: rounded in both cases. Whether the model
    computes in bf16 or fp32 is no part of a key: both are close enough to take one for the other.

    Args:
        encoder: computes what is not in the cache.
        cache: where features are kept.
    """

    def __init__(self, encoder: LocalEncoder, cache: FeatureCache) -> None:
        self.identity = encoder.identity
        self._encoder, self._cache = encoder, cache

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        """Return the features of one whole image.

        Raises:
            ImageError: the image cannot be read.
            ArgumentError: the cache cannot be written, or as the encoder says.
        """
        spec = spec or FeatureSpec()
        key = feature_key(image_digest(source), self.identity, spec)
        found = self._cache.load(key)
        if found is None:
            found = self._cache.store(key, self._encoder.encode(source, spec))
        return found


class RecentEncoder:
    """An encoder that keeps the features it was asked for last, as far as memory goes."""

    def __init__(self, encoder: LocalEncoder) -> None:
        self.identity = encoder.identity
        self._encoder = encoder
        self._recent: OrderedDict[tuple[Path, FeatureSpec | None], Features] = OrderedDict()

    def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
        """Return the features of an image, remembered or computed now."""
        key = (source, spec)
        if key not in self._recent:
            self._recent[key] = self._encoder.encode(source, spec)
        self._recent.move_to_end(key)
        while len(self._recent) > 1 and sum(map(_size, self._recent.values())) > MEMORY:
            self._recent.popitem(last=False)
        return self._recent[key]


def feature_key(digest: str, model: ModelIdentity, spec: FeatureSpec) -> str:
    """Return what features are kept under: a digest of everything that changes them.

    Args:
        digest: of the image file.
        model: what encodes it; its name does not matter.
        spec: which local descriptors are wanted.
    """
    facts = {"entry": ENTRY, "image": digest, "model": model.fingerprint, "spec": spec.describe()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_features_file(path: Path) -> None:
    """Refuse, before any work, a file that `write_features` may not replace or cannot write.

    Raises:
        ArgumentError: another program wrote it, or there is no such folder.
    """
    if path.exists():
        with own_file(path, FEATURES):
            pass
    if not path.parent.is_dir():
        raise ArgumentError(f"cannot write {path}: there is no folder {path.parent}")


def write_features(
    encoder: LocalEncoder, images: Mapping[str, Path], out: Path, *, spec: FeatureSpec | None = None
) -> list[tuple[str, str]]:
    """Write the features of images into one file in the layout of hloc; it holds exactly these images.

    The file is complete or as it was. It is left alone when it holds the same images, of the same content,
    model and spec, already.

    Args:
        encoder: the model; a `CachedEncoder` computes nothing twice.
        images: their files by name.
        out: the file to write.
        spec: which local descriptors are wanted.

    Returns:
        The name and the reason of each image that could not be read.

    Raises:
        ArgumentError: the file is of another program, or cannot be written.
    """
    spec = spec or FeatureSpec()
    check_features_file(out)
    keys: dict[str, str] = {}
    failed: list[tuple[str, str]] = []
    for name in sorted(images):
        try:
            keys[name] = feature_key(image_digest(images[name]), encoder.identity, spec)
        except ImageError as error:
            failed.append((name, error.message))
    if out.exists() and _written_keys(out) == keys:
        return failed
    facts = {"model": encoder.identity.to_json(), "features": spec.describe()}
    with new_file(out, FEATURES, facts) as file:
        for name, key in keys.items():
            try:
                group = write_image_group(file, name, encoder.encode(images[name], spec))
                group.attrs["key"] = key
            except (ImageError, MatchError) as error:
                failed.append((name, error.message))
    return failed


def _written_keys(path: Path) -> dict[str, str]:
    with own_file(path, FEATURES) as (file, _):
        return {name: str(file[name].attrs["key"]) for name in image_names(file)}


def _read_entry(path: Path, device: torch.device | str) -> Features:
    with h5py.File(path, "r") as file:
        kinds = {name: type(fact) for name, fact in vars(PatchGrid(1, 1, 1, 1, 1, 1.0, 1.0)).items()}
        grid = PatchGrid(**{name: kind(file.attrs[name]) for name, kind in kinds.items()})
        tensors = {
            name: torch.from_numpy(np.asarray(dataset[()], np.float32)).to(device)
            for name, dataset in file.items()
        }
    if len(tensors["patch_tokens"]) != grid.n_patches:
        raise ValueError(f"{len(tensors['patch_tokens'])} patch tokens for {grid.n_patches} patches")
    return Features(grid=grid, **tensors)


def _size(features: Features) -> int:
    """Return how many bytes the tokens of an image take."""
    return sum(tokens.nbytes for tokens in vars(features).values() if isinstance(tokens, torch.Tensor))
