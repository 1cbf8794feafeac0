"""Do the matches of one pair agree on one geometry? A robust fit that rather says no than something wrong.

Models and thresholds are in pixels of the original images, as the matches are. The arithmetic is in a common
frame: both sets of points lie around the origin and are spread equally wide, in pixels of image 1, so that
one threshold serves both.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64

from dinov2kit.errors import ArgumentError
from dinov2kit.matches import Matches
from dinov2kit.shapes import Keypoints

GeometryKind = Literal["similarity", "affine", "homography", "fundamental"]

SAMPLE = {"similarity": 2, "affine": 3, "homography": 4, "fundamental": 7}  # matches that fix a model
FEWEST = {"similarity": 4, "affine": 6, "homography": 8, "fundamental": 15}  # different matches wanted
FEWEST_INLIERS = 8  # of any model
LEAST_RATIO = 0.15  # inliers over different matches
MOST_AREA_CHANGE = 25.0  # of a small region around the inliers, larger or smaller
LEAST_THRESHOLD, CELL_SHARE = 3.0, 0.5  # pixels; share of the patch spacing
PARALLAX = 2.0  # thresholds from the plane before a match speaks of depth
MOST_BY_CHANCE = 0.01  # expected number of models as good as the accepted one among wrong pairs
SHIFTS = 64  # re-pairings that tell how often a wrong pair agrees
MAX_ITERATIONS, CONFIDENCE, SAMPLERS = 10_000, 0.999, (cv2.SAMPLING_PROSAC, cv2.SAMPLING_UNIFORM)
TRIANGLES = 4096  # drawn at random for the mirror score
LEAST_HEIGHT = 0.1  # of a triangle, over its longest side; the turning sense of a thinner one is noise

ESTIMATORS: dict[str, Callable[..., tuple[np.ndarray | None, np.ndarray]]] = {
    "similarity": cv2.estimateAffinePartial2D,
    "affine": cv2.estimateAffine2D,
    "homography": cv2.findHomography,
    "fundamental": cv2.findFundamentalMat,
}

Points = Float64[np.ndarray, "n 2"]
Matrix = Float64[np.ndarray, "3 3"]
Rows = Int64[np.ndarray, " k"]


@dataclass(frozen=True)
class Geometry:
    """One geometry that relates two images, or the reason why there is none.

    Attributes:
        kind: "similarity", "affine" and "homography" carry (x, y, 1) of image 0 to image 1; "fundamental"
            carries it to the epipolar line in image 1.
        matrix: the model; a homography has 1 in its last place, an affine or a similarity the last row 0 0 1,
            a fundamental matrix the norm 1. None where the matches support no model.
        inliers: one per match given: whether it took part and lies within the threshold of the model.
        threshold: largest error of an inlier, in pixels of image 1.
        n_used: how many of the matches took part: kept ones with finite coordinates.
        reason: why there is no model, as a sentence; None where there is one.
    """

    kind: GeometryKind
    matrix: Matrix | None
    inliers: Bool[np.ndarray, " n"]
    threshold: float
    n_used: int
    reason: str | None

    @property
    def n_inliers(self) -> int:
        """Number of inliers."""
        return int(self.inliers.sum())

    @property
    def ratio(self) -> float:
        """Inliers over the matches that took part; 0 where none did."""
        return self.n_inliers / self.n_used if self.n_used else 0.0

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        return {
            "type": self.kind,
            "matrix": None if self.matrix is None else self.matrix.tolist(),
            "threshold_px": round(self.threshold, 3),
            "inliers": self.n_inliers,
            "ratio": round(self.ratio, 4),
            "reason": self.reason,
        }


def verify(
    matches: Matches, kind: GeometryKind, *, cell_px: float, threshold: float | None = None
) -> Geometry:
    """Find the one geometry that the kept matches of a pair agree on, if they agree on any.

    Robust fitting returns some model for any input, also for wrong pairs only. A model is accepted when

    - at least max(`FEWEST[kind]`, `FEWEST_INLIERS`) different matches and a share of `LEAST_RATIO` agree;
    - chance does not explain that. The same points, paired wrongly on purpose, tell how often a wrong pair
      agrees with this very model: rarely in general, but always where all matches end in one place. Hence
      how many models as good as this one are to be expected, among those that any sample of the matches
      gives, if all matches were wrong: `MOST_BY_CHANCE` at most;
    - unless it is a fundamental matrix: it neither mirrors the points nor turns them inside out, and changes
      areas at most 25-fold, in pixels and at the inliers, so wherever an image has its origin;
    - nothing of it is left open: the inliers of an affine or a homography do not lie on one line (those of a
      similarity may), those of a fundamental matrix not on one plane.

    The order of the matches leaves no trace in the answer.

    Args:
        matches: matches of one pair; only kept ones with finite coordinates take part. Those that agree to
            the pixel in both images count once.
        kind: which geometry. For two objects of one class, which share no rigid geometry: "similarity".
        cell_px: spacing of the patches of image 1, in its pixels: `max(grid1.cell_px)`.
        threshold: largest error of an inlier in pixels of image 1: how far a point lands from its match, or
            the Sampson distance of a fundamental matrix. Default: 3, or half of `cell_px` where that is more.

    Raises:
        ArgumentError: `kind` is unknown, or `cell_px` or `threshold` is not a positive number.

    Source: Barath et al., "MAGSAC++", CVPR 2020, and Chum and Matas, "Matching with PROSAC", CVPR 2005, both
        as in OpenCV. The expected number of models: Moisan, Moulon and Monasse, "Automatic Homographic
        Registration of a Pair of Images, with A Contrario Elimination of Outliers", IPOL 2012; re-paired
        points as the background model are ours.
    """
    if kind not in get_args(GeometryKind):
        raise ArgumentError(f"unknown geometry {kind!r}; wanted one of {', '.join(SAMPLE)}")
    threshold = max(LEAST_THRESHOLD, CELL_SHARE * cell_px) if threshold is None else float(threshold)
    for name, value in (("cell_px", cell_px), ("threshold", threshold)):
        if not 0 < value < math.inf:
            raise ArgumentError(f"{name} is {value}; wanted a positive number of pixels")
    usable = _usable(matches)
    used = matches.take(usable)
    distinct = _distinct(used)

    def none(reason: str) -> Geometry:
        return Geometry(kind, None, np.zeros(len(matches), bool), threshold, len(usable), reason)

    if len(distinct) < FEWEST[kind]:
        return none(f"there are {len(distinct)} different matches; the {kind} model takes {FEWEST[kind]}")
    into0, into1 = _common_frame(used.keypoints0[distinct], used.keypoints1[distinct])
    points0, points1 = _moved(used.keypoints0, into0), _moved(used.keypoints1, into1)
    model = _fit(kind, points0[distinct], points1[distinct], threshold)
    if model is None:
        return none(f"no {kind} model fits the {len(distinct)} different matches")
    matrix = _in_pixels(kind, model, into0, into1)
    inlier = _errors(kind, model, points0, points1) <= threshold
    flaw = _flaw(kind, model, points0[distinct], points1[distinct], threshold)
    if flaw is None and kind != "fundamental":
        agreeing = used.take(distinct[inlier[distinct]])
        flaw = _bad_shape(kind, matrix, agreeing.keypoints0, agreeing.keypoints1, threshold)
    if flaw is not None:
        return none(flaw)
    inliers = np.isin(np.arange(len(matches)), usable[inlier])
    return Geometry(kind, matrix, inliers, threshold, len(usable), None)


def mirror_score(matches: Matches) -> float | None:
    """Tell from the matches alone how mirrored image 1 looks.

    Three matches span a triangle in each image. Shift, scale, rotation and a mild change of view leave the
    sense in which its corners follow each other; a mirror reverses it. So no mirrored image needs encoding.

    Args:
        matches: matches of one pair; only kept ones with finite coordinates take part.

    Returns:
        The share of reversed triangles in a fixed random draw: near 0 for upright pairs, 1 for mirrored ones,
        1/2 for pairs that share nothing. None with fewer than 4 different matches, or where those of one
        image lie on one line.
    """
    used = matches.take(_usable(matches))
    distinct = used.take(_distinct(used))
    if len(distinct) < 4:
        return None
    corners = np.random.default_rng(0).integers(len(distinct), size=(TRIANGLES, 3))
    turned = _turning(distinct.keypoints0[corners]) * _turning(distinct.keypoints1[corners])
    return float((turned < 0).sum() / (turned != 0).sum()) if turned.any() else None


def _turning(triangles: Float32[np.ndarray, "n 3 2"]) -> Float64[np.ndarray, " n"]:
    """Return in which sense the corners follow each other, 1 or -1; 0 for triangles that are too thin."""
    edges = triangles.astype(np.float64) - np.roll(triangles, 1, axis=1)
    twice_area = np.linalg.det(edges[:, :2])
    longest = (edges**2).sum(axis=2).max(axis=1)
    turning: np.ndarray = np.sign(twice_area) * (np.abs(twice_area) > LEAST_HEIGHT * longest)
    return turning


def _usable(matches: Matches) -> Rows:
    finite = np.isfinite(matches.keypoints0).all(axis=1) & np.isfinite(matches.keypoints1).all(axis=1)
    return np.flatnonzero(matches.kept & finite)


def _distinct(used: Matches) -> Rows:
    """Return the most confident of each group of matches that agree to the pixel; the most confident first.

    Equally confident ones are ordered by their coordinates, so that the order they came in leaves no trace.
    """
    pixels = np.concatenate([used.keypoints0, used.keypoints1], axis=1)
    order = np.lexsort((*pixels.T, -used.confidence))
    _, first = np.unique(np.round(pixels[order]), axis=0, return_index=True)
    rows: np.ndarray = order[np.sort(first)]
    return rows


def _common_frame(pixels0: np.ndarray, pixels1: np.ndarray) -> tuple[Matrix, Matrix]:
    """Return the maps that bring both images to the origin, and image 0 to the spread of image 1."""
    spread0, spread1 = (float(pixels.std(axis=0, dtype=np.float64).max()) for pixels in (pixels0, pixels1))
    scale = spread1 / spread0 if spread0 and spread1 else 1.0
    (x0, y0), (x1, y1) = (pixels.mean(axis=0, dtype=np.float64) for pixels in (pixels0, pixels1))
    into0 = np.array([[scale, 0, -scale * x0], [0, scale, -scale * y0], [0, 0, 1]])
    return into0, np.array([[1, 0, -x1], [0, 1, -y1], [0, 0, 1]])


def _moved(pixels: np.ndarray, into: Matrix) -> Points:
    moved: np.ndarray = pixels.astype(np.float64) @ into[:2, :2].T + into[:2, 2]
    return moved


def _in_pixels(kind: GeometryKind, model: Matrix, into0: Matrix, into1: Matrix) -> Matrix:
    back = into1.T if kind == "fundamental" else np.linalg.inv(into1)
    matrix: np.ndarray = back @ model @ into0
    if kind == "fundamental":
        return matrix / float(np.linalg.norm(matrix))
    return matrix / (float(matrix[2, 2]) or 1.0)  # 0: the origin of image 0 goes to infinity


def _fit(kind: GeometryKind, points0: Points, points1: Points, threshold: float) -> Matrix | None:
    """Return the model with the most inliers; None where OpenCV finds none.

    Progressive sampling (PROSAC) finds few inliers among many outliers where the confidence ranks them well,
    but soon gives up with a wrong model where it does not; uniform sampling is right then. Both are fast.
    """
    options: list[dict[str, object]]
    if kind == "similarity":  # OpenCV 5.0 knows no USAC for it ("unsupported robust estimation method")
        plain = {"method": cv2.RANSAC, "maxIters": MAX_ITERATIONS, "confidence": CONFIDENCE}
        options = [{**plain, "ransacReprojThreshold": threshold}]
    else:
        options = [{"params": _magsac(sampler, threshold)} for sampler in SAMPLERS]
    models: list[Matrix] = []
    for option in options:
        try:
            matrix, _ = ESTIMATORS[kind](points0, points1, **option)
        except cv2.error:  # how OpenCV says of some inputs that they have no solution
            continue
        if matrix is not None and np.isfinite(matrix).all() and matrix.shape in ((2, 3), (3, 3)):
            models.append(np.vstack([matrix, [0.0, 0.0, 1.0]]) if len(matrix) == 2 else matrix)
    errors = [_errors(kind, model, points0, points1) for model in models]
    return models[int(np.argmax([(error <= threshold).sum() for error in errors]))] if models else None


def _magsac(sampler: int, threshold: float) -> cv2.UsacParams:
    """Return what OpenCV does for `USAC_MAGSAC`, but with a sampler of choice."""
    options = cv2.UsacParams()
    options.sampler, options.score = sampler, cv2.SCORE_METHOD_MAGSAC
    options.loMethod, options.loIterations, options.loSampleSize = cv2.LOCAL_OPTIM_SIGMA, 10, 30
    options.threshold, options.confidence, options.maxIterations = threshold, CONFIDENCE, MAX_ITERATIONS
    return options


def _errors(kind: GeometryKind, model: Matrix, points0: Points, points1: Points) -> Float64[np.ndarray, " n"]:
    """Return how far each match is from the model; infinite or NaN where it reaches no point."""
    homogeneous0, homogeneous1 = (np.pad(p, ((0, 0), (0, 1)), constant_values=1) for p in (points0, points1))
    reached = homogeneous0 @ model.T
    if kind == "fundamental":  # Sampson: Hartley and Zisserman, "Multiple View Geometry", 2nd ed., eq. 11.9
        slopes = np.hstack([reached[:, :2], (homogeneous1 @ model)[:, :2]])
        offsets = (homogeneous1 * reached).sum(axis=1, keepdims=True)
        scale = np.linalg.norm(slopes, axis=1, keepdims=True)
    else:
        offsets, scale = reached[:, :2] - points1 * reached[:, 2:], reached[:, 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        apart: np.ndarray = np.linalg.norm(offsets / scale, axis=1)
    return apart


def _flaw(
    kind: GeometryKind, model: Matrix, points0: Points, points1: Points, threshold: float
) -> str | None:
    """Return why the matches do not support the model, as a sentence; None where they do."""
    inlier = _errors(kind, model, points0, points1) <= threshold
    n, agreeing = len(inlier), int(inlier.sum())
    found = f"{agreeing} of {n} matches agree with the best {kind} model"
    fewest = max(FEWEST[kind], FEWEST_INLIERS, math.ceil(LEAST_RATIO * n))
    if agreeing < fewest:
        return f"{found}; wanted at least {fewest}"
    by_chance = _chance(kind, model, points0, points1, threshold)
    if not _beyond_chance(n, agreeing, SAMPLE[kind], by_chance):
        return f"{found}, which chance explains"
    plane = _fit("homography", points0[inlier], points1[inlier], threshold) if kind == "fundamental" else None
    if plane is not None:
        distance = _errors("homography", plane, points0, points1)
        off = distance > PARALLAX * threshold
        # An error in a random direction stays near the epipolar line this often, the more the smaller it is.
        by_error = 2 / np.pi * np.arcsin(math.sqrt(2) * threshold / distance[off])
        by_chance = max(by_chance, float(by_error.sum() / max(off.sum(), 1)))
        # The plane leaves open where the epipole is: two unknowns, for the matches off the plane to settle.
        if not _beyond_chance(int(off.sum()), int((off & inlier).sum()), 2, by_chance):
            return f"{found}, but too few lie off one plane, which leaves the model open"
    return None


def _bad_shape(
    kind: GeometryKind, matrix: Matrix, pixels0: Keypoints, pixels1: Keypoints, threshold: float
) -> str | None:
    """Return why a map of the plane makes no sense at its inliers, as a sentence; None where it does."""
    depth = pixels0 @ matrix[2, :2] + matrix[2, 2]
    if depth.min() <= 0 <= depth.max():
        return f"the best {kind} model turns the points inside out: its horizon runs between them"
    # The Jacobian determinant at each inlier. As the depth keeps its sign, their convex hull stays convex.
    change = float(np.median(np.linalg.det(matrix) / depth**3))
    if change < 0:
        return f"the best {kind} model mirrors the image"
    if not 1 / MOST_AREA_CHANGE <= change <= MOST_AREA_CHANGE:
        return f"the best {kind} model changes areas by a factor of {change:.3g}; wanted 1/25 to 25"
    x, y, x_on, y_on = cv2.fitLine(pixels1, cv2.DIST_L1, 0, 0.01, 0.01).ravel()
    aside = np.abs((pixels1 - [x_on, y_on]) @ [-y, x])
    # With a line, two more matches fix a homography and one an affine; yet another has to agree.
    if kind != "similarity" and (aside > threshold).sum() < SAMPLE[kind] - 1:
        return f"the matches that agree lie on one line, which leaves the {kind} model open"
    return None


def _chance(kind: GeometryKind, model: Matrix, points0: Points, points1: Points, threshold: float) -> float:
    """Return how often a wrong pair of the same points agrees; never 0, which no number of tries proves."""
    shifts = np.unique(np.linspace(1, len(points0) - 1, SHIFTS).astype(int))
    wrong = (_errors(kind, model, points0, np.roll(points1, int(shift), axis=0)) for shift in shifts)
    agreeing = sum(int((errors <= threshold).sum()) for errors in wrong)
    return (agreeing + 1) / (len(shifts) * len(points0) + 1)


def _beyond_chance(n: int, agreeing: int, sample: int, share: float) -> bool:
    """Say whether more of n matches agree with the model than wrong pairs would ever give it.

    Any sample of the matches could have given it; the others agree by chance, each with probability `share`.
    Chernoff's bound stands for the tail of the binomial distribution.
    """
    others = n - sample
    rate = (agreeing - sample) / max(others, 1)
    if rate <= share:
        return False
    divergence = rate * math.log(rate / share)
    if rate < 1:
        divergence += (1 - rate) * math.log((1 - rate) / (1 - share))
    solutions = 3 if sample == SAMPLE["fundamental"] else 1  # of one sample
    return math.log(solutions * math.comb(n, sample)) - others * divergence <= math.log(MOST_BY_CHANCE)
