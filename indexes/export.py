"""The descriptors of an index for other programs: NumPy with a JSON Lines sidecar, or Parquet.

Both are written in the order of the ids, block by block, and appear whole or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float16

from dinov2kit.errors import ArgumentError, DependencyError
from dinov2kit.files import written_whole

from .snapshot import Photo, Snapshot

Precision = Literal["fp16", "fp32"]
_ROWS = 8192


def export_npy(
    snapshot: Snapshot,
    out: Path,
    *,
    precision: Precision = "fp16",
    overwrite: bool = False,
    advance: Callable[[int], None] | None = None,
) -> tuple[Path, Path, Path]:
    """Write the descriptors as a matrix (n, dim), beside it a JSON object per row, and the model.

    Args:
        snapshot: what to write.
        out: the matrix, for instance ``photos.npy``; the facts go to ``photos.jsonl``, the model to
            ``photos.npy.json``.
        precision: fp16 as stored, or fp32.
        overwrite: replace existing files.
        advance: called with the rows written by each step.

    Returns: the paths of the matrix, of the facts and of the model.

    Raises:
        ArgumentError: a file exists, cannot be written, or has the name of the facts.
    """
    facts_path = out.with_suffix(".jsonl")
    if facts_path == out:
        raise ArgumentError(f"{out} is where the facts would go", hint=f"name it {out.with_suffix('.npy')}")
    model_path = out.with_name(out.name + ".json")
    _check_free([out, facts_path, model_path], overwrite=overwrite)
    kind = np.float16 if precision == "fp16" else np.float32
    with (
        written_whole(out) as matrix_file,
        written_whole(facts_path) as facts_file,
        written_whole(model_path) as model_file,
        matrix_file.open("wb") as matrix,
        facts_file.open("w", encoding="utf-8") as facts,
    ):
        header = {
            "descr": np.dtype(kind).str,
            "fortran_order": False,
            "shape": (len(snapshot), snapshot.dim),
        }
        np.lib.format.write_array_header_1_0(matrix, header)
        for ids, descriptors in snapshot.blocks(_ROWS):
            matrix.write(np.ascontiguousarray(descriptors, kind).data)
            for photo in snapshot.photos(ids):
                facts.write(json.dumps(photo_facts(photo)) + "\n")
            if advance:
                advance(len(ids))
        document = {"schema": "dinokit.export/1", "model": snapshot.card.model.to_json()}
        model_file.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return out, facts_path, model_path


def export_parquet(
    snapshot: Snapshot,
    out: Path,
    *,
    precision: Precision = "fp16",
    overwrite: bool = False,
    advance: Callable[[int], None] | None = None,
) -> tuple[Path]:
    """Write one row per item: its facts, and its descriptor as a list of fixed length.

    Args:
        snapshot: what to write.
        out: the file, for instance ``photos.parquet``.
        precision: fp16 as stored, or fp32 for readers that do not know half floats.
        overwrite: replace an existing file.
        advance: called with the rows written by each step.

    Raises:
        ArgumentError: the file exists, or cannot be written.
        DependencyError: pyarrow is missing.

    Returns: the path of the file.
    """
    pyarrow, parquet = load_pyarrow()
    _check_free([out], overwrite=overwrite)
    number = pyarrow.float16() if precision == "fp16" else pyarrow.float32()
    columns = [
        ("id", pyarrow.int64()), ("path", pyarrow.string()), ("width", pyarrow.int32()),
        ("height", pyarrow.int32()), ("bytes", pyarrow.int64()), ("mtime_ns", pyarrow.int64()),
        ("taken_at", pyarrow.string()), ("hash", pyarrow.string()),
        ("descriptor", pyarrow.list_(number, snapshot.dim)),
    ]  # fmt: skip
    identity = json.dumps(snapshot.card.model.to_json())
    schema = pyarrow.schema(columns, metadata={"dinov2kit.model": identity})
    with written_whole(out) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for ids, descriptors in snapshot.blocks(_ROWS):
            facts = [photo_facts(photo) for photo in snapshot.photos(ids)]
            for fact in facts:  # Parquet text is UTF-8; other bytes of a path become escapes
                fact["path"] = str(fact["path"]).encode("utf-8", "backslashreplace").decode()
            arrays = [pyarrow.array([fact[name] for fact in facts], kind) for name, kind in columns[:-1]]
            arrays.append(_fixed_lists(pyarrow, descriptors, number, snapshot.dim))
            writer.write_table(pyarrow.table(arrays, schema=schema))
            if advance:
                advance(len(ids))
    return (out,)


def photo_facts(photo: Photo) -> dict[str, object]:
    """Return what is known of a photo as `json.dumps` takes it; `os.fsencode` gives the bytes of the path."""
    return {
        "id": photo.id,
        "path": str(photo.path),
        "width": photo.width,
        "height": photo.height,
        "bytes": photo.size,
        "mtime_ns": photo.mtime_ns,
        "taken_at": photo.taken_at,
        "hash": photo.digest.hex(),
    }


def _fixed_lists(pyarrow: Any, descriptors: Float16[np.ndarray, "n dim"], number: Any, dim: int) -> Any:
    flat = descriptors.astype(number.to_pandas_dtype()).reshape(-1)
    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(flat, number), dim)


def _check_free(paths: list[Path], *, overwrite: bool) -> None:
    for path in paths:
        if path.exists() and not overwrite:
            raise ArgumentError(f"{path} exists", hint="name another file, or add --overwrite")


def load_pyarrow() -> tuple[Any, Any]:
    """Import pyarrow and its Parquet reader, on first use.

    Raises:
        DependencyError: pyarrow is missing.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError(
            "Parquet needs the package pyarrow", hint="pip install 'dinov2kit[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet
