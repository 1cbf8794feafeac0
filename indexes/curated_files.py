"""The chosen photos as a file: JSON Lines, Parquet, a list of paths, or a tar in the layout of webdataset.

The same rows give the same bytes: no file holds a time or a user. Files appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from dinov2kit.contents import find_place, open_content
from dinov2kit.errors import ArgumentError, DependencyError, ImageError
from dinov2kit.files import written_whole

from .contents import read_stat
from .curate_sets import Queries
from .snapshot import Photo, Snapshot

SUFFIXES = (".jsonl", ".parquet", ".txt", ".tar")
_ROWS = 8192

Row = dict[str, object]
Unreadable = list[tuple[Path, str]]


@dataclass(frozen=True)
class Chosen:
    """What a mode chose, a row per photo.

    Attributes:
        ids: the photos.
        score: cosine with the query, or with the centroid of the cluster; NaN without either.
        rank: which neighbour of its query it is, from 1; 0 without a query.
        query: place of its query; -1 without one.
        query_set: place of its query set; -1 without one.
        cluster: labels of its clusters, the top level first.
    """

    ids: Int64[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    rank: Int64[np.ndarray, " n"]
    query: Int64[np.ndarray, " n"]
    query_set: Int64[np.ndarray, " n"]
    cluster: Int64[np.ndarray, "n levels"]

    @classmethod
    def of(cls, ids: Int64[np.ndarray, " n"], **columns: np.ndarray) -> Chosen:
        """Make rows of which only some columns have a meaning."""
        none: dict[str, np.ndarray] = {
            "score": np.full(len(ids), np.nan, np.float32),
            "rank": np.zeros(len(ids), np.int64),
            "query": np.full(len(ids), -1),
            "query_set": np.full(len(ids), -1),
            "cluster": np.zeros((len(ids), 0), np.int64),
        }
        return cls(ids, **{**none, **columns})

    def __len__(self) -> int:
        return len(self.ids)


def check_out(out: Path, *, overwrite: bool) -> None:
    """Refuse a file that cannot be written, before any work.

    Raises:
        ArgumentError: unknown suffix, no such folder, or the file exists.
        DependencyError: pyarrow is missing.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"{out} has no suffix that can be written; wanted one of {', '.join(SUFFIXES)}")
    check_free(out, overwrite=overwrite)
    if out.suffix.lower() == ".parquet":
        _check_pyarrow()


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse a file that exists, or whose folder does not.

    Raises:
        ArgumentError: it is so.
    """
    if path.exists() and not overwrite:
        raise ArgumentError(f"{path} exists", hint="name another file, or add --overwrite")
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"cannot write {path}: there is no folder {path.parent}")


def write_chosen(
    out: Path,
    snapshot: Snapshot,
    queries: Queries,
    chosen: Chosen,
    mode: str,
    advance: Callable[[int], None] = lambda count: None,
) -> Unreadable:
    """Write the chosen photos, each with where it comes from; see `docs/formats.md` for the rows.

    Args:
        out: ``.jsonl``, ``.parquet``, ``.txt`` (paths only) or ``.tar`` (the photos too).
        snapshot: the pool.
        queries: what was looked for.
        chosen: the rows.
        mode: written into each row.
        advance: called with the rows written by each step.

    Returns: of a tar the photos that could not be copied, and why; they are left out.

    Raises:
        ArgumentError: the file cannot be written, or a path cannot stand in a list.
    """
    write = {".jsonl": _write_jsonl, ".parquet": _write_parquet, ".txt": _write_txt, ".tar": _write_tar}

    def blocks() -> Iterator[tuple[list[Photo], list[Row]]]:
        for start in range(0, len(chosen), _ROWS):
            places = np.arange(start, min(start + _ROWS, len(chosen)))
            photos = snapshot.photos(chosen.ids[places])
            yield photos, _rows(photos, snapshot.layout.directory.name, queries, chosen, mode, places)
            advance(len(places))

    with written_whole(out) as temporary:
        return write[out.suffix.lower()](temporary, blocks())


def _rows(
    photos: list[Photo],
    source: str,
    queries: Queries,
    chosen: Chosen,
    mode: str,
    places: Int64[np.ndarray, " k"],
) -> list[Row]:
    asked = chosen.query[places]
    names = dict(zip(asked[asked >= 0].tolist(), queries.names(asked[asked >= 0]), strict=True))
    rows = []
    for place, photo in zip(places.tolist(), photos, strict=True):
        query = int(chosen.query[place])
        query_set = int(chosen.query_set[place])
        item, path = names.get(query, (None, None))
        score = float(chosen.score[place])
        rows.append(
            {
                "id": photo.id,
                "path": str(photo.path),
                "source": source,
                "mode": mode,
                "query_set": queries.sets[query_set].name if query_set >= 0 else None,
                "query_id": item,
                "query": None if path is None else str(path),
                "rank": int(chosen.rank[place]) or None,
                "score": None if math.isnan(score) else round(score, 6),
                "cluster": chosen.cluster[place].tolist(),
            }
        )
    return rows


def _write_jsonl(path: Path, blocks: Iterator[tuple[list[Photo], list[Row]]]) -> Unreadable:
    with path.open("w", encoding="utf-8") as file:
        for _, rows in blocks:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return []


def _write_txt(path: Path, blocks: Iterator[tuple[list[Photo], list[Row]]]) -> Unreadable:
    with path.open("wb") as file:
        for photos, _ in blocks:
            for photo in photos:
                line = os.fsencode(photo.path)
                if b"\n" in line:
                    raise ArgumentError(
                        f"the path {photo.path!s:.200} has a line break, and cannot stand in a list",
                        hint="write .jsonl instead",
                    )
                file.write(line + b"\n")
    return []


def _write_parquet(path: Path, blocks: Iterator[tuple[list[Photo], list[Row]]]) -> Unreadable:
    import pyarrow
    import pyarrow.parquet

    text, number = pyarrow.string(), pyarrow.int64()
    schema = pyarrow.schema(
        [
            ("id", number), ("path", text), ("source", text), ("mode", text), ("query_set", text),
            ("query_id", number), ("query", text), ("rank", number), ("score", pyarrow.float64()),
            ("cluster", pyarrow.list_(number)),
        ]
    )  # fmt: skip
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for _, rows in blocks:
            for row in rows:  # Parquet text is UTF-8; other bytes of a path become escapes
                for name in ("path", "source", "query_set", "query"):
                    if row[name] is not None:
                        row[name] = str(row[name]).encode("utf-8", "backslashreplace").decode()
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
    return []


def _write_tar(path: Path, blocks: Iterator[tuple[list[Photo], list[Row]]]) -> Unreadable:
    """Write each photo as it is on disk, and its row beside it; what has changed since is left out."""
    unreadable: Unreadable = []
    number = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for photos, rows in blocks:
            for photo, row in zip(photos, rows, strict=True):
                key, number = f"{number:09d}", number + 1
                try:
                    content, ending = _read(photo)
                except OSError as error:
                    unreadable.append((photo.path, error.strerror or str(error)))
                    continue
                except ImageError as error:
                    unreadable.append((photo.path, error.message))
                    continue
                _add(tar, f"{key}.{ending}", content)
                _add(tar, f"{key}.json", json.dumps(row).encode())
    return unreadable


def _read(photo: Photo) -> tuple[bytes, str]:
    """Return the content of a photo and the suffix for it; of a frame of a video, a TIFF file.

    Raises:
        OSError: it cannot be read.
        ImageError: it has changed, or is damaged.
    """
    place = find_place(photo.path)
    with open_content(photo.path) as file:
        content = file.read()
    if place is not None and place.time is not None:
        stat = read_stat(photo.path)
        same = stat is not None and (stat.size, stat.mtime_ns) == (photo.size, photo.mtime_ns)
        ending = "tif"
    else:
        same = hashlib.blake2b(content, digest_size=16).digest() == photo.digest
        ending = os.fsencode(photo.path.suffix.lower()[1:]).decode("ascii", "replace") or "img"
    if not same:
        raise ImageError("it has changed since it was indexed")
    return content, ending


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner 0, time 0
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _check_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "Parquet needs the package pyarrow", hint="pip install 'dinov2kit[parquet]'"
        ) from error
