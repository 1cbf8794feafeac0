"""`dinokit dedup`: which photos are copies, up to the written plan. Nothing is removed here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import console, dedup_apply, options

if TYPE_CHECKING:
    from typer import Context

    from dinov2kit.indexes import Duplicates
else:
    Context = typer.Context.__base__  # Typer recognises its own class, and hands over one of this

FOUND = 11  # exit code with --fail-if-found
SHOWN = 20  # skipped files on stderr

app = typer.Typer()


@app.callback(invoke_without_command=True)
def dedup(
    context: Context,
    index: options.IndexOption = None,
    exact: Annotated[
        bool, options.flag("--exact", help="Only equal contents: instant, no photo is opened.")
    ] = False,
    near: Annotated[
        bool, options.flag("--near", help="Only copies that are alike; not those of equal content.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="SCORE", help="The model proposes pairs from this cosine on; else calibrated or 0.96."
        ),
    ] = None,
    verify: Annotated[
        str, typer.Option(metavar="phash|pixel|none", help="How the pixels of a pair are compared.")
    ] = "phash",
    flips: Annotated[bool, options.flag("--flips", help="Mirrored copies count.")] = False,
    allow_crop: Annotated[
        bool, options.flag("--allow-crop", help="A part of another photo counts; slower.")
    ] = False,
    keep: Annotated[
        str, typer.Option(metavar="RULES", help="Which photo stays: the first rule that tells them apart.")
    ] = "resolution,bytes,exif,oldest,path",
    within: Annotated[Path | None, typer.Option(metavar="DIR", help="Only photos in this folder.")] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Photos in this folder always stay.")
    ] = None,
    across_dirs: Annotated[
        bool, options.flag("--across-dirs", help="Only copies in another folder than the photo that stays.")
    ] = False,
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help='Only photos for which this holds: "width >= 2000".')
    ] = None,
    k: Annotated[
        int, typer.Option("-k", metavar="N", min=1, help="Neighbours of each photo to look at.")
    ] = 64,
    exact_graph: Annotated[
        bool, options.flag("--exact-graph", help="Compare all descriptors with each other, however many.")
    ] = False,
    plan: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the plan for dinokit dedup apply (.jsonl).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Page of the groups, in one file.")
    ] = None,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    work: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep finished parts here: an interrupted run goes on there."),
    ] = None,
    fail_if_found: Annotated[
        bool, options.flag("--fail-if-found", help=f"Exit {FOUND} when there are copies.")
    ] = False,
    workers: options.WorkersOption = -1,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Find copies among the photos of an index. Nothing is changed; --plan writes what could be removed.

    The model and a hash of each photo propose pairs; their pixels decide. Each copy was compared with the
    photo that stays. On a terminal the result is a table, in a pipe a line per photo:
    "group<TAB>keep|copy<TAB>score<TAB>bytes<TAB>check or reason<TAB>path".

    Example: dinokit dedup --plan plan.jsonl --html plan.html
    """
    if context.invoked_subcommand is not None:
        _check_alone(context)
        return
    from dinov2kit.decoding import default_workers
    from dinov2kit.indexes import (
        DedupRules,
        Snapshot,
        expect_dedup,
        find_duplicates,
        find_index,
        parse_keep,
        write_duplicates_page,
        write_plan,
    )

    _check_files([plan, html], exact=exact, near=near, overwrite=overwrite)
    rules = DedupRules(
        scope="exact" if exact else "near" if near else "both",
        threshold=threshold,
        verify=verify,
        flips=flips,
        allow_crop=allow_crop,
        keep=parse_keep(keep),
        within=within,
        reference=reference,
        across_dirs=across_dirs,
        where=where,
        k=k,
        exact_graph=True if exact_graph else None,
    )
    with Snapshot.open(find_index(index)) as snapshot, console.progress(quiet=quiet) as bars:
        workers = default_workers() if workers < 0 else workers
        if not quiet and (cost := expect_dedup(snapshot, rules, workers=workers)):
            console.say(cost)
        found = find_duplicates(snapshot, rules, workers=workers, work=work, watch=console.show_stages(bars))
    if plan is not None:
        write_plan(plan, found.to_plan(), overwrite=overwrite)
    if html is not None:
        write_duplicates_page(html, found)
    if as_json:
        console.emit_json("dedup/1", found.to_json())
    elif console.on_terminal():
        _print_table(found)
    else:
        _print_lines(found)
    _say_what_was_found(found, [path for path in (plan, html) if path], planned=plan, quiet=quiet)
    if fail_if_found and found.groups:
        raise typer.Exit(FOUND)


def _check_alone(context: Context) -> None:
    """Refuse options of the search for copies before a command that does not search."""
    from dinov2kit.errors import ArgumentError

    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise ArgumentError(
            f"{option} before {context.invoked_subcommand} has no effect",
            hint=f"options of a command come after it: dinokit dedup {context.invoked_subcommand} --help",
        )


def _check_files(paths: list[Path | None], *, exact: bool, near: bool, overwrite: bool) -> None:
    from dinov2kit.errors import ArgumentError

    if exact and near:
        raise ArgumentError("--exact and --near exclude each other", hint="without them both are found")
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise ArgumentError(
                f"there is no folder {path.parent}", hint="name a file in a folder that exists"
            )
        if path is not None and path.exists() and not overwrite:
            raise ArgumentError(f"{path} exists", hint="name another file, or add --overwrite")


def _print_lines(found: Duplicates) -> None:
    for group in found.groups:
        keeper = group.keeper
        console.emit(f"{group.number}\tkeep\t\t{keeper.size}\t{group.reason}\t{keeper.path}")
        for copy in group.copies:
            score = "" if copy.score is None else f"{copy.score:.6f}"
            photo = copy.photo
            console.emit(f"{group.number}\tcopy\t{score}\t{photo.size}\t{copy.check}\t{photo.path}")


def _print_table(found: Duplicates) -> None:
    if not found.groups:
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("group", justify="right")
    table.add_column("")
    table.add_column("score", justify="right")
    table.add_column("bytes", justify="right")
    for name in ("size", "why", "photo"):
        table.add_column(name, overflow="fold")
    for group in found.groups:
        keeper = group.keeper
        facts = (f"{keeper.size:,}", f"{keeper.width}x{keeper.height}", group.reason, _shown(keeper.path))
        table.add_row(str(group.number), "keep", "", *facts, style="bold")
        for copy in group.copies:
            score = "" if copy.score is None else f"{copy.score:.3f}"
            photo = copy.photo
            facts = (f"{photo.size:,}", f"{photo.width}x{photo.height}", copy.check, _shown(photo.path))
            table.add_row("", "copy", score, *facts)
        for entry in group.related:
            table.add_row("", "", "", "", "", entry.kind, _shown(entry.path), style="dim")
    console.show_table(table)


def _shown(path: Path) -> Text:
    return Text(os.fsencode(path).decode("utf-8", "backslashreplace"))


def _say_what_was_found(found: Duplicates, written: list[Path], *, planned: Path | None, quiet: bool) -> None:
    for path, reason in found.skipped[:SHOWN]:
        console.warn(f"{path}: {reason}")
    if len(found.skipped) > SHOWN:
        console.warn(f"and {len(found.skipped) - SHOWN:,} more were left out; --json has all")
    if quiet:
        return
    kinds = [entry.kind for entry in found.related]
    for kind, words in (("burst", "pairs of a burst"), ("hard link", "other names of one file")):
        if count := kinds.count(kind):
            console.say(f"{count:,} {words}, which are no copies")
    size = f"{found.reclaimable / 1e6:,.1f} MB"
    console.say(
        f"{found.copies:,} {'copy' if found.copies == 1 else 'copies'} of {_photos(len(found.groups))},"
        f" {size} ({found.photos:,} photos compared, {found.seconds:,.1f} s)"
    )
    for path in written:
        console.say(f"wrote {path}")
    if planned is not None and found.groups:
        console.say(f"look at it, then: dinokit dedup apply {planned}")


def _photos(count: int) -> str:
    return f"{count:,} photo" + "s" * (count != 1)


def register(root: typer.Typer) -> None:
    """Add the commands to the app."""
    dedup_apply.add_to(app)
    root.add_typer(app, name="dedup", rich_help_panel="Photos")
