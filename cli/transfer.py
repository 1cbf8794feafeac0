"""`dinokit import` and `dinokit merge`: descriptors from elsewhere, and several indexes as one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import console, options


def import_(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Descriptors and paths (.npy, .parquet).")],
    index: Annotated[
        Path, typer.Option("--index", "-i", metavar="DIR", help="Index; made if there is none yet.")
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of their model, where the file does not say it.")
    ] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Put descriptors that were made elsewhere into an index. Photos need not be there.

    A .npy file needs beside it NAME.jsonl with a line {"path": ...} per row, or NAME.npy.json with "paths"; a
    .parquet file the columns path and descriptor. What `dinokit export` and `embed` write is complete.

    Example: dinokit import photos.parquet -i photos.idx
    """
    from dinov2kit.indexes import import_descriptors

    with console.progress(quiet=quiet) as bars:
        done = import_descriptors(
            index,
            source,
            name=name,
            watch=console.show_stages(bars),
        )
    if as_json:
        facts = {"items": done.items, "absent": done.absent, "model": done.model}
        console.emit_json("import/1", {"index": str(done.directory), **facts})
    elif not quiet:
        console.say(f"{done.items:,} photos of {done.model} in {done.directory}")
        if done.absent:
            console.say(f"{done.absent:,} of their files are not on this disk")


def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Indexes of the same model.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The new index, where there is none yet.")
    ],
    lean: Annotated[
        bool, options.flag("--lean", help="Keep no row per photo; always so above ten million photos.")
    ] = False,
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE", parser=options.parse_bytes, help="Memory for the faiss index (64M, 4G)."
        ),
    ] = None,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Make one index of several; no photo is opened, and the others stay as they are.

    Of a file that several have, the newest state is taken. A lean index can be searched, deduplicated,
    curated and exported, but not updated: update the others, and merge them again.

    Example: dinokit merge a.idx b.idx --out all.idx
    """
    from dinov2kit.indexes import merge_indexes

    with console.progress(quiet=quiet) as bars:
        done = merge_indexes(
            sources,
            out,
            lean=lean or None,
            memory=memory,
            watch=console.show_stages(bars),
        )
    if as_json:
        facts = {"items": done.items, "dropped": done.dropped, "lean": done.lean}
        console.emit_json("merge/1", {"index": str(done.directory), **facts})
    elif not quiet:
        kind = "lean index" if done.lean else "index"
        console.say(f"{done.items:,} photos in the {kind} {done.directory}")
        if done.dropped:
            console.say(f"{done.dropped:,} left out: another index had a newer state of the same file")


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command("import", rich_help_panel="Photos")(import_)
    app.command(rich_help_panel="Photos")(merge)
