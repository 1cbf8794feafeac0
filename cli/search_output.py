"""What `dinokit search` prints and writes: tables, lines, JSON, CSV, pictures, copies of the photos."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from . import console, preview

if TYPE_CHECKING:
    from dinov2kit.indexes import Gathered, Hit, Index, Question, Reranked

BAR = 12  # characters
SHOWN_QUERIES = 4


@dataclass(frozen=True)
class Answer:
    """What was asked on the command line, and what was found.

    Attributes:
        asked: the queries, as they were written.
        unlike: those that the hits shall be unlike.
        question: the same made ready.
        hits: what was found, best first.
        reranked: the same with what re-ranking found out; None when it was not asked for.
        seconds: that it took.
    """

    asked: list[str]
    unlike: list[str]
    question: Question
    hits: list[Hit]
    reranked: list[Reranked] | None
    seconds: float

    @property
    def rows(self) -> list[dict[str, object]]:
        """What is known of each hit."""
        found: Sequence[Hit | Reranked] = self.reranked if self.reranked is not None else self.hits
        return [one.to_json() for one in found]

    def to_json(self, agg: str) -> dict[str, object]:
        """Return the answer as `json.dumps` takes it."""
        return {
            "query": self.asked,
            "query_ids": list(self.question.ids),
            "not": self.unlike,
            "agg": agg,
            "seconds": round(self.seconds, 6),
            "hits": self.rows,
        }


def print_paths(answers: list[Answer], *, null: bool) -> None:
    """Print the paths alone, each ended by a newline or by a NUL byte."""
    for answer in answers:
        for hit in answer.hits:
            console.emit(str(hit.path), end="\0" if null else "\n")


def print_json(
    photos: Index, answers: list[Answer], *, each: bool, lines: bool, agg: str, gathered: Gathered | None
) -> None:
    """Print one document; as lines, one for each query with `each`, else one for each hit."""
    if lines and not each:
        for rank, row in enumerate(answers[0].rows, 1):
            console.emit_json("hit/1", {"rank": rank, **row}, indent=None)
        return
    documents = [answer.to_json(agg) for answer in answers]
    if lines:
        for document in documents:
            console.emit_json("answer/1", document, indent=None)
        return
    about: dict[str, Any] = {"index": str(photos.directory), "model": photos.model, "items": len(photos)}
    about |= {"answers": documents} if each else documents[0]
    console.emit_json("search/1", {**about, **({} if gathered is None else {"gathered": gathered.to_json()})})


def print_csv(answers: list[Answer], *, each: bool) -> None:
    """Print a table of comma-separated values with a line of names; with `each` it begins with the query."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    named = False
    for answer in answers:
        for rank, row in enumerate(answer.rows, 1):
            line = {**({"query": answer.asked[0]} if each else {}), "rank": rank, **row}
            if not named:
                out.writerow(line)
                named = True
            out.writerow(str(value).lower() if isinstance(value, bool) else value for value in line.values())
    console.emit(text.getvalue(), end="")


def print_plain(answers: list[Answer], *, each: bool) -> None:
    """Print "score<TAB>path", with `each` also the query."""
    for answer in answers:
        for hit in answer.hits:
            console.emit(f"{hit.score:.6f}\t{hit.path}" + (f"\t{answer.asked[0]}" if each else ""))


def print_tables(answers: list[Answer], kind: preview.Preview) -> None:
    """Print a table of each answer for people, and the photos themselves below it."""
    for answer in answers:
        console.show_table(_table(answer, named=len(answers) > 1))
        if kind != "none":
            from dinov2kit.indexes import thumbnail

            images = [thumbnail(hit.path) for hit in answer.hits]
            preview.show_images(images, [f"{hit.score:.3f} {hit.path.name}" for hit in answer.hits], kind)


def _table(answer: Answer, *, named: bool) -> Table:
    table = Table(box=None, pad_edge=False, title_justify="left")
    table.title = ", ".join(answer.asked) if named else None
    for name in ("#", *(("inliers", "matches") if answer.reranked is not None else ()), "score"):
        table.add_column(name, justify="right")
    for name in ("", "photo", "size", "taken"):
        table.add_column(name, overflow="fold")
    scores = [hit.score for hit in answer.hits]
    for rank, hit in enumerate(answer.hits, 1):
        path = str(hit.path).encode("utf-8", "backslashreplace").decode()
        checked = answer.reranked[rank - 1] if answer.reranked is not None else None
        counts = () if checked is None else (_count(checked.inliers), _count(checked.matches))
        table.add_row(
            str(rank),
            *counts,
            f"{hit.score:.3f}",
            Text(_bar(hit.score, scores), style="cyan"),
            Text(path, style="dim strike" if hit.gone else ""),
            f"{hit.width}x{hit.height}",
            (hit.taken_at or "")[:10],
        )
    return table


def _count(number: int | None) -> str:
    return "" if number is None else str(number)


def _bar(score: float, scores: list[float]) -> str:
    """Draw a score between the lowest and the highest; from 0 to 1 all bars would look the same."""
    low, high = min(scores), max(scores)
    share = (score - low) / (high - low) if high > low else 1.0
    return "━" * max(1, round(BAR * share))


def write_pictures(answer: Answer, montage: Path | None, html: Path | None, *, note: str) -> None:
    """Write the contact sheet and the page that were asked for."""
    if montage is None and html is None:
        return
    from dinov2kit.indexes import query_name, write_montage, write_page

    shown = answer.question.sources[:SHOWN_QUERIES]
    if montage is not None:
        write_montage(montage, shown, answer.hits)
    if html is not None:
        title = "Photos like " + ", ".join(query_name(source) for source in shown)
        write_page(html, shown, answer.hits, title=title, note=note)


def say_what_was_done(
    answers: list[Answer], note: str, written: list[Path], gathered: Gathered | None, folder: Path | None
) -> None:
    """Say on stderr what was asked, found and written."""
    for answer in answers:
        if answer.question.ids:
            known = ", ".join(f"#{number}" for number in answer.question.ids[:5])
            console.say(f"the query is {known} of the index")
        seconds = f"{1000 * answer.seconds:,.0f} ms"
        console.say(f"{len(answer.hits)} of {note} · {seconds}")
        for found in answer.reranked or []:
            if found.note is not None:
                console.warn(f"not compared: {found.hit.path}: {found.note}")
    for path in written:
        console.say(f"wrote {path}")
    if gathered is not None:
        console.say(f"{len(gathered.written)} photos in {folder}")
