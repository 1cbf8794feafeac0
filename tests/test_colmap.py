"""What COLMAP reads, read back by a parser of its own that knows nothing of the writer."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from dinov2kit.colmap import export_colmap
from dinov2kit.errors import ArgumentError

IMAGES = {
    "a.jpg": [(0, 0), (6.5, 20.5), (13.25, 7)],
    "day/ü-1.jpg": [(1, 2), (3, 4)],
    "day/night/c.jpg": [(100.125, 2000.0625), (0.5, 0.5), (2, 2), (3, 3)],
}
PAIRS = {  # key -> matches0
    "a.jpg/day-ü-1.jpg": [-1, 1, 0],
    "day-night-c.jpg/a.jpg": [2, -1, -1, 0],
    "day-ü-1.jpg/day-night-c.jpg": [-1, -1],
    "a.jpg/a.jpg": [0, 1, 2],
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    with h5py.File(tmp_path / "features.h5", "w") as file:
        for name, keypoints in IMAGES.items():
            file[f"{name}/keypoints"] = np.array(keypoints, np.float32)
    with h5py.File(tmp_path / "matches.h5", "w") as file:
        for key, matches in PAIRS.items():
            file[f"{key}/matches0"] = np.array(matches, np.int16)
            file[f"{key}/matching_scores0"] = np.array(matches, np.float16)
    return tmp_path / "features.h5", tmp_path / "matches.h5"


def parse_features(path: Path) -> np.ndarray:
    """Read a file as the manual says: a head of two numbers, then x y scale orientation and a descriptor."""
    head, *lines = path.read_text("utf-8").split("\n")
    count, dim = map(int, head.split(" "))
    assert lines[-1] == ""
    rows = [[float(word) for word in line.split(" ")] for line in lines[:-1]]
    assert (len(rows), {len(row) for row in rows}, dim) == (count, {4 + dim}, 128)
    return np.array(rows)


def parse_matches(path: Path) -> dict[tuple[str, ...], list[list[int]]]:
    """Read blocks as COLMAP does: two names, then rows, up to an empty line."""
    found, lines = {}, iter(path.read_text("utf-8").split("\n"))
    for line in lines:
        if not line:
            continue
        names = tuple(line.split(" "))
        found[names] = []
        while row := next(lines):
            found[names].append([int(word) for word in row.split(" ")])
    return found


def test_keypoints_move_by_half_a_pixel_into_files_that_keep_their_folders(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "new" / "colmap"
    written = export_colmap(*files, out)
    assert sorted(written) == sorted(path for path in out.rglob("*") if path.is_file())
    assert written[-1] == out / "matches.txt"
    for name, keypoints in IMAGES.items():
        rows = parse_features(out / f"{name}.txt")
        np.testing.assert_allclose(rows[:, :2], np.array(keypoints) + 0.5, atol=5.1e-5)
        assert (rows[:, 2] == 1).all()
        assert (rows[:, 3:] == 0).all()


def test_matches_are_rows_of_the_keypoints_under_the_names_of_the_images(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    export_colmap(*files, tmp_path / "out")
    assert parse_matches(tmp_path / "out" / "matches.txt") == {
        ("a.jpg", "day/ü-1.jpg"): [[1, 1], [2, 0]],
        ("day/night/c.jpg", "a.jpg"): [[0, 2], [3, 0]],
    }


def test_a_folder_with_something_in_it_is_kept(files: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="not empty"):
        export_colmap(*files, out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    export_colmap(*files, out, overwrite=True)
    assert parse_features(out / "a.jpg.txt").shape == (3, 132)
    with pytest.raises(ArgumentError, match="cannot write"):
        export_colmap(*files, out / "mine.txt" / "deeper")


@pytest.mark.parametrize(
    ("key", "matches", "said"),
    [
        ("a.jpg/absent.jpg", [0, 0, 0], "no image 'absent.jpg'"),
        ("a.jpg/day-night-c.jpg", [0, 1], "do not fit"),
        ("a.jpg/day-night-c.jpg", [0, 4, -1], "do not fit"),
    ],
)
def test_files_that_do_not_belong_together_are_refused_before_anything_is_written(
    files: tuple[Path, Path], tmp_path: Path, key: str, matches: list[int], said: str
) -> None:
    with h5py.File(files[1], "a") as file:
        file[f"{key}/matches0"] = np.array(matches)
        file[f"{key}/matching_scores0"] = np.ones(len(matches), np.float16)
    with pytest.raises(ArgumentError, match=said):
        export_colmap(*files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("my photo.jpg", "cannot read the name 'my photo.jpg'"),
        ("#1.jpg", "cannot read"),
        ("../up.jpg", "cannot read"),
        ("matches", "take the place of matches.txt"),
        ("day-night/c.jpg", "same name"),
    ],
)
def test_names_that_colmap_cannot_hold_are_refused(
    files: tuple[Path, Path], tmp_path: Path, name: str, said: str
) -> None:
    with h5py.File(files[0], "a") as file:
        file[f"{name}/keypoints"] = np.zeros((1, 2), np.float32)
    with pytest.raises(ArgumentError, match=said):
        export_colmap(*files, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"none\.h5: no such file"):
        export_colmap(files[0], tmp_path / "none.h5", tmp_path / "out")
