"""What several processes compute together is what one computes from all rows: targets, centre, KoLeo, heads.

Four processes start once. They are one group of 4, two of 2 and four of 1; every group gets all rows.
"""

import os
import time
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as distributed
from gloo_ranks import run_ranks

from dinov2kit.train import targets as targets_module
from dinov2kit.train.heads import ProjectionHead
from dinov2kit.train.koleo import koleo
from dinov2kit.train.soft_cross_entropy import soft_cross_entropy
from dinov2kit.train.targets import Centre, sinkhorn_targets

pytestmark = pytest.mark.xdist_group("ranks")  # the processes start once
WORLD, SIZES = 4, (1, 2, 4)
UNEVEN = {1: [14], 2: [14, 0], 4: [5, 0, 8, 1]}  # rows of each process


def unit(rows: int, dim: int, seed: int) -> torch.Tensor:
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=1)


def balanced(rows: torch.Tensor, group: object = None) -> dict[str, object]:
    """Return what targets and a centre are that see these rows of one process."""
    found: dict[str, object] = {}
    for kept in (1 << 20, 0):
        with patch.object(targets_module, "_KEPT", kept):
            targets = sinkhorn_targets(rows, unit(10, 6, 2), temperature=0.05, group=group)
        found[f"targets, {kept} bytes kept"] = targets.rows(torch.arange(len(rows)))
    far = 1000 * rows @ torch.diag(torch.linspace(-5, 1, 6, dtype=torch.float64))
    found["far"] = sinkhorn_targets(far, unit(10, 6, 2), temperature=0.05, group=group).rows(
        torch.arange(len(rows))
    )
    found["statistics"] = torch.tensor(list(vars(targets.statistics(group)).values()))
    nothing = sinkhorn_targets(rows[:0], unit(10, 6, 2), temperature=0.05, group=group)
    found["no rows"] = nothing.rows(torch.arange(0))
    centre = Centre(10).double()
    for share in (rows, rows[:0], rows[: len(rows) // 2 * 2]):
        centre.update(share, unit(10, 6, 2), group)
    found["centre"] = centre.centre
    return found


def spread(rows: torch.Tensor, top_k: int, group: object = None) -> tuple[torch.Tensor, torch.Tensor]:
    rows = rows.clone().requires_grad_()
    loss = koleo(rows, group=group, top_k=top_k)
    (3 * loss).backward()
    return loss.detach(), rows.grad


def on_a_rank(rank: int, world: int) -> dict[object, object]:
    found: dict[object, object] = {}
    for size in SIZES:
        members = [list(range(first, first + size)) for first in range(0, world, size)]
        group, _ = distributed.new_subgroups_by_enumeration(members)
        place = rank % size
        found[size, "balanced"] = balanced(unit(14, 6, 1).split(UNEVEN[size])[place], group)
        for top_k in (1, 3):
            found[size, "koleo", top_k] = spread(unit(12, 6, 3).chunk(size)[place], top_k, group)
        if size > 1:
            found[size, "one row each"] = spread(unit(size, 6, 4)[place : place + 1], 1, group)
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return run_ranks(on_a_rank, WORLD)


@pytest.mark.parametrize("size", SIZES)
def test_targets_and_centre_see_the_rows_of_all(ranks, size) -> None:
    wanted = balanced(unit(14, 6, 1))
    assert wanted["statistics"].isfinite().all()
    for first in range(0, WORLD, size):
        parts = [ranks[rank][size, "balanced"] for rank in range(first, first + size)]
        for name, whole in wanted.items():
            if name in ("statistics", "centre"):
                continue
            assert [len(part[name]) for part in parts] == (UNEVEN[size] if name != "no rows" else [0] * size)
            assert torch.allclose(torch.cat([part[name] for part in parts]), whole, atol=1e-12), name
        for part in parts:
            assert torch.allclose(part["statistics"], wanted["statistics"], atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_the_centre_is_the_mean_of_all_rows(ranks, size) -> None:
    """Halves are cut from each part; so they are restated here, part by part."""
    parts = unit(14, 6, 1).split(UNEVEN[size])
    centre = torch.zeros(10, dtype=torch.float64)
    for shares in (parts, [part[: len(part) // 2 * 2] for part in parts]):
        centre = 0.9 * centre + 0.1 * (torch.cat(list(shares)) @ unit(10, 6, 2).T).mean(dim=0)
    for rank in ranks:
        assert torch.allclose(rank[size, "balanced"]["centre"], centre, atol=1e-12)


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_the_mean_of_koleo_is_that_of_all_rows_with_its_gradients(ranks, size, top_k) -> None:
    loss, slopes = spread(unit(12, 6, 3), top_k)
    for first in range(0, WORLD, size):
        parts = [ranks[rank][size, "koleo", top_k] for rank in range(first, first + size)]
        assert torch.allclose(torch.stack([part[0] for part in parts]).mean(), loss, atol=1e-12)
        assert torch.allclose(torch.cat([part[1] for part in parts]) / size, slopes, atol=1e-12)
    if size > 1:  # a neighbour elsewhere is nearer
        alone = [spread(part, top_k)[0] for part in unit(12, 6, 3).chunk(size)]
        assert torch.stack(alone).mean() < loss - 0.05


@pytest.mark.parametrize("size", [2, 4])
def test_processes_with_one_row_each_have_neighbours(ranks, size) -> None:
    loss, slopes = spread(unit(size, 6, 4), 1)
    assert loss != 0
    parts = [ranks[rank][size, "one row each"] for rank in range(size)]
    assert torch.allclose(torch.stack([part[0] for part in parts]).mean(), loss, atol=1e-12)
    assert torch.allclose(torch.cat([part[1] for part in parts]) / size, slopes, atol=1e-12)


def small_head() -> ProjectionHead:
    head = ProjectionHead(8, 10, hidden=16, bottleneck=6)
    head.init_weights(torch.Generator().manual_seed(0))
    return head.double()


def learn(head: ProjectionHead, tokens: torch.Tensor, group: object = None) -> dict[str, torch.Tensor]:
    """Return the gradients of a mean cross-entropy and of KoLeo, through rows and prototypes of a head."""
    rows, prototypes = head.embed(tokens), head.prototypes()
    targets = sinkhorn_targets(rows + 0.1, prototypes, temperature=0.05, group=group)
    own = torch.arange(len(rows))[:, None]
    weights = torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    loss = soft_cross_entropy(rows, prototypes, targets, own, weights, temperature=0.1, chunk=2)
    (loss + 0.1 * koleo(rows, group=group)).backward()
    return {name: parameter.grad for name, parameter in head.named_parameters()}


def test_a_head_whose_weights_are_cut_into_pieces_learns_the_same(tmp_path: Path) -> None:
    """One process is enough for that: its weights are pieces that FSDP2 puts together for each method."""
    wanted = learn(small_head(), unit(12, 8, 5))
    head = small_head()
    from torch.distributed.device_mesh import init_device_mesh  # imports of a second, which ranks need not
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import DTensor

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        fully_shard(head, mesh=init_device_mesh("cpu", (1,)), reshard_after_forward=False)
        for method in ("embed", "prototypes"):
            register_fsdp_forward_method(head, method)
        slopes = learn(head, unit(12, 8, 5), distributed.group.WORLD)
        assert list(slopes) == list(wanted)
        for name, slope in slopes.items():
            assert isinstance(slope, DTensor)
            assert wanted[name].abs().max() > 1e-4
            assert torch.allclose(slope.full_tensor(), wanted[name], atol=1e-12), name
    finally:
        distributed.destroy_process_group()


def fail_or_wait(rank: int, world: int, fails: bool) -> None:
    if fails:
        raise ArithmeticError("this rank cannot count")
    time.sleep(100)


def test_a_rank_that_fails_or_hangs_is_told() -> None:
    threads = os.environ.get("OMP_NUM_THREADS")
    with pytest.raises(Exception, match="this rank cannot count"):
        run_ranks(fail_or_wait, 1, True)
    with pytest.raises(TimeoutError, match=r"ranks \[0\] of 1 did not finish fail_or_wait in 0.5 s"):
        run_ranks(fail_or_wait, 1, False, timeout=0.5)
    assert os.environ.get("OMP_NUM_THREADS") == threads
