"""What a model name means, on tiny models; a server on loopback stands in for the release."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage import data

from dinov2kit.architectures import ARCHITECTURES, ViTConfig, find_architecture
from dinov2kit.checkpoints import write_checkpoint
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.normalising import Normalisation
from dinov2kit.vit import VisionTransformer
from dinov2kit.weights import _say_once, convert_model, describe_model, list_models, load_model

TINY = ViTConfig(embed_dim=64, depth=2, num_heads=1, ffn_hidden=256, pos_grid=4)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a home without weights and without a network; "vits14" is a tiny model."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    monkeypatch.delenv("DINOKIT_WEIGHTS_URL", raising=False)
    monkeypatch.setitem(ARCHITECTURES, "vits14", TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def vit() -> VisionTransformer:
    return load_model("untrained:vits14:3").vit


@pytest.fixture
def mirror(tmp_path: Path, vit: VisionTransformer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    file = tmp_path / "mirror" / "dinov2_vits14" / "dinov2_vits14_pretrain.pth"
    file.parent.mkdir(parents=True)
    write_checkpoint(vit.state_dict(), vit.config, file, format="released")
    monkeypatch.delenv("DINOKIT_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "mirror")))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()


def image_batch(*photos: np.ndarray) -> torch.Tensor:
    return torch.stack(
        [torch.from_numpy(photo[:224, :224].copy()).permute(2, 0, 1) / 127.5 - 1 for photo in photos]
    )


def same_weights(model: VisionTransformer, other: VisionTransformer) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_random_weights_follow_from_the_seed_alone() -> None:
    first, again, other = (load_model(f"untrained:vitt14{seed}") for seed in ("", ":0", ":7"))
    assert same_weights(first.vit, again.vit)
    assert not same_weights(first.vit, other.vit)
    assert first.weights_sha256 == again.weights_sha256 != other.weights_sha256
    assert (first.name, again.name, other.name) == (
        "untrained:vitt14",
        "untrained:vitt14",
        "untrained:vitt14:7",
    )
    assert (first.format, first.path) == ("untrained", None)


def test_random_weights_come_in_every_shape_that_has_a_name() -> None:
    nano, other = load_model("untrained:vitn4"), load_model("untrained:ViTS16-reg:3")
    assert (nano.name, nano.vit.config) == ("untrained:vitn4", find_architecture("vitn4"))
    assert (other.name, other.vit.config) == ("untrained:vits16_reg:3", find_architecture("vits16_reg"))
    assert describe_model("untrained:vits16_reg").architecture == "vits16_reg"
    with pytest.raises(WeightsError, match="no trained weights of vits16"):
        load_model("vits16")


def test_what_a_file_says_of_its_images_is_kept_and_checked() -> None:
    vit = load_model("untrained:vits14:3").vit
    texts = {"mean": "[0.5, 0.5, 0.5]", "std": "[0.1, 0.2, 0.3]", "image_size": "56"}
    write_checkpoint(vit.state_dict(), vit.config, "m.safetensors", metadata=texts)
    convert_model("m.safetensors", Path("n.safetensors"), to="safetensors")
    model = load_model("n.safetensors")
    assert model.normalisation == Normalisation((0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    assert model.image_size == 56
    assert load_model("untrained:vits14").normalisation == Normalisation()
    assert load_model("untrained:vits14").image_size == 224
    for wrong in ({"mean": "[0.5]", "std": "[0.1]"}, {"mean": "[1, 2, 3]"}, {"mean": "x", "std": "[0]"}):
        write_checkpoint(vit.state_dict(), vit.config, "m.safetensors", metadata=wrong)
        with pytest.raises(WeightsError, match=r"m\.safetensors has a .*mean and std"):
            _ = load_model("m.safetensors").normalisation
    for size in ("-1", "0", "large"):
        write_checkpoint(vit.state_dict(), vit.config, "m.safetensors", metadata={"image_size": size})
        with pytest.raises(WeightsError, match="image_size"):
            _ = load_model("m.safetensors").image_size


def test_random_weights_leave_the_random_state_of_torch_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    load_model("untrained:vitt14")
    assert torch.equal(torch.rand(3), wanted)


def test_random_weights_tell_photos_apart() -> None:
    images = image_batch(data.astronaut(), data.chelsea(), data.coffee(), data.rocket())
    with torch.inference_mode():
        rows = torch.nn.functional.normalize(load_model("untrained:vitt14").vit(images).class_token, dim=-1)
    cosines = (rows @ rows.T)[*torch.triu_indices(4, 4, 1)]
    assert cosines.max() < 0.995
    assert cosines.max() - cosines.min() > 0.01


def test_models_are_frozen_and_in_evaluation_mode(vit: VisionTransformer) -> None:
    write_checkpoint(vit.state_dict(), vit.config, "m.safetensors", format="safetensors")
    for name in ("untrained:vits14", "m.safetensors"):
        model = load_model(name).vit
        assert not any(module.training for module in model.modules())
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}


@pytest.mark.parametrize(
    ("out", "to"), [("m.pth", "released"), ("m.safetensors", "safetensors"), ("m", "hf")]
)
def test_every_format_gives_back_the_same_weights_and_digest(out: str, to: str) -> None:
    drawn = load_model("untrained:vits14:3")
    convert_model("untrained:vits14:3", Path(out), to=to)
    read = load_model(Path(out))
    assert same_weights(read.vit, drawn.vit)
    assert (read.name, read.path, read.format) == (out, Path(out), to)
    assert read.weights_sha256 == drawn.weights_sha256


def test_a_released_model_is_downloaded_once_and_then_needs_no_network(
    mirror: str, home: Path, vit: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int | None]] = []
    model = load_model("vits14", base_url=mirror, progress=lambda here, total: seen.append((here, total)))
    assert same_weights(model.vit, vit)
    assert (model.name, model.format) == ("dinov2_vits14", "released")
    assert model.path == home / "weights" / "dinov2_vits14_pretrain.pth"
    assert seen[-1] == (model.path.stat().st_size, model.path.stat().st_size)
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    for name in ("dinov2_vits14", "facebook/dinov2-small", "auto"):
        again = load_model(name)
        assert (again.name, again.weights_sha256) == ("dinov2_vits14", model.weights_sha256)
    assert {spec.name: spec.file for spec in list_models() if spec.file and not spec.shipped} == {
        "dinov2_vits14": model.path
    }


def test_auto_downloads_the_smallest_released_model(
    mirror: str, vit: VisionTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOKIT_WEIGHTS_URL", mirror)
    assert same_weights(load_model().vit, vit)


def test_auto_without_weights_or_network_is_the_model_in_the_package(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _say_once.cache_clear()
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    models = [load_model(name) for name in ("auto", "auto", "dinokit_vitt14", "vitt14")]
    assert {model.name for model in models} == {"dinokit_vitt14"}
    assert {model.weights_sha256 for model in models} == {models[0].weights_sha256}
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "dinokit_vitt14" in said
    assert "dinokit models pull vits14" in said
    facts = describe_model("auto")
    assert (facts.name, facts.url, facts.weights_sha256) == (
        "dinokit_vitt14",
        None,
        models[0].weights_sha256,
    )


def test_auto_with_a_dead_network_is_the_model_in_the_package(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DINOKIT_OFFLINE", raising=False)
    monkeypatch.setenv("DINOKIT_WEIGHTS_URL", "http://127.0.0.1:9")
    assert load_model("auto").name == "dinokit_vitt14"


def test_the_model_in_the_package_is_small_trained_and_described() -> None:
    (spec,) = [each for each in list_models() if each.shipped]
    assert spec.file is not None
    assert spec.file.stat().st_size < 12_000_000
    model = load_model(spec.name)
    assert sum(each.numel() for each in model.vit.parameters()) == spec.parameters
    card = spec.file.with_suffix(".md").read_text("utf-8")
    for word in ("Licence", "MobileNet", "Imagenette", "random weights"):
        assert word in card, word


def test_half_precision_is_the_rounded_model(home: Path) -> None:
    exact = load_model("untrained:vitn4")
    convert_model("untrained:vitn4", Path("half.safetensors"), to="safetensors", half=True, image_size=64)
    half = load_model("half.safetensors")
    assert half.image_size == 64
    for name, value in exact.vit.state_dict().items():
        assert torch.equal(half.vit.state_dict()[name], value.half().float()), name
    with pytest.raises(ArgumentError, match="image size"):
        convert_model("untrained:vitn4", Path("x.pth"), to="released", image_size=64)


def test_a_damaged_download_is_not_used(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = load_model("vits14", base_url=mirror).path
    assert path is not None
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for name in ("vits14", "auto"):
        with pytest.raises(WeightsError, match="is damaged") as caught:
            load_model(name)
        assert "delete" in str(caught.value.hint)


def test_a_file_under_the_name_of_another_model_is_refused(home: Path) -> None:
    convert_model("untrained:vits14", Path("vitb.pth"), to="released")
    (home / "weights").mkdir(parents=True)
    Path("vitb.pth").rename(home / "weights" / "dinov2_vitb14_pretrain.pth")
    with pytest.raises(WeightsError, match="holds vits14, not vitb14"):
        load_model("vitb14")


def test_a_folder_with_weights_stands_before_a_name_and_one_without_does_not() -> None:
    drawn = load_model("untrained:vits14:3")
    convert_model("untrained:vits14:3", Path("facebook/dinov2-small"), to="hf")
    local = load_model("facebook/dinov2-small")
    assert (local.format, local.weights_sha256) == ("hf", drawn.weights_sha256)
    Path("vits14").mkdir()
    with pytest.raises(WeightsError, match="DINOKIT_OFFLINE"):
        load_model("vits14")


@pytest.mark.parametrize(
    ("name", "said", "way"),
    [
        ("absent.pth", "no such weight file: absent.pth", "relative to the current folder"),
        ("runs/7/absent", "no such weight file", "relative to the current folder"),
        ("photos", "has no weights", ""),
        ("vitn14", "no trained weights of vitn14", "untrained:vitn14"),
        ("vitb14_rge", "vitb14_rge", "dinov2_vitb14_reg"),
        ("untrained:vitx14", "unknown model", "vitt14"),
        ("untrained:vitt14:x", "unknown model", "a seed is a whole number"),
        ("untrained:", "unknown model", "vitt14"),
        ("vitb14", "DINOKIT_OFFLINE forbids", "dinov2_vitb14_pretrain.pth"),
    ],
)
def test_what_is_no_model_is_refused_with_a_way_out(name: str, said: str, way: str) -> None:
    Path("photos").mkdir()
    with pytest.raises(WeightsError, match=said) as caught:
        load_model(name)
    assert way in str(caught.value.hint)


def test_facts_of_a_released_model_need_neither_file_nor_network() -> None:
    facts = describe_model("vitg14-reg")
    assert (facts.name, facts.architecture) == ("dinov2_vitg14_reg", "vitg14_reg")
    assert (facts.parameters, facts.config.num_registers, facts.config.ffn) == (1_136_486_912, 4, "swiglu")
    assert (facts.format, facts.path, facts.weights_sha256) == (None, None, None)
    assert str(facts.url).endswith("dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth")
    assert facts.position_rule == "37x37, bicubic by size, antialias"


def test_facts_of_a_file_are_those_of_its_model() -> None:
    drawn = convert_model("untrained:vits14:3", Path("m.pth"), to="released")
    facts = describe_model("m.pth")
    assert (facts.name, facts.format, facts.path) == ("m.pth", "released", Path("m.pth"))
    assert facts.architecture == "vits14"
    assert facts.weights_sha256 == drawn.weights_sha256
    assert facts.parameters == sum(value.numel() for value in drawn.vit.state_dict().values())
    assert facts.nbytes == Path("m.pth").stat().st_size
    assert facts.position_rule == "4x4, bicubic by scale with offset 0.1"


def test_conversion_never_replaces_what_it_was_not_told_to() -> None:
    Path("m.pth").write_text("precious")
    with pytest.raises(ArgumentError, match="exists already"):
        convert_model("untrained:vits14", Path("m.pth"), to="released")
    assert Path("m.pth").read_text() == "precious"
    convert_model("untrained:vits14", Path("m.pth"), to="released", overwrite=True)
    assert load_model("m.pth").format == "released"


@pytest.mark.parametrize(
    ("out", "to", "said"),
    [
        ("m.pth", "onnx", "unknown format 'onnx'"),
        ("m.pth", "safetensors", "ends in .safetensors"),
        ("m.safetensors", "released", "ends in .pth"),
        ("absent/m.pth", "released", "cannot write"),
    ],
)
def test_a_place_that_does_not_fit_is_refused(out: str, to: str, said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        convert_model("untrained:vits14", Path(out), to=to)


def test_auto_is_what_the_environment_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOKIT_MODEL", "untrained:vitt14:7")
    assert load_model("auto").name == describe_model("auto").name == "untrained:vitt14:7"
    assert load_model("auto").weights_sha256 == load_model("untrained:vitt14:7").weights_sha256
    assert load_model("untrained:vitt14").name == "untrained:vitt14"
