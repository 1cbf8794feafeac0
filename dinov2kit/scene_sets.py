"""Sets whose truth is known for every pixel: flow (TSS) and homographies (HPatches)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from dinov2kit.dense import dense_flow
from dinov2kit.errors import ImageError, MatchError
from dinov2kit.features import Features
from dinov2kit.flow_files import read_flow
from dinov2kit.geometry import verify
from dinov2kit.images import read_image
from dinov2kit.keypoint_scores import PairScore, errors, score_pair
from dinov2kit.matching import MatchSpec, match_all

TSS_GROUPS = ("FG3DCar", "JODS", "PASCAL")
SHORT_SIDE = 480  # pixels that the thresholds of HPatches are meant in
LARGE_SCENES = frozenset(
    f"i_{name}" for name in ("contruction", "crownnight", "dc", "pencils", "whitebuilding")
) | frozenset(f"v_{name}" for name in ("artisans", "astronautis", "talent"))
CORNER_PX = (1, 3, 5)


@dataclass(frozen=True)
class FlowPair:
    """Two images and the file of the true flow of the pixels of the first, where its mask is.

    Where `mirrored`, the flow leads to the second image mirrored left to right: the two show their thing from
    opposite sides.
    """

    name: str
    path0: Path
    path1: Path
    flow: Path
    mask: Path
    category: str
    mirrored: bool = False


@dataclass(frozen=True)
class ScenePair:
    """Two images of one plane and the homography from the first to the second, in pixels."""

    name: str
    path0: Path
    path1: Path
    homography: Path
    category: str


def read_tss(root: Path) -> Iterator[FlowPair]:
    """Read TSS: GROUP/PAIR/{image1,image2,mask1,mask2}.png and {flow1,flow2}.flo; both directions are pairs.

    Where GROUP/PAIR/flip_gt.txt says 1, the flow of either image leads to the other one mirrored.

    Raises:
        ImageError: a file of the layout is missing.

    Source: Taniai et al., "Joint recovery of dense correspondence and cosegmentation", CVPR 2016.
    """
    found = [folder for group in TSS_GROUPS for folder in sorted((root / group).glob("*")) if folder.is_dir()]
    if not found:
        raise ImageError(
            f"{root} has none of the folders {', '.join(TSS_GROUPS)}", hint="--root is the folder of TSS"
        )
    for folder in found:
        flip = folder / "flip_gt.txt"
        mirrored = flip.exists() and flip.read_text(encoding="utf-8").strip() == "1"
        for one, two in ((1, 2), (2, 1)):
            yield FlowPair(
                name=f"{folder.parent.name}/{folder.name}:{one}-{two}",
                path0=_there(folder / f"image{one}.png"),
                path1=_there(folder / f"image{two}.png"),
                flow=_there(folder / f"flow{one}.flo"),
                mask=_there(folder / f"mask{one}.png"),
                category=folder.parent.name,
                mirrored=mirrored,
            )


def read_hpatches(root: Path, *, drop_large: bool = False) -> Iterator[ScenePair]:
    """Read HPatches: SCENE/{1..6}.ppm and SCENE/H_1_{2..6}; image 1 is matched to each of the others.

    Args:
        root: the folder of the scenes.
        drop_large: leave out the eight scenes that are too large for some methods; 108 are left.

    Raises:
        ImageError: a file of the layout is missing.

    Source: Balntas et al., "HPatches", CVPR 2017.
    """
    scenes = sorted(folder for folder in root.glob("[iv]_*") if folder.is_dir())
    if not scenes:
        raise ImageError(
            f"{root} has no folders i_* or v_*", hint="--root is the folder of the HPatches sequences"
        )
    for folder in scenes:
        if drop_large and folder.name in LARGE_SCENES:
            continue
        for number in range(2, 7):
            yield ScenePair(
                name=f"{folder.name}:1-{number}",
                path0=_there(folder / "1.ppm"),
                path1=_there(folder / f"{number}.ppm"),
                homography=_there(folder / f"H_1_{number}"),
                category="illumination" if folder.name.startswith("i_") else "viewpoint",
            )


def score_flow(
    pair: FlowPair,
    features0: Features,
    features1: Features,
    alphas: Sequence[float],
    spec: MatchSpec,
    *,
    inclusive: bool = True,
) -> PairScore:
    """Count the pixels of the mask whose flow is right to alpha times the longer side of the source image.

    Args:
        pair: what is scored.
        features0: of the image that the flow belongs to.
        features1: of the other one, which the network saw mirrored where the pair is.
        alphas: the shares.
        spec: how matches are read.
        inclusive: an error that equals the threshold is correct.

    Raises:
        ImageError: the flow or the mask cannot be read or do not have the size of the image.
        MatchError: the true flow is known for no pixel of the mask.
    """
    matches, grid0 = match_all(features0, features1, spec=spec)
    if pair.mirrored:
        places = matches.keypoints1.copy()
        places[:, 0] = features1.grid.width - 1 - places[:, 0]
        matches = replace(matches, keypoints1=places)
    found = dense_flow(matches, grid0)
    truth, mask = read_flow(pair.flow), read_image(pair.mask)[..., 0] > 0
    if not truth.shape[:2] == mask.shape == found.flow.shape[:2]:
        raise ImageError(f"{pair.flow} and {pair.mask} do not have the size of {pair.path0}")
    known = mask & np.isfinite(truth).all(axis=2)
    if not known.any():
        raise MatchError(f"{pair.flow} is known for no pixel of {pair.mask.name}")
    kept = found.valid[known]
    distance = errors(found.flow[known], truth[known])
    length = float(max(mask.shape))
    return score_pair(
        pair.name,
        distance,
        length,
        alphas,
        kept=kept,
        inclusive=inclusive,
        category=pair.category,
        extras={"fold_over": found.fold_over},
    )


def score_scene(
    pair: ScenePair, features0: Features, features1: Features, alphas: Sequence[float], spec: MatchSpec
) -> PairScore:
    """Measure mutual matches and their homography, in pixels at 480 for the short side.

    `correct` counts the matches within 1, 2, ... pixels (mean matching accuracy); the extra `corner_px` is
    the mean error of the four corners of image 0, infinite where no homography was found.
    """
    try:
        truth = np.loadtxt(pair.homography).reshape(3, 3)
    except (OSError, ValueError) as error:
        raise ImageError(f"{pair.homography} holds no 3 x 3 numbers: {error}") from error
    mutual = replace(spec, mutual=True, max_cycle=float("inf"))
    matches, grid0 = match_all(features0, features1, spec=mutual)
    matches = matches.take(np.flatnonzero(matches.kept))
    unit = SHORT_SIDE / min(features1.grid.width, features1.grid.height)
    distance = errors(matches.keypoints1, _moved(matches.keypoints0, truth)) * np.float32(unit)
    model = verify(matches, "homography", cell_px=max(features1.grid.cell_px)).matrix
    width, height = grid0.width - 1, grid0.height - 1
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    corner_px = float("inf")
    if model is not None:
        corner_px = float(errors(_moved(corners, model), _moved(corners, truth)).mean()) * unit
    return score_pair(
        pair.name,
        distance,
        1.0,
        alphas,
        kept=matches.kept,
        inclusive=True,
        category=pair.category,
        extras={"corner_px": corner_px},
    )


def corner_summary(scores: Sequence[PairScore]) -> dict[str, float]:
    """Return the shares of pairs whose corners are within 1, 3 and 5 pixels, and the areas under that curve.

    Source: DeTone et al., "SuperPoint", 2018 (shares); Sarlin et al., "SuperGlue", CVPR 2020 (area, AUC).
    """
    measured = np.sort([score.extras["corner_px"] for score in scores])
    shares = np.arange(1, len(measured) + 1) / len(measured)
    summary: dict[str, float] = {}
    for limit in CORNER_PX:
        below = int(np.searchsorted(measured, limit, side="right"))
        summary[f"within_{limit}px"] = below / len(measured)
        x = np.concatenate([[0.0], measured[:below], [limit]])
        y = np.concatenate([[0.0], shares[:below], [shares[below - 1] if below else 0.0]])
        summary[f"auc_{limit}px"] = float(np.trapezoid(y, x)) / limit
    return summary


def _there(path: Path) -> Path:
    if not path.exists():
        raise ImageError(f"{path} is missing")
    return path


def _moved(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    if not len(points):
        return points
    moved: np.ndarray = cv2.perspectiveTransform(
        points[None].astype(np.float64), homography.astype(np.float64)
    )[0]
    return moved.astype(np.float32)
