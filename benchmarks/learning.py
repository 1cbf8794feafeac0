"""Does training learn? Nearest-neighbour accuracy against images seen, beside raw pixels and random weights.

    python benchmarks/learning.py shapes [--out runs/shapes]
    python benchmarks/learning.py photos --train pool-00.zip pool-01.zip --knn imagenette128.zip KEY=VALUE...
    python benchmarks/learning.py distill --teacher runs/shapes [--out runs/small]

The first trains the preset `tiny` on the built-in drawn shapes and measures on shapes of another seed. The
second trains on photos without labels, and measures on labelled ones that training never sees. Random weights
are those that the run starts from; raw pixels are compared by cosine after their mean was taken off. The
third lets a student guess the tokens of the first, live and then from a cache of four views, for the same
images; it measures both on unseen shapes, and how many images a second they take. The same command goes on
with an interrupted run; `--minutes` interrupts it.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from setting import describe_setting

from dinov2kit.knn import classify
from dinov2kit.normalising import Normalisation
from dinov2kit.train import fit, read_distill_settings, read_train_settings
from dinov2kit.train.drawn_shapes import KINDS, DrawnShapes
from dinov2kit.train.metrics import read_metrics
from dinov2kit.weights import load_model

BANK, QUERIES, K = 5000, 2000, 20


def score_shapes(model: str) -> float:
    """Return the share of unseen shapes that their neighbours tell, from class tokens."""
    vit, normalise, sides = load_model(model).vit, Normalisation(), []
    for images, count in ((DrawnShapes(), BANK), (DrawnShapes(QUERIES, seed=1), QUERIES)):
        pixels = torch.from_numpy(np.stack([images.read(i) for i in range(count)]))
        with torch.no_grad():
            rows = [vit(normalise.apply(part)).class_token for part in pixels.split(500)]
        labels = np.array([KINDS.index(label) for label in images.labels[:count]])
        sides.append((torch.cat(rows).numpy(), labels))
    (bank, known), (queries, truth) = sides
    return float(np.mean(classify(bank, known, queries, ks=(K,))[K][:, 0] == truth))


def show(run: Path) -> None:
    lines = read_metrics(run)
    train = [line for line in lines if line["kind"] == "train"]
    for line in lines:
        if line["kind"] == "eval":
            before = [one for one in train if one["step"] <= line["step"]][-1:]
            share = before[0].get("loss_over_lnk") if before else None
            loss = "" if share is None else f"loss/ln K {share:.3f}"
            pixels = f"  raw pixels {line['knn_pixels']:.3f}" if "knn_pixels" in line else ""
            scores = f"kNN {line['knn']:.3f}, RankMe {line['rankme']:5.1f}"
            alike = "".join(
                f"  {name.removesuffix('_cosine')} cosine {line[name]:.3f}"
                for name in ("class_token_cosine", "patch_tokens_cosine")
                if name in line
            )
            print(f"{line['images']:9,} images: {scores}  {loss}{alike}{pixels}")
        elif line["kind"] == "diagnosis":
            print(f"{line['images']:9,} images: {line['code']}" + (" is past" if line["cleared"] else ""))
    speed = np.median([line["images_per_second"] for line in train])
    print(f"{speed:,.0f} images/s, {train[-1]['memory_bytes'] / 1e9:.2f} GB")


def distill(arguments: argparse.Namespace) -> None:
    """Let a student guess a teacher of drawn shapes, asked live and from disk."""
    defaults = {
        "data": "drawn-shapes:10000",
        "student": "vitn4",
        "distill.by": "features",
        "distill.views": "4",
        "crops.global_size": "24",
        "crops.global_scale": "[0.65,1.0]",
        "batch": "128",
        "images": "50000",
        "optim.lr": "5e-3",
        "distill.hidden": "0",
        "eval.every": "0.25",
        "scale.compile": "off",
    }
    given = dict(setting.split("=", 1) for setting in arguments.settings)
    settings = [f"{key}={value}" for key, value in {**defaults, **given}.items()]
    settings.append(f"teacher={arguments.teacher}")
    for name, more in (("live", []), ("cached", [f"distill.cache={arguments.out}/cache"])):
        out = arguments.out / name
        started = time.perf_counter()
        (resolved,) = read_distill_settings([*settings, *more, f"out={out}"])
        report = fit(resolved)
        print(
            f"{name}: {report.images:,} images in {time.perf_counter() - started:.0f} s with all measurements"
        )
        show(out)
        print(f"unseen shapes, bank {BANK}: student {score_shapes(str(out)):.3f}")
    print(f"unseen shapes, bank {BANK}: teacher {score_shapes(arguments.teacher):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=("shapes", "photos", "distill"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--train", nargs="+", default=[])
    parser.add_argument("--knn")
    parser.add_argument("--teacher", default="runs/learning")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    arguments = parser.parse_intermixed_args()
    print(describe_setting())
    if arguments.kind == "distill":
        distill(arguments)
        return
    settings = [f"out={arguments.out}", *arguments.settings]
    if arguments.kind == "shapes":
        settings += ["data=drawn-shapes"]
    else:
        settings += [f"data=[{','.join(arguments.train)}]", f"eval.knn={arguments.knn}"]
    end = time.monotonic() + 60 * arguments.minutes
    report = fit(read_train_settings(settings), stop=lambda: time.monotonic() > end)
    show(arguments.out)
    print(f"{report.state} after {report.images:,} images, {report.seconds:,.0f} s in this sitting")
    if arguments.kind == "shapes":
        random = score_shapes("untrained:vitn4")
        print(
            f"unseen shapes, bank {BANK}: random {random:.3f}, trained {score_shapes(str(arguments.out)):.3f}"
        )


if __name__ == "__main__":
    main()
