"""The pictures of a matched pair, in every style, and its dense flow in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from numpy import ndarray

from dinov2kit.dense import Kind, dense_flow
from dinov2kit.draw import FORMATS, draw_dots, draw_matches, write_image
from dinov2kit.errors import ArgumentError
from dinov2kit.flow_files import SUFFIXES as FLOWS
from dinov2kit.flow_files import write_flow
from dinov2kit.flow_pictures import draw_flow, draw_grid, draw_warp
from dinov2kit.images import read_image
from dinov2kit.matching import match_all, similarity_map
from dinov2kit.pair_files import TABLES, check_suffix
from dinov2kit.pairs import MatchedPair
from dinov2kit.pictures import draw_heat, draw_pca
from dinov2kit.principal import pca_maps
from dinov2kit.warping import DenseFlow, swap_object, warp_to_0


def check_outputs(
    tables: list[Path], picture: Path | None, flow: Path | None = None, *, overwrite: bool
) -> None:
    """Refuse, before any work, files that could not be written after it.

    Args:
        tables: where `write_pair` will write.
        picture: where `draw_pair` will write, if anywhere.
        flow: where `write_pair_flow` will write, if anywhere.
        overwrite: whether existing files may be replaced.

    Raises:
        ArgumentError: a file exists, its folder does not, or its suffix is no format for it.
    """
    wanted: list[tuple[Path | None, str, tuple[str, ...]]] = [(table, "matches", TABLES) for table in tables]
    wanted += [(picture, "a picture", tuple(FORMATS)), (flow, "a flow", FLOWS)]
    for path, content, suffixes in wanted:
        if path is None:
            continue
        check_suffix(path, content, suffixes)
        if path.exists() and not overwrite:
            raise ArgumentError(f"{path} exists already", hint="name another file, or add --overwrite")
        if not path.parent.is_dir():
            raise ArgumentError(f"cannot write {path}: there is no folder {path.parent}")


def pair_flow(pair: MatchedPair, kind: Kind = "smooth") -> DenseFlow:
    """Return for every pixel of image 0 where it lies in image 1."""
    mask0, mask1 = pair.masks
    matches, grid0 = match_all(*pair.features, mask0=mask0, mask1=mask1, spec=pair.spec.matching)
    wanted = None if mask0 is None else mask0[pair.features[0].grid.inside()]
    return dense_flow(matches, grid0, kind=kind, mask0=wanted)


def write_pair_flow(pair: MatchedPair, path: Path, kind: Kind = "smooth") -> DenseFlow:
    """Write the flow from image 0 to image 1, and return it.

    Args:
        pair: what `match_images` returned.
        path: .flo or .npy hold the flow (height, width, 2) in pixels; .npz holds also its `certainty`, where
            it is `valid`, and `unit_grid`, the places in image 1 from -1 to 1 that `torch.grid_sample` takes.
        kind: how it is filled between the patches, see `dense_flow`.

    Raises:
        ArgumentError: the suffix is unknown, or the folder cannot be written.
    """
    check_suffix(path, "a flow", FLOWS)
    flow, grid1 = pair_flow(pair, kind), pair.features[1].grid
    beside = {}
    if path.suffix.lower() == ".npz":
        unit_grid = flow.to_unit_grid(grid1.width, grid1.height)
        beside = {"certainty": flow.certainty, "valid": flow.valid, "unit_grid": unit_grid}
    write_flow(path, flow.flow, **beside)
    return flow


def draw_pair(
    pair: MatchedPair, path: Path, *, style: str = "lines", num: int = 15, labels: bool = False
) -> None:
    """Draw the two images of a pair and what was found of them, and write the picture.

    Args:
        pair: what `match_images` returned.
        path: its suffix is the format.
        style: one of `STYLES`.
        num: how many matches to draw at most.
        labels: write the names or numbers of the matches beside them.

    Raises:
        ImageError: an image cannot be read any more.
        ArgumentError: there is no such style, the pair has nothing to draw in it, the suffix of `path` is no
            image format, or the folder cannot be written.
    """
    if style not in STYLES:
        raise ArgumentError(f"unknown style {style!r}; wanted one of {', '.join(STYLES)}")
    image0, image1 = (read_image(source) for source in pair.paths)
    write_image(path, STYLES[style](pair, image0, image1, num, _labels(pair) if labels else ()))


def _labels(pair: MatchedPair) -> tuple[str, ...]:
    if pair.points is None:
        return tuple(str(place) for place in range(len(pair.matches)))
    return tuple(name or str(id_) for name, id_ in zip(pair.points.names, pair.points.ids, strict=True))


def _lines(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    geometry = pair.geometry
    inliers = geometry.inliers if geometry is not None and geometry.matrix is not None else None
    return draw_matches(
        image0, image1, pair.matches, num=num, title=pair.title, inliers=inliers, labels=labels
    )


def _dots(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    return draw_dots(image0, image1, pair.matches, num=num, title=pair.title, labels=labels)


def _heat(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    """Show the similarity of one point: the first given, else the most confident match."""
    found = pair.matches
    if not len(found):
        raise ArgumentError(
            "there is no match whose heat could be drawn", hint="name a point with --points x,y"
        )
    row = 0 if pair.points is not None else int(found.confidence.argmax())
    similarity, grid1 = similarity_map(*pair.features, found.keypoints0[row])
    return draw_heat(image0, image1, found.keypoints0[row], similarity, grid1, title=pair.title)


def _pca(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    colors = pca_maps(pair.features, masks=pair.foreground.masks)
    grids = [side.grid for side in pair.features]
    masks = [
        mask if mask is None else mask.reshape(g.rows, g.cols)
        for mask, g in zip(pair.masks, grids, strict=True)
    ]
    return draw_pca(
        [image0, image1],
        colors.maps,
        grids,
        captions=[path.name for path in pair.paths],
        explained=colors.explained,
        foregrounds=masks,
        title=pair.title,
    )


def _warp(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    flow = pair_flow(pair, "mesh")
    return draw_warp(image0, warp_to_0(image1, flow), flow.certainty, title=pair.title)


def _flow(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    return draw_flow(image0, pair_flow(pair).flow, title=pair.title)


def _grid(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    return draw_grid(image0, image1, pair_flow(pair).flow, title=pair.title)


def _swap(pair: MatchedPair, image0: ndarray, image1: ndarray, num: int, labels: tuple[str, ...]) -> ndarray:
    """Paint the object of image 1 over that of image 0; without a foreground, over all that finds back."""
    flow = pair_flow(pair, "mesh")
    return swap_object(image0, image1, flow, flow.valid)


Style = Callable[[MatchedPair, ndarray, ndarray, int, tuple[str, ...]], ndarray]

STYLES: dict[str, Style] = {
    "lines": _lines,
    "dots": _dots,
    "pca": _pca,
    "heat": _heat,
    "warp": _warp,
    "flow": _flow,
    "grid": _grid,
    "swap": _swap,
}
