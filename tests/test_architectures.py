"""What the name of an architecture means, and which name a shape has."""

import dataclasses

import pytest

from dinov2kit import ArgumentError, WeightsError
from dinov2kit.architectures import ARCHITECTURES, find_architecture, name_architecture

SIZES = {  # embed_dim, depth, num_heads, ffn_hidden: dinov2 release; t and n are of this project
    "n": (96, 3, 3, 384),
    "t": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "g": (1536, 40, 24, 4096),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_known_name_means_its_released_shape(name):
    assert find_architecture(name) == ARCHITECTURES[name]
    assert name_architecture(ARCHITECTURES[name]) == name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("patch", [4, 14, 16])
def test_a_size_and_a_patch_make_a_shape(size, patch):
    shape = find_architecture(f"vit{size}{patch}")
    numbers = (shape.embed_dim, shape.depth, shape.num_heads, shape.ffn_hidden)
    assert (*numbers, shape.patch_size) == (*SIZES[size], patch)
    assert shape.ffn == ("swiglu" if size == "g" else "mlp")


@pytest.mark.parametrize(
    ("name", "registers"), [("vits16", 0), ("vits16_reg", 4), ("ViTS16-reg4", 4), ("dinov2_vitb8_reg14", 14)]
)
def test_registers_bring_their_rule_for_positions(name, registers):
    shape = find_architecture(name)
    assert shape.num_registers == registers
    rule = (shape.interpolate_offset, shape.interpolate_antialias)
    assert rule == ((0.0, True) if registers else (0.1, False))


def test_options_change_what_they_name_and_nothing_else():
    plain = find_architecture("vits14")
    changed = find_architecture(
        "vits14", image_size=112, ffn="swiglu", num_registers=2, in_channels=1, layer_scale=1e-5
    )
    assert changed == dataclasses.replace(
        plain,
        pos_grid=8,
        ffn="swiglu",
        ffn_hidden=1024,
        num_registers=2,
        interpolate_offset=0.0,
        interpolate_antialias=True,
        in_channels=1,
        layer_scale=1e-5,
    )
    assert find_architecture("vitb14_reg", num_registers=0) == find_architecture("vitb14")
    assert find_architecture("vitg14", ffn="mlp").ffn_hidden == 6144


@pytest.mark.parametrize("name", ["vitn4", "vits16", "vitl16_reg", "vitb14_reg8", "vitt16"])
def test_a_shape_knows_its_name_whatever_its_images_are(name):
    assert name_architecture(find_architecture(name, image_size=96 if "4" not in name else 112)) == name
    assert name_architecture(find_architecture(name, in_channels=2, layer_scale=None)) == name
    assert name_architecture(dataclasses.replace(find_architecture(name), depth=5)) is None


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("vitx14", "vitt14"), ("vits14_rge", "vits14_reg"), ("vit14s", "vits14"), ("", "vit")],
)
def test_unknown_names_are_refused_with_the_nearest(name, nearest):
    with pytest.raises(WeightsError, match="no architecture") as caught:
        find_architecture(name)
    assert nearest in str(caught.value.hint)
    for impossible in ("vits0", "vits14_reg0", "vits", "vits14_register"):
        with pytest.raises(WeightsError):
            find_architecture(impossible)


def test_images_that_are_no_whole_patches_are_refused():
    with pytest.raises(ArgumentError, match="96 pixels") as caught:
        find_architecture("vits14", image_size=96)
    assert "98" in str(caught.value.hint)
    with pytest.raises(ArgumentError, match="in_channels is 0"):
        find_architecture("vits14", in_channels=0)
