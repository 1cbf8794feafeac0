"""The backbone equals the released one: golden numbers, counts, invariances, gradients.

Golden numbers: the official modules of facebookresearch/dinov2 at b8931f7, on CPU with torch 2.13.0, fp32 and
without xformers, printed to 6 decimals (sums: 3 or 5). Tolerance: 1e-5 for values; for sums the last printed
digit and 1e-6 of the value.
"""

import dataclasses
import math

import pytest
import torch

from dinov2kit import ArgumentError
from dinov2kit.architectures import swiglu_hidden
from dinov2kit.vit import ARCHITECTURES, VisionTransformer, ViTConfig, interpolate_positions

PLAIN = ViTConfig(embed_dim=64, depth=2, num_heads=2, ffn_hidden=256, pos_grid=4)
REGISTERS = ViTConfig(
    embed_dim=64,
    depth=2,
    num_heads=2,
    ffn="swiglu",
    ffn_hidden=176,
    num_registers=4,
    pos_grid=4,
    interpolate_offset=0.0,
    interpolate_antialias=True,
)
CONFIGS = {"A": PLAIN, "B": REGISTERS}

CLASS_TOKEN = {  # variant, height, width: class_token[0, :4]
    ("A", 56, 56): [0.573371, 0.884461, 1.545833, 0.417276],
    ("A", 42, 70): [1.217376, 0.824964, 1.220592, -0.325180],
    ("A", 28, 28): [1.306676, 0.788846, 1.117257, -0.458082],
    ("B", 56, 56): [0.487307, 1.344585, 1.458805, 0.685995],
    ("B", 42, 70): [0.531474, 1.361020, 1.438543, 0.644716],
    ("B", 28, 28): [0.409531, 1.313059, 1.488962, 0.753918],
}
PATCH_TOKENS = {  # patch_tokens[1, 0, :3] and the sum of all magnitudes
    ("A", 56, 56): ([1.387779, -0.030855, -0.438027], 1690.389),
    ("A", 42, 70): ([0.898760, 0.502673, -0.064341], 1580.048),
    ("A", 28, 28): ([-0.740985, -1.150789, -0.819194], 416.930),
    ("B", 56, 56): ([0.715710, 1.331282, 1.177446], 1778.239),
    ("B", 42, 70): ([-1.123542, -0.728750, 0.272443], 1627.239),
    ("B", 28, 28): ([-1.069192, -1.404646, -0.432352], 446.066),
}
POSITIONS = {  # interpolated position embedding [0, 1, :3] and the sum of all magnitudes
    ("A", 56, 56): ([0.048484, 0.029210, -0.003802], 34.65765),
    ("A", 42, 70): ([0.036661, 0.023937, -0.0000446], 16.11717),
    ("A", 28, 28): ([0.000125, 0.003369, 0.005028], 4.63809),
    ("B", 56, 56): ([0.048484, 0.029210, -0.003802], 34.65765),
    ("B", 42, 70): ([0.020187, 0.014390, 0.001825], 10.94734),
    ("B", 28, 28): ([0.005558, 0.001524, -0.003226], 3.17951),
}
MASKED_CLASS_TOKEN = {  # class_token[:, :3] at 42 x 70, see `masks_of_42_by_70`
    "A": [[0.520113, 0.877656, 1.554207], [-0.316301, 0.436199, 1.546188]],
    "B": [[0.533720, 1.363629, 1.423957], [0.557042, 1.372966, 1.403313]],
}
LAYERS = {  # get_intermediate_layers(n=2) at 42 x 70: map[0, 0, 0, :3] and class token [0, :2] of both blocks
    "A": [
        ([1.191278, 0.759436, -0.968449], [1.006683, 0.852854]),
        ([1.294576, 1.063916, -0.345070], [1.217376, 0.824964]),
    ],
    "B": [
        ([-1.482276, -1.471801, -1.514810], [0.112285, 1.129802]),
        ([-1.041462, -1.089952, -1.150740], [0.531474, 1.361020]),
    ],
}
SIZES = [(56, 56), (42, 70), (28, 28)]
PUBLISHED = {  # state-dict entries and parameters
    "vits14": (175, 22_056_576),
    "vitb14": (175, 86_580_480),
    "vitl14": (343, 304_368_640),
    "vitg14": (567, 1_136_480_768),
    "vits14_reg": (176, 22_058_112),
    "vitb14_reg": (176, 86_583_552),
    "vitl14_reg": (344, 304_372_736),
    "vitg14_reg": (568, 1_136_486_912),
}


def golden_state(config):
    """Fill tensor i with 0.05 sin(0.7 k + i) over its flat index k; norm weights and gammas one higher."""
    state = {}
    for i, (name, tensor) in enumerate(VisionTransformer(config).state_dict().items()):
        flat = 0.05 * torch.sin(0.7 * torch.arange(tensor.numel(), dtype=torch.float64) + i)
        if name.endswith("gamma") or ("norm" in name and name.endswith("weight")):
            flat += 1
        state[name] = flat.float().reshape(tensor.shape)
    return state


def waves(height, width):
    count = 2 * 3 * height * width
    flat = torch.sin(0.013 * torch.arange(count, dtype=torch.float64))
    return flat.float().reshape(2, 3, height, width)


def masks_of_42_by_70():
    masks = torch.zeros(2, 15, dtype=torch.bool)
    masks[0, 3] = masks[1, 7] = masks[1, 8] = True
    return masks


def near(values, wanted, tolerance=1e-5):
    torch.testing.assert_close(values, torch.tensor(wanted), atol=tolerance, rtol=0)


@pytest.fixture(params=["A", "B"])
def variant(request):
    return request.param


@pytest.fixture
def vit(variant):
    config = CONFIGS[variant]
    return VisionTransformer.from_state(config, golden_state(config))


def positions_of(vit, rows, cols, **changed):
    rule = {"offset": vit.config.interpolate_offset, "antialias": vit.config.interpolate_antialias}
    return interpolate_positions(vit.pos_embed, rows=rows, cols=cols, **(rule | changed))


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_tokens_equal_the_official_modules(vit, variant, size):
    tokens = vit(waves(*size))
    near(tokens.class_token[0, :4], CLASS_TOKEN[variant, *size])
    corner, total = PATCH_TOKENS[variant, *size]
    near(tokens.patch_tokens[1, 0, :3], corner)
    assert tokens.patch_tokens.abs().sum().item() == pytest.approx(total, rel=1e-6, abs=1e-3)


@pytest.mark.parametrize("size", SIZES)
@torch.inference_mode()
def test_position_embeddings_equal_the_official_modules(vit, variant, size):
    positions = positions_of(vit, size[0] // 14, size[1] // 14)
    corner, total = POSITIONS[variant, *size]
    near(positions[0, 1, :3], corner)
    assert positions.abs().sum().item() == pytest.approx(total, rel=1e-6, abs=1e-5)


@torch.inference_mode()
def test_a_masked_run_equals_the_official_modules(vit, variant):
    near(vit(waves(42, 70), masks_of_42_by_70()).class_token[:, :3], MASKED_CLASS_TOKEN[variant])


@torch.inference_mode()
def test_intermediate_layers_equal_the_official_modules(vit, variant):
    layers = vit.get_intermediate_layers(waves(42, 70), n=2, reshape=True, return_class_token=True)
    for (maps, class_token), (corner, leading) in zip(layers, LAYERS[variant], strict=True):
        assert maps.shape == (2, 64, 3, 5)
        near(maps[0, 0, 0, :3], corner)
        near(class_token[0, :2], leading)


@pytest.mark.parametrize("name", PUBLISHED)
def test_architectures_have_the_published_number_of_tensors_and_parameters(name):
    with torch.device("meta"):
        vit = VisionTransformer(ARCHITECTURES[name])
    sizes = [tensor.numel() for tensor in vit.state_dict().values()]
    assert (len(sizes), sum(sizes)) == PUBLISHED[name]


def test_the_smallest_architecture_has_about_five_million_parameters():
    with torch.device("meta"):
        vit = VisionTransformer(ARCHITECTURES["vitt14"])
    assert sum(parameter.numel() for parameter in vit.parameters()) == 5_720_640
    assert ARCHITECTURES["vitt14"].interpolate_antialias


def test_swiglu_is_sized_as_released():
    assert [swiglu_hidden(dim) for dim in (1536, 1024, 64)] == [4096, 2736, 176]


def test_the_state_has_the_released_names_in_the_released_order():
    norm, linear = ("weight", "bias"), ("weight", "bias")
    parts = {"norm1": norm, "attn.qkv": linear, "attn.proj": linear, "ls1": ("gamma",)}
    parts |= {"norm2": norm, "mlp.w12": linear, "mlp.w3": linear, "ls2": ("gamma",)}
    block = [f"{part}.{kind}" for part, kinds in parts.items() for kind in kinds]
    leading = "cls_token pos_embed register_tokens mask_token patch_embed.proj.weight patch_embed.proj.bias"
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    wanted = [*leading.split(), *blocks, "norm.weight", "norm.bias"]
    assert list(VisionTransformer(REGISTERS).state_dict()) == wanted


@torch.inference_mode()
def test_stored_positions_come_back_untouched_at_their_own_size(vit):
    assert positions_of(vit, 4, 4) is vit.pos_embed
    assert positions_of(vit, 2, 8).shape == (1, 17, 64)  # as many patches, yet not square
    assert not torch.allclose(positions_of(vit, 2, 8), vit.pos_embed, atol=1e-3)


def bicubic_matrix(stored, wanted, offset):
    """Cubic convolution, a = -0.75, at src = (dst + 0.5) stored / (wanted + offset) - 0.5; borders repeat."""
    weights = torch.zeros(wanted, stored, dtype=torch.float64)
    for dst in range(wanted):
        src = (dst + 0.5) * stored / (wanted + offset) - 0.5
        for tap in range(math.floor(src) - 1, math.floor(src) + 3):
            t = abs(src - tap)
            near_lobe, far_lobe = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            weights[dst, min(max(tap, 0), stored - 1)] += near_lobe if t <= 1 else far_lobe
    return weights


@pytest.mark.parametrize("offset", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "cols"), [(3, 5), (9, 4)])
def test_positions_are_sampled_where_the_rule_says(rows, cols, offset):
    generator = torch.Generator().manual_seed(3)
    stored = torch.randn(1, 1 + 16, 6, generator=generator)
    fitted = interpolate_positions(stored, rows=rows, cols=cols, offset=offset, antialias=False)
    grid = stored[0, 1:].double().unflatten(0, (4, 4))
    vertical, horizontal = bicubic_matrix(4, rows, offset), bicubic_matrix(4, cols, offset)
    wanted = torch.einsum("ri,cj,ijd->rcd", vertical, horizontal, grid).flatten(0, 1)
    torch.testing.assert_close(fitted[0, 1:].double(), wanted, atol=1e-5, rtol=0)
    assert torch.equal(fitted[0, 0], stored[0, 0])


@torch.inference_mode()
def test_without_positions_the_order_of_the_patches_does_not_matter(vit):
    vit.pos_embed.zero_()
    images = waves(42, 70)
    flipped = images.unflatten(-1, (5, 14)).flip(-2).flatten(-2)  # patches from right to left
    tokens, mirrored = vit(images), vit(flipped)
    torch.testing.assert_close(mirrored.class_token, tokens.class_token, atol=1e-5, rtol=0)
    by_column = mirrored.patch_tokens.unflatten(1, (3, 5)).flip(2).flatten(1, 2)
    torch.testing.assert_close(by_column, tokens.patch_tokens, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_batched_equals_single(vit):
    images = waves(42, 70)
    batched = vit(images, masks_of_42_by_70())
    for i in range(2):
        single = vit(images[i], masks_of_42_by_70()[i])
        for name in ("class_token", "register_tokens", "patch_tokens", "prenorm"):
            torch.testing.assert_close(getattr(single, name), getattr(batched, name)[i], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_tokens_are_the_normed_parts_of_the_sequence(vit):
    tokens = vit(waves(42, 70))
    assert tokens.register_tokens.shape[1] == vit.config.num_registers
    parts = torch.cat([tokens.class_token[:, None], tokens.register_tokens, tokens.patch_tokens], dim=1)
    torch.testing.assert_close(parts, vit.norm(tokens.prenorm))


@torch.inference_mode()
def test_a_masked_patch_is_not_seen(vit):
    images, masks = waves(42, 70), masks_of_42_by_70()
    touched = images.clone()
    touched[0, :, :14, 42:56] = 5.0  # patch 3 of image 0
    hidden, still_hidden = vit(images, masks), vit(touched, masks)
    assert torch.equal(hidden.prenorm, still_hidden.prenorm)
    seen = vit(touched, torch.zeros_like(masks))
    assert torch.equal(seen.prenorm, vit(touched).prenorm)
    assert not torch.allclose(seen.class_token, hidden.class_token, atol=1e-2)


@torch.inference_mode()
def test_intermediate_layers_end_in_the_output(vit):
    images = waves(42, 70)
    tokens = vit(images)
    ((patches, class_token),) = vit.get_intermediate_layers(images, return_class_token=True)
    torch.testing.assert_close(patches, tokens.patch_tokens)
    torch.testing.assert_close(class_token, tokens.class_token)
    (raw,) = vit.get_intermediate_layers(images, [1], norm=False)
    torch.testing.assert_close(raw, tokens.prenorm[:, -15:])
    maps = vit.get_intermediate_layers(images[0], 1, reshape=True)[0]
    torch.testing.assert_close(maps[:, 1, 2], tokens.patch_tokens[0, 1 * 5 + 2], atol=1e-5, rtol=0)


@torch.inference_mode()
def test_intermediate_layers_come_in_the_order_of_the_blocks(vit):
    images = waves(28, 28)
    both = vit.get_intermediate_layers(images, 2)
    for asked in ([0, 1], [1, 0], (1, 0, 1)):
        for got, wanted in zip(vit.get_intermediate_layers(images, asked), both, strict=True):
            assert torch.equal(got, wanted)
    assert torch.equal(vit.get_intermediate_layers(images, [0])[0], both[0])
    for impossible in (0, 3, [2], [-1], []):
        with pytest.raises(ArgumentError, match="model with 2"):
            vit.get_intermediate_layers(images, impossible)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 57, 56), "57 x 56 pixels"),
        ((3, 28, 0), "28 x 0 pixels"),
        ((1, 1, 28, 28), r"\(1, 1, 28, 28\)"),
        ((1, 1, 3, 28, 28), r"\(1, 1, 3, 28, 28\)"),
    ],
)
def test_images_that_cannot_be_cut_into_patches_are_refused(vit, shape, message):
    with pytest.raises(ArgumentError, match=message):
        vit(torch.zeros(shape))
    with pytest.raises(ArgumentError, match=message):
        vit.get_intermediate_layers(torch.zeros(shape))


def test_the_refusal_names_the_nearest_size(vit):
    with pytest.raises(ArgumentError) as caught:
        vit(torch.zeros(1, 3, 50, 3))
    assert caught.value.hint is not None
    assert "56 x 14" in caught.value.hint


def test_masks_of_another_grid_are_refused(vit):
    with pytest.raises(ArgumentError, match="15 patches"):
        vit(waves(42, 70), torch.zeros(2, 16, dtype=torch.bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 3}, "64 cannot be divided among 3 heads"),
        ({"depth": 0}, "depth is 0"),
        ({"num_registers": -1}, "num_registers is -1"),
        ({"ffn": "gelu"}, "'gelu'"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(PLAIN, **change)


def test_gradients_reach_every_parameter(vit):
    tokens = vit(waves(42, 70), masks_of_42_by_70())
    (tokens.class_token[:, 0].sum() + (tokens.patch_tokens**2)[..., ::3].sum()).backward()
    for name, parameter in vit.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_gradient_is_the_slope(vit):
    vit = vit.double()
    images = waves(56, 56).double()  # the stored grid: no fp32 on the way
    weight = vit.blocks[0].attn.qkv.weight

    def loss():
        return vit(images).class_token[:, :5].square().sum()

    loss().backward()
    slope, step = weight.grad[3, 7].item(), 1e-5
    with torch.no_grad():
        weight[3, 7] += step
        above = loss().item()
        weight[3, 7] -= 2 * step
        below = loss().item()
    assert (above - below) / (2 * step) == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.inference_mode()
def test_bf16_is_close_to_fp32(config):
    vit = VisionTransformer(config)
    vit.init_weights(torch.Generator().manual_seed(0))
    exact = vit(waves(42, 70))
    rounded = vit.to(torch.bfloat16)(waves(42, 70))
    assert rounded.class_token.dtype is torch.bfloat16
    for name in ("class_token", "register_tokens", "patch_tokens"):
        cosine = torch.cosine_similarity(getattr(exact, name), getattr(rounded, name).float(), dim=-1)
        assert (cosine > 0.999).all()


@torch.inference_mode()
def test_positions_are_interpolated_in_fp32_for_bf16_weights(vit):
    rounded = vit.pos_embed.bfloat16()
    rule = {"offset": vit.config.interpolate_offset, "antialias": vit.config.interpolate_antialias}
    exact = interpolate_positions(rounded.float(), rows=3, cols=5, **rule)
    assert torch.equal(interpolate_positions(rounded, rows=3, cols=5, **rule), exact)


def test_layer_scale_can_be_left_out():
    config = dataclasses.replace(PLAIN, layer_scale=None)
    state = golden_state(PLAIN)
    ones = {name: torch.ones_like(tensor) for name, tensor in state.items() if name.endswith("gamma")}
    scaled = VisionTransformer.from_state(PLAIN, state | ones)
    bare = VisionTransformer.from_state(config, {k: v for k, v in state.items() if k not in ones})
    with torch.inference_mode():
        torch.testing.assert_close(bare(waves(28, 28)).prenorm, scaled(waves(28, 28)).prenorm)


def test_fresh_weights_are_drawn_as_released():
    config = dataclasses.replace(REGISTERS, embed_dim=256, ffn_hidden=688, pos_grid=16, layer_scale=1e-5)
    state = VisionTransformer(config).state_dict()
    for name in ("pos_embed", "blocks.0.attn.qkv.weight", "blocks.1.mlp.w3.weight"):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.03)
        assert state[name].mean().item() == pytest.approx(0.0, abs=5e-4)
    for name in ("cls_token", "register_tokens"):
        assert state[name].std().item() == pytest.approx(1e-6, rel=0.2)
    bound = (3 * 14 * 14) ** -0.5
    assert state["patch_embed.proj.weight"].std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert state["patch_embed.proj.weight"].abs().max() <= bound
    for name, tensor in state.items():
        if name == "mask_token" or (name.endswith("bias") and "patch_embed" not in name):
            assert not tensor.any(), name
        if name.endswith("gamma"):
            assert (tensor == 1e-5).all()
        if "norm" in name and name.endswith("weight"):
            assert (tensor == 1).all()


def test_one_seed_draws_the_same_weights_twice():
    first, second = VisionTransformer(REGISTERS), VisionTransformer(REGISTERS)
    for vit, seed in ((first, 7), (second, 8)):
        vit.init_weights(torch.Generator().manual_seed(seed))
    other = first.state_dict()["pos_embed"].clone()
    assert not torch.equal(other, second.pos_embed)
    second.init_weights(torch.Generator().manual_seed(7))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_a_model_built_from_a_state_holds_the_very_tensors():
    state = golden_state(PLAIN)
    vit = VisionTransformer.from_state(PLAIN, state)
    assert not vit.training
    assert all(parameter.requires_grad for parameter in vit.parameters())
    assert vit.pos_embed.data_ptr() == state["pos_embed"].data_ptr()
