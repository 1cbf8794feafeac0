"""The content of files as digests, computed ahead in threads."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from .changes import Sighting
from .records import FileStat

_THREADS, _AHEAD = 4, 64


def hashed(
    sightings: Iterable[Sighting], stop: Callable[[], bool]
) -> Iterator[tuple[Sighting, bytes | OSError]]:
    """Yield each file with the digest of its content, in order, hashed ahead in threads."""
    with ThreadPoolExecutor(_THREADS, "hash") as threads:
        ahead: deque[tuple[Sighting, Future[bytes | OSError]]] = deque()
        for sighting in sightings:
            if stop():
                break
            ahead.append((sighting, threads.submit(_digest, sighting.path)))
            if len(ahead) >= _AHEAD:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead and not stop():
            first, future = ahead.popleft()
            yield first, future.result()
        for _, future in ahead:
            future.cancel()


def _digest(path: Path) -> bytes | OSError:
    """Return blake2b-128 of the content of a file, or why it cannot be read."""
    try:
        if not path.is_file():  # a pipe would never end
            return OSError("it is no regular file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError as error:
        return error


def read_stat(path: Path) -> FileStat | None:
    """Return how a file looks now, or None when it is gone."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return FileStat(facts.st_size, facts.st_mtime_ns, facts.st_ino)
