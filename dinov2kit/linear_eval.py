"""How well linear heads on frozen tokens tell what an image shows: the linear protocol of DINOv2."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dinov2kit.described_images import open_cache
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError
from dinov2kit.files import written_whole
from dinov2kit.knn_eval import accuracy
from dinov2kit.labelled_images import LabelledImage
from dinov2kit.labelled_rows import Side, describe_sides, read_sides, skipped
from dinov2kit.linear_head import LinearHead, TokenEncoder, write_head
from dinov2kit.linear_probe import RATES, HeadGroup, HeadKey, rank_classes, train_heads

SCHEMA = "dinokit.eval-linear/1"

_TOP = 5


@dataclass(frozen=True)
class LinearSpec:
    """What is evaluated, and how.

    Attributes:
        train: labelled images that heads learn from, see `read_labelled`.
        val: labelled images that choose the best head.
        test: labelled images that the best head is measured on; None: the score of the choice is reported,
            as the release does.
        layers: of how many of the last blocks heads see the class token.
        rates: learning rates for a batch of 256.
        steps: of SGD.
        batch: images in a step.
        views: of each training image: the whole, then random parts. The release draws a new part in every
            step; each view costs one more pass of the backbone.
        seed: of weights, order and parts.

    Raises:
        ArgumentError: a number is out of range.
    """

    train: Path
    val: Path
    test: Path | None = None
    layers: tuple[int, ...] = (1, 4)
    rates: tuple[float, ...] = RATES
    steps: int = 12_500
    batch: int = 128
    views: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if min(*self.layers, self.steps, self.batch, self.views) < 1 or min(self.rates) <= 0:
            raise ArgumentError(
                f"layers {list(self.layers)}, steps {self.steps}, batch {self.batch}, views {self.views}, "
                f"learning rates {list(self.rates)}; wanted 1 or more, and rates above 0"
            )

    @property
    def sources(self) -> dict[str, Path | None]:
        """The sides and where they are."""
        return {"train": self.train, "val": self.val, "test": self.test}


def read_linear_images(spec: LinearSpec) -> dict[str, list[LabelledImage]]:
    """Return the labelled images of each side.

    Raises:
        ImageError: one of them cannot be read.
        ArgumentError: they do not fit together, see `read_sides`.
    """
    return read_sides(spec.sources)


def evaluate_linear(
    encoder: Encoder,
    spec: LinearSpec,
    *,
    images: Mapping[str, Sequence[LabelledImage]] | None = None,
    out: Path | None = None,
    head: Path | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    workers: int = 0,
    batch_size: int = 0,
    advance: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Describe labelled images once, train all heads on what was described, and report the best.

    Args:
        encoder: the model.
        spec: what is evaluated.
        images: what `read_linear_images` returned, where it is known already.
        out: where the report goes, .json; what is beside it lets an interrupted run go on.
        head: where the best head goes, .safetensors; `read_head` reads it.
        cache: folder that keeps the tokens, also for later runs.
        overwrite: replace files that are there.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder, 0 for what suits it.
        advance: called with "image" for each view of an image, with "step" for each step of SGD.

    Returns:
        The report: every setting, the accuracy of every head, and the best one.

    Raises:
        ImageError: no image of a side could be read.
        ArgumentError: a file exists already or cannot be written, or the model has too few blocks.
    """
    started = time.perf_counter()
    if head is not None and head.exists() and not overwrite:
        raise ArgumentError(f"{head} exists already", hint="name another file, or add --overwrite")
    tokens = TokenEncoder(encoder, max(spec.layers))
    kept = open_cache(tokens.identity, cache=cache, out=out, overwrite=overwrite)
    told = advance or (lambda _: None)
    sides, classes = describe_sides(
        tokens,
        images or read_linear_images(spec),
        views=spec.views,
        seed=spec.seed,
        cache=kept,
        workers=workers,
        batch_size=batch_size,
        advance=lambda _: told("image"),
    )
    groups = train_heads(
        sides["train"].rows,
        sides["train"].labels,
        dim=encoder.dim,
        classes=len(classes),
        steps=spec.steps,
        batch=spec.batch,
        rates=spec.rates,
        layers=spec.layers,
        seed=spec.seed,
        device=encoder.device,
        advance=lambda: told("step"),
    )
    found = _measure(groups, sides, encoder.dim, classes)
    best: HeadKey = found.pop("key")
    report = {
        **_settings(encoder, spec),
        **{f"n_{name}": len(side.labels) for name, side in sides.items()},
        "n_classes": len(classes),
        **found,
        "skipped": skipped(sides),
        "runtime_s": round(time.perf_counter() - started, 2),
    }
    if head is not None:
        write_head(head, _head(groups, best, classes, encoder.identity.weights_sha256))
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(json.dumps({"schema": SCHEMA, **report}, indent=1) + "\n", encoding="utf-8")
        if cache is None and kept is not None:
            kept.drop()
    return report


def _measure(
    groups: Sequence[HeadGroup], sides: Mapping[str, Side], dim: int, classes: Sequence[str]
) -> dict[str, Any]:
    """Score every head on "val", choose the best, and score that on "test"."""
    val = sides["val"]
    ranked = rank_classes(groups, val.rows[0], dim=dim, top=_TOP)
    scores = {key: accuracy(rows, val.labels) for key, rows in ranked.items()}
    best = max(scores, key=lambda key: (scores[key]["top1"], -key.layers, -key.rate))
    truth, chosen = val.labels, ranked[best]
    facts: dict[str, Any] = {
        "key": best,
        "heads": [{**key._asdict(), "name": key.name, **score} for key, score in scores.items()],
        "best": {**best._asdict(), "name": best.name, **scores[best]},
    }
    if "test" in sides:
        truth = sides["test"].labels
        chosen = rank_classes(groups, sides["test"].rows[0], dim=dim, top=_TOP)[best]
        facts["test"] = accuracy(chosen, truth)
    facts["per_class"] = _per_class(chosen[:, 0], truth, classes)
    return facts


def _per_class(
    guesses: Int64[np.ndarray, " n"], truth: Int64[np.ndarray, " n"], classes: Sequence[str]
) -> dict[str, float]:
    right = guesses == truth
    return {classes[label]: float(right[truth == label].mean()) for label in np.unique(truth).tolist()}


def _head(groups: Sequence[HeadGroup], key: HeadKey, classes: Sequence[str], sha: str) -> LinearHead:
    (group,) = [each for each in groups if (each.layers, each.average) == (key.layers, key.average)]
    at = group.rates.index(key.rate)
    weight, bias = group.weight[at].cpu().contiguous(), group.bias[at].cpu().contiguous()
    return LinearHead(weight, bias, key.layers, key.average, tuple(classes), sha)


def _settings(encoder: Encoder, spec: LinearSpec) -> dict[str, Any]:
    from dinov2kit import __version__

    identity = encoder.identity
    return {
        "version": __version__,
        "model": {"name": identity.name, "weights_sha256": identity.weights_sha256},
        "dim": identity.dim,
        "preprocess": dict(identity.preprocess),
        **{name: None if path is None else str(path) for name, path in spec.sources.items()},
        "layers": list(spec.layers),
        "rates": list(spec.rates),
        "steps": spec.steps,
        "batch": spec.batch,
        "views": spec.views,
        "seed": spec.seed,
    }
