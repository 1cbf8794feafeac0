"""Linear heads: the tokens that they take, written out from blocks, and files that are refused."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from dinov2kit import Encoder
from dinov2kit.errors import WeightsError
from dinov2kit.linear_head import LinearHead, TokenEncoder, read_head, top_classes
from dinov2kit.tensor_files import save_safetensors


@cache
def made(model: str) -> Encoder:
    """Return an untrained model whose final norm does not leave tokens as they are."""
    encoder = Encoder(model, device="cpu", precision="fp32")
    torch.manual_seed(0)
    for tensor in (encoder.vit.norm.weight, encoder.vit.norm.bias):
        torch.nn.init.normal_(tensor)
    return encoder


def save_released(path: Path, width: int, classes: int = 3) -> Path:
    """Write a head as the release does."""
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(classes, width), "bias": torch.randn(classes)}, path)
    return path


def written_out(encoder: Encoder, pixels: np.ndarray, layers: int) -> np.ndarray:
    """Return the tokens of the last blocks, caught as they leave each block, normalised in fp64."""
    caught: list[np.ndarray] = []
    vit = encoder.vit
    hooks = [
        block.register_forward_hook(lambda _, __, out: caught.append(out.double().numpy()))
        for block in vit.blocks
    ]
    with torch.inference_mode():
        vit(encoder.normalisation.apply(torch.from_numpy(pixels)))
    for hook in hooks:
        hook.remove()
    scale, shift = (tensor.detach().double().numpy() for tensor in (vit.norm.weight, vit.norm.bias))

    def normalised(tokens: np.ndarray) -> np.ndarray:
        centred = tokens - tokens.mean(axis=-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + vit.norm.eps)
        return np.asarray(centred / spread * scale + shift)

    class_tokens = [normalised(tokens[:, 0]) for tokens in caught[-layers:]]
    patches = normalised(caught[-1][:, 1 + vit.config.num_registers :])
    return np.concatenate([*class_tokens, patches.mean(axis=1)], axis=1)


@pytest.mark.parametrize(("model", "registers"), [("untrained:vits14", 0), ("untrained:vitt14", 4)])
@pytest.mark.parametrize("layers", [1, 4])
def test_a_released_head_sees_class_tokens_and_the_mean_patch_without_registers(
    model: str, registers: int, layers: int, tmp_path: Path
) -> None:
    encoder = made(model)
    assert encoder.vit.config.num_registers == registers
    head = read_head(save_released(tmp_path / "h.pth", (layers + 1) * encoder.dim), dim=encoder.dim)
    assert (head.layers, head.average) == (layers, True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 42, 42, 3)).astype(np.uint8)
    found = head.logits(TokenEncoder(encoder, layers).embed(pixels), encoder.dim).numpy()
    wanted = written_out(encoder, pixels, layers) @ head.weight.double().numpy().T + head.bias.numpy()
    np.testing.assert_allclose(found, wanted, atol=5e-4)
    alone = head.logits(TokenEncoder(encoder, layers).embed(pixels[1:]), encoder.dim).numpy()
    np.testing.assert_allclose(found[1:], alone, atol=5e-4)


def test_shares_are_a_softmax_the_best_first() -> None:
    ((places, shares),) = top_classes(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    whole = np.exp([1, 2, 3]).sum()
    assert places == [1, 2]
    np.testing.assert_allclose(shares, [np.exp(3) / whole, np.exp(2) / whole], rtol=1e-6)
    assert len(top_classes(torch.zeros(1, 3), 9)[0][0]) == 3


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("dim", [384, 768, 1024, 1536])
def test_a_released_head_fits_the_models_of_its_own_width_only(dim: int, layers: int, tmp_path: Path) -> None:
    path = save_released(tmp_path / "h.pth", (layers + 1) * dim)
    assert read_head(path, dim=dim).layers == layers
    for other in {384, 768, 1024, 1536} - {dim}:  # that of ViT-B is as wide as four tokens of ViT-S
        with pytest.raises(WeightsError, match=f"no tokens of {other}") as caught:
            read_head(path, dim=other)
        assert "--model" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "does not say which tokens"),
        ({"layers": "one", "avgpool": "true", "classes": "[]"}, "does not say which tokens"),
        ({"layers": "1", "avgpool": "True", "classes": "[]"}, "does not say which tokens"),
        ({"layers": "0", "avgpool": "true", "classes": "[]"}, "says 0 layers"),
        ({"layers": "1", "avgpool": "true", "classes": '"ab"'}, "classes ab"),
        ({"layers": "2", "avgpool": "true", "classes": "[]"}, "no tokens of 6"),
        ({"layers": "1", "avgpool": "true", "classes": '["a"]'}, "names 1 classes and has 2"),
        ({"dinov2kit_linear_head": "2"}, "of version 2"),
    ],
)
def test_a_head_that_says_nonsense_of_itself_is_refused(
    facts: dict[str, str], said: str, tmp_path: Path
) -> None:
    tensors = {"weight": torch.zeros(2, 12), "bias": torch.zeros(2)}
    save_safetensors(tensors, tmp_path / "h.safetensors", {"dinov2kit_linear_head": "1", **facts})
    with pytest.raises(WeightsError, match=said):
        read_head(tmp_path / "h.safetensors", dim=6)


def test_heads_that_diverged_or_lack_a_bias_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.pth"
    torch.save({"weight": torch.full((2, 12), torch.nan), "bias": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="not finite"):
        read_head(path, dim=6)
    torch.save({"weight": torch.zeros(2, 12), "bias": torch.zeros(3)}, path)
    with pytest.raises(WeightsError, match="2 rows of weights"):
        read_head(path, dim=6)
    torch.save({"weight": torch.zeros(2, 12)}, path)
    with pytest.raises(WeightsError, match="no linear head"):
        read_head(path, dim=6)


def test_columns_of_a_head_do_not_depend_on_how_many_layers_were_read() -> None:
    rows = np.random.default_rng(0).normal(size=(2, 30)).astype(np.float32)  # 4 class tokens and a mean of 6
    head = LinearHead(torch.randn(2, 12), torch.zeros(2), 1, True)
    torch.testing.assert_close(head.logits(rows, 6), head.logits(np.ascontiguousarray(rows[:, 18:]), 6))
