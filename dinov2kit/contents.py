"""What a path leads to: a file, a member of a tar archive, or a frame of a video.

`photos.tar/trip/01.jpg` is the member `trip/01.jpg` of `photos.tar`, and `clip.mp4/t=0000002.000s` what
`clip.mp4` shows two seconds in. Such paths go through the program like any other; here alone they are opened.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dinov2kit.archives import TAR_SUFFIX, find_member, list_members, read_member
from dinov2kit.errors import ImageError
from dinov2kit.videos import VIDEO_SUFFIXES, frame_name, frame_time, read_frame, read_video

CONTAINER_SUFFIXES = VIDEO_SUFFIXES | {TAR_SUFFIX}

_WITHIN = re.compile(rf"(?:{'|'.join(map(re.escape, sorted(CONTAINER_SUFFIXES)))})/", re.IGNORECASE)


class ContentStat(NamedTuple):
    """What tells untouched content without opening it.

    Attributes:
        size: bytes; of a frame, what a second of its video takes.
        mtime_ns: of the file, the archive or the video.
        inode: of the file or the video; of a member, where it lies in its archive.
    """

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Place:
    """Where content lies that is no file of its own.

    Attributes:
        container: the archive or the video.
        name: of the member, or of the frame.
    """

    container: Path
    name: str

    @property
    def time(self) -> int | None:
        """When the frame is shown, in ms; None for a member of an archive.

        Raises:
            FileNotFoundError: a video has no frame of such a name.
        """
        if is_tar(self.container):
            return None
        time = frame_time(self.name)
        if time is None:
            raise FileNotFoundError(errno.ENOENT, "no such frame", f"{self.container}/{self.name}")
        return time


@dataclass
class Inside:
    """What lies in an archive or a video.

    Attributes:
        entries: its members, or its frames, by name, in their order.
        left_out: how many members have names that lead out of the archive, or are sparse.
        damage: why there may be more; None when all is well.
    """

    entries: Iterator[tuple[bytes, ContentStat]]
    left_out: int = 0
    damage: str | None = None


def is_tar(path: Path) -> bool:
    """Say whether a name is that of a tar archive."""
    return path.suffix.lower() == TAR_SUFFIX


def find_place(path: Path) -> Place | None:
    """Return in which archive or video a path ends; None when it is that of a file, there or not."""
    text = os.fspath(path)
    for found in _WITHIN.finditer(text):
        outer = Path(text[: found.end() - 1])
        if outer.is_file():
            return Place(outer, text[found.end() :])
    return None


def open_content(path: Path) -> io.BytesIO | io.BufferedReader:
    """Open a file, a member of an archive, or a frame of a video (as a TIFF file) for reading.

    Raises:
        ImageError: it is no regular file (opening a pipe could wait for ever), damaged, or a frame while the
            package av is missing.
        OSError: it cannot be read.
    """
    place = find_place(path)
    if place is None:
        return _open_file(path)
    if place.time is None:
        return io.BytesIO(read_member(place.container, os.fsencode(place.name)))
    return io.BytesIO(read_frame(place.container, place.time))


def stat_content(path: Path) -> ContentStat:
    """Return how content looks without opening it.

    Raises:
        ImageError: a video is damaged, or the package av is missing.
        OSError: it is not there.
    """
    place = find_place(path)
    if place is None:
        return _as_content(path.stat())
    if place.time is None:
        member = find_member(place.container, os.fsencode(place.name))
        return ContentStat(member.size, place.container.stat().st_mtime_ns, member.offset)
    return _frame_stat(place.container)


def is_there(path: Path) -> bool:
    """Say whether a file, a member of an archive or the video of a frame is there."""
    try:
        place = find_place(path)
        if place is None:
            return path.exists()
        if place.time is None:
            find_member(place.container, os.fsencode(place.name))
    except OSError:
        return False
    return True


def look_inside(container: Path, *, every: float) -> Inside:
    """List what lies in an archive or a video; no content is read.

    Args:
        container: the archive or the video.
        every: seconds between the frames of a video.

    Raises:
        OSError: it cannot be read.
    """
    if is_tar(container):
        mtime_ns = container.stat().st_mtime_ns
        listing = list_members(container)
        members = listing.members.items()
        entries = ((name, ContentStat(size, mtime_ns, offset)) for name, (offset, size) in members)
        return Inside(entries, listing.left_out, listing.damage)
    try:
        times, facts = read_video(container).times(every), _frame_stat(container)
    except ImageError as error:
        return Inside(iter(()), damage=error.message)
    return Inside((os.fsencode(frame_name(time)), facts) for time in times)


def _frame_stat(video: Path) -> ContentStat:
    return _as_content(video.stat())._replace(size=read_video(video).bytes_per_second)


def _as_content(facts: os.stat_result) -> ContentStat:
    return ContentStat(facts.st_size, facts.st_mtime_ns, facts.st_ino)


def _open_file(path: Path) -> io.BufferedReader:
    mode = path.stat().st_mode
    if stat.S_ISREG(mode):
        return path.open("rb")
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    raise ImageError(f"{kinds.get(stat.S_IFMT(mode), 'a special file')}, not an image file")
