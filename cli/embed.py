"""`dinokit embed`: descriptors of images, written to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, options


def embed(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files or folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="x.h5, x.npy or x.parquet.")],
    model: options.ModelOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    patches: Annotated[
        bool, options.flag("--patches", help="Local descriptors and their grids too (.h5).")
    ] = False,
    size: Annotated[int, typer.Option(metavar="PX", help="Longer side for local descriptors.")] = 518,
    batch: options.BatchOption = 0,
    workers: options.WorkersOption = -1,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace an existing file.")] = False,
    strict: Annotated[bool, options.flag("--strict", help="Exit 1 when an image cannot be read.")] = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Write the descriptors of images to a file, in the order of the inputs.

    Images that cannot be read are left out and listed. For a collection that grows, use `dinokit index`.

    Example: dinokit embed photos/ --out photos.h5
    """
    from dinov2kit.decoding import default_workers
    from dinov2kit.embedding import write_descriptors
    from dinov2kit.encoder import Encoder
    from dinov2kit.images import list_images

    paths = list_images(images)
    encoder = Encoder(model, device=device, precision=precision)
    with console.progress(quiet=quiet) as bars:
        task = bars.add_task("Embedding", total=len(paths), note=encoder.name)
        report = write_descriptors(
            encoder,
            paths,
            out,
            patches=patches,
            size=size,
            overwrite=overwrite,
            workers=default_workers() if workers < 0 else workers,
            batch_size=batch,
            advance=lambda _: bars.advance(task),
        )
    for path, reason in report.errors:
        console.warn(f"{path}: {reason}")
    if as_json:
        errors = [{"path": str(path), "reason": reason} for path, reason in report.errors]
        facts = {"out": str(out), "written": len(report.written), "dim": encoder.dim, "model": encoder.name}
        console.emit_json("embed/1", {**facts, "errors": errors})
    elif not quiet:
        console.say(f"{len(report.written)} images in {out} ({encoder.name}, {encoder.dim} dims)")
    if strict and report.errors:
        raise typer.Exit(console.FAILURE)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Images")(embed)
