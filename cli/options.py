"""Options that several commands share, each with its help, unit and default."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

IndexOption = Annotated[
    Path | None,
    typer.Option("--index", "-i", metavar="DIR", help="Index directory; found by itself when not given."),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME|PATH",
        help="Model name (dinov2_vits14, vitb14-reg, untrained:vitt14), weight file, or auto.",
    ),
]
DeviceOption = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    str, typer.Option(metavar="auto|fp32|bf16", help="Arithmetic; auto takes bf16 where it is safe.")
]
BatchOption = Annotated[int, typer.Option("--batch", metavar="N", help="Images per batch; 0 chooses.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", metavar="N", help="Decoding processes; -1 chooses, 0 is none.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary on stderr.")]
