"""What is in a batch follows from seed and step alone, whoever reads it; reading processes do as told."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dinov2kit.errors import ArgumentError, ImageError, KitError
from dinov2kit.train.batches import Batch, CropReading
from dinov2kit.train.crops import CropRecipe, cut_crops
from dinov2kit.train.loader import Loader
from dinov2kit.train.order import sample_index

RECIPE = CropRecipe(12, 8, 3)
SEED = 5

SCRIPT = """
import os, signal
from contextlib import closing
from test_loader import Noise, made

for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(name, lambda *_: None)
print("this script runs", flush=True)
with closing(iter(made(Noise(), workers=2))) as batches:
    next(batches)
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        os.killpg(0, name)
    print(1 + sum(1 for _ in batches), flush=True)
batches = iter(made(Noise(slow=0.01), workers=1, steps=(0, 1000)))
next(batches)
os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Noise:
    """Images of random pixels and sizes.

    Attributes:
        count: how many.
        bad: those that cannot be read.
        slow: seconds that each takes.
        lethal: one that ends the process that reads it.
    """

    count: int = 11
    bad: tuple[int, ...] = ()
    slow: float = 0.0
    lethal: int = -1
    digest: str = "0"
    labels: None = None

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"noise/{index}"

    def read(self, index: int) -> np.ndarray:
        time.sleep(self.slow)
        if index == self.lethal:
            os._exit(3)
        if index in self.bad:
            raise ImageError(f"noise/{index}: damaged", hint="draw it again")
        rng = np.random.default_rng(index)
        return rng.integers(0, 256, (10 + index, 30 - index, 3), dtype=np.uint8)


def made(
    images: Noise, *, batch: int = 8, micro_batch: int = 4, steps: tuple[int, int] = (0, 3), **rest
) -> Loader:
    settings = {"rank": 0, "world": 1, "workers": 0, **rest}
    start, stop = steps
    return Loader(
        CropReading(images, RECIPE, SEED),
        batch=batch,
        micro_batch=micro_batch,
        start_step=start,
        stop_step=stop,
        **settings,
    )


def by_sample(batches: Iterator[Batch]) -> dict[int, list[torch.Tensor]]:
    """Return the crops of every sample."""
    found = {}
    for batch in batches:
        b = len(batch.samples)
        for at, sample in enumerate(batch.samples.tolist()):
            assert sample not in found
            found[sample] = [
                part[at::b]
                for part in (
                    batch.global_pixels,
                    batch.local_pixels,
                    batch.global_colours,
                    batch.local_colours,
                )
            ]
    return found


def assert_equal(found: dict[int, list[torch.Tensor]], wanted: dict[int, list[torch.Tensor]]) -> None:
    assert found.keys() == wanted.keys()
    for sample, parts in wanted.items():
        for one, other in zip(found[sample], parts, strict=True):
            assert torch.equal(one, other), sample


def test_batches_hold_the_crops_of_the_images_in_order_crop_by_crop() -> None:
    images = Noise()
    chosen = sample_index(np.arange(24), 11, seed=SEED)
    batches = list(made(images))
    assert [batch.samples.tolist() for batch in batches] == [
        list(range(at, at + 4)) for at in range(0, 24, 4)
    ]
    for batch in batches:
        for at, sample in enumerate(batch.samples.tolist()):
            crops = cut_crops(images.read(int(chosen[sample])), RECIPE, seed=SEED, sample=sample)
            for crop in range(2):
                assert np.array_equal(batch.global_pixels[crop * 4 + at], crops.global_pixels[crop])
                assert np.array_equal(batch.global_colours[crop * 4 + at], crops.global_colours[crop])
            for crop in range(3):
                assert np.array_equal(batch.local_pixels[crop * 4 + at], crops.local_pixels[crop])
                assert np.array_equal(batch.local_colours[crop * 4 + at], crops.local_colours[crop])
        assert batch.replaced == []


def test_ranks_and_micro_batches_share_the_same_samples_and_pixels() -> None:
    whole = by_sample(made(Noise(), micro_batch=8))
    ranks = [list(made(Noise(), micro_batch=2, rank=rank, world=2)) for rank in range(2)]
    assert [batch.samples.tolist() for batch in ranks[0][:3]] == [[0, 1], [4, 5], [8, 9]]
    assert [batch.samples.tolist() for batch in ranks[1][:3]] == [[2, 3], [6, 7], [10, 11]]
    assert_equal(by_sample(iter([*ranks[0], *ranks[1]])), whole)


def test_a_run_that_is_resumed_sees_what_a_straight_run_sees() -> None:
    straight = by_sample(made(Noise(), steps=(0, 5)))
    resumed = by_sample(made(Noise(), steps=(3, 5)))
    assert_equal(resumed, {sample: parts for sample, parts in straight.items() if sample >= 24})
    assert list(made(Noise(), steps=(5, 5))) == []


def test_a_sample_is_new_in_every_epoch() -> None:
    """11 images in 24 draws: each is there twice at least, in other crops."""
    found = by_sample(made(Noise()))
    chosen = sample_index(np.arange(24), 11, seed=SEED)
    first, second = np.flatnonzero(chosen == chosen[0])[:2]
    assert not torch.equal(found[int(first)][0], found[int(second)][0])


def test_images_that_cannot_be_read_are_replaced_and_reported() -> None:
    images = Noise(bad=(2, 7))
    batches = list(made(images))
    chosen = sample_index(np.arange(24), 11, seed=SEED)
    reported = {bad for batch in batches for bad in batch.replaced}
    assert reported == {(at, f"noise/{at}", f"noise/{at}: damaged") for at in (2, 7)}
    intact = by_sample(made(Noise()))
    for sample, parts in by_sample(iter(batches)).items():
        alike = all(torch.equal(one, other) for one, other in zip(parts, intact[sample], strict=True))
        assert alike == (chosen[sample] not in (2, 7))


def test_a_set_without_a_readable_image_is_an_error_with_its_reason() -> None:
    with pytest.raises(ImageError, match=r"none of 3 images .* damaged") as caught:
        list(made(Noise(3, bad=(0, 1, 2))))
    assert caught.value.hint is not None


def test_without_local_crops_there_are_none() -> None:
    loader = Loader(
        CropReading(Noise(), CropRecipe(12, 8, 0), SEED),
        batch=4,
        micro_batch=2,
        rank=0,
        world=1,
        start_step=0,
        stop_step=1,
        workers=0,
    )
    batch = next(iter(loader))
    assert batch.local_pixels.shape == (0, 8, 8, 3)
    assert len(batch.local_colours) == 0


def test_waiting_is_measured_and_counted_once() -> None:
    loader = made(Noise(slow=0.01), micro_batch=2, steps=(0, 1))
    with closing(iter(loader)) as batches:
        next(batches)
        time.sleep(0.2)
        next(batches)
    assert 0.04 <= loader.take_waited() < 0.2
    assert loader.take_waited() == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"micro_batch": 3},
        {"micro_batch": 0},
        {"batch": 0},
        {"world": 3},
        {"rank": 1},
        {"rank": -1},
        {"steps": (3, 2)},
        {"steps": (-1, 2)},
        {"workers": -1},
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match=r"wanted|do not fill"):
        made(Noise(), **wrong)  # type: ignore[arg-type]


def test_any_number_of_reading_processes_gives_the_same_batches_and_they_end_with_the_loop() -> None:
    here = list(made(Noise(bad=(2, 7))))
    others = multiprocessing.active_children()
    loader = made(Noise(bad=(2, 7)), workers=2)
    there = list(loader)
    assert_equal(by_sample(iter(there)), by_sample(iter(here)))
    assert [batch.samples.tolist() for batch in there] == [batch.samples.tolist() for batch in here]
    assert [batch.replaced for batch in there] == [batch.replaced for batch in here]
    with closing(iter(loader)) as batches:
        next(batches)
        assert len(multiprocessing.active_children()) == len(others) + 2
    assert multiprocessing.active_children() == others
    with pytest.raises(ImageError, match="none of 3 images") as caught:  # as it was raised, with its hint
        list(made(Noise(3, bad=(0, 1, 2)), workers=1))
    assert caught.value.hint is not None
    assert "Traceback" not in str(caught.value)
    assert multiprocessing.active_children() == others


def test_a_reading_process_that_dies_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    often = (0.2,)  # seconds between two looks at the processes; torch has 5
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", often)
    lethal = int(sample_index(np.arange(1), 11, seed=SEED)[0])
    with pytest.raises(KitError, match="a process that reads images died") as caught:
        list(made(Noise(lethal=lethal), workers=1))
    assert "reading.workers" in str(caught.value.hint)


def test_reading_goes_on_through_signals_to_the_group_and_ends_when_the_parent_is_killed(
    tmp_path: Path,
) -> None:
    """The script has no `__main__` guard; `run` waits until the last process that can write has ended."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, "utf-8")
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
    )
    assert "Traceback" not in run.stderr
    assert run.stdout.split("\n") == ["this script runs", "6", ""]
    assert run.returncode == -signal.SIGKILL


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_pixels_are_pinned_for_a_gpu() -> None:
    for batch in made(Noise(), workers=1, pin=True):
        assert batch.global_pixels.is_pinned()
        assert batch.local_pixels.is_pinned()
