"""The same run on one, two and four processes that talk by gloo, in whole copies and in pieces (FSDP2)."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gloo_ranks import run_ranks
from small_run import small_config

from dinov2kit.checkpoints import read_checkpoint
from dinov2kit.train.fitting import fit
from dinov2kit.train.metrics import read_metrics
from dinov2kit.train.parallel import World
from dinov2kit.train.run_checkpoints import find_checkpoints, load_checkpoint
from dinov2kit.train.run_config import read_run_config
from dinov2kit.train.train_report import TrainProgress
from dinov2kit.train.trainer import Trainer

AWAKE = {"layer_scale": 1.0}  # from 1e-5 all class tokens are nearly equal, and KoLeo is all rounding
SLOW = {"lr": 1e-3}  # the rate of the release; at 1e-2 ten steps of Adam make 1e-5 of a rounding of 1e-7
TAUGHT = ("class_token_distance", "patch_tokens_distance", "class_token_cosine", "patch_tokens_cosine")
pytestmark = pytest.mark.xdist_group("ranks")  # the runs are made once
CHANGES: dict[str, dict[str, Any]] = {
    "fsdp": {"backbone": AWAKE, "optim": SLOW, "scale": {"shard": "fsdp"}},
    "replicate": {"backbone": AWAKE, "optim": SLOW, "scale": {"shard": "replicate"}},
    "softmax": {
        "backbone": AWAKE,
        "optim": SLOW,
        "scale": {"shard": "fsdp"},
        "loss": {"centring": "softmax", "shared_head": False},
    },
    "features": {
        "preset": "distill-features",
        "backbone": AWAKE,
        "optim": SLOW,
        "crops": {"local_count": 0},
        "loss": {"koleo": 0.0},
        "distill": {"teacher": "untrained:vitn4:1", "by": "features", "hidden": 16},
        "scale": {"shard": "fsdp"},
    },
}


def train(rank: int, world: int, folder: str, names: list[str]) -> dict[str, Any]:
    """Do or go on with some runs, and return what the last step of each said."""
    for name in names:
        report = fit(small_config(Path(folder, name), **CHANGES[name.split("-")[0]]))
        assert report.state == "finished"
        assert report.leads == (rank == 0)
    return {name: read_metrics(Path(folder, name))[-1] for name in names}


def train_and_die(rank: int, world: int, folder: str, name: str) -> None:
    """Die at step 7, having saved at step 5."""

    def watch(progress: TrainProgress) -> None:
        if progress.step == 7 and progress.stage == "train":
            os.kill(os.getpid(), signal.SIGKILL)

    fit(small_config(Path(folder, name), **CHANGES[name.split("-")[0]]), watch=watch)


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the last checkpoint, which one process alone can load."""
    trainer = Trainer(read_run_config(run), World(torch.device("cpu")), precision="fp32")
    (*_, last) = find_checkpoints(run)
    assert last.step == 10
    load_checkpoint(last, trainer.networks, trainer.optimizer, world=trainer.world)
    found = {
        f"{part}.{name}": value
        for part, module in trainer.networks.parts()
        for name, value in module.state_dict().items()
    }
    for name, parameter in trainer.networks.student.named_parameters():
        found |= {f"{key}.{name}": value for key, value in trainer.optimizer.state[parameter].items()}
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run everything once: two processes that die and go on, then two, then four."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(Exception, match="SIGKILL"):
        run_ranks(train_and_die, 2, str(folder), "fsdp-2-killed")
    assert [saved.step for saved in find_checkpoints(folder / "fsdp-2-killed")] == [5]
    shutil.copytree(folder / "fsdp-2-killed", folder / "fsdp-2-to-4", symlinks=True)
    run_ranks(train, 2, str(folder), ["fsdp-2", "replicate-2", "softmax-2", "features-2", "fsdp-2-killed"])
    run_ranks(train, 4, str(folder), ["fsdp-4", "fsdp-2-to-4"])
    for name in ("fsdp", "softmax", "features"):
        fit(small_config(folder / f"{name}-1", **CHANGES[name]))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp-2", "replicate-2", "fsdp-4", "softmax-2", "features-2"])
def test_many_processes_learn_what_one_learns(runs: Path, name: str) -> None:
    alone = runs / f"{name.split('-')[0].replace('replicate', 'fsdp')}-1"
    wanted, found = read_metrics(alone), read_metrics(runs / name)
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for before, now in zip(wanted, found, strict=True):
        for key in (
            "loss",
            "dino_local",
            "dino_global",
            "ibot",
            "koleo",
            "target_entropy",
            "rankme",
            "knn",
            *TAUGHT,
        ):
            if key in before:
                assert now[key] == pytest.approx(before[key], abs=1e-5), (key, now["step"])
    alike = weights_of(alone)
    for key, value in weights_of(runs / name).items():
        if key.startswith("exp_avg."):  # of weights whose gradient is zero Adam makes noise
            np.testing.assert_allclose(value, alike[key], atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_two_processes_that_were_killed_end_as_if_they_had_not_been(runs: Path) -> None:
    wanted, found = weights_of(runs / "fsdp-2"), weights_of(runs / "fsdp-2-killed")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_two_processes_that_were_killed_go_on_as_four(runs: Path) -> None:
    wanted, found = read_metrics(runs / "fsdp-2"), read_metrics(runs / "fsdp-2-to-4")
    assert [line["step"] for line in found] == [line["step"] for line in wanted]
    for before, now in zip(wanted, found, strict=True):
        for key in ("loss", "dino_local", "dino_global", "ibot", "koleo"):
            if key in before:
                assert now[key] == pytest.approx(before[key], abs=1e-5), (key, now["step"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fsdp-1", "fsdp-2", "replicate-2", "fsdp-4"])
def test_the_export_is_the_teacher_whole(runs: Path, name: str) -> None:
    export = read_checkpoint(runs / name / "export" / "teacher.safetensors")
    wanted = weights_of(runs / name)
    for key, value in export.state.items():
        assert torch.equal(value, wanted[f"teacher.backbone.{key}"]), key
