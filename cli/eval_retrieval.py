"""`dinokit eval retrieval`: how well a model finds images, and an index what the model means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dinov2kit.errors import ArgumentError

from . import console, options

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_GROUPS = 40  # that a terminal is shown


def retrieval(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="SET",
            help="roxford5k, rparis6k, holidays, copydays, disc21, cub200, sop, inshop; folders or csv (your "
            "own); or index.",
        ),
    ],
    root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the set as it is distributed, or the table.")
    ] = None,
    index: options.IndexOption = None,
    k: Annotated[
        list[int] | None,
        typer.Option(
            "-k", metavar="N", help="Of recall@k; repeat it for several; not set: those of the set."
        ),
    ] = None,
    nprobe: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Of an index: clusters to look at; repeat it; not set: a curve."),
    ] = None,
    distractors: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Images that match nothing, searched as well.")
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", help="Draw N queries; 0 takes all, of an index 1,000.")
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is drawn.")] = 0,
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
    """Find images by the protocols of the field, or measure an index against the exact search.

    A set has queries whose matches are known: mean average precision (mAP), MAP@R, recall@k, and the micro
    average precision of all pairs. `index` measures recall@k, queries per second and memory of an index.

    Example: dinokit eval retrieval roxford5k --root roxford5k --model vitl14 --out report.json
    """
    if dataset == "index":
        _refuse(out=out, root=root, cache=cache, distractors=distractors)
        _index(index, k or (), nprobe or (), limit, seed, as_json=as_json, quiet=quiet)
        return
    _refuse(index=index, nprobe=nprobe or None)
    if root is None:
        raise ArgumentError(f"where is {dataset}?", hint="name its folder: --root DIR")
    from dinov2kit.decoding import default_workers
    from dinov2kit.encoder import Encoder
    from dinov2kit.retrieval_eval import RetrievalSpec, evaluate_retrieval, read_retrieval_set

    spec = RetrievalSpec(dataset, root, tuple(k or ()), distractors, limit, seed)
    chosen = read_retrieval_set(spec)
    encoder = Encoder(model, device=device, precision=precision)
    with console.progress(quiet=quiet) as bars:
        total = len(chosen.queries) + len(chosen.index)
        task = bars.add_task("Embedding", total=total, note=encoder.name)
        report = evaluate_retrieval(
            encoder,
            spec,
            chosen=chosen,
            out=out,
            cache=cache,
            overwrite=overwrite,
            workers=default_workers() if workers < 0 else workers,
            batch_size=batch,
            advance=lambda _: bars.advance(task),
        )
    if as_json:
        console.emit_json("eval-retrieval/1", report)
    else:
        _print_set(report)
    finish(report, out, quiet=quiet, strict=strict, said=_summary(report))


def finish(report: dict[str, Any], out: Path | None, *, quiet: bool, strict: bool, said: str) -> None:
    """Say what was left out, what was measured and where the report lies; exit 1 where that was asked for."""
    for row in report["skipped"]:
        console.warn(f"left out {row['path']}: {row['reason']}")
    if not quiet:
        console.say(said)
        if out is not None:
            console.say(f"wrote {out}")
    if strict and report["skipped"]:
        raise typer.Exit(console.FAILURE)


def print_rows(rows: Sequence[Sequence[str]], *, dim: Sequence[Sequence[str]] = ()) -> None:
    """Print a table whose first row is its head; `dim` rows are for people only."""
    if not console.on_terminal():
        for row in rows:
            console.emit("\t".join(row))
        return
    table = Table(*rows[0], box=None)
    for row in rows[1:]:
        table.add_row(*row)
    for row in dim:
        table.add_row(*row, style="dim")
    console.show_table(table)


def percent(share: float | None) -> str:
    """Return a share as percent with two digits."""
    return "-" if share is None else f"{100 * share:.2f}"


def _refuse(**given: object) -> None:
    """Refuse options that this kind of set does not have.

    Raises:
        ArgumentError: one is given.
    """
    wrong = [f"--{name}" for name, value in given.items() if value is not None]
    if wrong:
        raise ArgumentError(f"{', '.join(wrong)} makes no sense for this set")


def _index(
    index: Path | None,
    ks: Sequence[int],
    nprobes: Sequence[int],
    count: int,
    seed: int,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    from dinov2kit.indexes import evaluate_index, find_index

    with console.progress(quiet=quiet) as bars:
        task = bars.add_task("Measuring", total=None, note="")
        report = evaluate_index(
            find_index(index),
            ks=ks,
            nprobes=nprobes,
            count=count,
            seed=seed,
            watch=lambda _, done, total: bars.update(task, completed=done, total=total),
        )
    if as_json:
        console.emit_json("eval-index/1", report)
    else:
        head = ("search", *(f"recall@{k}" for k in report["ks"]), "qps", "qps batch", "ms", "ms p95")
        print_rows([head, *(_figures(row) for row in (report["exact"], *report["curve"]))])
    if not quiet:
        parts = (
            f"{report['n']:,} x {report['dim']}",
            report["factory"],
            f"{report['memory'] / 1e6:,.1f} MB in memory ({report['memory_flat'] / 1e6:,.1f} MB as fp32)",
            f"{report['queries']:,} queries, {report['threads']} threads",
        )
        console.say(" · ".join(parts))


def _figures(row: dict[str, Any]) -> tuple[str, ...]:
    kind = "exact" if row["nprobe"] is None else f"nprobe {row['nprobe']}" if row["nprobe"] else "faiss"
    recalls = (f"{recall:.4f}" for recall in row["recall"].values())
    speeds = (f"{row[key]:.1f}" for key in ("qps", "qps_batch"))
    times = (f"{row[key]:.2f}" for key in ("ms", "ms_p95"))
    return (kind + (" *" if row["tuned"] else ""), *recalls, *speeds, *times)


def _print_set(report: dict[str, Any]) -> None:
    first = next(iter(report["setups"].values()))
    extra = [(f"P@{k}", "precision", k) for k in first.get("precision", {})]
    columns = [("mAP", "map", None), ("MAP@R", "map_at_r", None)]
    columns += [(f"R@{k}", "recall", k) for k in first["recall"]] + extra

    def row(name: str, scores: dict[str, Any]) -> tuple[str, ...]:
        cells = (scores[key] if k is None else scores[key][k] for _, key, k in columns)
        return (name, str(scores["n"]), *map(percent, cells))

    head = ("setup", "queries", *(name for name, _, _ in columns))
    groups = report["per_group"] if 1 < len(report["per_group"]) <= MOST_GROUPS else {}
    dim = [
        row(group if name == "all" else f"{group}, {name}", scores)
        for group, setups in groups.items()
        for name, scores in setups.items()
    ]
    print_rows([head, *(row(name, scores) for name, scores in report["setups"].items())], dim=dim)


def _summary(report: dict[str, Any]) -> str:
    parts = [
        f"{report['n_queries']:,} queries, {report['n_index']:,} images of {report['dataset']}",
        f"{report['model']['name']}, {report['dim']} dims",
    ]
    if report["micro"] is not None:
        micro = report["micro"]
        parts.append(f"all pairs: µAP {percent(micro['ap'])}, R@P90 {percent(micro['recall_at_p90'])}")
    return " · ".join(parts)
