"""Encoded images in a column of a Parquet file, as bytes or as Hugging Face data sets store them.

A row group is the least that can be read. Draws in random order read one for each image, so a file with
small row groups (a hundred images) is faster, and a tar archive much faster.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from dinov2kit.errors import DependencyError, ImageError

from .pixels import PixelRules, Pixels

PARQUET_SUFFIX = ".parquet"

_USUAL_NAMES = ("image", "jpg", "bytes")
_LABEL = "label"
_OPEN = 64  # files that a process keeps open


@dataclass(frozen=True)
class ParquetImages:
    """Encoded images in one column of a file.

    Attributes:
        file: the file.
        column: bytes, or a struct with the field bytes.
        ends: row at which each row group ends.
        rules: what becomes of the pixels.
        digest: of the name, the size and the number of rows.
        labels: the column label as text, or None.
    """

    file: Path
    column: str
    ends: Int64[np.ndarray, " groups"]
    rules: PixelRules
    digest: str
    labels: list[str] | None

    def __len__(self) -> int:
        return int(self.ends[-1])

    def name(self, index: int) -> str:
        """Return file[row]."""
        return f"{self.file}[{index}]"

    def read(self, index: int) -> Pixels:
        """Return the pixels of an image.

        Raises:
            ImageError: it cannot be read, is damaged, or does not fit.
        """
        import pyarrow

        group = int(np.searchsorted(self.ends, index, side="right"))
        try:
            column = _read_group(self.file, self.column, group, os.getpid())
            cell = column[index - (int(self.ends[group - 1]) if group else 0)].as_py()
            encoded = cell.get("bytes") if isinstance(cell, dict) else cell
            if encoded is None:
                raise ImageError("the cell is empty")
            return self.rules.decode(encoded)
        except (OSError, IndexError, pyarrow.ArrowException) as error:
            raise ImageError(f"{self.name(index)}: it cannot be read: {error}") from error
        except ImageError as error:
            raise ImageError(f"{self.name(index)}: {error.message}", hint=error.hint) from error


def parquet_images(file: Path, column: str, rules: PixelRules) -> ParquetImages:
    """Return the images of a Parquet file.

    Args:
        file: the file.
        column: which column; empty for one named image, jpg or bytes, or else the only one of bytes.
        rules: what becomes of the pixels.

    Raises:
        ImageError: the file cannot be read, has no rows, or no such column, or several.
        DependencyError: pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError("Parquet needs pyarrow", hint="pip install 'dinov2kit[parquet]'") from error
    try:
        opened = pyarrow.parquet.ParquetFile(file)
        schema, rows = opened.schema_arrow, _rows_of_groups(opened)
        chosen = _choose(file, column, schema)
        count: int = sum(rows)
        labels = None
        if _LABEL in schema.names and count:
            labels = [str(label) for label in opened.read([_LABEL], use_threads=False)[_LABEL].to_pylist()]
    except (OSError, pyarrow.ArrowException) as error:
        raise ImageError(f"{file}: it cannot be read: {error}") from error
    if not count:
        raise ImageError(f"no images in {file}: it has no rows")
    facts = f"{file.name}:{chosen} {rows} {file.stat().st_size}"
    digest = hashlib.blake2b(facts.encode(errors="surrogateescape"), digest_size=16).hexdigest()
    return ParquetImages(file, chosen, np.cumsum(rows, dtype=np.int64), rules, digest, labels)


def _choose(file: Path, column: str, schema: Any) -> str:
    """Return the name of the column that holds the images."""
    fitting = [field.name for field in schema if _holds_bytes(field.type)]
    if column:
        if column not in schema.names:
            raise ImageError(f"{file} has no column {column}; it has {', '.join(schema.names)}")
        if column not in fitting:
            raise ImageError(f"{file}:{column} holds {schema.field(column).type}; wanted encoded images")
        return column
    usual = [name for name in _USUAL_NAMES if name in fitting]
    if usual or len(fitting) == 1:
        return (usual or fitting)[0]
    if fitting:
        raise ImageError(
            f"{file} has several columns of bytes: {', '.join(fitting)}",
            hint=f"name one: {file}:{fitting[0]}",
        )
    raise ImageError(
        f"{file} has no column of encoded images, but {', '.join(schema.names)}",
        hint="wanted bytes, or a struct of bytes and path as Hugging Face data sets have",
    )


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _rows_of_groups(opened: Any) -> Sequence[int]:
    return [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]


@lru_cache(_OPEN)
def _open(file: Path, process: int) -> Any:
    """Open a file once in each process."""
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(file)


@lru_cache(1)
def _read_group(file: Path, column: str, group: int, process: int) -> Any:
    """Read a row group; the last one is kept."""
    return _open(file, process).read_row_group(group, columns=[column], use_threads=False)[column]
