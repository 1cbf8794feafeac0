"""Indexing on a Ray cluster: the same index as here, whoever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint
from lethal_encoder import LethalEncoder
from small_index import make_index
from typer.testing import CliRunner

from dinov2kit.cli.app import app
from dinov2kit.errors import DependencyError, DeviceError, DeviceMemoryError
from dinov2kit.indexes import RayEngine, Snapshot, UpdateRules, index_photos, list_errors
from dinov2kit.indexes import update as updating
from dinov2kit.indexes.changes import Sighting
from dinov2kit.indexes.engine import Digests, Reading, read_files
from dinov2kit.indexes.incoming import MOST_TRIES, Incoming
from dinov2kit.indexes.layout import Layout, read_card
from dinov2kit.indexes.records import FileStat, Root

TESTS = Path(__file__).parent
pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all of them
NO_RAY = "ray is not installed: pip install 'dinov2kit[ray]'"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)


@pytest.fixture
def photos(tmp_path) -> Path:
    return paint_photos(tmp_path / "photos", 40)


def paint_photos(folder: Path, count: int, step: int = 6) -> Path:
    """Paint photos of different colours, some in a folder inside."""
    for place in range(count):
        paint(
            folder / ("trip" if place % 3 == 0 else ".") / f"{place:02}.png",
            (5 + step * place, 100, 250 - step * place),
        )
    return folder


def items(directory: Path) -> list[tuple[object, ...]]:
    """Return all that an index has of each photo, the descriptor to the bit, by id."""
    with Snapshot.open(directory) as snapshot:
        rows = snapshot.descriptors(snapshot.ids)
        return [
            (*vars_of(photo), row.tobytes())
            for photo, row in zip(snapshot.photos(snapshot.ids), rows, strict=True)
        ]


def vars_of(photo) -> tuple[object, ...]:
    names = ("id", "path", "width", "height", "size", "mtime_ns", "taken_at", "digest")
    return tuple(getattr(photo, name) for name in names)


def without_ids(directory: Path) -> list[tuple[object, ...]]:
    return sorted(item[1:] for item in items(directory))


def errors(directory: Path) -> list[tuple[Path, str]]:
    return sorted((error.path, error.reason) for error in list_errors(directory))


def counts(report) -> dict[str, object]:
    """Return what was done, but for time and the number of images that went through the model."""
    return {name: count for name, count in report.to_json().items() if name not in ("seconds", "described")}


# What a worker does, and the blocks that it leaves: no cluster.


def test_a_set_of_digests_has_what_it_was_given_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    first_half = [rng.bytes(8) for _ in range(20)]
    inside = [half + rng.bytes(8) for half in first_half for _ in range(3)] + [bytes(16), b"\xff" * 16]
    known = Digests(inside)
    assert all(digest in known for digest in inside)
    assert not any(half + rng.bytes(8) in known for half in first_half)
    assert bytes(15) + b"\1" not in known
    assert bytes(16) not in Digests([])


def sightings(folder: Path, *names: str | bytes) -> list[Sighting]:
    root = Root(1, folder, 0)
    paths = [os.fsencode(name) for name in names]
    facts = [(folder / os.fsdecode(path)).stat() for path in paths]
    return [
        Sighting(root, path, FileStat(fact.st_size, fact.st_mtime_ns, fact.st_ino), None)
        for path, fact in zip(paths, facts, strict=True)
    ]


def test_a_worker_describes_each_new_content_once_and_explains_what_it_cannot_read(photos) -> None:
    shutil.copy(photos / "01.png", photos / "copy.png")
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff no picture")
    files = sightings(photos, "01.png", "bad.jpg", "copy.png", "02.png", "04.png")
    (photos / "04.png").unlink()
    encoder = ColourEncoder()
    readings = read_files(files, Digests([]), lambda: encoder, UpdateRules(), lambda: False)
    assert encoder.embedded == 2
    assert [bool(reading.error) for reading in readings] == [False, True, False, False, True]
    assert readings[0].descriptor is readings[2].descriptor
    assert (readings[1].digest is None, readings[4].digest is None) == (False, True)
    known = Digests([readings[0].digest])
    again = read_files(files[:4], known, lambda: encoder, UpdateRules(), lambda: False)
    assert (again[0].descriptor, again[2].descriptor) == (None, None)
    assert np.array_equal(again[3].descriptor, readings[3].descriptor)
    unused = read_files(files[:1], known, lambda: pytest.fail("not needed"), UpdateRules(), lambda: False)
    assert unused == [Reading(readings[0].digest)]


def test_a_stopped_worker_finishes_what_it_has_begun(photos) -> None:
    files = sightings(photos, *(f"{place:02}.png" for place in range(40) if place % 3))
    asked = iter(range(100))  # once for each file that is hashed ahead, then once for each that is taken up
    stop_at = len(files) + 3
    readings = read_files(files, Digests([]), ColourEncoder, UpdateRules(), lambda: next(asked) >= stop_at)
    assert len(readings) == 3
    assert all(reading.descriptor is not None for reading in readings)


@pytest.fixture
def incoming(tmp_path) -> Incoming:
    directory = make_index(tmp_path / "ix")
    found = Incoming(directory, read_card(Layout(directory)))
    found.open(Digests([]), [])
    return found


def test_a_block_keeps_every_bit(incoming, photos) -> None:
    odd = b"caf\xe9 \xff.png"
    paint(photos / os.fsdecode(odd), (1, 2, 3))
    files = sightings(photos, "01.png", odd, "02.png", "04.png")
    row = np.array([0.1, -0.0, 65504, 6e-8, 1, 2, 3, 4], np.float16)
    readings = [
        Reading(b"a" * 16, row, None, 30, 20, 6, "2024-05-31T14:03:59"),
        Reading(b"\0" * 16),
        Reading(None, error="Permission denied"),
        Reading(b"d" * 16, None, "damaged"),
    ]
    key = incoming.key(files)
    incoming.write(key, files, readings)
    read = incoming.read(key)
    assert read[1:] == readings[1:]
    assert read[0].descriptor.tobytes() == row.tobytes()
    assert replace(read[0], descriptor=None) == replace(readings[0], descriptor=None)
    assert incoming.key(files) == key != incoming.key(files[::-1])


def test_only_what_is_whole_known_and_still_asked_for_is_taken_over(incoming, photos) -> None:
    files = sightings(photos, "01.png", "02.png", "04.png", "05.png", "07.png")
    row = np.ones(8, np.float16)
    readings = [
        Reading(b"a" * 16, row, width=3),
        Reading(b"b" * 16),
        Reading(b"c" * 16),
        Reading(None, error="gone"),
        Reading(b"e" * 16, row),
    ]
    incoming.write("a", files, readings)
    incoming.write("torn", files, readings)
    torn = incoming.path("torn")
    torn.write_bytes(torn.read_bytes()[:-40])
    (incoming.folder / ".b.tmp").touch()
    assert not incoming.begin("lost") or (incoming.folder / "lost.tries").exists()
    changed = replace(files[4], stat=replace(files[4].stat, size=1))
    found = incoming.open(Digests([b"b" * 16]), [*files[:4], changed])
    assert {Path(path).name for path, _ in found} == {"01.png", "02.png"}
    assert [path.name for path in incoming.folder.iterdir()] == ["a.npz"]
    other = make_index(incoming.folder.parent.with_name("other"))
    card = read_card(Layout(other))
    stranger = Incoming(incoming.folder.parent, replace(card, model=replace(card.model, pooling="mean")))
    assert stranger.open(Digests([]), files) == {}
    assert list(incoming.folder.iterdir()) == []


def test_a_block_is_given_up_when_its_workers_keep_dying(incoming) -> None:
    assert [incoming.begin("a") for _ in range(MOST_TRIES + 1)] == [True] * MOST_TRIES + [False]
    assert incoming.begin("b")


def test_without_ray_nothing_is_begun(monkeypatch, tmp_path, photos) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DependencyError) as caught:
        RayEngine()
    assert caught.value.hint == "pip install 'dinov2kit[ray]'"
    result = CliRunner().invoke(app, ["index", str(photos), "-i", str(tmp_path / "ix"), "--engine", "ray"])
    assert result.exit_code == 1
    assert "hint: pip install 'dinov2kit[ray]'" in result.stderr
    assert not (tmp_path / "ix").exists()


def test_ray_options_without_the_engine_are_refused(tmp_path, photos) -> None:
    result = CliRunner().invoke(app, ["index", str(photos), "-i", str(tmp_path / "ix"), "--address", "auto"])
    assert result.exit_code == 2
    assert "--engine ray" in result.stderr


# On a cluster of three cores on this machine.


@pytest.fixture(scope="module")
def cluster():
    """Start one cluster for all tests, and return its address."""
    ray = pytest.importorskip("ray", reason=NO_RAY)
    before = dict(os.environ)
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    handler = signal.getsignal(signal.SIGTERM)
    ray.init("local", num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    signal.signal(signal.SIGTERM, handler)
    os.environ.clear()
    os.environ |= before


def ray_engine(**settings: object) -> RayEngine:
    return RayEngine(**{"workers": 2, "decoders": 0, "block_rows": 6, **settings})


@pytest.mark.slow
def test_a_killed_worker_costs_a_block_and_the_index_equals_the_local_one(cluster, photos, tmp_path) -> None:
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (photos / "empty.png").touch()
    os.mkfifo(photos / "pipe.png")
    here = index_photos(tmp_path / "here", [photos], encoder=ColourEncoder())
    encoder = LethalEncoder(tmp_path / "notes", lethal_after=3)
    there = index_photos(tmp_path / "there", [photos], encoder=encoder, engine=ray_engine())
    assert items(tmp_path / "there") == items(tmp_path / "here")
    assert errors(tmp_path / "there") == errors(tmp_path / "here")
    assert len(there.report.errors) == 3
    assert there.report.to_json() | {"seconds": 0} == here.report.to_json() | {"seconds": 0}
    assert encoder.killed.exists()
    assert len({pid for pid, _ in encoder.batches()}) >= 2
    assert 40 <= sum(count for _, count in encoder.batches()) <= 40 + 6  # the killed block began again
    assert not (tmp_path / "there/incoming").exists()


@pytest.mark.slow
def test_an_update_with_all_kinds_of_changes_equals_the_local_one(cluster, photos, tmp_path) -> None:
    index_photos(tmp_path / "here", [photos], encoder=ColourEncoder())
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    for number in ("01", "02"):
        (photos / f"{number}.png").rename(photos / f"moved-{number}.png")
    (photos / "04.png").rename(photos / "x")
    (photos / "05.png").rename(photos / "04.png")
    (photos / "x").rename(photos / "05.png")
    shutil.copy(photos / "07.png", photos / "copy-of-old.png")
    paint(photos / "08.png", (9, 9, 200))
    os.utime(photos / "10.png", ns=(1, 10**18))
    (photos / "11.png").unlink()
    for number in range(12):
        paint(photos / "new" / f"{number}.png", (200, 10 + number, 30))
    shutil.copy(photos / "new/1.png", photos / "new/1-copy.png")
    shutil.copy(photos / "new/1.png", photos / "zz-copy.png")
    (photos / "bad.jpg").write_bytes(b"no picture")
    shutil.copy(photos / "bad.jpg", photos / "worse.jpg")
    here = index_photos(tmp_path / "here", encoder=ColourEncoder()).report
    there = index_photos(tmp_path / "there", encoder=ColourEncoder(), engine=ray_engine()).report
    assert counts(there) == counts(here)
    assert here.described == 13 <= there.described <= 13 + 2  # copies may be described in several blocks
    assert without_ids(tmp_path / "there") == without_ids(tmp_path / "here")
    assert errors(tmp_path / "there") == errors(tmp_path / "here")
    again = index_photos(tmp_path / "there", encoder=ColourEncoder(), engine=ray_engine()).report
    assert (again.unchanged, again.described) == (here.found - 2, 0)


@pytest.mark.slow
def test_a_killed_committer_is_followed_by_one_that_uses_the_finished_blocks(
    cluster, photos, tmp_path
) -> None:
    program = (
        "import sys; from pathlib import Path; from lethal_encoder import LethalEncoder\n"
        "from dinov2kit.indexes import RayEngine, index_photos\n"
        f"engine = RayEngine({cluster!r}, workers=2, decoders=0, block_rows=4)\n"
        f"encoder = LethalEncoder(Path({str(tmp_path / 'first')!r}), pause=0.4)\n"
        f"index_photos({str(tmp_path / 'there')!r}, [{str(photos)!r}], encoder=encoder, engine=engine)\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "there/incoming"
    deadline = time.monotonic() + 120
    while len(list(folder.glob("*.npz"))) < 3 and driver.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, driver.stderr.read()
    finished = len(list(folder.glob("*.npz")))
    assert 3 <= finished < 10
    assert items(tmp_path / "there") == []
    encoder = LethalEncoder(tmp_path / "second")
    report = index_photos(tmp_path / "there", [photos], encoder=encoder, engine=ray_engine()).report
    assert (report.new, report.described) == (40, 40)
    assert sum(count for _, count in encoder.batches()) <= 40 - 4 * finished
    index_photos(tmp_path / "here", [photos], encoder=ColourEncoder())
    assert items(tmp_path / "there") == items(tmp_path / "here")
    assert not folder.exists()


@pytest.mark.slow
def test_stopping_commits_in_order_and_the_next_run_goes_on(cluster, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(updating, "COMMIT_ROWS", 5)
    photos = paint_photos(tmp_path / "photos", 240, step=1)
    encoder = LethalEncoder(tmp_path / "notes", pause=0.2)
    report = index_photos(
        tmp_path / "there",
        [photos],
        encoder=encoder,
        engine=ray_engine(block_rows=80),  # more than are hashed ahead, so that a block can end in its middle
        stop=lambda: len(encoder.batches()) >= 3,
    ).report
    index_photos(tmp_path / "here", [photos], encoder=ColourEncoder())
    assert report.interrupted
    assert 0 < report.new < 80
    assert items(tmp_path / "there") == items(tmp_path / "here")[: report.new]
    before = sum(count for _, count in encoder.batches())
    waiting = Incoming(tmp_path / "there", read_card(Layout(tmp_path / "there")))
    blocks = [waiting.read(path.stem) for path in waiting.folder.glob("*.npz")]
    assert sum(map(len, blocks)) == before - report.new  # what is committed is deleted
    encoder.pause = 0
    again = index_photos(tmp_path / "there", [photos], encoder=encoder, engine=ray_engine()).report
    assert again.new == 240 - report.new
    assert before < sum(count for _, count in encoder.batches()) == 240  # nothing was begun and thrown away
    assert items(tmp_path / "there") == items(tmp_path / "here")


@pytest.mark.slow
def test_what_fails_in_a_worker_is_told_here(cluster, photos, tmp_path) -> None:
    encoder = LethalEncoder(tmp_path / "notes", fails=True)
    with pytest.raises(DeviceMemoryError, match="out of memory") as caught:
        index_photos(tmp_path / "ix", [photos], encoder=encoder, engine=ray_engine())
    assert caught.value.hint == "less"
    with pytest.raises(DeviceError, match="no GPU"):
        index_photos(tmp_path / "ix", [photos], encoder=encoder, device="cuda", engine=ray_engine())


@pytest.mark.slow
def test_the_command_makes_the_same_index_with_a_real_encoder(cluster, photos, tmp_path) -> None:
    for place in range(8, 40):
        next(photos.rglob(f"{place:02}.png")).unlink()
    words = ["index", str(photos), "--model", "untrained:vitt14", "--precision", "fp32", "--json"]
    here = CliRunner().invoke(app, [*words, "-i", str(tmp_path / "here")])
    there = CliRunner().invoke(
        app, [*words, "-i", str(tmp_path / "there"), "--engine", "ray", "--ray-workers", "1"]
    )
    assert there.exit_code == 0, there.stderr
    assert there.stderr == ""
    one, other = json.loads(here.stdout), json.loads(there.stdout)
    assert one["new"] == other["new"] == 8
    for first, second in zip(items(tmp_path / "here"), items(tmp_path / "there"), strict=True):
        assert first[:-1] == second[:-1]
        rows = [np.frombuffer(item[-1], np.float16).astype(np.float32) for item in (first, second)]
        assert np.abs(rows[0] - rows[1]).max() < 1e-3
        assert rows[0] @ rows[1] > 0.9999
