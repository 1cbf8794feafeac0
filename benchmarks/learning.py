"""Does training learn? Nearest-neighbour accuracy against images seen, beside raw pixels and random weights.

    python benchmarks/learning.py shapes [--out runs/shapes]
    python benchmarks/learning.py photos --train pool-00.zip pool-01.zip --knn imagenette128.zip KEY=VALUE...

The first trains the preset `tiny` on the built-in drawn shapes and measures on shapes of another seed. The
second trains on photos without labels, and measures on labelled ones that training never sees. Random weights
are those that the run starts from; raw pixels are compared by cosine after their mean was taken off. The same
command goes on with an interrupted run; `--minutes` interrupts it.
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
from dinov2kit.train import fit, read_train_settings
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
            loss = f"loss/ln K {before[0]['loss_over_lnk']:.3f}" if before else ""
            pixels = f"  raw pixels {line['knn_pixels']:.3f}" if "knn_pixels" in line else ""
            scores = f"kNN {line['knn']:.3f}, RankMe {line['rankme']:5.1f}"
            print(f"{line['images']:9,} images: {scores}  {loss}{pixels}")
        elif line["kind"] == "diagnosis":
            print(f"{line['images']:9,} images: {line['code']}" + (" is past" if line["cleared"] else ""))
    speed = np.median([line["images_per_second"] for line in train])
    print(f"{speed:,.0f} images/s, {train[-1]['memory_bytes'] / 1e9:.2f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("kind", choices=("shapes", "photos"))
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--train", nargs="+", default=[])
    parser.add_argument("--knn")
    parser.add_argument("--out", type=Path, default=Path("runs/learning"))
    parser.add_argument("--minutes", type=float, default=math.inf)
    arguments = parser.parse_intermixed_args()
    print(describe_setting())
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
