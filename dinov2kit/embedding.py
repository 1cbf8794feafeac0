"""Descriptors of many images written to one file: HDF5, NumPy or Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, DependencyError, ImageError
from dinov2kit.features import FeatureSpec
from dinov2kit.files import written_whole
from dinov2kit.images import MAX_PIXELS
from dinov2kit.pipeline import Description, describe
from dinov2kit.shapes import Descriptors

FORMATS = (".h5", ".npy", ".parquet")


@dataclass(frozen=True)
class EmbedReport:
    """What `write_descriptors` did.

    Attributes:
        out: the file written.
        written: the images in it, in the order of the rows.
        errors: (path, reason) of the images that could not be read.
    """

    out: Path
    written: list[Path]
    errors: list[tuple[Path, str]]


def write_descriptors(
    encoder: Encoder,
    paths: Sequence[Path],
    out: Path,
    *,
    patches: bool = False,
    size: int = 518,
    overwrite: bool = False,
    workers: int = 0,
    batch_size: int = 0,
    max_pixels: int = MAX_PIXELS,
    advance: Callable[[Description], None] | None = None,
) -> EmbedReport:
    """Write the global descriptor of every image, in the order given; bad images are left out and listed.

    HDF5 holds `descriptors` (n, dim) float32, `paths`, and the model's identity as attributes; with `patches`
    also a group `local/<row>` per image: `descriptors` (rows * cols, dim) float16 and the grid as attributes.
    NumPy holds the matrix and `OUT.json` beside it the paths and errors. Parquet holds path and descriptor.
    The file appears only when it is complete.

    Args:
        encoder: makes the descriptors.
        paths: image files.
        out: file to write; its suffix (.h5, .npy, .parquet) chooses the format.
        patches: write local descriptors too (HDF5 only).
        size: longer side in pixels for local descriptors.
        overwrite: replace an existing file.
        workers: decoding processes; 0 decodes in this process.
        batch_size: images per batch; 0 lets the encoder choose.
        max_pixels: larger images are refused before they are decoded.
        advance: called after each image.

    Raises:
        ArgumentError: unknown suffix, `patches` without HDF5, or the file exists.
        DependencyError: Parquet without pyarrow.
        ImageError: no image could be read.
    """
    _check_out(out, patches=patches, overwrite=overwrite)
    report = EmbedReport(out, [], [])
    stream = describe(encoder, paths, workers=workers, batch_size=batch_size, max_pixels=max_pixels)
    if advance is not None:
        stream = _watched(stream, advance)
    with written_whole(out) as temporary:
        if out.suffix == ".h5":
            with h5py.File(temporary, "w") as store:
                keep = partial(_write_local, store, encoder, size) if patches else None
                _fill_hdf5(store, _collect(stream, report, keep), report, encoder)
        elif out.suffix == ".npy":
            matrix = _collect(stream, report)
            with temporary.open("wb") as file:
                np.save(file, matrix)
            _write_sidecar(report, encoder)
        else:
            _write_parquet(temporary, _collect(stream, report), report, encoder)
    return report


def _watched(stream: Iterator[Description], advance: Callable[[Description], None]) -> Iterator[Description]:
    for description in stream:
        yield description
        advance(description)


def _collect(
    stream: Iterator[Description], report: EmbedReport, keep: Callable[[int, Path], None] | None = None
) -> Descriptors:
    """Gather the descriptors, noting good and bad files in `report`; `keep(row, path)` sees each good one."""
    rows: list[np.ndarray] = []
    for description in stream:
        if description.descriptor is None:
            report.errors.append((description.path, description.error or ""))
            continue
        try:
            if keep is not None:
                keep(len(rows), description.path)
        except ImageError as error:  # the file changed between its two readings
            report.errors.append((description.path, error.message))
            continue
        rows.append(description.descriptor)
        report.written.append(description.path)
    if not rows:
        raise ImageError(
            f"none of {len(report.errors)} images could be read; the first: {report.errors[0][1]}"
        )
    return np.stack(rows)


def _check_out(out: Path, *, patches: bool, overwrite: bool) -> None:
    if out.suffix not in FORMATS:
        raise ArgumentError(f"cannot write {out.name!r}; wanted a name that ends in {', '.join(FORMATS)}")
    if patches and out.suffix != ".h5":
        raise ArgumentError(
            f"local descriptors differ in number and need HDF5, not {out.suffix}", hint="use --out x.h5"
        )
    if out.exists() and not overwrite:
        raise ArgumentError(f"{out} exists", hint="choose another name, or add --overwrite")
    if not out.parent.is_dir():
        raise ArgumentError(f"no such folder: {out.parent}")
    if out.suffix == ".parquet":
        _load_pyarrow()


def _load_pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise DependencyError("Parquet needs pyarrow", hint="pip install 'dinov2kit[parquet]'") from error


def _write_local(store: h5py.File, encoder: Encoder, size: int, row: int, path: Path) -> None:
    features = encoder.encode(path, FeatureSpec(size=size))
    group = store.create_group(f"local/{row}")
    group["descriptors"] = features.local_descriptors.cpu().numpy().astype(np.float16)
    for key, fact in vars(features.grid).items():
        group.attrs[key] = fact


def _fill_hdf5(store: h5py.File, matrix: Descriptors, report: EmbedReport, encoder: Encoder) -> None:
    text = h5py.string_dtype()
    store["descriptors"] = matrix
    store.create_dataset("paths", data=[os.fsencode(path) for path in report.written], dtype=text)
    store.create_dataset("failed", data=[os.fsencode(path) for path, _ in report.errors], dtype=text)
    store.create_dataset("reasons", data=[reason for _, reason in report.errors], dtype=text)
    store.attrs["schema"] = "dinokit.embed/1"
    store.attrs["model"] = json.dumps(encoder.identity.to_json())


def _write_sidecar(report: EmbedReport, encoder: Encoder) -> None:
    document = {
        "schema": "dinokit.embed/1",
        "model": encoder.identity.to_json(),
        "paths": [str(path) for path in report.written],
        "errors": [{"path": str(path), "reason": reason} for path, reason in report.errors],
    }
    with written_whole(report.out.with_name(report.out.name + ".json")) as temporary:
        temporary.write_text(json.dumps(document, indent=1) + "\n")


def _write_parquet(temporary: Path, matrix: Descriptors, report: EmbedReport, encoder: Encoder) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), matrix.shape[1])
    paths = pa.array([os.fsencode(path) for path in report.written], pa.binary()).cast(
        pa.string(), safe=False
    )
    schema = {"dinokit.schema": "embed/1", "dinokit.model": json.dumps(encoder.identity.to_json())}
    pq.write_table(pa.table({"path": paths, "descriptor": column}).replace_schema_metadata(schema), temporary)
