"""Pairs of images with keypoints, read from data sets as they are distributed.

Each reader yields the pairs of one split in the order of the data set; images are not opened.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

from dinov2kit.errors import DependencyError, ImageError
from dinov2kit.files import written_whole
from dinov2kit.shapes import Keypoints

VOC = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
SPLITS = ("test", "val", "trn")
SPAIR_BUCKETS = {
    "viewpoint": "viewpoint_variation",
    "scale": "scale_variation",
    "truncation": "truncation",
    "occlusion": "occlusion",
}


@dataclass(frozen=True)
class KeypointPair:
    """Two images of the same kind of thing, and keypoints that are in both.

    Attributes:
        name: of the pair, unique in its set.
        path0: file of the source image.
        path1: file of the target image.
        keypoints0: (x, y) in pixels of the source.
        keypoints1: where they lie in the target, row by row.
        category: what both show.
        box1: left, top, right and bottom of the thing in the target; None where it is not known.
        buckets: how the pair is classed otherwise.
    """

    name: str
    path0: Path
    path1: Path
    keypoints0: Keypoints
    keypoints1: Keypoints
    category: str
    box1: tuple[float, float, float, float] | None = None
    buckets: Mapping[str, str] = field(default_factory=dict)


def read_spair(root: Path, split: str = "test") -> Iterator[KeypointPair]:
    """Read SPair-71k: `Layout/large/SPLIT.txt` and `PairAnnotation/SPLIT/*.json`.

    The annotation names hold a colon, which Windows cannot store; an underscore instead is taken as well.

    Raises:
        ImageError: a file of the layout is missing or damaged.

    Source: Min et al., "SPair-71k: A large-scale benchmark for semantic correspondence", 2019.
    """
    names = _lines(_needed(root, f"Layout/large/{split}.txt"))
    for name in names:
        folder = root / "PairAnnotation" / split
        file = next(
            (
                path
                for path in (folder / f"{name}.json", folder / f"{name.replace(':', '_')}.json")
                if path.exists()
            ),
            None,
        )
        file = file or _needed(root, f"PairAnnotation/{split}/{name}.json")
        facts = _json(file)
        with _naming(file, "wanted an annotation of a pair"):
            images = root / "JPEGImages" / facts["category"]
            pair = KeypointPair(
                name,
                images / facts["src_imname"],
                images / facts["trg_imname"],
                *_in_both(name, *(_points(facts[key], name) for key in ("src_kps", "trg_kps"))),
                category=facts["category"],
                box1=_box(facts["trg_bndbox"]),
                buckets={kind: str(facts[key]) for kind, key in SPAIR_BUCKETS.items() if key in facts},
            )
        yield pair


def read_pf_pascal(root: Path, split: str = "test") -> Iterator[KeypointPair]:
    """Read PF-PASCAL: the list of the split and the images below root.

    The list is `SPLIT_pairs.csv` (as ncnet has it) or `SPLIT_pairs_pf_pascal.csv` (as weakalign has it), in
    root, in `image_pairs` or in `PF-dataset-PASCAL`; the split "trn" may be called "train" there.
    Where the list has no coordinates they are read from `Annotations/CLASS/IMAGE.mat`. Rows that mirror an
    image, which augment the training list, are left out.

    Raises:
        ImageError: a file of the layout is missing or damaged.
        DependencyError: annotations have to be read and scipy is missing.

    Source: Ham et al., "Proposal Flow", PAMI 2018; the split of Han et al., "SCNet", ICCV 2017.
    """
    table = _pascal_list(root, split)
    for number, row in enumerate(_csv(table)):
        with _naming(table, f"row {number} (counted from 0)"):
            if row.get("flip", "0").strip() not in ("0", "0.0", ""):
                continue
            category = VOC[int(float(row["class"])) - 1]
            path0, path1 = (_below(root, row[key]) for key in ("source_image", "target_image"))
            if "XA" in row:
                sides = [
                    np.array([_numbers(row[f"X{side}"]), _numbers(row[f"Y{side}"])], np.float32).T
                    for side in "AB"
                ]
            else:
                sides = [_pascal_annotation(root, category, path.stem) for path in (path0, path1)]
            name = f"{number:04}:{path0.stem}-{path1.stem}:{category}"
            pair = KeypointPair(name, path0, path1, *_in_both(name, *sides), category)
        yield pair


def read_pf_willow(root: Path) -> Iterator[KeypointPair]:
    """Read PF-WILLOW: folders of ten images with ten keypoints each in .mat files, or the list of weakalign.

    Without a list every ordered pair of images of a folder is a pair: 900 in all. There are no splits.

    Raises:
        ImageError: a file of the layout is missing or damaged.
        DependencyError: annotations have to be read and scipy is missing.

    Source: Ham et al., "Proposal Flow", CVPR 2016.
    """
    names = ("test_pairs_pf.csv", "test_pairs.csv", "image_pairs/test_pairs.csv")
    table = next((root / name for name in names if (root / name).exists()), None)
    if table is not None:
        for number, row in enumerate(_csv(table)):
            with _naming(table, f"row {number} (counted from 0)"):
                path0, path1 = (_below(root, row[key]) for key in ("imageA", "imageB"))
                sides = [
                    np.array([[row[f"{axis}{side}{i}"] for axis in "XY"] for i in range(1, 11)], np.float32)
                    for side in "AB"
                ]
                category = path0.parent.name
                name = f"{number:04}:{path0.stem}-{path1.stem}:{category}"
                pair = KeypointPair(name, path0, path1, sides[0], sides[1], category)
            yield pair
        return
    top = root / "PF-dataset" if (root / "PF-dataset").is_dir() else root
    folders = sorted(folder for folder in top.iterdir() if any(folder.glob("*.mat"))) if top.is_dir() else []
    if not folders:
        raise ImageError(f"{root} has no folders of images with .mat files, and no test_pairs.csv")
    for folder in folders:
        points = {
            file.with_suffix(".png"): _mat(file, "pts_coord").T for file in sorted(folder.glob("*.mat"))
        }
        for (path0, side0), (path1, side1) in permutations(points.items(), 2):
            name = f"{folder.name}:{path0.stem}-{path1.stem}"
            yield KeypointPair(name, path0, path1, side0, side1, folder.name)


def read_pairs_json(root: Path) -> Iterator[KeypointPair]:
    """Read pairs of one's own: a JSON list, of objects with src, trg, src_kps and trg_kps.

    trg_bbox (left, top, right, bottom), category, set and buckets (an object) are taken where they are there.
    Images lie below the folder of the list, or in its folder `images`. A keypoint [null, null] is missing.

    Raises:
        ImageError: the file is missing or damaged, or an entry lacks something.
    """
    file = root if root.is_file() else _needed(root, "pairs.json")
    entries = _json(file)
    if not isinstance(entries, list):
        raise ImageError(f"{file} holds no list of pairs")
    for number, entry in enumerate(entries):
        with _naming(file, f"pair {number}; wanted src, trg, src_kps and trg_kps"):
            name = f"{number:05}:{Path(entry['src']).stem}-{Path(entry['trg']).stem}"
            sides = [_points(entry[key], name) for key in ("src_kps", "trg_kps")]
            buckets = {"set": entry["set"]} if "set" in entry else {}
            pair = KeypointPair(
                name,
                _own_image(file.parent, entry["src"]),
                _own_image(file.parent, entry["trg"]),
                *_in_both(name, *sides),
                category=str(entry.get("category", "")),
                box1=_box(entry["trg_bbox"]) if entry.get("trg_bbox") else None,
                buckets={kind: str(what) for kind, what in {**buckets, **entry.get("buckets", {})}.items()},
            )
        yield pair


def write_pairs_json(path: Path, pairs: Iterable[KeypointPair]) -> None:
    """Write pairs as `read_pairs_json` reads them, so that others can evaluate on the very same ones.

    Raises:
        ArgumentError: the folder cannot be written.
    """
    entries = [
        {
            "src": str(pair.path0.absolute()),
            "trg": str(pair.path1.absolute()),
            "src_kps": pair.keypoints0.tolist(),
            "trg_kps": pair.keypoints1.tolist(),
            "trg_bbox": pair.box1,
            "category": pair.category,
            "buckets": dict(pair.buckets),
        }
        for pair in pairs
    ]
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def _own_image(folder: Path, name: str) -> Path:
    plain, images = folder / name, folder / "images"
    return plain if plain.exists() or not images.is_dir() else images / name


def _in_both(name: str, side0: np.ndarray, side1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the keypoints that neither image lacks."""
    if len(side0) != len(side1):
        raise ImageError(f"pair {name}: {len(side0)} keypoints in the source and {len(side1)} in the target")
    both = np.isfinite(side0).all(axis=1) & np.isfinite(side1).all(axis=1)
    return side0[both], side1[both]


@contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    """Say in which file it was that something is missing or of another kind than it should be."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(f"{path}: {error!r}; {what}") from error


def _needed(root: Path, name: str) -> Path:
    path = root / name
    if not path.exists():
        raise ImageError(
            f"{path} is missing", hint=f"--root is the folder that holds {name.split('/')[0]} of the data set"
        )
    return path


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from error


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [{str(key).strip(): value for key, value in row.items()} for row in csv.DictReader(file)]


def _below(root: Path, name: str) -> Path:
    """Return an image of a list; lists name images from the data set's folder or from the one above it."""
    parts = Path(name.strip()).parts
    tried = [root.joinpath(*parts[skip:]) for skip in range(len(parts))]
    return next((path for path in tried if path.exists()), tried[0])


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(";") if part.strip()]


def _points(rows: Any, name: str) -> Keypoints:
    points = np.asarray(rows if len(rows) else np.zeros((0, 2)), np.float32)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ImageError(f"pair {name}: its keypoints are no list of [x, y]")
    return points


def _box(numbers: Any) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(number) for number in numbers)
    return left, top, right, bottom


def _pascal_list(root: Path, split: str) -> Path:
    words = ("train", "trn") if split == "trn" else (split,)
    names = [f"{word}_pairs{ending}.csv" for word in words for ending in ("", "_pf_pascal")]
    folders = (root, root / "image_pairs", root / "PF-dataset-PASCAL")
    found = next((folder / name for folder in folders for name in names if (folder / name).exists()), None)
    return found or _needed(root, names[0])


def _pascal_annotation(root: Path, category: str, stem: str) -> Keypoints:
    top = root / "PF-dataset-PASCAL" if (root / "PF-dataset-PASCAL").is_dir() else root
    return _mat(_needed(top, f"Annotations/{category}/{stem}.mat"), "kps")


def _mat(path: Path, key: str) -> np.ndarray:
    """Return an array of a MATLAB file as float32."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DependencyError(
            f"{path.name} is a MATLAB file, which needs scipy", hint="pip install 'dinov2kit[eval]'"
        ) from error
    try:
        return np.asarray(loadmat(path)[key], np.float32)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from error
