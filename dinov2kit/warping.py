"""Dense flow from image 0 to image 1: from scattered keypoints, and what becomes of images under it.

Needs no torch. Everything is in the pixel frame; maps of whole images are made and used in bands of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from dinov2kit.drawing import PAPER
from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.grid import PatchGrid
from dinov2kit.shapes import Image, Keypoints

Image1 = UInt8[np.ndarray, "height1 width1 3"]
Parametric = Literal["affine", "tps"]

BAND = 2**20  # pixels that are worked on at once
MOST_NODES = 200_000  # of the lattice on which a spline is computed
MOST_CENTERS = 300  # of a spline
EDGE = 0.01  # width of the soft edge of a painted object, as a share of the longer side


@dataclass(frozen=True)
class DenseFlow:
    """Where every pixel of image 0 lies in image 1.

    Attributes:
        flow: (u, v) in pixels; pixel (x, y) of image 0 lies at (x + u, y + v) in image 1, which may be
            outside of it. NaN where `valid` is False.
        certainty: how far to trust it, in [0, 1]; it ranks the pixels of one pair and is no probability.
            0 where `valid` is False.
        valid: whether there is an answer.
        fold_over: share of the cells of the lattice on which the flow was computed that are turned over or
            have no area left (determinant of the Jacobian <= 0); 1 for a mirror image. The nodes of the
            lattice are the patch centres or, for maps from scattered keypoints, pixels.
    """

    flow: Float32[np.ndarray, "height width 2"]
    certainty: Float32[np.ndarray, "height width"]
    valid: Bool[np.ndarray, "height width"]
    fold_over: float

    def bands(self) -> Iterator[tuple[slice, Float32[np.ndarray, "band width 2"]]]:
        """Yield rows of image 0 from top to bottom, and where their pixels lie in image 1."""
        height, width = self.valid.shape
        step = max(1, BAND // width)
        for top in range(0, height, step):
            rows = slice(top, min(top + step, height))
            y, x = np.mgrid[rows, :width]
            yield rows, self.flow[rows] + np.stack([x, y], axis=2).astype(np.float32)

    def to_unit_grid(self, width1: int, height1: int) -> Float32[np.ndarray, "height width 2"]:
        """Return where every pixel lies in image 1, whatever its size: in x and y from -1 to 1.

        -1 and 1 are the outer edges of image 1, not the centres of its outer pixels, as in RoMa and in
        `torch.nn.functional.grid_sample(..., align_corners=False)`. NaN where `valid` is False.

        Args:
            width1: width of image 1, in pixels.
            height1: height of image 1, in pixels.
        """
        unit = PatchGrid(  # image 1, two network pixels wide and high, is one patch with its centre at (0, 0)
            1, 1, 2, width1, height1, scale_x=2 / width1, scale_y=2 / height1, stride=1
        )
        places = np.empty_like(self.flow)
        for rows, positions in self.bands():
            places[rows] = unit.to_cells(positions.reshape(-1, 2)).reshape(positions.shape)
        return places


def warp_to_0(image1: Image1, flow: DenseFlow) -> Image:
    """Return image 1 as it looks from image 0: of the size of image 0, white where there is no answer."""
    return _seen_from_0(image1, flow)[0]


def swap_object(
    image0: Image, image1: Image1, flow: DenseFlow, mask0: Bool[np.ndarray, "height width"]
) -> Image:
    """Paint the object of image 1 into image 0.

    It covers what was there where its certainty is the median of the object or more, and fades below that and
    towards the edge of the mask. Nothing outside the mask changes.

    Args:
        image0: the image to paint into.
        image1: the image that shows the other object.
        flow: from image 0 to image 1.
        mask0: the pixels of image 0 that show the object.

    Raises:
        ArgumentError: image 0, its mask and the flow do not have the same size.
    """
    sizes = image0.shape[:2], mask0.shape, flow.valid.shape
    if len(set(sizes)) > 1:
        named = ", ".join(f"{width}x{height}" for height, width in sizes)
        raise ArgumentError(f"image 0, its mask and the flow have {named} pixels; wanted one size")
    painted, seen = _seen_from_0(image1, flow)
    shown = mask0 & seen
    typical = float(np.median(flow.certainty[shown])) if shown.any() else 0.0
    from_edge = cv2.distanceTransform(mask0.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    edge = max(1.0, EDGE * max(mask0.shape))
    result = image0.copy()
    for rows, _ in flow.bands():
        sure = np.minimum(flow.certainty[rows] / max(typical, 1e-12), 1)
        alpha = (sure * np.minimum(from_edge[rows] / edge, 1) * shown[rows])[..., None]
        mixed = image0[rows] + alpha * (painted[rows].astype(np.float32) - image0[rows])
        result[rows] = np.rint(mixed).astype(np.uint8)
    return result


def mesh_flow(points0: Keypoints, points1: Keypoints, width: int, height: int) -> DenseFlow:
    """Return the flow that is affine in each triangle between keypoints; there is none outside their hull.

    Args:
        points0: keypoints of image 0, at least 3 that do not lie on a line.
        points1: where they lie in image 1.
        width: width of image 0, in pixels.
        height: height of image 0, in pixels.

    Raises:
        MatchError: the points span no triangle, or are not finite.

    Source: the triangulation of Delaunay, by OpenCV.
    """
    _check_points(points0, points1)
    low, high = np.floor(points0.min(axis=0)), np.ceil(points0.max(axis=0))
    room = 100 * max(1, *(high - low))  # the outer triangles of OpenCV must be far, or the hull gets dents
    division = cv2.Subdiv2D([int(v) for v in (*(low - room), *(high - low + 2 * room))])
    division.insert(points0.tolist())
    row_of = {(x, y): row for row, (x, y) in enumerate(points0.tolist())}
    corners = [
        [row_of.get((x, y), -1) for x, y in triangle.reshape(3, 2).tolist()]
        for triangle in np.asarray(division.getTriangleList(), np.float32)
    ]
    triangles = np.array([rows for rows in corners if -1 not in rows], np.int64).reshape(-1, 3)
    flow = _paint_triangles(points0.astype(np.float64), points1 - points0, triangles, width, height)
    valid = np.isfinite(flow[..., 0])
    step = _lattice_step(width, height)
    y, x = np.mgrid[:height:step, :width:step]
    places = flow[::step, ::step] + np.stack([x, y], axis=2).astype(np.float32)
    return DenseFlow(flow, valid.astype(np.float32), valid, fold_over(places))


def parametric_flow(
    points0: Keypoints,
    points1: Keypoints,
    width: int,
    height: int,
    *,
    kind: Parametric = "affine",
    ridge: float = 1e-3,
) -> DenseFlow:
    """Return the flow of the smooth map that fits the keypoints best, everywhere on image 0.

    Every keypoint counts the same: leave outliers out.

    Args:
        points0: keypoints of image 0, at least 3 that do not lie on a line.
        points1: where they lie in image 1.
        width: width of image 0, in pixels.
        height: height of image 0, in pixels.
        kind: "affine", by least squares; "tps": affine plus a thin-plate spline that bends at up to 300 of
            the keypoints, as far from each other as can be.
        ridge: what the spline pays for bending: at 0 it goes through its keypoints, the more, the closer it
            is to the affine map. It does not depend on the size of the images or the number of keypoints.

    Raises:
        ArgumentError: the kind is unknown, or the ridge below 0.
        MatchError: the points lie on a line, or are not finite.

    Source: Bookstein, "Principal Warps", PAMI 1989; the price of bending as in Wood, "Thin plate regression
        splines", JRSS B 2003.
    """
    if kind not in get_args(Parametric):
        raise ArgumentError(f"unknown kind {kind!r}; wanted one of {', '.join(get_args(Parametric))}")
    if not 0 <= ridge < math.inf:
        raise ArgumentError(f"ridge is {ridge}; wanted 0 or more")
    _check_points(points0, points1)
    spline = _fit_spline(points0, points1 - points0, MOST_CENTERS if kind == "tps" else 0, ridge)
    step = _lattice_step(width, height)
    x, y = np.arange(0, width - 1 + step, step), np.arange(0, height - 1 + step, step)
    nodes = np.stack(np.meshgrid(x, y), axis=2).astype(np.float32)
    lattice = np.stack([spline(row) for row in nodes])
    flow = interpolate(lattice, np.arange(width) / step, np.arange(height) / step)
    everywhere = np.ones((height, width), bool)
    return DenseFlow(flow, everywhere.astype(np.float32), everywhere, fold_over(nodes + lattice))


def interpolate(
    lattice: Float32[np.ndarray, "rows cols channels"],
    x: Float64[np.ndarray, " width"],
    y: Float64[np.ndarray, " height"],
) -> Float32[np.ndarray, "height width channels"]:
    """Return a lattice at all combinations of columns `x` and rows `y`, in cells on the lattice; bilinear."""
    along_x, along_y = (
        np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count))).astype(np.float32)
        for places, count in ((x, lattice.shape[1]), (y, lattice.shape[0]))
    )
    values = np.empty((len(y), len(x), lattice.shape[2]), np.float32)
    for channel in range(lattice.shape[2]):
        values[..., channel] = along_y @ (lattice[..., channel] @ along_x.T)
    return values


def fold_over(places: Float32[np.ndarray, "rows cols 2"]) -> float:
    """Return which share of the cells of a lattice a map turns over or flattens.

    Args:
        places: where the map puts the nodes of the lattice; NaN for nowhere. A cell counts when all of its
            four corners are somewhere; where none counts, the share is 0.
    """
    falling, rising = places[1:, 1:] - places[:-1, :-1], places[1:, :-1] - places[:-1, 1:]
    area = falling[..., 0] * rising[..., 1] - falling[..., 1] * rising[..., 0]  # the determinant, twice
    area = area[np.isfinite(area)]
    return float((area <= 0).mean()) if area.size else 0.0


def _fit_spline(
    points: Keypoints, values: Keypoints, most_centers: int, ridge: float
) -> Callable[[Keypoints], Keypoints]:
    """Return the affine map plus thin-plate spline that fits the values; without centres it is affine."""
    origin = points.mean(axis=0, dtype=np.float64)
    unit = float(np.sqrt(np.square(points - origin).sum(axis=1).mean())) or 1.0
    places = (points - origin) / unit
    centers = places[_far_apart(places, most_centers)]
    # the weights of the kernels are kept orthogonal to all that is affine: the columns of `free`
    free = np.linalg.qr(np.insert(centers, 0, 1, axis=1), mode="complete")[0][:, 3:]

    def terms(points: Keypoints) -> np.ndarray:
        places = (points - origin) / unit
        return np.hstack([np.insert(places, 0, 1, axis=1), _thin_plate(places, centers) @ free])

    basis = terms(points)
    if np.linalg.matrix_rank(basis[:, :3], rtol=1e-4) < 3:
        raise MatchError(f"the {len(points)} keypoints lie on a line; wanted 3 that do not")
    energy, bends = np.linalg.eigh(free.T @ _thin_plate(centers, centers) @ free)
    price = np.sqrt(ridge * len(points) * energy.clip(0))[:, None] * bends.T
    equations = np.vstack([basis, np.pad(price, ((0, 0), (3, 0)))])
    weights = np.linalg.lstsq(equations, np.pad(values, ((0, len(price)), (0, 0))))[0]
    return lambda points: np.asarray(terms(points) @ weights, np.float32)


def _thin_plate(
    places: Float64[np.ndarray, "n 2"], centers: Float64[np.ndarray, "k 2"]
) -> Float64[np.ndarray, "n k"]:
    """Return r^2 log r for every distance r."""
    squared = np.square(places[:, None] - centers).sum(axis=2)
    kernel: np.ndarray = squared * np.log(np.maximum(squared, 1e-300)) / 2
    return kernel


def _far_apart(places: Float64[np.ndarray, "n 2"], most: int) -> list[int]:
    """Choose different places greedily: the next is the one farthest from all chosen before."""
    distance = np.full(len(places), np.inf)
    chosen: list[int] = []
    while len(chosen) < most and distance.max() > 0:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(places - places[chosen[-1]]).sum(axis=1))
    return chosen


def _paint_triangles(
    points: Float64[np.ndarray, "n 2"],
    values: Keypoints,
    triangles: np.ndarray,
    width: int,
    height: int,
) -> Float32[np.ndarray, "height width 2"]:
    """Return the values between the corners of each triangle; NaN outside of all."""
    painted = np.full((height, width, 2), np.nan, np.float32)
    corners = np.concatenate([points[triangles], np.ones((len(triangles), 3, 1))], axis=2)
    broad = np.abs(np.linalg.det(corners)) > 1e-3  # twice the area in square pixels
    if not broad.any():
        raise MatchError(f"the {len(points)} keypoints span no triangle; wanted 3 that do not lie on a line")
    triangles, corners = triangles[broad], corners[broad]
    lows = np.ceil(corners[..., :2].min(axis=1)).astype(int).clip(0)
    highs = np.floor(corners[..., :2].max(axis=1)).astype(int) + 1
    for rows, to_shares, (left, top), (right, end) in zip(
        triangles, np.linalg.inv(corners), lows, np.minimum(highs, [width, height]), strict=True
    ):
        x, y = np.arange(left, right)[None, :, None], np.arange(top, end)[:, None, None]
        shares = x * to_shares[0] + y * to_shares[1] + to_shares[2]  # of the three corners, per pixel
        inside = (shares >= -1e-9).all(axis=2)
        painted[top:end, left:right][inside] = shares[inside] @ values[rows]
    return painted


def _seen_from_0(image1: Image1, flow: DenseFlow) -> tuple[Image, Bool[np.ndarray, "height width"]]:
    """Return image 1 under the flow, and the pixels of image 0 that lie on it."""
    height, width = image1.shape[:2]
    frame = PatchGrid(height, width, 1, width, height, scale_x=1.0, scale_y=1.0)
    picture = np.full((*flow.valid.shape, 3), PAPER, np.uint8)
    seen = np.zeros(flow.valid.shape, bool)
    for rows, positions in flow.bands():
        seen[rows] = frame.contains(positions.reshape(-1, 2)).reshape(positions.shape[:2])
        x, y = cv2.split(np.nan_to_num(positions))
        colors = np.asarray(cv2.remap(image1, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
        picture[rows][seen[rows]] = colors[seen[rows]]
    return picture, seen


def _lattice_step(width: int, height: int) -> int:
    """Return how many pixels apart the nodes of a lattice of bounded size lie."""
    return max(1, math.ceil(math.sqrt(width * height / MOST_NODES)))


def _check_points(points0: Keypoints, points1: Keypoints) -> None:
    if len(points0) != len(points1) or len(points0) < 3:
        raise MatchError(f"{len(points0)} keypoints and {len(points1)} answers; wanted 3 or more of each")
    if not (np.isfinite(points0).all() and np.isfinite(points1).all()):
        raise MatchError("some keypoints are not finite")
