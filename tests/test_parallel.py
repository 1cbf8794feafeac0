import pytest
import torch

from dinov2kit.errors import ArgumentError, DeviceError
from dinov2kit.train.parallel import World, first_host, joined_world, place_of

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_NTASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "123456",
    "SLURM_JOB_NODELIST": "gpu[017-018,021]",
}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu[017-018,021]", "gpu017"),
        ("login1", "login1"),
        ("a1,b2", "a1"),
        ("n[1,5]-ib", "n1-ib"),
        ("cpu-3,gpu[1-2]", "cpu-3"),
    ],
)
def test_the_first_host_of_a_node_list_is_found(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_torchrun_and_slurm_say_who_a_process_is() -> None:
    place = place_of(TORCHRUN)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.address, place.port) == (3, 8, 1, "a", 29500)
    place = place_of(SLURM)
    assert place is not None
    assert (place.rank, place.size, place.local_rank, place.address) == (9, 16, 1, "gpu017")
    assert place.port == place_of({**SLURM, "SLURM_PROCID": "0"}).port  # type: ignore[union-attr]
    assert place_of({**SLURM, **TORCHRUN}) == place_of(TORCHRUN)


def test_a_process_that_nobody_launched_is_alone() -> None:
    assert place_of({}) is None
    assert place_of({**SLURM, "SLURM_NTASKS": "1"}) is None
    without_step = {name: value for name, value in SLURM.items() if name != "SLURM_STEP_ID"}
    assert place_of(without_step) is None  # inside salloc, but not started by srun


def test_an_incomplete_launcher_is_refused() -> None:
    with pytest.raises(ArgumentError, match="MASTER_PORT"):
        place_of({name: value for name, value in TORCHRUN.items() if name != "MASTER_PORT"})


def test_a_device_that_is_absent_is_refused() -> None:
    with pytest.raises(DeviceError, match="xpu"), joined_world("xpu"):
        pass


def test_a_world_of_one_agrees_with_itself() -> None:
    world = World(torch.device("cpu"))
    rows = torch.arange(6.0).view(3, 2)
    assert torch.equal(world.gather(rows), rows)
    assert torch.equal(world.mean(rows), rows)
    assert world.largest([1.0, 0.5]) == [1.0, 0.5]
    assert world.announce("said") == "said"
    assert world.leads
