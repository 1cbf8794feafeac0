"""Descriptors that were made elsewhere, as items of an index: NumPy with its facts, or Parquet.

The files of this project carry their model and what is known of each photo. Files of others need a name for
their model, and a path for each row; what else they lack is taken from the file on disk, if it is there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16

from dinov2kit.errors import ArgumentError
from dinov2kit.identity import ModelIdentity

from .ann import refresh
from .contents import digest_content, read_stat
from .export import load_pyarrow
from .layout import Layout, check_model, read_card
from .lean import Piece
from .merging import put_pieces
from .records import Row, Watch, as_stored
from .store import Store

_ROWS = 8192
_FACTS = ("path", "width", "height", "bytes", "mtime_ns", "taken_at", "hash")
_UNIT = 2e-3  # rows of fp16 that are this near to length 1 are taken as they are


@dataclass(frozen=True)
class Import:
    """What `import_descriptors` did.

    Attributes:
        directory: the index.
        items: photos that came in.
        absent: how many of their files are not on this disk.
        model: name of their model.
    """

    directory: Path
    items: int
    absent: int
    model: str


@dataclass(frozen=True)
class _Source:
    """Rows to import: how many, their model if they say it, and their portions of facts and descriptors."""

    n: int
    model: ModelIdentity | None
    dim: int
    pieces: Iterator[tuple[Sequence[Mapping[str, Any]], Float[np.ndarray, "n dim"]]]
    paths: list[Path]


def import_descriptors(
    directory: Path,
    source: Path,
    *,
    name: str | None = None,
    watch: Watch | None = None,
) -> Import:
    """Put descriptors into an index, which is made if need be. A path that it has gets a new item.

    Args:
        directory: the index.
        source: ``.parquet`` with the columns `path` and `descriptor`, or ``X.npy`` beside ``X.jsonl`` (an
            object with `path` per row) or ``X.npy.json`` (`paths`), as `export_npy` and `dinokit embed` do.
            Relative paths begin at the current folder. Taken where given: `width`, `height`, `bytes`,
            `mtime_ns`, `taken_at` and `hash` (of the content).
        name: of the model, where the file does not say it; images cannot be described with it.
        watch: called with the stage of the work.

    Raises:
        ArgumentError: the file cannot be read, lacks its paths or its model, or a row is not finite or zero.
        StoreMismatch: the index was made with another model.
        StoreError: the index cannot be written; whole portions that came before stay.
        DependencyError: pyarrow is missing.
    """
    found = _open(source)
    model = found.model or _foreign(source, name, found.dim)
    if not Layout(directory).card.exists():
        Store.create(directory, model)
    check_model(read_card(Layout(directory)), model)
    with Store.open(directory) as store:
        known = [root.path for root in store.roots()]
        folder = _common_folder(found.paths)
        counts = {"absent": 0}
        pieces = map(partial(_piece, known, folder, source, counts), _numbered(found.pieces))
        items = put_pieces(store, pieces, total=found.n, watch=watch)
        refresh(store, watch=watch)
    return Import(directory, items, counts["absent"], model.name)


def _open(source: Path) -> _Source:
    if not source.is_file():
        raise ArgumentError(f"there is no file {source}")
    if source.suffix == ".parquet":
        return _open_parquet(source)
    if source.suffix == ".npy":
        return _open_npy(source)
    raise ArgumentError(f"{source} is neither .npy nor .parquet")


def _open_npy(source: Path) -> _Source:
    try:
        matrix = np.load(source, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArgumentError(f"{source} is no NumPy file: {error}") from error
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise ArgumentError(f"{source} holds {matrix.dtype} {matrix.shape}; wanted floats (n, dim)")
    sidecar = source.with_name(source.name + ".json")
    said = _read_json(sidecar) if sidecar.is_file() else {}
    lines = source.with_suffix(".jsonl")
    if lines.is_file():
        facts = [_object(text, lines, number) for number, text in enumerate(_lines(lines), 1)]
    elif "paths" in said:
        facts = [{"path": path} for path in said["paths"]]
    else:
        raise ArgumentError(
            f"nothing says which file each row of {source} belongs to",
            hint=f'write {lines} beside it: one line {{"path": "…"}} for each row',
        )
    if len(facts) != len(matrix):
        raise ArgumentError(f"{source} has {len(matrix):,} rows, but there are {len(facts):,} paths")
    pieces = ((facts[at : at + _ROWS], np.asarray(matrix[at : at + _ROWS])) for at in _starts(len(matrix)))
    model = ModelIdentity.from_json(said["model"]) if "model" in said else None
    return _Source(len(matrix), model, matrix.shape[1], pieces, [_path(fact, source) for fact in facts])


def _open_parquet(source: Path) -> _Source:
    pyarrow, parquet = load_pyarrow()
    try:
        file = parquet.ParquetFile(source)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ArgumentError(f"{source} is no Parquet file: {error}") from error
    columns = file.schema_arrow
    if not {"path", "descriptor"} <= set(columns.names):
        raise ArgumentError(f"{source} has the columns {', '.join(columns.names)}; wanted path, descriptor")
    metadata = columns.metadata or {}
    said = metadata.get(b"dinov2kit.model") or metadata.get(b"dinokit.model")
    names = [name for name in _FACTS if name in columns.names]
    paths = [_path({"path": path}, source) for path in file.read(["path"])["path"].to_pylist()]

    def pieces() -> Iterator[tuple[list[Mapping[str, Any]], Float[np.ndarray, "n dim"]]]:
        for batch in file.iter_batches(_ROWS, columns=[*names, "descriptor"]):
            lists = batch.column(batch.schema.get_field_index("descriptor"))
            flat = lists.flatten().to_numpy(zero_copy_only=False)
            if not len(batch) or len(flat) % len(batch):
                raise ArgumentError(f"the descriptors of {source} differ in length")
            facts = batch.select(names).to_pylist()
            yield facts, flat.reshape(len(batch), -1)

    first = next(file.iter_batches(1, columns=["descriptor"]), None)
    dim = len(first.column(0)[0]) if first is not None and len(first) else 0
    model = ModelIdentity.from_json(json.loads(said)) if said else None
    return _Source(len(paths), model, dim, pieces(), paths)


def _foreign(source: Path, name: str | None, dim: int) -> ModelIdentity:
    """Return the identity of a model of which only the name is known."""
    if name is None:
        raise ArgumentError(
            f"{source} does not say which model made its descriptors", hint="name the model with --name"
        )
    return ModelIdentity(name, "", dim, "imported", {"name": name})


def _numbered(
    pieces: Iterator[tuple[Sequence[Mapping[str, Any]], Float[np.ndarray, "n dim"]]],
) -> Iterator[tuple[int, Sequence[Mapping[str, Any]], Float[np.ndarray, "n dim"]]]:
    first = 0
    for facts, descriptors in pieces:
        yield first, facts, descriptors
        first += len(facts)


def _piece(
    known: list[Path],
    folder: Path,
    source: Path,
    counts: dict[str, int],
    numbered: tuple[int, Sequence[Mapping[str, Any]], Float[np.ndarray, "n dim"]],
) -> Piece:
    """Return a portion as a store keeps it, and count the files that are not there."""
    first, facts, descriptors = numbered
    lengths = np.linalg.norm(descriptors.astype(np.float64), axis=1)
    wrong = ~(np.isfinite(lengths) & (lengths > 0))
    if wrong.any():
        raise ArgumentError(f"row {first + int(np.argmax(wrong))} of {source} is not finite, or zero")
    as_it_is = descriptors.dtype == np.float16 and bool((np.abs(lengths - 1) < _UNIT).all())
    dim = descriptors.shape[1]
    rows: Float16[np.ndarray, "n dim"] = (
        np.ascontiguousarray(descriptors)
        if as_it_is
        else np.stack([as_stored(row.astype(np.float32), dim) for row in descriptors])
    )
    made = [_row(fact, _path(fact, source), known, folder) for fact in facts]
    counts["absent"] += sum(not there for _, there in made)
    return [row for row, _ in made], rows


def _row(fact: Mapping[str, Any], path: Path, known: list[Path], folder: Path) -> tuple[Row, bool]:
    """Return what is kept of a photo, and whether its file is there."""
    owners = [root for root in known if root in path.parents]
    root = min(owners, key=lambda owner: len(owner.parts), default=folder)
    stat = read_stat(path)
    digest = bytes.fromhex(str(fact["hash"])) if fact.get("hash") else digest_content(path)
    if isinstance(digest, OSError):  # what nobody can read is equal to nothing but itself
        digest = hashlib.blake2b(b"not read: " + os.fsencode(path), digest_size=16).digest()
    row = Row(
        id=0,
        digest=digest,
        size=int(fact.get("bytes") or (stat.size if stat else 0)),
        mtime_ns=int(fact.get("mtime_ns") or (stat.mtime_ns if stat else 0)),
        inode=stat.inode if stat else 0,
        width=int(fact.get("width") or 0),
        height=int(fact.get("height") or 0),
        orientation=1,
        taken_at=fact.get("taken_at") or None,
        root=os.fsencode(root),
        relpath=os.fsencode(path.relative_to(root)),
    )
    return row, stat is not None


def _common_folder(paths: list[Path]) -> Path:
    """Return the folder that all files lie in."""
    if not paths:
        return Path("/")
    folder = Path(os.path.commonpath(paths))
    return folder.parent if folder in paths else folder


def _path(fact: Mapping[str, Any], source: Path) -> Path:
    """Return the absolute path of a row."""
    path = fact.get("path")
    if not isinstance(path, str) or not path:
        raise ArgumentError(f"a row of {source} has no path")
    return Path(os.path.normpath(Path(path).absolute()))


def _starts(n: int) -> range:
    return range(0, n, _ROWS)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    return _object("\n".join(_lines(path)), path, 1)


def _object(text: str, path: Path, line: int) -> dict[str, Any]:
    try:
        said = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"{path}, line {line}: {error}") from error
    if not isinstance(said, dict):
        raise ArgumentError(f"{path}, line {line}: wanted an object, got {type(said).__name__}")
    return said
