"""Pixels for training: those of `read_image` for photos, those stored for all else, and clear refusals."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
import skimage.data
import tifffile

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import read_image
from dinov2kit.train import pixels as pixels_module
from dinov2kit.train.pixels import PixelRules

PHOTO = skimage.data.chelsea()
TO_STORED = {  # EXIF orientation -> what a camera does to the upright scene before it stores it
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def noise(*shape: int, dtype: type = np.uint8, high: int = 200) -> np.ndarray:
    return (np.random.default_rng(0).random(shape) * high).astype(dtype)


def luminance(rgb: np.ndarray) -> np.ndarray:
    return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_what_read_image_makes_of_it_in_all_orientations(orientation: int) -> None:
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Orientation] = orientation
    stored = PIL.Image.fromarray(PHOTO)
    stored = stored.transpose(TO_STORED[orientation]) if orientation > 1 else stored
    content = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif)
    decoded = PixelRules().decode(content)
    slow = read_image(content)
    assert decoded.shape == slow.shape == PHOTO.shape
    assert np.abs(decoded.astype(int) - slow).max() <= 2  # two builds of the decoder may round differently
    assert np.abs(decoded.astype(int) - PHOTO).mean() < 3
    grey = PixelRules(1).decode(content)
    assert grey.shape == (300, 451, 1)
    assert np.abs(grey[:, :, 0] - luminance(slow)).max() < 3


def test_the_fast_way_is_taken_for_jpegs_in_colour_and_grey_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noting(content: bytes) -> np.ndarray:
        seen.append("slow")
        return read_image(content)

    monkeypatch.setattr(pixels_module, "read_image", noting)
    photo = PIL.Image.fromarray(PHOTO)
    for mode, slow in (("RGB", False), ("L", False), ("CMYK", True)):
        seen.clear()
        content = encoded(photo.convert(mode), "JPEG", quality=95)
        assert np.abs(PixelRules().decode(content).astype(int) - read_image(content)).max() <= 2
        assert bool(seen) == slow, mode
    progressive = encoded(photo, "JPEG", progressive=True, optimize=True)
    seen.clear()
    assert np.abs(PixelRules().decode(progressive).astype(int) - read_image(progressive)).max() <= 2
    assert not seen


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "1", "I;16"])
def test_what_is_no_jpeg_is_exactly_what_read_image_makes_of_it(mode: str) -> None:
    if mode == "I;16":
        image = PIL.Image.fromarray(noise(20, 30, dtype=np.uint16, high=65535))
    else:
        image = PIL.Image.fromarray(noise(20, 30, 4), "RGBA").convert(mode)
    content = encoded(image, "PNG")
    assert np.array_equal(PixelRules().decode(content), read_image(content))
    grey = PixelRules(1).decode(content)
    assert np.abs(grey[:, :, 0] - luminance(read_image(content))).max() < 0.51


def test_grey_stays_exactly_itself_in_one_channel() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    content = encoded(PIL.Image.fromarray(values), "PNG")
    assert np.array_equal(PixelRules(1).decode(content)[:, :, 0], values)
    assert np.array_equal(PixelRules(1).decode(saved(values))[:, :, 0], values)
    assert np.array_equal(PixelRules(3).decode(saved(values)), np.repeat(values[:, :, None], 3, axis=2))


@pytest.mark.parametrize("channels", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_channels_of_a_tiff_are_those_stored(channels: int, planes: str, dtype: type) -> None:
    values = noise(20, 24, channels, dtype=dtype)
    laid = values if planes == "contig" else np.ascontiguousarray(np.moveaxis(values, 2, 0))
    content = tiff(laid, photometric="minisblack", planarconfig=planes)
    decoded = PixelRules(channels, (0.0, 255.0)).decode(content)
    expected = np.rint(values.astype(np.float64)).astype(np.uint8)  # 0 to 255 leaves 8 bits as they are
    assert np.array_equal(decoded, expected)


def test_the_pages_of_a_tiff_are_channels_too() -> None:
    values = noise(10, 12, 5)
    pages = [PIL.Image.fromarray(values[:, :, page]) for page in range(5)]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert np.array_equal(PixelRules(5).decode(content), values)


def test_four_channels_of_a_png_come_as_red_green_blue_alpha() -> None:
    values = noise(10, 12, 4)
    assert np.array_equal(PixelRules(4).decode(encoded(PIL.Image.fromarray(values), "PNG")), values)


def test_sixteen_bits_are_rounded_to_the_nearest_of_eight() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(PixelRules(1).decode(saved(values))[:, :, 0], expected)
    assert np.array_equal(
        PixelRules(1).decode(encoded(PIL.Image.fromarray(values), "PNG"))[:, :, 0], expected
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["npy", "png", "tiff"])
def test_a_window_maps_its_ends_to_black_and_white(kind: str, channels: int) -> None:
    values = np.array([[0, 1000, 1500, 2000, 3000, 65535]], np.uint16)
    content = {
        "npy": saved(values),
        "png": encoded(PIL.Image.fromarray(values), "PNG"),
        "tiff": encoded(PIL.Image.fromarray(values), "TIFF"),
    }[kind]
    decoded = PixelRules(channels, (1000.0, 2000.0)).decode(content)
    assert decoded.shape == (1, 6, channels)
    for channel in range(channels):
        assert decoded[0, :, channel].tolist() == [0, 0, 128, 255, 255, 255]


def test_a_window_reads_floating_point_and_signed_numbers_and_leaves_eight_bits_alone() -> None:
    rules = PixelRules(1, (-1.0, 1.0))
    values = np.array([[-5.0, -1.0, 0.0, 0.5, 1.0, np.inf, np.nan]], np.float32)
    assert rules.convert(values)[0, :, 0].tolist() == [0, 0, 128, 191, 255, 255, 0]
    signed = PixelRules(1, (-1000.0, 1000.0)).convert(np.array([[-2000, 0, 1000]], np.int16))
    assert signed[0, :, 0].tolist() == [0, 128, 255]
    plain = noise(4, 5, 3)
    assert np.array_equal(PixelRules(3, (10.0, 20.0)).convert(plain), plain)
    assert np.array_equal(
        PixelRules(3, (10.0, 20.0)).decode(encoded(PIL.Image.fromarray(plain), "PNG")), plain
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint32])
def test_numbers_without_black_and_white_need_a_window(dtype: type) -> None:
    with pytest.raises(ImageError, match=np.dtype(dtype).name) as caught:
        PixelRules().convert(noise(4, 5, 3, dtype=dtype))
    assert "window" in str(caught.value.hint)


@pytest.mark.parametrize(("stored", "wanted"), [(3, 4), (2, 3), (4, 3), (5, 1), (1, 2)])
def test_another_number_of_channels_is_an_error_that_names_both(stored: int, wanted: int) -> None:
    with pytest.raises(ImageError, match=rf"it has {stored} channels?; wanted {wanted}"):
        PixelRules(wanted).decode(saved(noise(4, 5, stored)))
    if stored == 3:
        with pytest.raises(ImageError, match="it has 3 channels; wanted 4"):
            PixelRules(wanted).decode(encoded(PIL.Image.fromarray(PHOTO), "JPEG"))


@pytest.mark.parametrize(
    "values", [np.zeros(5, np.uint8), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4))]
)
def test_an_array_that_is_not_one_image_is_refused(values: np.ndarray) -> None:
    with pytest.raises(ImageError, match="wanted one image"):
        PixelRules().decode(saved(values))


def contents() -> dict[str, bytes]:
    photo = PIL.Image.fromarray(PHOTO)
    return {
        "jpeg": encoded(photo, "JPEG"),
        "png": encoded(photo, "PNG"),
        "webp": encoded(photo, "WEBP"),
        "npy": saved(PHOTO),
    }


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "npy"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_files_are_errors(kind: str, keep: float) -> None:
    content = contents()[kind]
    for rules in (PixelRules(), PixelRules(1)):
        with pytest.raises(ImageError):
            rules.decode(content[: int(keep * len(content))])


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_truncated_tiff_and_png_of_many_channels_are_errors(keep: float) -> None:
    values = noise(64, 64, 4)
    for content in (tiff(values, photometric="minisblack"), encoded(PIL.Image.fromarray(values), "PNG")):
        with pytest.raises(ImageError):
            PixelRules(4).decode(content[: int(keep * len(content))])


def test_what_is_no_image_is_refused_with_its_kind() -> None:
    for content, words in (
        (b"", "empty"),
        (b"%PDF-1.4", "PDF"),
        (b"PK\x03\x04", "ZIP"),
        (b"rubbish", "not an"),
    ):
        with pytest.raises(ImageError, match=words):
            PixelRules().decode(content)


def test_arrays_with_python_objects_are_never_unpickled() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], object), allow_pickle=True)
    with pytest.raises(ImageError, match="damaged"):
        PixelRules().decode(file.getvalue())


@pytest.mark.parametrize("wrong", [(0, None), (3, (1.0, 1.0)), (3, (2.0, 1.0))])
def test_impossible_rules_are_refused(wrong: tuple[int, tuple[float, float] | None]) -> None:
    with pytest.raises(ArgumentError, match="wanted"):
        PixelRules(*wrong)


def test_a_jpeg_larger_than_is_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its header says 65535 x 65535; nothing of that size is set aside."""
    content = bytearray(encoded(PIL.Image.fromarray(PHOTO), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(ImageError, match="too large"):
        PixelRules().decode(bytes(content))


def test_the_pixels_are_a_copy_that_may_be_written_to() -> None:
    values = noise(4, 5, 3)
    before = values.copy()
    for given in (values, values[:, ::2], np.asfortranarray(values)):
        decoded = PixelRules().convert(given)
        assert decoded.flags.c_contiguous
        assert np.array_equal(decoded, given)
        decoded[:] = 0
        assert np.array_equal(values, before)
