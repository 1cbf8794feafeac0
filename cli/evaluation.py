"""`dinokit eval`: how good a model is, by the protocols of the field."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from . import console, options
from .eval_knn import knn
from .eval_linear import linear
from .eval_logreg import logreg
from .eval_retrieval import retrieval

app = typer.Typer(help="Measure how good a model is, by the protocols of the field.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Measure how good a model is, by the protocols of the field."""


@app.command()
def correspondence(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="SET", help="spair, pf-pascal, pf-willow, tss, hpatches, ap10k or pairs (your own)."
        ),
    ],
    root: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the set as it is distributed.")],
    split: Annotated[str, typer.Option(metavar="test|val|trn", help="Part of the set.")] = "test",
    alpha: Annotated[
        list[float] | None,
        typer.Option(metavar="A", help="Threshold; repeat it for several; not set: those of the protocol."),
    ] = None,
    length: Annotated[
        str,
        typer.Option(metavar="auto|bbox|img|bbox-kp", help="What alpha is a share of; auto: the protocol's."),
    ] = "auto",
    inclusive: Annotated[
        bool, options.flag("--inclusive", help="An error equal to the threshold is correct (<=, not <).")
    ] = False,
    limit: Annotated[int, typer.Option(metavar="N", help="Draw N pairs; 0 takes all.")] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn.")] = 0,
    drop_large: Annotated[
        bool, options.flag("--drop-large", help="Leave out the eight large scenes of HPatches.")
    ] = False,
    refine: Annotated[
        str, typer.Option(metavar="window|parabola|none", help="How a place between patches is read.")
    ] = "window",
    window: Annotated[int, typer.Option(metavar="PATCHES", help="Radius of the window; 0 chooses.")] = 0,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of the softmax in the window.")] = 0.04,
    max_cycle: Annotated[
        float, typer.Option(metavar="PATCHES", help="Largest error of the way back of a kept match.")
    ] = 1.0,
    out: options.ReportOption = None,
    pairs_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the pairs, for others to evaluate as the set `pairs`."),
    ] = None,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    strict: Annotated[bool, options.flag("--strict", help="Exit 1 when a pair cannot be scored.")] = False,
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
    """Count correct keypoints (PCK) on a public set or on pairs of your own.

    Predictions are compared in pixels of the stored target image, whatever the network saw. The report has
    every way of averaging that papers use, and every setting. Ctrl-C keeps what is done; with --out the next
    run goes on there.

    Example: dinokit eval correspondence spair --root SPair-71k --model vitb14 --size 840 --out report.json
    """
    from dinov2kit.correspondence_eval import EvalSpec, evaluate_correspondence, read_pairs, write_pairs
    from dinov2kit.matching import MatchSpec

    given = dict(locals())
    spec = EvalSpec(
        dataset=given["dataset"],
        root=root,
        split=split,
        alphas=tuple(alpha or ()),
        length=given["length"],
        inclusive=inclusive,
        features=options.feature_spec(given),
        matching=MatchSpec(max_cycle, refine=given["refine"], window=window, temperature=temperature),
        limit=limit,
        seed=seed,
        drop_large=drop_large,
    )
    pairs = read_pairs(spec)
    if pairs_out is not None:
        write_pairs(pairs, pairs_out, overwrite=overwrite)
    encoder = options.local_encoder(given)
    with console.progress(quiet=quiet) as bars:
        task = bars.add_task("Matching", total=len(pairs), note=encoder.identity.name)
        report = evaluate_correspondence(
            encoder, spec, out=out, pairs=pairs, overwrite=overwrite, advance=lambda _: bars.advance(task)
        )
    _print(report, as_json=as_json, quiet=quiet)
    if out is not None and not quiet:
        console.say(f"wrote {out}")
    if strict and report["skipped"]:
        raise typer.Exit(console.FAILURE)


def _print(report: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    if as_json:
        console.emit_json("eval-correspondence/1", report)
    else:
        _print_rows(report)
    for row in report["skipped"]:
        console.warn(f"left out {row['pair']}: {row['reason']}")
    if not quiet:
        way, sign = report["length"], "<=" if report["inclusive"] else "<"
        lines = (
            f"{report['n_pairs']} pairs, {report['n_points']} keypoints of {report['dataset']}",
            f"right: error {sign} alpha x {way}; {report['kept_share']:.0%} kept",
            f"{report['model']['name']} at {report['features']['size']} px",
        )
        console.say(" · ".join(lines))
        for name, share in report.get("corners", {}).items():
            console.say(f"corners {name}: {share:.3f}")


def _print_rows(report: dict[str, Any]) -> None:
    ways = ("image", "point", "class_mean", "class_weighted", "class_mean_image", "kept")
    alphas = list(report["pck"])
    rows = [(way, *(_share(report["pck"][alpha][way]) for alpha in alphas)) for way in ways]
    if not console.on_terminal():
        for row in [("pck", *alphas), *rows]:
            console.emit("\t".join(row))
        return
    table = Table("PCK", *alphas, box=None)
    for row in rows:
        table.add_row(*row)
    table.add_section()
    for name, facts in report["per_class"].items():
        table.add_row(name or "all", *(_share(facts["pck_point"][alpha]) for alpha in alphas), style="dim")
    console.show_table(table)


def _share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


app.command()(retrieval)
app.command()(knn)
app.command()(linear)
app.command()(logreg)


def register(root: typer.Typer) -> None:
    """Add the commands to the app."""
    root.add_typer(app, name="eval", rich_help_panel="Models")
