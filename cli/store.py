"""`dinokit info`, `verify`, `repair`, `compact`, `export`: looking after an index."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import console, options

if TYPE_CHECKING:
    from dinov2kit.indexes import Facts

WaitOption = Annotated[float, typer.Option("--wait", metavar="SECONDS", help="Wait for another writer.")]


class Format(StrEnum):
    """Kinds of file that `export` writes."""

    npy = "npy"
    parquet = "parquet"


class Precision(StrEnum):
    """Numbers that `export` writes."""

    fp16 = "fp16"
    fp32 = "fp32"


def info(
    index: options.IndexOption = None,
    errors: Annotated[bool, options.flag("--errors", help="List the files that could not be read.")] = False,
    as_json: options.JsonOption = False,
) -> None:
    """Show what an index is and holds: model, folders, counts, size, the last run.

    Example: dinokit info --errors
    """
    from dinov2kit.indexes import find_index, list_errors, read_facts

    directory = find_index(index)
    facts = read_facts(directory)
    failed = list_errors(directory) if errors else []
    if as_json:
        listed = [{"path": str(error.path), "reason": error.reason} for error in failed]
        console.emit_json("info/1", {**facts.to_json(), **({"error_files": listed} if errors else {})})
        return
    if errors:
        for error in failed:
            console.emit(f"{error.path}\t{error.reason}")
        return
    _show_facts(facts)


def verify(
    index: options.IndexOption = None,
    deep: Annotated[bool, options.flag("--deep", help="Read every byte and compare checksums.")] = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Check that an index agrees with itself; exit 6 when it does not. Changes nothing.

    Example: dinokit verify --deep
    """
    from dinov2kit.indexes import find_index, verify

    directory = find_index(index)
    with console.progress(quiet=quiet) as bars:
        task = bars.add_task("Checking", total=None, note="")
        found = verify(
            directory, deep=deep, advance=lambda done, total: bars.update(task, completed=done, total=total)
        )
    if as_json:
        checks = [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in found.checks]
        console.emit_json("verify/1", {"index": str(directory), "ok": found.ok, "checks": checks})
    else:
        for check in found.checks:
            console.emit(f"{'ok    ' if check.ok else 'FAILED'}  {check.name:<12} {check.detail}")
    if not found.ok:
        console.say("the index is damaged; make it whole with: dinokit repair")
        raise typer.Exit(console.INDEX)


def repair(
    index: options.IndexOption = None,
    wait: WaitOption = 0.0,
    as_json: options.JsonOption = False,
) -> None:
    """Rebuild a lost or damaged manifest from the descriptors, and set damaged shards aside.

    Nothing is deleted: what is damaged is renamed to .bak. Afterwards run dinokit index again: it finds
    removed and moved photos, and describes those whose descriptors are lost.

    Example: dinokit repair -i photos.idx
    """
    from dinov2kit.indexes import find_index, repair

    done = repair(find_index(index), wait=wait)
    if as_json:
        facts = {"rebuilt": done.rebuilt, "backup": done.backup, "items": done.items, "torn": done.torn}
        console.emit_json("repair/1", {**facts, "lost": [str(path) for path in done.lost]})
        return
    for path in done.lost:
        console.emit(f"lost\t{path}")
    manifest = "rebuilt" if done.rebuilt else "sound"
    console.say(f"manifest {manifest}, {done.items:,} photos, {len(done.torn)} damaged shards set aside")
    if done.backup is not None:
        console.say(f"the old manifest is kept as {done.backup}")
    if done.rebuilt or done.torn:
        console.say("now run dinokit index again to find what was removed, moved or lost")


def compact(
    index: options.IndexOption = None,
    wait: WaitOption = 0.0,
    as_json: options.JsonOption = False,
) -> None:
    """Drop the descriptors of removed photos and merge small files. Searching goes on meanwhile.

    The replaced files stay for an hour for searches that are running; the next command that writes the index
    deletes them then.

    Example: dinokit compact
    """
    from dinov2kit.indexes import compact, find_index

    done = compact(find_index(index), wait=wait)
    if as_json:
        facts = {"shards_before": done.shards_before, "shards_after": done.shards_after}
        freed = {"rows_dropped": done.rows_dropped, "bytes_retired": done.bytes_retired}
        console.emit_json("compact/1", {**facts, **freed})
        return
    console.say(
        f"{done.shards_before} -> {done.shards_after} shards, {done.rows_dropped:,} removed photos dropped,"
        f" {done.bytes_retired / 1e6:,.1f} MB replaced"
    )


def export(
    kind: Annotated[Format, typer.Argument(metavar="npy|parquet", help="Kind of file.")],
    out: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write.")],
    index: options.IndexOption = None,
    precision: Annotated[
        Precision, typer.Option(metavar="fp16|fp32", help="Numbers; the index holds fp16.")
    ] = Precision.fp16,
    overwrite: Annotated[bool, options.flag("--overwrite", help="Replace existing files.")] = False,
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Write all descriptors for other programs, in the order of their ids.

    npy gives a matrix and, beside it, a .jsonl file with id, path and facts of each row; parquet gives one
    table of everything.

    Example: dinokit export npy photos.npy
    """
    from dinov2kit.indexes import Snapshot, export_npy, export_parquet, find_index

    write = export_npy if kind is Format.npy else export_parquet
    with Snapshot.open(find_index(index)) as snapshot, console.progress(quiet=quiet) as bars:
        task = bars.add_task("Writing", total=len(snapshot), note=out.name)
        files = write(
            snapshot,
            out,
            precision=precision.value,
            overwrite=overwrite,
            advance=lambda rows: bars.advance(task, rows),
        )
        rows, dim = len(snapshot), snapshot.dim
    if as_json:
        console.emit_json("export/1", {"files": [str(path) for path in files], "rows": rows, "dim": dim})
    elif not quiet:
        console.say(f"{rows:,} x {dim} in {', '.join(str(path) for path in files)}")


def _show_facts(facts: Facts) -> None:
    """Print the facts as a table of two columns."""
    model = facts.card.model
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    faiss = facts.generation
    lines = {
        "index": str(facts.directory),
        "model": f"{model.name} ({model.dim} dims, weights {model.weights_sha256[:12]}, {model.pooling})",
        "fingerprint": model.fingerprint,
        "folders": "\n".join(str(root) for root in facts.roots) or "none yet",
        "photos": f"{facts.items:,}",
        "removed": f"{facts.dead:,} still on disk" + ("; dinokit compact drops them" if facts.dead else ""),
        "errors": f"{facts.errors:,} of {facts.files:,} files" + ("; see --errors" if facts.errors else ""),
        "on disk": f"{facts.bytes_on_disk / 1e6:,.1f} MB in {facts.shards} shards",
        "faiss": f"{faiss['name']} {faiss.get('factory', '')}".strip() if faiss else "none; search is exact",
        "created": f"{facts.card.created} by dinov2kit {facts.card.written_by}, schema {facts.card.schema}",
        "last run": str(facts.last_run["ended"]) if facts.last_run else "never",
    }
    for name, said in lines.items():
        table.add_row(name, Text(said.encode("utf-8", "backslashreplace").decode()))
    for reason, count in facts.reasons[:5]:
        table.add_row("", Text(f"{count:,} x {reason}", style="dim"))
    console.show_table(table)


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    for command in (info, verify, repair, compact, export):
        app.command(rich_help_panel="Photos")(command)
