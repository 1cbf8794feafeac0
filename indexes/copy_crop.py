"""Is one photo a part of the other? Keypoints that agree on one similarity, and then the pixels themselves.

Matching keypoints alone also join two shots of one place. So one photo is moved onto the other, and the edges
have to agree wherever both show something; and one of them has to lie nearly whole inside the other, which
sets a crop apart from the next shot of a panorama.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from dinov2kit.geometry import verify
from dinov2kit.images import load_picture
from dinov2kit.matches import Matches
from dinov2kit.views import KeepAspect

from .copy_check import MOST, CopyCheck, compare_pixels
from .copy_signatures import SIDE, grey_of

VIEW = KeepAspect(size=384, patch_size=1)
INSIDE = 0.85  # share of one photo that the other shows
_KEYPOINTS = 1000
_MOST_ALIKE = 0.8  # distance of the best over that of the second best descriptor (Lowe 2004, section 7.1)
_KEPT = 256  # photos whose keypoints are remembered

Grey = UInt8[np.ndarray, "_ _"]


@dataclass(frozen=True)
class _Seen:
    """A photo at the size at which keypoints are compared."""

    grey: Grey
    places: Float32[np.ndarray, "n 2"]
    descriptors: Float32[np.ndarray, "n 128"]


class CropChecker:
    """Compares photos of which one may be a part of the other, perhaps turned or resized.

    Args:
        flips: mirrored parts count.
    """

    def __init__(self, *, flips: bool = False) -> None:
        self.flips = flips
        self._seen: OrderedDict[tuple[Path, bool], _Seen] = OrderedDict()

    def check(self, path0: Path, path1: Path) -> CopyCheck:
        """Say whether one photo is a part of the other.

        Raises:
            ImageError: one of them cannot be read.
        """
        found = _compare(self._look(path0), self._look(path1))
        if self.flips and not found.passed:
            turned = _compare(self._look(path0), self._look(path1, flip=True))
            if turned.passed:
                return CopyCheck(
                    True, turned.phash_distance, turned.pixels, 0.0, "crop", f"{turned.text}, mirrored"
                )
        return found

    def _look(self, path: Path, *, flip: bool = False) -> _Seen:
        seen = self._seen.pop((path, flip), None)
        if seen is None:
            seen = _find_keypoints(path, flip=flip)
        self._seen[path, flip] = seen
        if len(self._seen) > _KEPT:
            self._seen.popitem(last=False)
        return seen


def _find_keypoints(path: Path, *, flip: bool) -> _Seen:
    pixels = load_picture(path, VIEW).pixels
    grey = np.ascontiguousarray(np.rint(grey_of(pixels)).astype(np.uint8)[:, :: -1 if flip else 1])
    found, descriptors = cv2.SIFT.create(nfeatures=_KEYPOINTS).detectAndCompute(grey, None)
    if descriptors is None:
        return _Seen(grey, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-6))
    places = np.array([point.pt for point in found], np.float32).reshape(-1, 2)
    return _Seen(grey, places, descriptors.astype(np.float32))


def _compare(seen0: _Seen, seen1: _Seen) -> CopyCheck:
    matches = _match(seen0, seen1)
    geometry = verify(matches, "similarity", cell_px=1.0)
    if geometry.matrix is None:
        return CopyCheck(False, 64, 0.0, 0.0, "crop", "no common part")
    pixels, inside = _overlay(seen0.grey, seen1.grey, geometry.matrix)
    passed = pixels >= MOST and inside >= INSIDE
    text = f"part: {geometry.n_inliers} points, pixels {pixels:.2f}, {inside:.0%} inside"
    return CopyCheck(passed, 64, pixels, 0.0, "crop", text)


def _match(seen0: _Seen, seen1: _Seen) -> Matches:
    """Return the keypoints that choose each other and have no second choice.

    Source: descriptors as in Arandjelovic and Zisserman, "Three things everyone should know", CVPR 2012
    (RootSIFT); the ratio test of Lowe, "Distinctive Image Features", IJCV 2004.
    """
    rows0, rows1 = seen0.descriptors, seen1.descriptors
    if min(len(rows0), len(rows1)) < 2:
        pairs, score = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    else:
        distances = np.sqrt(np.maximum(2 - 2 * rows0 @ rows1.T, 0))
        best = distances.argmin(axis=1)
        two = np.partition(distances, 1, axis=1)[:, :2]
        ratio = two[:, 0] / np.maximum(two[:, 1], 1e-6)
        mutual = distances.argmin(axis=0)[best] == np.arange(len(rows0))
        chosen = np.flatnonzero(mutual & (ratio < _MOST_ALIKE))
        pairs, score = np.stack([chosen, best[chosen]], axis=1), (1 - ratio[chosen]).astype(np.float32)
    zeros = np.zeros(len(pairs), np.float32)
    return Matches(
        keypoints0=seen0.places[pairs[:, 0]],
        keypoints1=seen1.places[pairs[:, 1]],
        score=score,
        confidence=score,
        cycle_error=zeros,
        uncertainty=zeros,
        ratio=1 - score,
        kept=np.ones(len(pairs), bool),
    )


def _overlay(grey0: Grey, grey1: Grey, matrix: np.ndarray) -> tuple[float, float]:
    """Move photo 0 onto photo 1; return how well they agree where both are, and how far one is inside."""
    height, width = grey1.shape
    size = (width, height)
    moved = cv2.warpAffine(grey0, matrix[:2], size, flags=cv2.INTER_AREA)
    covered = cv2.warpAffine(np.full_like(grey0, 255), matrix[:2], size, flags=cv2.INTER_NEAREST) > 0
    scale = abs(float(np.linalg.det(matrix[:2, :2])))
    inside = max(covered.mean(), covered.sum() / max(scale * grey0.size, 1e-6))
    rows, cols = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
    if not len(rows):
        return 0.0, 0.0
    part = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
    small = [_shrink(picture[part]) for picture in (moved, grey1)]
    within = cv2.resize(covered[part].astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA) > 0.99
    return float(compare_pixels(small[0][None], small[1][None], within[None])[0]), min(float(inside), 1.0)


def _shrink(grey: Grey) -> UInt8[np.ndarray, "32 32"]:
    return np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)
