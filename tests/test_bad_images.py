"""Images that cannot be read: who stands in for them, how they are listed, and when a run stops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dinov2kit.errors import DependencyError, ImageError
from dinov2kit.train.bad_images import FILE, BadImages, read_or_replace
from dinov2kit.train.order import replacement_index


class PlainImages:
    """Images of one colour each, the number of the image; some cannot be read."""

    digest, labels = "", None

    def __init__(self, count: int, damaged: set[int]) -> None:
        self.count, self.damaged = count, damaged

    def __len__(self) -> int:
        return self.count

    def name(self, index: int) -> str:
        return f"photos/{index}.jpg"

    def read(self, index: int) -> np.ndarray:
        if index in self.damaged:
            raise ImageError(f"{self.name(index)}: damaged")
        return np.full((2, 2, 3), index, np.uint8)


def test_a_good_image_is_itself() -> None:
    pixels, used, bad = read_or_replace(PlainImages(20, set()), 7, seed=0)
    assert (int(pixels[0, 0, 0]), used, bad) == (7, 7, [])


def test_the_first_good_neighbour_of_the_order_stands_in() -> None:
    walk = [replacement_index(7, attempt, 20, 5) for attempt in (1, 2, 3)]
    images = PlainImages(20, {7, walk[0], walk[1]})
    pixels, used, bad = read_or_replace(images, 7, seed=5)
    assert used == walk[2] == int(pixels[0, 0, 0])
    assert [number for number, _, _ in bad] == [7, walk[0], walk[1]]
    assert bad[0][1:] == ("photos/7.jpg", "photos/7.jpg: damaged")
    again = read_or_replace(images, 7, seed=5)
    assert (again[1], again[2]) == (used, bad)


@pytest.mark.parametrize("good", range(6))
def test_the_only_good_image_is_found_from_everywhere(good: int) -> None:
    images = PlainImages(6, set(range(6)) - {good})
    assert {read_or_replace(images, index, seed=1)[1] for index in range(6)} == {good}


@pytest.mark.parametrize(("count", "tried"), [(1, 1), (6, 6), (100_000, 100)])
def test_it_gives_up_where_nothing_can_be_read(count: int, tried: int) -> None:
    with pytest.raises(ImageError, match=f"none of {tried} images .* damaged") as caught:
        read_or_replace(PlainImages(count, set(range(count))), 0, seed=0)
    assert "disk" in str(caught.value.hint)


def test_a_missing_package_is_not_a_bad_image() -> None:
    class Unreadable(PlainImages):
        def read(self, index: int) -> np.ndarray:
            raise DependencyError("needs a package", hint="pip install it")

    with pytest.raises(DependencyError):
        read_or_replace(Unreadable(5, set()), 0, seed=0)


def test_an_image_is_listed_once_however_often_it_is_met(tmp_path: Path) -> None:
    bad = BadImages(tmp_path, images=5000)
    bad.record(3, "a b.jpg", "a b.jpg: damaged\nor not")
    bad.record_all([(3, "a b.jpg", "damaged"), (9, "odd\tname\udcff.jpg", "truncated")])
    assert bad.count == 2
    written = (tmp_path / FILE).read_bytes()
    assert written == b"3\ta b.jpg\tdamaged or not\n9\todd name\xff.jpg\ttruncated\n"


def test_a_resumed_run_goes_on_with_its_list_even_where_a_line_is_torn(tmp_path: Path) -> None:
    BadImages(tmp_path, images=5000).record_all([(3, "a.jpg", "damaged"), (4, "b.jpg", "damaged")])
    with (tmp_path / FILE).open("a") as file:
        file.write("12\tc.j")  # killed here
    resumed = BadImages(tmp_path, images=5000)
    assert resumed.count == 2
    resumed.record_all([(4, "b.jpg", "damaged"), (12, "c.jpg", "damaged"), (13, "d.jpg", "damaged")])
    assert resumed.count == BadImages(tmp_path, images=5000).count == 4
    lines = (tmp_path / FILE).read_text().splitlines()
    assert lines == [
        "3\ta.jpg\tdamaged",
        "4\tb.jpg\tdamaged",
        "12\tc.j",
        "12\tc.jpg\tdamaged",
        "13\td.jpg\tdamaged",
    ]


def test_only_one_process_writes_but_all_count(tmp_path: Path) -> None:
    other = BadImages(tmp_path, images=5000, writes=False)
    other.record(3, "a.jpg", "damaged")
    assert other.count == 1
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(("images", "most", "allowed"), [(5, 0.01, 10), (2000, 0.01, 20), (2000, 0.002, 10)])
def test_a_run_stops_above_the_share(tmp_path: Path, images: int, most: float, allowed: int) -> None:
    bad = BadImages(tmp_path, images=images, most=most)
    bad.record_all((number, f"{number}.jpg", "damaged") for number in range(allowed))
    with pytest.raises(
        ImageError, match=rf"{allowed + 1} of {images} .*at most {allowed} .*99999\.jpg"
    ) as caught:
        bad.record(99999, "99999.jpg", "damaged")
    assert FILE in str(caught.value.hint)
    with pytest.raises(ImageError, match="cannot be read"):  # nor does it start again
        BadImages(tmp_path, images=images, most=most)


def test_a_list_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    bad = BadImages(tmp_path / "gone", images=5)
    with pytest.raises(ImageError, match="cannot be written"):
        bad.record(0, "a.jpg", "damaged")
    (tmp_path / FILE).mkdir()
    with pytest.raises(ImageError, match="cannot be read"):
        BadImages(tmp_path, images=5)
