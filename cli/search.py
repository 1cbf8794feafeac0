"""`dinokit search`: the photos nearest to an image."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from . import console, options, preview

if TYPE_CHECKING:
    from dinov2kit.indexes import Hit, Index, Question
    from dinov2kit.views import Region

BAR = 12  # characters
SHOWN_QUERIES = 4


def search(
    queries: Annotated[
        list[str],
        typer.Argument(metavar="QUERY...", help="Image, folder, id:NUMBER, or - for an image on stdin."),
    ],
    index: options.IndexOption = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many photos.")] = 10,
    each: Annotated[
        bool, options.flag("--each", help="Answer each query on its own, not their mean (--jsonl).")
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
        str | None,
        typer.Option(metavar="X,Y,W,H", help="Only this part of the query, in pixels or as shares below 1."),
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
    show: Annotated[
        str, typer.Option("--preview", metavar="|".join(preview.CHOICES), help="Pictures in the terminal.")
    ] = "auto",
    paths_only: Annotated[bool, options.flag("--paths", "-f", help="Print only the paths.")] = False,
    null: Annotated[
        bool, options.flag("--print0", "-0", help="Print only the paths, each ended by a NUL byte.")
    ] = False,
    jsonl: Annotated[bool, options.flag("--jsonl", help="Print one JSON object per hit or query.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="PATH", help="Where the weights of the index are.")
    ] = None,
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
    from dinov2kit.indexes import Index

    bare = paths_only or null
    _check(queries, each=each, formats=[as_json, jsonl, bare], pictures=bool(montage or html))
    kind = preview.choose_preview(show, as_json=as_json or jsonl or bare)
    part = parse_region(region) if region else None
    with Index.open(index, model=model, device=device, precision=precision) as photos:
        answers = []
        for asked in [[query] for query in queries] if each else [queries]:
            question = photos.ask([_source(query) for query in asked], region=part)
            started = time.perf_counter()
            hits = photos.answer(
                question,
                k,
                where=where,
                min_score=min_score,
                unique=unique,
                include_self=not exclude_self,
                existing=existing,
                exact=exact,
                nprobe=nprobe,
            )
            answers.append(Answer(asked, question, hits, time.perf_counter() - started))
        note = f"{len(photos):,} photos, {photos.model}"
        if bare:
            for hit in (hit for answer in answers for hit in answer.hits):
                console.emit(str(hit.path), end="\0" if null else "\n")
        elif as_json or jsonl:
            _print_json(photos, answers, each=each, lines=jsonl)
        elif console.on_terminal():
            _print_tables(answers, kind)
        else:
            _print_plain(answers, each=each)
    _write_pictures(answers[0], montage, html, note=note)
    if not quiet:
        _say_what_was_done(answers, note, [path for path in (montage, html) if path])


@dataclass(frozen=True)
class Answer:
    """What was asked on the command line, and what was found."""

    asked: list[str]
    question: Question
    hits: list[Hit]
    seconds: float


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


def _check(queries: list[str], *, each: bool, formats: list[bool], pictures: bool) -> None:
    from dinov2kit.errors import ArgumentError

    if sum(formats) > 1:
        raise ArgumentError("--json, --jsonl and --paths or --print0 exclude each other")
    if queries.count("-") > 1:
        raise ArgumentError("- stands for one image on stdin, and can be given once")
    if each and pictures:
        raise ArgumentError(
            "--montage and --html show one answer", hint="leave --each out, or ask one by one"
        )


def _source(query: str) -> str | bytes:
    from dinov2kit.errors import ImageError

    if query != "-":
        return query
    content = sys.stdin.buffer.read()
    if not content:
        raise ImageError("nothing came on stdin", hint="for instance: dinokit search - < cat.jpg")
    return content


def _print_json(photos: Index, answers: list[Answer], *, each: bool, lines: bool) -> None:
    """Print one document; as lines, one for each query with `each`, else one for each hit."""
    if lines and not each:
        for rank, hit in enumerate(answers[0].hits, 1):
            console.emit_json("hit/1", {"rank": rank, **hit.to_json()}, indent=None)
        return
    documents = [
        {
            "query": answer.asked,
            "query_ids": list(answer.question.ids),
            "seconds": round(answer.seconds, 6),
            "hits": [hit.to_json() for hit in answer.hits],
        }
        for answer in answers
    ]
    if lines:
        for document in documents:
            console.emit_json("answer/1", document, indent=None)
        return
    about = {"index": str(photos.directory), "model": photos.model, "items": len(photos)}
    console.emit_json("search/1", {**about, **({"answers": documents} if each else documents[0])})


def _print_plain(answers: list[Answer], *, each: bool) -> None:
    for answer in answers:
        for hit in answer.hits:
            console.emit(f"{hit.score:.6f}\t{hit.path}" + (f"\t{answer.asked[0]}" if each else ""))


def _print_tables(answers: list[Answer], kind: preview.Preview) -> None:
    for answer in answers:
        table = Table(box=None, pad_edge=False, title_justify="left")
        table.title = ", ".join(answer.asked) if len(answers) > 1 else None
        for name in ("#", "score"):
            table.add_column(name, justify="right")
        for name in ("", "photo", "size", "taken"):
            table.add_column(name, overflow="fold")
        scores = [hit.score for hit in answer.hits]
        for rank, hit in enumerate(answer.hits, 1):
            path = str(hit.path).encode("utf-8", "backslashreplace").decode()
            table.add_row(
                str(rank),
                f"{hit.score:.3f}",
                Text(_bar(hit.score, scores), style="cyan"),
                Text(path, style="dim strike" if hit.gone else ""),
                f"{hit.width}x{hit.height}",
                (hit.taken_at or "")[:10],
            )
        console.show_table(table)
        if kind != "none":
            from dinov2kit.indexes import thumbnail

            images = [thumbnail(hit.path) for hit in answer.hits]
            preview.show_images(images, [f"{hit.score:.3f} {hit.path.name}" for hit in answer.hits], kind)


def _bar(score: float, scores: list[float]) -> str:
    """Draw a score between the lowest and the highest; from 0 to 1 all bars would look the same."""
    low, high = min(scores), max(scores)
    share = (score - low) / (high - low) if high > low else 1.0
    return "━" * max(1, round(BAR * share))


def _write_pictures(answer: Answer, montage: Path | None, html: Path | None, *, note: str) -> None:
    if montage is None and html is None:
        return
    from dinov2kit.indexes import query_name, write_montage, write_page

    shown = answer.question.sources[:SHOWN_QUERIES]
    if montage is not None:
        write_montage(montage, shown, answer.hits)
    if html is not None:
        title = "Photos like " + ", ".join(query_name(source) for source in shown)
        write_page(html, shown, answer.hits, title=title, note=note)


def _say_what_was_done(answers: list[Answer], note: str, written: list[Path]) -> None:
    for answer in answers:
        if answer.question.ids:
            known = ", ".join(f"#{number}" for number in answer.question.ids[:5])
            console.say(f"the query is {known} of the index")
        seconds = f"{1000 * answer.seconds:,.0f} ms"
        console.say(f"{len(answer.hits)} of {note} · {seconds}")
    for path in written:
        console.say(f"wrote {path}")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(rich_help_panel="Photos")(search)
