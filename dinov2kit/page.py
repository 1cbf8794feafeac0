"""A page of results in one HTML file: thumbnails inside, no script, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from dinov2kit.draw import shrink
from dinov2kit.shapes import Image

THUMBNAIL_SIDE = 360
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #18181b; --dim: #65656e;
  --shade: #f1f1f4; --accent: #2563eb }
@media (prefers-color-scheme: dark) {
  :root { --paper: #131316; --ink: #ececf0; --dim: #a0a0ab; --shade: #222227; --accent: #7aa5ff }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 78rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.45 system-ui, sans-serif }
h1 { margin: 0 0 .25rem; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere }
h2 { margin: 2rem 0 .75rem; font-size: 1rem; color: var(--dim); font-weight: 600 }
p { margin: 0; color: var(--dim) }
ul { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(13rem, 100%), 1fr));
  gap: 1.25rem 1rem; margin: 0; padding: 0; list-style: none }
figure { margin: 0 }
img { display: block; width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--shade);
  border-radius: .5rem }
.query img { outline: 3px solid var(--accent); outline-offset: 2px }
figcaption { padding-top: .45rem; font-size: .875rem; color: var(--dim); overflow-wrap: anywhere }
strong { color: var(--ink); font-size: 1rem; font-variant-numeric: tabular-nums }
.name { display: block; color: var(--ink) }
.bar { display: block; height: .25rem; margin: .3rem 0 .35rem; border-radius: 1rem; background: var(--shade) }
.bar span { display: block; height: 100%; border-radius: 1rem; background: var(--accent) }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .75rem .3rem 0; text-align: left; overflow-wrap: anywhere; vertical-align: middle }
th { color: var(--dim); font-weight: 600 }
td:last-child { min-width: 8rem }
@media print { figure { break-inside: avoid } }
"""


@dataclass(frozen=True)
class Tile:
    """One photo of a results page.

    Attributes:
        image: the photo, RGB, of any size.
        name: what stands below it, usually the file name.
        score: its cosine similarity to the query; None for a query.
        detail: a second line of small text.
        framed: `sections_page` draws a frame around it.
    """

    image: Image
    name: str
    score: float | None = None
    detail: str = ""
    framed: bool = False


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        heading: what stands above it.
        rows: a table, the heading of its columns first; a number from 0 to 1 in the last column is a bar.
        tiles: photos.
    """

    heading: str
    rows: Sequence[Sequence[str | float]] = ()
    tiles: Sequence[Tile] = ()


def results_page(title: str, queries: Sequence[Tile], hits: Sequence[Tile], *, note: str = "") -> str:
    """Return a self-contained HTML page that shows the queries and their hits, in the order given.

    Args:
        title: heading of the page.
        queries: the photos that were asked about.
        hits: the photos that were found; the bar below each compares its score with the others on the page.
        note: one sentence below the title, for instance what was searched and with which model.

    Returns:
        A document in UTF-8 with light and dark colours. Its security policy forbids scripts and any request.
    """
    scores = [hit.score for hit in hits if hit.score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    asked = "\n".join(_figure(query, None, "query") for query in queries)
    found = "\n".join(_figure(hit, _share(hit.score, low, high), "hit") for hit in hits)
    n_hits = f"{len(hits)} photo" + "s" * (len(hits) != 1)
    main = f"""<h2>Query</h2>
<ul>
{asked}
</ul>
<h2>Found: {n_hits}. The score is the cosine similarity (1 is the same), not a probability.</h2>
<ul>
{found}
</ul>"""
    return _document(title, note, main)


def sections_page(title: str, sections: Sequence[Section], *, note: str = "") -> str:
    """Return a self-contained HTML page of tables and photos under headings, in the order given.

    Args:
        title: heading of the page.
        sections: what stands on it.
        note: one sentence below the title.

    Returns:
        A document as `results_page` returns it.
    """
    parts = []
    for section in sections:
        parts.append(f"<h2>{_text(section.heading)}</h2>")
        if section.rows:
            parts.append(_table(section.rows))
        if section.tiles:
            figures = "\n".join(
                _figure(tile, None, "query" if tile.framed else "hit") for tile in section.tiles
            )
            parts.append(f"<ul>\n{figures}\n</ul>")
    return _document(title, note, "\n".join(parts))


def _document(title: str, note: str, main: str) -> str:
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<p>{_text(note)}</p>
<main>
{main}
</main>
</body>
</html>
"""


def _table(rows: Sequence[Sequence[str | float]]) -> str:
    """Return a table whose first row is its heading."""
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        cells = "".join(f"<{tag}>{_cell(value)}</{tag}>" for value in row)
        lines.append(f"<tr>{cells}</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _cell(value: str | float) -> str:
    return _text(value) if isinstance(value, str) else _bar(value)


def _bar(share: float) -> str:
    return f'<span class="bar"><span style="width:{100 * share:.0f}%"></span></span>'


def _figure(tile: Tile, share: float | None, kind: str) -> str:
    lines = [
        f'<li class="{kind}"><figure><img src="{_data_uri(tile.image)}" alt="{_text(tile.name)}"><figcaption>'
    ]
    if tile.score is not None:
        lines.append(f"<strong>{tile.score:.3f}</strong>")
    if share is not None:
        lines.append(_bar(share))
    lines.append(f'<span class="name">{_text(tile.name)}</span>')
    lines.append(_text(tile.detail))
    return "".join(lines) + "</figcaption></figure></li>"


def _share(score: float | None, low: float, high: float) -> float | None:
    """Return the length of the bar of a score: a tenth for the lowest, all for the highest."""
    if score is None:
        return None
    return 0.1 + 0.9 * (score - low) / (high - low) if high > low else 1.0


def _text(text: str) -> str:
    """Escape text for HTML; bytes of a file name that are no UTF-8 become question marks."""
    return escape(text.encode("utf-8", "replace").decode())


def _data_uri(image: Image) -> str:
    from PIL import Image as PillowImage

    buffer = io.BytesIO()
    PillowImage.fromarray(shrink(image, THUMBNAIL_SIDE)).save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
