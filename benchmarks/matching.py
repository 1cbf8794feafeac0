"""What matching costs, and how good it is on real pairs with known truth, beside SIFT.

    python benchmarks/matching.py cost
    python benchmarks/matching.py geometric --root DATA [--model NAME] [--adapter FILE]
    python benchmarks/matching.py semantic --root DATA [--model NAME] [--adapter FILE]

DATA is a folder with `geometric/pairs.json`, `keypoints/` and, for `--model mobilenet`, `peers/`: a trained
network of another kind, see mobilenet.py.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from mobilenet import MobileNetEncoder
from setting import describe_setting

from dinov2kit import Encoder, Features, FeatureSpec, PatchGrid
from dinov2kit.adapter import AdaptedEncoder, load_adapter
from dinov2kit.correspondence_eval import EvalSpec, evaluate_correspondence
from dinov2kit.images import read_image
from dinov2kit.keypoint_scores import errors
from dinov2kit.matching import MatchSpec, match, match_all
from dinov2kit.pairs import LocalEncoder

WITHIN = 14.0  # pixels of image B
RATIO = 0.8  # of Lowe's test
STEPS = {
    "argmax": MatchSpec(refine="none"),
    "parabola": MatchSpec(refine="parabola"),
    "soft-argmax": MatchSpec(refine="window"),
}


def open_encoder(options: argparse.Namespace) -> LocalEncoder:
    if options.model == "mobilenet":
        return MobileNetEncoder(options.root)
    encoder = Encoder(options.model, precision="fp32")
    return encoder if options.adapter is None else AdaptedEncoder(encoder, load_adapter(options.adapter))


def wanted_features(options: argparse.Namespace) -> FeatureSpec:
    spec = FeatureSpec(size=options.size)
    return spec if options.adapter is None else load_adapter(options.adapter).card.expects(spec)


def random_features(side: int, dim: int, seed: int) -> Features:
    tokens = torch.randn(side * side, dim, generator=torch.Generator().manual_seed(seed))
    grid = PatchGrid(side, side, 14, side * 14, side * 14, 1.0, 1.0)
    return Features(tokens[0], tokens, tokens[:0], grid)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_cost(options: argparse.Namespace) -> None:
    """Match all patches of two images both ways; each size in a process of its own, for its peak."""
    if options.side is None:
        print(
            f"{'network pixels':>14} {'patches':>8} {'dim':>4} {'seconds (median of 7)':>22} {'MB above':>9}"
        )
        for side in (518 // 14, 840 // 14):
            for dim in (384, 768):
                command = [sys.executable, __file__, "cost", "--side", str(side), "--dim", str(dim)]
                subprocess.run(command, check=True)
        return
    small = [random_features(8, options.dim, seed) for seed in (2, 3)]
    match_all(*small)  # loads what is loaded once
    sides = [random_features(options.side, options.dim, seed) for seed in (0, 1)]
    before = peak_mb()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        match_all(*sides)
        times.append(time.perf_counter() - start)
    spread = f"{np.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
    row = f"{options.side * 14:>14} {options.side**2:>8} {options.dim:>4} {spread:>22}"
    print(f"{row} {peak_mb() - before:>9.0f}", flush=True)


def with_sift(image0: np.ndarray, image1: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return SIFT matches that pass the ratio test and one MAGSAC homography, and that homography."""
    sift = cv2.SIFT_create()
    sides = [
        sift.detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None) for image in (image0, image1)
    ]
    none = np.zeros((0, 2), np.float32)
    if any(found is None or len(found) < 2 for _, found in sides):
        return none, none, None
    pairs = cv2.BFMatcher().knnMatch(sides[0][1], sides[1][1], k=2)
    good = [first for first, second in pairs if first.distance < RATIO * second.distance]
    places0 = np.array([sides[0][0][row.queryIdx].pt for row in good], np.float32).reshape(-1, 2)
    places1 = np.array([sides[1][0][row.trainIdx].pt for row in good], np.float32).reshape(-1, 2)
    if len(good) < 8:
        return none, none, None
    model, inliers = cv2.findHomography(
        places0, places1, cv2.USAC_MAGSAC, 3.0, maxIters=10_000, confidence=0.999
    )
    if model is None or inliers.sum() < 8:
        return none, none, None
    chosen = inliers.ravel() > 0
    return places0[chosen], places1[chosen], model


def moved(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    return cv2.perspectiveTransform(points[None].astype(np.float64), homography)[0].astype(np.float32)


def on_image(points: np.ndarray, size: list[int]) -> np.ndarray:
    return ((points >= 0) & (points < size)).all(axis=1)


def measure_geometric(options: argparse.Namespace) -> None:
    """Homographies: chosen keypoints. WxBS: marked points are carried over, for SIFT by its model."""
    encoder, folder = open_encoder(options), options.root / "geometric"
    spec = wanted_features(options)
    rows: dict[str, list[tuple[float, ...]]] = {}
    for pair in json.loads((folder / "pairs.json").read_text()):
        if pair["type"] not in ("homography", "correspondences"):
            continue
        paths = [folder / pair[side] for side in "ab"]
        sides = [encoder.encode(path, spec) for path in paths]
        places0, places1, model = with_sift(*[read_image(path) for path in paths])
        if pair["type"] == "homography":
            truth = np.array(pair["H_ab"])
            found = match(*sides, num=200)
            seen = on_image(moved(found.keypoints0, truth), pair["size_b"])
            right = errors(found.keypoints1, moved(found.keypoints0, truth)) < WITHIN
            ours = (right[seen].mean() if seen.any() else 0.0, len(right))
            right = errors(places1, moved(places0, truth)) < WITHIN if len(places0) else np.zeros(0, bool)
            theirs = (right.mean() if len(right) else 0.0, len(right))
        else:
            marked = np.array(pair["corrs"], np.float32)
            inside = [marked[:, :2].clip(0, np.array(pair["size_a"]) - 1), marked[:, 2:]]
            found = match(*sides, points=inside[0])
            ours = ((errors(found.keypoints1, inside[1]) < WITHIN).mean(), len(marked))
            carried = moved(inside[0], model) if model is not None else np.full_like(inside[0], np.nan)
            theirs = ((errors(carried, inside[1]) < WITHIN).mean(), 0 if model is None else len(marked))
        rows.setdefault(pair["set"], []).append((*ours, *theirs))
    print(f"{options.model} at {spec.size} px; share within {WITHIN:g} px of the truth, mean over pairs")
    print("       set  pairs    ours  matches    SIFT  matches  SIFT found nothing")
    for name, found in rows.items():
        table = np.array(found)
        ours, n_ours, sift, n_sift = table.mean(axis=0)
        nothing = f"{int((table[:, 3] == 0).sum())} of {len(table)}"
        head = f"{name:>10} {len(table):>6}"
        print(f"{head}   {ours:.3f} {n_ours:>8.0f}   {sift:.3f} {n_sift:>8.0f} {nothing:>19}")


def animal_pairs(folder: Path, target: Path, limit: int) -> Path:
    """Write the animal poses as a list of pairs."""
    poses = json.loads((folder / "animal_pose.json").read_text())
    entries = []
    for kind, name0, name1 in poses["pairs"][:: max(1, len(poses["pairs"]) // limit)]:
        sides = [poses["images"][name] for name in (name0, name1)]
        both = [
            i for i, (a, b) in enumerate(zip(sides[0]["kps"], sides[1]["kps"], strict=True)) if a[2] and b[2]
        ]
        if both:
            points = [[side["kps"][i][:2] for i in both] for side in sides]
            images = [str((folder / "images" / name).resolve()) for name in (name0, name1)]
            entry = {"src": images[0], "trg": images[1], "src_kps": points[0], "trg_kps": points[1]}
            entries.append({**entry, "trg_bbox": sides[1]["bbox"], "category": kind})
    path = target / "pairs.json"
    path.write_text(json.dumps(entries))
    return path


def measure_semantic(options: argparse.Namespace) -> None:
    encoder, folder = open_encoder(options), options.root / "keypoints"
    with tempfile.TemporaryDirectory() as name:
        sets = {
            "SPair and PF-PASCAL": folder / "spair_pfpascal/pairs.json",
            "animal poses": animal_pairs(folder / "animal_pose", Path(name), options.limit),
        }
        print(f"{options.model} at {options.size} px; PCK per point, %")
        print("                 set  pairs  points     read-out   @0.1  @0.05  kept: @0.1  @0.05  share")
        for label, root in sets.items():
            for step, matching in STEPS.items():
                features = wanted_features(options)
                spec = EvalSpec("pairs", root, alphas=(0.1, 0.05), features=features, matching=matching)
                report = evaluate_correspondence(encoder, spec)
                found = [report["pck"][alpha] for alpha in ("0.1", "0.05")]
                every = " ".join(f"{100 * at['point']:>6.1f}" for at in found)
                kept = "  ".join(f"{100 * (at['kept'] or 0):>5.1f}" for at in found)
                head = f"{label:>20} {report['n_pairs']:>6} {report['n_points']:>7} {step:>12}"
                print(f"{head} {every}       {kept}  {report['kept_share']:>5.0%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["cost", "geometric", "semantic"])
    parser.add_argument("--root", type=Path)
    parser.add_argument("--model", default="untrained:vitt14")
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--size", type=int, default=518)
    parser.add_argument("--limit", type=int, default=700, help="pairs of animals")
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.what != "cost" and options.root is None:
        parser.error("--root is needed: the folder of the test data")
    if options.side is None:
        print(describe_setting())
    {"cost": measure_cost, "geometric": measure_geometric, "semantic": measure_semantic}[options.what](
        options
    )


if __name__ == "__main__":
    main()
