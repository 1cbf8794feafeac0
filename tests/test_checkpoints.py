"""Every known weight format reads as the same backbone, every other file is refused in words.

Oracle: `Dinov2Model` and `Dinov2WithRegistersModel` of transformers, with random weights.
"""

import dataclasses
import json
import os
import pickle
import re
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from dinov2kit import ArgumentError, WeightsError
from dinov2kit.checkpoints import read_checkpoint, state_digest, write_checkpoint
from dinov2kit.vit import VisionTransformer, ViTConfig, interpolate_positions

MLP = ViTConfig(embed_dim=128, depth=2, num_heads=2, ffn_hidden=512, pos_grid=4)
SWIGLU = dataclasses.replace(MLP, ffn="swiglu", ffn_hidden=344)
BY_SIZE = {"interpolate_offset": 0.0, "interpolate_antialias": True}
CONFIGS = {
    "mlp": MLP,
    "swiglu": SWIGLU,
    "mlp-reg": dataclasses.replace(MLP, num_registers=4, **BY_SIZE),
    "swiglu-reg": dataclasses.replace(SWIGLU, num_registers=4, **BY_SIZE),
}


PINNED_DIGEST = (
    "92e3c62468f7802e9fed682e32da2b457d00348fc1dce5d8a691c2bd22dd1010"  # of halves; indexes record it
)


def random_state(config, seed=0):
    """Draw every tensor, biases and tokens too, so that no exchange of two tensors goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        shapes = VisionTransformer(config).state_dict()
    state = {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in shapes.items()}
    return {
        k: t + 1 if k.endswith("gamma") or re.search(r"norm\d?\.weight", k) else t for k, t in state.items()
    }


def images(height, width):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def same(state, wanted):
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert state[name].dtype is torch.float32
        assert torch.equal(state[name], tensor), name


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def chunked(state):
    """Name the blocks as training does with two chunks of one block each."""
    return {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", name): tensor for name, tensor in state.items()}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def as_timm(state, config):
    """Do what the converter of timm does to released weights."""
    state = {name: tensor for name, tensor in state.items() if name != "mask_token"}
    if config.num_registers:
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    return {name.replace("w12", "fc1").replace("w3", "fc2"): tensor for name, tensor in state.items()}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


@pytest.fixture
def state(config):
    return random_state(config)


@pytest.fixture
def vit(config, state):
    return VisionTransformer.from_state(config, state)


def oracle_class(config):
    from transformers import Dinov2Model, Dinov2WithRegistersModel

    return Dinov2WithRegistersModel if config.num_registers else Dinov2Model


def oracle(config, **changed):
    """Return the model of transformers with random weights of which none is a constant."""
    registers = {"num_register_tokens": config.num_registers} if config.num_registers else {}
    model_class = oracle_class(config)
    facts = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": 56,
        "patch_size": 14,
        "use_swiglu_ffn": config.ffn == "swiglu",
    }
    model = model_class(model_class.config_class(**facts | registers | changed)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("lambda" in name or "norm" in name), 0.1, generator=generator)
    return model


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mlp", (56, 56)),  # without registers, both define the same function at the stored grid only
        ("swiglu", (56, 56)),
        ("mlp-reg", (56, 56)),
        ("mlp-reg", (42, 70)),
        ("swiglu-reg", (42, 70)),
        ("swiglu-reg", (98, 28)),
    ],
)
@torch.inference_mode()
def test_a_hugging_face_folder_computes_what_transformers_computes(name, size, tmp_path):
    config = CONFIGS[name]
    model = oracle(config)
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.config) == ("hf", config)
    vit = VisionTransformer.from_state(checkpoint.config, checkpoint.state)
    wanted = model(images(*size)).last_hidden_state
    tokens = vit(images(*size))
    torch.testing.assert_close(tokens.class_token, wanted[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.patch_tokens, wanted[:, 1 + config.num_registers :], atol=1e-4, rtol=0)
    masks = torch.rand(2, size[0] * size[1] // 196, generator=torch.Generator().manual_seed(0)) < 0.4
    hidden = model(images(*size), bool_masked_pos=masks).last_hidden_state
    torch.testing.assert_close(vit(images(*size), masks).class_token, hidden[:, 0], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_without_registers_transformers_differs_away_from_the_stored_grid_by_the_rule_alone(tmp_path):
    model = oracle(MLP)
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    wanted = model(images(42, 70)).last_hidden_state[:, 0]

    released = VisionTransformer.from_state(checkpoint.config, checkpoint.state)
    assert (released(images(42, 70)).class_token - wanted).abs().max() > 1e-3
    by_size = dataclasses.replace(checkpoint.config, interpolate_offset=0.0)
    theirs = VisionTransformer.from_state(by_size, checkpoint.state)
    torch.testing.assert_close(theirs(images(42, 70)).class_token, wanted, atol=1e-4, rtol=0)
    positions = model.embeddings.interpolate_pos_encoding(torch.empty(1, 16, 128), 42, 70)
    ours = interpolate_positions(released.pos_embed, rows=3, cols=5, offset=0.0, antialias=False)
    torch.testing.assert_close(ours, positions, atol=1e-6, rtol=0)


@torch.inference_mode()
def test_transformers_computes_what_we_wrote(config, state, vit, tmp_path):
    write_checkpoint(state, config, tmp_path / "new" / "model", format="hf")
    model, report = oracle_class(config).from_pretrained(tmp_path / "new" / "model", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = model.eval()(images(56, 56)).last_hidden_state
    tokens = vit(images(56, 56))
    torch.testing.assert_close(tokens.class_token, wanted[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens.patch_tokens, wanted[:, 1 + config.num_registers :], atol=1e-4, rtol=0)
    back = read_checkpoint(tmp_path / "new" / "model")
    assert (back.format, back.config) == ("hf", config)
    same(back.state, state)


@pytest.mark.parametrize("name", ["mlp", "swiglu-reg"])
def test_hugging_face_names_with_prefix_and_classifier_are_the_same_backbone(name, tmp_path):
    config = CONFIGS[name]
    state = random_state(config)
    write_checkpoint(state, config, tmp_path, format="hf")
    plain = safetensors.torch.load_file(tmp_path / "model.safetensors")
    prefix = "dinov2_with_registers." if config.num_registers else "dinov2."
    classifier = {"classifier.weight": torch.ones(10, 256), "classifier.bias": torch.ones(10)}
    safetensors.torch.save_file({**prefixed(prefix, plain), **classifier}, tmp_path / "prefixed.safetensors")
    torch.save(plain, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    for place in ("prefixed.safetensors", "other.safetensors", "pytorch_model.bin", "."):
        checkpoint = read_checkpoint(tmp_path / place)
        assert checkpoint.format == "hf"
        same(checkpoint.state, state)
    assert "left out: classifier" in read_checkpoint(tmp_path / "prefixed.safetensors").notes


@pytest.mark.parametrize("name", ["mlp", "swiglu-reg"])
def test_names_of_transformers_in_memory_are_the_same_backbone(name, tmp_path):
    model = oracle(CONFIGS[name])
    model.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "memory.pth")
    same(read_checkpoint(tmp_path / "memory.pth").state, read_checkpoint(tmp_path).state)


@torch.inference_mode()
def test_a_hugging_face_config_tells_the_heads(tmp_path):
    model = oracle(MLP, num_attention_heads=4)
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.config.num_heads == 4
    vit = VisionTransformer.from_state(checkpoint.config, checkpoint.state)
    wanted = model(images(56, 56)).pooler_output
    torch.testing.assert_close(vit(images(56, 56)).class_token, wanted, atol=1e-4, rtol=0)


def test_a_hugging_face_model_without_mask_token_gets_zeros(tmp_path):
    model = oracle(MLP, use_mask_token=False)
    model.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert not checkpoint.state["mask_token"].any()
    assert "no mask token: zeros" in checkpoint.notes


@pytest.mark.parametrize("format", ["released", "safetensors"])
def test_what_was_written_reads_back(config, state, tmp_path, format):
    write_checkpoint(state, config, tmp_path / "weights", format=format)
    checkpoint = read_checkpoint(tmp_path / "weights")
    assert (checkpoint.format, checkpoint.config) == (format, config)
    same(checkpoint.state, state)
    assert names_in(tmp_path) == ["weights"]


def test_a_released_file_is_a_flat_dict_of_tensors(tmp_path):
    state = random_state(MLP)
    write_checkpoint(state, MLP, tmp_path / "weights.pth", format="released")
    same(torch.load(tmp_path / "weights.pth", weights_only=True), state)


def test_an_old_pickle_of_torch_reads(tmp_path):
    state = random_state(MLP)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    same(read_checkpoint(tmp_path / "old.pth").state, state)


@pytest.mark.parametrize(
    ("wrap", "notes"),
    [
        (lambda s: chunked(s), {"blocks in chunks"}),
        (lambda s: prefixed("module.", s), {"wrapper names dropped"}),
        (lambda s: prefixed("_orig_mod.module.", s), {"wrapper names dropped"}),
        (lambda s: OrderedDict(epoch=torch.tensor(3), model=s), {"from 'model'"}),
        (lambda s: {"student": prefixed("module.backbone.", s)}, {"from 'student'", "from 'backbone'"}),
        (
            lambda s: {
                "teacher": prefixed("backbone.", chunked(s)) | {"dino_head.mlp.0.weight": torch.ones(2)}
            },
            {"from 'teacher'", "from 'backbone'", "blocks in chunks", "left out: dino_head"},
        ),
        (
            lambda s: {
                "model": prefixed("teacher.backbone.", s)
                | prefixed("student.backbone.", {k: t + 1 for k, t in s.items()})
                | {"student.ibot_head.last_layer.weight": torch.ones(1), "dino_loss.center": torch.ones(1)},
                "iteration": 7,
            },
            {"from 'model'", "from 'teacher.backbone'", "left out: dino_loss"},
        ),
        (lambda s: {"teacher": s, "student": {k: t + 1 for k, t in s.items()}}, {"from 'teacher'"}),
    ],
)
def test_training_checkpoints_are_the_same_backbone(wrap, notes, tmp_path):
    config = CONFIGS["swiglu-reg"]
    state = random_state(config)
    torch.save(wrap(state), tmp_path / "checkpoint.pth")
    checkpoint = read_checkpoint(tmp_path / "checkpoint.pth")
    assert (checkpoint.format, checkpoint.config) == ("training", config)
    assert notes <= set(checkpoint.notes)
    same(checkpoint.state, state)


@torch.inference_mode()
def test_timm_names_are_the_same_function(config, state, vit, tmp_path):
    safetensors.torch.save_file(
        {name: tensor.contiguous() for name, tensor in as_timm(state, config).items()}, tmp_path / "timm"
    )
    checkpoint = read_checkpoint(tmp_path / "timm")
    assert (checkpoint.format, checkpoint.config) == ("timm", config)
    assert not checkpoint.state["mask_token"].any()
    theirs = VisionTransformer.from_state(checkpoint.config, checkpoint.state)
    for size in ((56, 56), (42, 70)):
        assert torch.equal(theirs(images(*size)).prenorm, vit(images(*size)).prenorm)


def test_a_backbone_without_layer_scale_reads(tmp_path):
    config = dataclasses.replace(MLP, layer_scale=None)
    state = random_state(config)
    write_checkpoint(state, config, tmp_path / "bare.pth", format="released")
    checkpoint = read_checkpoint(tmp_path / "bare.pth")
    assert checkpoint.config == config
    same(checkpoint.state, state)


def test_heads_of_other_models_are_left_out(tmp_path):
    state = random_state(MLP)
    heads = {f"{name}.weight": torch.ones(3) for name in ("linear_head", "head", "decode_head.conv")}
    torch.save({**state, **heads}, tmp_path / "headed.pth")
    checkpoint = read_checkpoint(tmp_path / "headed.pth")
    assert checkpoint.notes == ("left out: decode_head, head, linear_head",)
    same(checkpoint.state, state)


def test_an_export_carries_its_config_and_texts(tmp_path):
    config = dataclasses.replace(
        MLP, num_heads=4, num_registers=2, interpolate_antialias=True, layer_scale=1e-5
    )
    state = random_state(config)
    write_checkpoint(state, config, tmp_path / "own", metadata={"name": "dinokit_vitt14"})
    checkpoint = read_checkpoint(tmp_path / "own")
    assert checkpoint.config == config
    assert checkpoint.metadata == {"name": "dinokit_vitt14"}


def test_an_export_from_before_channels_were_counted_has_three(tmp_path):
    config = dataclasses.asdict(MLP)
    assert config.pop("in_channels") == 3
    metadata = {"dinov2kit": "1", "config": json.dumps(config)}
    safetensors.torch.save_file(random_state(MLP), tmp_path / "m.safetensors", metadata=metadata)
    assert read_checkpoint(tmp_path / "m.safetensors").config == MLP


@pytest.mark.parametrize("format", ["released", "safetensors", "hf"])
@pytest.mark.parametrize("channels", [1, 5])
def test_every_format_tells_the_channels(channels, format, tmp_path):
    config = dataclasses.replace(MLP, in_channels=channels)
    state = random_state(config)
    write_checkpoint(state, config, tmp_path / "m", format=format)
    read = read_checkpoint(tmp_path / "m")
    assert read.config == config
    same(read.state, state)
    if format == "hf":
        assert json.loads((tmp_path / "m" / "config.json").read_text())["num_channels"] == channels


def test_half_precision_is_rounded_once(config, state, tmp_path):
    rounded = {name: tensor.half().float() for name, tensor in state.items()}
    write_checkpoint(state, config, tmp_path / "fp32")
    write_checkpoint(state, config, tmp_path / "fp16", dtype=torch.float16)
    write_checkpoint(state, config, tmp_path / "hf", format="hf", dtype=torch.float16)
    same(read_checkpoint(tmp_path / "fp16").state, rounded)
    same(read_checkpoint(tmp_path / "hf").state, rounded)
    assert (tmp_path / "fp16").stat().st_size < 0.51 * (tmp_path / "fp32").stat().st_size


def test_the_digest_is_the_same_in_every_format(config, state, tmp_path):
    for format in ("released", "safetensors", "hf"):
        write_checkpoint(state, config, tmp_path / format, format=format)
    torch.save({"teacher": prefixed("backbone.", chunked(state))}, tmp_path / "training")
    torch.save(as_timm(state, config), tmp_path / "timm")
    digests = {}
    for format in ("released", "safetensors", "hf", "training", "timm"):
        checkpoint = read_checkpoint(tmp_path / format)
        assert checkpoint.format == format
        digests[format] = state_digest(checkpoint.state, checkpoint.config)
    assert set(digests.values()) == {state_digest(state, config)}


def test_the_digest_notices_everything_that_changes_the_output():
    state, digest = random_state(MLP), state_digest(random_state(MLP), MLP)
    for name in state:
        changed = state | {name: state[name].clone()}
        changed[name].view(-1)[-1] += 1e-3
        assert (state_digest(changed, MLP) == digest) == (name == "mask_token"), name
    swapped = state | {"blocks.0.ls1.gamma": state["blocks.0.ls2.gamma"]}
    swapped["blocks.0.ls2.gamma"] = state["blocks.0.ls1.gamma"]
    assert state_digest(swapped, MLP) != digest
    for change in ({"num_heads": 4}, {"interpolate_offset": 0.0}, {"interpolate_antialias": True}):
        assert state_digest(state, dataclasses.replace(MLP, **change)) != digest
    assert state_digest(state, dataclasses.replace(MLP, layer_scale=1e-5)) == digest  # only an initial value


def test_the_digest_does_not_change_between_versions():
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in random_state(MLP).items()}
    assert state_digest(state, MLP) == PINNED_DIGEST


class Runs:
    def __reduce__(self):
        return (os.system, ("false",))


def refusal(path):
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert str(path) in caught.value.message
    assert caught.value.hint is None or len(caught.value.hint) > 10
    return caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 88283115\n", "git-lfs pointer"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "begins with"),
        (pickle.dumps({"weight": Runs()}, protocol=2), "could run code"),
        (b"\x80\x02", "damaged"),
        (b"\x80\x02zzzz", "damaged"),
        (b"PK\x03\x04" + bytes(100), "its end is missing"),
        (b"\x10" + bytes(7) + b'{"a": {"dtype"', "damaged"),
    ],
)
def test_files_that_are_no_weights_are_named(content, message, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    assert message in refusal(tmp_path / "weights.pth")


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    torch.save({"model": random_state(MLP), "args": Runs()}, tmp_path / "trap.pth")
    assert "system) that could run code" in refusal(tmp_path / "trap.pth")


@pytest.mark.parametrize("format", ["released", "safetensors"])
def test_truncated_files_are_refused(format, tmp_path):
    write_checkpoint(random_state(MLP), MLP, tmp_path / "whole", format=format)
    content = (tmp_path / "whole").read_bytes()
    for share in (0.1, 0.5, 0.99):
        (tmp_path / "part").write_bytes(content[: int(share * len(content))])
        assert re.search("damaged|its end is missing", refusal(tmp_path / "part"))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": (1000, 1536), "bias": (1000,)}, "a linear classification head"),
        ({"decode_head.conv_seg.weight": (150, 384, 1, 1)}, "a segmentation or depth head"),
        ({"dino_head.mlp.0.weight": (2, 2)}, "a projection head of training"),
        ({"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (64, 64, 1, 1)}, "a ResNet"),
        (
            {"cls_token": (1, 1, 384), "storage_tokens": (1, 4, 384), "mask_token": (1, 384)},
            "a DINOv3 backbone",
        ),
        ({"blocks.0.norm1.weight": (384,), "rope_embed.periods": (16,)}, "a DINOv3 backbone"),
        ({"layer.0.attention.q_proj.weight": (384, 384)}, "a DINOv3 backbone"),
        ({"vit.encoder.layer.0.output.dense.bias": (384,)}, "a Hugging Face transformer that is not DINOv2"),
        (
            {"cls_token": (1, 1, 384), "pos_embed": (1, 197, 384), "blocks.0.norm1.weight": (384,)},
            "a ViT that is not DINOv2",
        ),
        ({"model._flat_param": (1000,)}, "one shard of an FSDP training checkpoint"),
        ({"visual.conv1.weight": (3,)}, "an image and text model"),
        ({"a": (1,), "b": (1,), "c": (1,), "d": (1,)}, "tensors named a, b, c, …"),
        ({}, "nothing"),
    ],
)
def test_other_models_are_named(tensors, message, tmp_path):
    torch.save({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "other.pth")
    assert f"holds {message}, not DINOv2" in refusal(tmp_path / "other.pth")


def test_chunks_that_count_their_blocks_anew_are_refused_and_not_merged(tmp_path):
    twice = {re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.0.", name): t for name, t in random_state(MLP).items()}
    torch.save(twice, tmp_path / "local.pth")
    assert "tensors named blocks.0.0" in refusal(tmp_path / "local.pth")


def test_a_checkpoint_that_contains_itself_is_refused(tmp_path):
    endless = {}
    endless["model"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    assert "holds nothing" in refusal(tmp_path / "endless.pth")


def test_a_single_tensor_is_no_checkpoint(tmp_path):
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    assert "one Tensor" in refusal(tmp_path / "tensor.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": None}, "1 tensors are missing: norm.weight"),
        ({"pos_embed": None}, "no tensor pos_embed"),
        ({"blocks.0.attn.qkv.weight": None}, "no tensor blocks.0.attn.qkv.weight"),
        ({"blocks.1.mlp.fc2.weight": None, "blocks.1.norm1.bias": None}, "2 tensors are missing"),
        ({"blocks.7.norm1.bias": torch.ones(128)}, "blocks.7.norm1.bias"),
        ({"neck.weight": torch.ones(2)}, "1 tensors are not expected: neck.weight"),
        ({"norm.weight": torch.ones(64)}, r"norm.weight \[64\] \(wanted \[128\]\)"),
        ({"pos_embed": torch.ones(1, 13, 128)}, r"pos_embed \[1, 13, 128\] \(wanted \[1, 10, 128\]\)"),
        ({"pos_embed": torch.ones(17, 128)}, r"pos_embed has shape \[17, 128\]; wanted 3 axes"),
        ({"pos_embed": torch.ones(1, 0, 128)}, "pos_grid is 0"),
        ({"patch_embed.proj.weight": torch.ones(128, 3, 16, 14)}, "patch_embed.proj.weight"),
        ({"norm.weight": torch.ones(128, dtype=torch.int8)}, "no floating-point numbers: norm.weight"),
        ({"cls_token": torch.ones(1, 1, 96)}, "96 is no multiple of 64"),
    ],
)
def test_incomplete_backbones_are_refused_by_the_tensor(change, message, tmp_path):
    state = random_state(MLP) | change
    torch.save({name: t for name, t in state.items() if t is not None}, tmp_path / "broken.pth")
    assert re.search(message, refusal(tmp_path / "broken.pth"))


def test_missing_files_and_empty_folders_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "nowhere.pth")
    assert "model.safetensors or pytorch_model.bin" in refusal(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"x")
    assert "sharded training checkpoint" in refusal(tmp_path)


def test_exports_of_a_newer_version_or_with_a_damaged_config_are_refused(tmp_path):
    state, config = random_state(MLP), dataclasses.asdict(MLP)
    for schema, text, message in (
        ("2", json.dumps(config), "newer dinov2kit"),
        ("1", "{", "damaged config"),
        ("1", json.dumps(config | {"surprise": 1}), "damaged config"),
        ("1", json.dumps(config | {"num_heads": 5}), "damaged config"),
        ("1", json.dumps(config | {"embed_dim": "128"}), "damaged config"),
        ("1", json.dumps(config | {"depth": 3}), "blocks.2"),
    ):
        metadata = {"dinov2kit": schema, "config": text}
        safetensors.torch.save_file(state, tmp_path / "own.safetensors", metadata=metadata)
        assert message in refusal(tmp_path / "own.safetensors")


@pytest.mark.parametrize(
    ("format", "change", "message"),
    [
        ("released", {"num_heads": 4}, "num_heads 4"),
        ("released", {"interpolate_offset": 0.0}, "interpolate_offset 0.0"),
        ("hf", {"interpolate_antialias": True}, "interpolate_antialias True"),
        ("hf", {"layer_scale": None}, "no LayerScale"),
        ("hf", {"ffn_hidden": 200}, "ffn_hidden 200"),
    ],
)
def test_a_format_that_cannot_say_the_config_is_refused(format, change, message, tmp_path):
    config = dataclasses.replace(MLP, **change)
    with pytest.raises(ArgumentError, match=message):
        write_checkpoint(random_state(config), config, tmp_path / "weights", format=format)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    state, path = random_state(MLP), tmp_path / "weights"
    with pytest.raises(ArgumentError, match="unknown format 'onnx'"):
        write_checkpoint(state, MLP, path, format="onnx")
    with pytest.raises(ArgumentError, match="float64"):
        write_checkpoint(state, MLP, path, dtype=torch.float64)
    with pytest.raises(ArgumentError, match="carries no metadata"):
        write_checkpoint(state, MLP, path, format="hf", metadata={"name": "x"})
    with pytest.raises(WeightsError, match=r"missing: norm\.bias"):
        write_checkpoint({k: t for k, t in state.items() if k != "norm.bias"}, MLP, path)
    with pytest.raises(WeightsError, match=r"norm\.bias is not finite as torch\.float16"):
        write_checkpoint(state | {"norm.bias": torch.full((128,), 1e5)}, MLP, path, dtype=torch.float16)
    with pytest.raises(ArgumentError, match="No such file"):
        write_checkpoint(state, MLP, tmp_path / "nowhere" / "weights")
    path.write_text("a file")
    with pytest.raises(ArgumentError, match="cannot make the folder"):
        write_checkpoint(state, MLP, path, format="hf")
    assert names_in(tmp_path) == ["weights"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    state, path = random_state(MLP), tmp_path / "weights.pth"
    for format in ("released", "safetensors"):
        write_checkpoint(state, MLP, path, format=format)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "disk full")))
            with pytest.raises(ArgumentError, match="disk full"):
                write_checkpoint(random_state(MLP, seed=9), MLP, path, format=format)
        same(read_checkpoint(path).state, state)
        assert names_in(tmp_path) == ["weights.pth"]
