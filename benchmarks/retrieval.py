"""Instance retrieval, copies and kNN of the test data: a model, a trained network of another kind, classics.

    python benchmarks/retrieval.py --root DATA [--model NAME]...

DATA is a folder with `retrieval/multiview/`, `retrieval/copydetect/`, `imagenette128/` and `pool/`; with
`peers/` and `pip install ai-edge-litert`, the row "mobilenet" is an ImageNet-trained MobileNetV1. The numbers
are those of `dinokit eval retrieval` and `dinokit eval knn`: the classics are encoders, too. They and the
MobileNet see the middle square of an image at 224 pixels, models what they always see. The words of VLAD are
learned on the pool, which holds none of the test images.
"""

import argparse
import json
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from setting import describe_setting

from dinov2kit import Encoder, ModelIdentity
from dinov2kit.decoding import default_workers
from dinov2kit.images import load_picture
from dinov2kit.knn_eval import KnnSpec, evaluate_knn
from dinov2kit.labelled_images import LabelledImage
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.retrieval_eval import RetrievalSpec, evaluate_retrieval
from dinov2kit.retrieval_sets import Query, RetrievalSet, grouped
from dinov2kit.views import CenterCrop

PEER = "peers/mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
WORDS, POOL_IMAGES, WORD_SAMPLE = 64, 600, 200_000
EDITS = ("jpeg8", "crop50", "resize_ar", "rot15", "flip_color", "blur_text", "inset")


@dataclass
class PlainEncoder:
    """Describes an image by any function of its pixels."""

    name: str
    dim: int
    describe: Callable[[np.ndarray], np.ndarray]
    view: CenterCrop = field(default_factory=lambda: CenterCrop(224, 224))
    batch_size: int = 16

    @property
    def identity(self) -> ModelIdentity:
        """What makes descriptors comparable."""
        return ModelIdentity(self.name, "", self.dim, "none", self.view.describe())

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return a row of length 1 per image; an image without any description looks equally like all."""
        rows = np.stack([self.describe(image) for image in pixels]).astype(np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.where(lengths > 0, rows / np.maximum(lengths, 1e-12), 1 / np.sqrt(self.dim)).astype(
            np.float32
        )


def colour_histogram(image: np.ndarray) -> np.ndarray:
    """Return 8 x 8 x 8 bins of hue, saturation and value; the cosine of roots is the Hellinger kernel."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return np.sqrt(cv2.calcHist([hsv], [0, 1, 2], None, [8, 8, 8], [0, 180, 0, 256, 0, 256])).ravel()


def raw_pixels(image: np.ndarray) -> np.ndarray:
    small = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    return small - small.mean()


def root_sift(image: np.ndarray) -> np.ndarray:
    _, found = cv2.SIFT_create(nfeatures=500).detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    if found is None:
        return np.zeros((0, 128), np.float32)
    return np.sqrt(found / np.maximum(found.sum(axis=1, keepdims=True), 1e-9))


def orb_bits(image: np.ndarray) -> np.ndarray:
    _, found = cv2.ORB_create(nfeatures=500).detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)
    return (
        np.zeros((0, 256), np.float32) if found is None else np.unpackbits(found, axis=1).astype(np.float32)
    )


def with_vlad(name: str, local: Callable[[np.ndarray], np.ndarray], root: Path) -> PlainEncoder:
    """Return VLAD: how local descriptors differ from their words, summed, each word of length 1, rooted."""
    rows = np.concatenate([local(image) for image in pool_images(root)])
    rng = np.random.default_rng(0)
    sample = rows[rng.permutation(len(rows))[:WORD_SAMPLE]]
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 40, 1e-4)
    cv2.setRNGSeed(0)
    _, _, words = cv2.kmeans(sample, WORDS, None, criteria, 1, cv2.KMEANS_PP_CENTERS)

    def describe(image: np.ndarray) -> np.ndarray:
        found = local(image)
        sums = np.zeros_like(words)
        if len(found):
            nearest = ((words**2).sum(axis=1) - 2 * found @ words.T).argmin(axis=1)
            np.add.at(sums, nearest, found - words[nearest])
        sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)  # against bursts of one word
        return (np.sign(sums) * np.sqrt(np.abs(sums))).ravel()

    return PlainEncoder(name, words.size, describe)


def pool_images(root: Path) -> list[np.ndarray]:
    """Return the first images of the pool, which lie in random order."""
    with zipfile.ZipFile(root / "pool/pool-00.zip") as archive:
        names = archive.namelist()[:POOL_IMAGES]
        return [load_picture(archive.read(name), CenterCrop(224, 224)).pixels for name in names]


def mobilenet(root: Path) -> PlainEncoder:
    from ai_edge_litert.interpreter import Interpreter

    network = Interpreter(str(root / PEER), num_threads=2)
    network.allocate_tensors()
    (entry,), (exit_,) = network.get_input_details(), network.get_output_details()
    scale, zero = exit_["quantization"]

    def describe(image: np.ndarray) -> np.ndarray:
        network.set_tensor(entry["index"], image[None])
        network.invoke()
        return (network.get_tensor(exit_["index"]).astype(np.float32).ravel() - zero) * scale

    return PlainEncoder("mobilenet_v1", int(np.prod(exit_["shape"])), describe)


def copies(folder: Path) -> RetrievalSet:
    """Return the set of edited copies; its groups are the kinds of edit."""
    truth = json.loads((folder / "groundtruth.json").read_text())
    places = {name: place for place, name in enumerate(truth["originals"])}
    queries = tuple(
        Query(folder / name, {"match": np.array([places[original]])}, group=edit)
        for name, original, edit in truth["copies"]
    )
    return RetrievalSet("copydetect", tuple(folder / name for name in truth["originals"]), queries, ks=(1,))


def views(folder: Path) -> RetrievalSet:
    truth = json.loads((folder / "groundtruth.json").read_text())
    return grouped("multiview", [LabelledImage(folder / name, place) for name, place in truth], ks=(1,))


def measure(encoder: GlobalEncoder, root: Path, classes: Path) -> None:
    """Print one row of the table."""
    started = time.perf_counter()
    many = {"workers": default_workers()}
    spec = RetrievalSpec("folders", root)
    seen = evaluate_retrieval(encoder, spec, chosen=views(root / "retrieval/multiview"), **many)
    found = evaluate_retrieval(encoder, spec, chosen=copies(root / "retrieval/copydetect"), **many)
    knn = evaluate_knn(encoder, KnnSpec(classes, classes, ks=(1, 20)), **many)["knn"]
    shares = [
        *(seen["setups"]["all"]["map"], seen["setups"]["all"]["recall"]["1"]),
        *(found["setups"]["all"]["recall"]["1"], found["micro"]["ap"]),
        *(found["per_group"][edit]["all"]["recall"]["1"] for edit in EDITS),
        *(knn["1"]["top1"], knn["20"]["top1"]),
    ]
    cells = "".join(f"{share:>9.3f} " for share in shares)
    print(
        f"{encoder.identity.name:>20} {encoder.identity.dim:>5} {cells}{time.perf_counter() - started:>6.0f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], help="also this model; may be repeated")
    options = parser.parse_args()
    print(describe_setting())
    names = ["mV mAP", "mV R@1", "copy R@1", "copy µAP", *EDITS, "kNN 1", "kNN 20"]
    print(f"{'':>20} {'dim':>5} {''.join(f'{name:>9} ' for name in names)}     s")
    with tempfile.TemporaryDirectory() as name:
        classes = Path(name)
        with zipfile.ZipFile(options.root / "imagenette128/imagenette128.zip") as archive:
            archive.extractall(classes)
        encoders: list[Callable[[], GlobalEncoder]] = [
            lambda: PlainEncoder("raw pixels 32x32", 3072, raw_pixels),
            lambda: PlainEncoder("colour histogram", 512, colour_histogram),
            lambda: with_vlad("ORB VLAD", orb_bits, options.root),
            lambda: with_vlad("SIFT VLAD", root_sift, options.root),
        ]
        try:
            import ai_edge_litert  # noqa: F401

            encoders.append(lambda: mobilenet(options.root))
        except ImportError:
            print("no row of mobilenet: pip install ai-edge-litert")
        encoders += [lambda model=model: Encoder(model, precision="fp32") for model in options.model]
        for make in encoders:
            measure(make(), options.root, classes)


if __name__ == "__main__":
    main()
