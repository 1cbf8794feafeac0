"""Pairs of animals made from AP-10K, a set of single images with poses.

The pairs are drawn at random with a seed, so two runs compare only on the same list: the report has its
digest, and `keypoint_sets.write_pairs_json` hands it on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from dinov2kit.errors import ImageError
from dinov2kit.keypoint_sets import KeypointPair
from dinov2kit.shapes import Keypoints

TEST, VAL, LEAST = (
    30,
    20,
    3,
)  # last images of a species for test, those before for val; common keypoints of a pair
TRAIN_PER_IMAGE = 50
ACROSS_SPECIES = 400  # pairs of a family
ACROSS_FAMILIES = {"test": 30, "val": 20}  # pairs of two families


@dataclass(frozen=True)
class _Animal:
    path: Path
    species: str
    family: str
    keypoints: Keypoints
    visible: np.ndarray
    box: tuple[float, float, float, float]


def read_ap10k(root: Path, split: str = "test", *, seed: int = 0) -> Iterator[KeypointPair]:
    """Make pairs from AP-10K: `annotations/ap10k-{train,val,test}-split1.json` and `data/*.jpg`.

    Images with one animal, no crowd, and three visible keypoints or more count. Of each species the last 30
    by name are for test, the 20 before for val. Pairs share three visible keypoints or more; they are of one
    species ("intra"), of two species of a family, or of two families, which the bucket `kind` says.

    Raises:
        ImageError: a file of the layout is missing or damaged.

    Source: the benchmark of Zhang et al., "Telling Left from Right" (GeoAware-SC), CVPR 2024.
    """
    rng = np.random.default_rng(seed)
    species: dict[str, list[_Animal]] = {}
    for animal in _animals(root):
        species.setdefault(animal.species, []).append(animal)
    parts = {
        name: _part(sorted(members, key=lambda animal: animal.path.name), split)
        for name, members in sorted(species.items())
    }
    families: dict[str, list[str]] = {}
    for name, members in parts.items():
        if members:
            families.setdefault(members[0].family, []).append(name)
    for name, members in parts.items():
        every = [(a, b) for a, b in combinations(members, 2) if _common(a, b)]
        limit = TRAIN_PER_IMAGE * len(members) if split == "trn" else len(every)
        yield from (_pair("intra", name, a, b) for a, b in _drawn(every, limit, rng))
    if split == "trn":
        return
    for family, names in families.items():
        between = [
            (a, b)
            for one, two in combinations(names, 2)
            for a in parts[one]
            for b in parts[two]
            if _common(a, b)
        ]
        yield from (_pair("cross-species", family, a, b) for a, b in _drawn(between, ACROSS_SPECIES, rng))
    for one, two in combinations(sorted(families), 2):
        sides = [[animal for name in families[family] for animal in parts[name]] for family in (one, two)]
        between = [(a, b) for a in sides[0] for b in sides[1] if _common(a, b)]
        drawn = _drawn(between, ACROSS_FAMILIES[split], rng)
        yield from (_pair("cross-family", f"{one}-{two}", a, b) for a, b in drawn)


def _animals(root: Path) -> Iterator[_Animal]:
    """Yield the animals that are alone in their image and show enough of themselves."""
    for part in ("train", "val", "test"):
        path = root / "annotations" / f"ap10k-{part}-split1.json"
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            kinds = {kind["id"]: kind for kind in document["categories"]}
            files = {image["id"]: image["file_name"] for image in document["images"]}
            counts = Counter(entry["image_id"] for entry in document["annotations"])
            for entry in document["annotations"]:
                points = np.asarray(entry["keypoints"], np.float32).reshape(-1, 3)
                visible = points[:, 2] > 0
                if counts[entry["image_id"]] > 1 or entry.get("iscrowd") or visible.sum() < LEAST:
                    continue
                left, top, width, height = entry["bbox"]
                kind = kinds[entry["category_id"]]
                yield _Animal(
                    path=root / "data" / files[entry["image_id"]],
                    species=kind["name"],
                    family=kind.get("supercategory", kind["name"]),
                    keypoints=points[:, :2],
                    visible=visible,
                    box=(float(left), float(top), float(left + width), float(top + height)),
                )
        except OSError as error:
            raise ImageError(
                f"{path} is missing", hint="--root is the folder with annotations/ and data/"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ImageError(f"{path} is no COCO document of AP-10K: {error!r}") from error


def _part(members: list[_Animal], split: str) -> list[_Animal]:
    test, rest = members[-TEST:], members[:-TEST]
    return {"test": test, "val": rest[-VAL:], "trn": rest[:-VAL]}[split]


def _common(one: _Animal, two: _Animal) -> bool:
    return int((one.visible & two.visible).sum()) >= LEAST


def _drawn(
    pairs: list[tuple[_Animal, _Animal]], limit: int, rng: np.random.Generator
) -> list[tuple[_Animal, _Animal]]:
    if len(pairs) <= limit:
        return pairs
    return [pairs[index] for index in np.sort(rng.choice(len(pairs), limit, replace=False))]


def _pair(kind: str, category: str, one: _Animal, two: _Animal) -> KeypointPair:
    both = one.visible & two.visible
    return KeypointPair(
        name=f"{kind}:{one.path.stem}-{two.path.stem}:{category}",
        path0=one.path,
        path1=two.path,
        keypoints0=one.keypoints[both],
        keypoints1=two.keypoints[both],
        category=category,
        box1=two.box,
        buckets={"kind": kind},
    )
