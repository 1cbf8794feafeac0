"""Options that several commands share, each with its help, unit and default."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from dinov2kit.features import FeatureSpec
    from dinov2kit.pairs import LocalEncoder

_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def flag(*names: str, help: str, **settings: Any) -> Any:
    """Return an option that is given or not; its help shows no type."""
    return typer.Option(*names, metavar="", help=help, **settings)


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
IndexModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="PATH", help="Where the weights of the index are.")
]
ReportOption = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the report (.json); resumable.")
]
DescriptorsOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Keep descriptors there, also for later runs.")
]
DeviceOption = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
PrecisionOption = Annotated[
    str, typer.Option(metavar="auto|fp32|bf16", help="Arithmetic; auto takes bf16 where it is safe.")
]
BatchOption = Annotated[int, typer.Option("--batch", metavar="N", help="Images per batch; 0 chooses.")]
WorkersOption = Annotated[
    int, typer.Option("--workers", metavar="N", help="Decoding processes; -1 chooses, 0 is none.")
]
JsonOption = Annotated[bool, flag("--json", help="Print one JSON document on stdout.")]
QuietOption = Annotated[bool, flag("--quiet", "-q", help="No progress and no summary on stderr.")]


def parse_bytes(text: str) -> int:
    """Read a size as people write it: 300k, 64M, 4G, 4GB; a plain number is bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if not found:
        raise typer.BadParameter(f"{text!r} is no size; write for instance 64M or 4G")
    return int(float(found[1]) * _BYTES[found[2]])


def parse_seconds(text: str) -> float:
    """Read a time as people write it: 30s, 15m, 1h, 2d; a plain number is seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", text.strip().lower())
    if not found:
        raise typer.BadParameter(f"{text!r} is no time; write for instance 30m or 1h")
    return float(found[1]) * _SECONDS[found[2]]


SizeOption = Annotated[
    int, typer.Option(metavar="PX", help="Longer side of the network input; 0: 840 on CUDA, else 518.")
]
ResizeOption = Annotated[
    str, typer.Option(metavar="keep|letterbox|squash", help="Aspect ratio kept, padded to a square, or lost.")
]
StrideOption = Annotated[
    int, typer.Option(metavar="PX", help="Pixels between patches; 0: no overlap; 7 is finer and slower.")
]
LayerOption = Annotated[int, typer.Option(metavar="N", help="Block that is read; -1 is the last.")]
FacetOption = Annotated[
    str, typer.Option(metavar="token|key|query|value", help="What is read there of every patch.")
]
PrenormOption = Annotated[bool, flag("--prenorm", help="Read tokens before the final norm.")]
DebiasOption = Annotated[
    int, typer.Option(metavar="K", help="Project out K directions that depend on the position alone.")
]
AdapterOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Adapter for the patch tokens; it says which it reads.")
]


def feature_spec(given: Mapping[str, Any]) -> FeatureSpec:
    """Return the local descriptors that the options of a command, or else its adapter, ask for."""
    from dinov2kit.encoder import suitable_size
    from dinov2kit.features import FeatureSpec

    spec = FeatureSpec(
        size=given["size"] or suitable_size(given["device"]),
        resize=given["resize"],
        layer=given["layer"],
        facet=given["facet"],
        norm=not given["prenorm"],
        stride=given["stride"],
        debias=given["debias"],
    )
    if given["adapter"] is None or (spec.layer, spec.facet, spec.norm) != (-1, "token", True):
        return spec
    from dinov2kit.adapter import load_adapter

    return load_adapter(given["adapter"]).card.expects(spec)


def local_encoder(given: Mapping[str, Any]) -> LocalEncoder:
    """Return the model that the options of a command ask for, behind its adapter if there is one."""
    from dinov2kit.encoder import Encoder

    encoder = Encoder(given["model"], device=given["device"], precision=given["precision"])
    if given["adapter"] is None:
        return encoder
    from dinov2kit.adapter import AdaptedEncoder, load_adapter

    adapter = load_adapter(given["adapter"])
    if not adapter.recommended:
        console.warn(
            f"{given['adapter']} lost to the raw features on held-out points: better match without it"
        )
    return AdaptedEncoder(encoder, adapter)
