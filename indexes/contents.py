"""The content of files as digests, computed ahead in threads."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from dinov2kit.contents import find_place, open_content, stat_content
from dinov2kit.errors import ImageError

from .changes import Sighting
from .records import FileStat

_THREADS, _AHEAD = 4, 64
_VIDEOS = 256  # digests of videos in memory
_one_at_a_time = threading.Lock()


def hashed(
    sightings: Iterable[Sighting], stop: Callable[[], bool]
) -> Iterator[tuple[Sighting, bytes | OSError]]:
    """Yield each file with the digest of its content, in order, hashed ahead in threads."""
    with ThreadPoolExecutor(_THREADS, "hash") as threads:
        ahead: deque[tuple[Sighting, Future[bytes | OSError]]] = deque()
        for sighting in sightings:
            if stop():
                break
            ahead.append((sighting, threads.submit(digest_content, sighting.path)))
            if len(ahead) >= _AHEAD:
                first, future = ahead.popleft()
                yield first, future.result()
        while ahead and not stop():
            first, future = ahead.popleft()
            yield first, future.result()
        for _, future in ahead:
            future.cancel()


def digest_content(path: Path) -> bytes | OSError:
    """Return blake2b-128 of the content at a path, or why it cannot be read.

    For a frame it is that of the content of its video followed by its name: the same frame of the same video
    has the same digest wherever that lies, and nothing has to be decoded.
    """
    try:
        place = find_place(path)
        if place is None or place.time is None:
            with open_content(path) as file:
                return _hash(file).digest()
        facts = place.container.stat()
        with _one_at_a_time:  # its other frames wait for it in the other threads
            digest = _video_digest(place.container, facts.st_size, facts.st_mtime_ns)
        return hashlib.blake2b(digest + place.name.encode(), digest_size=16).digest()
    except OSError as error:
        return error
    except ImageError as error:
        return OSError(error.message)


@lru_cache(_VIDEOS)
def _video_digest(path: Path, size: int, mtime_ns: int) -> bytes:
    with path.open("rb") as file:
        return _hash(file).digest()


def _hash(file: io.BytesIO | io.BufferedReader) -> hashlib._Hash:
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))


def read_stat(path: Path) -> FileStat | None:
    """Return how a file, a member of an archive or a frame looks now, or None when it is gone."""
    try:
        return FileStat(*stat_content(path))
    except (OSError, ImageError):
        return None
