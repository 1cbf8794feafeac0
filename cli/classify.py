"""`dinokit classify`: what images show, by a linear head or by labelled examples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from dinov2kit.errors import ArgumentError

from . import console, options
from .eval_retrieval import percent

if TYPE_CHECKING:
    from dinov2kit.classifying import Classified


def classify(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files or folders.")],
    head: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Linear head; not set: the released ImageNet head of the model."),
    ] = None,
    layers: Annotated[
        int | None, typer.Option(metavar="1|4", help="Of the released head; not set: 1.")
    ] = None,
    names: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names of the classes of the head, one a line.")
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Labelled images instead of a head: class folders or a table (.csv)."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="Nearest examples that vote.")] = 20,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="Classes of each image.")] = 5,
    cache: options.DescriptorsOption = None,
    strict: Annotated[bool, options.flag("--strict", help="Exit 1 when an image cannot be read.")] = False,
    model: options.ModelOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    batch: options.BatchOption = 0,
    workers: options.WorkersOption = -1,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Say what images show: one of the 1,000 classes of ImageNet, or of your own.

    With --examples, a folder for each class, the nearest examples vote; any model does, and nothing is
    trained. With --head, a linear layer decides, of the release or of `dinokit eval linear --head`.

    Example: dinokit classify photo.jpg --examples labelled/
    """
    from dinov2kit.classifying import Judge, classify_images, open_examples, open_head
    from dinov2kit.decoding import default_workers
    from dinov2kit.encoder import Encoder
    from dinov2kit.images import list_images

    if examples is not None and (head is not None or names is not None):
        raise ArgumentError("--examples and --head are two ways", hint="give one of them")
    if layers is not None and (examples is not None or head is not None):
        raise ArgumentError("--layers chooses among released heads", hint="leave it out")
    paths = list_images(images)
    encoder = Encoder(model, device=device, precision=precision)
    many = default_workers() if workers < 0 else workers
    left_out: list[tuple[Path, str]] = []
    with console.progress(quiet=quiet) as bars:
        judge: Judge
        if examples is None:
            judge = open_head(encoder, head, layers=1 if layers is None else layers, names=names)
        else:
            known = bars.add_task("Learning", total=None, note=encoder.name)
            judge = open_examples(
                encoder, examples, k=k, cache=cache, workers=many, advance=lambda _: bars.advance(known)
            )
            left_out += judge.errors
        task = bars.add_task("Looking", total=len(paths), note=encoder.name)
        found = classify_images(
            judge, paths, top=top, workers=many, batch_size=batch, advance=lambda _: bars.advance(task)
        )
    left_out += [(one.path, one.error) for one in found if one.error is not None]
    if as_json:
        console.emit_json("classify/1", {"model": encoder.name, "images": [one.to_json() for one in found]})
    else:
        _print([one for one in found if one.error is None])
    for path, reason in left_out:
        console.warn(f"left out {path}: {reason}")
    if strict and left_out:
        raise typer.Exit(console.FAILURE)


def _print(found: Sequence[Classified]) -> None:
    """Print a line for each image; for people a table, with a row for each class."""
    if not console.on_terminal():
        for one in found:
            cells = [f"{percent(guess.share)}\t{guess.label}" for guess in one.guesses]
            console.emit("\t".join([str(one.path), *cells]))
        return
    table = Table("image", "class", "%", box=None)
    table.columns[2].justify = "right"
    for one in found:
        path = Text(os.fsencode(one.path).decode("utf-8", "backslashreplace"))
        for place, guess in enumerate(one.guesses):
            table.add_row("" if place else path, Text(guess.label), percent(guess.share))
    console.show_table(table)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Images")(classify)
