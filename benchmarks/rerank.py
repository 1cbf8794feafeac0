"""What re-ranking by patches gains and costs: mean average precision before and after, by rule of order.

    python benchmarks/rerank.py --root DATA [--model mobilenet] [--size 320] [--first 20]

`multiview`: each photo of a place asks for the others of that place. `copydetect`: each blurred or inset copy
asks for its original among the originals. MobileNet needs `pip install
ai-edge-litert`; its global descriptor is then the 1,024 numbers of its own last layer.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from mobilenet import FILE, MobileNetEncoder
from setting import describe_setting

from dinov2kit import Encoder, FeatureSpec
from dinov2kit.images import load_picture
from dinov2kit.indexes import Hit, Question, rerank
from dinov2kit.indexes.query import Part
from dinov2kit.views import CenterCrop

RULES = {
    "as rerank does": lambda found, patches: found.score,
    "confidence": lambda found, patches: (
        found.score / max(found.hit.score, 1e-9) / (1 + found.inliers / patches)
    ),
    "matches": lambda found, patches: found.matches,
    "inliers, then score": lambda found, patches: found.inliers,
    "score + inlier share": lambda found, patches: found.hit.score + found.inliers / patches,
}


class Remembered:
    """Encodes each photo once in all."""

    def __init__(self, encoder) -> None:
        self.identity, self.encoder, self.known, self.seconds = encoder.identity, encoder, {}, 0.0

    def encode(self, source, spec=None):
        """Return the features of a photo."""
        if source not in self.known:
            start = time.perf_counter()
            self.known[source] = self.encoder.encode(source, spec)
            self.seconds += time.perf_counter() - start
        return self.known[source]


def global_descriptors(options: argparse.Namespace, encoder, paths: list[Path]) -> np.ndarray:
    if options.model != "mobilenet":
        return np.concatenate(
            [encoder.embed(load_picture(path, encoder.view).pixels[None]) for path in paths]
        )
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(options.root / FILE))
    network.allocate_tensors()
    entry, exit_ = network.get_input_details()[0]["index"], network.get_output_details()[0]["index"]
    rows = []
    for path in paths:
        network.set_tensor(entry, load_picture(path, CenterCrop()).pixels[None])
        network.invoke()
        rows.append(network.get_tensor(exit_).astype(np.float32).ravel())
    matrix = np.stack(rows)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def multiview(folder: Path, limit: int) -> tuple[list[Path], list[tuple[int, set[int], set[int]]]]:
    """Return the photos, and of each query its number, the right answers and what is no candidate."""
    listed = json.loads((folder / "groundtruth.json").read_text())
    places = [place for _, place in listed]
    asked = [
        (number, {other for other, it in enumerate(places) if it == place} - {number}, {number})
        for number, place in enumerate(places)
    ]
    return [folder / name for name, _ in listed], asked[:: max(1, len(asked) // limit)]


def copydetect(folder: Path, limit: int) -> tuple[list[Path], list[tuple[int, set[int], set[int]]]]:
    """Return the originals and the copies that ask; copies are no candidates."""
    truth = json.loads((folder / "groundtruth.json").read_text())
    originals = truth["originals"]
    hard = [copy for copy in truth["copies"] if copy[2] in ("blur_text", "inset")]
    copies = [(name, original) for name, original, _ in hard][:: max(1, len(hard) // limit)]
    excluded = set(range(len(originals), len(originals) + len(copies)))
    asked = [
        (number, {originals.index(original)}, excluded)
        for number, (_, original) in enumerate(copies, len(originals))
    ]
    return [folder / name for name in originals + [name for name, _ in copies]], asked


def average_precision(order: list[int], right: set[int]) -> float:
    ranks = [rank for rank, number in enumerate(order, 1) if number in right]
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(right)


def measure(options: argparse.Namespace, name: str, encoder) -> None:
    paths, asked = {"multiview": multiview, "copydetect": copydetect}[name](
        options.root / "retrieval" / name, options.limit
    )
    descriptors = global_descriptors(options, encoder, paths)
    remembered, spec = Remembered(encoder), FeatureSpec(size=options.size)
    before, after, used = [], {rule: [] for rule in RULES}, 0.0
    for number, right, excluded in asked:
        scores = descriptors @ descriptors[number]
        order = [int(other) for other in np.argsort(-scores, kind="stable") if other not in excluded]
        hits = [Hit(other, float(scores[other]), paths[other], 0, 0, None, False) for other in order]
        part = Part(descriptors[number], 1.0, paths[number], None, None)
        start = time.perf_counter()
        found = rerank(
            remembered,
            Question(part.descriptor, (part,)),
            hits[: options.first],
            features=spec,
            geometry=options.geometry,
        )
        used += time.perf_counter() - start
        patches = remembered.encode(paths[number], spec).grid.n_patches
        before.append(average_precision(order, right))
        for rule, key in RULES.items():
            ranked = sorted(found, key=lambda one: (-key(one, patches), -one.hit.score))
            new = [one.hit.id for one in ranked] + order[options.first :]
            after[rule].append(average_precision(new, right))
    pair = 1000 * (used - remembered.seconds) / (len(asked) * options.first)
    photo = 1000 * remembered.seconds / len(remembered.known)
    print(f"{name}: {len(asked)} queries, {photo:.0f} ms to encode a photo, {pair:.0f} ms to compare a pair")
    print(f"  {'before':>22} {np.mean(before):.4f}")
    for rule, values in after.items():
        better, worse = (np.sign(np.subtract(values, before)) == sign for sign in (1, -1))
        print(f"  {rule:>22} {np.mean(values):.4f}   {better.sum()} better, {worse.sum()} worse", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="the folder of the test data")
    parser.add_argument("--model", default="untrained:vitt14")
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--first", type=int, default=20, help="hits that are compared")
    parser.add_argument("--geometry", default="homography")
    parser.add_argument("--limit", type=int, default=120, help="queries of a set, at most about so many")
    parser.add_argument("--sets", nargs="+", default=["multiview", "copydetect"])
    options = parser.parse_args()
    print(describe_setting())
    print(f"{options.model} at {options.size} px, the first {options.first} by {options.geometry}; mAP")
    mobile = options.model == "mobilenet"
    encoder = MobileNetEncoder(options.root) if mobile else Encoder(options.model, precision="fp32")
    for name in options.sets:
        measure(options, name, encoder)


if __name__ == "__main__":
    main()
