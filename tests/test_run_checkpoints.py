import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from small_run import small_config

from dinov2kit.errors import KitError, WeightsError
from dinov2kit.train.parallel import World
from dinov2kit.train.run_checkpoints import (
    find_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from dinov2kit.train.trainer import Trainer

ALONE = World(torch.device("cpu"))


def trainer(seed: int = 0) -> Trainer:
    made = Trainer(small_config("unused", seed=seed), ALONE, precision="fp32")
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.networks.student.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    made.optimizer.step()
    made.networks.follow(0.9)
    return made


def save(made: Trainer, run: Path, step: int) -> Path:
    return save_checkpoint(run, made.networks, made.optimizer, world=ALONE, facts={"step": step, "note": "x"})


def tensors(made: Trainer) -> dict[str, torch.Tensor]:
    found = {
        f"{part}.{name}": value
        for part, module in made.networks.parts()
        for name, value in module.state_dict().items()
    }
    for number, state in made.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    return {name: value.clone() for name, value in found.items()}


def test_everything_comes_back_bitwise(tmp_path: Path) -> None:
    made, other = trainer(0), trainer(1)
    save(made, tmp_path, 7)
    (saved,) = find_checkpoints(tmp_path)
    assert (saved.step, saved.facts["note"]) == (7, "x")
    wanted = tensors(made)
    assert not all(torch.equal(value, wanted[name]) for name, value in tensors(other).items())
    load_checkpoint(saved, other.networks, other.optimizer, world=ALONE)
    found = tensors(other)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


def test_a_fresh_optimiser_takes_the_moments(tmp_path: Path) -> None:
    made = trainer(0)
    save(made, tmp_path, 1)
    fresh = Trainer(small_config("unused"), ALONE, precision="fp32")
    load_checkpoint(find_checkpoints(tmp_path)[0], fresh.networks, fresh.optimizer, world=ALONE)
    wanted, found = tensors(made), tensors(fresh)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_old_ones_go_but_the_best_stays(tmp_path: Path) -> None:
    made = trainer()
    for step in (1, 2, 3, 4):
        save(made, tmp_path, step)
    (tmp_path / "checkpoints" / ".000000005.unfinished").mkdir()
    prune_checkpoints(tmp_path, keep_last=2, best_step=1)
    assert [saved.step for saved in find_checkpoints(tmp_path)] == [1, 3, 4]
    assert (tmp_path / "checkpoints" / "latest").resolve().name == "000000004"
    assert not list((tmp_path / "checkpoints").glob(".*.unfinished"))


def test_a_damaged_checkpoint_says_so(tmp_path: Path) -> None:
    made = trainer()
    path = save(made, tmp_path, 1)
    largest = max(path.glob("*.distcp"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="cannot be loaded") as caught:
        load_checkpoint(find_checkpoints(tmp_path)[0], made.networks, made.optimizer, world=ALONE)
    assert "checkpoint before" in str(caught.value.hint)


def test_a_full_disk_keeps_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer()
    save(made, tmp_path, 1)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(KitError, match="No space left"):
        save(made, tmp_path, 2)
    assert [saved.step for saved in find_checkpoints(tmp_path)] == [1]


def save_for_ever(run: str) -> None:
    torch.set_num_threads(1)
    made = trainer()
    found = find_checkpoints(Path(run))
    for step in range(found[-1].step + 1 if found else 1, 10_000):
        save(made, Path(run), step)
        prune_checkpoints(Path(run), keep_last=2, best_step=None)


@pytest.mark.skipif(torch.get_num_threads() > 1, reason="a fork needs torch on one thread")
def test_a_kill_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path: Path) -> None:
    """Twenty processes save again and again; each is killed at a random moment."""
    moments, fork = random.Random(4), multiprocessing.get_context("fork")
    loaded = trainer()
    last = 0
    for number in range(20):
        run = tmp_path / str(number % 4)  # four sit in the same place, on what the others left
        process = fork.Process(target=save_for_ever, args=(str(run),))
        process.start()
        while not find_checkpoints(run) and process.is_alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.3))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = find_checkpoints(run)
        assert found, f"kill {number} left nothing"
        load_checkpoint(found[-1], loaded.networks, loaded.optimizer, world=ALONE)
        link = run / "checkpoints" / "latest"  # for people; a kill may come before the first is made
        assert not link.is_symlink() or (link / "facts.json").is_file()
        last = max(last, found[-1].step)
    assert last > 2  # kills came while later ones were being saved
