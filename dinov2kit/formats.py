"""What kind of file an image is, told by its first bytes, and how it is opened without harm.

The extension is never trusted. Nothing is decoded here, and Pillow's global settings stay as they are.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import PIL.features
import PIL.Image
from PIL.ImageFile import ImageFile

from dinov2kit.contents import open_content
from dinov2kit.errors import ImageError

MAX_PIXELS = 178_956_970  # where Pillow itself refuses

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
IMAGE_SUFFIXES = HEIC_SUFFIXES | {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".avif", ".gif"),
    *(".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".jpc"),
}

_SIGNATURES = (  # first bytes -> Pillow's name of the format
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    *((b"P%d" % kind, "PPM") for kind in range(1, 7)),
)
_NO_PHOTOS = (  # what else stands first in files that carry the name of an image
    (b"%PDF", "a PDF document"),
    (b"%!PS", "a PostScript document"),
    (b"8BPS", "a Photoshop document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1a\x45\xdf\xa3", "a video"),
    (b"\0\0\0\0", "zeros at its start, often a failed download or copy"),
)


class _Quiet:
    """Keeps Pillow's warnings from the user; several threads may be inside at once."""

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


quiet = _Quiet()


@contextmanager
def open_encoded(source: Path | bytes, *, max_pixels: int) -> Iterator[ImageFile]:
    """Open an encoded image, its pixels not yet decoded.

    Args:
        source: a path as `dinov2kit.contents` knows them, or the content of a file.
        max_pixels: larger images are refused. Pillow's own limit holds as well.

    Raises:
        ImageError: no regular file, no image, or too large; the message does not name the file.
        OSError: the file cannot be read.
        PIL.Image.DecompressionBombError: larger than Pillow's own limit.
    """
    with io.BytesIO(source) if isinstance(source, bytes) else open_content(source) as file:
        kind = identify(file.read(64))
        file.seek(0)
        if kind == "HEIF":
            _teach_heic()
        elif kind == "AVIF" and not PIL.features.check("avif"):
            raise ImageError("AVIF, which this build of Pillow cannot read", hint="pip install -U pillow")
        with PIL.Image.open(file, formats=[kind]) as image:
            if image.width * image.height > max_pixels:
                size = f"{image.width}x{image.height}"
                raise ImageError(f"too large: {size} is over the limit of {max_pixels:,} pixels")
            yield image


def identify(head: bytes) -> str:
    """Return Pillow's name of the format whose files begin like `head` (64 bytes are enough).

    Raises:
        ImageError: the content is no image that can be read here.
    """
    if not head:
        raise ImageError("the file is empty")
    if head[4:8] == b"ftyp":
        return _identify_iso_media(head)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return kind
    for signature, words in _NO_PHOTOS:
        if head.startswith(signature):
            raise ImageError(f"not an image: {words}")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml")):
        raise ImageError("an SVG or XML file; wanted an image made of pixels", hint="export it as PNG")
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        raise ImageError("not an image but a web page, often a failed download")
    raise ImageError("not an image in a format that can be read")


def _identify_iso_media(head: bytes) -> str:
    """Tell AVIF and HEIC from videos by the brands in the `ftyp` box (ISO/IEC 14496-12, section 4.3)."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & {b"mif1", b"msf1", b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}:
        return "HEIF"
    raise ImageError("not an image: a video or audio file")


def _teach_heic() -> None:
    """Let Pillow open HEIC files in this process."""
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            "HEIC, which needs the package pillow-heif", hint="pip install 'dinov2kit[heic]'"
        ) from error
    pillow_heif.register_heif_opener()
