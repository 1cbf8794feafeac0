"""`dinokit search`: the photos nearest to an image."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console, options, preview, search_output
from .search_output import Answer

if TYPE_CHECKING:
    from dinov2kit.indexes import Gathered, Index
    from dinov2kit.views import Region

AGGREGATIONS = ("mean", "max", "min", "rrf")
GEOMETRIES = ("homography", "similarity", "affine", "fundamental", "none")


def search(
    queries: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUERY...",
            help="Image, folder, id:NUMBER, or - for an image on stdin; 2:cat.jpg counts twice.",
            show_default=False,
        ),
    ] = None,
    unlike: Annotated[
        list[str] | None,
        typer.Option(
            "--not", metavar="QUERY", help="What the photos shall be unlike; repeat it for several."
        ),
    ] = None,
    vectors: Annotated[
        list[Path] | None,
        typer.Option("--vector", metavar="FILE", help="Descriptors to ask for (.npy), one or a row each."),
    ] = None,
    text: Annotated[str | None, typer.Option(hidden=True, help="Refused: there is no text encoder.")] = None,
    index: options.IndexOption = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many photos.")] = 10,
    agg: Annotated[
        str,
        typer.Option(metavar="|".join(AGGREGATIONS), help="How several queries count together."),
    ] = "mean",
    each: Annotated[
        bool, options.flag("--each", help="Answer each query on its own, not together (--jsonl).")
    ] = False,
    where: Annotated[
        str | None,
        typer.Option(metavar="SQL", help='Only photos for which this holds: "width >= 2000".'),
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(metavar="SCORE", help="Leave out lower scores (-1 to 1).")
    ] = None,
    unique: Annotated[bool, options.flag("--unique", help="Of near-duplicates only the best.")] = False,
    exclude_self: Annotated[
        bool,
        options.flag("--exclude-self/--include-self", help="Leave out the query itself when it is indexed."),
    ] = True,
    existing: Annotated[bool, options.flag("--existing", help="Leave out files that are gone.")] = False,
    region: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y,W,H",
            help="Only this part of a QUERY, in pixels or as shares below 1; once, or once for each.",
        ),
    ] = None,
    expand: Annotated[
        int, typer.Option(metavar="N", min=0, help="Ask again with the N best photos added to the query.")
    ] = 0,
    rerank: Annotated[
        int, typer.Option(metavar="N", min=0, help="Match the patches of the N best photos and reorder them.")
    ] = 0,
    geom: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="What the matches agree on: " + ", ".join(GEOMETRIES) + ".",
        ),
    ] = "homography",
    cache: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what --rerank encodes beside this .h5 file.")
    ] = None,
    exact: Annotated[bool, options.flag("--exact", help="Compare every photo.")] = False,
    nprobe: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Clusters that faiss looks at.")
    ] = None,
    montage: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Picture of the query and its hits (.jpg, .png).")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Page of the query and its hits, in one file.")
    ] = None,
    copy_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy the photos into a new folder, numbered.")
    ] = None,
    symlink_to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Link the photos in a new folder, numbered.")
    ] = None,
    show: Annotated[
        str, typer.Option("--preview", metavar="|".join(preview.CHOICES), help="Pictures in the terminal.")
    ] = "auto",
    paths_only: Annotated[bool, options.flag("--paths", "-f", help="Print only the paths.")] = False,
    null: Annotated[
        bool, options.flag("--print0", "-0", help="Print only the paths, each ended by a NUL byte.")
    ] = False,
    jsonl: Annotated[bool, options.flag("--jsonl", help="Print one JSON object per hit or query.")] = False,
    as_csv: Annotated[bool, options.flag("--csv", help="Print comma-separated values.")] = False,
    fail_if_empty: Annotated[
        bool, options.flag("--fail-if-empty", help="Exit 1 when nothing is found.")
    ] = False,
    model: options.IndexModelOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    as_json: options.JsonOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Find the photos nearest to an image; of several images, or a folder, nearest to their mean.

    The score is the cosine of two descriptors, 1 for the same picture; it is not a probability. On a terminal
    the result is a table, in a pipe "score<TAB>path".

    Example: dinokit search cat.jpg -k 20 --montage cats.jpg
    """
    given = dict(locals())
    _check(given)
    kind = preview.choose_preview(show, as_json=as_json or jsonl or as_csv or paths_only or null)
    asked = _asked(given)

    from dinov2kit.indexes import Index

    with Index.open(index, model=model, device=device, precision=precision) as photos:
        answers = [_answer(photos, one, given) for one in asked]
        gathered = _gather(answers[0], given)
        note = f"{len(photos):,} photos, {photos.model}"
        if paths_only or null:
            search_output.print_paths(answers, null=null)
        elif as_json or jsonl:
            search_output.print_json(photos, answers, each=each, lines=jsonl, agg=agg, gathered=gathered)
        elif as_csv:
            search_output.print_csv(answers, each=each)
        elif console.on_terminal():
            search_output.print_tables(answers, kind)
        else:
            search_output.print_plain(answers, each=each)
    search_output.write_pictures(answers[0], montage, html, note=note)
    if not quiet:
        written = [path for path in (montage, html) if path]
        search_output.say_what_was_done(answers, note, written, gathered, copy_to or symlink_to)
    if fail_if_empty and not any(answer.hits for answer in answers):
        raise typer.Exit(console.FAILURE)


@dataclass(frozen=True)
class Asked:
    """What is asked together: names for people, and what the library takes."""

    names: list[str]
    queries: list[Any]
    weights: list[float]
    regions: list[Region | None]


def parse_region(text: str) -> Region:
    """Read "x,y,w,h": pixels, or shares of the sides when no number is above 1."""
    from dinov2kit.errors import ArgumentError
    from dinov2kit.views import Region

    try:
        left, top, width, height = (float(part) for part in text.split(","))
    except ValueError as error:
        raise ArgumentError(
            f"{text!r} is no region", hint="write left,top,width,height: 100,80,640,480 or 0.25,0.25,0.5,0.5"
        ) from error
    return Region(left, top, width, height, relative=max(left, top, width, height) <= 1)


def parse_weighted(text: str) -> tuple[str, float]:
    """Read "2:cat.jpg" as cat.jpg that counts twice; a file of the whole name comes first."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?):(.+)", text, re.DOTALL)
    if found is None or Path(text).exists():
        return text, 1.0
    return found[2], float(found[1])


def _check(given: dict[str, Any]) -> None:
    from dinov2kit.errors import ArgumentError, check_choice

    queries, unlike = given["queries"] or [], given["unlike"] or []
    check_choice("aggregation", given["agg"], AGGREGATIONS)
    check_choice("geometry", given["geom"], GEOMETRIES)
    if given["text"] is not None:
        raise ArgumentError("DINOv2 has no text encoder", hint="ask with an image of what you look for")
    if not (queries or unlike or given["vectors"]):
        raise ArgumentError(
            "there is no QUERY", hint="name an image, a folder, id:NUMBER, or a --vector FILE"
        )
    bare = given["paths_only"] or given["null"]
    if sum([given["as_json"], given["jsonl"], given["as_csv"], bare]) > 1:
        raise ArgumentError("--json, --jsonl, --csv and --paths or --print0 exclude each other")
    if sum(parse_weighted(query)[0] == "-" for query in queries + unlike) > 1:
        raise ArgumentError("- stands for one image on stdin, and can be given once")
    if given["each"] and any(given[name] for name in ("montage", "html", "copy_to", "symlink_to")):
        raise ArgumentError(
            "--montage, --html, --copy-to and --symlink-to show one answer",
            hint="leave --each out, or ask one by one",
        )
    if given["copy_to"] and given["symlink_to"]:
        raise ArgumentError("--copy-to and --symlink-to exclude each other")
    if given["cache"] and not given["rerank"]:
        raise ArgumentError("--cache keeps what --rerank encodes; there is no --rerank")
    if len(given["region"] or []) not in (0, 1, len(queries)) or (given["region"] and not queries):
        counts = f"{len(given['region'])} --region and {len(queries)} QUERY"
        raise ArgumentError(f"there are {counts}", hint="give --region once, or once for each QUERY")
    if folder := given["copy_to"] or given["symlink_to"]:
        from dinov2kit.indexes import check_empty

        check_empty(folder)


def _asked(given: dict[str, Any]) -> list[Asked]:
    """Return what is asked together: everything, or with --each each query beside the unlike ones."""
    from dinov2kit.indexes import read_vectors

    queries, unlike = given["queries"] or [], given["unlike"] or []
    parts: list[Region | None] = [parse_region(text) for text in given["region"] or []]
    regions = parts if len(parts) > 1 else (parts or [None]) * len(queries)
    wanted: list[tuple[str, Any, float, Region | None]] = []
    for text, region in zip(queries, regions, strict=True):
        name, weight = parse_weighted(text)
        wanted.append((text, _source(name), weight, region))
    for path in given["vectors"] or []:
        rows = read_vectors(path)
        names = [str(path)] if len(rows) == 1 else [f"{path}[{number}]" for number in range(len(rows))]
        wanted += [(name, row, 1.0, None) for name, row in zip(names, rows, strict=True)]
    unwanted = [(_source(name), -weight) for name, weight in map(parse_weighted, unlike)]
    groups = [[one] for one in wanted] if given["each"] and wanted else [wanted]
    return [
        Asked(
            [name for name, *_ in group],
            [query for _, query, *_ in group] + [query for query, _ in unwanted],
            [weight for _, _, weight, _ in group] + [weight for _, weight in unwanted],
            [region for *_, region in group] + [None] * len(unwanted),
        )
        for group in groups
    ]


def _answer(photos: Index, asked: Asked, given: dict[str, Any]) -> Answer:
    question = photos.ask(asked.queries, weights=asked.weights, region=asked.regions)
    started = time.perf_counter()
    hits = photos.answer(
        question,
        max(given["k"], given["rerank"]),
        agg=given["agg"],
        expand=given["expand"],
        where=given["where"],
        min_score=given["min_score"],
        unique=given["unique"],
        include_self=not given["exclude_self"],
        existing=given["existing"],
        exact=given["exact"],
        nprobe=given["nprobe"],
    )
    reranked = None
    if given["rerank"]:
        with console.progress(quiet=given["quiet"]) as bars:
            task = bars.add_task("Matching", total=None, note="")
            reranked = photos.rerank(
                question,
                hits,
                count=given["rerank"],
                geometry=None if given["geom"] == "none" else given["geom"],
                cache=given["cache"],
                watch=lambda _, done, total: bars.update(task, completed=done, total=total),
            )[: given["k"]]
        hits = [found.hit for found in reranked]
    seconds = time.perf_counter() - started
    return Answer(asked.names, given["unlike"] or [], question, hits, reranked, seconds)


def _gather(answer: Answer, given: dict[str, Any]) -> Gathered | None:
    folder = given["copy_to"] or given["symlink_to"]
    if folder is None:
        return None
    from dinov2kit.indexes import gather

    gathered = gather(answer.hits, folder, link=given["symlink_to"] is not None)
    for path, reason in gathered.failed:
        console.warn(f"{path}: {reason}")
    return gathered


def _source(query: str) -> str | bytes:
    from dinov2kit.errors import ArgumentError, ImageError

    if re.match(r"https?://", query, re.IGNORECASE):
        raise ArgumentError(
            f"{query} is an address, and dinokit fetches nothing", hint="curl -s URL | dinokit search -"
        )
    if query != "-":
        return query
    content = sys.stdin.buffer.read()
    if not content:
        raise ImageError("nothing came on stdin", hint="for instance: dinokit search - < cat.jpg")
    return content


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Photos")(search)
