"""Fetching weight files: over HTTP, into a place on this machine, whole or not at all.

A transfer fills `<file>.part`, which a later one continues when the server still has the same content
(RFC 9110, sections 13.1.5 and 14.2). A finished file has its SHA-256 and size beside it in `<file>.sha256`.
"""

from __future__ import annotations

import errno
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock

from dinov2kit.catalogue import cached_file, find_model, is_offline, weights_folder
from dinov2kit.errors import WeightsError
from dinov2kit.weight_files import (
    WeightFile,
    digest_of,
    disk_errors,
    record_digest,
    verify_file,
    why_no_weights,
)

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]  # bytes on this machine, bytes of the whole file if known

_BLOCK = 1 << 18
_LONGEST_PAUSE = 20.0  # seconds
_PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers of a server that may do better next time


def pull_model(
    name: str,
    *,
    progress: Progress | None = None,
    base_url: str | None = None,
    timeout: float = 30.0,
    retries: int = 4,
) -> WeightFile:
    """Return the weight file of a model with a name, checked, and downloaded first if it is not here.

    Args:
        name: a name that `find_model` knows.
        progress: called with the bytes that are here and the bytes of the whole file (None if unknown).
        base_url: where the release is mirrored; see `ModelSpec.url`.
        timeout: as for `download`.
        retries: as for `download`.

    Raises:
        WeightsError: the name is unknown, the file is damaged, or it cannot be downloaded.
    """
    spec = find_model(name)
    if spec.shipped:
        file = cached_file(spec)
        if file is None:
            raise WeightsError(f"{spec.name} is missing in this installation", hint="install dinov2kit again")
        return WeightFile(file, digest_of(file))
    path = weights_folder() / spec.file_name
    if path.is_file():
        return verify_file(path)
    return download(spec.url(base_url), path, progress=progress, timeout=timeout, retries=retries)


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout: float = 30.0,
    retries: int = 4,
    backoff: float = 0.5,
) -> WeightFile:
    """Fetch a weight file, unless it is already there; two processes never fetch the same file at once.

    Args:
        url: http or https.
        path: where the file shall lie; missing folders are made.
        sha256: the digest that the file must have, in hexadecimal.
        progress: called with the bytes that are here and the bytes of the whole file (None if unknown).
        timeout: seconds of silence after which a connection counts as dropped.
        retries: how many transfers in a row may end without one byte more before this gives up.
        backoff: pause before the second of them, in seconds; each further one is twice as long.

    Raises:
        WeightsError: the file cannot be fetched or kept, or is not what it should be. What has arrived stays
            for the next call, if it can be continued.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise WeightsError(f"cannot download {url!r}; wanted an address that starts with https://")
    if path.is_file():
        return verify_file(path, sha256=sha256)
    if is_offline():
        raise WeightsError(
            f"{path.name} is not on this machine, and DINOKIT_OFFLINE forbids the download",
            hint=f"fetch {url} elsewhere and put it here: {path}",
        )
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if path.is_file():  # another process has fetched it meanwhile
                return verify_file(path, sha256=sha256)
            _fetch(url, path, progress=progress, timeout=timeout, retries=retries, backoff=backoff)
            return _accept(url, path, sha256)


def _fetch(
    url: str, path: Path, *, progress: Progress | None, timeout: float, retries: int, backoff: float
) -> None:
    """Fill the part file, over as many connections as it takes."""
    part = _part_path(path)
    failures, farthest = -1, 0
    while True:
        try:
            return _transfer(url, path, progress=progress, timeout=timeout)
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            words = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise WeightsError(
                    f"cannot download {url}: {reason.verify_message}",
                    hint="a proxy may stand between; let SSL_CERT_FILE name the certificates to trust",
                ) from error
            arrived = part.stat().st_size if part.exists() else 0
            failures = 0 if arrived > farthest else failures + 1
            farthest = max(farthest, arrived)
            if failures >= retries:
                kept = f"; {_megabytes(arrived)} have arrived and are kept" if arrived else ""
                raise WeightsError(
                    f"cannot download {url}: {words}{kept}",
                    hint=f"try again later, or fetch it elsewhere and put it here: {path}",
                ) from error
            logger.info("download of %s interrupted at %d bytes: %s", url, arrived, words)
            time.sleep(min(backoff * 2**failures, _LONGEST_PAUSE))


def _transfer(url: str, path: Path, *, progress: Progress | None, timeout: float) -> None:
    """Fill the part file over one connection.

    Raises:
        OSError, HTTPException: the connection failed or was dropped; another one may do better.
        WeightsError: another one would do no better.
    """
    part = _part_path(path)
    size, total, validator = _resumable(url, path)
    if size and size == total:
        return
    request = Request(url, headers={"User-Agent": "dinov2kit"})
    if size:
        request.add_header("Range", f"bytes={size}-")
        request.add_header("If-Range", validator)
    with _open(request, part, timeout) as response:
        size, total = _agree(response, part, size, validator)
        with disk_errors(path):
            _require_space(path, size, total)
            file = part.open("ab" if size else "wb", buffering=0)
        with file:
            if not size:
                _remember(url, path, total, response)
            while total is None or size < total:
                block = response.read1(_BLOCK if total is None else min(_BLOCK, total - size))
                if not block:
                    break
                with disk_errors(path):
                    _write(file.write, block)
                size += len(block)
                if progress is not None:
                    progress(size, total)
    if total is not None and size < total:
        raise ConnectionError(f"the connection closed after {size:,} of {total:,} bytes")


@contextmanager
def _open(request: Request, part: Path, timeout: float) -> Iterator[http.client.HTTPResponse]:
    """Send a request; yield an answer that carries content."""
    url = request.full_url
    try:
        response = urlopen(request, timeout=timeout)
    except HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink(missing_ok=True)
                raise ConnectionError("the server has less than what had arrived") from error
            if error.code in _PASSING:
                raise ConnectionError(f"the server answered {error.code} {error.reason}") from error
            raise WeightsError(
                f"cannot download {url}: the server answered {error.code} {error.reason}",
                hint="look at the address, and at DINOKIT_WEIGHTS_URL if it is set",
            ) from error
    with response:
        yield response


def _agree(
    response: http.client.HTTPResponse, part: Path, asked: int, validator: str
) -> tuple[int, int | None]:
    """Return from where on the answer holds the file, and the size of the whole, if known."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "").strip())
    answered = response.headers.get("ETag" if validator.startswith('"') else "Last-Modified")
    same_content = answered is None or answered == validator
    if span is None or int(span[1]) != asked or not same_content:
        part.unlink(missing_ok=True)
        raise ConnectionError("the server sent another part of the file, or of another file, than asked for")
    return asked, int(span[2])


def _accept(url: str, path: Path, sha256: str | None) -> WeightFile:
    """Make the filled part file the weight file, if it is one."""
    part = _part_path(path)
    digest = digest_of(part)
    trouble = why_no_weights(part)
    if trouble is None and sha256 is not None and digest != sha256.lower():
        trouble = f"its SHA-256 is {digest}, not {sha256.lower()}"
    if trouble is not None:
        part.unlink()
        raise WeightsError(
            f"what {url} sent is no usable weight file: {trouble}",
            hint=f"open the address in a browser, or fetch it elsewhere and put it here: {path}",
        )
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    record_digest(path, digest, part.stat().st_size)
    part.replace(path)
    _state_path(path).unlink(missing_ok=True)
    logger.info("downloaded %s, sha256 %s", path, digest)
    return WeightFile(path, digest)


def _resumable(url: str, path: Path) -> tuple[int, int | None, str]:
    """Return how much of the content has arrived, how much it is, and what tells it from other content."""
    try:
        size = _part_path(path).stat().st_size
        state = json.loads(_state_path(path).read_text("utf-8"))
        total, validator = state["total"], state["validator"]
        if state["url"] == url and validator and (total is None or size <= total):
            return size, total, validator
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing to continue
    return 0, None, ""


def _remember(url: str, path: Path, total: int | None, response: http.client.HTTPResponse) -> None:
    """Write beside the part file what `_resumable` needs."""
    state = {"url": url, "total": total, "validator": _validator(response)}
    with disk_errors(path):
        _state_path(path).write_text(json.dumps(state), "utf-8")


def _validator(response: http.client.HTTPResponse) -> str:
    """Return what tells this content from other content, for If-Range: a weak ETag is not allowed there."""
    tag: str = response.headers.get("ETag", "")
    return tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))


def _write(write: Callable[[bytes | memoryview], int | None], block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[write(rest) or 0 :]


def _require_space(path: Path, size: int, total: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if total is not None and total - size > free:
        need = f"{path.name} needs {_megabytes(total - size)} more, and {_megabytes(free)} are free"
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}; {need}")


def _part_path(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _state_path(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
