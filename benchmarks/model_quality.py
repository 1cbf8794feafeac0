"""Models beside classical descriptors on the test data, in one table: classes, copies, places, keypoints.

    python benchmarks/model_quality.py --data DATA [--models NAME...] [--size N...] [--parts PART...]
        [--baselines random classical] [--peer] [--readings] [--json FILE]

DATA is a folder with `imagenette128/`, `retrieval/`, `keypoints/` and `pool/`; with `--peer` also `peers/`.

- knn: share of 2,000 images of Imagenette whose class the 20 nearest of 1,500 others vote for.
- copies: share of 420 edited copies whose nearest photo is their original, among 60 and the distractors.
- places: leave-one-out mAP of 101 photos of 32 places.
- keypoints: PCK per point at 0.1, of the box (for PF-PASCAL, which has none, of the image); SPair-71k and
  PF-PASCAL together, and animal poses; default read-out, at `--keypoint-size`.

A model describes an image by its class token; `--readings` also shows its mean patch token, and both side by
side. Models see at each `--size` what they always see; classical descriptors, and the peer, a MobileNet
trained on ImageNet with labels, the middle square at 128 and 224 pixels. To compare runs in training only:

    python benchmarks/model_quality.py --data DATA --models RUN... --parts knn --baselines --size 112 224
"""

import argparse
import importlib.util
import json
import tempfile
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from classical import ClassicalEncoder
from matching import animal_pairs
from mobilenet import MobileNetEncoder
from retrieval import EDITS, copies, mobilenet, views
from setting import describe_setting

from dinov2kit import Encoder, FeatureSpec, ModelIdentity
from dinov2kit.correspondence_eval import EvalSpec, evaluate_correspondence
from dinov2kit.described_images import Described, Shown, describe_images
from dinov2kit.files import written_whole
from dinov2kit.knn import classify
from dinov2kit.knn_eval import accuracy
from dinov2kit.labelled_images import LabelledImage, read_labelled
from dinov2kit.normalising import suitable_view
from dinov2kit.pairs import LocalEncoder
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.retrieval_sets import RetrievalSet
from dinov2kit.set_scores import score_set

PARTS = ("knn", "copies", "places", "keypoints")
KS = (1, 10, 20)
ALPHAS = (0.1, 0.05)
COLUMNS = ("kNN 20", "copies R@1", "places mAP", "SPair, PF", "animals")
RANDOM = "untrained:vitt14"


@dataclass(frozen=True)
class Candidate:
    """What is measured: an encoder of whole images, and which columns of its rows are which descriptor.

    Attributes:
        name: how the table calls it.
        encoder: makes one row per image.
        readings: the descriptors in a row; the first is the one that counts.
        local: makes local descriptors; None: there are none.
        apart: whether each reading is a candidate of its own.
    """

    name: str
    encoder: GlobalEncoder
    readings: Mapping[str, slice]
    local: LocalEncoder | None = None
    apart: bool = False


class TokenEncoder:
    """Describes an image by its class token and its mean patch token, each of length 1, side by side."""

    def __init__(self, encoder: Encoder, size: int) -> None:
        self._encoder, self.batch_size = encoder, encoder.batch_size
        self.view = suitable_view(size, encoder.patch_size) if size else encoder.view
        preprocess = {**encoder.identity.preprocess, **self.view.describe()}
        self.identity: ModelIdentity = replace(
            encoder.identity, dim=2 * encoder.dim, pooling="cls and mean patch", preprocess=preprocess
        )

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return a row per image."""
        tokens = torch.from_numpy(self._encoder.embed_layers(pixels, 1))
        halves = [torch.nn.functional.normalize(half, dim=1) for half in tokens.chunk(2, dim=1)]
        return torch.cat(halves, dim=1).numpy()


@dataclass(frozen=True)
class TestSets:
    """The images of the parts that describe whole images."""

    classes: tuple[Sequence[LabelledImage], Sequence[LabelledImage]] | None
    chosen: Mapping[str, RetrievalSet]

    @property
    def shown(self) -> dict[str, list[Shown]]:
        """The images of each part, in the order in which it counts them."""
        found = {
            part: [Shown(query.path) for query in one.queries] + [Shown(path) for path in one.index]
            for part, one in self.chosen.items()
        }
        if self.classes is not None:
            found["knn"] = [Shown(image.path) for side in self.classes for image in side]
        return found


def open_sets(options: argparse.Namespace, folder: Path) -> TestSets:
    """Return the sets of the parts that are asked for; what lies in archives is unpacked into a folder."""
    classes, chosen = None, {}
    if "knn" in options.parts:
        with zipfile.ZipFile(options.data / "imagenette128/imagenette128.zip") as archive:
            archive.extractall(folder / "classes")
        train, val = (read_labelled(folder / "classes", split) for split in ("train", "val"))
        classes = (train, val)
    if "copies" in options.parts:
        found = copies(options.data / "retrieval/copydetect")
        with zipfile.ZipFile(options.data / "pool/pool-00.zip") as archive:  # in random order
            names = archive.namelist()[: options.distractors]
            archive.extractall(folder / "pool", names)
        chosen["copies"] = replace(found, index=(*found.index, *(folder / "pool" / name for name in names)))
    if "places" in options.parts:
        chosen["places"] = views(options.data / "retrieval/multiview")
    return TestSets(classes, chosen)


def score_classes(
    rows: np.ndarray, sides: tuple[Sequence[LabelledImage], Sequence[LabelledImage]]
) -> dict[str, Any]:
    """Return the accuracy for each number of neighbours, plain and with the mean of the bank taken off."""
    names = sorted({image.label for image in sides[0]})
    labels = np.array([names.index(image.label) for side in sides for image in side], np.int64)
    count = len(sides[0])
    scores = {}
    for name, shift in (("knn", 0), ("knn_centred", rows[:count].mean(axis=0))):
        bank, queries = rows[:count] - shift, rows[count:] - shift
        found = classify(bank, labels[:count], queries, ks=KS)
        scores[name] = {str(k): accuracy(ranked, labels[count:]) for k, ranked in found.items()}
    return scores


def score_search(rows: np.ndarray, chosen: RetrievalSet) -> dict[str, Any]:
    """Return what a set of queries gives, without the single queries."""
    everything = Described(rows, np.ones(len(rows), np.bool_), ())
    report = score_set(chosen, everything, ks=chosen.ks)
    groups = {name: setups["all"] for name, setups in report["per_group"].items()}
    facts = {**report["setups"]["all"], "micro_ap": report["micro"]["ap"], "n_index": report["n_index"]}
    return {**facts, **({"per_edit": {edit: groups[edit] for edit in EDITS}} if EDITS[0] in groups else {})}


def score_images(candidate: Candidate, sets: TestSets, options: argparse.Namespace) -> dict[str, Any]:
    """Describe every image once, and return the scores of each reading in each part."""
    shown = sets.shown
    described = describe_images(
        candidate.encoder, [one for images in shown.values() for one in images], workers=options.workers
    )
    if described.errors:
        raise SystemExit(f"{len(described.errors)} images cannot be read; the first: {described.errors[0]}")
    scores: dict[str, Any] = {}
    for reading, columns in candidate.readings.items():
        part_rows, start = {}, 0
        rows = described.rows[:, columns]
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for part, images in shown.items():
            part_rows[part] = rows[start : start + len(images)]
            start += len(images)
        scores[reading] = {part: score_search(part_rows[part], one) for part, one in sets.chosen.items()}
        if sets.classes is not None:
            scores[reading] |= score_classes(part_rows["knn"], sets.classes)
        scores[reading]["dim"] = rows.shape[1]
    return scores


def score_keypoints(encoder: LocalEncoder, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the PCK of both sets of pairs."""
    keypoints = options.data / "keypoints"
    roots = {
        "spair_pfpascal": keypoints / "spair_pfpascal/pairs.json",
        "animal_pose": animal_pairs(keypoints / "animal_pose", folder, 10**9),
    }
    found = {}
    for name, root in roots.items():
        features = FeatureSpec(size=options.keypoint_size)
        spec = EvalSpec("pairs", root, alphas=ALPHAS, features=features, limit=options.pairs)
        report = evaluate_correspondence(encoder, spec)
        found[name] = {key: report[key] for key in ("n_pairs", "n_points", "pck", "kept_share")}
    return found


def candidates(options: argparse.Namespace) -> list[Candidate]:
    """Return what is measured, in the order of the table."""
    found: list[Candidate] = []
    if "classical" in options.baselines and set(options.parts) != {"keypoints"}:
        classical = ClassicalEncoder(options.data)
        found.append(Candidate("", classical, classical.readings, apart=True))
    named = [(model, model) for model in options.models]
    named = [("random weights", RANDOM)] * ("random" in options.baselines) + named
    for name, model in named:
        encoder = Encoder(model, precision=options.precision, device=options.device)
        dim = encoder.dim
        readings = {"class": slice(dim), "mean patch": slice(dim, 2 * dim), "both": slice(2 * dim)}
        for size in options.size:
            tokens = TokenEncoder(encoder, size)
            local = encoder if size == options.size[0] else None  # their size is another option
            found.append(Candidate(f"{name} @{tokens.view.crop}", tokens, readings, local))
    if options.peer:
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        peer = mobilenet(options.data)
        local_peer = MobileNetEncoder(options.data)
        found.append(Candidate("MobileNetV1", peer, {"pooled": slice(peer.dim)}, local_peer))
    return found


def measure(
    candidate: Candidate, sets: TestSets, options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """Return a row of the table for each reading."""
    started = time.perf_counter()
    scores: dict[str, Any] = {reading: {} for reading in candidate.readings}
    if sets.shown:
        scores = score_images(candidate, sets, options)
    first, *_ = scores
    if "keypoints" in options.parts and candidate.local is not None:
        scores[first] = {**scores[first], "keypoints": score_keypoints(candidate.local, options, folder)}
    seconds = round(time.perf_counter() - started, 1)
    return [
        {
            "name": reading if candidate.apart else candidate.name,
            "reading": reading,
            "view": candidate.encoder.view.crop,
            "weights_sha256": candidate.encoder.identity.weights_sha256,
            **score,
            "counts": candidate.apart or reading == first,
            "seconds": seconds,
        }
        for reading, score in scores.items()
    ]


def line(row: Mapping[str, Any], *, width: int) -> str:
    """Return a row as text; what was not measured is a dash."""
    found = {
        "kNN 20": row["knn"]["20"]["top1"] if "knn" in row else None,
        "copies R@1": row["copies"]["recall"]["1"] if "copies" in row else None,
        "places mAP": row["places"]["map"] if "places" in row else None,
        "SPair, PF": _point(row, "spair_pfpascal"),
        "animals": _point(row, "animal_pose"),
    }
    cells = "".join(f"{'-' if found[name] is None else f'{found[name]:.3f}':>12}" for name in COLUMNS)
    title = row["name"] if row["counts"] else f"  + {row['reading']}"
    return f"{title:<{width}}{row.get('dim', '-'):>6}{cells}{row['seconds']:>8.0f}"


def _point(row: Mapping[str, Any], name: str) -> float | None:
    return row["keypoints"][name]["pck"]["0.1"]["point"] if "keypoints" in row else None


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="*", default=[], help="whatever --model of dinokit takes")
    parser.add_argument("--size", type=int, nargs="+", default=[0], help="of models; 0: their own")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS), help="by commas")
    parser.add_argument("--baselines", nargs="*", default=["classical", "random"], help="none: nothing")
    parser.add_argument("--peer", action="store_true", help="also a MobileNet; needs ai-edge-litert")
    parser.add_argument("--readings", action="store_true", help="also show other descriptors of a model")
    parser.add_argument("--distractors", type=int, default=2000, help="photos among which originals are")
    parser.add_argument("--keypoint-size", type=int, default=448, help="longer side for keypoints, in pixels")
    parser.add_argument("--pairs", type=int, default=0, help="of each keypoint set, drawn at random; 0: all")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=0, help="decoding processes")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for given, known in ((options.parts, PARTS), (options.baselines, ("classical", "random"))):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; wanted some of {', '.join(known)}")
    if options.json is not None and not options.json.absolute().parent.is_dir():
        parser.error(f"there is no folder {options.json.absolute().parent}")
    if options.peer and importlib.util.find_spec("ai_edge_litert") is None:
        parser.error("--peer needs: pip install ai-edge-litert")
    return options


def main() -> None:
    options = read_options()
    setting = describe_setting()
    print(setting)
    print(f"copies among {options.distractors} distractors; keypoints at {options.keypoint_size} px")
    chosen = candidates(options)
    width = 2 + max([24, *(len(one.name) for one in chosen)])
    heads = "".join(f"{name:>12}" for name in COLUMNS)
    print(f"{'':<{width}}{'dim':>6}{heads}{'s':>8}", flush=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        sets = open_sets(options, Path(name))
        for candidate in chosen:
            rows += measure(candidate, sets, options, Path(name))
            for row in rows[-len(candidate.readings) :]:
                if row["counts"] or options.readings:
                    print(line(row, width=width), flush=True)
            if options.json is not None:
                document = {"setting": setting, "options": vars(options), "rows": rows}
                with written_whole(options.json) as temporary:
                    text = json.dumps(document, indent=1, default=str)  # options hold paths
                    temporary.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
