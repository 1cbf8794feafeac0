"""How well a logistic regression on class tokens tells what an image shows: the third protocol of DINOv2."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from dinov2kit.described_images import open_cache
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, DependencyError
from dinov2kit.files import written_whole
from dinov2kit.knn_eval import accuracy
from dinov2kit.labelled_images import LabelledImage
from dinov2kit.labelled_rows import Side, describe_sides, read_sides, skipped
from dinov2kit.linear_head import TokenEncoder, wanted_columns

SCHEMA = "dinokit.eval-logreg/1"

_GRID = tuple(float(10**power) for power in np.linspace(-6, 5, 45))
_HELD_OUT = 0.1  # of the training images, for the choice of C
_TOLERANCE = 1e-6  # of the gradient of the mean loss


@dataclass(frozen=True)
class LogregSpec:
    """What is evaluated, and how.

    Attributes:
        train: labelled images that are learned from, see `read_labelled`.
        val: labelled images that are classified.
        grid: values of C, the weight of the losses against the penalty; the best is chosen on a tenth of the
            training images, and learning starts anew with all.
        most: steps of L-BFGS for each.
        seed: of the tenth.

    Raises:
        ArgumentError: a number is out of range.
    """

    train: Path
    val: Path
    grid: tuple[float, ...] = _GRID
    most: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.grid or min(self.grid) <= 0 or self.most < 1:
            raise ArgumentError(f"C {list(self.grid)[:3]}, steps {self.most}; wanted above 0, and 1 or more")


@dataclass(frozen=True)
class Regression:
    """A logistic regression.

    Attributes:
        weight: one row for each class.
        bias: one number for each class.
        steps: of L-BFGS that it took.
        converged: whether it stopped because the gradient was small.
    """

    weight: Float64[np.ndarray, "classes dim"]
    bias: Float64[np.ndarray, " classes"]
    steps: int
    converged: bool

    def rank(self, rows: Float64[np.ndarray, "n dim"], top: int = 5) -> Int64[np.ndarray, "n top"]:
        """Return the best classes of each row, the best first."""
        logits = rows @ self.weight.T + self.bias
        best = np.argsort(-logits, axis=1, kind="stable")[:, : min(top, logits.shape[1])]
        return best.astype(np.int64)


def fit_regression(
    rows: Float64[np.ndarray, "n dim"],
    labels: Int64[np.ndarray, " n"],
    *,
    classes: int,
    c: float,
    most: int = 1000,
    start: Regression | None = None,
) -> Regression:
    """Minimise c * (sum of cross-entropies) + |weight|² / 2, biases free, by L-BFGS in fp64.

    Args:
        rows: of images.
        labels: their classes, from 0.
        classes: how many there are.
        c: weight of the losses.
        most: steps.
        start: where to begin; None for zeros.

    Raises:
        DependencyError: scipy is missing.

    Source: the objective of scikit-learn's LogisticRegression; Liu and Nocedal, 1989.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise DependencyError("eval logreg needs scipy", hint="pip install 'dinov2kit[eval]'") from error
    count, dim = rows.shape
    truth = np.eye(classes)[labels]

    def loss(flat: Float64[np.ndarray, " numbers"]) -> tuple[float, Float64[np.ndarray, " numbers"]]:
        weight, bias = flat[: classes * dim].reshape(classes, dim), flat[classes * dim :]
        logits = rows @ weight.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        log_shares = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        slope = (np.exp(log_shares) - truth) / count
        gradient = np.concatenate([(slope.T @ rows + weight / (c * count)).ravel(), slope.sum(axis=0)])
        return float(-(truth * log_shares).sum() / count + (weight**2).sum() / (2 * c * count)), gradient

    flat = np.zeros(classes * (dim + 1))
    if start is not None:
        flat = np.concatenate([start.weight.ravel(), start.bias])
    options = {"maxiter": most, "maxfun": 4 * most, "gtol": _TOLERANCE, "ftol": 0.0, "maxls": 50}
    done = minimize(loss, flat, jac=True, method="L-BFGS-B", options=options)
    weight, bias = done.x[: classes * dim].reshape(classes, dim), done.x[classes * dim :]
    return Regression(weight, bias, int(done.nit), bool(np.abs(done.jac).max() <= _TOLERANCE))


def read_logreg_images(spec: LogregSpec) -> dict[str, list[LabelledImage]]:
    """Return the labelled images of both sides.

    Raises:
        ImageError: one of them cannot be read.
        ArgumentError: they do not fit together, see `read_sides`.
    """
    return read_sides({"train": spec.train, "val": spec.val})


def evaluate_logreg(
    encoder: Encoder,
    spec: LogregSpec,
    *,
    images: Mapping[str, Sequence[LabelledImage]] | None = None,
    out: Path | None = None,
    cache: Path | None = None,
    overwrite: bool = False,
    workers: int = 0,
    batch_size: int = 0,
    advance: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Describe labelled images, choose C on a tenth of those that teach, learn from all, and classify.

    Args:
        encoder: the model; its class tokens are taken as they are, not normalised.
        spec: what is evaluated.
        images: what `read_logreg_images` returned, where it is known already.
        out: where the report goes, .json; what is beside it lets an interrupted run go on.
        cache: folder that keeps the tokens, also for later runs.
        overwrite: replace a report that is there.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per call of the encoder, 0 for what suits it.
        advance: called with "image" for each image, with "fit" for each regression.

    Raises:
        ImageError: no image of a side could be read.
        ArgumentError: the report exists already or cannot be written.
        DependencyError: scipy is missing.
    """
    started = time.perf_counter()
    tokens = TokenEncoder(encoder, 1)
    kept = open_cache(tokens.identity, cache=cache, out=out, overwrite=overwrite)
    told = advance or (lambda _: None)
    sides, classes = describe_sides(
        tokens,
        images or read_logreg_images(spec),
        cache=kept,
        workers=workers,
        batch_size=batch_size,
        advance=lambda _: told("image"),
    )
    train, val = (_tokens(sides[name], encoder.dim) for name in ("train", "val"))
    scores = choose_c(train, sides["train"].labels, spec, classes=len(classes), advance=lambda: told("fit"))
    best = max(scores, key=lambda c: (scores[c], -c))
    final = fit_regression(train, sides["train"].labels, classes=len(classes), c=best, most=spec.most)
    told("fit")
    report = {
        **_settings(encoder, spec),
        **{f"n_{name}": len(side.labels) for name, side in sides.items()},
        "n_classes": len(classes),
        "grid": [{"c": c, "top1": score} for c, score in scores.items()],
        "best": {"c": best, "steps": final.steps, "converged": final.converged},
        "val_scores": accuracy(final.rank(val), sides["val"].labels),
        "skipped": skipped(sides),
        "runtime_s": round(time.perf_counter() - started, 2),
    }
    if out is not None:
        with written_whole(out) as temporary:
            temporary.write_text(json.dumps({"schema": SCHEMA, **report}, indent=1) + "\n", encoding="utf-8")
        if cache is None and kept is not None:
            kept.drop()
    return report


def choose_c(
    rows: Float64[np.ndarray, "n dim"],
    labels: Int64[np.ndarray, " n"],
    spec: LogregSpec,
    *,
    classes: int,
    advance: Callable[[], None] | None = None,
) -> dict[float, float]:
    """Return for each C the share of a random tenth that is told right after learning from the others."""
    order = np.random.default_rng(spec.seed).permutation(len(rows))
    held = max(round(_HELD_OUT * len(rows)), 1)
    aside, rest = order[:held], order[held:]
    scores: dict[float, float] = {}
    found: Regression | None = None
    for c in sorted(spec.grid):
        found = fit_regression(rows[rest], labels[rest], classes=classes, c=c, most=spec.most, start=found)
        scores[c] = float((found.rank(rows[aside], 1)[:, 0] == labels[aside]).mean())
        if advance is not None:
            advance()
    return scores


def _tokens(side: Side, dim: int) -> Float64[np.ndarray, "n dim"]:
    return wanted_columns(side.rows[0], dim, 1, False).astype(np.float64)


def _settings(encoder: Encoder, spec: LogregSpec) -> dict[str, Any]:
    from dinov2kit import __version__

    identity = encoder.identity
    return {
        "version": __version__,
        "model": {"name": identity.name, "weights_sha256": identity.weights_sha256},
        "dim": identity.dim,
        "preprocess": dict(identity.preprocess),
        "train": str(spec.train),
        "val": str(spec.val),
        "most": spec.most,
        "seed": spec.seed,
    }
