"""Image files to pixels: equal to the plain path, whatever the format, mode, depth or orientation."""

import io
import resource

import numpy as np
import PIL.Image
import pytest
import skimage.data

from dinov2kit import ArgumentError, ImageError
from dinov2kit.images import Region, load_picture, read_image
from dinov2kit.views import CenterCrop, KeepAspect

TO_STORED = {  # EXIF orientation -> what a camera does to the upright scene before it stores it
    1: None,
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_90,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_270,
}
WHITE = (255, 255, 255)


def psnr(image0: np.ndarray, image1: np.ndarray) -> float:
    error = np.square(image0.astype(np.float64) - image1).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-10)))


def largest_step(image0: np.ndarray, image1: np.ndarray) -> int:
    return int(np.abs(image0.astype(int) - image1).max())


def encoded(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_with(**tags: object) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    for name, value in tags.items():
        tag = PIL.ExifTags.Base[name]
        (exif if name in ("Orientation", "DateTime") else exif.get_ifd(PIL.ExifTags.IFD.Exif))[tag] = value
    return exif


def plain_center_crop(image: PIL.Image.Image) -> np.ndarray:
    """The slow path: resize the whole image to a shorter side of 256, then cut 224 from its middle."""
    width, height = image.size
    long = int(256 * max(width, height) / min(width, height))
    size = (256, long) if width <= height else (long, 256)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    resized = image.convert("RGB").resize((size[0], image.height), PIL.Image.Resampling.BICUBIC)
    resized = resized.resize(size, PIL.Image.Resampling.BICUBIC)  # across, then down, whatever is cheaper
    return np.asarray(resized.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def photo() -> PIL.Image.Image:
    """A photo of odd size without any symmetry."""
    return PIL.Image.fromarray(skimage.data.chelsea())


@pytest.fixture(scope="module")
def mosaic() -> PIL.Image.Image:
    """Real photos side by side, 4032x3024."""
    photos = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket()]
    canvas = PIL.Image.new("RGB", (4032, 3024))
    for k in range(90):
        row, col = divmod(k, 9)
        canvas.paste(PIL.Image.fromarray(photos[(k + row) % 4]), (450 * col, 303 * row))
    return canvas


@pytest.fixture(scope="module")
def jpeg_12mp(mosaic) -> bytes:
    return encoded(mosaic, "JPEG", quality=90)


def test_a_12_megapixel_jpeg_equals_the_plain_path_to_50_db(jpeg_12mp):
    plain = plain_center_crop(PIL.Image.open(io.BytesIO(jpeg_12mp)))
    assert psnr(load_picture(jpeg_12mp, CenterCrop()).pixels, plain) > 50


def test_a_large_jpeg_equals_the_plain_path_with_its_aspect_kept(jpeg_12mp):
    full = PIL.Image.open(io.BytesIO(jpeg_12mp)).convert("RGB")
    plain = np.asarray(full.resize((518, 392), PIL.Image.Resampling.BICUBIC))
    assert psnr(load_picture(jpeg_12mp, KeepAspect()).pixels, plain) > 50


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (1001, 257), (64, 48), (224, 224)])
def test_a_png_equals_the_plain_path_exactly(photo, size):
    image = photo.resize(size)
    assert psnr(load_picture(encoded(image, "PNG"), CenterCrop()).pixels, plain_center_crop(image)) > 80


def test_a_small_jpeg_is_never_decoded_at_less_than_twice_the_resolution(photo):
    content = encoded(photo, "JPEG", quality=90)  # 451x300: any DCT scaling would blur it
    plain = plain_center_crop(PIL.Image.open(io.BytesIO(content)))
    assert psnr(load_picture(content, CenterCrop()).pixels, plain) > 80


@pytest.mark.parametrize("view", [CenterCrop(), KeepAspect()], ids=["crop", "whole"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_eight_orientations_give_one_upright_picture(photo, orientation, view):
    turn = TO_STORED[orientation]
    stored = photo.transpose(turn) if turn is not None else photo
    content = encoded(stored, "PNG", exif=exif_with(Orientation=orientation))
    picture, upright = load_picture(content, view), load_picture(encoded(photo, "PNG"), view)
    assert largest_step(picture.pixels, upright.pixels) <= 1
    assert psnr(picture.pixels, upright.pixels) > 70  # a mirrored box differs in its last bit
    assert (picture.width, picture.height, picture.orientation) == (451, 300, orientation)
    np.testing.assert_array_equal(read_image(content), np.asarray(photo))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations_agree_where_the_jpeg_is_decoded_at_a_smaller_scale(mosaic, orientation):
    scene = mosaic.crop((0, 0, 1600, 1203))  # decoded at half size; 1203 is no multiple of the JPEG blocks
    turn = TO_STORED[orientation]
    stored = scene.transpose(turn) if turn is not None else scene
    content = encoded(stored, "JPEG", quality=97, subsampling=0, exif=exif_with(Orientation=orientation))
    assert psnr(load_picture(content, CenterCrop()).pixels, plain_center_crop(scene)) > 40


@pytest.mark.parametrize("kind", ["WEBP", "TIFF", "AVIF", "MPO"])
def test_orientation_is_applied_once_in_every_format(photo, kind):
    if kind == "AVIF" and not PIL.features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    stored = photo.transpose(TO_STORED[6])
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98} if kind in ("AVIF", "MPO") else {}
    content = encoded(stored, kind, exif=exif_with(Orientation=6), **options)
    assert read_image(content).shape == (300, 451, 3)
    assert psnr(read_image(content), np.asarray(photo)) > 35
    picture = load_picture(content, CenterCrop())
    assert (picture.width, picture.height) == (451, 300)
    assert psnr(picture.pixels, plain_center_crop(photo)) > 38


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_region_equals_the_cropped_image(photo, orientation):
    turn = TO_STORED[orientation]
    stored = photo.transpose(turn) if turn is not None else photo
    content = encoded(stored, "PNG", exif=exif_with(Orientation=orientation))
    cropped = encoded(photo.crop((120, 40, 320, 260)), "PNG")
    for view in (CenterCrop(), KeepAspect()):
        pixels = load_picture(content, view, region=Region(120, 40, 200, 220)).pixels
        assert largest_step(pixels, load_picture(cropped, view).pixels) <= (1 if orientation == 7 else 0)


def test_a_region_of_a_large_jpeg_is_decoded_finely_enough(mosaic, jpeg_12mp):
    corner = Region(0.5, 0.5, 0.25, 0.25, relative=True)
    picture = load_picture(jpeg_12mp, CenterCrop(), region=corner)
    full = PIL.Image.open(io.BytesIO(jpeg_12mp)).crop((2016, 1512, 3024, 2268))
    assert psnr(picture.pixels, plain_center_crop(full)) > 45
    assert (picture.width, picture.height) == (4032, 3024)


def test_a_region_beyond_the_image_is_an_argument_error(photo):
    with pytest.raises(ArgumentError, match="451x300"):
        load_picture(photo, CenterCrop(), region=Region(400, 0, 100, 100))


def test_all_sources_of_one_image_give_the_same_picture(photo, tmp_path):
    path = tmp_path / "photo.png"
    photo.save(path)
    sources = [path, str(path), path.read_bytes(), photo, np.asarray(photo)]
    first, *others = [load_picture(source, CenterCrop()) for source in sources]
    for other in others:
        np.testing.assert_array_equal(first.pixels, other.pixels)
        assert other.pixels.flags.writeable  # torch warns about arrays that are not
    for source in sources:
        np.testing.assert_array_equal(read_image(source), np.asarray(photo))


def test_a_pil_image_is_left_as_it_was(jpeg_12mp):
    image = PIL.Image.open(io.BytesIO(jpeg_12mp))
    load_picture(image, CenterCrop())
    assert image.size == (4032, 3024)
    assert read_image(image).shape == (3024, 4032, 3)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8)]
)
def test_arrays_that_are_no_rgb_images_are_refused(array):
    with pytest.raises(ImageError, match=r"uint8 \(height, width, 3\)|no pixels"):
        load_picture(array, CenterCrop())


def test_transparency_becomes_white():
    half = PIL.Image.new("RGBA", (2, 1), (200, 0, 0, 128))
    half.putpixel((1, 0), (0, 0, 0, 0))
    expected = [[[round(200 * 128 / 255 + 127), 127, 127], WHITE]]
    assert largest_step(read_image(encoded(half, "PNG")), np.array(expected)) <= 1
    assert read_image(encoded(PIL.Image.new("LA", (1, 1), (0, 0)), "PNG")).tolist() == [[list(WHITE)]]
    palette = PIL.Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert read_image(encoded(palette, "PNG")).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    for transparency in (1, bytes([255, 0])):
        content = encoded(palette, "PNG", transparency=transparency)
        assert read_image(content).tolist() == [[[255, 0, 0], list(WHITE)]]
    keyed = PIL.Image.new("RGB", (2, 1), (9, 9, 9))
    keyed.putpixel((0, 0), (1, 2, 3))
    content = encoded(keyed, "PNG", transparency=(1, 2, 3))
    assert read_image(content).tolist() == [[list(WHITE), [9, 9, 9]]]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("1", "PNG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG")],
)
def test_colour_modes_look_as_pillow_shows_them(photo, mode, kind):
    content = encoded(photo.convert(mode), kind)
    with PIL.Image.open(io.BytesIO(content)) as image:
        shown = image.convert("RGB")
    np.testing.assert_array_equal(read_image(content), np.asarray(shown))
    assert psnr(load_picture(content, CenterCrop()).pixels, plain_center_crop(shown)) > 80
    if mode == "CMYK":  # an inverted one would be a negative
        assert psnr(np.asarray(shown), np.asarray(photo)) > 20


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_and_not_clipped(kind):
    values = np.array([[0, 257, 12_850, 32_896, 65_535, 128, 129]], np.uint16)
    expected = [0, 1, 50, 128, 255, 0, 1]
    content = encoded(PIL.Image.fromarray(values), kind)
    assert read_image(content)[0, :, 0].tolist() == expected
    assert read_image(PIL.Image.fromarray(values.astype(np.int32)))[0, :, 1].tolist() == expected


def test_big_endian_grey_of_16_bits_is_read_as_well():
    values = np.array([[0, 257, 65_535]], np.uint16)
    image = PIL.Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert read_image(encoded(image, "TIFF"))[0, :, 2].tolist() == [0, 1, 255]


def test_rgb_of_16_bits_keeps_its_range():
    cv2 = pytest.importorskip("cv2")
    bgr = np.zeros((1, 2, 3), np.uint16)
    bgr[0, 1] = (65_535, 32_768, 256)
    content = cv2.imencode(".png", bgr)[1].tobytes()
    assert largest_step(read_image(content), np.array([[[0, 0, 0], [1, 128, 255]]])) <= 1


def test_pixels_without_a_fixed_range_are_refused_with_a_sentence(tmp_path):
    path = tmp_path / "depth.tiff"
    PIL.Image.fromarray(np.ones((8, 8), np.float32)).save(path)
    with pytest.raises(ImageError, match=r"depth.tiff: its pixels are floating-point numbers"):
        load_picture(path, CenterCrop())
    with pytest.raises(ImageError, match="at most 16 bits"):
        read_image(PIL.Image.fromarray(np.full((2, 2), 70_000, np.int32)))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_taken(kind):
    frames = [PIL.Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (read_image(content) == (255, 0, 0)).all()


def test_a_heic_photo_is_read_upright(photo):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    stored = photo.transpose(TO_STORED[6])
    pillow_heif.from_pillow(stored).save(file, quality=95, exif=exif_with(Orientation=6).tobytes())
    picture = load_picture(file.getvalue(), CenterCrop())
    assert (picture.width, picture.height) == (451, 300)
    assert psnr(picture.pixels, plain_center_crop(photo)) > 35


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (2, 3000), (3000, 1), (3, 2), (17, 8001)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_shapes_work(size, kind):
    content = encoded(
        PIL.Image.new("RGB", size, (10, 200, 90)), kind, **({"quality": 95} if kind == "JPEG" else {})
    )
    crop, whole = load_picture(content, CenterCrop()), load_picture(content, KeepAspect())
    assert crop.pixels.shape == (224, 224, 3)
    assert max(whole.pixels.shape) == 518
    for picture in (crop, whole):
        assert largest_step(picture.pixels, np.array((10, 200, 90))) <= 3
        assert (picture.width, picture.height) == size


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [(2, 2_000_000), (2_000_000, 2)])
def test_a_strip_of_millions_of_pixels_takes_no_more_memory_than_itself(size):
    strip = np.broadcast_to(np.linspace(0, 255, max(size)).astype(np.uint8)[:, None], (max(size), 2))
    content = encoded(PIL.Image.fromarray(np.ascontiguousarray(strip if size[0] == 2 else strip.T)), "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole, crop = (load_picture(content, view).pixels for view in (KeepAspect(), CenterCrop()))
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200  # MiB on Linux
    along = whole[:, 28, 0] if size[0] == 2 else whole[28, :, 0]
    np.testing.assert_allclose(along, (np.arange(518) + 0.5) / 518 * 255 - 0.5, atol=1.5)
    assert largest_step(crop, np.full(3, 127)) <= 1


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"DateTimeOriginal": "2021:07:04 05:06:07"}, "2021-07-04T05:06:07"),
        ({"DateTime": "2020:01:02 03:04:05"}, "2020-01-02T03:04:05"),
        (
            {"DateTime": "2020:01:02 03:04:05", "DateTimeOriginal": "2019:12:31 23:59:59"},
            "2019-12-31T23:59:59",
        ),
        (
            {"DateTime": "2020:01:02 03:04:05", "DateTimeOriginal": "0000:00:00 00:00:00"},
            "2020-01-02T03:04:05",
        ),
        ({"DateTime": "    :  :     :  :  "}, None),
        ({"DateTime": "2020:13:45 03:04:05"}, None),
        ({"DateTime": "2020:1:2"}, None),
        ({}, None),
    ],
)
def test_the_time_of_the_photo_comes_from_exif(tags, expected):
    content = encoded(PIL.Image.new("RGB", (20, 20)), "JPEG", exif=exif_with(**tags))
    assert load_picture(content, CenterCrop()).taken_at == expected


@pytest.mark.parametrize(
    "rubbish",
    [
        exif_with(Orientation=99),
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0",
        b"\0" * 40,
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_broken_exif_does_not_cost_a_good_image(photo, rubbish, kind):
    picture = load_picture(encoded(photo, kind, exif=rubbish), CenterCrop())
    assert (picture.orientation, picture.taken_at) == (1, None)
    assert psnr(picture.pixels, plain_center_crop(photo)) > 25


def test_paths_with_undecodable_names_are_read(photo, tmp_path):
    path = tmp_path / "caf\udce9.png"
    photo.save(path, "PNG")
    np.testing.assert_array_equal(read_image(path), np.asarray(photo))
