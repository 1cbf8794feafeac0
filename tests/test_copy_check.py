"""Copies of real photos pass, other photos do not, and the numbers behind it are what they say."""

import itertools

import numpy as np
import pytest
from copies_of_photos import NAMES, brighter, captioned, compressed, framed, photo, resized, write
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.images import load_picture
from dinov2kit.indexes.copy_check import Comparer, compare, compare_pixels, hamming, phash
from dinov2kit.indexes.copy_crop import CropChecker
from dinov2kit.indexes.copy_signatures import (
    VIEW,
    find_picture,
    hash_luminance,
    mirrored,
    read_signatures,
    sign,
    signatures_of,
    small_luminance,
)

EDITS = {
    "jpeg": lambda pixels: compressed(pixels, 40),
    "resized": resized,
    "brighter": brighter,
    "darker": lambda pixels: brighter(pixels, 0.7),
    "framed": framed,
    "captioned": captioned,
}


def pictures(seed: int, count: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32), np.uint8)


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return {name: write(folder / f"{name}.png", photo(name)) for name in NAMES}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_copies_of_real_photos_pass(originals, edit, tmp_path):
    for name, path in originals.items():
        if (edit, name) == ("framed", "immunohistochemistry"):
            continue  # near-white itself: the frame cannot be told from it
        copy = write(tmp_path / f"{name}.png", EDITS[edit](photo(name)))
        check = compare(path, copy)
        assert check.passed, (name, check.text)
        assert compare(copy, path).passed
        assert check.transform == "none"


def test_no_two_different_photos_pass(originals):
    for one, other in itertools.combinations(originals.values(), 2):
        check = compare(one, other, flips=True)
        assert not check.passed, (one.name, other.name, check.text)


def test_a_mirrored_copy_passes_when_asked_for_and_only_then(originals, tmp_path):
    copy = write(tmp_path / "copy.jpg", resized(photo("coffee"))[:, ::-1], quality=80)
    assert not compare(originals["coffee"], copy).passed
    check = compare(originals["coffee"], copy, flips=True)
    assert (check.passed, check.transform) == (True, "mirrored")
    assert check.text.endswith("mirrored")


def test_a_stretched_copy_passes_only_when_nothing_else_differs(originals, tmp_path):
    stretched = resized(photo("coffee"), 1.0, 0.7)
    check = compare(originals["coffee"], write(tmp_path / "wide.png", stretched))
    assert check.passed
    assert abs(check.aspect) == pytest.approx(np.log(1 / 0.7), abs=0.01)
    assert "stretched" in check.text
    assert compare(originals["coffee"], write(tmp_path / "note.png", captioned(photo("coffee")))).passed
    assert not compare(originals["coffee"], write(tmp_path / "both.png", captioned(stretched))).passed


def test_pixels_alone_want_three_of_four_blocks(originals, tmp_path):
    half = photo("coffee").copy()
    half[int(0.65 * len(half)) :] = 128
    copy = write(tmp_path / "half.png", half)
    check = compare(originals["coffee"], copy, verify="pixel")
    assert 0.5 < check.pixels < 0.75
    assert not check.passed


def low_waves(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the signs of 64 low cosine terms, half of them up, and their sum over 32 x 32 pixels."""
    basis = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(32) + 1) / 64)
    chosen = np.random.default_rng(seed).permutation(np.repeat([1.0, -1.0], [31, 32]))
    signs = np.append(1.0, chosen).reshape(8, 8)  # no picture is darker than black
    return signs, basis.T @ signs @ basis


def test_two_pictures_of_one_hash_and_other_edges_are_no_copies(tmp_path):
    _, waves = low_waves(0)
    clouds = np.random.default_rng(3).normal(0, 10, (2, 32, 32))
    levels = np.clip(128 + 1.5 * waves + clouds, 0, 255).astype(np.uint8)
    paths = [
        write(tmp_path / f"{number}.png", np.kron(picture, np.ones((8, 8), np.uint8))[..., None].repeat(3, 2))
        for number, picture in enumerate(levels)
    ]
    check = compare(*paths)
    assert check.phash_distance <= 10
    assert check.pixels < 0.2
    assert not check.passed


def test_a_photo_of_one_tone_is_a_copy_of_nothing(tmp_path):
    grey = write(tmp_path / "grey.png", np.full((40, 60, 3), 90, np.uint8))
    same = write(tmp_path / "same.png", np.full((20, 30, 3), 90, np.uint8))
    check = compare(grey, same)
    assert not check.passed
    assert np.isfinite([check.pixels, check.aspect]).all()


def test_the_hash_is_the_sign_of_the_lowest_cosine_terms():
    signs, waves = low_waves(0)
    found = int(hash_luminance(np.rint(128 + 3 * waves).astype(np.uint8)[None])[0])
    assert f"{found:064b}" == "".join("1" if sign > 0 else "0" for sign in signs.ravel())


def test_hashes_differ_by_counted_bits_and_fit_64():
    one = hash_luminance(pictures(1))
    assert hamming(one, one ^ np.uint64(0b1011)).tolist() == [3]
    assert 0 <= phash(photo("cat")) < 2**64
    assert phash(photo("cat")) == phash(photo("cat").copy())
    assert hamming(hash_luminance(pictures(5)), hash_luminance(pictures(6)))[0] > 16


@given(seed=st.integers(0, 2**31))
def test_a_picture_agrees_with_itself_however_bright_and_with_its_negative_nowhere(seed):
    picture = (pictures(seed) // 2).astype(np.uint8)
    assert compare_pixels(picture, picture).tolist() == [1]
    assert compare_pixels(picture, picture + np.uint8(60)).tolist() == [1]
    assert compare_pixels(picture, (picture * 2).astype(np.uint8)).tolist() == [1]
    assert compare_pixels(picture, 255 - picture).tolist() == [0]
    assert compare_pixels(picture, pictures(seed + 1)).tolist() == [0]


def test_the_share_of_blocks_is_counted_over_those_with_edges():
    picture = pictures(1)
    other = picture.copy()
    other[:, :8] = pictures(2)[:, :8]  # four of 16 blocks
    assert compare_pixels(picture, other)[0] == pytest.approx(12 / 16)
    plain = picture.copy()
    plain[:, 16:] = 100  # eight have no edges in either; the step into them is one of the blocks above
    shares = plain.copy()
    shares[:, :8] = pictures(2)[:, :8]
    assert compare_pixels(plain, shares)[0] == pytest.approx(4 / 8)
    assert compare_pixels(np.full((1, 32, 32), 9, np.uint8), np.full((1, 32, 32), 9, np.uint8))[0] == 0


def test_a_border_is_found_to_the_line_and_a_soft_background_is_none():
    canvas = np.full((100, 160, 3), (30, 120, 60), np.uint8)
    canvas[10:80, 25:150] = np.random.default_rng(0).integers(0, 256, (70, 125, 3), np.uint8)
    assert find_picture(canvas) == (25, 10, 150, 80)
    assert find_picture(canvas[:80]) == (25, 10, 150, 80)
    distance = np.hypot(*np.meshgrid(np.linspace(-1, 1, 128), np.linspace(-1, 1, 128)))
    for levels in (255 * (1.2 - distance), 255.0 * (distance < 0.6)):  # a vignette, a ball on black
        soft = np.clip(levels, 0, 255).astype(np.uint8)[..., None].repeat(3, 2)
        assert find_picture(soft) == (0, 0, 128, 128)
    assert find_picture(np.full((50, 60, 3), 7, np.uint8)) == (0, 0, 60, 50)


def test_a_framed_photo_is_known_by_the_size_of_the_picture_inside(tmp_path):
    path = write(tmp_path / "framed.png", framed(photo("cat"), (20, 200, 90), 40))
    inner, whole = sign(load_picture(path, VIEW))
    rows, cols = photo("cat").shape[:2]
    assert (whole.width, whole.height) == (cols + 80, rows + 80)
    assert cols - 4 * whole.width / 128 <= inner.width <= cols  # rather too small than too large
    assert rows - 4 * whole.height / 128 <= inner.height <= rows


def test_two_frames_alike_do_not_make_their_pictures_alike(tmp_path):
    pictures = [brighter(photo(name), 0.3)[:130, :130] for name in ("cat", "coffee")]
    canvases = [framed(picture, (250, 250, 250), 33) for picture in pictures]
    luminance = [small_luminance(canvas)[None] for canvas in canvases]
    assert compare_pixels(*luminance)[0] > 0.7  # with their frames they would be copies
    paths = [write(tmp_path / f"{number}.png", canvas) for number, canvas in enumerate(canvases)]
    assert not compare(*paths).passed


def test_many_pairs_at_once_are_the_pairs_one_by_one(originals):
    paths = list(originals.values())
    signatures, _ = read_signatures(paths)
    one, other = np.triu_indices(len(paths))
    together = Comparer(signatures, flips=True).check(one, other)
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        alone = compare(paths[a], paths[b], flips=True)
        assert together.one(place) == alone
        assert together.passed[place] == (a == b)


def test_what_cannot_be_read_passes_nothing_and_is_named(tmp_path, originals):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xffrubbish")
    signatures, unread = read_signatures([originals["cat"], bad, originals["cat"]])
    assert list(unread) == [1]
    assert str(bad) not in unread[1]
    comparer = Comparer(signatures)
    assert comparer.check(np.array([0, 0, 1]), np.array([2, 1, 2])).passed.tolist() == [True, False, False]
    with pytest.raises(ImageError, match=r"bad\.jpg"):
        compare(originals["cat"], bad)
    with pytest.raises(ArgumentError, match="phash, pixel, none"):
        compare(originals["cat"], originals["cat"], verify="hash")


def test_finished_parts_are_taken_up_again_and_only_for_the_same_contents(tmp_path, originals):
    paths = list(originals.values())
    keys = [name.encode() for name in originals]
    first, _ = read_signatures(paths, work=tmp_path, keys=keys)
    nowhere = [tmp_path / "gone" / path.name for path in paths]
    again, unread = read_signatures(nowhere, work=tmp_path, keys=keys)
    assert not unread
    for name, array in vars(first).items():
        assert np.array_equal(array, getattr(again, name)), name
    _, unread = read_signatures(nowhere, work=tmp_path, keys=[b"other", *keys[1:]])
    assert len(unread) == len(paths)
    (part,) = tmp_path.glob("*.npz")
    part.write_bytes(part.read_bytes()[:500])
    assert not read_signatures(paths, work=tmp_path, keys=keys)[1]


def test_workers_give_the_same_signatures(originals):
    paths = list(originals.values())[:3]
    here, there = read_signatures(paths)[0], read_signatures(paths, workers=1)[0]
    assert all(np.array_equal(array, getattr(there, name)) for name, array in vars(here).items())


def test_no_photos_have_no_signatures():
    signatures, unread = read_signatures([])
    assert (len(signatures.inner), len(signatures.luminance), unread) == (0, 0, {})
    assert len(hash_luminance(signatures.luminance)) == 0
    assert len(signatures_of([]).sides) == 0


def test_mirroring_twice_is_nothing():
    assert np.array_equal(mirrored(mirrored(pictures(1, 3))), pictures(1, 3))
    assert not np.array_equal(mirrored(pictures(1)), pictures(1))


def test_a_part_of_a_photo_is_found_and_its_neighbour_in_a_panorama_is_not(tmp_path):
    scene = photo("coffee", 400)
    rows, cols = scene.shape[:2]
    whole = write(tmp_path / "whole.png", scene)
    part = write(tmp_path / "part.jpg", resized(scene[rows // 5 :, cols // 4 :], 0.7, 0.7), quality=70)
    turned = np.rot90(scene[:, : cols // 2])
    checker = CropChecker()
    assert checker.check(whole, part).passed
    assert checker.check(part, whole).passed
    assert checker.check(whole, write(tmp_path / "turned.png", turned)).passed
    left = write(tmp_path / "left.png", scene[:, : int(0.65 * cols)])
    right = write(tmp_path / "right.png", scene[:, int(0.35 * cols) :])
    assert not checker.check(left, right).passed
    next_shot = scene.copy()
    next_shot[: rows // 2] = np.array(Image.fromarray(photo("astronaut")).resize((cols, rows // 2)))
    assert not checker.check(whole, write(tmp_path / "next.png", next_shot)).passed
    check = checker.check(whole, write(tmp_path / "other.png", photo("astronaut", 400)))
    assert (check.passed, check.transform) == (False, "crop")


def test_a_mirrored_part_passes_when_asked_for_and_only_then(tmp_path):
    scene = photo("astronaut", 500)
    whole = write(tmp_path / "whole.png", scene)
    part = write(tmp_path / "part.png", scene[40:300, 30:330][:, ::-1])
    assert not CropChecker().check(whole, part).passed
    assert CropChecker(flips=True).check(whole, part).text.endswith("mirrored")
