"""`dinokit models`, on tiny weight files and a server on loopback."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from dinov2kit.architectures import ARCHITECTURES, ViTConfig
from dinov2kit.catalogue import CATALOGUE, SHIPPED
from dinov2kit.cli.app import KitGroup
from dinov2kit.cli.models import register
from dinov2kit.weights import convert_model, load_model

TINY = ViTConfig(embed_dim=64, depth=2, num_heads=1, ffn_hidden=256, pos_grid=4)


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test an empty folder, a home without weights, and no network; "vits14" is a tiny model."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    monkeypatch.delenv("DINOKIT_WEIGHTS_URL", raising=False)
    monkeypatch.setitem(ARCHITECTURES, "vits14", TINY)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve two models as the release does; return the folder."""
    folder = tmp_path / "mirror" / "dinov2_vits14"
    folder.mkdir(parents=True)
    convert_model("untrained:vits14:3", folder / "dinov2_vits14_pretrain.pth", to="released")
    convert_model("untrained:vits14:4", folder / "dinov2_vits14_reg4_pretrain.pth", to="released")
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "mirror")))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.delenv("DINOKIT_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("DINOKIT_WEIGHTS_URL", f"http://127.0.0.1:{http.server_address[1]}")
    yield folder
    http.shutdown()
    http.server_close()


def dinokit(*arguments: str, as_json: bool = False) -> Any:
    app = typer.Typer(cls=KitGroup)
    app.callback()(lambda: None)
    register(app)
    result = CliRunner().invoke(app, ["models", *arguments, *(["--json"] if as_json else [])])
    return json.loads(result.stdout) if as_json and result.exit_code == 0 else result


def test_the_list_has_every_released_model_and_says_which_are_here(home: Path) -> None:
    (home / "weights").mkdir(parents=True)
    here = home / "weights" / "dinov2_vitb14_pretrain.pth"
    here.write_bytes(b"PK")
    document = dinokit("list", as_json=True)
    assert document["schema"] == "dinokit.models/1"
    assert [model["name"] for model in document["models"]] == [spec.name for spec in (SHIPPED, *CATALOGUE)]
    files = {model["name"]: model["file"] for model in document["models"] if model["cached"]}
    assert Path(files.pop("dinokit_vitt14")).is_file()
    assert files == {"dinov2_vitb14": str(here)}
    lines = [line.split("\t") for line in dinokit("list").stdout.splitlines()]
    assert [line[0] for line in lines] == [spec.name for spec in (SHIPPED, *CATALOGUE)]
    assert [line[2] for line in lines[1:] if line[2]] == [str(here)]


def test_the_list_is_a_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinov2kit.cli.console.on_terminal", lambda: True)
    row = next(line for line in dinokit("list").stdout.splitlines() if line.startswith("dinov2_vitl14_reg"))
    assert row.split() == ["dinov2_vitl14_reg", "vitl14_reg", "304", "M", "1,217", "MB"]


def test_pulled_models_are_where_it_says_with_the_digest_it_says(mirror: Path, home: Path) -> None:
    result = dinokit("pull", "vits14", "vits14-reg")
    assert result.exit_code == 0, result.stderr
    for line, name in zip(result.stdout.splitlines(), ["dinov2_vits14", "dinov2_vits14_reg"], strict=True):
        said, path, digest = line.split("\t")
        content = Path(path).read_bytes()
        assert said == name
        assert content == (mirror / Path(path).name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == digest
        assert Path(path).parent == home / "weights"
    document = dinokit("pull", "vits14", as_json=True)
    assert document["schema"] == "dinokit.models/1"
    assert [f"{model['name']}\t{model['path']}\t{model['sha256']}" for model in document["models"]] == [
        result.stdout.splitlines()[0]
    ]


def test_no_model_is_fetched_when_one_name_is_wrong(mirror: Path, home: Path) -> None:
    result = dinokit("pull", "vits14", "vitz14")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "'vitz14'" in result.stderr
    assert not home.exists()


def test_weights_that_cannot_be_had_end_with_4_and_the_place_to_put_them(home: Path) -> None:
    result = dinokit("pull", "vitb14")
    assert result.exit_code == 4
    assert "DINOKIT_OFFLINE" in result.stderr
    assert str(home / "weights" / "dinov2_vitb14_pretrain.pth") in result.stderr


def test_facts_of_a_file_are_said_in_words_and_as_json() -> None:
    model = convert_model("untrained:vits14:3", Path("m.safetensors"), to="safetensors")
    document = dinokit("info", "m.safetensors", as_json=True)
    assert document["schema"] == "dinokit.model/1"
    assert document["weights_sha256"] == model.weights_sha256
    assert (document["format"], document["architecture"]) == ("safetensors", "vits14")
    assert (document["config"]["embed_dim"], document["config"]["num_registers"]) == (64, 0)
    assert document["nbytes"] == Path("m.safetensors").stat().st_size
    said = dict(line.split(maxsplit=1) for line in dinokit("info", "m.safetensors").stdout.splitlines())
    assert said["weights"] == model.weights_sha256
    assert said["parameters"] == f"{document['parameters']:,}"
    assert said["positions"] == "4x4, bicubic by scale with offset 0.1"
    assert said["file"] == "m.safetensors"


def test_facts_of_a_released_model_are_known_before_it_is_here() -> None:
    result = dinokit("info", "vitl14-reg")
    assert result.exit_code == 0
    assert "304,372,736" in result.stdout
    assert "not on this machine" in result.stdout


def test_conversion_through_every_format_keeps_the_weights() -> None:
    wanted = convert_model("untrained:vits14:3", Path("a.pth"), to="released").weights_sha256
    chain = [
        ("a.pth", "b", "hf"),
        ("b", "c.safetensors", "safetensors"),
        ("c.safetensors", "d.pth", "released"),
    ]
    for source, out, to in chain:
        result = dinokit("convert", source, out, "--to", to)
        assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.stderr
        assert load_model(out).weights_sha256 == wanted
    assert load_model("d.pth").format == "released"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["convert", "absent.pth", "b.pth", "--to", "released"], 4, "no such weight file"),
        (["convert", "untrained:vits14", "b.pth", "--to", "onnx"], 2, "onnx"),
        (["convert", "untrained:vits14", "b.pth", "--to", "safetensors"], 2, ".safetensors"),
        (["convert", "untrained:vits14", "taken.pth", "--to", "released"], 2, "--overwrite"),
        (["info", "taken.pth"], 4, "taken.pth"),
        (["info", "resnet50"], 4, "dinokit models list"),
    ],
)
def test_what_cannot_be_done_ends_with_its_exit_code_and_a_reason(
    arguments: list[str], code: int, said: str
) -> None:
    Path("taken.pth").write_text("precious")
    result = dinokit(*arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
    assert Path("taken.pth").read_text() == "precious"
    assert not Path("b.pth").exists()


def test_every_command_has_an_example() -> None:
    for command in ("list", "pull", "info", "convert"):
        assert f"Example: dinokit models {command}" in dinokit(command, "--help").stdout


def test_help_and_list_do_not_load_torch() -> None:
    program = (
        "import sys, typer; from dinov2kit.cli.models import register;"
        "app = typer.Typer(); app.callback()(lambda: None); register(app);"
        "app(sys.argv[1:], standalone_mode=False); print('torch' in sys.modules)"
    )
    for arguments in (["models", "--help"], ["models", "list", "--json"]):
        command = [sys.executable, "-c", program, *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.splitlines()[-1] == "False"
