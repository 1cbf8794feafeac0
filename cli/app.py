"""The Typer app `dinokit`: its commands, and how their errors end."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dinov2kit.errors import KitError

from . import (
    adapt,
    classify,
    completion,
    console,
    curate,
    dedup,
    distill,
    doctor,
    embed,
    evaluation,
    index,
    match,
    models,
    options,
    pca,
    runs,
    search,
    store,
    train,
    transfer,
)


class KitGroup(TyperGroup):
    """A command group that turns a `KitError` into one line on stderr and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; end with the exit code of the error, or 130 when interrupted."""
        try:
            return super().invoke(ctx)
        except KitError as error:
            console.report_error(error, as_json=bool({"--json", "--jsonl"} & set(sys.argv)))
            raise typer.Exit(console.exit_code(error)) from error
        except KeyboardInterrupt as stop:
            console.say("interrupted")
            raise typer.Exit(console.INTERRUPTED) from stop


app = typer.Typer(
    name="dinokit",
    cls=KitGroup,
    help="Find, compare and match images with DINOv2 features. Runs on your machine; nothing is uploaded.",
    epilog="Quick start: dinokit index ~/Pictures && dinokit search cat.jpg",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> bool:
    if asked:
        from dinov2kit import __version__

        console.emit(f"dinokit {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def root(
    version: Annotated[
        bool, options.flag("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Find, compare and match images with DINOv2 features. Runs on your machine; nothing is uploaded."""


for _module in (
    *(index, search, dedup, curate, store, transfer, match, pca, embed, classify, train, distill, adapt),
    *(runs, evaluation, models),
    *(doctor, completion),
):
    _module.register(app)


def main() -> None:
    """Run `dinokit` with the arguments of this process."""
    app(prog_name="dinokit")
