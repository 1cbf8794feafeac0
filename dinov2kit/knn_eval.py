"""How well the nearest labelled images tell what an image shows: the kNN protocol of DINO and DINOv2."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64

from dinov2kit.described_images import Shown, describe_images, open_cache
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.files import written_whole
from dinov2kit.knn import KS, TEMPERATURE, check_bank, classify, draw_shots
from dinov2kit.labelled_images import LabelledImage, read_labelled
from dinov2kit.pipeline import GlobalEncoder

SCHEMA = "dinokit.eval-knn/1"

Labels = Int64[np.ndarray, " n"]


@dataclass(frozen=True)
class KnnSpec:
    """What is evaluated, and how.

    Attributes:
        train: labelled images that vote, see `read_labelled`; the same as `val` where it holds both.
        val: labelled images that are classified.
        ks: how many neighbours vote; empty takes those of 10, 20, 100 and 200 that the bank has.
        temperature: of the softmax of the votes.
        shots: also with a bank of only so many images per class; each with the k up to it, and itself as k.
        tries: how often such a bank is drawn.
        seed: of the first draw.

    Raises:
        ArgumentError: a number is out of range.
    """

    train: Path
    val: Path
    ks: tuple[int, ...] = ()
    temperature: float = TEMPERATURE
    shots: tuple[int, ...] = ()
    tries: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if any(k < 1 for k in (*self.ks, *self.shots, self.tries)):
            raise ArgumentError(
                f"k {list(self.ks)}, shots {list(self.shots)}, tries {self.tries}; wanted 1 or more"
            )
        if not self.temperature > 0:
            raise ArgumentError(f"temperature is {self.temperature}; wanted above 0")


def read_knn_images(spec: KnnSpec) -> tuple[list[LabelledImage], list[LabelledImage]]:
    """Return the images that vote, and those that are classified.

    Raises:
        ImageError: one of them cannot be read.
        ArgumentError: both are the same images, one shows what no other does, or the bank is too small.
    """
    train, val = read_labelled(spec.train, "train"), read_labelled(spec.val, "val")
    if {image.path for image in train} & {image.path for image in val}:
        raise ArgumentError(
            f"{spec.train} holds no train/ and val/: the same images would vote for themselves",
            hint="name two folders: --train DIR --val DIR",
        )
    strange = sorted({image.label for image in val} - {image.label for image in train})
    if strange:
        raise ArgumentError(f"{spec.val} has classes that {spec.train} has not: {', '.join(strange[:5])}")
    check_bank(len(train), spec.ks or KS[:1])
    return train, val


def evaluate_knn(
    encoder: GlobalEncoder,
    spec: KnnSpec,
    *,
    images: tuple[Sequence[LabelledImage], Sequence[LabelledImage]] | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    workers: int = 0,
    batch_size: int = 0,
    device: torch.device | str = "cpu",
    advance: Callable[[Path], None] | None = None,
) -> dict[str, Any]:
    """Describe labelled images and count how often the neighbours of one name its class.

    Args:
        encoder: the model.
        spec: what is evaluated.
        images: what `read_knn_images` returned, where it is known already.
        out: where the report goes, .json; an interrupted run goes on from what is beside it.
        cache: folder that keeps the descriptors, also for later runs.
        overwrite: replace a report that is there.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder, 0 for what suits it.
        device: what compares descriptors.
        advance: called with the path of each image.

    Returns:
        The report: every setting, the accuracy for each k, and what was left out.

    Raises:
        ImageError: no image could be read.
        ArgumentError: the report exists already or cannot be written, or the bank has fewer images than k.
    """
    started = time.perf_counter()
    kept = open_cache(encoder.identity, cache=cache, out=out, overwrite=overwrite)
    train, val = read_knn_images(spec) if images is None else images
    shown = [Shown(image.path) for image in (*train, *val)]
    described = describe_images(
        encoder, shown, cache=kept, workers=workers, batch_size=batch_size, advance=advance
    )
    classes = sorted({image.label for image in train})
    numbers = {label: number for number, label in enumerate(classes)}
    labels = np.array([numbers[image.label] for image in (*train, *val)], np.int64)
    sides = [
        (described.rows[side][described.known[side]], labels[side][described.known[side]])
        for side in (slice(0, len(train)), slice(len(train), None))
    ]
    (bank, bank_labels), (queries, truth) = sides
    if not len(bank) or not len(queries):
        raise ImageError("no image of one of the two sides could be read")
    report = {
        **_settings(encoder, spec),
        "n_train": len(bank),
        "n_val": len(queries),
        "n_classes": len(classes),
        **_full(spec, bank, bank_labels, queries, truth, classes, device),
        "few_shot": {
            str(shots): few_shot(spec, shots, bank, bank_labels, queries, truth, device=device)
            for shots in spec.shots
        },
        "skipped": [{"path": str(path), "reason": reason} for path, reason in described.errors],
        "runtime_s": round(time.perf_counter() - started, 2),
    }
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(json.dumps({"schema": SCHEMA, **report}, indent=1) + "\n", encoding="utf-8")
        if cache is None and kept is not None:
            kept.drop()
    return report


def few_shot(
    spec: KnnSpec,
    shots: int,
    bank: Float[np.ndarray, "n dim"],
    labels: Labels,
    queries: Float[np.ndarray, "m dim"],
    truth: Int64[np.ndarray, " m"],
    *,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Return the accuracy with a bank of a few images per class: mean and standard deviation over the tries.

    Its k are those of the spec up to the number of shots, and that number.

    Raises:
        ArgumentError: the bank that is drawn has fewer images than k.
    """
    ks = sorted({k for k in spec.ks or KS if k <= shots} | {shots})
    tries: list[dict[int, dict[str, float]]] = []
    for number in range(spec.tries):
        rows = draw_shots(labels, shots, seed=spec.seed + number)
        found = classify(
            bank[rows], labels[rows], queries, ks=ks, temperature=spec.temperature, device=device
        )
        tries.append({k: accuracy(ranked, truth) for k, ranked in found.items()})
    return {
        str(k): {
            key: {f: float(getattr(np, f)([one[k][key] for one in tries])) for f in ("mean", "std")}
            for key in tries[0][k]
        }
        for k in ks
    }


def accuracy(ranked: Int64[np.ndarray, "m top"], truth: Int64[np.ndarray, " m"]) -> dict[str, float]:
    """Return the share of images whose class comes first or in five, and the first as mean over classes."""
    right = ranked == truth[:, None]
    return {
        "top1": float(right[:, 0].mean()),
        "top5": float(right.any(axis=1).mean()),
        "class_mean": float(np.mean([right[truth == label, 0].mean() for label in np.unique(truth)])),
    }


def _full(
    spec: KnnSpec,
    bank: Float[np.ndarray, "n dim"],
    labels: Labels,
    queries: Float[np.ndarray, "m dim"],
    truth: Int64[np.ndarray, " m"],
    classes: Sequence[str],
    device: torch.device | str,
) -> dict[str, Any]:
    """Return the accuracy with the whole bank, and at the best k that of each class."""
    ks = spec.ks or tuple(k for k in KS if k <= len(bank)) or KS[:1]
    found = classify(bank, labels, queries, ks=ks, temperature=spec.temperature, device=device)
    scores = {k: accuracy(ranked, truth) for k, ranked in found.items()}
    best = max(scores, key=lambda k: (scores[k]["top1"], -k))
    first = found[best][:, 0] == truth
    return {
        "knn": {str(k): facts for k, facts in scores.items()},
        "best": {"k": best, "top1": scores[best]["top1"]},
        "per_class": {classes[label]: float(first[truth == label].mean()) for label in np.unique(truth)},
    }


def _settings(encoder: GlobalEncoder, spec: KnnSpec) -> dict[str, Any]:
    from dinov2kit import __version__

    identity = encoder.identity
    return {
        "version": __version__,
        "model": {"name": identity.name, "weights_sha256": identity.weights_sha256},
        "dim": identity.dim,
        "pooling": identity.pooling,
        "preprocess": dict(identity.preprocess),
        "train": str(spec.train),
        "val": str(spec.val),
        "ks": list(spec.ks),
        "temperature": spec.temperature,
        "shots": list(spec.shots),
        "tries": spec.tries,
        "seed": spec.seed,
    }
