"""Duplicates beside perceptual hashes: precision and recall of pairs, on edited copies of real photos.

    python benchmarks/dedup.py --root DATA [--models untrained:vitt14 mobilenet] [--distractors 2000]

DATA holds `retrieval/copydetect`, `photos` and `pool`, and `peers` for "mobilenet", an ImageNet-trained
network (`pip install ai-edge-litert`). The peers are pHash and dHash of `pip install imagehash`, all pairs up
to a distance: the usual 10, and the one that suits the set best (highest recall of those with a precision of
0.99, chosen with the truth at hand; ours has no such help).

Two sets, each among the same distractors: the strong edits of copydetect, and copies by `dinov2kit.copies`
of its originals and of the other photos. Recall is over pairs of a copy and its original: both in one group,
or within the distance. Precision is over all pairs that a method proposes and that touch a labelled photo
(for ours: the keeper and each file to remove): right when both come from one original. Pairs of two
distractors do not count: nobody has looked at them.
"""

import argparse
import json
import os
import random
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image
from setting import describe_setting

from dinov2kit import Encoder, ModelIdentity
from dinov2kit.copies import KINDS, make_copy
from dinov2kit.images import IMAGE_SUFFIXES, read_image
from dinov2kit.indexes import (
    DedupRules,
    Duplicates,
    Index,
    Snapshot,
    calibrate,
    find_duplicates,
    index_photos,
)
from dinov2kit.pipeline import GlobalEncoder
from dinov2kit.views import CenterCrop

PEER = "peers/mobilenet_v1_1.0_224_quant_embedding_extractor.tflite"
BAR, USUAL, FRAMES = 0.99, 10, 24
CALIBRATED, PROPOSED = 100, 0.75  # photos; precision of what the pixels then decide
Pair = tuple[Path, Path]


@dataclass(frozen=True)
class CopySet:
    """Photos on the disk whose origin is known, among others.

    Attributes:
        name: of the set.
        folder: all files lie below it.
        origins: of each labelled file the original, which is its own.
        kinds: of each copy how it was made.
    """

    name: str
    folder: Path
    origins: dict[Path, Path]
    kinds: dict[Path, str]

    def judge(self, pairs: Iterable[Pair], together: Iterable[Pair]) -> str:
        """Return precision of what was proposed, recall by what is together, and recall of each kind."""
        labelled = [pair for pair in pairs if set(pair) & self.origins.keys()]
        right = sum(self.origins.get(a, a) == self.origins.get(b, b) for a, b in labelled)
        precision = right / len(labelled) if labelled else float("nan")
        met = {frozenset(pair) for pair in together}
        found = {copy: frozenset((copy, self.origins[copy])) in met for copy in self.kinds}
        shares = {
            kind: np.mean([found[copy] for copy in self.kinds if self.kinds[copy] == kind])
            for kind in dict.fromkeys(self.kinds.values())
        }
        each = " ".join(f"{kind} {share:.2f}" for kind, share in shares.items())
        wrong, recall = len(labelled) - right, np.mean(list(found.values()))
        return f"{precision:.4f} {recall:.4f} {wrong:6}  {each}"


class MobileNet:
    """Describes images by the last layer of a network that knows ImageNet."""

    batch_size = 16

    def __init__(self, root: Path) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.view = CenterCrop()
        self.network = Interpreter(str(root / PEER), num_threads=2)
        self.network.allocate_tensors()
        (self.entry,), (self.exit,) = self.network.get_input_details(), self.network.get_output_details()
        dim = int(np.prod(self.exit["shape"]))
        self.identity = ModelIdentity("mobilenet_v1", "0" * 64, dim, "mean", self.view.describe())

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Return one row per image."""
        rows = np.stack([self._describe(image) for image in pixels])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def _describe(self, image: np.ndarray) -> np.ndarray:
        self.network.set_tensor(self.entry["index"], image[None])
        self.network.invoke()
        return (
            self.network.get_tensor(self.exit["index"]).ravel().astype(np.float32)
            - self.exit["quantization"][1]
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["untrained:vitt14"])
    parser.add_argument("--distractors", type=int, default=2000)
    parser.add_argument(
        "--crops", action="store_true", help="also with crops; for trained models, else it takes hours"
    )
    options = parser.parse_args()
    print(describe_setting())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        os.environ["DINOKIT_HOME"] = str(work / "home")
        sets = [copydetect(options.root, work), synthetic(options.root, work)]
        for copies in sets:
            add_distractors(options.root, copies.folder, options.distractors)
            others = options.distractors
            print(f"\n{copies.name}: {len(copies.kinds)} copies, {others} distractors")
            print(f"{'method':58}  prec.  recall  wrong  recall of each kind")
            measure_peers(copies)
            for model in options.models:
                encoder = MobileNet(options.root) if model == "mobilenet" else Encoder(model)
                measure_ours(copies, encoder, work, crops=options.crops)
        chain(options.root, work)


def copydetect(root: Path, work: Path) -> CopySet:
    """Copy the set of strong edits."""
    source, folder = root / "retrieval/copydetect", work / "copydetect"
    truth = json.loads((source / "groundtruth.json").read_text())
    shutil.copytree(source / "originals", folder / "originals")
    shutil.copytree(source / "copies", folder / "copies")
    origins = {folder / name: folder / name for name in truth["originals"]}
    origins |= {folder / copy: folder / name for copy, name, _ in truth["copies"]}
    return CopySet("copydetect", folder, origins, {folder / copy: kind for copy, _, kind in truth["copies"]})


def synthetic(root: Path, work: Path) -> CopySet:
    """Make a copy of each kind of real photos, each kept as a JPEG of quality 95."""
    folder = work / "synthetic"
    (folder / "copies").mkdir(parents=True)
    sources = [*(root / "retrieval/copydetect/originals").iterdir(), *(root / "photos").rglob("*")]
    sources = sorted(path for path in sources if path.suffix.lower() in IMAGE_SUFFIXES)
    origins, kinds = {}, {}
    for number, source in enumerate(sources):
        original = folder / f"{number:03}{source.suffix}"
        shutil.copy(source, original)
        origins[original] = original
        pixels = read_image(source)
        for kind in KINDS:
            copy = folder / "copies" / f"{number:03}_{kind}.jpg"
            Image.fromarray(make_copy(pixels, kind, seed=number)).save(copy, quality=95)
            origins[copy], kinds[copy] = original, kind
    return CopySet("synthetic", folder, origins, kinds)


def add_distractors(root: Path, folder: Path, count: int) -> None:
    """Put images of the pool beside the photos of a set."""
    (folder / "others").mkdir()
    with zipfile.ZipFile(root / "pool/pool-00.zip") as archive:
        names = random.Random(0).sample(sorted(archive.namelist()), count)
        for name in names:
            (folder / "others" / name.replace("/", "_")).write_bytes(archive.read(name))


def measure_peers(copies: CopySet) -> None:
    """Print what the hashes of imagehash propose."""
    try:
        import imagehash
    except ImportError:
        print("for the peers: pip install imagehash")
        return
    paths = sorted(path for path in copies.folder.rglob("*") if path.is_file())
    for name, hash_image in (("pHash", imagehash.phash), ("dHash", imagehash.dhash)):
        started = time.perf_counter()
        hashes = np.array([_bits(hash_image(Image.open(path))) for path in paths], np.uint64)
        distances = np.bitwise_count(hashes[:, None] ^ hashes)
        seconds = time.perf_counter() - started
        lines = {}
        for most in range(21):
            rows, cols = np.nonzero(np.triu(distances <= most, 1))
            pairs = [(paths[row], paths[col]) for row, col in zip(rows, cols, strict=True)]
            lines[most] = copies.judge(pairs, pairs)
        good = [most for most, line in lines.items() if float(line.split()[0]) >= BAR]
        for most, word in ((good[-1] if good else 0, "best"), (USUAL, "usual")):
            print(f"{f'{name} <= {most} ({word}, {seconds:.0f} s)':58} {lines[most]}")


def _bits(found: object) -> np.uint64:
    return np.packbits(found.hash.ravel()).view(np.uint64)[0]


def measure_ours(copies: CopySet, encoder: GlobalEncoder, work: Path, *, crops: bool) -> None:
    """Print what `find_duplicates` proposes: with its defaults, with mirrored copies, and with crops."""
    directory = work / f"{copies.name}-{encoder.identity.name.replace(':', '-')}.idx"
    index_photos(directory, [copies.folder], encoder=encoder)
    name = f"dinokit, {encoder.identity.name}"
    report(copies, directory, DedupRules(), name)
    report(copies, directory, DedupRules(flips=True), f"{name}, flips")
    if crops:
        with Index.open(directory, encoder=encoder) as index:
            found = calibrate(index, photos=CALIBRATED, precision=PROPOSED)
        threshold = found.best.threshold if found.best else 1.0
        rules = DedupRules(flips=True, allow_crop=True, threshold=threshold)
        report(copies, directory, rules, f"{name}, flips, crops from {threshold:.4f}")


def report(copies: CopySet, directory: Path, rules: DedupRules, name: str) -> None:
    """Print one row of the table."""
    with Snapshot.open(directory) as snapshot:
        started = time.perf_counter()
        found = find_duplicates(snapshot, rules)
        seconds = time.perf_counter() - started
    print(f"{f'{name} ({seconds:.0f} s)':58} {copies.judge(proposed(found), together(found))}", flush=True)


def proposed(found: Duplicates) -> list[Pair]:
    """Return the keeper and each file to remove."""
    return [(group.keeper.path, copy.photo.path) for group in found.groups for copy in group.copies]


def together(found: Duplicates) -> list[Pair]:
    """Return all pairs of files that are in one group."""
    groups = [[group.keeper.path, *(copy.photo.path for copy in group.copies)] for group in found.groups]
    return [pair for group in groups for pair in combinations(group, 2)]


def chain(root: Path, work: Path) -> None:
    """Fade one photo into another: each frame is a copy of the next, the first and the last are not alike."""
    folder = work / "chain"
    folder.mkdir()
    ends = [Image.open(root / f"retrieval/copydetect/originals/{name}.jpg") for name in ("000", "001")]
    first, last = (end.convert("RGB").resize((512, 384)) for end in ends)
    for frame in range(FRAMES):
        Image.blend(first, last, frame / (FRAMES - 1)).save(folder / f"{frame:02}.png")
    directory = work / "chain.idx"
    index_photos(directory, [folder], encoder=Encoder("untrained:vitt14"))
    with Snapshot.open(directory) as snapshot:
        found = find_duplicates(snapshot)
    frames = [[int(path.stem) for path in pair] for pair in proposed(found)]
    farthest = max((abs(one - other) for one, other in frames), default=0)
    print(
        f"\nchain: {FRAMES} frames from one photo to another are {len(found.groups)} groups;"
        f" a frame is at most {farthest} from its keeper"
    )


if __name__ == "__main__":
    main()
