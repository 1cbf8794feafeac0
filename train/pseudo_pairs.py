"""Pairs of different photos with labels that the raw features give themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from dinov2kit.errors import ArgumentError
from dinov2kit.features import Features
from dinov2kit.matching import MatchSpec, match
from dinov2kit.pipeline import GlobalEncoder, describe
from dinov2kit.shapes import Keypoints

Partners = Literal["auto", "folder", "nearest"]

FEWEST = 8  # matches of a pair worth learning from

_NEAREST = 5  # partners of each photo
_CHUNK = 1024  # photos compared at once


def find_partners(paths: Sequence[Path], kind: Partners, encoder: GlobalEncoder) -> list[tuple[int, ...]]:
    """Return, for every photo, the indexes of photos that may show the same kind of thing.

    Args:
        paths: the photos.
        kind: "folder": photos of the same folder; "nearest": those with the nearest global descriptors;
            "auto": by folder where the photos lie in several, else nearest.
        encoder: makes the global descriptors.

    Raises:
        ArgumentError: no photo has a partner.
    """
    folders = defaultdict(list)
    for index, path in enumerate(paths):
        folders[path.parent].append(index)
    if kind == "folder" or (kind == "auto" and len(folders) > 1):
        partners = [
            tuple(other for other in folders[path.parent] if other != index)
            for index, path in enumerate(paths)
        ]
    else:
        partners = _nearest(paths, encoder)
    if not any(partners):
        raise ArgumentError(
            "no photo has a partner to be matched with",
            hint="put photos of the same kind of thing into one folder, or say partners=nearest",
        )
    return partners


def label(features0: Features, features1: Features, num: int) -> tuple[Keypoints, Keypoints] | None:
    """Return what raw features match with a cycle error of at most one patch; None where that is too little.

    Args:
        features0: features of photo 0.
        features1: features of photo 1.
        num: most matches, spread over photo 0.

    Source: the relaxed cycle filter of Dünkel et al., "Do It Yourself" (DIY-SC), 2025.
    """
    found = match(features0, features1, num=num, spec=MatchSpec(max_cycle=1.0))
    return (found.keypoints0, found.keypoints1) if len(found) >= FEWEST else None


def _nearest(paths: Sequence[Path], encoder: GlobalEncoder) -> list[tuple[int, ...]]:
    found = [described.descriptor for described in describe(encoder, paths)]
    readable = np.array([index for index, row in enumerate(found) if row is not None])
    rows = np.stack([row for row in found if row is not None]) if len(readable) else np.empty((0, 1))
    partners: list[tuple[int, ...]] = [()] * len(paths)
    for start in range(0, len(rows), _CHUNK):
        scores = rows[start : start + _CHUNK] @ rows.T
        scores[np.arange(len(scores)), start + np.arange(len(scores))] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, : min(_NEAREST, len(rows) - 1)]
        for offset, nearest in enumerate(best):
            partners[readable[start + offset]] = tuple(int(index) for index in readable[nearest])
    return partners
