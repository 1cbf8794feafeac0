"""`dinokit pca`: which parts of images are alike, as colours."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, options


def pca(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files or folders.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The picture.")] = Path("pca.png"),
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also write each map: .png, a pixel per patch, and .npy, the scores."
        ),
    ] = None,
    mask: Annotated[
        str, typer.Option(metavar="pca|none|FILE,FILE", help="What is coloured (white in a file per image).")
    ] = "pca",
    multi: Annotated[
        bool, options.flag("--multi", help="Keep every large part of the foreground, not only the largest.")
    ] = False,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    model: options.ModelOption = "auto",
    adapter: options.AdapterOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    size: options.SizeOption = 0,
    resize: options.ResizeOption = "keep",
    stride: options.StrideOption = 0,
    layer: options.LayerOption = -1,
    facet: options.FacetOption = "token",
    prenorm: options.PrenormOption = False,
    debias: options.DebiasOption = 0,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Colour the patches of images by their principal components, all images together.

    The same colour is the same kind of thing in every image, so that the parts that match can be seen. What
    is not foreground stays dark.

    Example: dinokit pca cat1.jpg cat2.jpg --out cats.png
    """
    given = dict(locals())
    from dinov2kit.images import list_images
    from dinov2kit.pca_pictures import check_targets, draw_painted, paint_images, read_color_mask, write_maps

    paths = list_images(images)
    check_targets(out, maps, paths, overwrite=overwrite)
    wanted, spec = read_color_mask(mask), options.feature_spec(given)
    encoder = options.local_encoder(given)
    with console.progress(quiet=quiet) as bars:
        task = bars.add_task("Encoding", total=len(paths), note=encoder.identity.name)
        painted = paint_images(
            encoder, paths, mask=wanted, multi=multi, spec=spec, advance=lambda _: bars.advance(task)
        )
    draw_painted(painted, out)
    if maps is not None:
        write_maps(painted, maps)
    if as_json:
        console.emit_json("pca/1", {"out": str(out), "maps": maps and str(maps), **painted.to_json()})
    if not quiet:
        for line in [*painted.summary(), "wrote " + ", ".join(map(str, filter(None, (out, maps))))]:
            console.say(line)
    for warning in painted.warnings:
        console.warn(warning)


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Images")(pca)
