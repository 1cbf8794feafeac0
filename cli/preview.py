"""Pictures inside the terminal: half blocks where it has true colour, its own graphics where it is asked for.

Pictures never go into pipes, JSON, or terminals without colour: they would only be garbage there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.columns import Columns
from rich.console import Console, Group
from rich.style import Style
from rich.text import Text

from dinov2kit.errors import ArgumentError, DependencyError

if TYPE_CHECKING:
    from dinov2kit.shapes import Image

Preview = Literal["none", "block", "kitty", "sixel"]
CHOICES = ("auto", "block", "none", "kitty", "sixel")
_KITTY_TERMINALS = {"kitty", "ghostty", "WezTerm"}  # by TERM_PROGRAM; kitty itself says so in TERM
_RENDERERS = {
    "kitty": ("textual_image.renderable.tgp", "Image"),
    "sixel": ("textual_image.renderable.sixel", "Image"),
}


def choose_preview(
    asked: str,
    *,
    as_json: bool = False,
    terminal: bool | None = None,
    environ: Mapping[str, str] | None = None,
) -> Preview:
    """Say which kind of pictures to print.

    Args:
        asked: the value of `--preview`.
        as_json: whether the result is a document; then there are no pictures.
        terminal: whether stdout is a terminal; looked up when not given.
        environ: the environment; that of this process when not given.

    Raises:
        ArgumentError: the kind is unknown, or does not fit where the output goes.
        DependencyError: the kind needs the package textual-image.
    """
    environ = os.environ if environ is None else environ
    terminal = sys.stdout.isatty() if terminal is None else terminal
    if asked not in CHOICES:
        raise ArgumentError(f"unknown preview {asked!r}; wanted one of {', '.join(CHOICES)}")
    if asked == "auto":
        return _best_preview(environ) if terminal and not as_json else "none"
    if asked in ("kitty", "sixel"):
        if as_json or not terminal:
            raise ArgumentError(f"--preview {asked} writes to a terminal; stdout is none here, or holds JSON")
        if find_spec("textual_image") is None:
            raise DependencyError(
                f"--preview {asked} needs the package textual-image",
                hint="pip install textual-image, or use --preview block",
            )
    if asked == "block" and as_json:
        raise ArgumentError("--preview block and --json cannot both write to stdout")
    return cast(Preview, asked)


def half_blocks(image: Image, columns: int) -> Text:
    """Return an RGB image as rows of half blocks, two pixels in each character.

    Args:
        image: RGB pixels of any size.
        columns: width in characters; the height follows from the shape of the image.
    """
    import cv2

    rows = _rows(image, columns)
    small = cv2.resize(image, (columns, 2 * rows), interpolation=cv2.INTER_AREA)
    text = Text(no_wrap=True)
    for row in range(rows):
        if row:
            text.append("\n")
        for upper, lower in zip(small[2 * row], small[2 * row + 1], strict=True):
            style = f"rgb({upper[0]},{upper[1]},{upper[2]}) on rgb({lower[0]},{lower[1]},{lower[2]})"
            text.append("▀", Style.parse(style))
    return text


def show_images(
    images: Sequence[Image], captions: Sequence[str], kind: Preview, *, columns: int = 24
) -> None:
    """Print pictures with their captions on stdout: half blocks side by side, graphics one below the other.

    Args:
        images: RGB pixels of any size.
        captions: one line below each.
        kind: what `choose_preview` said; "none" prints nothing.
        columns: width of each in characters.
    """
    if kind == "none":
        return
    if kind == "block":
        tiles = [
            Group(half_blocks(image, columns), Text(caption, no_wrap=True, overflow="ellipsis"))
            for image, caption in zip(images, captions, strict=True)
        ]
        Console(color_system="truecolor").print(Columns(tiles, width=columns, padding=(0, 2)))
        return
    console = Console(force_terminal=True, highlight=False)  # rich drops graphics where it sees no terminal
    for image, caption in zip(images, captions, strict=True):
        console.print(_graphics(image, kind, columns))
        console.print(Text(caption, no_wrap=True, overflow="ellipsis"))


def _best_preview(environ: Mapping[str, str]) -> Preview:
    if environ.get("NO_COLOR") or environ.get("TERM", "") in ("", "dumb"):
        return "none"
    multiplexed = "TMUX" in environ or environ["TERM"].startswith(("tmux", "screen"))
    kitty = environ["TERM"] == "xterm-kitty" or environ.get("TERM_PROGRAM") in _KITTY_TERMINALS
    if kitty and not multiplexed and find_spec("textual_image") is not None:
        return "kitty"
    return "block" if environ.get("COLORTERM", "").lower() in ("truecolor", "24bit") else "none"


def _graphics(image: Image, kind: Preview, columns: int) -> Any:
    from PIL import Image as PillowImage

    module, name = _RENDERERS[kind]
    return getattr(import_module(module), name)(
        PillowImage.fromarray(image), width=columns, height=_rows(image, columns)
    )


def _rows(image: Image, columns: int) -> int:
    """Return how many rows of characters, twice as high as wide, an image takes."""
    height, width = image.shape[:2]
    return max(1, round(columns * int(height) / int(width) / 2))
