import importlib.util

import numpy as np
import pytest
from rich.color import ColorType

from dinov2kit.cli.preview import choose_preview, half_blocks, show_images
from dinov2kit.errors import ArgumentError, DependencyError

TRUE_COLOR = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
KITTY = {"TERM": "xterm-kitty", "COLORTERM": "truecolor"}


def without_textual_image(monkeypatch: pytest.MonkeyPatch, *, present: bool = False) -> None:
    monkeypatch.setattr("dinov2kit.cli.preview.find_spec", lambda name: object() if present else None)


def test_half_blocks_show_two_pixels_in_each_character() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    text = half_blocks(image, 4)
    assert text.plain == "▀▀▀▀\n▀▀▀▀\n▀▀▀▀"
    cells = [span.style for span in text.spans]
    for index, style in enumerate(cells):
        row, column = divmod(index, 4)
        assert style.color.type is ColorType.TRUECOLOR
        assert tuple(style.color.triplet) == tuple(image[2 * row, column])
        assert tuple(style.bgcolor.triplet) == tuple(image[2 * row + 1, column])


def test_half_blocks_average_what_they_shrink() -> None:
    image = np.zeros((80, 80, 3), np.uint8)
    image[:, ::2] = 200
    text = half_blocks(image, 10)
    assert text.plain.split("\n") == ["▀" * 10] * 5
    assert {tuple(span.style.color.triplet) for span in text.spans} == {(100, 100, 100)}


@pytest.mark.parametrize(
    ("environ", "terminal", "as_json", "expected"),
    [
        (TRUE_COLOR, True, False, "block"),
        (TRUE_COLOR, False, False, "none"),
        (TRUE_COLOR, True, True, "none"),
        ({**TRUE_COLOR, "NO_COLOR": "1"}, True, False, "none"),
        ({**TRUE_COLOR, "TERM": "dumb"}, True, False, "none"),
        ({"TERM": "xterm-256color"}, True, False, "none"),
        ({}, True, False, "none"),
        (KITTY, True, False, "block"),
    ],
)
def test_auto_prints_pictures_only_where_they_can_be_seen(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], terminal: bool, as_json: bool, expected: str
) -> None:
    without_textual_image(monkeypatch)
    assert choose_preview("auto", as_json=as_json, terminal=terminal, environ=environ) == expected


def test_auto_takes_the_graphics_of_a_known_terminal_but_not_through_tmux(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without_textual_image(monkeypatch, present=True)
    assert choose_preview("auto", terminal=True, environ=KITTY) == "kitty"
    assert choose_preview("auto", terminal=True, environ={**KITTY, "TMUX": "/tmp/x,1,0"}) == "block"
    assert choose_preview("auto", terminal=True, environ={**TRUE_COLOR, "TERM_PROGRAM": "ghostty"}) == "kitty"


def test_asked_graphics_are_given_or_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    without_textual_image(monkeypatch)
    with pytest.raises(DependencyError, match="textual-image") as caught:
        choose_preview("sixel", terminal=True, environ=TRUE_COLOR)
    assert "pip install" in str(caught.value.hint)
    with pytest.raises(ArgumentError, match="terminal"):
        choose_preview("kitty", terminal=False, environ=TRUE_COLOR)
    with pytest.raises(ArgumentError, match="--json"):
        choose_preview("block", as_json=True, terminal=True, environ=TRUE_COLOR)
    with pytest.raises(ArgumentError, match="auto, block, none"):
        choose_preview("ascii")
    assert choose_preview("block", terminal=False, environ={}) == "block"


def test_shown_images_stand_beside_each_other_above_their_captions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    images = [np.full((8, 8, 3), shade, np.uint8) for shade in (30, 200)]
    show_images(images, ["first", "second"], "block", columns=8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].count("▀") == 16
    assert "38;2;30;30;30" in lines[0]
    assert "38;2;200;200;200" in lines[0]
    assert lines[-1].split() == ["first", "second"]


def test_no_preview_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    show_images([np.zeros((8, 8, 3), np.uint8)], ["x"], "none")
    assert capsys.readouterr().out == ""


@pytest.mark.skipif(
    importlib.util.find_spec("textual_image") is None, reason="textual-image is not installed"
)
def test_terminal_graphics_write_their_own_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    show_images([np.zeros((32, 64, 3), np.uint8)], ["x"], "sixel", columns=8)
    assert "\x1bP" in capsys.readouterr().out
