"""`dinokit doctor`: what is there, what is missing, and the line that mends it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from . import console, options

if TYPE_CHECKING:
    from dinov2kit.doctor import Finding

MARKS = {"ok": "✓", "warning": "!", "failure": "✗"}


def doctor(as_json: options.JsonOption = False) -> None:
    """Look at Python, torch, faiss, the devices, the codecs, the weights and the settings; change nothing.

    A line begins with ✓ (good), ! (works, but not as well as it could) or ✗ (something cannot work).
    Exit 1 when there is a ✗.

    Example: dinokit doctor
    """
    from dinov2kit.doctor import examine
    from dinov2kit.indexes import check_faiss

    findings = [*examine(), check_faiss()]
    failed = any(finding.status == "failure" for finding in findings)
    if as_json:
        console.emit_json("doctor/1", {"ok": not failed, "findings": [asdict(found) for found in findings]})
    else:
        _show(findings)
    if failed:
        raise typer.Exit(console.FAILURE)


def _show(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        console.emit(f"{MARKS[finding.status]} {finding.name:<{width}}  {finding.detail}")
        if finding.hint:
            console.emit(f"  {'':<{width}}  hint: {finding.hint}")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="App")(doctor)
