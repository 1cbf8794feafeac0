"""Python pickles of plain facts, read without running anything that they name.

A pickle may name any function to call while it is read. Here only those can be named that build NumPy arrays
and numbers; lists, tuples, dicts, strings and numbers need none.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from dinov2kit.errors import ImageError

MOST_BYTES = 1 << 28  # the largest that is read

_ROOMS = ("numpy.core", "numpy._core")  # as NumPy 1 and NumPy 2 call it


def _bytes(text: str, encoding: str) -> bytes:
    """Do what `_codecs.encode` does for the bytes in a pickle that Python 2 can read: codecs of text only."""
    return text.encode(encoding)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes,
    **{(f"{room}.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0] for room in _ROOMS},
    **{(f"{room}.multiarray", "scalar"): np.float64(0).__reduce__()[0] for room in _ROOMS},
    **{(f"{room}.numeric", "_frombuffer"): np.zeros(0).__reduce_ex__(5)[0] for room in _ROOMS},
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain fact")
        return _ALLOWED[module, name]


def read_plain_pickle(path: Path) -> Any:
    """Return what a pickle of lists, dicts, strings, numbers and NumPy arrays holds.

    Raises:
        ImageError: the file cannot be read, is damaged, or wants more than plain facts.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ImageError(f"{path} has {path.stat().st_size:,} bytes; wanted {MOST_BYTES:,} at most")
        return _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except OSError as error:
        raise ImageError(f"cannot read {path}: {error.strerror or error}") from error
    except ImageError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise ImageError(
            f"{path} is not read: {error or type(error).__name__}",
            hint="a pickle can run programs; only lists, dicts, text, numbers and arrays are taken",
        ) from error
