"""What is kept of each photo to tell copies: 32 x 32 pixels of luminance, and a hash of 64 bits.

A plain border around a picture, white or of any colour, is cut away first, so that a framed copy looks like
its original. Where that is done, the signature of the whole photo is kept beside that of the picture.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt8, UInt64

from dinov2kit.decoding import DecodePool
from dinov2kit.errors import ImageError
from dinov2kit.files import written_whole
from dinov2kit.images import Picture
from dinov2kit.shapes import Image
from dinov2kit.views import Squash

Luminance = UInt8[np.ndarray, "n side side"]

SIDE = 32
VIEW = Squash(size=128, patch_size=8)  # borders are measured on it: to 1/128 of each side
_CHUNK = 2048  # photos between two saves
_REC601 = np.array([0.299, 0.587, 0.114], np.float32)
_TOLERANCE = 12  # levels that JPEG moves a plain colour
_SAME, _EDGE = 0.98, 0.3  # share of a line that is plain; share of the next that is not, where a border ends
_MOST_CUT = 0.8  # of a side


@dataclass(frozen=True)
class Signature:
    """A photo, or the picture inside its border, as it is compared.

    Attributes:
        luminance: uint8, 32 x 32.
        width: of what it shows, in pixels of the upright original.
        height: likewise.
    """

    luminance: UInt8[np.ndarray, "32 32"]
    width: int
    height: int


@dataclass(frozen=True)
class Signatures:
    """The signatures of many photos, as arrays.

    Attributes:
        luminance: one or two signatures per photo.
        sides: width and height of what each shows, in pixels.
        inner: per photo, the row of its picture without border; -1 where it could not be read.
        whole: per photo, the row of the whole; equal to `inner` where there is no border.
    """

    luminance: Luminance
    sides: Int64[np.ndarray, "n 2"]
    inner: Int64[np.ndarray, " photos"]
    whole: Int64[np.ndarray, " photos"]

    def picture_sides(self, place: int) -> tuple[int, int] | None:
        """Return width and height of a photo without its border; None where it has none."""
        inner, whole = int(self.inner[place]), int(self.whole[place])
        return None if inner == whole else (int(self.sides[inner, 0]), int(self.sides[inner, 1]))


def sign(picture: Picture) -> list[Signature]:
    """Return the signature of a photo, and before it that of the picture inside its border if it has one.

    Args:
        picture: read through `VIEW`.
    """
    whole = Signature(small_luminance(picture.pixels), picture.width, picture.height)
    left, top, right, bottom = find_picture(picture.pixels)
    height, width = picture.pixels.shape[:2]
    if (left, top, right, bottom) == (0, 0, width, height):
        return [whole]
    # the line next to a border is a mixture of both
    left, top = left + (left > 0), top + (top > 0)
    right, bottom = right - (right < width), bottom - (bottom < height)
    inner = np.ascontiguousarray(picture.pixels[top:bottom, left:right])
    sides = picture.width * (right - left) // width, picture.height * (bottom - top) // height
    return [Signature(small_luminance(inner), max(1, sides[0]), max(1, sides[1])), whole]


def find_picture(pixels: Image) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of what a plain border surrounds; the whole where there is none.

    A border is a run of lines of one colour that ends at once: where a photo only fades into its background,
    there is none. Opposite sides are found twice, because a line across a wide border is mostly border.
    """
    height, width = pixels.shape[:2]
    left, top, right, bottom = 0, 0, width, height
    levels = pixels.astype(np.int16)
    for _ in range(2):
        seen = levels[top:bottom, left:right]
        up, down = _border(seen), _border(seen[::-1])
        if up + down <= _MOST_CUT * len(seen):
            top, bottom = top + up, bottom - down
        seen = levels[top:bottom, left:right].transpose(1, 0, 2)
        before, after = _border(seen), _border(seen[::-1])
        if before + after <= _MOST_CUT * len(seen):
            left, right = left + before, right - after
    return left, top, right, bottom


def _border(lines: np.ndarray) -> int:
    """Return how many of the first lines are border."""
    colour = np.median(lines[0], axis=0).astype(np.int16)
    if (np.abs(lines[0] - colour).max(axis=1) <= _TOLERANCE).mean() < _SAME:
        return 0  # most photos
    far = np.abs(lines - colour).max(axis=2) > _TOLERANCE
    plain = (~far).mean(axis=1) >= _SAME
    count = int(np.argmin(plain))  # 0 also where all are plain
    return count if count and far[count : count + 3].mean(axis=1).max() >= _EDGE else 0


def grey_of(pixels: Image) -> Float32[np.ndarray, "height width"]:
    """Return the luminance of an image, 0 to 255. Source: ITU-R BT.601."""
    grey: np.ndarray = pixels.astype(np.float32) @ _REC601
    return grey


def small_luminance(pixels: Image) -> UInt8[np.ndarray, "32 32"]:
    """Return the luminance of an image, made 32 x 32."""
    small = cv2.resize(grey_of(pixels), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(np.clip(np.rint(small), 0, 255), np.uint8)


def _cosines() -> Float64[np.ndarray, "8 32"]:
    """Return the eight lowest rows of the cosine transform."""
    orders, places = np.arange(8)[:, None], np.arange(SIDE)[None]
    rows: np.ndarray = np.cos(np.pi * orders * (2 * places + 1) / (2 * SIDE)) / np.where(
        orders, 4.0, 4 * 2**0.5
    )
    return rows


def hash_luminance(luminance: Luminance) -> UInt64[np.ndarray, " n"]:
    """Return the perceptual hashes of signatures: which of the 64 lowest cosine terms lie above their median.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1.
    """
    rows = _cosines()
    terms = np.round(rows @ luminance.astype(np.float64) @ rows.T, 6).reshape(len(luminance), 64)
    above = terms > np.median(terms, axis=1, keepdims=True)
    return np.packbits(above, axis=1).view(">u8").astype(np.uint64).reshape(len(luminance))


def read_signatures(
    paths: Sequence[Path],
    *,
    workers: int = 0,
    work: Path | None = None,
    keys: Sequence[bytes] = (),
    advance: Callable[[int], None] | None = None,
) -> tuple[Signatures, dict[int, str]]:
    """Read the signatures of photos, and for those that cannot be read the reason, by their place in `paths`.

    Args:
        paths: of the photos.
        workers: decoding processes; 0 decodes here.
        work: folder where finished parts are kept, so that an interrupted run goes on there.
        keys: what the content of each photo is known by, if `work` is given.
        advance: called with how many photos have been seen to.

    Raises:
        ArgumentError: `work` cannot be written.
    """
    parts: list[list[list[Signature] | str]] = []
    with DecodePool(VIEW, workers=workers) as pool:
        for start in range(0, len(paths), _CHUNK):
            some = paths[start : start + _CHUNK]
            file = None if work is None else work / _name(keys[start : start + _CHUNK])
            kept = _load(file, len(some))
            if kept is None:
                kept = []
                for _, picture in pool.pictures(some):
                    kept.append(_reason(picture) if isinstance(picture, ImageError) else sign(picture))
                    if advance:
                        advance(start + len(kept))
                _save(file, kept)
            parts.append(kept)
            if advance:
                advance(start + len(kept))
    entries = [entry for part in parts for entry in part]
    unread = {place: entry for place, entry in enumerate(entries) if isinstance(entry, str)}
    return signatures_of([[] if isinstance(entry, str) else entry for entry in entries]), unread


def _reason(error: ImageError) -> str:
    return error.message.split(": ", 1)[-1]


def signatures_of(entries: Sequence[list[Signature]]) -> Signatures:
    """Return the signatures of photos as arrays; a photo without any could not be read."""
    rows = [signature for entry in entries for signature in entry]
    counts = np.array([len(entry) for entry in entries], np.int64)
    ends = np.cumsum(counts)
    luminance = np.zeros((len(rows), SIDE, SIDE), np.uint8)
    for place, row in enumerate(rows):
        luminance[place] = row.luminance
    sides = np.array([(row.width, row.height) for row in rows], np.int64).reshape(-1, 2)
    known = counts > 0
    return Signatures(luminance, sides, np.where(known, ends - counts, -1), np.where(known, ends - 1, -1))


def _name(keys: Sequence[bytes]) -> str:
    return f"signatures-{hashlib.blake2b(b''.join(keys), digest_size=12).hexdigest()}.npz"


def _save(file: Path | None, entries: list[list[Signature] | str]) -> None:
    """Keep a finished part; one with unreadable photos is read again next time."""
    read = [entry for entry in entries if not isinstance(entry, str)]
    if file is None or len(read) < len(entries):
        return
    with written_whole(file) as temporary, temporary.open("wb") as out:
        np.savez(out, **vars(signatures_of(read)))


def _load(file: Path | None, count: int) -> list[list[Signature] | str] | None:
    if file is None or not file.exists():
        return None
    try:
        with np.load(file) as kept:
            luminance, sides, inner, whole = (kept[name] for name in ("luminance", "sides", "inner", "whole"))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # damaged: it is made again
        return None
    if len(inner) != count:
        return None

    def row(place: int) -> Signature:
        return Signature(luminance[place], int(sides[place, 0]), int(sides[place, 1]))

    return [
        [row(place) for place in range(first, last + 1)] for first, last in zip(inner, whole, strict=True)
    ]


def mirrored(luminance: Luminance) -> Luminance:
    """Return signatures seen in a mirror."""
    return np.ascontiguousarray(luminance[:, :, ::-1])


def contrast(luminance: Luminance) -> Float32[np.ndarray, " n"]:
    """Return the standard deviation of the luminance of each signature, in levels."""
    spread: np.ndarray = luminance.astype(np.float32).std(axis=(1, 2))
    return spread
