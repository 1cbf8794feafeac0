from pathlib import Path

import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.points import read_points


@pytest.mark.parametrize("text", ["120,80;300.5,-2", " 120 , 80 ; 300.5,-2;", "+120.0,80;300.5,-2"])
def test_points_are_read_from_text(text: str) -> None:
    points = read_points(text)
    assert points.pixels.tolist() == [[120, 80], [300.5, -2]]
    assert points.names == (None, None)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", '120,80,left eye\n\n300.5,-2,"nose, tip"\n'),
        ("p.csv", '\ufeffx,y,name\r\n120,80,left eye\r\n300.5,-2,"nose, tip"\r\n'),
        ("p.json", '[[120, 80, "left eye"], {"x": 300.5, "y": -2, "name": "nose, tip"}]'),
    ],
)
def test_points_are_read_from_files_with_their_names(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode())
    points = read_points(str(path))
    assert points.pixels.tolist() == [[120, 80], [300.5, -2]]
    assert points.names == ("left eye", "nose, tip")


def test_names_may_be_absent_or_empty(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("1,2\n3,4,\n5,6,ear\n")
    assert read_points(str(path)).names == (None, None, "ear")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.csv", "1,2\n3\n", "line 2: got 1 fields"),
        ("p.csv", "1,two\n", "not all numbers"),
        ("p.csv", "x,y\n", "holds no points"),
        ("p.json", '{"x": 1}', "no list of points"),
        ("p.json", "[1, 2]", "no list of points"),
        ("p.json", "[[1", "no list of points"),
        ("p.json", "[]", "holds no points"),
    ],
)
def test_what_is_no_list_of_points_is_refused_with_its_place(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ArgumentError, match=said):
        read_points(str(path))


def test_an_absent_file_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"absent\.csv") as caught:
        read_points("absent.csv")
    assert "x,y" in str(caught.value.hint)
