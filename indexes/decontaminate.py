"""Dropping copies from a pool, and what is like an evaluation photo.

Two photos are connected when their cosine is above a threshold, strictly. Of a connected component of copies
one stays. A component that holds a photo like an evaluation photo goes as a whole (`chain`), or only such
photos go.

Source: Oquab et al., "DINOv2", 2023, appendix A: self-deduplication above 0.6 and relative deduplication
above 0.45, components dropped whole. Those are cosines of copy-detection descriptors (SSCD); they do not
transfer to DINOv2, whose cosines are high for scenes of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int64

from .graph import Edges, components


def connected(edges: Edges, threshold: float, ids: Int64[np.ndarray, " n"]) -> Edges:
    """Return the edges above a threshold, strictly, with both ends among some ids, which ascend."""
    kept = edges.score > threshold
    kept &= np.isin(edges.source, ids) & np.isin(edges.target, ids)
    return Edges(edges.source[kept], edges.target[kept], edges.score[kept])


def choose_keepers(
    ids: Int64[np.ndarray, " n"],
    edges: Edges,
    read_pixels: Callable[[Int64[np.ndarray, " m"]], Int64[np.ndarray, " m"]],
) -> Int64[np.ndarray, " n"]:
    """Return for each photo the one that stays of its component: that of most pixels, then of the lowest id.

    Args:
        ids: the photos, ascending.
        edges: between them.
        read_pixels: returns width times height of some photos; asked only for those that have copies.
    """
    keepers = ids.copy()
    roots = components(ids, edges)
    inside = np.isin(ids, np.concatenate([edges.source, edges.target]))
    members, groups = ids[inside], roots[inside]
    if not len(members):
        return keepers
    order = np.lexsort((members, -read_pixels(members), groups))
    starts = np.r_[True, np.diff(groups[order]) > 0]
    best = members[order][starts]  # of each group, by ascending root
    keepers[inside] = best[np.searchsorted(groups[order][starts], groups)]
    return keepers


def find_contaminated(
    ids: Int64[np.ndarray, " n"], hits: Int64[np.ndarray, " h"], edges: Edges, *, chain: bool
) -> Bool[np.ndarray, " n"]:
    """Say which photos go because they, or with `chain` their component, are like an evaluation photo.

    Args:
        ids: the photos, ascending, copies that were dropped before included: they carry the chain on.
        hits: photos that are like an evaluation photo.
        edges: between the photos.
        chain: drop whole components.
    """
    direct = np.isin(ids, hits)
    if not chain:
        return direct
    roots = components(ids, edges)
    return np.isin(roots, roots[direct])
