"""`dinokit curate`: a training set from a pool of photos."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import console, options

if TYPE_CHECKING:
    from dinov2kit.indexes import CurateReport

SHOWN_CLUSTERS, SHOWN_UNREADABLE, BAR = 10, 20, 24


def parse_counts(text: str) -> tuple[int, ...] | None:
    """Read numbers with commas between them, 2000,200,20; the word auto is None."""
    from dinov2kit.errors import ArgumentError

    if text == "auto":
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ArgumentError(
            f"{text!r} is no list of numbers", hint="write for instance 2000,200,20, or auto"
        ) from error


def parse_count(text: str) -> int | None:
    """Read one number; the word auto is None."""
    from dinov2kit.errors import ArgumentError

    counts = parse_counts(text)
    if counts is not None and len(counts) != 1:
        raise ArgumentError(f"{text!r} is not one number", hint="write for instance 2000, or auto")
    return counts[0] if counts else None


def curate(
    index: options.IndexOption = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode", metavar="retrieve|cluster|hkmeans|semdedup|random", help="How photos are chosen."
        ),
    ] = "retrieve",
    queries: Annotated[
        list[Path] | None,
        typer.Option(
            "--queries", metavar="DIR", help="Photos to look for: a folder or an index; repeatable."
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", help="retrieve: photos per query.")] = 4,
    on_collision: Annotated[
        str,
        typer.Option(metavar="next|drop|keep", help="retrieve: when several queries want the same photo."),
    ] = "next",
    max_depth: Annotated[
        int, typer.Option(metavar="N", help="retrieve: the farthest neighbour that next looks at.")
    ] = 4096,
    clusters: Annotated[
        str,
        typer.Option(metavar="N|auto", help="cluster, semdedup: number of clusters."),
    ] = "auto",
    min_hits: Annotated[
        int, typer.Option(metavar="N", help="cluster: queries that a cluster needs to give photos.")
    ] = 4,
    per_cluster: Annotated[
        int, typer.Option(metavar="N", help="cluster: the most photos from one cluster, per query set.")
    ] = 10_000,
    cap: Annotated[
        int, typer.Option(metavar="N", help="cluster: the most photos per query set.")
    ] = 1_000_000,
    levels: Annotated[
        str,
        typer.Option(metavar="N,N,..|auto", help="hkmeans: clusters per level, descending."),
    ] = "auto",
    r: Annotated[
        str,
        typer.Option("--r", metavar="N,N,..|auto", help="hkmeans: points per cluster kept to resample."),
    ] = "auto",
    resample: Annotated[
        str,
        typer.Option(metavar="N[,N,..]", help="hkmeans: rounds of resampling per level."),
    ] = "10",
    target_size: Annotated[
        int | None, typer.Option(metavar="N", help="hkmeans, random: how many photos.")
    ] = None,
    pick: Annotated[
        str, typer.Option(metavar="random|closest", help="hkmeans: which photos of a cluster.")
    ] = "random",
    eps: Annotated[
        float,
        typer.Option(metavar="E", help="semdedup: photos go above a cosine of 1 - E to one that stays."),
    ] = 0.05,
    dedup: Annotated[
        float | None, typer.Option(metavar="SCORE", help="First keep one of photos above this cosine (0.96).")
    ] = None,
    exclude_near: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Drop what is like these evaluation photos; folder or index; repeatable."
        ),
    ] = None,
    exclude_threshold: Annotated[
        float, typer.Option(metavar="SCORE", help="Cosine above which a photo is like an evaluation photo.")
    ] = 0.96,
    chain: Annotated[
        bool,
        options.flag("--chain/--direct", help="Drop also what is connected to such a photo, or only itself."),
    ] = True,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help='Only photos for which this holds: "width >= 512".'),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything that is drawn.")] = 0,
    exact: Annotated[
        bool, options.flag("--exact", help="Compare every pair of photos for copies, however many.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="FILE", help="The chosen photos: .jsonl, .parquet, .txt or .tar."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Page of counts and pictures (.html).")
    ] = None,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    resume: Annotated[
        bool, options.flag("--resume/--fresh", help="Take up finished stages, or compute all anew.")
    ] = True,
    work: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where stages are kept, if not in the index.")
    ] = None,
    model: options.IndexModelOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    batch: options.BatchOption = 0,
    workers: options.WorkersOption = -1,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Choose photos from an index for training: near to queries, evenly over all, or without repetition.

    Copies, and what is like evaluation photos, can be dropped first. Long stages are kept: an interrupted run
    goes on, and a changed setting costs only what depends on it. The same index and seed give the same file.

    Example: dinokit curate --queries seed --exclude-near val -k 4 --out train.jsonl
    """
    from dinov2kit.decoding import default_workers
    from dinov2kit.indexes import CurateSpec, Index, UpdateRules, curate

    spec = CurateSpec(
        mode=mode,
        queries=tuple(queries or ()),
        k=k,
        on_collision=on_collision,
        max_depth=max_depth,
        clusters=parse_count(clusters),
        min_hits=min_hits,
        per_cluster=per_cluster,
        cap=cap,
        levels=parse_counts(levels),
        keep=parse_counts(r),
        resample=parse_counts(resample) or (10,),
        target_size=target_size,
        pick=pick,
        eps=eps,
        dedup=dedup,
        exclude_near=tuple(exclude_near or ()),
        exclude_threshold=exclude_threshold,
        chain=chain,
        where=where,
        seed=seed,
    )
    rules = UpdateRules(workers=default_workers() if workers < 0 else workers, batch_size=batch)
    with (
        Index.open(index, model=model, device=device, precision=precision) as pool,
        console.progress(quiet=quiet) as bars,
    ):
        done = curate(
            pool.snapshot,
            spec,
            out,
            load_encoder=lambda: pool.encoder,
            page=report,
            overwrite=overwrite,
            work=work,
            fresh=not resume,
            exact=exact or None,
            rules=rules,
            watch=console.show_stages(bars),
        )
    if as_json:
        console.emit_json("curate/1", done.to_json())
    elif console.on_terminal():
        _show_tables(done)
    else:
        _print_plain(done)
    if not quiet:
        _say_what_was_done(done)


def _print_plain(report: CurateReport) -> None:
    for stage in report.stages:
        why = "; ".join(f"{count} {reason}" for reason, count in stage.why.items())
        console.emit(f"stage\t{stage.name}\t{stage.came}\t{stage.left}\t{stage.dropped}\t{why}")
    for name, count in vars(report.accounting).items():
        console.emit(f"{name}\t{count}")
    if report.clusters is not None:
        use = report.clusters
        for label, (held, hits, chosen) in enumerate(zip(use.pool, use.hits, use.chosen, strict=True)):
            if chosen or hits:
                console.emit(f"cluster\t{label}\t{held}\t{hits}\t{chosen}")
        console.emit(f"entropy\t{use.entropy:.6f}")


def _show_tables(report: CurateReport) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "in", "out", "dropped"):
        table.add_column(name, justify="right" if name in ("in", "out") else "left", overflow="fold")
    for stage in report.stages:
        why = ", ".join(f"{count:,} {reason}" for reason, count in stage.why.items())
        table.add_row(stage.name, f"{stage.came:,}", f"{stage.left:,}", why)
    console.show_table(table)
    console.emit("  ".join(f"{name} {count:,}" for name, count in vars(report.accounting).items()))
    if report.clusters is None:
        return
    use = report.clusters
    table = Table(box=None, pad_edge=False)
    for name in ("cluster", "photos", "queries", "chosen"):
        table.add_column(name, justify="right")
    table.add_column("")
    largest = use.largest(SHOWN_CLUSTERS)
    most = max(int(use.pool[largest].max()), 1)
    for label in largest:
        counts = (int(column[label]) for column in (use.pool, use.hits, use.chosen))
        bar = "━" * round(BAR * int(use.chosen[label]) / most)
        table.add_row(str(label), *(f"{count:,}" for count in counts), Text(bar, style="cyan"))
    console.show_table(table)
    console.emit(f"{int((use.chosen > 0).sum()):,} of {len(use.pool):,} clusters, entropy {use.entropy:.3f}")


def _say_what_was_done(report: CurateReport) -> None:
    for path, reason in report.unreadable[:SHOWN_UNREADABLE]:
        console.warn(f"{path}: {reason}")
    if len(report.unreadable) > SHOWN_UNREADABLE:
        console.warn(f"and {len(report.unreadable) - SHOWN_UNREADABLE:,} more")
    if report.reused:
        console.say(f"taken from an earlier run: {', '.join(dict.fromkeys(report.reused))}")
    if report.out is None:
        console.say("nothing was written; name a file with --out")
    for written in (report.out, report.page):
        if written is not None:
            console.say(f"wrote {written}")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Photos")(curate)
