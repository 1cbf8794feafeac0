"""The writer against kill -9, readers beside a writer, and a second writer."""

import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_index import ROOT, content, make_index, put, stored

from dinov2kit import StoreLocked
from dinov2kit.indexes.layout import Layout
from dinov2kit.indexes.repairing import repair
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import compact
from dinov2kit.indexes.verifying import verify

ENVIRON = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}

# Item i is photo i.jpg of seed i. Small shards are merged on the way, so that kills meet this moment too.
WRITER = """
import sys
from pathlib import Path
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.upkeep import merge_small
from small_index import ROOT, put
directory, seed, batch, stop = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
import time
end = time.monotonic() + stop
with Store.open(directory, retire_after=float(sys.argv[5])) as store:
    print("open", flush=True)
    while time.monotonic() < end:
        for _ in range(batch):
            assert put(store, f"{seed}.jpg", seed) == seed
            seed += 1
        store.commit()
        print(seed - 1, flush=True)
        merge_small(store, small_shards=4)
"""


@contextmanager
def writing(
    directory: Path, seed: int, *, batch: int = 5, seconds: float = 60.0, retire: float = -1.0
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that puts photos from `seed` on and prints the last one after each commit."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(seed), str(batch), str(seconds), str(retire)],
        stdout=subprocess.PIPE,
        env=ENVIRON,
    ) as writer:
        try:
            assert writer.stdout.readline() == b"open\n"
            yield writer
        finally:
            writer.kill()


def check_whole(directory: Path, *, at_least: int, at_most: int) -> int:
    """Check that an index is exactly the photos 1 to some number, byte for byte; return it."""
    with Snapshot.open(directory) as snapshot:
        count = len(snapshot)
        assert at_least <= count <= at_most
        assert snapshot.ids.tolist() == list(range(1, count + 1))
        photos, rows = snapshot.photos(snapshot.ids), snapshot.descriptors(snapshot.ids)
    assert [photo.path for photo in photos] == [ROOT / f"{seed}.jpg" for seed in range(1, count + 1)]
    assert [photo.digest for photo in photos] == [content(seed) for seed in range(1, count + 1)]
    assert rows.tobytes() == b"".join(stored(seed).tobytes() for seed in range(1, count + 1))
    return count


@pytest.mark.slow
def test_twenty_kills_lose_nothing_that_was_reported(tmp_path):
    directory = make_index(tmp_path / "ix", shard_rows=60)
    dice, count = random.Random(11), 0
    moments = [*np.linspace(0.0, 0.12, 20)]
    dice.shuffle(moments)
    for moment in moments:
        with writing(directory, count + 1) as writer:
            time.sleep(moment)  # the kills are spread over the first commits; any moment is a good one
            writer.kill()
            lines = writer.stdout.read().split(b"\n")[:-1]  # a torn last line does not count
        assert writer.returncode == -signal.SIGKILL
        told = max([count, *map(int, lines)])
        assert verify(directory, deep=True).ok  # readers clear nothing away
        count = check_whole(directory, at_least=told, at_most=told + 5)  # one commit may be untold
    Store.open(directory).close()
    assert not list(Layout(directory).tmp.iterdir())
    assert check_whole(directory, at_least=count, at_most=count) > 20 * 5
    assert verify(directory, deep=True).ok


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_readers_beside_a_writer_see_one_commit_each(tmp_path, kind):
    directory = make_index(tmp_path / "ix", 7, shard_rows=200)
    problems: list[object] = []
    counts: list[list[int]] = [[] for _ in range(4)]
    done = threading.Event()

    def watch(number: int) -> None:
        try:
            while not done.is_set():
                counts[number].append(look(directory))
        except BaseException as problem:
            problems.append(problem)

    def watch_from_outside(number: int) -> None:
        with subprocess.Popen(
            [sys.executable, __file__, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRON,
        ) as reader:
            done.wait()
            counts[number] += map(int, reader.communicate()[0].split())
        if reader.returncode:
            problems.append(reader.returncode)

    look_on = watch if kind == "threads" else watch_from_outside
    with writing(directory, 8, batch=7, seconds=3.0, retire=3600.0) as writer:
        readers = [threading.Thread(target=look_on, args=(number,)) for number in range(4)]
        for reader in readers:
            reader.start()
        said = writer.communicate(timeout=60)[0].split()
        done.set()
        for reader in readers:
            reader.join()
    assert (writer.returncode, problems) == (0, [])
    committed = {7, *map(int, said)}
    assert len(committed) > 5
    for seen in counts:
        assert seen
        assert set(seen) <= committed  # never half of a commit
        assert seen == sorted(seen)  # never back in time
    check_whole(directory, at_least=max(committed), at_most=max(committed))


def look(directory: Path) -> int:
    """Open a snapshot, check it, and return how many photos it has."""
    with Snapshot.open(directory) as snapshot:
        count = len(snapshot)
        assert snapshot.ids.tolist() == list(range(1, count + 1))
        asked = np.unique(np.linspace(1, count, 40).astype(np.int64))
        assert snapshot.descriptors(asked).tobytes() == b"".join(stored(int(i)).tobytes() for i in asked)
        assert [photo.path.name for photo in snapshot.photos(asked)] == [f"{i}.jpg" for i in asked]
        assert snapshot.where(f"id > {count - 3}").tolist() == [count - 2, count - 1, count]
    return count


def test_second_writer_is_refused_and_told_the_pid(tmp_path):
    directory = make_index(tmp_path / "ix")
    with writing(directory, 1) as writer:
        writer.stdout.readline()
        who = rf"written by pid {writer.pid} on {socket.gethostname()} \(started .*images so far\)"
        for write in (Store.open, compact, repair, lambda directory: Store.open(directory, wait=0.3)):
            with pytest.raises(StoreLocked, match=who) as caught:
                write(directory)
            assert "--wait" in caught.value.hint
    with Store.open(directory, wait=10.0) as store:  # the dead hold nothing
        assert put(store, "after.jpg", 1) > 1
    assert verify(directory, deep=True).ok


if __name__ == "__main__":
    print(look(Path(sys.argv[1])))
    while not select.select([sys.stdin], [], [], 0)[0]:  # until the test closes the pipe
        print(look(Path(sys.argv[1])))
