"""Public sets of instance retrieval and copy detection, read as they are distributed. No image is opened."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dinov2kit.errors import ImageError
from dinov2kit.images import IMAGE_SUFFIXES
from dinov2kit.labelled_images import LabelledImage
from dinov2kit.plain_pickle import read_plain_pickle
from dinov2kit.retrieval_sets import Box, Places, Query, RetrievalSet, Setup, grouped

REVISITED = {
    "easy": Setup(("easy",), ("junk", "hard")),
    "medium": Setup(("easy", "hard"), ("junk",)),
    "hard": Setup(("hard",), ("junk", "easy")),
}
_NUMBER = re.compile(r"\d+")


def read_revisited(root: Path, name: str) -> RetrievalSet:
    """Read Revisited Oxford (roxford5k) or Paris (rparis6k): `gnd_NAME.pkl` and `jpg/`.

    Queries show their box only. What an image is graded for a query, easy, hard or junk, gives three setups.

    Args:
        root: the folder of both, or the one above it.
        name: "roxford5k" or "rparis6k".

    Raises:
        ImageError: a file is missing or damaged.

    Source: Radenovic et al., "Revisiting Oxford and Paris", CVPR 2018.
    """
    base = root if (root / f"gnd_{name}.pkl").exists() else root / name
    file = _needed(base, f"gnd_{name}.pkl")
    facts = read_plain_pickle(file)
    with _naming(file, "wanted imlist, qimlist and gnd with bbx, easy, hard and junk"):
        names, asked, truths = facts["imlist"], facts["qimlist"], facts["gnd"]
        if len(asked) != len(truths):
            raise ImageError(f"{file}: {len(asked)} queries, but {len(truths)} truths")
        queries = tuple(
            Query(
                _below(base / "jpg", f"{query}.jpg"),
                {grade: _places(truth[grade], len(names), file) for grade in ("easy", "hard", "junk")},
                box=_box(truth["bbx"]),
                group=str(query).rpartition("_")[0],
            )
            for query, truth in zip(asked, truths, strict=True)
        )
        index = tuple(_below(base / "jpg", f"{image}.jpg") for image in names)
    return RetrievalSet(name, index, queries, REVISITED, rule="trapezoid", ks=(1, 5, 10))


def read_holidays(root: Path) -> RetrievalSet:
    """Read INRIA Holidays: images named by number, in groups of a hundred; the first of each group asks.

    The query is left out of its own answer. The images are in `root` or in `root/jpg`.

    Raises:
        ImageError: there are no such images.

    Source: Jegou et al., "Hamming Embedding and Weak Geometric Consistency for Large Scale Image Search",
        ECCV 2008.
    """
    folder = root / "jpg" if (root / "jpg").is_dir() else root
    index = [LabelledImage(path, str(int(path.stem) // 100)) for path in _numbered(folder)]
    queries = [image for image in index if int(image.path.stem) % 100 == 0]
    if not queries:
        raise ImageError(f"{folder} has no images named like 100000.jpg, which ask in Holidays")
    return grouped("holidays", index, queries, rule="trapezoid", ks=(1,))


def read_copydays(root: Path) -> RetrievalSet:
    """Read INRIA Copydays: `original/` is searched for what is in `strong/`, `jpegqual/Q/` and `crops/P/`.

    A copy and its original have the same number up to the last two digits. The folders of copies that are
    there are the groups.

    Raises:
        ImageError: there are no originals or no copies.

    Source: Douze et al., "Evaluation of GIST descriptors for web-scale image search", CIVR 2009.
    """
    index = [LabelledImage(path, str(int(path.stem) // 100)) for path in _numbered(_needed(root, "original"))]
    folders = [root / "strong"] + [
        folder
        for kind in ("jpegqual", "crops")
        for folder in sorted((root / kind).glob("*"), key=lambda folder: folder.name.zfill(4))
    ]
    copies = [(folder, path) for folder in folders for path in _numbered(folder)]
    if not copies:
        raise ImageError(f"{root} has no copies in strong/, jpegqual/ or crops/")
    places: dict[str, list[int]] = {}
    for place, image in enumerate(index):
        places.setdefault(image.label, []).append(place)
    queries = tuple(
        Query(
            path,
            {"match": np.array(places.get(str(int(path.stem) // 100), []), np.int64)},
            group=folder.relative_to(root).as_posix(),
        )
        for folder, path in copies
    )
    return RetrievalSet("copydays", tuple(image.path for image in index), queries, rule="trapezoid", ks=(1,))


def read_disc21(root: Path) -> RetrievalSet:
    """Read the development set of DISC21: `dev_queries_groundtruth.csv`, queries `Q*`, references `R*`.

    Queries are looked for in folders named `dev_queries*` or `queries*`, references in `references*` or
    `refs*`. The table has a query and its reference in each line, with or without a header; queries without a
    reference are distractors, which only the micro average precision sees.

    Raises:
        ImageError: the table or the images are missing, or it names an image that is not there.

    Source: Douze et al., "The 2021 Image Similarity Dataset and Challenge", 2021.
    """
    file = _needed(root, "dev_queries_groundtruth.csv")
    asked = _discs(root, "Q", ("dev_queries*", "queries*"))
    index = _discs(root, "R", ("references*", "refs*"))
    places = {path.stem: place for place, path in enumerate(index)}
    truth: dict[str, list[int]] = {}
    known = {path.stem for path in asked}
    with _naming(file, "wanted query_id,reference_id"), file.open(encoding="utf-8-sig", newline="") as opened:
        for row in csv.reader(opened):
            query, reference = (field.strip() for field in (*row, "")[:2])
            if query.startswith("Q") and reference:
                if query not in known:
                    raise ImageError(f"{file} names the query {query}, of which there is no image")
                truth.setdefault(query, []).append(places[reference])
    queries = tuple(
        Query(path, {"match": np.array(sorted(truth.get(path.stem, [])), np.int64)}) for path in asked
    )
    return RetrievalSet("disc21", tuple(index), queries, ks=(1, 10))


def read_cub200(root: Path) -> RetrievalSet:
    """Read the retrieval half of CUB-200-2011: `images.txt`, `image_class_labels.txt`, `images/`.

    The classes 101 to 200 ask for each other's images; the first hundred are for learning.

    Raises:
        ImageError: a file is missing or damaged.

    Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011; the split of Song et al., CVPR 2016.
    """
    files = [_needed(root, name) for name in ("images.txt", "image_class_labels.txt")]
    with _naming(files[1], "wanted the number of an image and of its class in each line"):
        classes = {number: int(label) for number, label in (line.split() for line in _lines(files[1]))}
    with _naming(files[0], "wanted the number and the path of an image in each line"):
        images = [
            LabelledImage(_below(root / "images", path), str(classes[number]))
            for number, path in (line.split(maxsplit=1) for line in _lines(files[0]))
            if classes[number] > 100
        ]
    return grouped("cub200", images, ks=(1, 2, 4, 8))


def read_products(root: Path) -> RetrievalSet:
    """Read the test half of Stanford Online Products: `Ebay_test.txt` and the images that it names.

    Raises:
        ImageError: the table is missing or damaged.

    Source: Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    file = _needed(root, "Ebay_test.txt")
    with _naming(file, "wanted image_id class_id super_class_id path"):
        rows = [line.split() for line in _lines(file)[1:]]
        images = [LabelledImage(_below(root, path), label) for _, label, _, path in rows]
    return grouped("sop", images, ks=(1, 10, 100, 1000))


def read_inshop(root: Path) -> RetrievalSet:
    """Read In-shop Clothes of DeepFashion: `list_eval_partition.txt`, in `Eval/` or not, and `img/`.

    Raises:
        ImageError: the table is missing or damaged.

    Source: Liu et al., "DeepFashion", CVPR 2016.
    """
    places = ("Eval/list_eval_partition.txt", "list_eval_partition.txt")
    file = next((root / place for place in places if (root / place).exists()), None)
    file = file or _needed(root, places[0])
    base = root / "Img" if (root / "Img" / "img").is_dir() else root
    with _naming(file, "wanted a count, a header, then path, item and train, query or gallery"):
        rows = [line.split() for line in _lines(file)[2:]]
        sides = {
            part: [LabelledImage(_below(base, path), item) for path, item, split in rows if split == part]
            for part in ("gallery", "query")
        }
    return grouped("inshop", sides["gallery"], sides["query"], ks=(1, 10, 20, 30))


@contextmanager
def _naming(path: Path, what: str) -> Iterator[None]:
    """Say in which file it was that something is missing or of another kind than it should be."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, OSError) as error:
        raise ImageError(f"{path}: {error!r}; {what}") from error


def _needed(root: Path, name: str) -> Path:
    path = root / name
    if not path.exists():
        raise ImageError(f"{path} is missing", hint=f"--root is the folder that holds {name}")
    return path


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _below(folder: Path, name: str) -> Path:
    """Return a file below a folder; a list may not lead elsewhere."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{name!r} leads out of {folder}")
    return folder / path


def _numbered(folder: Path) -> list[Path]:
    """Return the images of a folder whose names are numbers, sorted by them; none without a folder."""
    paths = folder.iterdir() if folder.is_dir() else ()
    found = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES and _NUMBER.fullmatch(path.stem)]
    return sorted(found, key=lambda path: int(path.stem))


def _discs(root: Path, letter: str, folders: Sequence[str]) -> list[Path]:
    """Return the images named by a letter and a number in the folders of some names, sorted by name."""
    found = {
        path.stem: path
        for pattern in folders
        for folder in root.glob(pattern)
        for path in folder.rglob(f"{letter}*")
        if path.suffix.lower() in IMAGE_SUFFIXES and _NUMBER.fullmatch(path.stem[1:])
    }
    if not found:
        raise ImageError(f"{root} has no images {letter}* in folders named {' or '.join(folders)}")
    return [found[stem] for stem in sorted(found)]


def _places(rows: Any, count: int, file: Path) -> Places:
    """Return places in the index, ascending, each once.

    Raises:
        ImageError: one is beyond it.
    """
    places: Places = np.unique(np.asarray(rows, np.int64).reshape(-1))
    if len(places) and not 0 <= places[0] <= places[-1] < count:
        raise ImageError(f"{file}: place {places[-1]} is not among {count} images")
    return places


def _box(numbers: Any) -> Box:
    left, top, right, bottom = (float(number) for number in numbers)
    return left, top, right, bottom


READERS: Mapping[str, Any] = {
    "roxford5k": lambda root: read_revisited(root, "roxford5k"),
    "rparis6k": lambda root: read_revisited(root, "rparis6k"),
    "holidays": read_holidays,
    "copydays": read_copydays,
    "disc21": read_disc21,
    "cub200": read_cub200,
    "sop": read_products,
    "inshop": read_inshop,
}
