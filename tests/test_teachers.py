"""A teacher sees what its network returns, of every kind; what cannot teach is refused when it is opened.

Oracles: the networks' own calls, transformers, and for code of a user the mean colour of each patch in NumPy.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinov2kit.architectures import ARCHITECTURES, ViTConfig
from dinov2kit.checkpoints import write_checkpoint
from dinov2kit.errors import ArgumentError, DependencyError, KitError, WeightsError
from dinov2kit.normalising import Normalisation
from dinov2kit.train.colours import finish_crops, no_colours
from dinov2kit.train.teachers import Teacher, open_teacher
from dinov2kit.views import IMAGENET_MEAN, IMAGENET_STD
from dinov2kit.weights import load_model

TINY = ViTConfig(embed_dim=64, depth=2, num_heads=1, ffn_hidden=256, pos_grid=4)
REGISTERS = replace(TINY, num_registers=4, interpolate_offset=0.0, interpolate_antialias=True)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder without a network; "vits14" and "vits14_reg" are tiny models."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    monkeypatch.setitem(ARCHITECTURES, "vits14", TINY)
    monkeypatch.setitem(ARCHITECTURES, "vits14_reg", REGISTERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def crops(height: int, width: int, count: int = 3, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


def normalised(pixels: Tensor, mean: Any = IMAGENET_MEAN, std: Any = IMAGENET_STD) -> Tensor:
    return finish_crops(pixels, no_colours(len(pixels), pixels.shape[3]), mean=mean, std=std)


def opened(source: str, **options: Any) -> Teacher:
    return open_teacher(source, device=CPU, **options)


@pytest.mark.parametrize("name", ["untrained:vits14:3", "untrained:vits14_reg:3"])
def test_a_model_of_ours_sees_the_tokens_of_its_own_forward_pass(name: str) -> None:
    teacher, loaded = opened(name), load_model(name)
    assert (teacher.name, teacher.class_dim, teacher.patch_dim, teacher.multiple) == (name, 64, 64, 14)
    for height, width in ((56, 56), (42, 70), (14, 98)):
        pixels = crops(height, width)
        with torch.no_grad():
            wanted = loaded.vit(normalised(pixels))
            told = loaded.vit(Normalisation().apply(pixels))
        seen = teacher.look(pixels)
        assert seen.patch_tokens is not None
        assert torch.equal(seen.class_token, wanted.class_token)
        assert seen.patch_tokens.shape[1:3] == (height // 14, width // 14)
        assert torch.equal(seen.patch_tokens.flatten(1, 2), wanted.patch_tokens)
        torch.testing.assert_close(seen.class_token, told.class_token, atol=1e-5, rtol=0)


def test_a_weight_file_says_how_pixels_are_normalised_and_of_how_many_channels() -> None:
    grey = replace(TINY, in_channels=1)
    vit = load_model("untrained:vits14").vit.__class__(grey).eval()
    texts = {"mean": "[0.2]", "std": "[0.7]"}
    write_checkpoint(vit.state_dict(), grey, "grey.safetensors", metadata=texts)
    write_checkpoint(vit.state_dict(), grey, "other.safetensors")
    teacher, pixels = opened("grey.safetensors", channels=1), crops(28, 42, channels=1)
    with torch.no_grad():
        wanted = vit((pixels.permute(0, 3, 1, 2) / 255 - 0.2) / 0.7).class_token
    torch.testing.assert_close(teacher.look(pixels).class_token, wanted, atol=1e-5, rtol=0)
    assert teacher.digest != opened("other.safetensors", channels=1).digest
    with pytest.raises(ArgumentError, match="takes images of 1 channels, not of 3"):
        opened("grey.safetensors")


def test_a_digest_is_of_weights_and_not_of_places() -> None:
    loaded = load_model("untrained:vits14:3")
    for file in ("a.safetensors", "b.safetensors"):
        write_checkpoint(loaded.vit.state_dict(), TINY, file)
    digests = {opened(name).digest for name in ("a.safetensors", "b.safetensors", "untrained:vits14:3")}
    assert len(digests) == 1
    assert opened("untrained:vits14:4").digest not in digests
    write_checkpoint(loaded.vit.state_dict(), TINY, "hf", format="hf")
    shutil.copytree("hf", "copy")
    theirs = {opened(name).digest for name in ("hf:hf", "hf:copy")}
    assert len(theirs) == 1
    facts = json.loads(Path("copy/config.json").read_text())
    Path("copy/config.json").write_text(json.dumps({**facts, "num_attention_heads": 2}))
    assert opened("hf:copy").digest not in theirs  # the same tensors, another function


@pytest.mark.parametrize(
    ("name", "size"), [("vits14", (56, 56)), ("vits14_reg", (56, 56)), ("vits14_reg", (42, 70))]
)
def test_transformers_sees_in_our_export_what_we_see(name: str, size: tuple[int, int]) -> None:
    loaded = load_model(f"untrained:{name}:3")
    write_checkpoint(loaded.vit.state_dict(), loaded.vit.config, "export", format="hf")
    ours, theirs = opened("export"), opened("hf:export")
    assert (theirs.class_dim, theirs.patch_dim, theirs.multiple) == (64, 64, 14)
    pixels = crops(*size)
    for found, wanted in zip(theirs.look(pixels), ours.look(pixels), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def save_tiny(kind: str) -> Any:
    """Save a tiny model of transformers, and return it."""
    import transformers

    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vision = {**small, "image_size": 64, "patch_size": 16}
    facts: dict[str, dict[str, Any]] = {
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]},
        "ConvNext": {"hidden_sizes": [8, 8, 16, 24], "depths": [1, 1, 1, 1]},
        "Swin": {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1, 1, 2, 2], "window_size": 2},
        "CLIP": {"vision_config": vision, "text_config": {**small, "vocab_size": 9}},
        "ViTMAE": vision,
        "ViT": vision,
    }
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**facts[kind])
    extra = {"add_pooling_layer": False} if kind == "ViT" else {}
    model = getattr(transformers, f"{kind}Model")(config, **extra).eval()
    model.save_pretrained("saved")
    return model


@pytest.mark.parametrize("kind", ["ResNet", "ConvNext"])
def test_a_convolutional_network_sees_its_map_and_the_mean_of_it(kind: str) -> None:
    model, pixels = save_tiny(kind), crops(64, 96)
    said = {"image_processor_type": "ConvNextImageProcessor", "image_mean": [0.1, 0.2, 0.3]}
    Path("saved/preprocessor_config.json").write_text(json.dumps({**said, "image_std": [1, 0.5, 0.25]}))
    teacher = opened("hf:saved")
    assert (teacher.class_dim, teacher.patch_dim, teacher.multiple) == (24, 24, 32)
    with torch.no_grad():
        wanted = model(normalised(pixels, [0.1, 0.2, 0.3], [1.0, 0.5, 0.25])).last_hidden_state
    seen = teacher.look(pixels)
    assert seen.patch_tokens is not None
    assert torch.equal(seen.patch_tokens.permute(0, 3, 1, 2), wanted)
    assert torch.equal(seen.class_token, wanted.mean((2, 3)))


@pytest.mark.parametrize(
    ("said", "mean", "std"),
    [
        ({"do_normalize": False}, (0.0,) * 3, (1.0,) * 3),
        ({"do_rescale": False, "image_mean": [51] * 3, "image_std": [102] * 3}, (0.2,) * 3, (0.4,) * 3),
        ({"rescale_factor": 1 / 51, "image_mean": [1] * 3, "image_std": [2] * 3}, (0.2,) * 3, (0.4,) * 3),
        (None, IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_a_preprocessor_is_followed_whatever_it_counts_from(said: Any, mean: Any, std: Any) -> None:
    model, pixels = save_tiny("ResNet"), crops(32, 64)
    if said is not None:
        said = {"image_processor_type": "ConvNextImageProcessor", **said}
        Path("saved/preprocessor_config.json").write_text(json.dumps(said))
    with torch.no_grad():
        wanted = model(normalised(pixels, mean, std)).last_hidden_state.mean((2, 3))
    torch.testing.assert_close(opened("hf:saved").look(pixels).class_token, wanted, atol=1e-5, rtol=1e-5)


def test_tokens_without_a_class_token_are_averaged_and_of_two_towers_the_visual_one_is_read() -> None:
    pixels = crops(64, 96)
    swin = save_tiny("Swin")
    teacher = opened("hf:saved")
    assert teacher.multiple == 32  # of its patches at the end; its config speaks of those at the start
    with torch.no_grad():
        wanted = swin(normalised(pixels), interpolate_pos_encoding=True).last_hidden_state
    seen = teacher.look(pixels)
    assert seen.patch_tokens is not None
    assert torch.equal(seen.patch_tokens, wanted.reshape(3, 2, 3, 64))
    assert torch.equal(seen.class_token, wanted.mean(1))
    clip = save_tiny("CLIP")
    with torch.no_grad():
        wanted = clip.vision_model(normalised(pixels), interpolate_pos_encoding=True).last_hidden_state
    seen = opened("hf:saved").look(pixels)
    assert seen.patch_tokens is not None
    assert torch.equal(seen.class_token, wanted[:, 0])
    assert torch.equal(seen.patch_tokens.flatten(1, 2), wanted[:, 1:])


def test_weights_that_are_not_used_may_be_missing_and_others_not(capfd: pytest.CaptureFixture[str]) -> None:
    from safetensors.torch import load_file, save_file

    save_tiny("ViT")  # without the pooler, which transformers then draws at random
    capfd.readouterr()
    assert opened("hf:saved").digest == opened("hf:saved").digest
    assert capfd.readouterr() == ("", "")
    state = load_file("saved/model.safetensors")
    del state["layernorm.weight"]
    save_file(state, "saved/model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks 1 tensors of its network: layernorm\.weight"):
        opened("hf:saved")


def test_a_masked_autoencoder_that_draws_its_masks_cannot_teach() -> None:
    save_tiny("ViTMAE")
    with pytest.raises(ArgumentError, match="sees other things in an image alone"):
        opened("hf:saved")


CODE = '''
import torch
from torch import nn

class Colours(nn.Module):
    """The mean colour of each patch of 16 pixels, read as the subclass says."""

    multiple = 16

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, images):
        squares = images.unflatten(3, (-1, 16)).unflatten(2, (-1, 16))
        colours = squares.mean((3, 5)) * self.weight[:, None, None]
        self.mode = (self.training, torch.is_grad_enabled())
        return self.read(colours, colours.flatten(2).mT, colours.mean((2, 3)))

    def read(self, map, tokens, mean):
        return map

def prefixed(count, tokens):
    return torch.cat([torch.full_like(tokens[:, :1], 1 + n) for n in range(count)] + [tokens], 1)
'''
READINGS = {
    "map": "map",
    "tokens": "tokens",
    "class": "prefixed(1, tokens)",
    "registers": "prefixed(6, tokens)",
    "pair_map": "(mean, map)",
    "pair_tokens": "[mean, tokens]",
    "named": "{'class_token': mean, 'patch_tokens': tokens, 'masks': None}",
    "released": "{'x_norm_clstoken': mean, 'x_norm_patchtokens': tokens, 'x_prenorm': prefixed(5, tokens)}",
    "hidden": "{'last_hidden_state': map}",
    "alone": "mean",
    "named_alone": "{'class_token': mean}",
}


@pytest.fixture
def written(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return what writes a module of the user, and returns the source that names its class."""

    def write(read: str = "map", more: str = "", name: str = "Named") -> str:
        text = (
            f"{CODE}\nclass Named(Colours):\n    def read(self, map, tokens, mean):\n        return {read}\n"
        )
        Path("package").mkdir(exist_ok=True)
        Path("package/my_teachers.py").write_text(f"{text}\n{more}\n")
        for module in ("package.my_teachers", "package"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        return f"torch:package.my_teachers:{name}"

    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two files of one second are told apart by nothing
    return write


@pytest.mark.parametrize("kind", READINGS)
def test_code_of_the_user_is_read_as_told(kind: str, written: Callable[..., str]) -> None:
    paths = list(sys.path)
    teacher, pixels = opened(written(READINGS[kind])), crops(32, 80)
    assert sys.path == paths
    colours = (pixels.double().numpy() / 255 - IMAGENET_MEAN) / IMAGENET_STD
    wanted = colours.reshape(3, 2, 16, 5, 16, 3).mean((2, 4))
    seen = teacher.look(pixels)
    has_class = kind in ("class", "registers")
    class_token = np.ones((3, 3)) if has_class else wanted.mean((1, 2))
    assert np.allclose(seen.class_token, class_token, atol=1e-5)
    assert (teacher.class_dim, teacher.multiple) == (3, 16)
    if "alone" in kind:
        assert (seen.patch_tokens, teacher.patch_dim) == (None, None)
    else:
        assert teacher.patch_dim == 3
        assert seen.patch_tokens is not None
        assert np.allclose(seen.patch_tokens, wanted, atol=1e-5)


def test_code_may_be_a_function_a_class_or_a_module_and_may_say_what_pixels_are(
    written: Callable[..., str],
) -> None:
    more = (
        "Named.mean, Named.std = [0.5, 0, 0], (1, 2, 1)\n"
        "def build():\n    return Named().double().requires_grad_(True).train()\nready = build()\n"
    )
    pixels = crops(32, 32)
    digests = set()
    for name in ("Named", "build", "ready"):
        teacher = opened(written("map", more, name))
        wanted = (pixels.double().mean((1, 2)) / 255 - torch.tensor([0.5, 0, 0])) / torch.tensor([1, 2, 1])
        assert np.allclose(teacher.look(pixels).class_token, wanted, atol=1e-5)
        digests.add(teacher.digest)
    assert len(digests) == 3
    assert opened(written("map", more)).digest in digests
    other = "\nwith torch.no_grad():\n    ready.weight[2] = 1.5"
    assert opened(written("map", more + other, "ready")).digest not in digests
    assert opened(written("map", more.replace("0.5", "0.4"))).digest not in digests


def test_a_look_is_frozen_whatever_surrounds_it_and_the_same_alone(written: Callable[..., str]) -> None:
    more = "ready = Named()"
    teacher, pixels = opened(written("map", more, "ready")), crops(32, 48)
    network = sys.modules["package.my_teachers"].ready
    wanted = teacher.look(pixels)
    for surrounding in (torch.enable_grad(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with surrounding:
            seen = teacher.look(pixels)
        assert network.mode == (False, False)
        for found, other in zip(seen, wanted, strict=True):
            assert torch.equal(found, other)
            assert (found.requires_grad, found.dtype) == (False, torch.float32)
            assert not found.is_inference()  # a loss may keep it for its backward pass
    assert not network.weight.requires_grad
    assert network.weight.grad is None
    for number in range(3):
        alone = teacher.look(pixels[number : number + 1])
        for found, other in zip(alone, wanted, strict=True):
            assert torch.equal(found[0], other[number])


def test_bf16_is_near_fp32_and_is_fp32_when_it_comes_out() -> None:
    pixels = crops(42, 56)
    vit = load_model("untrained:vits14_reg:3").vit
    exact = opened("untrained:vits14_reg:3")
    rounded = opened("untrained:vits14_reg:3", precision="bf16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = vit(normalised(pixels))
    with torch.autocast("cpu", torch.bfloat16):
        under = exact.look(pixels)
    for found, other, still in zip(rounded.look(pixels), exact.look(pixels), under, strict=True):
        assert found.dtype is torch.float32
        assert torch.equal(still, other)
        apart = float((found - other).norm() / other.norm())
        assert 1e-5 < apart < 0.02
    assert torch.equal(rounded.look(pixels).class_token, tokens.class_token.float())
    assert exact.digest == rounded.digest


@pytest.mark.parametrize(
    ("read", "more", "said"),
    [
        ("None", "", "returns NoneType for 2 images"),
        ("(mean, map, tokens)", "", r"returns a tuple of float32 \(2, 3\), float32 \(2, 3, 4, 4\), "),
        ("{'logits': mean}", "", r"returns a dict of logits: float32 \(2, 3\)"),
        ("{'patch_tokens': tokens}", "", "returns a dict of patch_tokens"),
        ("(tokens, mean)", "", "returns a tuple"),
        ("map.argmax(1)", "", r"returns int64 \(2, 4, 4\)"),
        ("mean[:1]", "", r"returns float32 \(1, 3\)"),
        ("map.permute(0, 2, 3, 1)", "", "4 x 3 patches for an image of 64 x 64"),
        ("tokens[:, :7]", "", "returns 7 tokens for an image of 64 x 64 pixels and 7 for one twice as wide"),
        ("tokens[:, 2:]", "", "returns 14 tokens for an image of 64 x 64 pixels and 30"),
        ("(mean, tokens[:, 1:])", "", "returns 15 patch tokens for an image of 64 x 64"),
        ("mean / 0 * 0", "", "not finite"),
        ("map + 1.0 * torch.rand_like(map)", "", "sees other things in an image alone"),
        ("map - map.mean(0)", "", "sees other things in an image alone"),
        ("map.reshape(7, 9)", "", "fails on images of 3 x 64 x 64: RuntimeError: shape"),
        ("map", "Named.multiple = 10", "fails on images of 3 x 70 x 70"),
        ("map", "Named.multiple = 0", "multiple of .* is 0"),
        ("map", "Named.multiple = 16.0", r"multiple of .* is 16\.0"),
        ("map", "Named.mean, Named.std = [0.5], [0.5]", "for 3 channels"),
        ("map", "Named.mean = [0.5] * 3", "a std of None"),
        ("map", "Named.mean, Named.std = [0.5] * 3, [0.0] * 3", "for 3 channels"),
        ("map", "Named.mean, Named.std = ['a'] * 3, [1] * 3", "for 3 channels"),
        ("map", "Named.mean = Named.std = torch.ones(3)", "has a mean of tensor"),
        ("map", "1 / 0", "cannot be opened: ZeroDivisionError: division by zero"),
        ("map", "def Named():\n    return 5", "is a int; wanted a torch.nn.Module"),
        ("map", "def Named(size):\n    return 5", "TypeError"),
        ("map", "del Named", "AttributeError"),
    ],
)
def test_code_that_cannot_teach_is_refused_when_it_is_opened(
    read: str, more: str, said: str, written: Callable[..., str]
) -> None:
    with pytest.raises(KitError, match=said) as caught:
        opened(written(read, more))
    assert isinstance(caught.value, WeightsError if "finite" in said else ArgumentError)
    assert "package.my_teachers" in caught.value.message


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        ("torch:", ArgumentError, "names no code; wanted torch:package.module:name"),
        ("torch:module", ArgumentError, "names no code"),
        ("torch:a b:name", ArgumentError, "names no code"),
        ("torch:module:name()", ArgumentError, "names no code"),
        ("torch:absent_module_7:name", ArgumentError, "No module named 'absent_module_7'"),
        ("hf:", WeightsError, "there is no folder ''"),
        ("hf:./absent", WeightsError, "there is no folder './absent'"),
        ("hf:runs/7/absent", WeightsError, "there is no folder"),
        ("hf:org/absent", WeightsError, r"cannot be opened: .*DINOKIT_OFFLINE forbids"),
        ("hf:empty", WeightsError, "cannot be opened"),
        ("vitx14", WeightsError, "vitx14"),
        ("absent.pth", WeightsError, "no such weight file"),
    ],
)
def test_what_is_no_teacher_is_refused_with_a_way_out(source: str, error: type[KitError], said: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(error, match=said) as caught:
        opened(source)
    assert caught.value.hint


def test_what_a_folder_of_transformers_says_wrongly_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny("ResNet")
    with pytest.raises(ArgumentError, match="hf:saved takes images of 3 channels, not of 1"):
        opened("hf:saved", channels=1)
    file = Path("saved/preprocessor_config.json")
    file.write_text("{")
    with pytest.raises(WeightsError, match="the preprocessor of hf:saved cannot be read"):
        opened("hf:saved")
    file.write_text(
        '{"image_processor_type": "ConvNextImageProcessor", "image_mean": [0.5], "image_std": [1]}'
    )
    with pytest.raises(ArgumentError, match="preprocessor of hf:saved has a mean of"):
        opened("hf:saved")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DependencyError, match="needs transformers") as caught:
        opened("hf:saved")
    assert "pip install 'transformers" in str(caught.value.hint)


def test_wrong_images_and_precisions_are_refused() -> None:
    teacher = opened("untrained:vits14")
    with pytest.raises(ArgumentError, match="sees 3 channels; the images have 1"):
        teacher.look(crops(28, 28, channels=1))
    for height, width in ((28, 30), (15, 28), (0, 28)):
        with pytest.raises(ArgumentError, match=f"images of {height} x {width} pixels .* multiples of 14"):
            teacher.look(crops(height, width))
    with pytest.raises(ArgumentError, match="unknown precision 'fp16'; wanted one of fp32, bf16"):
        opened("untrained:vits14", precision="fp16")


def test_a_network_for_one_size_of_image_may_say_so(written: Callable[..., str]) -> None:
    more = (
        "Named.multiple = 96\nNamed.__init__ = lambda self: (nn.Module.__init__(self), "
        "setattr(self, 'weight', nn.Parameter(torch.ones(3))), setattr(self, 'place', "
        "nn.Parameter(torch.ones(6, 6))))[0]"
    )
    teacher = opened(written("map + self.place", more))
    assert teacher.multiple == 96
    assert isinstance(teacher, Teacher)
    assert teacher.look(crops(96, 96)).class_token.shape == (3, 3)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_on_a_gpu_sees_what_it_sees_on_the_cpu(precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    pixels = crops(42, 56)
    there = open_teacher("untrained:vits14:3", device=torch.device("cuda"), precision=precision)
    for found, wanted in zip(there.look(pixels), opened("untrained:vits14:3").look(pixels), strict=True):
        assert found.device.type == "cuda"
        assert float((found.cpu() - wanted).norm() / wanted.norm()) < (0.02 if precision == "bf16" else 2e-3)
