"""Which keypoints to show when the user gives none: confident ones of different places."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.errors import ArgumentError
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches
from dinov2kit.shapes import Image, Keypoints

Keypointing = Literal["spread", "kmeans", "grid", "sift"]

MOST_CANDIDATES = 4000  # of the most confident matches; more cost k-means time and change nothing
ROUNDS = 20  # of k-means


def choose(
    matches: Matches,
    grid: PatchGrid,
    num: int,
    how: Keypointing = "spread",
    *,
    descriptors: Float32[np.ndarray, "n dim"] | None = None,
) -> Int64[np.ndarray, " k"]:
    """Choose up to `num` kept matches, one per different place or part; the most confident first.

    Args:
        matches: one match per cell of `grid`, row-major.
        grid: the grid of image 0.
        num: how many to choose.
        how: "spread" keeps them apart in image 0; "kmeans" takes the best of each group of similar pairs of
            descriptors; "grid" takes those nearest to the points of a lattice over the kept matches.
        descriptors: what "kmeans" groups, one row per match.

    Raises:
        ArgumentError: no such way, or "kmeans" without descriptors.

    Source of "kmeans": Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021, section 4.2; there
        the best is the most salient, here the most confident.
    """
    if how == "spread":
        return _spread_out(matches, grid, num)
    if how == "grid":
        return _on_lattice(matches, num)
    if how == "kmeans" and descriptors is not None:
        return _one_per_group(matches, descriptors, num)
    raise ArgumentError(f"cannot choose keypoints by {how!r} from matches alone")


def sift_keypoints(image: Image, num: int) -> Keypoints:
    """Return up to `num` SIFT keypoints of an image, each place once, the strongest first.

    Source: Lowe, "Distinctive Image Features from Scale-Invariant Keypoints", IJCV 2004; OpenCV `SIFT`.
    """
    found = cv2.SIFT_create().detect(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)  # type: ignore[attr-defined]
    places = [(*keypoint.pt, keypoint.response) for keypoint in found]
    ranked = sorted(places, key=lambda place: (-place[2], place[1], place[0]))
    once = dict.fromkeys((x, y) for x, y, _ in ranked)  # one keypoint may have several orientations
    return np.array(list(once)[:num], np.float32).reshape(-1, 2)


def _ranked(matches: Matches) -> Int64[np.ndarray, " k"]:
    order: np.ndarray = np.argsort(-matches.confidence, kind="stable")
    kept: np.ndarray = order[matches.kept[order]]
    return kept


def _spread_out(matches: Matches, grid: PatchGrid, num: int) -> Int64[np.ndarray, " k"]:
    """Greedy: the most confident match that is at least `spacing` cells from all chosen ones is next.

    The spacing starts at the one that would share the kept cells evenly and shrinks until `num` are found.
    """
    ranked = _ranked(matches)
    spacing = max(1, round(math.sqrt(len(ranked) / num)))
    while True:
        taken = np.zeros((grid.rows, grid.cols), bool)
        chosen: list[int] = []
        for index in ranked:
            row, col = divmod(int(index), grid.cols)
            if taken[row, col]:
                continue
            chosen.append(int(index))
            if len(chosen) == num:
                break
            taken[
                max(0, row - spacing + 1) : row + spacing,
                max(0, col - spacing + 1) : col + spacing,
            ] = True
        if len(chosen) == num or spacing == 1:
            return np.asarray(chosen, np.int64)
        spacing -= 1


def _one_per_group(
    matches: Matches, descriptors: Float32[np.ndarray, "n dim"], num: int
) -> Int64[np.ndarray, " k"]:
    ranked = _ranked(matches)[:MOST_CANDIDATES]
    if len(ranked) <= num:
        return ranked
    cv2.setRNGSeed(0)  # the groups must not depend on what OpenCV drew before
    stop = (cv2.TERM_CRITERIA_COUNT, ROUNDS, 0.0)
    _, groups, _ = cv2.kmeans(
        np.ascontiguousarray(descriptors[ranked]),
        num,
        None,
        stop,
        1,
        cv2.KMEANS_PP_CENTERS,  # type: ignore[call-overload]
    )
    _, best = np.unique(groups.ravel(), return_index=True)  # ranked by confidence: the first is the best
    first: np.ndarray = np.sort(best)
    chosen: np.ndarray = ranked[first]
    return chosen


def _on_lattice(matches: Matches, num: int) -> Int64[np.ndarray, " k"]:
    ranked = _ranked(matches)
    if len(ranked) <= num:
        return ranked
    places = matches.keypoints0[ranked]
    low, high = places.min(axis=0), places.max(axis=0)
    width, height = np.maximum(high - low, 1)
    columns = max(1, round(math.sqrt(num * width / height)))
    rows = max(1, num // columns)
    columns = num // rows
    steps = [(np.arange(count) + 0.5) / count for count in (columns, rows)]
    lattice = np.stack(np.meshgrid(*steps), axis=-1).reshape(-1, 2) * (high - low) + low
    distance = np.linalg.norm(places[None] - lattice[:, None], axis=2)
    chosen: np.ndarray = ranked[np.unique(distance.argmin(axis=1))]
    return chosen
