"""Frames of videos: which there are, and one frame by its time, upright.

A frame is named by the time at which it is shown, counted from the first one: "t=0000002.000s" is the picture
on the screen two seconds in, the last one that begins no later than that. Names sort by time. AVI files do
not say when a frame is shown, only its turn: there it may come up to three frames late.
"""

from __future__ import annotations

import io
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from PIL.ExifTags import Base

from dinov2kit.errors import ArgumentError, DependencyError, ImageError

if TYPE_CHECKING:
    import av
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v"})

_NAME = re.compile(r"t=(\d{7,})\.(\d{3})s")
_KEPT = 4096  # facts of videos in memory
_HALF_MS = 0.0005  # names are whole milliseconds, frames begin between them
_NEAR_S = 10.0  # further ahead, jumping to a key frame is cheaper than decoding what lies between
_TAIL_S = 0.5  # the last frame counts so much longer than it lasts: sound often goes on a little
_EARLIEST = 1971  # cameras with an unset clock write the beginning of 1904 or 1970
_LOCAL = {  # a playlist with the name of a video would have other files read, or the network
    "format_whitelist": "mov,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg",
    "protocol_whitelist": "file",
}
_INSTALL = "pip install 'dinov2kit[video]'"
_playing = threading.local()


@dataclass(frozen=True)
class Video:
    """What the header of a video says.

    Attributes:
        seconds: how long it lasts.
        bytes_per_second: of the file; what a frame is said to take.
        taken_at: when it begins; local time where the camera notes it, else UTC. None when it is not known.
    """

    seconds: float
    bytes_per_second: int
    taken_at: datetime | None

    def times(self, every: float) -> Iterator[int]:
        """Yield the times of the frames that are `every` seconds apart, in ms; the first one is 0."""
        count = max(math.ceil((self.seconds - _HALF_MS) / every), 1)
        return (round(number * every * 1000) for number in range(count))


def check_every(every: float) -> None:
    """Refuse a distance between frames that makes no sense, or that nothing here can read.

    Raises:
        ArgumentError: it is shorter than a millisecond.
        DependencyError: the package av is missing.
    """
    if not 0.001 <= every < math.inf:
        raise ArgumentError(f"frames every {every:g} s; wanted at least 0.001 s")
    if find_spec("av") is None:
        raise DependencyError("videos need the package av", hint=_INSTALL)


def frame_name(milliseconds: int) -> str:
    """Return the name of the frame that is shown at a time."""
    seconds, rest = divmod(milliseconds, 1000)
    return f"t={seconds:07}.{rest:03}s"


def frame_time(name: str) -> int | None:
    """Return the time that a name of a frame says, in ms; None when it is no such name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) * 1000 + int(found[2]) if found else None


def read_video(path: Path) -> Video:
    """Read the header of a video; kept for as long as size and time of the file are the same.

    Raises:
        ImageError: damaged, no video, or the package av is missing.
        OSError: the file cannot be read.
    """
    facts = path.stat()
    return _read_video(path, facts.st_size, facts.st_mtime_ns)


def read_frame(path: Path, milliseconds: int) -> bytes:
    """Return the frame that is shown at a time as an image file (TIFF), upright, with the time it was taken.

    Reading the frames of a video in the order of their times decodes it once; any other order gives the same
    frames, slower.

    Raises:
        ImageError: damaged, no video, it ends before that time, or the package av is missing.
        OSError: the file cannot be read.
    """
    video = read_video(path)
    with _errors_named():
        image = _player(path).show(milliseconds / 1000)
    tags = {}
    if video.taken_at is not None:
        shown = video.taken_at + timedelta(milliseconds=milliseconds)
        tags[Base.DateTime] = shown.strftime("%Y:%m:%d %H:%M:%S")
    content = io.BytesIO()
    PIL.Image.fromarray(image).save(content, "TIFF", tiffinfo=tags)
    return content.getvalue()


class _Player:
    """An open video and the frame that it shows: goes on to later ones, or jumps."""

    def __init__(self, path: Path) -> None:
        self._file, self._stream = _open(path)
        self._stream.codec_context.thread_count = 1  # there is one worker per core
        self._start = _start(self._stream)
        self._coming: Iterator[VideoFrame] = iter(())
        self._shown: VideoFrame | None = None
        self._next: VideoFrame | None = None

    def close(self) -> None:
        self._file.close()

    def show(self, seconds: float) -> np.ndarray:
        """Return the picture at a time: RGB, upright."""
        if self._shown is None or not 0 <= seconds + _HALF_MS - self._time(self._shown) < _NEAR_S:
            self._jump(seconds)
        while self._next is not None and self._time(self._next) <= seconds + _HALF_MS:
            self._shown, self._next = self._next, next(self._coming, None)
        if self._shown is None:
            raise ImageError("damaged: it has no picture at that time")
        if self._next is None and seconds > (end := self._end(self._shown)) + _TAIL_S:
            raise ImageError(f"damaged: its pictures end after {end:.3f} s")
        if self._shown.is_corrupt:
            raise ImageError("damaged at that time")
        turns = round(self._shown.rotation / 90)  # anticlockwise
        return np.rot90(self._shown.to_ndarray(format="rgb24"), turns)

    def _jump(self, seconds: float) -> None:
        """Go to a frame before a time, or to the first one."""
        for back in (0.0, _NEAR_S, math.inf):
            wanted = max(seconds - back, 0.0)
            tick = int(wanted / float(self._stream.time_base or 1)) + (self._stream.start_time or 0)
            self._file.seek(tick, stream=self._stream)
            self._coming, self._shown = self._file.decode(self._stream), None
            self._next = next(self._coming, None)
            if self._next is not None and self._time(self._next) <= seconds + _HALF_MS:
                return
            if not wanted:
                break
        self._shown = self._next  # the first one is late, and stands for the time before it

    def _time(self, frame: VideoFrame) -> float:
        """Return when a frame begins, in seconds after the start."""
        ticks = frame.pts
        if self._file.format.name == "avi":  # the last ones out of the decoder have no turn, either
            ticks = self._stream.duration if frame.dts is None else frame.dts
        return float((ticks or 0) * (frame.time_base or 0)) - self._start

    def _end(self, frame: VideoFrame) -> float:
        rate = self._stream.average_rate
        lasts = float((frame.duration or 0) * (frame.time_base or 0)) or 1 / float(rate or 1)
        return self._time(frame) + lasts


def _player(path: Path) -> _Player:
    """Return the open video of this thread; another one that was open is closed."""
    facts = path.stat()
    key = (path, facts.st_size, facts.st_mtime_ns)
    if getattr(_playing, "key", None) != key:
        if (old := getattr(_playing, "player", None)) is not None:
            old.close()
        _playing.key = _playing.player = None
        _playing.player = _Player(path)
        _playing.key = key
    player: _Player = _playing.player
    return player


@lru_cache(_KEPT)
def _read_video(path: Path, size: int, mtime_ns: int) -> Video:
    with _errors_named():
        file, stream = _open(path)
        with file:
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            elif file.duration:
                seconds = file.duration / 1e6
            else:  # as browsers record it: the end has to be looked for
                seconds = _last_end(file, stream) - _start(stream)
            taken_at = _taken_at({**file.metadata, **stream.metadata})
    return Video(max(seconds, 0.0), max(round(size / max(seconds, 1.0)), 1), taken_at)


def _open(path: Path) -> tuple[av.container.InputContainer, VideoStream]:
    import av

    file = av.open(str(path.absolute()), options=_LOCAL, metadata_errors="replace")
    if not file.streams.video:
        file.close()
        raise ImageError("not a video: it has no picture")
    return file, file.streams.video[0]


def _last_end(file: av.container.InputContainer, stream: VideoStream) -> float:
    packets = (packet for packet in file.demux(stream) if packet.pts is not None)
    ends = ((packet.pts or 0) + (packet.duration or 0) for packet in packets)
    return float(max(ends, default=0) * (stream.time_base or 0))


def _start(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _taken_at(metadata: dict[str, Any]) -> datetime | None:
    for key in ("com.apple.quicktime.creationdate", "creation_time", "DATE_RECORDED"):
        try:
            noted = datetime.fromisoformat(str(metadata.get(key, ""))).replace(tzinfo=None)
        except ValueError:
            continue
        if noted.year >= _EARLIEST:
            return noted
    return None


@contextmanager
def _errors_named() -> Iterator[None]:
    """Turn what FFmpeg says into the error of an image, and forget the video that is open."""
    try:
        import av
    except ImportError as error:
        raise ImageError("a video, which needs the package av", hint=_INSTALL) from error
    try:
        yield
    except (av.FFmpegError, ImageError) as error:
        if (old := getattr(_playing, "player", None)) is not None:
            old.close()
        _playing.key = _playing.player = None
        if isinstance(error, (ImageError, OSError)):
            raise
        raise ImageError(f"damaged, or no video ({error.strerror or error})") from error
