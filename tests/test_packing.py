"""Packed batches: what each image would get alone, and what branches that skip images do to it."""

import dataclasses

import pytest
import torch

from dinov2kit import ArgumentError
from dinov2kit import attention as attention_module
from dinov2kit.attention import attention, attention_by_group
from dinov2kit.blocks import Block
from dinov2kit.packing import add_kept, draw_rows, take_kept
from dinov2kit.vit import VisionTransformer, ViTConfig

CPU = torch.device("cpu")
PLAIN = ViTConfig(
    embed_dim=48, depth=3, num_heads=3, ffn_hidden=96, patch_size=4, pos_grid=6, layer_scale=0.5
)
GATED = dataclasses.replace(
    PLAIN, ffn="swiglu", num_registers=2, interpolate_offset=0.0, interpolate_antialias=True
)
BARE = dataclasses.replace(PLAIN, layer_scale=None, in_channels=1)
PARTS = ("class_token", "register_tokens", "patch_tokens", "prenorm")


def drawn(config, dtype=torch.float32, seed=0):
    """Return a model in which every tensor, mask token and biases too, is far from zero."""
    vit = VisionTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            centre = float("norm" in name and name.endswith("weight"))
            parameter.normal_(centre, 0.3, generator=generator)
    return vit.to(dtype)


def crops(config, dtype=torch.float32):
    """Return three batches of different sizes; the first is masked."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 24, 24), (6, 12, 12), (3, 8, 16)]
    images = [torch.randn(b, config.in_channels, h, w, generator=generator) for b, h, w in shapes]
    masks = torch.rand(4, 36, generator=generator) < 0.4
    return [batch.to(dtype) for batch in images], [masks, None, None]


def spread(tokens):
    """Weigh all outputs by fixed numbers, so that every one of them has a gradient of its own."""
    parts = [getattr(group, part).flatten() for group in tokens for part in PARTS]
    flat = torch.cat(parts)
    return (flat * torch.sin(torch.arange(len(flat), dtype=flat.dtype))).sum()


def gradients(vit, tokens):
    vit.zero_grad(set_to_none=True)
    spread(tokens).backward()
    return {name: parameter.grad.clone() for name, parameter in vit.named_parameters()}


def all_equal(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("config", [PLAIN, GATED, BARE], ids=["plain", "gated", "bare"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_packed_batches_are_what_each_batch_gives_alone(config, dtype, tolerance):
    vit = drawn(config, dtype)
    images, masks = crops(config, dtype)
    packed = vit.forward_packed(images, masks)
    alone = [vit(batch, mask) for batch, mask in zip(images, masks, strict=True)]
    for ours, wanted in zip(packed, alone, strict=True):
        for part in PARTS:
            torch.testing.assert_close(
                getattr(ours, part), getattr(wanted, part), atol=tolerance, rtol=tolerance
            )
    ours, wanted = gradients(vit, packed), gradients(vit, alone)
    for name in wanted:
        scale = max(float(wanted[name].abs().max()), 1.0)
        torch.testing.assert_close(ours[name], wanted[name], atol=tolerance * scale, rtol=0, msg=name)
    assert float(ours["mask_token"].abs().max()) > 1e-3


def test_no_image_changes_the_tokens_of_another():
    vit = drawn(PLAIN)
    images, masks = crops(PLAIN)
    before = vit.forward_packed(images, masks)
    images[1][2] += 1.0
    after = vit.forward_packed(images, masks)
    changed = [(a.prenorm != b.prenorm).flatten(1).any(dim=1) for a, b in zip(after, before, strict=True)]
    assert torch.cat(changed).nonzero().flatten().tolist() == [4 + 2]


def test_a_batch_without_images_is_left_empty():
    vit = drawn(GATED)
    images, masks = crops(GATED)
    full, empty = vit.forward_packed([images[0], images[1][:0]], [masks[0], None], drop_path=[0.0, 0.3, 0.0])
    assert empty.patch_tokens.shape == (0, 9, 48)
    assert torch.isfinite(spread([full, empty]))


@pytest.mark.parametrize("rates", [(), [0.0, 0.3, 0.6]], ids=["all", "some"])
def test_recomputed_blocks_change_nothing(rates):
    vit = drawn(GATED)
    images, masks = crops(GATED)

    def run():
        random = torch.Generator().manual_seed(7)
        tokens = vit.forward_packed(images, masks, drop_path=rates, generator=random)
        return tokens, gradients(vit, tokens)

    kept, kept_gradients = run()
    vit.recompute = True
    calls = []
    vit.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    again, again_gradients = run()
    assert len(calls) == 2
    assert all(
        torch.equal(getattr(a, p), getattr(b, p)) for a, b in zip(again, kept, strict=True) for p in PARTS
    )
    assert all_equal(again_gradients, kept_gradients)
    with torch.no_grad():
        run_once = vit.forward_packed(images, masks)
    assert len(calls) == 3
    assert not run_once[0].prenorm.requires_grad


@pytest.mark.parametrize(
    ("images", "rate", "kept"),
    [(64, 0.3, 44), (512, 0.3, 358), (24, 0.4, 14), (96, 0.4, 57), (1, 0.9, 1), (10, 0.9, 1)],
)
def test_as_many_images_are_kept_as_in_the_released_code(images, rate, kept):
    (rows,) = draw_rows(((images, 3), (2, 5)), [rate], device=CPU)
    for branch in rows:
        assert branch.groups[0] == (kept, 3)
        assert branch.images == (images, 2)
    residual = torch.ones(sum(k * n for k, n in rows.ffn.groups), 2, dtype=torch.float64)
    if rows.ffn.rows is not None:
        added = add_kept(torch.zeros(3 * images + 10, 2, dtype=torch.float64), residual, rows.ffn, None)
        assert set(added[: 3 * images].flatten().tolist()) <= {0.0, images / kept}


def test_both_branches_and_all_groups_draw_their_own_images_and_keep_whole_ones():
    rows = draw_rows(((40, 3), (40, 2)), [0.5, 0.5], device=CPU, generator=torch.Generator().manual_seed(0))
    seen = set()
    for branch in (kept for block in rows for kept in block):
        first = branch.rows[:60].unflatten(0, (20, 3))
        second = branch.rows[60:].unflatten(0, (20, 2))
        assert torch.equal(first, first[:, :1] + torch.arange(3))
        assert torch.equal(second, second[:, :1] + torch.arange(2))
        chosen = (frozenset((first[:, 0] // 3).tolist()), frozenset(((second[:, 0] - 120) // 2).tolist()))
        assert all(len(images) == 20 and images <= set(range(40)) for images in chosen)
        seen |= set(chosen)
    assert len(seen) == 8


def test_nothing_is_drawn_where_nothing_is_dropped():
    random = torch.Generator().manual_seed(3)
    before = random.get_state()
    rows = draw_rows(((4, 3), (1, 2)), [0.0, 0.1], device=CPU, generator=random)
    assert not torch.equal(random.get_state(), before)
    assert rows[0].attention.rows is None
    assert rows[1].ffn.groups == ((3, 3), (1, 2))
    random.set_state(before)
    draw_rows(((4, 3), (1, 2)), [0.0, 0.0], device=CPU, generator=random)
    draw_rows(((1, 3), (1, 2)), [0.4], device=CPU, generator=random)
    assert torch.equal(random.get_state(), before)


def test_images_that_are_skipped_by_both_branches_pass_unchanged_and_others_get_b_over_k():
    generator = torch.Generator().manual_seed(2)
    block = Block(48, num_heads=3, ffn="mlp", ffn_hidden=96, layer_scale=0.5).double()
    tokens = torch.randn(8 * 5, 48, generator=generator, dtype=torch.float64)
    groups = ((8, 5),)
    (rows,) = draw_rows(groups, [0.5], device=CPU, generator=generator)
    out = block(tokens, rows).unflatten(0, (8, 5))
    attended, fed = (sorted(set((branch.rows // 5).tolist())) for branch in rows)
    assert len(attended) == len(fed) == 4
    wanted = tokens.unflatten(0, (8, 5)).clone()
    chosen = wanted[attended]
    wanted[attended] = chosen + 2 * 0.5 * block.attn(block.norm1(chosen))
    chosen = wanted[fed]
    wanted[fed] = chosen + 2 * 0.5 * block.mlp(block.norm2(chosen))
    torch.testing.assert_close(out, wanted, atol=1e-12, rtol=0)
    skipped = sorted(set(range(8)) - set(attended) - set(fed))
    assert skipped
    assert torch.equal(out[skipped], tokens.unflatten(0, (8, 5))[skipped])


def test_the_mean_over_draws_is_the_whole_residual():
    generator = torch.Generator().manual_seed(4)
    groups = ((5, 2), (3, 1))  # of which 3 and 1 are kept: two different factors
    residual = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    gamma = torch.full((4,), 0.5, dtype=torch.float64)
    total, draws = torch.zeros_like(residual), 600
    for _ in range(draws):
        (rows,) = draw_rows(groups, [0.4], device=CPU, generator=generator)
        part = take_kept(residual, rows.ffn)
        total += add_kept(torch.zeros_like(residual), part, rows.ffn, gamma)
    wanted = residual * gamma
    spreads = torch.cat([torch.full((10, 1), (5 / 3 - 1) ** 0.5), torch.full((3, 1), (3 / 1 - 1) ** 0.5)])
    assert ((total / draws - wanted).abs() <= 4.5 * spreads * wanted.abs() / draws**0.5).all()


def test_a_generator_decides_what_is_skipped():
    vit = drawn(PLAIN)
    images, masks = crops(PLAIN)

    def run(seed):
        random = torch.Generator().manual_seed(seed)
        return vit.forward_packed(images, masks, drop_path=[0.5] * 3, generator=random)[0].prenorm

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert not torch.equal(run(1), vit.forward_packed(images, masks)[0].prenorm)


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast_keeps_the_stream_exact_and_the_result_close(recompute):
    vit = drawn(dataclasses.replace(GATED, layer_scale=0.1))
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.1)
    vit.recompute = recompute
    images, masks = crops(GATED)

    def run():
        random = torch.Generator().manual_seed(7)
        return vit.forward_packed(images, masks, drop_path=[0.0, 0.3, 0.3], generator=random)

    exact = run()
    wanted = gradients(vit, exact)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = run()
    found = gradients(vit, rounded)
    for ours, theirs in zip(rounded, exact, strict=True):
        assert ours.prenorm.dtype is torch.float32
        similarity = torch.nn.functional.cosine_similarity(ours.prenorm, theirs.prenorm, dim=-1)
        assert float(similarity.detach().min()) > 0.99
    ours, theirs = (torch.cat([grads[name].flatten() for name in wanted]) for grads in (found, wanted))
    assert float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.99


def test_autocast_rounds_no_position():
    vit = drawn(PLAIN)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if "patch_embed" in name or name.endswith("gamma"):
                parameter.zero_()
    with torch.autocast("cpu", torch.bfloat16):
        (tokens,) = vit.forward_packed([crops(PLAIN)[0][0]], [None])
    wanted = vit.pos_embed[:, 1:].expand(4, -1, -1)
    assert torch.equal(tokens.prenorm[:, 1:], wanted)


def test_batches_masks_and_shares_that_do_not_fit_are_refused():
    vit = drawn(PLAIN)
    images, masks = crops(PLAIN)
    for wrong in ([], [masks[0]]):
        with pytest.raises(ArgumentError, match="as many masks as batches"):
            vit.forward_packed(images, wrong)
    with pytest.raises(ArgumentError, match="3 shares or none"):
        vit.forward_packed(images, masks, drop_path=[0.1])
    for rate in (1.0, -0.1):
        with pytest.raises(ArgumentError, match="share of"):
            vit.forward_packed(images, masks, drop_path=[rate] * 3)
    with pytest.raises(ArgumentError, match="masks of shape"):
        vit.forward_packed(images, [None, masks[0], None])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_block_diagonal_kernel_equals_attention_group_by_group(dtype, monkeypatch):
    pytest.importorskip("xformers.ops")
    generator = torch.Generator().manual_seed(0)
    groups = ((3, 7), (5, 4))
    heads = [torch.randn(41, 3, 16, generator=generator).to("cuda", dtype) for _ in range(3)]
    fused = attention_by_group(*heads, groups)
    monkeypatch.setattr(attention_module, "_xformers_kernel", lambda: None)
    alone = attention_by_group(*heads, groups)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(fused, alone, atol=tolerance, rtol=0)
    first = attention(*(whole[:21].unflatten(0, (3, 7)) for whole in heads))
    torch.testing.assert_close(alone[:21], first.flatten(0, 1))
