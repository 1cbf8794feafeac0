"""Weight files on this machine: what they hold, and whether they are still what they were.

The SHA-256 and the size of `<file>` stand beside it in `<file>.sha256`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dinov2kit.errors import WeightsError

logger = logging.getLogger(__name__)

_LARGEST_HEADER = 100_000_000  # bytes; the safetensors format allows no more


@dataclass(frozen=True)
class WeightFile:
    """A weight file on this machine.

    Attributes:
        path: where it lies.
        sha256: digest of its bytes, in hexadecimal.
    """

    path: Path
    sha256: str


def verify_file(path: Path, *, sha256: str | None = None) -> WeightFile:
    """Check a weight file against the digest and size that were recorded for it.

    A file without a record, put there by hand, gets one if it looks like weights.

    Args:
        path: the weight file.
        sha256: a digest that it must have besides, in hexadecimal.

    Raises:
        WeightsError: the file cannot be read, or is not what it was.
    """
    hint = f"delete {path} and {_record_path(path).name} beside it, then fetch the weights again"
    try:
        size, recorded = path.stat().st_size, _read_record(path)
        if recorded is not None and recorded[1] != size:
            raise WeightsError(f"{path} is damaged: it has {size:,} bytes, not {recorded[1]:,}", hint=hint)
        digest = digest_of(path)
        trouble = why_no_weights(path) if recorded is None else None
    except OSError as error:
        raise WeightsError(f"cannot read {path}: {error.strerror or error}") from error
    for wanted in (recorded[0] if recorded else None, sha256.lower() if sha256 else None):
        if wanted is not None and digest != wanted:
            raise WeightsError(f"{path} is damaged: its SHA-256 is {digest}, not {wanted}", hint=hint)
    if trouble is not None:
        raise WeightsError(f"{path} is no usable weight file: {trouble}", hint=hint)
    if recorded is None:
        try:
            record_digest(path, digest, size)
        except OSError as error:  # a folder shared by many may be read-only
            logger.info("cannot record the SHA-256 of %s: %s", path, error)
    return WeightFile(path, digest)


def why_no_weights(path: Path) -> str | None:
    """Say why a file is neither a whole ZIP archive (PyTorch) nor safetensors; None when it is one."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK\x03\x04"):
        return None if zipfile.is_zipfile(path) else "its end is missing"
    if 0 < int.from_bytes(head[:8], "little") <= _LARGEST_HEADER and head[8:9] == b"{":
        return None
    if not head:
        return "it is empty"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith((b"<!doctype", b"<html", b"<head")):
        return "it is a web page"
    return f"it begins with {head[:8]!r}"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a `WeightsError`."""
    try:
        yield
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "make it writable"
        raise WeightsError(
            f"cannot keep weights in {path.parent}: {error.strerror or error}",
            hint=f"{remedy}, or let DINOKIT_HOME name another folder",
        ) from error


def digest_of(path: Path) -> str:
    """Return the SHA-256 of the content of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_record(path: Path) -> tuple[str, int] | None:
    """Return the recorded digest and size; None when there is no record, or an unreadable one."""
    try:
        found = re.fullmatch(r"([0-9a-f]{64}) (\d+)", _record_path(path).read_text("utf-8").strip())
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    return (found[1], int(found[2])) if found else None


def record_digest(path: Path, digest: str, size: int) -> None:
    """Write down what a weight file is, for `verify_file`.

    Args:
        path: the weight file; it may not be there yet.
        digest: its SHA-256, in hexadecimal.
        size: its size in bytes.
    """
    record = _record_path(path)
    temporary = record.with_name(f".{record.name}.{os.getpid()}.tmp")
    temporary.write_text(f"{digest} {size}\n", "utf-8")
    temporary.replace(record)


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
