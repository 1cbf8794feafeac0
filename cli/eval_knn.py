"""`dinokit eval knn`: how often the nearest labelled images name the class of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dinov2kit.errors import ArgumentError

from . import console, options
from .eval_retrieval import finish, percent, print_rows


def knn(
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Holds train/ and val/, or is a table (.csv) with a split."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled images that vote: class folders or a table.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled images that are classified.")
    ] = None,
    k: Annotated[
        list[int] | None,
        typer.Option("-k", metavar="N", help="Neighbours that vote; repeat it; not set: 10, 20, 100, 200."),
    ] = None,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of the softmax of the votes.")] = 0.07,
    shots: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Also with only N images per class that vote; repeat it."),
    ] = None,
    tries: Annotated[int, typer.Option(metavar="N", help="How often these are drawn.")] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the first draw.")] = 0,
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
    """Classify images by the votes of their nearest labelled neighbours, as DINOv2 is evaluated.

    Give --root, or --train and --val. Nothing is learned: what is measured is the model alone.

    Example: dinokit eval knn --train imagenet/train --val imagenet/val --model vits14
    """
    from dinov2kit.decoding import default_workers
    from dinov2kit.encoder import Encoder
    from dinov2kit.knn_eval import KnnSpec, evaluate_knn, read_knn_images

    sources = [train or root, val or root]
    if sources[0] is None or sources[1] is None:
        raise ArgumentError(
            "nothing to vote or to classify", hint="give --root DIR, or --train DIR --val DIR"
        )
    spec = KnnSpec(sources[0], sources[1], tuple(k or ()), temperature, tuple(shots or ()), tries, seed)
    images = read_knn_images(spec)
    encoder = Encoder(model, device=device, precision=precision)
    with console.progress(quiet=quiet) as bars:
        task = bars.add_task("Embedding", total=sum(map(len, images)), note=encoder.name)
        report = evaluate_knn(
            encoder,
            spec,
            images=images,
            out=out,
            cache=cache,
            overwrite=overwrite,
            workers=default_workers() if workers < 0 else workers,
            batch_size=batch,
            device=encoder.device,
            advance=lambda _: bars.advance(task),
        )
    if as_json:
        console.emit_json("eval-knn/1", report)
    else:
        _print(report)
    best = f"best: k {report['best']['k']}, top-1 {percent(report['best']['top1'])}"
    counts = f"{report['n_train']:,} images vote on {report['n_val']:,}, {report['n_classes']} classes"
    named = f"{report['model']['name']}, {report['dim']} dims"
    finish(report, out, quiet=quiet, strict=strict, said=" · ".join((counts, named, best)))


def _print(report: dict[str, Any]) -> None:
    rows = [("bank", "k", "top-1", "top-5", "class mean")]
    keys = ("top1", "top5", "class_mean")
    for number, scores in report["knn"].items():
        rows.append(("all", number, *(percent(scores[key]) for key in keys)))
    for shots, by_k in report["few_shot"].items():
        for number, scores in by_k.items():
            cells = (f"{percent(scores[key]['mean'])}±{percent(scores[key]['std'])}" for key in keys)
            rows.append((f"{shots} per class", number, *cells))
    print_rows(rows)
