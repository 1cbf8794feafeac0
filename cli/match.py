"""`dinokit match`: which places of two images show the same thing."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, options


def match(
    image0: Annotated[Path, typer.Argument(metavar="A", help="Image with the keypoints.")],
    image1: Annotated[Path, typer.Argument(metavar="B", help="Image to find them in.")],
    points: Annotated[
        str | None,
        typer.Option(metavar="FILE|X,Y;X,Y", help="Carry these points of A over (.csv: x,y[,name]; .json)."),
    ] = None,
    num: Annotated[int, typer.Option(metavar="N", help="Keypoints to choose when none are given.")] = 50,
    mutual: Annotated[bool, options.flag("--mutual", help="Keep only nearest neighbours both ways.")] = False,
    max_cycle: Annotated[
        float, typer.Option(metavar="PATCHES", help="Largest error of the way back that is kept.")
    ] = 1.0,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write .json or .csv; - is JSON on stdout."),
    ] = None,
    draw: Annotated[Path, typer.Option(metavar="FILE", help="Picture of the matches.")] = Path("matches.png"),
    no_draw: Annotated[bool, options.flag("--no-draw", help="No picture.")] = False,
    draw_num: Annotated[int, typer.Option(metavar="N", min=0, help="Matches in the picture.")] = 15,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    model: options.ModelOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    size: Annotated[int, typer.Option(metavar="PX", help="Longer side of the network input.")] = 518,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Find the places of B that show what places of A show, and draw them.

    Good for parts of things across photos ("the left eye of another cat"); for pixel-exact geometry of one
    scene, a detector of corners does better. Points are x,y in pixels of the upright original; (0, 0) is the
    centre of the first pixel. Points given with --points keep their order and number, and without --out their
    matches are printed as CSV.

    Example: dinokit match cat1.jpg cat2.jpg --points "120,80;300,210" --draw cats.png
    """
    from dinov2kit.encoder import Encoder
    from dinov2kit.pairs import check_outputs, draw_pair, match_images, write_pair
    from dinov2kit.points import read_points

    picture = None if no_draw else draw
    table = None if out in (None, "-") else Path(str(out))
    check_outputs(table, picture, overwrite=overwrite)
    given = read_points(points) if points is not None else None
    encoder = Encoder(model, device=device, precision=precision)
    pair = match_images(
        encoder, image0, image1, size=size, points=given, num=num, mutual=mutual, max_cycle=max_cycle
    )
    if table is not None:
        write_pair(pair, table)
    if picture is not None:
        draw_pair(pair, picture, num=draw_num)
    if as_json or out == "-":
        console.emit_json("match/1", pair.to_json())
    elif given is not None and table is None:
        console.emit(pair.to_csv(), end="")
    for line in [] if quiet else pair.summary():
        console.say(line)
    _close(pair.warnings, [] if quiet else [path for path in (table, picture) if path is not None])


def _close(warnings: tuple[str, ...], written: list[Path]) -> None:
    if written:
        console.say("wrote " + ", ".join(map(str, written)))
    for warning in warnings:
        console.warn(warning)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Images")(match)
