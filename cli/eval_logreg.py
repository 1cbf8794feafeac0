"""`dinokit eval logreg`: how well a logistic regression on class tokens tells what an image shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dinov2kit.errors import ArgumentError

from . import console, options
from .eval_retrieval import finish, percent, print_rows


def logreg(
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Holds train/ and val/, or is a table (.csv) with a split."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled images that are learned from.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled images that are classified.")
    ] = None,
    c: Annotated[
        list[float] | None,
        typer.Option(
            "-c", metavar="C", help="Weight of the losses; repeat it; not set: 45 from 1e-6 to 1e5."
        ),
    ] = None,
    most: Annotated[int, typer.Option(metavar="N", help="Steps of L-BFGS for each.")] = 1000,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the tenth that chooses C.")] = 0,
    out: options.ReportOption = None,
    cache: options.DescriptorsOption = None,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace an existing report.")] = False,
    strict: Annotated[bool, options.flag("--strict", help="Exit 1 when an image cannot be read.")] = False,
    model: options.ModelOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    batch: options.BatchOption = 0,
    workers: options.WorkersOption = -1,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Classify by a logistic regression on class tokens, as DINOv2 is evaluated.

    Give --root, or --train and --val. C is chosen on a tenth of the training images, then all of them teach.

    Example: dinokit eval logreg --train imagenet/train --val imagenet/val --model vits14
    """
    from dinov2kit.decoding import default_workers
    from dinov2kit.encoder import Encoder
    from dinov2kit.logreg_eval import LogregSpec, evaluate_logreg, read_logreg_images

    sources = [train or root, val or root]
    if sources[0] is None or sources[1] is None:
        raise ArgumentError("nothing to learn from", hint="give --root DIR, or --train DIR --val DIR")
    chosen: dict[str, Any] = {"most": most, "seed": seed, **({"grid": tuple(c)} if c else {})}
    spec = LogregSpec(sources[0], sources[1], **chosen)
    images = read_logreg_images(spec)
    encoder = Encoder(model, device=device, precision=precision)
    with console.progress(quiet=quiet) as bars:
        tasks = {
            "image": bars.add_task("Embedding", total=sum(map(len, images.values())), note=encoder.name),
            "fit": bars.add_task("Learning", total=len(spec.grid) + 1, note=""),
        }
        report = evaluate_logreg(
            encoder,
            spec,
            images=images,
            out=out,
            cache=cache,
            overwrite=overwrite,
            workers=default_workers() if workers < 0 else workers,
            batch_size=batch,
            advance=lambda kind: bars.advance(tasks[kind]),
        )
    if as_json:
        console.emit_json("eval-logreg/1", report)
    else:
        rows = [("C", "top-1 on a tenth")]
        rows += [(f"{row['c']:.3g}", percent(row["top1"])) for row in report["grid"]]
        print_rows(rows)
    scores, best = report["val_scores"], report["best"]
    said = [
        f"{report['n_train']:,} images teach, {report['n_val']:,} are told, {report['n_classes']} classes",
        report["model"]["name"],
        f"C {best['c']:.3g}: top-1 {percent(scores['top1'])}, top-5 {percent(scores['top5'])}",
        *([] if best["converged"] else [f"not converged in {best['steps']} steps"]),
    ]
    finish(report, out, quiet=quiet, strict=strict, said=" · ".join(said))
