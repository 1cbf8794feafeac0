"""Global descriptors of many images, in memory and, where wanted, on disk: an interrupted run goes on.

A cache is a folder of small HDF5 files, each written whole and never changed. A descriptor is known by the
model and by the content of its image, not by its path.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from jaxtyping import Bool, Float32

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.files import written_whole
from dinov2kit.identity import ModelIdentity
from dinov2kit.images import image_digest, load_picture, read_image
from dinov2kit.pipeline import GlobalEncoder, describe
from dinov2kit.shapes import Descriptors

logger = logging.getLogger(__name__)

SCHEMA = "dinokit.descriptors/1"
_BLOCK, _SECONDS = 1024, 30.0  # what a kill may cost: so many images, or so long

Box = tuple[float, float, float, float]


class Shown(NamedTuple):
    """A file, and the box of it that is described, in pixels; None is the whole image."""

    path: Path
    box: Box | None = None


@dataclass(frozen=True)
class Described:
    """The descriptors of some images.

    Attributes:
        rows: a descriptor per image, L2-normalised; zeros where there is none.
        known: which images have one.
        errors: (path, reason) of the others, each file once.
    """

    rows: Descriptors
    known: Bool[np.ndarray, " n"]
    errors: tuple[tuple[Path, str], ...]


class DescriptorCache:
    """Descriptors on disk, by the content of their images.

    Args:
        folder: where they are; it is made when the first is kept.
        identity: of the model; descriptors of others in the same folder are not seen.
    """

    def __init__(self, folder: Path, identity: ModelIdentity) -> None:
        self.folder, self._identity = folder, identity
        self._known: dict[bytes, Float32[np.ndarray, " dim"]] = {}
        self._fresh: list[bytes] = []
        self._since = time.monotonic()
        for path in sorted(folder.glob(f"{identity.fingerprint}-*.h5")):
            try:
                with h5py.File(path, "r", locking=False) as file:
                    keys, rows = np.asarray(file["keys"]), np.asarray(file["descriptors"], np.float32)
            except (OSError, KeyError, ValueError) as error:
                logger.warning("%s is damaged, its images are described anew: %s", path, error)
                continue
            if rows.shape == (len(keys), identity.dim):
                self._known |= {key.tobytes(): row for key, row in zip(keys, rows, strict=True)}

    def key(self, image: Shown) -> bytes:
        """Return what an image is known by.

        Raises:
            ImageError: the file cannot be read.
        """
        told = f"{image_digest(image.path)} {image.box}"
        return hashlib.blake2b(told.encode(), digest_size=16).digest()

    def find(self, key: bytes) -> Float32[np.ndarray, " dim"] | None:
        """Return the descriptor of an image, or None."""
        return self._known.get(key)

    def keep(self, key: bytes, row: Float32[np.ndarray, " dim"]) -> None:
        """Keep a descriptor; it is written with others, see `write`."""
        self._known[key] = row
        self._fresh.append(key)
        if len(self._fresh) >= _BLOCK or time.monotonic() - self._since > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is not yet on disk.

        Raises:
            ArgumentError: it cannot be written.
        """
        self._since = time.monotonic()
        if not self._fresh:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArgumentError(f"cannot write {self.folder}: {error.strerror or error}") from error
        target = self.folder / f"{self._identity.fingerprint}-{uuid.uuid4().hex[:12]}.h5"
        with written_whole(target) as temporary, h5py.File(temporary, "w") as file:
            file.attrs["schema"], file.attrs["model"] = SCHEMA, self._identity.name
            keys = np.frombuffer(b"".join(self._fresh), np.uint8).reshape(-1, 16)
            rows = np.stack([self._known[key] for key in self._fresh])
            file.create_dataset("keys", data=keys, fletcher32=True)
            file.create_dataset("descriptors", data=rows, fletcher32=True)
        self._fresh = []

    def drop(self) -> None:
        """Remove the folder and what this model has in it; what else is there stays."""
        for path in self.folder.glob(f"{self._identity.fingerprint}-*.h5"):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def open_cache(
    identity: ModelIdentity, *, cache: Path | None, out: Path | None, overwrite: bool = False
) -> DescriptorCache | None:
    """Return the cache at a folder, or else beside a report that is to be written, or None.

    Raises:
        ArgumentError: the folder is a file, or the report exists already or has no folder.
    """
    if out is not None and out.exists() and not overwrite:
        raise ArgumentError(f"{out} exists already", hint="name another file, or add --overwrite")
    if out is not None and not out.parent.is_dir():
        raise ArgumentError(f"cannot write {out}: there is no folder {out.parent}")
    folder = cache if cache is not None or out is None else out.with_name(out.name + ".partial")
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder} is no folder", hint="descriptors are kept in a folder of their own")
    return None if folder is None else DescriptorCache(folder, identity)


def describe_images(
    encoder: GlobalEncoder,
    images: Sequence[Shown],
    *,
    cache: DescriptorCache | None = None,
    workers: int = 0,
    batch_size: int = 0,
    advance: Callable[[Path], None] | None = None,
) -> Described:
    """Describe images, each once; those that cannot be read are left out and listed.

    Args:
        encoder: makes the descriptors.
        images: what to describe; the same one may come several times.
        cache: where descriptors are found and kept; also those of a run that is interrupted.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder, 0 for what suits it.
        advance: called with the path of each image, each time it comes.

    Raises:
        ImageError: no image at all could be read.
    """
    places: dict[Shown, list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(image, []).append(place)
    rows = np.zeros((len(images), encoder.identity.dim), np.float32)
    known = np.zeros(len(images), np.bool_)
    errors: dict[Path, str] = {}
    ahead: deque[tuple[Shown, bytes]] = deque()  # handed to the decoders

    def settle(image: Shown, row: Float32[np.ndarray, " dim"] | str, key: bytes = b"") -> None:
        if isinstance(row, str):
            errors.setdefault(image.path, row)
        else:
            rows[places[image]], known[places[image]] = row, True
            if cache is not None and key:
                cache.keep(key, row)
        for _ in places[image]:
            if advance is not None:
                advance(image.path)

    def undescribed() -> Iterator[Path]:
        for image in places:
            try:
                key = b"" if cache is None else cache.key(image)
                row = None if cache is None else cache.find(key)
                if row is not None:
                    settle(image, row)
                elif image.box is not None:
                    settle(image, _described_box(encoder, image, image.box), key)
                else:
                    ahead.append((image, key))
                    yield image.path
            except ImageError as error:
                settle(image, error.message)

    try:
        for described in describe(encoder, undescribed(), workers=workers, batch_size=batch_size):
            image, key = ahead.popleft()
            if described.descriptor is None:
                settle(image, described.error or "it has no descriptor")
            else:
                settle(image, described.descriptor.astype(np.float32), key)
    finally:
        if cache is not None:
            cache.write()
    if len(images) and not known.any():
        raise ImageError(
            f"none of {len(places)} images could be read; the first: {next(iter(errors.values()))}"
        )
    return Described(rows, known, tuple(errors.items()))


def _described_box(encoder: GlobalEncoder, image: Shown, box: Box) -> Float32[np.ndarray, " dim"]:
    """Describe a part of an image; edges are rounded to pixels, and what lies outside is not there.

    Raises:
        ImageError: the image cannot be read, or nothing of it is in the box.
    """
    left, top, right, bottom = (max(0, round(edge)) for edge in box)
    part = read_image(image.path)[top:bottom, left:right]
    if not part.size:
        raise ImageError(f"{image.path}: its box {left},{top},{right},{bottom} is empty")
    row: Float32[np.ndarray, " dim"] = encoder.embed(load_picture(part, encoder.view).pixels[None])[0]
    return row.astype(np.float32)
