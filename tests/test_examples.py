"""Each example runs as a program of its own, and what it prints is true."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    env = {**os.environ, "DINOKIT_HOME": str(cwd / "home"), "DINOKIT_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder of two scenes, each twice: whole and at half size."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixels in {"cat": data.chelsea(), "coffee": data.coffee()}.items():
        photo = Image.fromarray(pixels).resize((240, 160))
        photo.save(folder / f"{name}.png")
        photo.resize((120, 80)).save(folder / f"{name}_half.png")
    return folder


def test_examples_are_short_and_say_how_they_are_run() -> None:
    paths = sorted(EXAMPLES.glob("*.py"))
    assert {"embed_folder", "make_photos", "match_two", "search_folder"} <= {path.stem for path in paths}
    for path in paths:
        text = path.read_text("utf-8")
        assert len(text.splitlines()) <= 40, path.name
        assert f"python examples/{path.name}" in str(ast.get_docstring(ast.parse(text))), path.name


def test_photos_are_written_with_their_edited_copies_and_always_the_same(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    assert str(first) in run("make_photos.py", first, cwd=tmp_path).stdout
    run("make_photos.py", second, cwd=tmp_path)
    names = sorted(path.name for path in first.iterdir())
    assert {"chelsea.jpg", "chelsea_crop.jpg", "motorcycle_left.jpg", "motorcycle_right.jpg"} <= set(names)
    assert len(names) >= 20
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()
        with Image.open(first / name) as image:
            assert (image.format, image.mode) == ("JPEG", "RGB")
            assert min(image.size) >= 80
    with Image.open(first / "chelsea.jpg") as whole, Image.open(first / "chelsea_crop.jpg") as part:
        assert part.width < whole.width
        assert part.height < whole.height


def test_embed_folder_finds_the_other_copy_of_each_photo(photos: Path, tmp_path: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    done = run("embed_folder.py", photos, cwd=tmp_path)
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    found = {name: nearest for _, name, nearest in rows}
    assert found == {
        "cat.png": "cat_half.png",
        "cat_half.png": "cat.png",
        "coffee.png": "coffee_half.png",
        "coffee_half.png": "coffee.png",
    }
    assert all(0.5 < float(score) <= 1.0001 for score, _, _ in rows)
    assert "broken.jpg" in done.stderr


def test_match_two_finds_where_a_photo_was_moved_to(tmp_path: Path) -> None:
    photo, shift = data.coffee(), 70  # whole patches at the size that the example uses
    Image.fromarray(photo[:350, :420]).save(tmp_path / "a.png")
    Image.fromarray(photo[:350, shift : 420 + shift]).save(tmp_path / "b.png")
    done = run("match_two.py", "a.png", "b.png", "out.png", cwd=tmp_path)
    number = r"(-?\d+\.\d)"
    ends = re.findall(rf"\({number}, {number}\) -> \({number}, {number}\)", done.stdout)
    assert len(ends) == 5
    for x0, y0, x1, y1 in [map(float, end) for end in ends]:
        assert (x1, y1) == (pytest.approx(x0 - shift, abs=10), pytest.approx(y0, abs=10))
    assert "drawn in out.png" in done.stdout
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width > 2 * 420


def test_search_folder_finds_the_other_copy_first_and_opens_nothing_twice(
    photos: Path, tmp_path: Path
) -> None:
    arguments = ("search_folder.py", photos, photos / "cat.png", tmp_path / "ix")
    lines = run(*arguments, cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith("4 new, 0 unchanged, 4 photos in ")
    scores, paths = zip(*(line.split("\t") for line in lines[1:]), strict=True)
    assert Path(paths[0]).name == "cat_half.png"
    assert str(photos / "cat.png") not in paths
    assert list(map(float, scores)) == sorted(map(float, scores), reverse=True)
    again = run(*arguments, cwd=tmp_path).stdout.splitlines()
    assert again[0].startswith("0 new, 4 unchanged, 4 photos in ")
    assert again[1:] == lines[1:]
