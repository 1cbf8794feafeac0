"""Tar archives for tests, with whatever members."""

import io
import tarfile
from pathlib import Path


def write_tar(
    path: Path, members: list[tuple[str, bytes]] | dict[str, bytes], *, format: int = tarfile.PAX_FORMAT
) -> Path:
    """Write an archive of files, in the order given; names are text as `os.fsdecode` gives it."""
    pairs = members.items() if isinstance(members, dict) else members
    with tarfile.open(path, "w", format=format, errors="surrogateescape") as tar:
        for name, content in pairs:
            tar.addfile(plain(name, len(content)), io.BytesIO(content))
    return path


def plain(name: str, size: int = 0, **facts: object) -> tarfile.TarInfo:
    """Return the header of a member."""
    header = tarfile.TarInfo(name)
    header.size = size
    for key, value in facts.items():
        setattr(header, key, value)
    return header
