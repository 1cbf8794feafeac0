"""Files in the layout of hloc (Hierarchical-Localization): lists of pairs, features and matches in HDF5.

A features file has a group per image, by its name: `keypoints` (n, 2) with the attribute `uncertainty` in
pixels, `descriptors` (dim, n), `scores` (n) and `image_size` (width, height). Our keypoints are the patch
centres that lie on the image, row-major, in the pixel frame, which is also that of hloc.

A matches file has a group `NAME0/NAME1` per pair, with "-" for every "/" of a name: `matches0` (n0), the row
of the keypoint of image 1 or -1, and `matching_scores0` (n0). We add `keypoints0` and `keypoints1` (n0, 2),
the places between the patches, `score` and `cycle_error`; hloc does not look at them.

A file that is there is never changed in place, because HDF5 loses all of it when that is cut short: a new one
is written beside it and takes its name.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Float32, Int32, Int64

from dinov2kit.errors import ArgumentError
from dinov2kit.features import Features
from dinov2kit.files import written_whole
from dinov2kit.grid import PatchGrid
from dinov2kit.matches import Matches

FEATURES, MATCHES = "dinokit.features/1", "dinokit.matches/1"  # schemas: what kind of file it is

Pair = tuple[str, str]
"""The names of image 0 and image 1: paths below a root, with "/" between folders."""


def read_pairs(path: Path) -> list[Pair]:
    """Read a list of pairs, one "NAME0 NAME1" a line; with a TAB between them, names may hold spaces.

    Raises:
        ArgumentError: the file cannot be read, is no UTF-8 text, or a line has not two names.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read the list of pairs {path}: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        names = [name.strip() for name in (line.split("\t") if "\t" in line else line.split())]
        if len(names) != 2 or not all(names):
            raise ArgumentError(
                f"{path}, line {number}, has not two names: {line.strip()!r}",
                hint="write NAME0 NAME1, with a TAB between names that hold spaces",
            )
        pairs.append((names[0], names[1]))
    return pairs


def distinct_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs without those that come again, either way round.

    Raises:
        ArgumentError: a name is no path below a root, or two names are one for hloc.
    """
    names: dict[str, str] = {}
    distinct: dict[Pair, None] = {}
    for pair in pairs:
        for name in pair:
            if not set(name.split("/")).isdisjoint({"", ".", ".."}):
                raise ArgumentError(
                    f"{name!r} in the list of pairs lies below no root; wanted a name like folder/photo.jpg"
                )
            other = names.setdefault(flat_name(name), name)
            if other != name:
                raise ArgumentError(
                    f"{other!r} and {name!r} in the list of pairs are both {flat_name(name)!r} in the layout "
                    "of hloc",
                    hint="rename one of them",
                )
        if pair[::-1] not in distinct:
            distinct[pair] = None
    return list(distinct)


def pair_key(name0: str, name1: str) -> str:
    """Return the name of the group of a pair."""
    return f"{flat_name(name0)}/{flat_name(name1)}"


def flat_name(name: str) -> str:
    """Return the name of an image as the key of a pair has it."""
    return _text(name).replace("/", "-")


def find_pair(
    file: h5py.Group, name0: str, name1: str
) -> tuple[Int64[np.ndarray, "n 2"], Float32[np.ndarray, " n"]] | None:
    """Find the matches of a pair, whichever of its two images was first; None: the file has not this pair.

    Returns:
        The rows of the keypoints of the image called `name0` and of the one called `name1`, in the order of
        image 0 of the file, and the confidence of each match.
    """
    for step, key in ((1, pair_key(name0, name1)), (-1, pair_key(name1, name0))):
        if key in file:
            answers = file[key]["matches0"][:]
            rows = np.flatnonzero(answers >= 0)
            ends = np.stack([rows, answers[rows].astype(np.int64)], axis=1)
            return ends[:, ::step], file[key]["matching_scores0"][:][rows].astype(np.float32)
    return None


def pair_keys(file: h5py.Group) -> list[str]:
    """Return the keys of all pairs in a matches file, sorted."""
    return sorted(f"{first}/{second}" for first in file for second in file[first])


def image_names(file: h5py.Group) -> list[str]:
    """Return the names of all images in a features file, sorted."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if "keypoints" in _members(item) else None)
    return sorted(names)


def one_to_one(matches: Matches, grid1: PatchGrid) -> Int32[np.ndarray, " n"]:
    """Return for each match the visible patch of image 1 that is nearest to it, or -1 for none.

    None is the answer for matches that are not kept, and for those whose patch a more confident match wants
    as well (of equals, the first has it): no patch of image 1 is the answer twice.
    """
    grid = grid1.visible()
    nearest = grid.cell_of(grid.to_cells(matches.keypoints1))
    kept = np.flatnonzero(matches.kept)
    ranked = kept[np.argsort(-matches.confidence[kept], kind="stable")]
    _, first = np.unique(nearest[ranked], return_index=True)
    answers = np.full(len(matches), -1, np.int32)
    answers[ranked[first]] = nearest[ranked[first]]
    return answers


def write_pair_group(
    file: h5py.Group, names: Sequence[str], grids: Sequence[PatchGrid], matches: Matches
) -> h5py.Group:
    """Write the matches of a pair, and return their group.

    Args:
        file: where to; it has not this pair.
        names: of image 0 and image 1.
        grids: where the patches of each lie, padding included.
        matches: one per keypoint of image 0. A row of `matches0` is a row of a features file when they are
            those of `match_all`: one per visible patch, row-major.
    """
    answers = one_to_one(matches, grids[1])
    confidence = np.where(answers >= 0, matches.confidence, 0)
    group = file.create_group(pair_key(*names))
    group["matches0"] = answers
    group["matching_scores0"] = confidence.astype(np.float16)
    for column in ("keypoints0", "keypoints1", "score", "cycle_error"):
        group[column] = getattr(matches, column)
    for side, (name, grid) in enumerate(zip(names, grids, strict=True)):
        group.attrs[f"name{side}"] = _text(name)
        group.attrs[f"image_size{side}"] = (grid.width, grid.height)
    return group


def write_image_group(file: h5py.Group, name: str, features: Features) -> h5py.Group:
    """Write the patches of an image that lie on it as keypoints with descriptors, and return their group.

    Raises:
        MatchError: no patch lies on the image.
    """
    grid = features.grid
    seen = grid.visible()
    descriptors = features.local_descriptors.cpu().numpy()[grid.inside()]
    group = file.create_group(name)
    group["keypoints"] = seen.centers()
    group["keypoints"].attrs["uncertainty"] = max(grid.cell_px) / 2
    group["descriptors"] = descriptors.T.astype(np.float16)
    group["scores"] = np.ones(seen.n_patches, np.float32)  # no detector has rated them
    group["image_size"] = np.array([grid.width, grid.height], np.int64)
    return group


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where they are not there.

    Raises:
        ArgumentError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot write to the folder {folder}: {error.strerror}") from error


@contextmanager
def new_file(path: Path, schema: str, facts: Mapping[str, object]) -> Iterator[h5py.File]:
    """Yield an empty file that becomes `path`, and is on the disk, when the block ends well.

    Args:
        path: where to; what is there stays until then. Only one program may write it.
        schema: what kind of file it is.
        facts: where its content comes from, for JSON.

    Raises:
        ArgumentError: the folder does not exist or cannot be written.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    with written_whole(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs["schema"], file.attrs["facts"] = schema, json.dumps(facts, sort_keys=True)
            yield file
        with temporary.open("rb") as written:
            os.fsync(written.fileno())


@contextmanager
def own_file(path: Path, schema: str) -> Iterator[tuple[h5py.File, dict[str, object]]]:
    """Yield a file that `new_file` wrote, for reading, and its facts.

    Raises:
        ArgumentError: it is damaged, or of another program or another kind.
    """
    with open_file(path) as file:
        if file.attrs.get("schema") != schema:
            raise ArgumentError(
                f"{path} is no {schema} file: another program or command wrote it", hint="name another file"
            )
        yield file, json.loads(file.attrs["facts"])


@contextmanager
def open_file(path: Path) -> Iterator[h5py.File]:
    """Yield an HDF5 file for reading.

    Raises:
        ArgumentError: it is not there, no HDF5, or cut off.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = "no such file" if not path.exists() else f"damaged, or no HDF5: {error}"
        raise ArgumentError(f"cannot read {path}: {reason}") from error
    with file:
        yield file


def _members(item: h5py.Group | h5py.Dataset) -> h5py.Group | tuple[()]:
    return item if isinstance(item, h5py.Group) else ()


def _text(name: str) -> str:
    """Return a name that HDF5 can hold: bytes that are no UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode()
