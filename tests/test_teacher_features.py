"""Teacher features on disk: what was written comes back, and what is wrong is said."""

import pickle
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


def test_features_travel_without_open_files(tmp_path: Path) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts())
    found = TeacherFeatures.open(tmp_path / "f.h5")
    found.read(0)
    again = pickle.loads(pickle.dumps(found))
    assert not again._opened
    np.testing.assert_array_equal(again.read(3).class_token, found.read(3).class_token)


def test_images_are_known_by_the_end_of_their_names(tmp_path: Path) -> None:
    write_teacher_features(tmp_path / "f.h5", **facts())
    found = TeacherFeatures.open(tmp_path / "f.h5")
    images = Named("/photos/b/1.jpg", "/photos/c/2.jpg", "/photos/a/1.jpg")
    np.testing.assert_array_equal(match_images(found, images), [2, -1, 0])
    with pytest.raises(ImageError, match="several images"):
        match_images(found, Named("/x/a/1.jpg", "/y/a/1.jpg"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image": np.array([0, 1, 2, 2, 1, 3])}, "images 0 to 3 of 3 names"),
        ({"box": np.zeros((COUNT, 4), np.float32)}, "boxes that are not"),
        ({"flip": np.zeros(COUNT - 1, bool)}, "5 rows of flip"),
        ({"class_token": np.zeros((COUNT, 5, 1), np.float32)}, "tokens of shape"),
    ],
)
def test_files_that_do_not_agree_with_themselves_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs["schema"] = SCHEMA
        for name, values in facts(**changes).items():
            if isinstance(values, list):
                file.create_dataset(name, data=values, dtype=h5py.string_dtype())
            elif not isinstance(values, str):
                file[name] = values
    with pytest.raises(ImageError, match=said):
        TeacherFeatures.open(tmp_path / "f.h5")


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


def test_features_of_two_teachers_are_not_mixed(tmp_path: Path) -> None:
    write_teacher_features(tmp_path / "1.h5", **facts())
    write_teacher_features(tmp_path / "2.h5", **facts(teacher="another"))
    with pytest.raises(ImageError, match="does not belong"):
        TeacherFeatures.open(tmp_path)


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
