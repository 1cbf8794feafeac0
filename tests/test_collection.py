"""A whole collection with real decoding in workers: bad files, a thousand renames."""

import io
import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint
from PIL import Image

from dinov2kit.indexes import Snapshot, UpdateRules, index_photos, list_errors


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)


def encoded(kind: str, number: int = 0) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (60, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """Return a small PNG that says it is 60,000 by 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write_bad(folder: Path) -> set[Path]:
    """Write sixty files that look like photos and cannot be described; each differs from the others."""
    contents = {
        "truncated.jpg": lambda n: encoded("JPEG", n)[: 400 + n],
        "truncated.png": lambda n: encoded("PNG", n)[: 300 + n],
        "truncated.webp": lambda n: encoded("WEBP", n)[: 200 + n],
        "text.jpg": lambda n: b"Dear diary, %d" % n,
        "html.png": lambda n: b"<html>404, %d</html>" % n,
        "zeros.jpg": lambda n: bytes(1000 + n),
        "bomb.png": lambda n: bomb() + bytes(n),
        "float.tif": lambda n: _float_tiff(n),
        "pdf.jpg": lambda n: b"%PDF-1.7 " + bytes(n),
        "noise.gif": lambda n: b"GIF89a" + np.random.default_rng(n).bytes(500),
    }
    bad = set()
    for name, make in contents.items():
        for number in range(5):
            bad.add(folder / f"{number}-{name}")
            (folder / f"{number}-{name}").write_bytes(make(number))
    for number in range(4):
        bad.add(folder / f"empty{number}.jpg")
        (folder / f"empty{number}.jpg").touch()
    for number in range(3):
        os.mkfifo(folder / f"pipe{number}.jpg")
        bad.add(folder / f"pipe{number}.jpg")
    for number in range(3):
        path = folder / os.fsdecode(b"undecodable-\xff%d.jpg" % number)
        path.write_bytes(b"rubbish %d" % number)
        bad.add(path)
    return bad


def _float_tiff(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), float(number), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def write_good(folder: Path) -> set[Path]:
    """Write two hundred photos, some of them of unusual kinds."""
    good = set()
    for number in range(200):
        suffix = (b".jpg", b".png", b".tif", b".jpg")[number % 4]
        path = folder / os.fsdecode(b"g\xffod%03d" % number + suffix)
        image = Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), np.uint8))
        if number % 20 == 0:
            image = image.convert("CMYK")
        elif number % 20 == 1:
            image = Image.fromarray(np.random.default_rng(number).integers(0, 65536, (30, 40), np.uint16))
        elif number % 20 == 5:
            image.putalpha(128)
        image.save(path)
        good.add(path)
    wrong_name = folder / "g-really-a-png.jpg"
    wrong_name.write_bytes(encoded("PNG", 999))
    dropped = sorted(good)[-1]
    dropped.unlink()
    return good - {dropped} | {wrong_name}


@pytest.mark.timeout(120)
def test_sixty_bad_files_among_two_hundred_good_ones_cost_nothing(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    good, bad = write_good(folder), write_bad(folder)
    assert (len(good), len(bad)) == (200, 60)
    rules = UpdateRules(workers=2, timeout=20.0)
    started = time.monotonic()
    report = index_photos(tmp_path / "ix", [folder], encoder=ColourEncoder(), rules=rules).report
    assert time.monotonic() - started < 100
    assert report.new == 200
    assert {path for path, _ in report.errors} == bad
    with Snapshot.open(tmp_path / "ix") as snapshot:
        assert {photo.path for photo in snapshot.photos(snapshot.ids)} == good
        assert np.isfinite(snapshot.descriptors(snapshot.ids)).all()
    listed = {error.path: error.reason for error in list_errors(tmp_path / "ix")}
    assert listed.keys() == bad
    assert all(len(reason) > 10 for reason in listed.values())
    assert all(str(path) not in reason for path, reason in listed.items())  # the path is said once


def test_a_batch_in_which_all_is_bad_does_not_end_the_run(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    bad = write_bad(folder)
    paint(folder / "zz-good.png", (9, 99, 9))
    report = index_photos(
        tmp_path / "ix", [folder], encoder=ColourEncoder(), rules=UpdateRules(batch_size=2)
    ).report
    assert (report.new, len(report.errors)) == (1, len(bad))


def test_a_thousand_renames_and_a_thousand_touches_describe_nothing(tmp_path):
    folder = tmp_path / "photos"
    for number in range(1000):
        paint(folder / f"{number % 7}/{number:04}.bmp", (number % 256, number // 4, 200), size=(2, 2))
    encoder = ColourEncoder()
    index_photos(tmp_path / "ix", [folder], encoder=encoder)
    described = encoder.embedded
    assert described > 900
    for path in sorted(folder.rglob("*.bmp")):
        (folder / f"new{path.stem[-1]}").mkdir(exist_ok=True)
        path.rename(folder / f"new{path.stem[-1]}" / f"renamed-{path.name}")
    report = index_photos(tmp_path / "ix", [folder], encoder=encoder).report
    assert (report.moved, report.described, encoder.embedded) == (1000, 0, described)
    for path in folder.rglob("*.bmp"):
        os.utime(path, (2_000_000_000, 2_000_000_000))
    report = index_photos(tmp_path / "ix", [folder], encoder=encoder).report
    assert (report.unchanged, report.described, encoder.embedded) == (1000, 0, described)
