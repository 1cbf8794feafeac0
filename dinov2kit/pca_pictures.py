"""From image files to pictures of their principal components: what `dinokit pca` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from dinov2kit.draw import write_image
from dinov2kit.errors import ArgumentError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.files import written_whole
from dinov2kit.foreground import Foreground, find_foreground, read_foreground
from dinov2kit.grid import PatchGrid
from dinov2kit.identity import ModelIdentity
from dinov2kit.images import read_image
from dinov2kit.pair_pictures import check_outputs
from dinov2kit.pairs import LocalEncoder
from dinov2kit.pictures import draw_pca
from dinov2kit.principal import PatchColors, pca_maps

ColorMask = Literal["pca", "none"] | Sequence[Path]


@dataclass(frozen=True)
class PaintedImages:
    """Image files, the colours of their patches, and how these were made.

    Attributes:
        paths: the files.
        grids: where the patches of each lie in it.
        model: what encoded them.
        spec: which local descriptors were coloured.
        foreground: which patches were coloured.
        colors: their colours and scores.
        warnings: what may be wrong with the answer, in words.
        encode_seconds: time to encode all.
        color_seconds: time to find the foreground and the components.
    """

    paths: tuple[Path, ...]
    grids: tuple[PatchGrid, ...]
    model: ModelIdentity
    spec: FeatureSpec
    foreground: Foreground
    colors: PatchColors
    warnings: tuple[str, ...]
    encode_seconds: float
    color_seconds: float

    @property
    def title(self) -> str:
        """One line: how many images, the model."""
        count = len(self.paths)
        return f"{count} image{'s' * (count != 1)} · {self.model.name} at {self.spec.size} px"

    def summary(self) -> list[str]:
        """Return lines for a person: images and model, the foreground, what the colours hold, the time."""
        lines = [self.title]
        if self.foreground.masks is not None:
            shares = self.foreground.shares
            least, most = f"{min(shares):.0%}", f"{max(shares):.0%}"
            span = least if least == most else f"{least} to {most}"
            lines.append(f"foreground ({self.foreground.mode}): {span} of the images")
        red, green, blue = (f"{share:.0%}" for share in self.colors.explained)
        lines.append(f"variance explained: red {red}, green {green}, blue {blue}")
        lines.append(f"encoded in {self.encode_seconds:.1f} s · coloured in {self.color_seconds:.2f} s")
        return lines

    def to_json(self) -> dict[str, object]:
        """Return the document that `--json` prints, without its schema."""
        return {
            "images": [
                {
                    "path": str(path),
                    "width": grid.width,
                    "height": grid.height,
                    "patches": [grid.rows, grid.cols],
                }
                for path, grid in zip(self.paths, self.grids, strict=True)
            ],
            "model": {"name": self.model.name, "weights_sha256": self.model.weights_sha256},
            "features": self.spec.describe(),
            "explained": [round(share, 4) for share in self.colors.explained],
            "mask": {
                "mode": self.foreground.mode,
                "shares": [round(share, 4) for share in self.foreground.shares],
                "reason": self.foreground.reason,
            },
            "warnings": list(self.warnings),
            "seconds": {"encode": round(self.encode_seconds, 3), "color": round(self.color_seconds, 3)},
        }


def paint_images(
    encoder: LocalEncoder,
    paths: Sequence[Path],
    *,
    mask: ColorMask = "pca",
    multi: bool = False,
    spec: FeatureSpec | None = None,
    advance: Callable[[Path], None] | None = None,
) -> PaintedImages:
    """Encode image files and colour their patches by the principal components of all of them together.

    Args:
        encoder: the model.
        paths: image files.
        mask: what is coloured: "pca" the foreground that `find_foreground` finds, "none" everything, or what
            one mask file per image says.
        multi: keep every large part of a foreground, not only the largest of each image.
        spec: which local descriptors are wanted.
        advance: called after each image.

    Raises:
        ImageError: an image or a mask cannot be read, or a mask has another size than its image.
        ArgumentError: there is no image, not one mask file per image, or an option is out of range.
        MatchError: the descriptors are not finite, or the masks leave no patch.
    """
    spec = spec or FeatureSpec()
    start = time.perf_counter()
    features: list[Features] = []
    for path in paths:
        features.append(encoder.encode(path, spec))
        if advance is not None:
            advance(path)
    encoded = time.perf_counter()
    grids = tuple(one.grid for one in features)
    if mask == "pca":
        foreground = find_foreground(features, multi=multi)
    elif mask == "none":
        foreground = Foreground(None, "none", ())
    else:
        foreground = read_foreground(mask, grids)
    colors = pca_maps(features, masks=foreground.masks)
    return PaintedImages(
        paths=tuple(paths),
        grids=grids,
        model=encoder.identity,
        spec=spec,
        foreground=foreground,
        colors=colors,
        warnings=tuple(_doubts(encoder.identity.name, foreground)),
        encode_seconds=encoded - start,
        color_seconds=time.perf_counter() - encoded,
    )


def read_color_mask(text: str) -> ColorMask:
    """Read what a user wants coloured: "pca", "none", or mask files with commas between them."""
    if text == "pca":
        return "pca"
    if text == "none":
        return "none"
    return [Path(name) for name in text.split(",")]


def check_targets(picture: Path, folder: Path | None, paths: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse, before any work, files that could not be written after it.

    Args:
        picture: where `draw_painted` will write.
        folder: where `write_maps` will write, if anywhere.
        paths: the image files.
        overwrite: whether existing files may be replaced.

    Raises:
        ArgumentError: a file exists, its folder does not, or its suffix is no format for a picture.
    """
    check_outputs([], picture, overwrite=overwrite)
    if folder is None:
        return
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"{folder} is a file; wanted a folder for the maps")
    written = [path for pair in _map_files(folder, paths) for path in pair if path.exists()]
    if written and not overwrite:
        raise ArgumentError(f"{written[0]} exists already", hint="name another folder, or add --overwrite")


def write_maps(painted: PaintedImages, folder: Path) -> None:
    """Write for each image its colours, a pixel per patch, as .png, and its scores (rows, cols, 3) as .npy.

    The folder is made if need be. The names begin with the number of the image, from 0, since images of
    several folders may have the same name.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    files = _map_files(folder, painted.paths)
    for (picture, table), colors, scores in zip(
        files, painted.colors.maps, painted.colors.scores, strict=True
    ):
        write_image(picture, colors)
        with written_whole(table) as temporary, temporary.open("wb") as file:
            np.save(file, scores)


def draw_painted(painted: PaintedImages, path: Path) -> None:
    """Draw all images beside their colours, and write the picture.

    Raises:
        ImageError: an image cannot be read any more.
        ArgumentError: the suffix of `path` is no image format, or the folder cannot be written.
    """
    masks = painted.foreground.masks or [None] * len(painted.paths)
    sheet = draw_pca(
        [read_image(source) for source in painted.paths],
        painted.colors.maps,
        painted.grids,
        [source.name for source in painted.paths],
        painted.colors.explained,
        [
            None if mask is None else mask.reshape(grid.rows, grid.cols)
            for mask, grid in zip(masks, painted.grids, strict=True)
        ],
        title=painted.title,
    )
    write_image(path, sheet)


def _map_files(folder: Path, paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    width = len(str(len(paths) - 1))
    names = [f"{index:0{width}d}-{path.stem}" for index, path in enumerate(paths)]
    return [(folder / f"{name}.png", folder / f"{name}.npy") for name in names]


def _doubts(model: str, foreground: Foreground) -> list[str]:
    """Return what may be wrong with an answer, in words."""
    doubts = []
    if model.startswith("untrained"):
        doubts.append(
            f"{model} has random weights: these colours show that the program runs, not what it can do"
        )
    if foreground.mode == "class-similarity":
        doubts.append(f"the similarity to the class token says what is foreground: {foreground.reason}")
    elif foreground.reason is not None:
        doubts.append(f"no foreground was found, so everything is coloured: {foreground.reason}")
    return doubts
