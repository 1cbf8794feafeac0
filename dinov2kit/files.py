"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dinov2kit.errors import ArgumentError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that becomes `path` when the block ends well.

    Raises:
        ArgumentError: the folder does not exist or cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise ArgumentError(
            f"cannot write {path}: {error.strerror or error}", hint="name a file in a folder that exists"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
