"""`dinokit index` killed with SIGKILL at random moments: what was committed stays, and the end is the same.

    python benchmarks/crash.py [--images 2000] [--kills 20] [--seed 0]

A commit usually comes after 8,192 photos or 60 s; here after 50 photos, so that kills meet many commits.
After each kill the index is opened and verified to the last byte, and each photo that was committed before
must be there, with the same descriptor as in an index that was never interrupted.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from setting import describe_setting

from dinov2kit.errors import StoreMissing
from dinov2kit.indexes import Snapshot, verify

PROGRAM = """
import dinov2kit.indexes.update as update
from dinov2kit.cli import main
update.COMMIT_ROWS = 50
main()
"""


def index(photos: Path, directory: Path, *, wait: float | None = None) -> float:
    """Run `dinokit index`; kill it after `wait` seconds. Return how long it ran."""
    command = [
        sys.executable,
        "-c",
        PROGRAM,
        "index",
        str(photos),
        "-i",
        str(directory),
        "-m",
        "untrained:vitt14",
        "-q",
    ]
    started = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    try:
        process.wait(wait)
        if process.returncode:
            raise SystemExit(f"dinokit index ended with {process.returncode}")
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return time.monotonic() - started


def content(directory: Path) -> dict[str, bytes]:
    """Return the descriptor of each photo, as bytes; nothing when there is no index yet."""
    try:
        with Snapshot.open(directory) as snapshot:
            rows = snapshot.descriptors(snapshot.ids)
            return {
                photo.path.name: row.tobytes()
                for photo, row in zip(snapshot.photos(snapshot.ids), rows, strict=True)
            }
    except StoreMissing:
        return {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(describe_setting())
    dice = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        os.environ["DINOKIT_HOME"] = str(Path(name) / "home")
        photos = Path(name) / "photos"
        photos.mkdir()
        for number in range(options.images):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), np.uint8)
            Image.fromarray(pixels).resize((320, 240)).save(photos / f"{number:05}.jpg")
        seconds = index(photos, Path(name) / "straight")
        truth = content(Path(name) / "straight")
        print(f"without a kill: {len(truth):,} photos in {seconds:.0f} s")
        killed, before = Path(name) / "killed", {}
        for kill in range(options.kills):
            index(photos, killed, wait=dice.uniform(1.0, 4.0 + 3 * seconds / options.kills))
            now = content(killed)
            lost = [path for path in before if now.get(path) != before[path]]
            wrong = [path for path in now if now[path] != truth[path]]
            sound = not now or verify(killed, deep=True).ok
            print(
                f"kill {kill + 1:2}: {len(now):5,} committed,"
                f" {len(lost)} lost, {len(wrong)} wrong, sound: {sound}"
            )
            if lost or wrong or not sound:
                raise SystemExit(1)
            before = now
        index(photos, killed)
        print(f"finished: equals the uninterrupted index: {content(killed) == truth}")


if __name__ == "__main__":
    main()
