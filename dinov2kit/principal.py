"""Principal components of the local descriptors of several images together, and pictures made of them.

The images share one set of directions and one scale of colours: the same colour is the same kind of thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.features import Features

CHANNELS = 3  # red, green, blue
LOW, HIGH = 2.0, 98.0  # percentiles of a component that become no and full colour
FLAT = 1e-10  # variance of rows of length one that only rounding made: fp32 leaves about 1e-14


@dataclass(frozen=True)
class PrincipalAxes:
    """The directions in which rows differ most, the first one first.

    Attributes:
        mean: mean of all rows.
        directions: one column of length one per component, orthogonal. Its largest entry is positive, so
            that the same rows always have the same scores.
        variances: variance of the rows in each direction.
        total: variance of the rows in all directions together.
    """

    mean: Float64[np.ndarray, " dim"]
    directions: Float64[np.ndarray, "dim k"]
    variances: Float64[np.ndarray, " k"]
    total: float

    def scores(self, rows: Float32[np.ndarray, "n dim"]) -> Float64[np.ndarray, "n k"]:
        """Return how far each row lies from the mean in each direction."""
        found: np.ndarray = (rows - self.mean) @ self.directions
        return found


@dataclass(frozen=True)
class PatchColors:
    """Images as their principal components show them, one entry per image.

    Attributes:
        maps: RGB per patch of the whole grid: the first three components are red, green and blue. Black where
            a mask is not, and on padding.
        scores: all components per patch of the whole grid; NaN where the map is black for that reason.
        explained: share of the variance of the coloured patches that each component holds.
    """

    maps: tuple[UInt8[np.ndarray, "_ _ 3"], ...]
    scores: tuple[Float32[np.ndarray, "_ _ _"], ...]
    explained: tuple[float, ...]


def pca_maps(
    features: Sequence[Features],
    *,
    masks: Sequence[Bool[np.ndarray, " _"]] | None = None,
    components: int = CHANNELS,
) -> PatchColors:
    """Colour the patches of several images by the principal components of all of them together.

    Each of the first three components becomes a colour: its 2nd percentile over the patches of all images is
    dark, its 98th bright, and what lies beyond is cut off. Where the two coincide all patches are mid-grey.

    Args:
        features: features of the images, from one model.
        masks: for each image the patches of its grid to look at, row-major; None: all that lie on the image.
        components: how many components to return, at least three.

    Raises:
        ArgumentError: no image, not one mask per image and one entry per patch, or too few or too many
            components.
        MatchError: the features come from different models or are not finite, or no patch is left.

    Source: Oquab et al., "DINOv2", 2023, section 7.6, with percentiles instead of minimum and maximum.
    """
    dim = features[0].patch_tokens.shape[1] if features else CHANNELS
    if not CHANNELS <= components <= dim:
        raise ArgumentError(f"components is {components}; wanted {CHANNELS} to {dim}, the descriptor length")
    cells = [
        grid_cells & mask
        for grid_cells, mask in zip(visible_cells(features), _checked(masks, features), strict=True)
    ]
    rows = [part[chosen] for part, chosen in zip(descriptors(features), cells, strict=True)]
    if not sum(map(len, rows)):
        raise MatchError(
            "the masks leave no patch of any image", hint="widen the masks, or colour without them"
        )
    axes = principal_axes(rows, components)
    scores = [axes.scores(part) for part in rows]
    low, high = np.percentile(np.concatenate(scores)[:, :CHANNELS], [LOW, HIGH], axis=0)
    flat = high - low < FLAT**0.5
    maps, placed = [], []
    for one, part, chosen in zip(features, scores, cells, strict=True):
        shares = np.where(flat, 0.5, (part[:, :CHANNELS] - low) / np.where(flat, 1, high - low))
        shape = (one.grid.rows, one.grid.cols, -1)
        colors = np.zeros((len(chosen), CHANNELS), np.uint8)
        colors[chosen] = np.rint(255 * shares.clip(0, 1)).astype(np.uint8)
        values = np.full((len(chosen), components), np.nan, np.float32)
        values[chosen] = part
        maps.append(colors.reshape(shape))
        placed.append(values.reshape(shape))
    explained = axes.variances / axes.total if axes.total > FLAT else np.zeros(components)
    return PatchColors(tuple(maps), tuple(placed), tuple(float(share) for share in explained))


def principal_axes(rows: Sequence[Float32[np.ndarray, "_ dim"]], count: int) -> PrincipalAxes:
    """Return the first directions of all rows together: eigenvectors of their covariance, in fp64.

    Args:
        rows: descriptors of each image; images may have different numbers of them, or none.
        count: how many directions.
    """
    total_rows = sum(map(len, rows))
    dim = rows[0].shape[1]
    mean = np.sum([part.sum(axis=0, dtype=np.float64) for part in rows], axis=0) / total_rows
    covariance = np.zeros((dim, dim))
    for part in rows:  # image by image: all of them in fp64 at once could fill the memory
        centred = part - mean
        covariance += centred.T @ centred
    covariance /= total_rows
    variances, directions = np.linalg.eigh(covariance)
    main = directions[:, ::-1][:, :count]
    loudest = np.take_along_axis(main, np.abs(main).argmax(axis=0)[None], axis=0)
    return PrincipalAxes(
        mean=mean,
        directions=main * np.sign(loudest),
        variances=variances[::-1][:count].clip(min=0),
        total=float(np.trace(covariance)),
    )


def descriptors(features: Sequence[Features]) -> list[Float32[np.ndarray, "_ dim"]]:
    """Return the local descriptors of each image, in main memory.

    Raises:
        ArgumentError: there is no image.
        MatchError: they differ in length, or hold values that are not finite.
    """
    if not features:
        raise ArgumentError("there is no image; wanted at least one")
    dims = sorted({one.patch_tokens.shape[1] for one in features})
    if len(dims) > 1:
        raise MatchError(
            f"the images have descriptors of different length: {' and '.join(map(str, dims))}",
            hint="encode all images with the same model",
        )
    rows: list[np.ndarray] = [one.local_descriptors.cpu().numpy() for one in features]
    if not all(np.isfinite(part).all() for part in rows):
        raise MatchError("the features hold values that are not finite", hint="use --precision fp32")
    return rows


def visible_cells(features: Sequence[Features]) -> list[Bool[np.ndarray, " _"]]:
    """Say for each image which patches lie on it, row-major.

    Raises:
        MatchError: no patch of an image does.
    """
    cells = [one.grid.inside() for one in features]
    for index, visible in enumerate(cells):
        if not visible.any():
            raise MatchError(f"no patch of image {index} has its centre on the image")
    return cells


def _checked(
    masks: Sequence[Bool[np.ndarray, " _"]] | None, features: Sequence[Features]
) -> list[Bool[np.ndarray, " _"]]:
    """Return one mask per image, all true where none are given."""
    sizes = [one.grid.n_patches for one in features]
    if masks is None:
        return [np.ones(size, bool) for size in sizes]
    if [len(mask) for mask in masks] != sizes:
        raise ArgumentError(
            f"the masks have {', '.join(str(len(mask)) for mask in masks)} patches; "
            f"wanted one mask per image, of {', '.join(map(str, sizes))} patches"
        )
    return list(masks)
