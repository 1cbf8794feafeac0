"""Hits put into a better order: each photo is matched, patch by patch, with the images that were asked for.

A global descriptor says what a photo is about; patches say whether the same thing is there, and a geometry
whether its parts lie as they should.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, get_args, runtime_checkable

import numpy as np
from jaxtyping import Bool

from dinov2kit.errors import ArgumentError, ImageError, MatchError, check_choice
from dinov2kit.feature_cache import CachedEncoder, FeatureCache, RecentEncoder
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.geometry import GeometryKind, verify
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.images import Source, is_there
from dinov2kit.matching import MatchSpec, match_all
from dinov2kit.pairs import LocalEncoder
from dinov2kit.views import Region

from .index import Hit
from .query import Question
from .records import Watch


@runtime_checkable
class SourceEncoder(Protocol):
    """What turns an image of any kind into features, not only a file."""

    @property
    def identity(self) -> ModelIdentity:
        """The model behind it."""

    def encode(self, source: Source, spec: FeatureSpec | None = None) -> Features:
        """Return the features of one whole image, as `spec` wants them."""


@dataclass(frozen=True)
class Reranked:
    """A hit, and how well its patches match those of the query.

    Attributes:
        hit: as it was found; `hit.score` is that of the global descriptors.
        score: what ranks the compared hits, see `rerank`; None where the photo was not compared.
        matches: how many patches of the query found a match that was kept.
        inliers: how many of these agree on one geometry; None where none was asked for, or not compared.
        note: why the photo could not be compared; None where it was, or where nobody tried.
    """

    hit: Hit
    score: float | None
    matches: int
    inliers: int | None
    note: str | None

    def to_json(self) -> dict[str, object]:
        """Return the hit and what was found out about it, as `json.dumps` takes it."""
        score = None if self.score is None else round(self.score, 6)
        facts = {"rerank_score": score, "matches": self.matches, "inliers": self.inliers}
        return {**self.hit.to_json(), **facts, "note": self.note}


def rerank(
    encoder: SourceEncoder,
    question: Question,
    hits: Sequence[Hit],
    *,
    count: int | None = None,
    photos: LocalEncoder | None = None,
    features: FeatureSpec | None = None,
    matching: MatchSpec | None = None,
    geometry: GeometryKind | None = "homography",
    watch: Watch | None = None,
) -> list[Reranked]:
    """Order the first hits anew, by how well their patches match those of the query.

    What ranks them is a product: the score they were found with; 1 plus the mean confidence of the matches
    over the patches of the query, 0 where none was kept; and 1 plus the share of these patches whose matches
    are inliers. So patches raise a hit up to fourfold, and the global score is not forgotten: the number of
    inliers alone ranks worse than that score where unlike scenes agree on some plane, and confidence alone
    where a copy is blurred. `benchmarks/rerank.py` compares these rules.

    Each photo is decoded and encoded once. Of several query images the one that matches best counts; images
    that the hits shall be unlike do not take part. A region restricts which patches of the query image look
    for a match: the image is still encoded as a whole, so that its patches are as large and know as much of
    their surroundings as those of the photos.

    Args:
        encoder: the model.
        question: what was asked.
        hits: what was found, best first.
        count: how many of the hits to compare; the others follow in their order. All when not given.
        photos: encodes files instead of `encoder`, for instance one with a cache.
        features: which local descriptors are compared.
        matching: which matches are kept.
        geometry: what the matches have to agree on; None: nothing.
        watch: called with the stage of the work.

    Returns:
        All hits: those that were compared, best first, then those that could not be read, then the others.

    Raises:
        ArgumentError: there is no image in the question, or a choice is unknown.
        ImageError: an image of the question cannot be read. A photo that cannot be read is noted.
    """
    if geometry is not None:
        check_choice("geometry", geometry, get_args(GeometryKind))
    count = len(hits) if count is None else count
    watch = watch or (lambda *_: None)
    asked = _asked(encoder, photos or encoder, question, features)
    compared: list[Reranked] = []
    unread: list[Reranked] = []
    for number, hit in enumerate(hits[:count]):
        watch("Matching", number, min(count, len(hits)))
        try:
            if not is_there(hit.path):
                raise ImageError("the file is gone")
            seen = (photos or encoder).encode(hit.path, features)
            compared.append(_best(hit, asked, seen, matching, geometry))
        except (ImageError, MatchError) as error:
            unread.append(Reranked(hit, None, 0, None, error.message))
    watch("Matching", min(count, len(hits)), min(count, len(hits)))
    compared.sort(key=lambda found: (-(found.score or 0), -found.hit.score, found.hit.id))
    return compared + unread + [Reranked(hit, None, 0, None, None) for hit in hits[count:]]


def open_photos(encoder: object, cache: Path | None) -> tuple[SourceEncoder, LocalEncoder]:
    """Return what encodes images of any kind, and what encodes files and remembers them.

    Args:
        encoder: the model of an index.
        cache: features are also kept on disk beside this file; None: in memory only.

    Raises:
        ArgumentError: the model has no patches to compare.
    """
    if not isinstance(encoder, SourceEncoder):
        raise ArgumentError("re-ranking compares patches, and what describes this index has none")
    return encoder, RecentEncoder(encoder if cache is None else CachedEncoder(encoder, FeatureCache(cache)))


@dataclass(frozen=True)
class _Asked:
    features: Features
    mask: Bool[np.ndarray, " n_patches"] | None


def _asked(
    encoder: SourceEncoder, photos: LocalEncoder, question: Question, spec: FeatureSpec | None
) -> list[_Asked]:
    asked = []
    for part in question.parts:
        if part.weight > 0 and part.source is not None:
            if isinstance(part.source, (str, Path)):
                features = photos.encode(Path(part.source), spec)
            else:
                features = encoder.encode(part.source, spec)
            mask = None if part.region is None else _patches_of(part.region, features.grid)
            asked.append(_Asked(features, mask))
    if not asked:
        raise ArgumentError(
            "re-ranking needs an image that is asked for; there is none in this question",
            hint="name an image or an item instead of a descriptor",
        )
    return asked


def _patches_of(region: Region, grid: PatchGrid) -> Bool[np.ndarray, " n_patches"]:
    """Return which patches have their centre in a region; of a smaller one, the patch nearest to it."""
    left, top, right, bottom = (edge - 0.5 for edge in region.box(grid.width, grid.height))
    x, y = grid.centers().T
    inside: np.ndarray = (x > left) & (x < right) & (y > top) & (y < bottom)
    if not inside.any():
        inside[np.argmin(np.hypot(x - (left + right) / 2, y - (top + bottom) / 2))] = True
    return inside


def _best(
    hit: Hit,
    asked: Sequence[_Asked],
    seen: Features,
    matching: MatchSpec | None,
    geometry: GeometryKind | None,
) -> Reranked:
    """Match a photo with each query image, and return what the best of them says."""
    found = []
    for one in asked:
        matches, _ = match_all(one.features, seen, mask0=one.mask, spec=matching)
        confidence = float(matches.confidence[matches.kept].sum())
        inliers = None
        if geometry is not None:
            inliers = verify(matches, geometry, cell_px=max(seen.grid.cell_px)).n_inliers
        patches = len(matches) if one.mask is None else int(one.mask.sum())
        score = max(hit.score, 0.0) * (1 + confidence / patches) * (1 + (inliers or 0) / patches)
        found.append(Reranked(hit, score, int(matches.kept.sum()), inliers, None))
    return max(found, key=lambda one: one.score or 0)
