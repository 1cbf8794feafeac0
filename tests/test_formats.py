"""Files that are not what they seem: each is refused with its own reason, quickly and without harm."""

import io
import os
import socket
import struct
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import PIL.Image
import pytest
import skimage.data

from dinov2kit import ImageError
from dinov2kit.formats import IMAGE_SUFFIXES, identify
from dinov2kit.images import load_picture, read_image
from dinov2kit.views import CenterCrop

KINDS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF", "HEIF"]


def photo_as(kind: str) -> bytes:
    file = io.BytesIO()
    image = PIL.Image.fromarray(skimage.data.coffee()[:200, :240])
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").from_pillow(image).save(file)
        return file.getvalue()
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image.save(file, kind)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of some 60 bytes that claims to be as large as you like."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_content_counts_and_not_the_extension(kind, tmp_path):
    path = tmp_path / "holiday.txt"
    path.write_bytes(photo_as(kind))
    assert identify(path.read_bytes()[:64]) == kind
    assert read_image(path).shape == (200, 240, 3)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(kind, share):
    content = photo_as(kind)
    with pytest.raises(ImageError, match=r"^the bytes given: (damaged|not an image)"):
        load_picture(content[: int(len(content) * share)], CenterCrop())


def test_a_large_truncated_jpeg_is_refused_at_the_smaller_scale_too():
    file = io.BytesIO()
    PIL.Image.fromarray(skimage.data.coffee()).resize((2400, 1600)).save(file, "JPEG")
    assert load_picture(file.getvalue(), CenterCrop()).width == 2400
    with pytest.raises(ImageError, match="truncated"):
        load_picture(file.getvalue()[: len(file.getvalue()) // 2], CenterCrop())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg/>", "SVG"),
        (b"\n\n<!DOCTYPE html><html>", "web page"),
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"8BPS\0\1", "Photoshop"),
        (b"PK\x03\x04", "ZIP"),
        (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "video"),
        (b"\0" * 5000, "zeros at its start"),
        (b"hello, this is a text file", "not an image in a format"),
        (b"\xff\xd8\xff", "damaged"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"P6 10 10 255\n", "damaged or truncated"),
    ],
)
def test_what_is_no_image_is_named(content, reason, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        load_picture(path, CenterCrop())
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message


def test_folders_and_missing_files_are_named(tmp_path):
    with pytest.raises(ImageError, match="a folder, not an image file"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="no such file"):
        read_image(str(tmp_path / "link.jpg"))


@pytest.mark.timeout(10)
def test_special_files_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    with pytest.raises(ImageError, match="a named pipe"):
        read_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="a device"):
        read_image(Path("/dev/zero"))
    old = Path.cwd()
    os.chdir(tmp_path)  # the path of a socket is short by rule
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("s.jpg")
            with pytest.raises(ImageError, match="a socket"):
                read_image("s.jpg")
    finally:
        os.chdir(old)


def test_a_file_without_permission_is_named(tmp_path, monkeypatch):
    path = tmp_path / "secret.png"
    path.write_bytes(photo_as("PNG"))
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ImageError, match="Permission denied"):
        read_image(path)


@pytest.mark.parametrize("size", [(60_000, 60_000), (2_000_000_000, 1), (12_000, 12_000)])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(size):
    start = time.perf_counter()
    with pytest.raises(ImageError, match="too large"):
        load_picture(png_header(*size), CenterCrop(), max_pixels=100_000_000)
    assert time.perf_counter() - start < 0.5


def test_the_limit_can_be_lowered_and_is_exact():
    content = photo_as("PNG")
    assert load_picture(content, CenterCrop(), max_pixels=240 * 200).width == 240
    with pytest.raises(ImageError, match="240x200 is over the limit of 47,999 pixels"):
        load_picture(content, CenterCrop(), max_pixels=240 * 200 - 1)


def test_heic_without_its_package_says_what_to_install(monkeypatch):
    content = photo_as("HEIF")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImageError, match="pillow-heif") as caught:
        read_image(content)
    assert caught.value.hint == "pip install 'dinov2kit[heic]'"


def test_pillow_stays_as_the_user_left_it():
    file = io.BytesIO()
    PIL.Image.new("L", (10_000, 9_500), 80).save(file, "JPEG")  # enough pixels for a warning by Pillow
    limit, filters = PIL.Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = load_picture(file.getvalue(), CenterCrop())
        assert warnings.filters[0][0] == "error"
    assert (picture.pixels == 80).all()
    assert limit == PIL.Image.MAX_IMAGE_PIXELS
    assert warnings.filters == filters


def test_threads_may_decode_at_once_and_leave_the_filters_as_they_were():
    content, filters = photo_as("PNG"), list(warnings.filters)
    with ThreadPoolExecutor(8) as threads:
        pictures = list(threads.map(lambda _: load_picture(content, CenterCrop()).pixels, range(80)))
    assert all((pixels == pictures[0]).all() for pixels in pictures)
    assert warnings.filters == filters


def test_random_damage_is_an_image_error_or_an_image():
    content = bytearray(photo_as("JPEG"))
    for position in range(2, len(content), len(content) // 60):
        damaged = bytes(content[:position]) + b"\xff\x00\xd9" + bytes(content[position + 3 :])
        try:
            assert load_picture(damaged, CenterCrop()).pixels.shape == (224, 224, 3)
        except ImageError as error:
            assert error.message.startswith("the bytes given: ")  # noqa: PT017


def test_suffixes_are_lower_case_with_a_dot():
    assert {".jpg", ".heic", ".png", ".tif", ".webp", ".avif"} <= IMAGE_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
