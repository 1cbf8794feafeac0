"""Descriptors come in order, each image once, and from the cache what an earlier run has done."""

from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint
from PIL import Image

from dinov2kit.described_images import DescriptorCache, Shown, describe_images
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.identity import ModelIdentity

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def unit(*colour: int) -> np.ndarray:
    return np.array(colour, np.float32) / np.linalg.norm(colour)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return [paint(tmp_path / f"{number}.png", colour) for number, colour in enumerate((RED, GREEN, BLUE))]


def test_rows_are_in_the_order_asked_and_each_image_is_described_once(photos) -> None:
    encoder, seen = ColourEncoder(), []
    images = [Shown(photos[place]) for place in (2, 0, 2, 1, 0)]
    described = describe_images(encoder, images, advance=seen.append)
    wanted = np.stack([unit(*colour) for colour in (BLUE, RED, BLUE, GREEN, RED)])
    assert np.allclose(described.rows, wanted, atol=1e-3)
    assert encoder.embedded == 3
    assert sorted(seen) == sorted(image.path for image in images)


def test_a_box_shows_a_part_and_is_cut_where_the_image_ends(tmp_path) -> None:
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30], pixels[:, 30:] = RED, BLUE
    path = tmp_path / "half.png"
    Image.fromarray(pixels).save(path)
    boxes = [(-5.2, -3.0, 29.7, 40.0), (30.0, 0.0, 75.5, 99.0), (70.0, 0.0, 80.0, 10.0)]
    described = describe_images(ColourEncoder(), [Shown(path, box) for box in boxes])
    assert np.allclose(described.rows[:2], [unit(*RED), unit(*BLUE)], atol=1e-3)
    assert described.known.tolist() == [True, True, False]
    assert "is empty" in described.errors[0][1]


def test_what_cannot_be_read_is_listed_with_its_reason_and_costs_nobody_else(photos, tmp_path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff rubbish")
    images = [Shown(path) for path in (photos[0], tmp_path / "bad.jpg", tmp_path / "gone.jpg", photos[1])]
    for cache in (None, DescriptorCache(tmp_path / "cache", ColourEncoder().identity)):
        described = describe_images(ColourEncoder(), images, cache=cache)
        assert described.known.tolist() == [True, False, False, True]
        assert np.allclose(described.rows[3], unit(*GREEN), atol=1e-3)
        assert not described.rows[1:3].any()
        assert [path.name for path, _ in described.errors] in (
            ["bad.jpg", "gone.jpg"],
            ["gone.jpg", "bad.jpg"],
        )
        assert "no such file" in dict(described.errors)[tmp_path / "gone.jpg"].lower()
    with pytest.raises(ImageError, match="none of 1 images"):
        describe_images(ColourEncoder(), images[1:2])


def test_an_interrupted_run_keeps_what_it_has_done(photos, tmp_path) -> None:
    def stop(path: Path) -> None:
        if path == photos[1]:
            raise KeyboardInterrupt

    images = [Shown(path) for path in photos]
    cache = DescriptorCache(tmp_path / "cache", ColourEncoder().identity)
    with pytest.raises(KeyboardInterrupt):
        describe_images(ColourEncoder(), images, cache=cache, batch_size=1, advance=stop)
    encoder = ColourEncoder()
    again = describe_images(encoder, images, cache=DescriptorCache(tmp_path / "cache", encoder.identity))
    straight = describe_images(ColourEncoder(), images)
    assert encoder.embedded == 1
    assert np.array_equal(again.rows, straight.rows)


def test_the_cache_knows_an_image_by_its_content_its_box_and_its_model(photos, tmp_path) -> None:
    encoder = ColourEncoder()
    cache = DescriptorCache(tmp_path / "cache", encoder.identity)
    describe_images(encoder, [Shown(path) for path in photos], cache=cache)
    moved = tmp_path / "elsewhere.png"
    moved.write_bytes(photos[0].read_bytes())
    paint(photos[1], BLUE)  # another content under the old name

    def fresh(image: Shown, identity: ModelIdentity) -> int:
        encoder = ColourEncoder()
        encoder.identity = identity
        describe_images(encoder, [image], cache=DescriptorCache(tmp_path / "cache", identity))
        return encoder.embedded

    assert fresh(Shown(moved), encoder.identity) == 0
    assert fresh(Shown(moved, (0.0, 0.0, 9.0, 9.0)), encoder.identity) == 1
    assert fresh(Shown(photos[1]), encoder.identity) == 0  # the content of another image that was there
    other = ModelIdentity("colour", "1" * 64, 3, "mean", encoder.view.describe())
    assert fresh(Shown(moved), other) == 1
    assert fresh(Shown(moved), other) == 0


def test_a_damaged_file_of_the_cache_costs_only_its_own_images(photos, tmp_path, caplog) -> None:
    encoder = ColourEncoder()
    for path in photos:
        describe_images(encoder, [Shown(path)], cache=DescriptorCache(tmp_path / "cache", encoder.identity))
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3
    content = bytearray(files[1].read_bytes())
    content[-8] ^= 1
    files[1].write_bytes(content[: len(content) // 2])
    encoder = ColourEncoder()
    cache = DescriptorCache(tmp_path / "cache", encoder.identity)
    described = describe_images(encoder, [Shown(path) for path in photos], cache=cache)
    assert encoder.embedded == 1
    assert "is damaged" in caplog.text
    assert np.allclose(described.rows, [unit(*RED), unit(*GREEN), unit(*BLUE)], atol=1e-3)


def test_dropping_a_cache_leaves_what_is_not_its_own(photos, tmp_path) -> None:
    encoder = ColourEncoder()
    cache = DescriptorCache(tmp_path / "cache", encoder.identity)
    describe_images(encoder, [Shown(photos[0])], cache=cache)
    (tmp_path / "cache/mine.txt").touch()
    cache.drop()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["mine.txt"]
    (tmp_path / "cache/mine.txt").unlink()
    cache.drop()
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_one_clear_error(photos, tmp_path) -> None:
    (tmp_path / "file").touch()
    cache = DescriptorCache(tmp_path / "file" / "cache", ColourEncoder().identity)
    with pytest.raises(ArgumentError, match="cannot write"):
        describe_images(ColourEncoder(), [Shown(photos[0])], cache=cache)
