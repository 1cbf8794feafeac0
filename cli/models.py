"""`dinokit models`: the released models, and weight files of any known format."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from . import console, options

if TYPE_CHECKING:
    from rich.progress import Progress

    from dinov2kit.catalogue import ModelSpec
    from dinov2kit.download import Progress as Count
    from dinov2kit.weights import ModelFacts

models_app = typer.Typer(
    name="models",
    help="List and download models; look into weight files and convert them.",
    no_args_is_help=True,
)


class Format(StrEnum):
    """The formats that weights are written in."""

    released = "released"
    safetensors = "safetensors"
    hf = "hf"


@models_app.command("list")
def list_(as_json: options.JsonOption = False) -> None:
    """List the model in this package and the released ones, and which of them are on this machine.

    Example: dinokit models list
    """
    from dinov2kit.catalogue import list_models

    specs = list_models()
    if as_json:
        console.emit_json("models/1", {"models": [_spec_json(spec) for spec in specs]})
    elif console.on_terminal():
        console.show_table(_spec_table(specs))
    else:
        for spec in specs:
            console.emit(f"{spec.name}\t{spec.parameters}\t{spec.file or ''}")


@models_app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Models, for instance vitb14-reg.")],
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Download released models; what was interrupted goes on where it stopped.

    They go to the data folder of your account, or to $DINOKIT_HOME/weights.
    $DINOKIT_WEIGHTS_URL names a mirror.
    The SHA-256 of each file is kept beside it, and checked at every use.

    Example: dinokit models pull vits14 vitb14-reg
    """
    from dinov2kit.catalogue import find_model
    from dinov2kit.download import pull_model

    pulled = []
    with console.progress(quiet=quiet) as bars:
        for spec in [find_model(name) for name in names]:
            file = pull_model(spec.name, progress=_count(bars, spec.name))
            pulled.append({"name": spec.name, "path": str(file.path), "sha256": file.sha256})
    if as_json:
        console.emit_json("models/1", {"models": pulled})
        return
    for facts in pulled:
        console.emit("\t".join(facts.values()))


@models_app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="NAME|PATH", help="A model name, or a weight file.")],
    as_json: options.JsonOption = False,
) -> None:
    """Say what a model is: its shape, its parameters, and the format and digest of its file.

    The digest is of the weights, not of the file: it is the same in every format.
    Nothing is downloaded.

    Example: dinokit models info checkpoint.pth
    """
    from dinov2kit.weights import describe_model

    facts = describe_model(model)
    if as_json:
        console.emit_json("model/1", facts.to_json())
        return
    for label, text in _fact_lines(facts):
        console.emit(f"{label:<14}{text}")
    for note in facts.notes:
        console.say(note)


@models_app.command()
def convert(
    model: Annotated[str, typer.Argument(metavar="IN", help="A weight file, or a model name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; for hf the folder.")],
    to: Annotated[
        Format, typer.Option(help="released: .pth; safetensors: with its shape; hf: for transformers.")
    ],
    half: Annotated[bool, options.flag("--half", help="Write fp16: half the file.")] = False,
    image_size: Annotated[
        int, typer.Option(metavar="PX", help="Side of the images that it is best at; 0 keeps what it says.")
    ] = 0,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace what is there.")] = False,
    quiet: options.QuietOption = False,
) -> None:
    """Write weights in another format.

    Reads released files, training checkpoints, Hugging Face, timm, and exports of dinokit.

    Example: dinokit models convert dinov2_vits14_pretrain.pth vits14-hf --to hf
    """
    from dinov2kit.weights import convert_model

    with console.progress(quiet=quiet) as bars:
        written = convert_model(
            model,
            out,
            to=to.value,
            overwrite=overwrite,
            half=half,
            image_size=image_size or None,
            progress=_count(bars, "Downloading"),
        )
    console.emit(str(out))
    if not quiet:
        console.say(f"{written.format} -> {to.value}, weights {written.weights_sha256}")


def _count(bars: Progress, name: str) -> Count:
    """Return a callback that shows bytes as megabytes; its bar appears with the first of them."""
    tasks: list[int] = []

    def show(here: int, total: int | None) -> None:
        if not tasks:
            tasks.append(bars.add_task(name, total=None, note="MB"))
        whole = None if total is None else total / 1e6
        bars.update(tasks[0], completed=here / 1e6, total=whole)  # type: ignore[arg-type]

    return show


def _spec_json(spec: ModelSpec) -> dict[str, object]:
    file = None if spec.file is None else str(spec.file)
    facts = {"name": spec.name, "architecture": spec.architecture, "parameters": spec.parameters}
    url = None if spec.shipped else spec.url()
    return {**facts, "nbytes": spec.nbytes, "url": url, "cached": file is not None, "file": file}


def _spec_table(specs: list[ModelSpec]) -> Table:
    table = Table("name", "short", box=None, pad_edge=False)
    table.add_column("parameters", justify="right")
    table.add_column("download", justify="right")
    table.add_column("here")
    for spec in specs:
        sizes = f"{spec.parameters / 1e6:,.0f} M", f"{spec.nbytes / 1e6:,.0f} MB"
        here = "in this package" if spec.shipped else "yes" if spec.file else ""
        table.add_row(spec.name, spec.architecture, *sizes, here)
    return table


def _fact_lines(facts: ModelFacts) -> list[tuple[str, object]]:
    config = facts.config
    shape = f"embed_dim {config.embed_dim}, depth {config.depth}, heads {config.num_heads}"
    lines: list[tuple[str, object]] = [
        ("name", facts.name),
        ("architecture", facts.architecture or "none of the known"),
        ("shape", f"{shape}, {config.ffn} {config.ffn_hidden}, patch {config.patch_size}"),
        ("registers", config.num_registers),
        ("parameters", f"{facts.parameters:,}"),
        ("positions", facts.position_rule),
    ]
    if facts.format is None:
        return [*lines, ("file", f"not on this machine; from {facts.url}")]
    lines += [("format", facts.format), ("weights", facts.weights_sha256)]
    return lines if facts.path is None else [*lines, ("file", facts.path), ("bytes", f"{facts.nbytes:,}")]


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.add_typer(models_app, name="models", rich_help_panel="Models")
