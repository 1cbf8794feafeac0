"""Matches for COLMAP: text files that its `feature_importer` and `matches_importer` read.

COLMAP puts the centre of the first pixel at (0.5, 0.5), so half a pixel is added here. It knows keypoints by
their rows, one list per image for all pairs: an image is matched at patch centres, up to half a patch beside
the places that a matches file holds as well.

    colmap feature_importer --database_path db --image_path ROOT --import_path OUT
    colmap matches_importer --database_path db --match_list_path OUT/matches.txt --match_type raw

Source: the manual of COLMAP, "Feature Detection and Extraction" and "Feature Matching and Geometric
Verification".
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from dinov2kit.errors import ArgumentError
from dinov2kit.files import written_whole
from dinov2kit.hloc import find_pair, flat_name, image_names, make_folder, open_file, pair_keys
from dinov2kit.shapes import Keypoints

LIST = "matches.txt"
HALF = 0.5  # of a pixel, from our frame to that of COLMAP
DIM = 128  # of a descriptor; COLMAP takes no other, and looks at none where matches are given


def export_colmap(
    features_file: Path, matches_file: Path, out: Path, *, overwrite: bool = False
) -> list[Path]:
    """Write the keypoints of each image and the matches of all pairs for COLMAP.

    Keypoints go to `NAME.txt`, in the folders that NAME has below the root; scale is 1, orientation 0 and the
    descriptors are zero. Pairs of an image with itself and pairs without matches, which COLMAP has no use
    for, are left out of `matches.txt`.

    Args:
        features_file: in the layout of hloc.
        matches_file: in the layout of hloc, made from these features.
        out: folder to write to; it is made if need be.
        overwrite: write into a folder that has something in it.

    Returns:
        The files written; `matches.txt` is the last.

    Raises:
        ArgumentError: the two files do not belong together, COLMAP cannot read a name, or the folder has
            something in it or cannot be written.
    """
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise ArgumentError(f"{out} is not empty", hint="name another folder, or add --overwrite")
    written = []
    with open_file(features_file) as features, open_file(matches_file) as matches:
        names = image_names(features)
        _check_names(names)
        counts = {name: len(features[name]["keypoints"]) for name in names}
        lines = list(_match_lines(matches, counts))  # before anything is written: it may refuse
        for name in names:
            path = out / f"{name}.txt"
            _write(path, _keypoint_lines(features[name]["keypoints"][:].astype(np.float32)))
            written.append(path)
    _write(out / LIST, iter(lines))
    return [*written, out / LIST]


def _keypoint_lines(keypoints: Keypoints) -> Iterator[str]:
    rest = " 1 0" + " 0" * DIM + "\n"
    yield f"{len(keypoints)} {DIM}\n"
    for x, y in keypoints + HALF:
        yield f"{x:.4f} {y:.4f}{rest}"


def _match_lines(matches: h5py.File, counts: dict[str, int]) -> Iterator[str]:
    """Yield the lines of `matches.txt`.

    Raises:
        ArgumentError: a pair has an image that has no features, or more keypoints than they have.
    """
    names = {flat_name(name): name for name in counts}
    for key in pair_keys(matches):
        flat0, flat1 = key.split("/")
        for flat in (flat0, flat1):
            if flat not in names:
                raise ArgumentError(
                    f"the features have no image {flat!r}, which the matches have",
                    hint="name the two files that one run wrote",
                )
        name0, name1 = names[flat0], names[flat1]
        ends = find_pair(matches, name0, name1)
        assert ends is not None  # the key is from the file
        rows = ends[0]
        if len(matches[key]["matches0"]) != counts[name0] or rows[:, 1].max(initial=-1) >= counts[name1]:
            raise ArgumentError(
                f"the matches of {name0!r} and {name1!r} do not fit their keypoints, of which there are "
                f"{counts[name0]} and {counts[name1]}",
                hint="name the two files that one run wrote",
            )
        if len(rows) and name0 != name1:
            yield f"{name0} {name1}\n"
            yield from (f"{row0} {row1}\n" for row0, row1 in rows)
            yield "\n"


def _check_names(names: list[str]) -> None:
    for name in names:
        parts = name.split("/")
        if any(part.isspace() for part in name) or name.startswith("#") or ".." in parts:
            raise ArgumentError(
                f"COLMAP cannot read the name {name!r}", hint="rename the image: no spaces, no # at the start"
            )
        if f"{name}.txt" == LIST:
            raise ArgumentError(f"an image called {name!r} would take the place of {LIST}", hint="rename it")
    flat = {flat_name(name) for name in names}
    if len(flat) < len(names):
        raise ArgumentError("two images have the same name once their folders are written with '-'")


def _write(path: Path, lines: Iterator[str]) -> None:
    make_folder(path.parent)
    with written_whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
