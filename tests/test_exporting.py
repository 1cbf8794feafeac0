"""Exports of a run: whole or not at all, the same function in every layout, and what images they are for."""

import dataclasses
import importlib.util
import json

import numpy as np
import pytest
import torch

from dinov2kit import Encoder
from dinov2kit.architectures import ViTConfig, find_architecture
from dinov2kit.checkpoints import read_checkpoint, state_digest
from dinov2kit.errors import ArgumentError, DependencyError, WeightsError
from dinov2kit.features import FeatureSpec
from dinov2kit.train import exporting, onnx_files
from dinov2kit.train.exporting import export_run, read_heads, write_export
from dinov2kit.train.heads import ProjectionHead
from dinov2kit.train.onnx_files import write_onnx
from dinov2kit.vit import VisionTransformer

SHAPE = ViTConfig(
    embed_dim=64,
    depth=2,
    num_heads=1,
    ffn_hidden=256,
    patch_size=4,
    pos_grid=6,
    num_registers=4,
    interpolate_offset=0.0,
    interpolate_antialias=True,
)
CARD = {"step": 12, "image_size": 24, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}


def drawn(config=SHAPE, seed=0):
    vit = VisionTransformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            parameter.normal_(float("norm" in name and name.endswith("weight")), 0.2, generator=generator)
    return vit.state_dict()


def heads():
    made = {
        "dino_head": ProjectionHead(64, 40, hidden=24, bottleneck=8),
        "ibot_head": ProjectionHead(64, 30, hidden=24, bottleneck=6, norm="plain"),
    }
    for head in made.values():
        head.init_weights(torch.Generator().manual_seed(3))
    return {f"{name}.{key}": value for name, head in made.items() for key, value in head.state_dict().items()}


def export(run, *, config=SHAPE, seed=0, card=CARD, **changed):
    facts = {"state": drawn(config, seed), "config": config, "heads": heads(), "card": card} | changed
    return write_export(run / "export", **facts)


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "runs" / "a"
    export(run)
    return run


def test_an_export_is_what_was_given(tmp_path):
    written = export(tmp_path)
    assert sorted(path.name for path in written.folder.iterdir()) == [
        "card.json",
        "heads.safetensors",
        "teacher.safetensors",
    ]
    read = read_checkpoint(tmp_path / "export" / "teacher.safetensors")
    assert read.config == SHAPE
    assert same(read.state, drawn())
    assert written.weights_sha256 == state_digest(drawn(), SHAPE)
    assert written.nbytes == sum(path.stat().st_size for path in written.folder.iterdir())
    state, shapes = read_heads(tmp_path / "export" / "heads.safetensors")
    assert same(state, heads())
    assert shapes["dino_head"] == {
        "dim": 64,
        "prototypes": 40,
        "hidden": 24,
        "bottleneck": 8,
        "norm": "weight",
    }
    assert (shapes["ibot_head"]["norm"], shapes["ibot_head"]["prototypes"]) == ("plain", 30)
    card = json.loads((tmp_path / "export" / "card.json").read_text("utf-8"))
    assert card["step"] == 12
    assert card["weights_sha256"] == written.weights_sha256
    assert ViTConfig(**card["config"]) == SHAPE


def test_heads_can_be_built_from_their_shapes(tmp_path):
    export(tmp_path)
    state, shapes = read_heads(tmp_path / "export" / "heads.safetensors")
    for name, facts in shapes.items():
        own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(name)}
        ProjectionHead(facts.pop("dim"), facts.pop("prototypes"), **facts).load_state_dict(own)


def broken_swap(monkeypatch, tmp_path):
    original = type(tmp_path).rename

    def rename(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)


def test_an_older_export_stays_where_a_new_one_fails(tmp_path, monkeypatch):
    first = export(tmp_path)
    with pytest.raises(ArgumentError, match="JSON"):
        export(tmp_path, seed=1, card={"loss": float("nan")})
    with pytest.raises(WeightsError, match="no complete"):
        export(
            tmp_path,
            state={name: t for name, t in drawn().items() if name != "norm.bias"} | {"x": torch.ones(1)},
        )
    with pytest.raises(ArgumentError, match="3 numbers for a model of 1 channels"):
        export(tmp_path, config=dataclasses.replace(SHAPE, in_channels=1))
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "read_heads", lambda path: ({}, {}))
        with pytest.raises(WeightsError, match="read back otherwise"):
            export(tmp_path, seed=1)
    with monkeypatch.context() as patch:
        broken_swap(patch, tmp_path)
        with pytest.raises(ArgumentError, match="No space left"):
            export(tmp_path, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert (
        state_digest(read_checkpoint(tmp_path / "export/teacher.safetensors").state, SHAPE)
        == first.weights_sha256
    )
    second = export(tmp_path, seed=1)
    assert second.weights_sha256 != first.weights_sha256
    assert (
        state_digest(read_checkpoint(tmp_path / "export/teacher.safetensors").state, SHAPE)
        == second.weights_sha256
    )
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_a_file_that_computes_something_else_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "_check_same", lambda *_: None)

    def changed(path):
        read = read_checkpoint(path)
        return dataclasses.replace(read, state=read.state | {"cls_token": read.state["cls_token"] + 1})

    monkeypatch.setattr(exporting, "read_checkpoint", changed)
    with pytest.raises(WeightsError, match="computes something else"):
        export(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_encoder_opens_a_run_and_prepares_images_as_training_did(run):
    encoder = Encoder(str(run), device="cpu", precision="fp32")
    assert (encoder.name, encoder.dim, encoder.view.crop, encoder.view.resize) == (str(run), 64, 24, 27)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    values = torch.from_numpy(pixels).double() / 255
    normalised = (values - torch.tensor(CARD["mean"])) / torch.tensor(CARD["std"])
    vit = VisionTransformer.from_state(SHAPE, drawn())
    with torch.inference_mode():
        wanted = vit(normalised.float().permute(0, 3, 1, 2)).class_token
    wanted = torch.nn.functional.normalize(wanted, dim=1).numpy()
    np.testing.assert_allclose(encoder.embed(pixels), wanted, atol=1e-5)
    assert encoder.identity.preprocess["mean"] == CARD["mean"]


def test_a_run_opens_as_its_latest_export_and_one_without_says_so(run):
    before = Encoder(run, device="cpu").identity
    latest = export(run, seed=1)
    after = Encoder(run, device="cpu").identity
    assert after.weights_sha256 == latest.weights_sha256 != before.weights_sha256
    young = run.parent / "b"
    young.mkdir()
    (young / "run.json").write_text("{}")
    with pytest.raises(WeightsError, match="no exported model yet") as caught:
        Encoder(young, device="cpu")
    assert "first evaluation" in str(caught.value.hint)


def test_a_grey_model_sees_the_luminance_of_a_photo(tmp_path):
    grey = dataclasses.replace(SHAPE, in_channels=1)
    export(tmp_path, config=grey, card={"image_size": 24, "mean": [0.4], "std": [0.3]})
    encoder = Encoder(tmp_path, device="cpu", precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 24, 3), dtype=np.uint8)
    luminance = (pixels @ np.array([0.299, 0.587, 0.114]))[:, None] / 255
    vit = VisionTransformer.from_state(grey, drawn(grey))
    with torch.inference_mode():
        wanted = vit(torch.from_numpy((luminance - 0.4) / 0.3).float()).class_token
    wanted = torch.nn.functional.normalize(wanted, dim=1).numpy()
    np.testing.assert_allclose(encoder.embed(pixels), wanted, atol=1e-5)
    spec = FeatureSpec(size=24)
    with torch.inference_mode():
        patches = vit(torch.from_numpy((luminance - 0.4) / 0.3).float()).patch_tokens[0]
    torch.testing.assert_close(encoder.encode(pixels[0], spec).patch_tokens, patches, atol=1e-4, rtol=0)


def test_models_of_other_channels_are_no_encoders(tmp_path):
    many = dataclasses.replace(SHAPE, in_channels=5)
    export(tmp_path, config=many, card={"mean": [0.5] * 5, "std": [0.2] * 5})
    with pytest.raises(ArgumentError, match="5 channels") as caught:
        Encoder(tmp_path, device="cpu")
    assert "load_model" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("to", "name"), [("safetensors", "m.safetensors"), ("released", "m.pth"), ("hf", "m")]
)
def test_every_layout_reads_back_as_the_teacher(run, tmp_path, to, name):
    out = export_run(run, to=to, out=tmp_path / name)
    read = read_checkpoint(out)
    assert same(read.state, drawn())
    assert state_digest(read.state, read.config) == state_digest(drawn(), SHAPE)
    with pytest.raises(ArgumentError, match="exists already"):
        export_run(run, to=to, out=tmp_path / name)
    export(run, seed=1)
    export_run(run, to=to, out=tmp_path / name, overwrite=True)
    assert same(read_checkpoint(out).state, drawn(seed=1))
    if to == "safetensors":
        assert json.loads(read.metadata["mean"]) == CARD["mean"]
        assert Encoder(out, device="cpu").identity.fingerprint != ""
    if to == "hf":
        facts = json.loads((out / "preprocessor_config.json").read_text("utf-8"))
        assert (facts["image_mean"], facts["crop_size"]["height"]) == (CARD["mean"], 24)


def test_what_is_no_layout_place_or_run_is_refused(run, tmp_path):
    with pytest.raises(ArgumentError, match="unknown layout 'tflite'"):
        export_run(run, to="tflite", out=tmp_path / "m")
    with pytest.raises(ArgumentError, match=r"ends in \.onnx"):
        export_run(run, to="onnx", out=tmp_path / "m.pth")
    with pytest.raises(WeightsError):
        export_run(tmp_path / "absent", to="released", out=tmp_path / "m.pth")
    with pytest.raises(WeightsError, match="no projection heads"):
        read_heads(run / "export" / "teacher.safetensors")


def test_a_shape_that_a_layout_cannot_say_is_refused(tmp_path):
    nano = find_architecture("vitn4", image_size=24)
    export(tmp_path, config=nano, heads={}, card={})
    with pytest.raises(ArgumentError, match="cannot say: num_heads 3"):
        export_run(tmp_path, to="released", out=tmp_path / "m.pth")
    assert not (tmp_path / "m.pth").exists()
    assert read_checkpoint(export_run(tmp_path, to="hf", out=tmp_path / "hf")).config == nano


def test_onnx_without_its_packages_names_them(run, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "PACKAGES", ("onnx_that_no_one_has",))
    with pytest.raises(DependencyError, match="onnx_that_no_one_has") as caught:
        export_run(run, to="onnx", out=tmp_path / "m.onnx")
    assert "pip install" in str(caught.value.hint)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in onnx_files.PACKAGES),
    reason="onnx, onnxscript or onnxruntime is missing",
)
@pytest.mark.parametrize("registers", [0, 4])
def test_onnx_computes_the_same_tokens_for_any_number_of_images(tmp_path, registers):
    import onnxruntime

    config = find_architecture("vitn4", image_size=32, num_registers=registers)
    vit = VisionTransformer.from_state(config, drawn(config))
    write_onnx(vit, tmp_path / "m.onnx", image_size=24)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    for count in (1, 5):
        images = torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(count))
        found = session.run(["class_token", "patch_tokens"], {"images": images.numpy()})
        with torch.inference_mode():
            tokens = vit(images)
        np.testing.assert_allclose(found[0], tokens.class_token.numpy(), atol=1e-4)
        np.testing.assert_allclose(found[1], tokens.patch_tokens.numpy(), atol=1e-4)
