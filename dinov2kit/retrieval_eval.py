"""How well global descriptors find images, by the protocols of the public sets; the report says all.

A run that writes to `OUT` keeps its descriptors in the folder `OUT.partial`, and goes on there.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinov2kit.described_images import Shown, describe_images, open_cache
from dinov2kit.errors import ArgumentError, check_choice
from dinov2kit.files import written_whole
from dinov2kit.images import list_images
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.public_retrieval_sets import READERS
from dinov2kit.retrieval_sets import RetrievalSet, read_own_csv, read_own_folders
from dinov2kit.set_scores import score_set

SETS = (*READERS, "folders", "csv")
SCHEMA = "dinokit.eval-retrieval/1"


@dataclass(frozen=True)
class RetrievalSpec:
    """What is evaluated, and how it is counted.

    Attributes:
        dataset: one of `SETS`.
        root: its folder; for "csv" the table.
        ks: the k of recall@k; empty takes those of the set.
        distractors: a folder of images that match no query, searched as well; None for none.
        limit: how many queries to draw at random; 0 takes all, in order.
        seed: of what is drawn.

    Raises:
        ArgumentError: a choice is unknown or out of range.
    """

    dataset: str
    root: Path
    ks: tuple[int, ...] = ()
    distractors: Path | None = None
    limit: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("data set", self.dataset, SETS)
        if any(k < 1 for k in self.ks):
            raise ArgumentError(f"k is {min(self.ks)}; wanted 1 or more")
        if self.limit < 0:
            raise ArgumentError(f"limit is {self.limit}; wanted 0 or more queries")


def read_retrieval_set(spec: RetrievalSpec) -> RetrievalSet:
    """Return the queries and the index of a set, or those that are drawn.

    Raises:
        ImageError: a file of the layout is missing or damaged, or no query has a match.
    """
    readers: Mapping[str, Callable[[Path], RetrievalSet]] = {
        **READERS,
        "folders": read_own_folders,
        "csv": read_own_csv,
    }
    found = readers[spec.dataset](spec.root)
    if spec.limit and spec.limit < len(found.queries):
        drawn = np.random.default_rng(spec.seed).choice(len(found.queries), spec.limit, replace=False)
        found = replace(found, queries=tuple(found.queries[place] for place in np.sort(drawn)))
    if spec.distractors is not None:
        found = replace(found, index=(*found.index, *list_images([spec.distractors])))
    return found


def evaluate_retrieval(
    encoder: GlobalEncoder,
    spec: RetrievalSpec,
    *,
    chosen: RetrievalSet | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    workers: int = 0,
    batch_size: int = 0,
    advance: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Describe every image of a set, rank the index for each query by cosine, and count what is right.

    Args:
        encoder: the model.
        spec: what is evaluated.
        chosen: what `read_retrieval_set` returned, where it is known already.
        out: where the report goes, .json; an interrupted run goes on from what is beside it.
        cache: folder that keeps the descriptors, also for later runs.
        overwrite: replace a report that is there.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder, 0 for what suits it.
        advance: called with the path of each image.

    Returns:
        The report: every setting, the scores of each setup and group, what was left out, and each query.

    Raises:
        ImageError: the set cannot be read, or no query with a match is left.
        ArgumentError: the report exists already or cannot be written.
    """
    started = time.perf_counter()
    kept = open_cache(encoder.identity, cache=cache, out=out, overwrite=overwrite)
    chosen = read_retrieval_set(spec) if chosen is None else chosen
    shown = [Shown(query.path, query.box) for query in chosen.queries] + [
        Shown(path) for path in chosen.index
    ]
    described = describe_images(
        encoder, shown, cache=kept, workers=workers, batch_size=batch_size, advance=advance
    )
    report = {
        **_settings(encoder, spec, chosen),
        **score_set(chosen, described, ks=spec.ks or chosen.ks),
        "skipped": [{"path": str(path), "reason": reason} for path, reason in described.errors],
        "runtime_s": round(time.perf_counter() - started, 2),
    }
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(json.dumps({"schema": SCHEMA, **report}, indent=1) + "\n", encoding="utf-8")
        if cache is None and kept is not None:
            kept.drop()
    return report


def set_digest(chosen: RetrievalSet) -> str:
    """Return a digest of the names and the truth of a set, the same wherever its images lie."""
    digest = hashlib.sha256()
    for query in chosen.queries:
        matches = {grade: places.tolist() for grade, places in sorted(query.matches.items())}
        told = [os.fsencode(query.path.name).hex(), query.own, query.box, query.group, matches]
        digest.update(json.dumps(told).encode())
    for path in chosen.index:
        digest.update(os.fsencode(path.name) + b"\0")
    return digest.hexdigest()


def _settings(encoder: GlobalEncoder, spec: RetrievalSpec, chosen: RetrievalSet) -> dict[str, Any]:
    from dinov2kit import __version__

    identity = encoder.identity
    return {
        "version": __version__,
        "model": {"name": identity.name, "weights_sha256": identity.weights_sha256},
        "dim": identity.dim,
        "pooling": identity.pooling,
        "preprocess": dict(identity.preprocess),
        "dataset": spec.dataset,
        "root": str(spec.root),
        "ks": list(spec.ks or chosen.ks),
        "rule": chosen.rule,
        "distractors": None if spec.distractors is None else str(spec.distractors),
        "limit": spec.limit,
        "seed": spec.seed,
        "set_sha256": set_digest(chosen),
    }
