"""Small videos for tests: each second has a colour of its own."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

COLOURS = ((200, 30, 30), (30, 180, 30), (40, 40, 210), (210, 200, 40), (190, 60, 190), (40, 190, 200))
RATE = 10


def write_video(
    path: Path,
    *,
    codec: str = "libx264",
    seconds: float = len(COLOURS),
    rotation: int = 0,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write frames of 64x48 whose colour changes every second; the upper left corner is white.

    Within a second the frames differ: a black column walks from left to right.
    """
    av = pytest.importorskip("av", reason="videos need the package av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        file.metadata.update(metadata or {})
        stream = file.add_stream(codec, rate=RATE, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(round(seconds * RATE)):
            pixels = np.empty((48, 64, 3), np.uint8)
            pixels[:] = COLOURS[number // RATE % len(COLOURS)]
            pixels[:16, :16] = 255
            start = 4 + 6 * (number % RATE)
            pixels[32:, start : start + 6] = 0
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def second_shown(pixels: np.ndarray) -> int:
    """Return the second to which the colour in the middle of a frame belongs."""
    middle = pixels[pixels.shape[0] // 2, pixels.shape[1] // 2].astype(int)
    return int(np.abs(np.array(COLOURS) - middle).sum(axis=1).argmin())


def frame_shown(pixels: np.ndarray) -> int:
    """Return which of the frames of its second an unturned frame is."""
    return round((float(pixels[44, :, :].sum(axis=1).argmin()) - 6.5) / 6)
