"""`dinokit completion`: the script that makes a shell complete dinokit's commands and options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import get_completion_inspect_parameters
from typer.completion import get_completion_script as script_for  # type: ignore[attr-defined]

from . import console


class Shell(StrEnum):
    """The shells that have a completion script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"
    powershell = "powershell"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell to write for.")]) -> None:
    """Print the completion script of a shell.

    Example: dinokit completion bash > ~/.local/share/bash-completion/completions/dinokit
    """
    console.emit(script_for(prog_name="dinokit", complete_var="_DINOKIT_COMPLETE", shell=shell.value))


def register(app: typer.Typer) -> None:
    """Add the command to the app, and let the app answer the shells that ask for completions."""
    get_completion_inspect_parameters()  # registers typer's completion classes
    app.command(rich_help_panel="App")(completion)
