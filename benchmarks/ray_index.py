"""`dinokit index` here and on a Ray cluster of this machine, with and without a killed worker.

    python benchmarks/ray_index.py --photos DIR [--count 300] [--model untrained:vits14] [--workers 2]

Each photo is a variant of one in DIR: another crop and brightness, as a JPEG. On one machine Ray is no
faster: the figures say what it costs. The last one is the speed at which one committer takes up what any
number of workers have described, which bounds how many are of use.
"""

import argparse
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from setting import describe_setting

from dinov2kit import Encoder, ModelIdentity
from dinov2kit.images import list_images
from dinov2kit.indexes import AnnWishes, IndexRun, RayEngine, Snapshot, UpdateRules, index_photos
from dinov2kit.indexes.engine import Reading
from dinov2kit.views import CenterCrop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--model", default="untrained:vits14")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--commits", type=int, default=50_000)
    options = parser.parse_args()
    print(describe_setting())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DINOKIT_HOME"] = str(folder / "home")
        make_photos(list_images([options.photos]), folder / "photos", options.count)
        Encoder(options.model)  # the import of torch counts for none
        local = measure("local", folder, options)
        clean = measure("ray", folder, options, RayEngine("local", workers=options.workers))
        lethal = measure(
            "ray, one worker killed", folder, options, RayEngine("local", workers=options.workers)
        )
        print(f"overhead of Ray {clean - local:.1f} s, of a killed worker {lethal - clean:.1f} s more")
        measure_committer(folder, options.commits)


def make_photos(sources: list[Path], folder: Path, count: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        with Image.open(sources[number % len(sources)]) as photo:
            rgb = photo.convert("RGB")
        left, top = (int(rng.integers(1, max(2, side // 8))) for side in rgb.size)
        light = rng.uniform(0.7, 1.3)
        pixels = np.clip(np.asarray(rgb)[top:, left:] * light, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=90)


def measure(what: str, folder: Path, options: argparse.Namespace, engine: RayEngine | None = None) -> float:
    """Index all photos anew; kill a worker in the middle if `what` says so; compare with the local index."""
    killed: list[int] = []

    def watch(stage: str, done: int, total: int | None) -> None:
        if "killed" in what and not killed and stage == "Indexing" and done > options.count / 3:
            victim = next(process for process in psutil.process_iter() if "MapWorker" in process.name())
            killed.append(victim.pid)
            victim.send_signal(signal.SIGKILL)

    directory = folder / what.replace(",", "").replace(" ", "-")
    started = time.perf_counter()
    run = index_photos(
        directory,
        [folder / "photos"],
        model=options.model,
        rules=UpdateRules(workers=options.workers),
        watch=watch,
        engine=engine,
    )
    seconds = time.perf_counter() - started
    same, cosine = compare(folder / "local", directory)
    print(
        f"{what}: {seconds:.1f} s, {options.count / seconds:.2f} images/s; {run.report.described} described,"
        f" ids and facts {'equal' if same else 'DIFFER'}, lowest cosine {cosine:.6f}"
    )
    return seconds


def compare(first: Path, second: Path) -> tuple[bool, float]:
    with Snapshot.open(first) as one, Snapshot.open(second) as other:
        same = one.photos(one.ids) == other.photos(other.ids)
        rows = [found.descriptors(found.ids).astype(np.float64) for found in (one, other)]
    rows = [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]
    return same, float((rows[0] * rows[1]).sum(axis=1).min())


class Ready:
    """An engine whose workers are done: what a committer can take up at most."""

    def __init__(self) -> None:
        rows = np.random.default_rng(0).normal(size=(1024, 384)).astype(np.float32)
        self._rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
        self.view = CenterCrop(resize=4, crop=4)
        self.identity = ModelIdentity("ready", "0" * 64, 384, "cls", self.view.describe())
        self.batch_size = 1

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """Is never called."""
        raise NotImplementedError

    def read(self, sightings: list, *_: object) -> Iterator[tuple[object, Reading]]:
        """Yield a made-up reading for each file."""
        for number, sighting in enumerate(sightings):
            yield sighting, Reading(number.to_bytes(16, "big"), self._rows[number % 1024], None, 640, 480)

    def committed(self) -> None:
        """Nothing is left to delete."""


def measure_committer(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / "tiny" / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    ready, started = Ready(), time.process_time()
    run: IndexRun = index_photos(
        folder / "committed", [folder / "tiny"], encoder=ready, engine=ready, ann=AnnWishes(memory=2**30)
    )
    seconds, busy = run.report.seconds, time.process_time() - started
    print(
        f"the committer alone: {count:,} files in {seconds:.1f} s, {count / seconds:,.0f} a second;"
        f" {busy:.1f} s of CPU time, {count / busy:,.0f} a second of it"
    )


if __name__ == "__main__":
    main()
