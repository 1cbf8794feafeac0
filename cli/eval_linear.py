"""`dinokit eval linear`: how well linear heads on frozen tokens tell what an image shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dinov2kit.errors import ArgumentError

from . import console, options
from .eval_retrieval import finish, percent, print_rows


def linear(
    root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Holds train/ and val/, or is a table (.csv) with a split."),
    ] = None,
    train: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled images that heads learn from.")
    ] = None,
    val: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled images that choose the best head.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Labelled images that the best head is measured on.")
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Class tokens of the last N blocks; repeat it; not set: 1 and 4."),
    ] = None,
    rate: Annotated[
        list[float] | None,
        typer.Option(metavar="LR", help="Learning rate for a batch of 256; repeat it; not set: 1e-5 to 0.1."),
    ] = None,
    steps: Annotated[int, typer.Option(metavar="N", help="Steps of SGD.")] = 12_500,
    sgd_batch: Annotated[int, typer.Option(metavar="N", help="Images in a step.")] = 128,
    views: Annotated[
        int, typer.Option(metavar="N", help="Of each training image: the whole, then random parts.")
    ] = 1,
    seed: Annotated[int, typer.Option(metavar="N", help="Of weights, order and parts.")] = 0,
    head: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the best head (.safetensors), for classify.")
    ] = None,
    out: options.ReportOption = None,
    cache: options.DescriptorsOption = None,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    strict: Annotated[bool, options.flag("--strict", help="Exit 1 when an image cannot be read.")] = False,
    model: options.ModelOption = "auto",
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    batch: options.BatchOption = 0,
    workers: options.WorkersOption = -1,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train linear heads on frozen tokens, all at once, and report the best, as DINOv2 is evaluated.

    Give --root, or --train and --val. Images are described once, so 52 heads cost little more than one. The
    release draws a new part of an image in every step: --views 10 comes near it, and costs ten times as much.

    Example: dinokit eval linear --train imagenet/train --val imagenet/val --model vits14
    """
    from dinov2kit.decoding import default_workers
    from dinov2kit.encoder import Encoder
    from dinov2kit.linear_eval import LinearSpec, evaluate_linear, read_linear_images

    sources = [train or root, val or root]
    if sources[0] is None or sources[1] is None:
        raise ArgumentError("nothing to learn from", hint="give --root DIR, or --train DIR --val DIR")
    chosen: dict[str, Any] = {"steps": steps, "batch": sgd_batch, "views": views, "seed": seed}
    if layer:
        chosen["layers"] = tuple(layer)
    if rate:
        chosen["rates"] = tuple(rate)
    spec = LinearSpec(sources[0], sources[1], test, **chosen)
    images = read_linear_images(spec)
    encoder = Encoder(model, device=device, precision=precision)
    with console.progress(quiet=quiet) as bars:
        total = sum(map(len, images.values())) + (views - 1) * len(images["train"])
        tasks = {
            "image": bars.add_task("Embedding", total=total, note=encoder.name),
            "step": bars.add_task("Learning", total=steps, note=""),
        }
        report = evaluate_linear(
            encoder,
            spec,
            images=images,
            out=out,
            head=head,
            cache=cache,
            overwrite=overwrite,
            workers=default_workers() if workers < 0 else workers,
            batch_size=batch,
            advance=lambda kind: bars.advance(tasks[kind]),
        )
    if as_json:
        console.emit_json("eval-linear/1", report)
    else:
        _print(report)
    best = report["best"]
    counts = f"{report['n_train']:,} images teach, {report['n_val']:,} choose, {report['n_classes']} classes"
    said = [counts, f"{report['model']['name']}", f"best: {best['name']}, top-1 {percent(best['top1'])}"]
    if "test" in report:
        said.append(f"on {report['n_test']:,} others {percent(report['test']['top1'])}")
    finish(report, out, quiet=quiet, strict=strict, said=" · ".join(said))


def _print(report: dict[str, Any]) -> None:
    """Print the best learning rate of each choice of tokens."""
    best: dict[tuple[int, bool], dict[str, Any]] = {}
    for head in report["heads"]:
        key = (head["layers"], head["average"])
        if key not in best or head["top1"] > best[key]["top1"]:
            best[key] = head
    rows: list[tuple[str, ...]] = [("layers", "mean patch", "lr", "top-1", "top-5", "class mean")]
    for (layers, average), head in best.items():
        scores = (percent(head[key]) for key in ("top1", "top5", "class_mean"))
        rows.append((str(layers), "yes" if average else "no", f"{head['rate']:g}", *scores))
    print_rows(rows)
