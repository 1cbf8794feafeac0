"""Dense flow in files: Middlebury `.flo`, `.npy`, and `.npz` with what belongs to it. Needs no torch."""

from __future__ import annotations

import struct
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float32

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.files import written_whole

Flow = Float32[np.ndarray, "height width 2"]

SUFFIXES = (".flo", ".npy", ".npz")
HEADER = struct.Struct("<fii")  # the magic number, width, height
MAGIC = 202021.25  # its four bytes read "PIEH"
UNKNOWN = 1e10  # what is written where there is no flow
LARGEST_KNOWN = 1e9  # in pixels; beyond it there is no flow
LONGEST_SIDE = 100_000


def write_flow(path: Path, flow: Flow, **beside: np.ndarray) -> None:
    """Write a flow field; the file is complete or not there at all.

    Args:
        path: its suffix is the format. `.flo`: the flow alone, 1e10 in both components where there is none;
            `.npy`: the flow alone, NaN where there is none; `.npz`: the arrays `flow` and those beside it.
        flow: (u, v) per pixel: pixel (x, y) of image 0 lies at (x + u, y + v) in image 1; NaN for none.
        beside: more arrays by name, such as the certainty; only `.npz` has room for them.

    Raises:
        ArgumentError: the suffix is none of these, the format has no room for what is beside it, a side is
            out of range, or the folder cannot be written.

    Source: Baker et al., "A Database and Evaluation Methodology for Optical Flow", IJCV 2011, and the file
        format of its benchmark.
    """
    suffix = _known_suffix(path)
    if beside and suffix != ".npz":
        raise ArgumentError(
            f"{path.name!r} has no room for {', '.join(beside)}", hint="name a file that ends in .npz"
        )
    height, width = flow.shape[:2]
    if not _sides_fit(width, height):
        raise ArgumentError(f"a flow of {width}x{height} pixels; wanted sides of 1 to {LONGEST_SIDE}")
    with written_whole(path) as temporary, temporary.open("wb") as file:
        if suffix == ".flo":
            known = (np.abs(flow) <= LARGEST_KNOWN).all(axis=2, keepdims=True)
            file.write(HEADER.pack(MAGIC, width, height))
            np.where(known, flow, UNKNOWN).astype("<f4").tofile(file)
        elif suffix == ".npy":
            np.save(file, flow)
        else:
            np.savez(file, allow_pickle=False, flow=flow, **beside)


def read_flow(path: Path) -> Flow:
    """Read a flow field; NaN, in both components, where there is none.

    Args:
        path: a `.flo`, `.npy` or `.npz` file, as `write_flow` writes it; `.npy` may hold other floats too.

    Raises:
        ArgumentError: the suffix is none of these.
        ImageError: the file cannot be read, or holds something else.
    """
    suffix = _known_suffix(path)
    try:
        flow = _read_middlebury(path) if suffix == ".flo" else _read_numpy(path)
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    known = (np.abs(flow) <= LARGEST_KNOWN).all(axis=2)
    flow[~known] = np.nan
    return flow


def _known_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ArgumentError(
            f"{path.name!r} is no flow file; wanted a name that ends in {', '.join(SUFFIXES)}"
        )
    return suffix


def _read_middlebury(path: Path) -> Flow:
    with path.open("rb") as file:
        header = file.read(HEADER.size)
        if len(header) < HEADER.size:
            raise ImageError(f"{path} is cut short: {len(header)} bytes; the header alone has {HEADER.size}")
        magic, width, height = HEADER.unpack(header)
        if magic != MAGIC:
            raise ImageError(f"{path} is no .flo file: it starts with {magic:g}; wanted {MAGIC}")
        if not _sides_fit(width, height):
            raise ImageError(
                f"{path} says it has {width}x{height} pixels; wanted sides of 1 to {LONGEST_SIDE}"
            )
        wanted, got = HEADER.size + 8 * width * height, path.stat().st_size
        if got != wanted:
            raise ImageError(f"{path} has {got} bytes; {width}x{height} pixels of flow need {wanted}")
        return np.fromfile(file, "<f4").reshape(height, width, 2).astype(np.float32)


def _read_numpy(path: Path) -> Flow:
    try:
        # mapped, a file shorter than its header says is refused before any memory is taken
        held = np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None)
        array = held if isinstance(held, np.ndarray) else held["flow"]
    except (ValueError, EOFError, KeyError, BadZipFile) as error:
        raise ImageError(f"{path} holds no flow: {error}") from error
    if array.ndim != 3 or array.shape[2] != 2 or array.dtype.kind != "f":
        raise ImageError(
            f"{path} holds {array.dtype} of shape {array.shape}; wanted floats (height, width, 2)"
        )
    if not _sides_fit(array.shape[1], array.shape[0]):
        raise ImageError(f"{path} has {array.shape[1]}x{array.shape[0]} pixels; wanted 1 to {LONGEST_SIDE}")
    return np.array(array, np.float32)


def _sides_fit(width: int, height: int) -> bool:
    return 1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE
