"""The adapter: its arithmetic against formulas in fp64, its files, and the encoder that uses it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage import data

from dinov2kit.adapter import AdaptedEncoder, Adapter, AdapterCard, load_adapter, save_adapter
from dinov2kit.draw import write_image
from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, WeightsError
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.grid import PatchGrid

KEYS = [
    "mixing_weights",
    "logit_scale",
    "self_logit_scale",
    *(
        f"bottleneck_layers.0.0.conv{number}.{name}"
        for number in (1, 2, 3)
        for name in ("weight", "norm.weight", "norm.bias")
    ),
]
READ = FeatureSpec(size=56, norm=False)


def trained(dim: int = 192, *, card: AdapterCard | None = None, seed: int = 0) -> Adapter:
    """Return an adapter all of whose numbers are random, as if it had been trained."""
    adapter = Adapter(dim, card=card)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapter.requires_grad_(False)


def features(rows: int, cols: int, dim: int, seed: int = 0) -> Features:
    tokens = torch.randn(rows * cols, dim, generator=torch.Generator().manual_seed(seed))
    grid = PatchGrid(rows, cols, 14, cols * 14, rows * 14, 1.0, 1.0)
    return Features(tokens[0], tokens, torch.zeros(0, dim), grid)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder("untrained:vitt14", device="cpu", precision="fp32")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    write_image(tmp_path / "photo.png", data.coffee()[:300:3, :400:3].copy())
    return tmp_path / "photo.png"


def test_it_has_the_published_tensors_and_as_many_numbers() -> None:
    adapter = Adapter(768)
    state = adapter.state_dict()
    assert sorted(state) == sorted(KEYS)
    assert sum(parameter.numel() for parameter in adapter.parameters()) == 628_995
    assert tuple(state["bottleneck_layers.0.0.conv2.weight"].shape) == (192, 192, 3, 3)
    assert (tuple(state["mixing_weights"].shape), tuple(state["logit_scale"].shape)) == ((1,), ())
    assert state["logit_scale"].item() == pytest.approx(np.log(1 / 0.07))


def by_hand(state: dict[str, torch.Tensor], x: np.ndarray, groups: list[int]) -> np.ndarray:
    """Compute the formula of the class on one grid (dim, rows, cols), by loops over taps and groups."""
    y = x
    for number, n_groups in zip((1, 2, 3), groups, strict=True):
        name = f"bottleneck_layers.0.0.conv{number}"
        weight, gain, bias = (
            state[f"{name}.{part}"].double().numpy() for part in ("weight", "norm.weight", "norm.bias")
        )
        reach = weight.shape[2] // 2
        padded = np.pad(y, ((0, 0), (reach, reach), (reach, reach)))
        y = sum(
            np.einsum(
                "oi,ihw->ohw", weight[:, :, dy, dx], padded[:, dy : dy + x.shape[1], dx : dx + x.shape[2]]
            )
            for dy in range(weight.shape[2])
            for dx in range(weight.shape[3])
        )
        grouped = y.reshape(n_groups, -1)
        centred = grouped - grouped.mean(axis=1, keepdims=True)
        grouped = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
        y = grouped.reshape(y.shape) * gain[:, None, None] + bias[:, None, None]
        y = np.maximum(y, 0) if number < 3 else y
    return np.maximum(x + y, 0)


@pytest.mark.parametrize(("dim", "groups"), [(192, [16, 16, 32]), (384, [32, 32, 32]), (20, [1, 1, 4])])
def test_it_computes_the_formula(dim: int, groups: list[int]) -> None:
    adapter = trained(dim).double()
    x = np.random.default_rng(1).normal(size=(dim, 5, 7))
    found = adapter(torch.from_numpy(x)[None])[0].numpy()
    np.testing.assert_allclose(found, by_hand(adapter.state_dict(), x, groups), atol=1e-9)
    assert (found == 0).any()
    assert found.min() == 0


def test_a_new_adapter_is_relu_and_so_is_any_whose_last_norm_is_zero() -> None:
    x = torch.randn(2, 192, 4, 5, generator=torch.Generator().manual_seed(2))
    assert torch.equal(Adapter(192)(x), torch.relu(x))
    adapter = trained()
    assert not torch.equal(adapter(x), torch.relu(x))
    last = adapter.bottleneck_layers[0][0].conv3.norm
    last.weight.zero_()
    last.bias.zero_()
    assert torch.equal(adapter(x), torch.relu(x))


def test_a_new_adapter_follows_from_its_seed_and_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    digests = [Adapter(192, seed=seed).digest for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), wanted)
    assert digests[0] == digests[1] != digests[2]


def test_images_of_a_batch_do_not_see_each_other() -> None:
    adapter = trained()
    x = torch.randn(3, 192, 4, 4, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(adapter(x)[1:2], adapter(x[1:2]))


def test_no_adapter_has_a_width_that_cannot_be_quartered() -> None:
    with pytest.raises(ArgumentError, match="10 dims; wanted a multiple of 4"):
        Adapter(10)


def test_our_file_gives_back_the_weights_and_the_card(tmp_path: Path) -> None:
    report = {"recommended": False, "loss_end": 0.25, "measures": [{"name": "warped", "raw": 0.5}]}
    card = AdapterCard(layer=-2, facet="key", norm=True, model="m", weights_sha256="0" * 64, report=report)
    adapter = trained(card=card)
    save_adapter(adapter, tmp_path / "a.safetensors")
    read = load_adapter(tmp_path / "a.safetensors")
    assert read.card == card
    assert (read.recommended, read.dim, read.digest) == (False, 192, adapter.digest)
    assert not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())
    x = torch.randn(1, 192, 3, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(read(x), adapter(x))


def test_a_published_file_reads_tokens_before_the_final_norm(tmp_path: Path) -> None:
    adapter = trained(768)
    torch.save(adapter.state_dict(), tmp_path / "best.pth")
    read = load_adapter(str(tmp_path / "best.pth"))
    assert read.card == AdapterCard(layer=-1, facet="token", norm=False, model=None, weights_sha256=None)
    assert (read.recommended, read.digest) == (True, adapter.digest)


def test_the_digest_depends_on_every_weight_and_on_what_is_read() -> None:
    adapter = trained()
    digests = {adapter.digest, trained(card=AdapterCard(norm=True)).digest}
    for name, tensor in adapter.state_dict().items():
        tensor.view(-1)[-1] += 1
        digests.add(adapter.digest)
        assert len(digests) > 2, name
    assert len(digests) == 2 + len(KEYS)


def spoil(path: Path, how: str) -> None:
    state = {name: tensor.clone() for name, tensor in trained().state_dict().items()}
    metadata = {"schema": "dinokit.adapt/1", "card": "{}"}
    if how == "missing":
        del state["bottleneck_layers.0.0.conv2.norm.bias"]
    elif how == "surplus":
        state["bottleneck_layers.0.0.shortcut.weight"] = torch.ones(1)
    elif how == "shape":
        state["mixing_weights"] = torch.ones(4)
    elif how == "other":
        state = {"cls_token": torch.ones(1, 1, 192)}
    elif how == "nan":
        state["bottleneck_layers.0.0.conv1.norm.bias"][3] = torch.nan
    elif how == "newer":
        metadata["schema"] = "dinokit.adapt/2"
    elif how == "foreign":
        metadata = {"format": "pt"}
    elif how == "card":
        metadata["card"] = json.dumps({"layre": 3})
    if how == "text":
        path.write_text("hello")
    else:
        save_file(state, path, metadata)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "bottleneck_layers.0.0.conv2.norm.bias is missing"),
        ("surplus", "bottleneck_layers.0.0.shortcut.weight was not expected"),
        ("shape", r"mixing_weights is \(4,\), not \(1,\)"),
        ("other", "is no adapter: it lacks bottleneck_layers.0.0.conv1.weight; it holds cls_token"),
        ("nan", "not finite"),
        ("newer", "newer dinov2kit"),
        ("foreign", "no adapter: its schema is ''"),
        ("card", "damaged card"),
        ("text", "no usable weight file"),
    ],
)
def test_what_is_no_adapter_is_refused_and_the_fault_named(how: str, said: str, tmp_path: Path) -> None:
    spoil(tmp_path / "a.safetensors", how)
    with pytest.raises(WeightsError, match=said) as caught:
        load_adapter(tmp_path / "a.safetensors")
    assert "DINOv2 backbone" not in str(caught.value.hint)


def test_a_file_that_could_run_code_or_is_not_there_is_refused(tmp_path: Path) -> None:
    torch.save({"bottleneck_layers.0.0.conv1.weight": Path}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="could run code"):
        load_adapter(tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="cannot read"):
        load_adapter(tmp_path / "absent.pth")


def test_adapting_lays_the_rows_out_on_the_grid_and_keeps_all_else() -> None:
    adapter, given = trained(), features(3, 5, 192)
    found = adapter.adapt(given, READ)
    field = adapter(given.patch_tokens.view(3, 5, 192).permute(2, 0, 1)[None])
    wanted = field[0].permute(1, 2, 0).reshape(15, 192)
    torch.testing.assert_close(found.patch_tokens, wanted)
    assert torch.equal(found.class_token, given.class_token)
    assert found.grid == given.grid
    assert torch.linalg.vector_norm(found.local_descriptors, dim=1).sub(1).abs().max() < 1e-5


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_adapter_sees_the_grid_as_the_network_did(
    turns: int, mirrored: bool, encoder: Encoder, photo: Path
) -> None:
    """Adapting what a turned network saw = turning the photo, adapting, and turning the rows back."""
    adapter = trained()
    spec = replace(READ, size=84, turns=turns, mirrored=mirrored)
    found = AdaptedEncoder(encoder, adapter).encode(photo, spec).patch_tokens
    pixels = data.coffee()[:300:3, :400:3]
    seen = np.rot90(pixels[:, ::-1] if mirrored else pixels, turns).copy()
    plain = encoder.encode(seen, replace(READ, size=84))
    rows = adapter.adapt(plain, READ).patch_tokens
    grid = np.rot90(rows.numpy().reshape(plain.grid.rows, plain.grid.cols, -1), -turns)
    wanted = (grid[:, ::-1] if mirrored else grid).reshape(found.shape)
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-2 * float(np.abs(wanted).max()))


def test_an_adapted_encoder_says_so_and_encodes_as_the_parts_do(encoder: Encoder, photo: Path) -> None:
    adapter = trained(card=AdapterCard(layer=-3, weights_sha256=encoder.identity.weights_sha256))
    adapted = AdaptedEncoder(encoder, adapter)
    spec = replace(READ, layer=-3)
    found = adapted.encode(photo, spec)
    assert torch.equal(found.patch_tokens, adapter.adapt(encoder.encode(photo, spec), spec).patch_tokens)
    assert torch.equal(
        adapted.encode(photo).patch_tokens, adapted.encode(photo, replace(spec, size=518)).patch_tokens
    )
    assert found.patch_tokens.min() == 0
    assert adapted.identity.name == f"untrained:vitt14+adapter-{adapter.digest[:8]}"
    others = {AdaptedEncoder(encoder, trained(seed=seed)).identity.weights_sha256 for seed in (0, 1)}
    assert len({adapted.identity.weights_sha256, encoder.identity.weights_sha256, *others}) == 4
    assert adapted.identity.dim == 192


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm": True}, "norm is True; the adapter was trained with False"),
        ({"layer": -2}, "layer is -2; the adapter was trained with -1"),
        ({"facet": "key"}, "facet is key; the adapter was trained with token"),
        ({"stride": 7}, "stride is 7; the adapter was trained on patches side by side"),
        ({"debias": 3}, "debias is 3; the adapter was trained on whole tokens"),
    ],
)
def test_tokens_that_the_adapter_does_not_know_are_refused(
    change: dict[str, object], said: str, encoder: Encoder, photo: Path
) -> None:
    with pytest.raises(ArgumentError, match=said) as caught:
        AdaptedEncoder(encoder, trained()).encode(photo, replace(READ, **change))
    assert caught.value.hint == "wanted --layer -1 --facet token --prenorm"


def test_the_norm_does_not_matter_to_a_facet_that_never_passes_it() -> None:
    card = AdapterCard(facet="key")
    adapter, given = trained(card=card), features(4, 4, 192)
    adapter.adapt(given, FeatureSpec(facet="key", norm=True))
    with pytest.raises(ArgumentError, match="facet is token"):
        adapter.adapt(given, FeatureSpec(norm=False))


def test_an_adapter_of_another_model_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ArgumentError, match="reads tokens of 768 dims; untrained:vitt14 has 192"):
        AdaptedEncoder(encoder, Adapter(768))
    stranger = trained(card=AdapterCard(model="dinov2_vits14", weights_sha256="1" * 64))
    with pytest.raises(
        ArgumentError, match="trained on the tokens of dinov2_vits14, not of untrained:vitt14"
    ):
        AdaptedEncoder(encoder, stranger)
    with pytest.raises(ArgumentError, match="reads tokens of 192 dims, not 384"):
        trained().adapt(features(2, 2, 384), READ)


def test_the_published_shapes_are_written_without_a_change_of_names(tmp_path: Path) -> None:
    save_adapter(trained(), tmp_path / "a.safetensors")
    assert sorted(load_file(tmp_path / "a.safetensors")) == sorted(KEYS)
