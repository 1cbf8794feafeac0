"""Are two photos one picture? The hash, the shape, and above all where the luminance rises and falls.

Two sunsets have nearly the same luminance and nearly the same hash, but not the same edges. So the steps
between neighbouring pixels are compared in 16 blocks of the picture. How many of the blocks agree is what
decides: a caption or a logo covers few of them, and plain sky has no say.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt64

from dinov2kit.errors import check_choice
from dinov2kit.images import load_picture
from dinov2kit.shapes import Image

from .copy_signatures import (
    SIDE,
    VIEW,
    Luminance,
    Signatures,
    contrast,
    hash_luminance,
    mirrored,
    sign,
    signatures_of,
    small_luminance,
)

VERIFY = ("phash", "pixel", "none")

HASH_BITS = 10  # of 64 that may differ between copies
HALF, MOST, NEARLY_ALL = 0.5, 0.75, 0.9  # pixels: with a near hash; without one; where the shape differs
STRETCH_BITS = 6  # that may differ where the shape differs
AGREES = 0.6  # correlation of the steps of a block from which it agrees
MOST_STRETCH = 0.05  # natural logarithm of the ratio of two aspect ratios
PLAIN = 3.0  # levels of contrast below which a photo shows nothing to compare
_BLOCKS = 4  # per side
_STEP = 6.0  # root of summed squared steps of a block that has edges
_FEWEST = 3  # blocks with edges
_PAIRS = 8192  # compared at a time


@dataclass(frozen=True)
class CopyCheck:
    """How alike two photos are, and whether that makes them copies.

    Attributes:
        passed: they are copies of each other.
        phash_distance: bits of the perceptual hashes that differ, 0 to 64.
        pixels: share of the blocks with edges in which the edges agree, 0 to 1.
        aspect: natural logarithm of the ratio of their aspect ratios; 0 is the same shape.
        transform: "none", "mirrored", or "crop" for a part of the other photo.
        text: all of this in a few words.
    """

    passed: bool
    phash_distance: int
    pixels: float
    aspect: float
    transform: str
    text: str


@dataclass(frozen=True)
class Checks:
    """The same for many pairs, as arrays; `mirrored` says whether the mirrored photo is what is alike."""

    passed: Bool[np.ndarray, " p"]
    distance: Int64[np.ndarray, " p"]
    pixels: Float32[np.ndarray, " p"]
    aspect: Float64[np.ndarray, " p"]
    mirrored: Bool[np.ndarray, " p"]

    def one(self, place: int) -> CopyCheck:
        """Return one pair in words."""
        distance, pixels = int(self.distance[place]), float(self.pixels[place])
        aspect, flipped = float(self.aspect[place]), bool(self.mirrored[place])
        words = [f"phash {distance}", f"pixels {pixels:.2f}"]
        words += ["stretched"] if abs(aspect) >= MOST_STRETCH else []
        words += ["mirrored"] if flipped else []
        transform = "mirrored" if flipped else "none"
        return CopyCheck(bool(self.passed[place]), distance, pixels, aspect, transform, ", ".join(words))


def phash(image: Image) -> int:
    """Return the perceptual hash of an image, 64 bits; copies differ in few of them.

    Source: Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1.
    """
    return int(hash_luminance(small_luminance(image)[None])[0])


def compare(path0: Path, path1: Path, *, verify: str = "phash", flips: bool = False) -> CopyCheck:
    """Say whether two photos are copies of one picture: resized, compressed, brightened, framed, captioned.

    Args:
        path0: a photo.
        path1: another.
        verify: see `check_pairs`.
        flips: a mirrored copy counts.

    Raises:
        ImageError: one cannot be read.
        ArgumentError: `verify` is unknown.
    """
    entries = [sign(load_picture(path, VIEW)) for path in (path0, path1)]
    places = np.zeros(1, np.int64), np.ones(1, np.int64)
    return Comparer(signatures_of(entries), verify=verify, flips=flips).check(*places).one(0)


class Comparer:
    """Compares photos by their signatures.

    Args:
        signatures: of all photos that will be asked about.
        verify: "phash": copies have hashes that differ in at most 10 bits and agree in half of the blocks,
            or agree in three of four blocks. "pixel": they agree in three of four, whatever the hash. "none":
            everything passes. Shapes are the same to 5 %, unless hash and pixels leave no doubt.
        flips: mirrored copies count.

    Raises:
        ArgumentError: `verify` is unknown.
    """

    def __init__(self, signatures: Signatures, *, verify: str = "phash", flips: bool = False) -> None:
        check_choice("verification", verify, VERIFY)
        self.signatures = signatures
        self.verify = verify
        self.flips = flips
        self.hashes = hash_luminance(signatures.luminance)
        self.mirrored_hashes = hash_luminance(mirrored(signatures.luminance)) if flips else self.hashes
        self.plain = contrast(signatures.luminance) < PLAIN

    def check(self, one: Int64[np.ndarray, " p"], other: Int64[np.ndarray, " p"]) -> Checks:
        """Compare pairs of photos, given by their places in the signatures.

        A photo with a border counts as the picture inside; where only one of the two has a border, also as
        a whole. What could not be read, or shows nothing, passes no check.
        """
        inner, whole = self.signatures.inner, self.signatures.whole
        best = self._check_rows(inner[one], inner[other], flip=False)
        framed = (inner[one] != whole[one]) != (inner[other] != whole[other])
        best = _better(best, self._check_rows(whole[one], whole[other], flip=False, where=framed))
        if self.flips:
            best = _better(best, self._check_rows(inner[one], inner[other], flip=True))
        return best

    def _check_rows(
        self,
        one: Int64[np.ndarray, " p"],
        other: Int64[np.ndarray, " p"],
        *,
        flip: bool,
        where: Bool[np.ndarray, " p"] | None = None,
    ) -> Checks:
        """Compare rows of the signatures; a pair that is left out has distance 64 and pixels 0."""
        asked = (one >= 0) & (other >= 0)
        asked = asked if where is None else asked & where
        known = asked.copy()
        known[asked] = ~(self.plain[one[asked]] | self.plain[other[asked]])
        distance = np.full(len(one), 64, np.int64)
        pixels = np.zeros(len(one), np.float32)
        aspect = np.zeros(len(one))
        a, b = one[known], other[known]
        hashes = self.mirrored_hashes if flip else self.hashes
        distance[known] = hamming(self.hashes[a], hashes[b])
        pixels[known] = self._pixels(a, b, flip=flip)
        shape = np.log(self.signatures.sides[:, 0] / self.signatures.sides[:, 1])
        aspect[known] = shape[a] - shape[b]
        passed = known & self._passes(distance, pixels, aspect)
        return Checks(passed, distance, pixels, aspect, np.full(len(one), flip))

    def _pixels(
        self, one: Int64[np.ndarray, " p"], other: Int64[np.ndarray, " p"], *, flip: bool
    ) -> Float32[np.ndarray, " p"]:
        found = np.zeros(len(one), np.float32)
        for start in range(0, len(one), _PAIRS):
            some = slice(start, start + _PAIRS)
            left, right = (self.signatures.luminance[rows[some]] for rows in (one, other))
            found[some] = compare_pixels(left, mirrored(right) if flip else right)
        return found

    def _passes(
        self,
        distance: Int64[np.ndarray, " p"],
        pixels: Float32[np.ndarray, " p"],
        aspect: Float64[np.ndarray, " p"],
    ) -> Bool[np.ndarray, " p"]:
        if self.verify == "none":
            return np.ones(len(distance), bool)
        alike = pixels >= MOST
        if self.verify == "phash":
            alike |= (distance <= HASH_BITS) & (pixels >= HALF)
        stretched = (distance <= STRETCH_BITS) & (pixels >= NEARLY_ALL)
        passed: np.ndarray = np.where(np.abs(aspect) < MOST_STRETCH, alike, stretched)
        return passed


def hamming(one: UInt64[np.ndarray, " p"], other: UInt64[np.ndarray, " p"]) -> Int64[np.ndarray, " p"]:
    """Return in how many bits hashes differ."""
    bits: np.ndarray = np.bitwise_count(one ^ other)
    return bits.astype(np.int64)


def compare_pixels(
    one: Luminance, other: Luminance, within: Bool[np.ndarray, "n side side"] | None = None
) -> Float32[np.ndarray, " n"]:
    """Return in which share of the 16 blocks the edges of two pictures agree.

    Blocks in which neither has an edge do not count; where fewer than three are left, the answer is 0.

    Args:
        one: pictures.
        other: pictures that they are compared with, one each.
        within: where both show something; everywhere when not given.
    """
    steps = [_steps(luminance, within) for luminance in (one, other)]
    lengths = [np.linalg.norm(step, axis=2) for step in steps]
    products = np.maximum(lengths[0], _STEP) * np.maximum(lengths[1], _STEP)
    correlation = (steps[0] * steps[1]).sum(axis=2) / products
    edged = np.maximum(*lengths) >= _STEP
    count = edged.sum(axis=1)
    agree = (edged & (correlation >= AGREES)).sum(axis=1)
    share: np.ndarray = np.where(count >= _FEWEST, agree / np.maximum(count, 1), 0).astype(np.float32)
    return share


def _steps(
    luminance: Luminance, within: Bool[np.ndarray, "n side side"] | None
) -> Float32[np.ndarray, "n blocks steps"]:
    """Return the steps of luminance to the right and down, block by block."""
    levels = luminance.astype(np.float32)
    steps = np.zeros((2, *levels.shape), np.float32)
    steps[0, :, :, :-1] = np.diff(levels, axis=2)
    steps[1, :, :-1] = np.diff(levels, axis=1)
    if within is not None:
        steps[0, :, :, :-1] *= within[:, :, :-1] & within[:, :, 1:]
        steps[1, :, :-1] *= within[:, :-1] & within[:, 1:]
    side = SIDE // _BLOCKS
    cut = steps.reshape(2, len(levels), _BLOCKS, side, _BLOCKS, side).transpose(1, 2, 4, 0, 3, 5)
    blocks: np.ndarray = cut.reshape(len(levels), _BLOCKS**2, -1)
    return blocks


def _better(one: Checks, other: Checks) -> Checks:
    """Return of each pair the check that passed; if both or none did, the one with more agreement."""
    second = np.where(one.passed == other.passed, other.pixels > one.pixels, other.passed)
    return Checks(
        *(np.where(second, getattr(other, name), getattr(one, name)) for name in vars(one)),
    )
