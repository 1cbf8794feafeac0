"""`dinokit classify`: heads fetched and kept, tables, bars, exit codes, and what is left out."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from colour_encoder import paint
from typer.testing import CliRunner

from dinov2kit import Encoder
from dinov2kit.classifying import classify_images, imagenet_classes, open_head
from dinov2kit.cli import console
from dinov2kit.cli.app import app
from dinov2kit.linear_head import LinearHead, write_head
from dinov2kit.weight_files import digest_of

DIM = 96


@cache
def made(name: str) -> Encoder:
    """Return a small untrained model that says it has this name."""
    encoder = Encoder("untrained:vitn4", device="cpu", precision="fp32")
    encoder.identity = replace(encoder.identity, name=name)
    return encoder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with three photos and two labelled ones; the command finds a model that is there."""
    monkeypatch.setattr("dinov2kit.encoder.Encoder", lambda *_, **__: made("small"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    for name, colour in (("blue", (4, 4, 250)), ("green", (4, 250, 4)), ("red", (250, 4, 4))):
        paint(tmp_path / f"photos/{name}.png", colour)
        if name != "green":
            paint(tmp_path / f"known/{name}/0.png", colour)
    return tmp_path


@pytest.fixture
def mirror(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Serve a folder in the layout of the release, to a model that says it is a released one."""
    root = folder / "mirror"
    (root / "dinov2_vits14").mkdir(parents=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("DINOKIT_OFFLINE")
    monkeypatch.setenv("DINOKIT_WEIGHTS_URL", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setattr("dinov2kit.encoder.Encoder", lambda *_, **__: made("dinov2_vits14_reg"))
    yield root
    server.shutdown()
    server.server_close()


def run(*arguments: object) -> Result:
    given = [*map(str, arguments), "--workers", "0"]
    return CliRunner().invoke(app, ["classify", *given], env={"COLUMNS": "120"})


def save_released(path: Path, classes: int) -> Path:
    torch.manual_seed(0)
    torch.save({"weight": torch.randn(classes, 2 * DIM), "bias": torch.randn(classes)}, path)
    return path


def test_the_released_head_is_fetched_once_recorded_and_names_what_imagenet_names(
    mirror: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = save_released(mirror / "dinov2_vits14/dinov2_vits14_reg4_linear_head.pth", 1000)
    first = run("photos", "--json")
    assert first.exit_code == 0, first.output
    kept = folder / "home/weights" / served.name
    assert kept.read_bytes() == served.read_bytes()
    assert kept.with_name(kept.name + ".sha256").read_text().startswith(digest_of(served))
    images = json.loads(first.stdout)["images"]
    assert all(guess["label"] in imagenet_classes() for image in images for guess in image["guesses"])
    assert [len(image["guesses"]) for image in images] == [5, 5, 5]
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    assert run("photos", "--json").stdout == first.stdout
    kept.write_bytes(kept.read_bytes()[:-9] + b"ruined by!")
    damaged = run("photos")
    assert damaged.exit_code == console.WEIGHTS
    assert "is damaged" in damaged.stderr


def test_a_head_that_is_not_there_is_a_matter_of_weights(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = run("photos", "--layers", "4")
    assert missing.exit_code == console.WEIGHTS
    assert "dinov2_vits14_reg4_linear4_head.pth" in missing.stderr
    assert "404" in missing.stderr
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    offline = run("photos")
    assert offline.exit_code == console.WEIGHTS
    assert "DINOKIT_OFFLINE" in offline.stderr
    assert "hint:" in offline.stderr
    assert run("photos", "--layers", "0").exit_code == console.USAGE


def test_names_are_those_of_the_file_else_of_the_head_else_numbers(folder: Path) -> None:
    save_released(folder / "r.pth", 3)
    bare = run("photos/red.png", "--head", "r.pth").stdout.rstrip("\n").split("\t")
    assert sorted(bare[2::2]) == ["0", "1", "2"]
    (folder / "names.txt").write_text("zero\none\ntwo\n")
    named = run("photos/red.png", "--head", "r.pth", "--names", "names.txt").stdout.rstrip("\n").split("\t")
    assert [["zero", "one", "two"][int(label)] for label in bare[2::2]] == named[2::2]
    head = LinearHead(torch.eye(3, 2 * DIM), torch.tensor([0.0, 9.0, 0.0]), 1, True, ("a", "b", "c"))
    write_head(folder / "own.safetensors", head)
    own = run("photos/red.png", "--head", "own.safetensors", "--top", "1")
    assert own.stdout.split("\t")[2] == "b\n"
    own = run("photos/red.png", "--head", "own.safetensors", "--names", "names.txt", "--top", "1")
    assert own.stdout.split("\t")[2] == "one\n"


def test_many_images_are_told_as_each_alone(folder: Path) -> None:
    save_released(folder / "r.pth", 3)
    judge = open_head(made("small"), folder / "r.pth")
    paths = sorted((folder / "photos").iterdir())
    many = classify_images(judge, paths, batch_size=3)
    for path, one in zip(paths, many, strict=True):
        (alone,) = classify_images(judge, [path])
        assert [guess.label for guess in alone.guesses] == [guess.label for guess in one.guesses]
        for guess, other in zip(alone.guesses, one.guesses, strict=True):
            assert guess.share == pytest.approx(other.share, abs=1e-5)


def test_people_get_a_table_with_a_row_for_each_class(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(folder / "known/[bold]/0.png", (4, 250, 4))
    monkeypatch.setattr(console, "on_terminal", lambda: True)
    lines = run("photos", "--examples", "known", "-k", "1").stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["image", "class", "%"],
        ["photos/blue.png", "blue", "100.00"],
        ["photos/green.png", "[bold]", "100.00"],
        ["photos/red.png", "red", "100.00"],
    ]
    lines = run("photos/red.png", "--examples", "known", "-k", "3").stdout.splitlines()
    assert lines[1].split() == ["photos/red.png", "red", lines[1].split()[2]]
    assert all(len(line.split()) == 2 for line in lines[2:])  # the image is named once


def test_examples_that_cannot_be_read_are_named(folder: Path) -> None:
    (folder / "known/red/bad.jpg").write_bytes(b"rubbish")
    result = run("photos/red.png", "--examples", "known", "-k", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout == "photos/red.png\t100.00\tred\n"
    assert "left out known/red/bad.jpg" in result.stderr
    assert run("photos/red.png", "--examples", "known", "--strict").exit_code == console.FAILURE


def test_nothing_that_can_be_read_is_a_matter_of_input(folder: Path) -> None:
    (folder / "bad.jpg").write_bytes(b"rubbish")
    for photos, examples in (("bad.jpg", "known"), ("nowhere", "known"), ("photos", "nowhere")):
        result = run(photos, "--examples", examples)
        assert result.exit_code == console.INPUT, result.output
        assert result.stdout == ""
    assert run("photos", "--head", "nowhere.pth").exit_code == console.WEIGHTS


@pytest.mark.parametrize(
    "options",
    [
        ("--examples", "known", "--head", "r.pth"),
        ("--examples", "known", "--names", "names.txt"),
        ("--examples", "known", "--layers", "1"),
        ("--head", "r.pth", "--layers", "1"),
        ("--examples", "known", "-k", "0"),
        ("--examples", "known", "--top", "0"),
    ],
)
def test_options_that_make_no_sense_together_are_refused_before_any_work(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinov2kit.encoder.Encoder", None)  # it would fail otherwise than wanted
    assert run("photos", *options).exit_code == console.USAGE
