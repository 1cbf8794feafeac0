"""Teacher features on disk: what was written comes back, and what is wrong is said."""

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.train.teacher_features import (
    SCHEMA,
    TeacherFeatures,
    match_images,
    write_teacher_features,
)

COUNT = 6


def facts(**changes: Any) -> dict[str, Any]:
    """Return what a file of six rows about three images holds; values are exact in half precision."""
    random = np.random.default_rng(0)
    return {
        "teacher": "made up",
        "digest": "d",
        "names": ["a/1.jpg", "a/2.jpg", "b/1.jpg"],
        "image": np.array([0, 1, 2, 2, 1, 0]),
        "box": np.linspace(0, 0.5, COUNT, dtype=np.float32)[:, None] + np.float32([0, 0, 0.25, 0.5]),
        "flip": np.arange(COUNT) % 2 == 1,
        "class_token": random.integers(-9, 9, (COUNT, 5)).astype(np.float32) / 4,
        "patch_tokens": random.integers(-9, 9, (COUNT, 2, 3, 4)).astype(np.float32) / 4,
        **changes,
    }


class Named:
    """Images that are only names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        return self.names[index]

    def read(self, index: int) -> np.ndarray:
        raise NotImplementedError

    digest = ""
    labels = None


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    wanted = facts()
    write_teacher_features(tmp_path / "f.h5", **wanted)
    found = TeacherFeatures.open(tmp_path / "f.h5")
    assert (len(found), found.teacher, found.digest) == (COUNT, "made up", "d")
    assert (found.class_dim, found.patch_dim, found.grid) == (5, 4, (2, 3))
    assert list(found.names) == [name.encode() for name in wanted["names"]]
    for row in range(COUNT):
        lesson = found.read(row)
        assert (lesson.image, lesson.flip) == (wanted["image"][row], wanted["flip"][row])
        assert lesson.box == tuple(wanted["box"][row].tolist())
        np.testing.assert_array_equal(lesson.class_token, wanted["class_token"][row])
        np.testing.assert_array_equal(lesson.patch_tokens, wanted["patch_tokens"][row])


def test_files_of_a_folder_are_one_and_name_an_image_once(tmp_path: Path) -> None:
    whole = facts()
    write_teacher_features(tmp_path / "whole.h5", **whole)
    rows = ("image", "box", "flip", "class_token", "patch_tokens")
    folder = tmp_path / "parts"
    folder.mkdir()
    for number, part in enumerate((slice(0, 4), slice(4, 6))):
        write_teacher_features(folder / f"{number}.h5", **facts(**{name: whole[name][part] for name in rows}))
    one, parts = TeacherFeatures.open(tmp_path / "whole.h5"), TeacherFeatures.open(folder)
    assert list(one.names) == list(parts.names)
    for row in range(COUNT):
        for left, right in zip(one.read(row), parts.read(row), strict=True):
            np.testing.assert_array_equal(left, right)


def test_bytes_mean_what_their_scale_says(tmp_path: Path) -> None:
    raw = np.arange(COUNT * 5, dtype=np.uint8).reshape(COUNT, 5)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs["schema"] = SCHEMA
        file.create_dataset("names", data=["x"], dtype=h5py.string_dtype())
        file["image"] = np.zeros(COUNT, np.int64)
        file["class_token"] = raw
        file["class_token"].attrs.update({"scale": 0.5, "zero_point": 3})
    found = TeacherFeatures.open(tmp_path / "f.h5")
    assert (found.patch_dim, found.grid, found.digest) == (None, None, "")
    lesson = found.read(4)
    np.testing.assert_array_equal(lesson.class_token, (raw[4].astype(np.float32) - 3) / 2)
    assert (lesson.box, lesson.flip, lesson.patch_tokens) == ((0.0, 0.0, 1.0, 1.0), False, None)


def test_bytes_are_kept_as_bytes(tmp_path: Path) -> None:
    raw = np.random.default_rng(1).integers(0, 256, (COUNT, 2, 3, 4)).astype(np.uint8)
    write_teacher_features(tmp_path / "f.h5", **facts(patch_tokens=raw), scales={"patch_tokens": 0.75})
    with h5py.File(tmp_path / "f.h5", "r") as file:
        np.testing.assert_array_equal(file["patch_tokens"][()], raw)
        assert [file[name].dtype.name for name in ("class_token", "patch_tokens")] == ["float16", "uint8"]
        assert all(item.chunks is None for item in file.values())
    found = TeacherFeatures.open(tmp_path / "f.h5")
    for row in range(COUNT):
        np.testing.assert_array_equal(found.read(row).patch_tokens, raw[row].astype(np.float64) * 0.75)


def test_features_travel_to_other_processes_without_open_files(tmp_path: Path) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts())
    found = TeacherFeatures.open(tmp_path / "f.h5")
    own = found.read(3)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        other = pool.submit(found.read, 3).result()
    for left, right in zip(own, other, strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_file_is_opened_once_in_a_process_and_anew_after_a_fork(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts())
    found = TeacherFeatures.open(tmp_path / "f.h5")
    opened: list[str] = []
    genuine = h5py.File
    monkeypatch.setattr(h5py, "File", lambda path, mode: opened.append(path) or genuine(path, mode))
    for row in range(COUNT):
        found.read(row)
    assert len(opened) == 1
    monkeypatch.setattr(os, "getpid", lambda: -1)
    found.read(0)
    assert len(opened) == 2


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    for turn in (1.0, 2.0):
        tokens = np.full((COUNT, 5), turn, np.float32)
        write_teacher_features(tmp_path / "f.h5", **facts(class_token=tokens))
        assert TeacherFeatures.open(tmp_path / "f.h5").read(0).class_token.tolist() == [turn] * 5


def test_rows_that_there_are_not_are_refused(tmp_path: Path) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts())
    found = TeacherFeatures.open(tmp_path / "f.h5")
    for row in (-1, COUNT):
        with pytest.raises(ImageError, match=f"no row {row}"):
            found.read(row)


def test_images_are_known_by_the_end_of_their_names(tmp_path: Path) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts())
    found = TeacherFeatures.open(tmp_path / "f.h5")
    images = Named("/photos/b/1.jpg", "/photos/c/2.jpg", "/photos/a/1.jpg")
    np.testing.assert_array_equal(match_images(found, images), [2, -1, 0])
    with pytest.raises(ImageError, match="several images"):
        match_images(found, Named("/x/a/1.jpg", "/y/a/1.jpg"))


@pytest.mark.parametrize(
    ("names", "images", "wanted"),
    [
        (["1.jpg"], ["/p/a/1.jpg"], [0]),
        (["/p/a/1.jpg"], ["1.jpg"], [0]),
        (["a/1.jpg"], ["/x/a/1.jpg", "a/1.jpg"], [1]),
        (["../photos/a/1.jpg"], ["/home/photos/a/1.jpg"], [0]),
        (["x/a/1.jpg", "y/a/1.jpg", "/z/a/1.jpg"], ["/z/a/1.jpg"], [-1, -1, 0]),
    ],
)
def test_what_has_most_in_common_is_the_image(
    tmp_path: Path, names: list[str], images: list[str], wanted: list[int]
) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts(names=names, image=np.zeros(COUNT, np.int64)))
    np.testing.assert_array_equal(
        match_images(TeacherFeatures.open(tmp_path / "f.h5"), Named(*images)), wanted
    )


@pytest.mark.parametrize("count", [2, 3, 5])
def test_images_that_are_left_out_are_not_taken_for_others(tmp_path: Path, count: int) -> None:
    names = [f"/photos/{number}/images/1.jpg" for number in range(count)]
    write_teacher_features(tmp_path / "f.h5", **facts(names=names, image=np.zeros(COUNT, np.int64)))
    found = match_images(TeacherFeatures.open(tmp_path / "f.h5"), Named(*names[:-1]))
    np.testing.assert_array_equal(found, [*range(count - 1), -1])


@pytest.mark.parametrize(
    ("names", "images", "said"),
    [
        (["1.jpg"], ["/p/a/1.jpg", "/p/b/1.jpg"], "several images"),
        (["../p/a/1.jpg"], ["/x/p/a/1.jpg", "/y/p/a/1.jpg"], "several images"),
        (["a/1.jpg"], ["a/1.jpg", "a/1.jpg"], "several images"),
        (["x/a/1.jpg", "y/a/1.jpg"], ["/z/a/1.jpg"], "could both be"),
    ],
)
def test_names_that_could_be_several_are_refused(
    tmp_path: Path, names: list[str], images: list[str], said: str
) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts(names=names, image=np.zeros(COUNT, np.int64)))
    with pytest.raises(ImageError, match=said):
        match_images(TeacherFeatures.open(tmp_path / "f.h5"), Named(*images))


FAULTS = [
    ({"image": np.array([0, 1, 2, 2, 1, 3])}, "images 0 to 3 of 3 names"),
    ({"image": np.array([0, 1, 2, 2, 1, -1])}, "images -1 to 2 of 3 names"),
    ({"image": np.zeros(COUNT)}, "image of type float64"),
    ({"image": 3}, r"image of shape \(\)"),
    ({"box": np.zeros((COUNT, 4), np.float32)}, "boxes that are not"),
    ({"box": np.tile(np.float32([0, 0, 1, 1.25]), (COUNT, 1))}, "boxes that are not"),
    ({"box": np.full((COUNT, 4), np.nan, np.float32)}, "boxes that are not"),
    ({"box": np.zeros((COUNT, 3), np.float32)}, "box of shape"),
    ({"flip": np.zeros(COUNT - 1, bool)}, "5 rows of flip"),
    ({"flip": np.zeros(COUNT)}, "flip of type float64"),
    ({"class_token": np.zeros((COUNT, 5, 1), np.float32)}, "class_token of shape"),
    ({"class_token": np.zeros((COUNT, 0), np.float32)}, "class_token of shape"),
    ({"class_token": np.zeros((COUNT, 5))}, "class_token of type float64"),
    ({"class_token": np.zeros((COUNT - 1, 5), np.float32)}, "5 rows of class_token"),
    ({"patch_tokens": np.zeros((COUNT, 6, 4), np.float32)}, "patch_tokens of shape"),
    ({"patch_tokens": np.zeros((COUNT, 2, 3, 4), np.uint8)}, "without the attribute scale"),
    ({"names": None}, "lacks names"),
    ({"image": None}, "lacks image"),
    ({"class_token": None}, "lacks class_token"),
]


def write_by_hand(path: Path, **changes: Any) -> None:
    """Write what another program might have; None leaves a dataset out."""
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = SCHEMA
        for name, values in facts(**changes).items():
            if isinstance(values, list):
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            elif not isinstance(values, str) and values is not None:
                file[name] = values


@pytest.mark.parametrize(("changes", "said"), FAULTS)
def test_files_that_do_not_agree_with_themselves_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_by_hand(tmp_path / "f.h5", **changes)
    with pytest.raises(ImageError, match=said) as caught:
        TeacherFeatures.open(tmp_path / "f.h5")
    assert str(tmp_path / "f.h5") in caught.value.message
    assert caught.value.hint


def test_files_without_rows_are_refused(tmp_path: Path) -> None:
    rows = ("image", "box", "flip", "class_token", "patch_tokens")
    write_by_hand(tmp_path / "f.h5", **{name: facts()[name][:0] for name in rows})
    with pytest.raises(ImageError, match="no rows"):
        TeacherFeatures.open(tmp_path / "f.h5")


@pytest.mark.parametrize("scale", [np.nan, 0.0, -1.0, "x", np.zeros(2)])
def test_scales_that_mean_nothing_are_refused(tmp_path: Path, scale: Any) -> None:
    write_by_hand(tmp_path / "f.h5", class_token=np.zeros((COUNT, 5), np.uint8))
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["class_token"].attrs["scale"] = scale
    with pytest.raises(ImageError, match="class_token of scale"):
        TeacherFeatures.open(tmp_path / "f.h5")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": np.array([0, 1, 2, 2, 1, 3])}, "images 0 to 3 of 3 names"),
        ({"class_token": np.zeros((COUNT, 5), np.uint8)}, "without the attribute scale"),
        ({"class_token": np.zeros((COUNT, 5), np.int64)}, "class_token of type int64"),
    ],
)
def test_what_could_not_be_opened_is_not_written(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        write_teacher_features(tmp_path / "f.h5", **facts(**changes))
    assert not any(tmp_path.iterdir())


def test_what_is_no_teacher_features_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="holds no teacher features"):
        TeacherFeatures.open(tmp_path / "empty")
    with pytest.raises(ImageError, match="no such file"):
        TeacherFeatures.open(tmp_path / "absent.h5")
    (tmp_path / "text.h5").write_text("x")
    with pytest.raises(ImageError, match="cannot be read"):
        TeacherFeatures.open(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(ImageError, match="this version knows"):
        TeacherFeatures.open(tmp_path / "other.h5")


@pytest.mark.parametrize(
    "changes",
    [
        {"teacher": "another"},
        {"digest": "e"},
        {"class_token": np.zeros((COUNT, 6), np.float32)},
        {"patch_tokens": np.zeros((COUNT, 3, 3, 4), np.float32)},
        {"patch_tokens": None},
    ],
)
def test_features_of_two_teachers_are_not_mixed(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_teacher_features(tmp_path / "1.h5", **facts())
    write_teacher_features(tmp_path / "2.h5", **facts(**changes))
    with pytest.raises(ImageError, match=r"2\.h5 does not belong"):
        TeacherFeatures.open(tmp_path)


def test_hidden_files_of_a_folder_are_no_part_of_it(tmp_path: Path) -> None:
    write_teacher_features(tmp_path / "1.h5", **facts())
    (tmp_path / "._1.h5").write_text("x")
    assert len(TeacherFeatures.open(tmp_path)) == COUNT


def test_what_is_not_finite_is_neither_written_nor_read(tmp_path: Path) -> None:
    large = facts()["class_token"] * 1e9
    with pytest.raises(ArgumentError, match="half precision"):
        write_teacher_features(tmp_path / "f.h5", **facts(class_token=large))
    assert not any(tmp_path.iterdir())
    write_teacher_features(tmp_path / "f.h5", **facts())
    with h5py.File(tmp_path / "f.h5", "r+") as file:
        file["class_token"][2, 0] = np.nan
    with pytest.raises(ImageError, match="row 2: a token is not finite"):
        TeacherFeatures.open(tmp_path / "f.h5").read(2)
