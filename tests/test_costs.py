import pytest
import torch
from small_run import small_config

from dinov2kit.train.costs import count_costs, crops_masked
from dinov2kit.train.networks import backbone_config, build_networks
from dinov2kit.train.parallel import World
from dinov2kit.train.train_config import TrainConfig


def config(model: str, **groups: object) -> TrainConfig:
    patch = int(model[4:6])
    settings = {
        "data": "drawn-shapes",
        "out": "unused",
        "model": model,
        "steps": 1,
        "crops": {"local_size": 98 if patch == 14 else 96},
        **groups,
    }
    return TrainConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("model", "tera"),
    [("vits14", 0.166), ("vitb14", 0.593), ("vitl14", 2.044), ("vits16", 0.124), ("vitl16", 1.538)],
)
def test_the_operations_for_an_image_are_those_counted_by_hand(model: str, tera: float) -> None:
    """training.md, section 2.2: a shared head of 65,536 prototypes, 30 % masked on half the global crops."""
    found = count_costs(config(model), micro_batch=1, precision="bf16").flops_per_image
    assert found / 1e12 == pytest.approx(tera, rel=0.03)


def test_a_forward_pass_is_counted_as_torch_counts_it() -> None:
    """The share of the backbone grows as FlopCounterMode says when crops grow."""
    from torch.utils.flop_counter import FlopCounterMode

    networks = build_networks(small_config("unused"), World(torch.device("cpu")), precision="fp32")
    backbone = networks.teacher["backbone"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone(torch.zeros(1, 3, 16, 16))
    wanted = counter.get_total_flops() + 3 * 4 * 17**2 * 96  # torch leaves out its attention on a CPU
    one = small_config("unused", crops={"local_count": 1, "local_size": 16})
    none = small_config("unused", crops={"local_count": 0, "local_size": 16})
    per_crop = [count_costs(c, micro_batch=1, precision="fp32").flops_per_image for c in (one, none)]
    head_row = 3 * 2 * sum(p.numel() for p in networks.student["dino_head"].parameters())
    assert (per_crop[0] - per_crop[1] - head_row) / 3 == pytest.approx(wanted, rel=1e-6)


def test_state_is_twenty_bytes_a_number_and_activations_follow_the_micro_batch() -> None:
    networks = build_networks(small_config("unused"), World(torch.device("cpu")), precision="fp32")
    costs = [count_costs(small_config("unused"), micro_batch=n, precision="fp32") for n in (1, 2, 3)]
    assert costs[0].parameters == sum(p.numel() for p in networks.student.parameters())
    assert costs[0].state_bytes == 20 * costs[0].parameters
    first, second, third = (cost.activation_bytes for cost in costs)
    assert third - second == pytest.approx(second - first, rel=1e-3)
    cheaper = small_config("unused", scale={"recompute": True})
    assert count_costs(cheaper, micro_batch=3, precision="fp32").activation_bytes < third


def test_dropped_branches_and_hidden_patches_count() -> None:
    dropped = config("vitl16", backbone={"drop_path": 0.3})
    whole = config("vitl16")
    ratio = [count_costs(c, micro_batch=1, precision="bf16").flops_per_image for c in (dropped, whole)]
    assert ratio[0] / ratio[1] == pytest.approx(1.155 / 1.538, rel=0.03)
    assert crops_masked(whole) == pytest.approx(0.3)
    assert backbone_config(whole).pos_grid == 14
