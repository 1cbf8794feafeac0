"""The decoding pool: in order, equal to decoding in place, and no file can harm another."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from dinov2kit import ArgumentError, ImageError, KitError
from dinov2kit.decoding import DecodePool, _cgroup_cores, default_workers
from dinov2kit.images import Picture
from dinov2kit.views import CenterCrop, KeepAspect

VIEW = CenterCrop(resize=32, crop=28)
PIXELS = np.zeros((1, 1, 3), np.uint8)


def note_or_act(path: Path, log: Path) -> Picture:
    """What workers do in these tests: the name of a file says it; the width of the picture is the worker."""
    with log.open("a") as lines:
        lines.write(f"{path.name}\n")
    word = path.name.split("-")[0]
    seen = log.read_text().split().count(path.name)
    if word == "hang":
        time.sleep(600)
    elif word == "crash" or (word == "stumble" and seen == 1):
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "half":
        Connection._send = die_half_way
    elif word == "slow":
        time.sleep(0.6)
    elif word == "bug":
        raise ZeroDivisionError("by zero")
    elif word == "modules":
        alien = [name for name in ("torch", "faiss", "cv2", "h5py", "wave") if name in sys.modules]
        raise ImageError(f"modules: {alien}")
    return Picture(PIXELS, os.getpid(), 1)


def die_half_way(line: Connection, message: bytes, write=os.write) -> None:
    write(line.fileno(), message[: len(message) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def log(tmp_path) -> Path:
    return tmp_path / "log"


def acting(log: Path, *, workers: int = 2, timeout: float = 30.0) -> DecodePool:
    return DecodePool(VIEW, workers=workers, timeout=timeout, decode=partial(note_or_act, log=log))


def names(count: int, special: str = "", at: int = 0) -> list[Path]:
    return [Path(special if special and i == at else f"good-{i}") for i in range(count)]


def assert_exactly_one_failed(results, paths, bad: str, reason: str) -> None:
    assert [path for path, _ in results] == paths
    failed = {path.name: error.message for path, error in results if isinstance(error, ImageError)}
    assert list(failed) == [bad]
    assert reason in failed[bad]


def children() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children() if "dinov2kit.decoding" in " ".join(child.cmdline())
    ]


@pytest.fixture
def folder(tmp_path) -> list[Path]:
    """Twenty photos of different shapes and formats, and bad files among them."""
    noise = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    paths = []
    for i in range(20):
        path = tmp_path / f"{i:02}.{('png', 'jpg', 'webp')[i % 3]}"
        Image.fromarray(noise[i : 60 + i, : 70 + 2 * i]).save(path)
        paths.append(path)
    paths[4].write_bytes(b"")
    paths[9].write_bytes(paths[9].read_bytes()[:400])
    paths[15].unlink()
    return paths


@pytest.mark.parametrize("view", [VIEW, KeepAspect(size=112)])
def test_the_pool_equals_decoding_in_place(folder, view):
    with DecodePool(view, workers=0) as in_place, DecodePool(view, workers=2) as pool:
        expected, found = list(in_place.pictures(folder)), list(pool.pictures(folder))
    assert [path for path, _ in found] == [path for path, _ in expected] == folder
    for (_, one), (_, other) in zip(expected, found, strict=True):
        assert type(one) is type(other)
        if isinstance(one, ImageError):
            assert (one.message, one.hint) == (other.message, other.hint)
        else:
            np.testing.assert_array_equal(one.pixels, other.pixels)
            assert (one.width, one.height, one.taken_at) == (other.width, other.height, other.taken_at)
    assert [isinstance(picture, ImageError) for _, picture in found].count(True) == 3


def test_in_place_decoding_keeps_a_bug_of_the_decoder_to_its_file(log):
    with acting(log, workers=0) as pool:
        results = list(pool.pictures(names(5, "bug", at=2)))
    assert_exactly_one_failed(results, names(5, "bug", at=2), "bug", "ZeroDivisionError: by zero")


def test_workers_have_no_torch_inside_and_are_more_than_one(log):
    paths = [Path(f"slow-{i}") for i in range(4)] + [Path("modules")]
    with acting(log) as pool:
        *slow, (_, answer) = pool.pictures(paths)
    assert isinstance(answer, ImageError)
    assert answer.message == "modules: []"
    pids = {picture.width for _, picture in slow}
    assert len(pids) == 2
    assert os.getpid() not in pids


@pytest.mark.parametrize("bad", ["crash", "half", "hang", "bug"])
def test_a_file_that_ends_its_worker_costs_no_other_file(log, bad):
    paths = names(30, bad, at=7)
    start = time.perf_counter()
    with acting(log, timeout=1.0) as pool:
        results = list(pool.pictures(paths))
    reason = {
        "crash": "crashed on it, twice (signal 11)",
        "half": "crashed on it, twice (signal 9)",
        "hang": "stopped after 1 s",
        "bug": "ZeroDivisionError",
    }[bad]
    assert_exactly_one_failed(results, paths, bad, reason)
    tries = log.read_text().split()
    assert tries.count(bad) == (2 if bad in ("crash", "half") else 1)
    assert all(tries.count(f"good-{i}") == 1 for i in range(30) if i != 7)
    assert time.perf_counter() - start < 15


def test_a_worker_killed_by_chance_gets_its_file_decoded_at_the_second_try(log):
    with acting(log) as pool:
        results = list(pool.pictures(names(10, "stumble", at=3)))
    assert all(isinstance(picture, Picture) for _, picture in results)


def test_paths_are_consumed_a_bounded_distance_ahead_and_in_this_thread(log):
    consumed, threads = [], set()

    def endless():
        for i in itertools.count():
            consumed.append(i)
            threads.add(threading.get_ident())
            yield Path(f"good-{i}")

    with acting(log) as pool:
        pictures = pool.pictures(endless())
        first = [next(pictures)[0].name for _ in range(5)]
        assert first == [f"good-{i}" for i in range(5)]
        time.sleep(0.3)
        assert len(consumed) <= 5 + 2 * 8
    assert threads == {threading.get_ident()}


def test_workers_go_on_while_the_consumer_is_busy(log):
    with acting(log) as pool:
        pictures = pool.pictures(names(12))
        next(pictures)
        deadline = time.perf_counter() + 10
        while len(log.read_text().split()) < 12 and time.perf_counter() < deadline:
            time.sleep(0.02)  # the consumer embeds a batch
        assert len(log.read_text().split()) == 12


@pytest.mark.parametrize("work", ["good", "hang"])
def test_stopping_early_ends_all_workers_at_once(log, work):
    with acting(log, timeout=500.0) as pool:
        pictures = pool.pictures([Path("good"), *(Path(f"{work}-{i}") for i in range(50))])
        next(pictures)
        while len(children()) < 2:
            time.sleep(0.05)
        start = time.perf_counter()
    assert time.perf_counter() - start < 2
    assert children() == []


def test_a_pool_can_be_used_again_after_an_unfinished_round(log):
    with acting(log) as pool:
        next(pool.pictures(names(40)))
        results = list(pool.pictures(names(6)))
    assert [path for path, _ in results] == names(6)


def test_an_error_of_the_paths_reaches_the_caller(log):
    def broken():
        yield Path("good-0")
        raise OSError("the drive is gone")

    with acting(log) as pool, pytest.raises(OSError, match="drive is gone"):
        list(pool.pictures(broken()))


def test_workers_ignore_ctrl_c_from_their_birth_on(log):
    with acting(log, workers=1) as pool:
        stop = threading.Event()

        def hammer() -> None:
            while not stop.is_set():
                for child in children():
                    child.send_signal(signal.SIGINT)
                time.sleep(0.01)

        thread = threading.Thread(target=hammer)
        thread.start()
        try:
            ((_, picture),) = pool.pictures([Path("slow-0")])
        finally:
            stop.set()
            thread.join()
    assert isinstance(picture, Picture)
    assert log.read_text().split() == ["slow-0"]  # one try was enough


SCRIPT = """
import signal, sys, wave  # a script without a guard; workers must not run it
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins without it
from functools import partial
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_decoding import acting
def show(pool):
    for path, picture in pool.pictures([Path(name) for name in {names!r}]):
        print(getattr(picture, "width", picture), flush=True)
pool = acting(Path({log!r}))
if {close}:
    with pool:
        show(pool)
else:
    show(pool)
"""


def script(log: Path, names: list[str], *, close: bool = True) -> list[str]:
    tests = str(Path(__file__).parent)
    return [sys.executable, "-c", SCRIPT.format(tests=tests, log=str(log), names=names, close=close)]


def test_a_script_needs_no_main_guard_and_is_not_run_again(log, tmp_path):
    path = tmp_path / "script.py"
    path.write_text(script(log, ["modules", "good"])[-1])
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[0] == "modules: []"  # `wave` is imported by the script only
    assert len(done.stdout.splitlines()) == 2


def test_a_script_that_forgets_to_close_the_pool_still_ends(log):
    done = subprocess.run(
        script(log, ["good-0", "good-1"], close=False), capture_output=True, timeout=60, check=True
    )
    workers = [int(pid) for pid in done.stdout.split()]
    assert_all_gone(workers)


def assert_all_gone(pids: list[int], within_s: float = 3.0) -> None:
    deadline = time.perf_counter() + within_s
    while any(map(is_running, pids)) and time.perf_counter() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_do_not_outlive_a_killed_parent(log):
    names = ["slow-0", "slow-1", "good-2", "hang-3", "good-4"]  # then one worker hangs, the other waits
    parent = subprocess.Popen(script(log, names), stdout=subprocess.PIPE, text=True)
    workers = {int(parent.stdout.readline()) for _ in range(3)}
    deadline = time.perf_counter() + 10
    while "good-4" not in log.read_text() and time.perf_counter() < deadline:
        time.sleep(0.02)
    assert len(workers) == 2
    assert all(map(is_running, workers))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert_all_gone(list(workers))


def test_ctrl_c_in_the_program_ends_it_at_once(log):
    parent = subprocess.Popen(script(log, ["good-0", "good-1", "hang-2"]), stdout=subprocess.PIPE, stderr=-1)
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.send_signal(signal.SIGINT)
    try:
        assert b"KeyboardInterrupt" in parent.communicate(timeout=10)[1]
    finally:
        parent.kill()
    assert_all_gone(workers)


def test_workers_that_cannot_start_are_one_clear_error(log, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        acting(log) as pool,
        pytest.raises(KitError, match=r"no decoding worker could be started.*exit code 1"),
    ):
        list(pool.pictures(names(20)))


@pytest.mark.parametrize("options", [{"workers": -1}, {"workers": 1, "timeout": 0.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ArgumentError):
        DecodePool(VIEW, **options)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_the_default_number_of_workers_follows_affinity():
    everything = os.sched_getaffinity(0)
    assert 1 <= default_workers() <= min(16, len(everything))
    os.sched_setaffinity(0, {next(iter(everything))})
    try:
        assert default_workers() == 1
    finally:
        os.sched_setaffinity(0, everything)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, np.inf),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, np.inf),
        ({}, np.inf),
    ],
)
def test_the_quota_of_a_container_is_read(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cgroup_cores(tmp_path) == cores
