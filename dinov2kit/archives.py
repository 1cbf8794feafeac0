"""Images inside tar archives: found by hopping from header to header, read in place.

Nothing is ever unpacked, so no name in an archive becomes a path that is written. Names are bytes below the
archive: "./a//b.jpg" and "/a/b.jpg" are "a/b.jpg" as for `tar -x`, and names with ".." are left out. Of
several members of one name the last counts, as for `tar -x`. Archives inside archives are not entered.
"""

from __future__ import annotations

import errno
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from dinov2kit.errors import ImageError

TAR_SUFFIX = ".tar"
COMPRESSED_SUFFIXES = (
    *(".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4"),
)

_KEPT = 8  # listings in memory; about 300 bytes a member
_BLOCK = 512
_COMPRESSIONS = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
)
_lock = threading.Lock()


class Member(NamedTuple):
    """Where the content of a member lies in its archive, in bytes."""

    offset: int
    size: int


@dataclass(frozen=True)
class Listing:
    """The files in an archive.

    Attributes:
        members: by name, in the order in which they lie in the archive.
        left_out: how many files have names with "..", or are sparse.
        damage: why there may be more of them; None when the archive is whole.
    """

    members: dict[bytes, Member]
    left_out: int
    damage: str | None


def compressed_suffix(name: str) -> str | None:
    """Return by which suffix a file name says that it is a compressed tar archive, or None."""
    lower = name.lower()
    return next((suffix for suffix in COMPRESSED_SUFFIXES if lower.endswith(suffix)), None)


def list_members(archive: Path) -> Listing:
    """List the files in a tar archive; their contents are not read.

    A damaged or unfinished archive gives the members before the damage. The last few listings are kept, for
    as long as size and time of their archives are the same.

    Raises:
        OSError: the archive cannot be read.
    """
    facts = archive.stat()
    with _lock:  # of several threads that ask for the same archive, one reads it
        return _list(archive, facts.st_size, facts.st_mtime_ns)


def find_member(archive: Path, name: bytes) -> Member:
    """Return where a member lies.

    Raises:
        FileNotFoundError: there is none of this name.
        OSError: the archive cannot be read.
    """
    found = list_members(archive).members.get(name)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "no such file in the archive", f"{archive}/{os.fsdecode(name)}")
    return found


def read_member(archive: Path, name: bytes) -> bytes:
    """Return the content of a member.

    Raises:
        FileNotFoundError: there is none of this name.
        ImageError: the archive has become shorter.
        OSError: the archive cannot be read.
    """
    offset, size = find_member(archive, name)
    with archive.open("rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise ImageError("the archive ends within it")
    return content


@lru_cache(_KEPT)
def _list(archive: Path, size: int, mtime_ns: int) -> Listing:
    """Read all headers; `mtime_ns` only tells one state of the archive from another."""
    members: dict[bytes, Member] = {}
    left_out, damage = 0, None
    try:
        with tarfile.open(archive, "r:", errors="surrogateescape", encoding="utf-8") as tar:
            for entry in _entries(tar):
                name = _clean(os.fsencode(entry.name))
                before = members.pop(name, None) if name is not None else None
                content = Member(entry.offset_data, entry.size)
                if entry.islnk():  # a second name of a file that came before
                    target = _clean(os.fsencode(entry.linkname))
                    known = before if target == name else members.get(target or b"")
                    if known is None:
                        continue
                    content = known
                elif not entry.isreg():
                    continue
                if name is None or entry.issparse():
                    left_out += 1
                elif content.offset + content.size > size:
                    damage = f"it ends within {os.fsdecode(name)}"
                    break
                else:
                    members[name] = content
            end = tar.offset
        damage = damage or _missing_end(archive, end)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:  # on damaged headers
        damage = damage or _explain(archive, error)
    return Listing(members, left_out, damage)


def _entries(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the headers one by one; `tarfile` itself would keep them all."""
    while (entry := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]
        yield entry


def _clean(name: bytes) -> bytes | None:
    """Return a name as it is below the archive, or None when it leads out of it."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    return b"/".join(parts) if parts and b".." not in parts else None


def _missing_end(archive: Path, end: int) -> str | None:
    """Say what is wrong where the headers end: a block of zeros has to be there."""
    with archive.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    if block == bytes(_BLOCK):
        return None
    return "it has no end mark and may be incomplete" if not block else f"damaged at byte {end:,}"


def _explain(archive: Path, error: Exception) -> str:
    with archive.open("rb") as file:
        head = file.read(8)
    if not head:
        return "the archive is empty"
    kind = next((kind for signature, kind in _COMPRESSIONS if head.startswith(signature)), None)
    if kind is not None:
        return f"it is compressed with {kind} and cannot be read in place; decompress it first"
    return f"damaged, or no tar archive ({error})"
