"""What a run starts from: the same function where the shapes agree, the nearest one where they do not."""

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

from dinov2kit.architectures import ViTConfig
from dinov2kit.checkpoints import write_checkpoint
from dinov2kit.errors import WeightsError
from dinov2kit.positions import interpolate_positions
from dinov2kit.train.exporting import write_export
from dinov2kit.train.heads import ProjectionHead
from dinov2kit.train.starting import (
    resize_patch_embedding,
    resize_positions,
    spread_channels,
    starting_heads,
    starting_weights,
)
from dinov2kit.vit import VisionTransformer

SHAPE = ViTConfig(
    embed_dim=64, depth=2, num_heads=1, ffn_hidden=96, patch_size=4, pos_grid=6, num_registers=2
)
GATED = dataclasses.replace(SHAPE, ffn="swiglu")


def drawn(config, seed=0):
    vit = VisionTransformer(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.2, generator=generator)
    return vit


def images(config, side=24, count=2):
    shape = (count, config.in_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def start(tmp_path):
    """Return a function that writes a model and starts another shape from it."""

    def start(source, config):
        vit = drawn(source)
        write_checkpoint(vit.state_dict(), source, tmp_path / "m.safetensors")
        said = []
        state = starting_weights(config, tmp_path / "m.safetensors", report=said.append)
        return vit, VisionTransformer.from_state(config, state), said

    return start


@torch.inference_mode()
def prenorm(vit, pixels):
    return vit(pixels).prenorm


@pytest.mark.parametrize("config", [SHAPE, GATED], ids=["mlp", "gated"])
def test_the_same_shape_starts_as_the_same_function(start, config):
    vit, started, said = start(config, config)
    assert torch.equal(prenorm(started, images(config)), prenorm(vit, images(config)))
    assert len(said) == 1
    assert "m.safetensors" in said[0]


@pytest.mark.parametrize("grid", [4, 9])
def test_positions_are_resized_as_they_are_interpolated(start, grid):
    source = dataclasses.replace(SHAPE, interpolate_offset=0.0, interpolate_antialias=grid < 6)
    vit, started, said = start(source, dataclasses.replace(source, pos_grid=grid))
    wanted = interpolate_positions(vit.pos_embed, rows=grid, cols=grid, offset=0.0, antialias=grid < 6)
    assert torch.equal(started.pos_embed, wanted)
    pixels = images(source, side=4 * grid)
    torch.testing.assert_close(prenorm(started, pixels), prenorm(vit, pixels), atol=1e-5, rtol=0)
    assert any(f"from 6 x 6 to {grid} x {grid}" in sentence for sentence in said)


def test_a_shrunken_grid_of_positions_keeps_a_plane_in_its_middle():
    rows, cols = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    planes = torch.stack([rows, cols, torch.ones(12, 12)], dim=-1).reshape(1, 144, 3)
    stored = torch.cat([torch.full((1, 1, 3), 7.0), planes], dim=1)
    resized = resize_positions(stored, 6)
    assert torch.equal(resized[:, 0], stored[:, 0])
    middle = resized[0, 1:].reshape(6, 6, 3)[2:4, 2:4]
    wanted = torch.tensor([4.5, 6.5])
    torch.testing.assert_close(middle[..., 0], wanted[:, None].expand(2, 2), atol=0.05, rtol=0)
    torch.testing.assert_close(middle[..., 1], wanted[None].expand(2, 2), atol=0.05, rtol=0)


@pytest.mark.parametrize(("stored", "channels"), [(3, 1), (3, 7), (1, 3), (4, 2)])
def test_other_channels_see_an_equal_image_as_strongly_as_before(stored, channels):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, stored, 4, 4, generator=generator, dtype=torch.float64)
    grey = torch.randn(2, 1, 8, 8, generator=generator, dtype=torch.float64)
    before = functional.conv2d(grey.expand(-1, stored, -1, -1), weight, stride=4)
    after = functional.conv2d(grey.expand(-1, channels, -1, -1), spread_channels(weight, channels), stride=4)
    torch.testing.assert_close(after, before, atol=1e-12, rtol=0)


def test_a_model_of_other_channels_starts_with_the_same_answer_to_grey(start):
    config = dataclasses.replace(SHAPE, in_channels=5)
    vit, started, said = start(SHAPE, config)
    grey = images(SHAPE)[:, :1]
    wanted = prenorm(vit, grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(prenorm(started, grey.expand(-1, 5, -1, -1)), wanted, atol=1e-4, rtol=0)
    assert any("from 3 to 5 channels" in sentence for sentence in said)


def resized(patches, side):
    return functional.interpolate(patches, size=(side, side), mode="bilinear", antialias=True)


@pytest.mark.parametrize("patch", [5, 8])
def test_larger_patches_are_seen_exactly_as_before(patch):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 3, 4, 4, generator=generator, dtype=torch.float64)
    patches = torch.randn(50, 3, 4, 4, generator=generator, dtype=torch.float64)
    before = functional.conv2d(patches, weight).flatten(1)
    after = functional.conv2d(resized(patches, patch), resize_patch_embedding(weight, patch)).flatten(1)
    torch.testing.assert_close(after, before, atol=1e-9, rtol=0)
    plain = resized(weight, patch) * (16 / patch**2)
    error = (functional.conv2d(resized(patches, patch), plain).flatten(1) - before).norm()
    assert error > 0.1 * before.norm()


def test_smaller_patches_are_seen_better_than_with_weights_resized_like_pixels():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 3, 8, 8, generator=generator, dtype=torch.float64)
    patches = torch.randn(400, 3, 8, 8, generator=generator, dtype=torch.float64)
    before = functional.conv2d(patches, weight).flatten(1)
    fitted = functional.conv2d(resized(patches, 5), resize_patch_embedding(weight, 5)).flatten(1)
    plain = functional.conv2d(resized(patches, 5), resized(weight, 5) * (64 / 25)).flatten(1)
    assert (fitted - before).norm() < 0.95 * (plain - before).norm()


def test_another_patch_size_is_said_and_fits(start):
    config = dataclasses.replace(SHAPE, patch_size=6)
    vit, started, said = start(SHAPE, config)
    small = images(SHAPE)
    patches = small.unflatten(2, (6, 4)).unflatten(4, (6, 4)).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4)
    grown = resized(patches, 6).reshape(2, 6, 6, 3, 6, 6).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 36, 36)
    torch.testing.assert_close(prenorm(started, grown), prenorm(vit, small), atol=1e-3, rtol=0)
    assert any("resized from 4 to 6 pixels" in sentence for sentence in said)


def test_registers_are_taken_left_out_or_new(start):
    vit, fewer, said = start(SHAPE, dataclasses.replace(SHAPE, num_registers=1))
    assert torch.equal(fewer.register_tokens, vit.register_tokens[:, :1])
    assert any("1 of 2 register tokens are left out" in sentence for sentence in said)
    _, more, said = start(SHAPE, dataclasses.replace(SHAPE, num_registers=5))
    assert torch.equal(more.register_tokens[:, :2], vit.register_tokens)
    new = more.register_tokens[:, 2:]
    assert 0 < float(new.detach().abs().max()) < 1e-5
    assert any("3 of 5 register tokens are new" in sentence for sentence in said)
    _, none, _ = start(SHAPE, dataclasses.replace(SHAPE, num_registers=0))
    assert none.register_tokens is None


@pytest.mark.parametrize("config", [SHAPE, GATED], ids=["mlp", "gated"])
@pytest.mark.parametrize(("before", "after"), [(None, 1e-5), (1e-5, None)])
def test_layer_scale_that_only_one_side_has_changes_no_token(start, config, before, after):
    source = dataclasses.replace(config, layer_scale=before)
    vit, started, said = start(source, dataclasses.replace(config, layer_scale=after))
    torch.testing.assert_close(
        prenorm(started, images(config)), prenorm(vit, images(config)), atol=1e-5, rtol=1e-5
    )
    assert any(sentence.startswith("LayerScale") for sentence in said)


@pytest.mark.parametrize(
    "changed", [{"depth": 3}, {"embed_dim": 128, "ffn_hidden": 192}, {"ffn": "swiglu"}, {"num_heads": 2}]
)
def test_another_network_is_refused_with_both_shapes(start, changed):
    with pytest.raises(WeightsError) as caught:
        start(SHAPE, dataclasses.replace(SHAPE, **changed))
    for name, value in changed.items():
        assert f"{name} {value}" in caught.value.message
        assert f"{name} {getattr(SHAPE, name)}" in caught.value.message


def test_heads_are_those_beside_the_weights_and_of_no_one_else(tmp_path, monkeypatch):
    head = ProjectionHead(64, 32, hidden=24, bottleneck=8)
    heads = {f"dino_head.{name}": tensor for name, tensor in head.state_dict().items()}
    write_export(tmp_path / "export", state=drawn(SHAPE).state_dict(), config=SHAPE, heads=heads, card={})
    for init in (tmp_path, str(tmp_path / "export" / "teacher.safetensors")):
        found = starting_heads(init)
        assert found is not None
        state, shapes = found
        assert all(torch.equal(state[name], heads[name]) for name in heads)
        wanted = {"dim": 64, "prototypes": 32, "hidden": 24, "bottleneck": 8, "norm": "weight"}
        assert shapes == {"dino_head": wanted}
    monkeypatch.chdir(tmp_path / "export")
    Path("vitb14").mkdir()
    for init in ("vits14", "vitb14", "untrained:vitt14"):
        assert starting_heads(init) is None
    write_export(tmp_path / "export", state=drawn(SHAPE).state_dict(), config=SHAPE, heads={}, card={})
    assert starting_heads(tmp_path) is None
    said = []
    assert starting_weights(SHAPE, tmp_path, report=said.append).keys() == drawn(SHAPE).state_dict().keys()
