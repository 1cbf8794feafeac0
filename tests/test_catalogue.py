"""The names of the released models, and the places where their files are and shall be."""

import subprocess
import sys
from pathlib import Path

import pytest

from dinov2kit.architectures import ARCHITECTURES
from dinov2kit.catalogue import CATALOGUE, find_model, is_offline, list_models, weights_folder
from dinov2kit.errors import WeightsError


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dinov2_vits14", "dinov2_vits14"),
        ("vits14", "dinov2_vits14"),
        ("ViTS14", "dinov2_vits14"),
        ("dinov2-vitb14", "dinov2_vitb14"),
        ("vitb14-reg", "dinov2_vitb14_reg"),
        ("vitb14_reg", "dinov2_vitb14_reg"),
        ("dinov2_vitl14_reg4_pretrain", "dinov2_vitl14_reg"),
        ("dinov2_vitg14_pretrain", "dinov2_vitg14"),
        ("facebook/dinov2-small", "dinov2_vits14"),
        ("facebook/dinov2-giant", "dinov2_vitg14"),
        ("facebook/dinov2-with-registers-large", "dinov2_vitl14_reg"),
        ("vit_base_patch14_dinov2.lvd142m", "dinov2_vitb14"),
        ("timm/vit_small_patch14_reg4_dinov2.lvd142m", "dinov2_vits14_reg"),
    ],
)
def test_every_spelling_finds_the_model_that_it_means(name: str, meant: str) -> None:
    assert find_model(name).name == meant


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("dinov2_vit14", "dinov2_vits14"),
        ("vitb14-regs", "dinov2_vitb14_reg"),
        ("dinov2-smal", "dinov2_vits14"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(WeightsError, match=name) as caught:
        find_model(name)
    assert near in str(caught.value.hint)


def test_a_name_near_to_nothing_gets_no_guess() -> None:
    with pytest.raises(WeightsError) as caught:
        find_model("resnet50")
    assert "did you mean" not in str(caught.value.hint)
    assert "models list" in str(caught.value.hint)


def test_addresses_are_those_of_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DINOKIT_WEIGHTS_URL", raising=False)
    release = "https://dl.fbaipublicfiles.com/dinov2"
    assert find_model("vits14").url() == f"{release}/dinov2_vits14/dinov2_vits14_pretrain.pth"
    assert find_model("vitg14_reg").url() == f"{release}/dinov2_vitg14/dinov2_vitg14_reg4_pretrain.pth"


def test_a_mirror_keeps_the_folders_and_the_argument_wins_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = find_model("vitb14_reg")
    monkeypatch.setenv("DINOKIT_WEIGHTS_URL", "https://mirror.example/weights/")
    assert spec.url() == "https://mirror.example/weights/dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth"
    assert spec.url("http://here").startswith("http://here/dinov2_vitb14/")


def test_the_number_of_parameters_follows_from_the_architecture() -> None:
    for spec in CATALOGUE:
        shape = ARCHITECTURES[spec.architecture]
        dim, hidden = shape.embed_dim, shape.ffn_hidden
        ffn = 2 * dim * hidden + hidden + dim  # w1, w2 and their biases
        if shape.ffn == "swiglu":
            ffn += dim * hidden + hidden
        block = 2 * (2 * dim) + (3 * dim * dim + 3 * dim) + (dim * dim + dim) + ffn + 2 * dim
        tokens = (1 + shape.num_registers + (1 + shape.pos_grid**2) + 1) * dim
        patches = 3 * shape.patch_size**2 * dim + dim
        assert spec.parameters == tokens + patches + shape.depth * block + 2 * dim


def test_the_folder_follows_the_environment_at_each_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "a"))
    assert weights_folder() == tmp_path / "a" / "weights"
    monkeypatch.delenv("DINOKIT_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "b"))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert weights_folder().is_relative_to(tmp_path / "b")
    assert weights_folder().parts[-2:] == ("dinokit", "weights")


def test_the_list_says_which_models_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path))
    assert [spec.file for spec in list_models() if not spec.shipped] == [None] * 8
    here = tmp_path / "weights" / "dinov2_vitl14_reg4_pretrain.pth"
    here.parent.mkdir()
    here.write_bytes(b"PK")
    assert {spec.name: spec.file for spec in list_models() if spec.file and not spec.shipped} == {
        "dinov2_vitl14_reg": here
    }


@pytest.mark.parametrize(
    ("value", "offline"), [("1", True), ("true", True), ("0", False), ("", False), ("no", False)]
)
def test_offline_is_a_switch(value: str, offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINOKIT_OFFLINE", value)
    assert is_offline() is offline


def test_neither_the_catalogue_nor_downloads_load_torch() -> None:
    program = "import sys, dinov2kit.catalogue, dinov2kit.download; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
