"""Images in tar and zip archives: found once by their places in the archive, then read in any order."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from dinov2kit.archives import list_members
from dinov2kit.errors import ImageError
from dinov2kit.formats import IMAGE_SUFFIXES

from .image_names import Names, class_labels, digest_names, is_wanted
from .pixels import PixelRules, Pixels

_WANTED = tuple(os.fsencode(suffix) for suffix in sorted(IMAGE_SUFFIXES))
_OPEN = 64  # archives that a process keeps open
_HEADER, _ENCRYPTED = 30, 1  # of a zip member: bytes before its name; a bit of its flags


@dataclass(frozen=True)
class ArchiveImages:
    """Images in one archive.

    Attributes:
        archive: the tar or the zip.
        names: of the members.
        places: of each member where it begins, in bytes; in a zip where its header begins.
        sizes: of each as it is stored, in bytes.
        checks: of a zip, for each whether it is deflated, its full size, and its CRC-32; None for a tar.
        rules: what becomes of the pixels.
        digest: of names and sizes.
        labels: the class of each, or None.
    """

    archive: Path
    names: Names
    places: Int64[np.ndarray, " n"]
    sizes: Int64[np.ndarray, " n"]
    checks: Int64[np.ndarray, "n 3"] | None
    rules: PixelRules
    digest: str
    labels: list[str] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """Return archive/member."""
        return f"{self.archive}/{os.fsdecode(self.names[index])}"

    def read(self, index: int) -> Pixels:
        """Return the pixels of an image.

        Raises:
            ImageError: it cannot be read, is damaged, or does not fit.
        """
        try:
            opened = _open(self.archive, os.getpid())
            place, size = int(self.places[index]), int(self.sizes[index])
            if self.checks is None:
                encoded = opened.read(place, size)
            else:
                deflated, full_size, crc = self.checks[index].tolist()
                header = opened.read(place, _HEADER)
                skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                encoded = opened.read(place + _HEADER + skipped, size)
                encoded = zlib.decompress(encoded, -zlib.MAX_WBITS, full_size) if deflated else encoded
                if zlib.crc32(encoded) != crc:
                    raise ImageError("damaged: its checksum is another one")
            return self.rules.decode(encoded)
        except OSError as error:
            raise ImageError(f"{self.name(index)}: it cannot be read: {error.strerror or error}") from error
        except zlib.error as error:
            raise ImageError(f"{self.name(index)}: damaged ({error})") from error
        except ImageError as error:
            raise ImageError(f"{self.name(index)}: {error.message}", hint=error.hint) from error


def tar_images(archive: Path, rules: PixelRules) -> ArchiveImages:
    """Return the images in a tar archive, in the order in which they lie there.

    Raises:
        ImageError: it cannot be read, is damaged or compressed, or has no image.
    """
    try:
        listing = list_members(archive)
    except OSError as error:
        raise ImageError(f"{archive}: it cannot be read: {error.strerror or error}") from error
    if listing.damage is not None:
        raise ImageError(f"{archive}: {listing.damage}", hint="mend the archive, or leave it out")
    chosen = [(name, *place) for name, place in listing.members.items() if is_wanted(name, _WANTED)]
    _refuse_empty(archive, len(chosen), len(listing.members))
    sizes = np.array([size for _, _, size in chosen], np.int64)
    names = Names.collect(name for name, _, _ in chosen)
    return ArchiveImages(
        archive=archive,
        names=names,
        places=np.array([offset for _, offset, _ in chosen], np.int64),
        sizes=sizes,
        checks=None,
        rules=rules,
        digest=digest_names(names, sizes),
        labels=class_labels(names),
    )


def zip_images(archive: Path, rules: PixelRules) -> ArchiveImages:
    """Return the images in a zip archive, stored or deflated, in the order of its directory.

    Raises:
        ImageError: it cannot be read, is damaged or encrypted, is compressed in another way, or has no image.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
    except OSError as error:
        raise ImageError(f"{archive}: it cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ImageError(
            f"{archive}: damaged, or no zip archive ({error})", hint="mend the archive, or leave it out"
        ) from error
    chosen = [member for member in members if is_wanted(os.fsencode(member.filename), _WANTED)]
    _refuse_empty(archive, len(chosen), len(members))
    for member in chosen:
        if member.flag_bits & _ENCRYPTED:
            raise ImageError(f"{archive}/{member.filename}: it is encrypted", hint="unpack the archive first")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ImageError(
                f"{archive}/{member.filename}: compressed by method {member.compress_type}; "
                "wanted 0 (stored) or 8 (deflated)",
                hint="unpack the archive first",
            )
    names = Names.collect(os.fsencode(member.filename) for member in chosen)
    checks = [(member.compress_type != 0, member.file_size, member.CRC) for member in chosen]
    return ArchiveImages(
        archive=archive,
        names=names,
        places=np.array([member.header_offset for member in chosen], np.int64),
        sizes=np.array([member.compress_size for member in chosen], np.int64),
        checks=np.array(checks, np.int64),
        rules=rules,
        digest=digest_names(names, np.array([member.file_size for member in chosen], np.int64)),
        labels=class_labels(names),
    )


def _refuse_empty(archive: Path, images: int, members: int) -> None:
    if not images:
        raise ImageError(f"no images among {members} members of {archive}")


class _Opened:
    """An archive open for reading anywhere, also by several threads."""

    def __init__(self, path: Path) -> None:
        self._file = -1  # where opening fails there is nothing to close
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the archive.

        Raises:
            ImageError: it ends before.
            OSError: it cannot be read.
        """
        content = os.pread(self._file, size, offset)
        if len(content) < size:
            raise ImageError("the archive ends within it")
        return content

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


@lru_cache(_OPEN)
def _open(archive: Path, process: int) -> _Opened:
    """Open an archive once in each process; one that was opened before a fork is not used after it."""
    return _Opened(archive)
