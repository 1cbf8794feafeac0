"""`Index`: every kind of question, every filter, and what is loaded for it; colours are the truth."""

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint
from PIL import Image

from dinov2kit.errors import ArgumentError, ImageError, StoreMismatch, StoreMissing, WeightsError
from dinov2kit.identity import ModelIdentity
from dinov2kit.indexes import Index, index_photos
from dinov2kit.views import Region

COLOURS = {
    "red.png": (250, 10, 10),
    "reddish.png": (240, 60, 20),
    "orange.png": (240, 140, 20),
    "green.png": (10, 250, 10),
    "sub/blue.png": (10, 10, 250),
    "sub/violet.png": (120, 10, 240),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Six photos of known colours; red twice, the second time smaller."""
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    for name, colour in COLOURS.items():
        paint(tmp_path / "photos" / name, colour, size=(40, 30))
    paint(tmp_path / "photos" / "red-again.png", COLOURS["red.png"])
    index_photos(tmp_path / "ix", [tmp_path / "photos"], encoder=ColourEncoder())
    return tmp_path / "photos"


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def index(folder, encoder):
    with Index.open(folder.parent / "ix", encoder=encoder) as opened:
        yield opened


def names(hits) -> list[str]:
    return [hit.path.name for hit in hits]


def unit(colour) -> np.ndarray:
    row = np.array(colour, np.float64)
    return row / np.linalg.norm(row)


def by_colour(colour, *but: str) -> list[str]:
    """Return the photos in the order of the cosine of their colour, the small red one by its id."""
    colours = {**COLOURS, "red-again.png": COLOURS["red.png"]}
    order = sorted(colours, key=lambda name: -float(unit(colour) @ unit(colours[name])))
    return [Path(name).name for name in order if name not in but]


def id_of(index: Index, path: Path) -> int:
    found = index.snapshot.find(path)
    assert found is not None
    return found


def test_hits_come_by_the_cosine_of_their_colours_and_say_all_that_is_known(index, folder):
    hits = index.search(folder / "orange.png")
    expected = by_colour(COLOURS["orange.png"], "orange.png")
    assert set(names(hits)[1:3]) == set(expected[1:3]) == {"red.png", "red-again.png"}
    assert [hit.path.name for hit in hits if "red-again" not in hit.path.name] == [
        name for name in expected if "red-again" not in name
    ]
    for hit in hits:
        colour = {**COLOURS, "red-again.png": COLOURS["red.png"]}[str(hit.path.relative_to(folder))]
        assert hit.score == pytest.approx(unit(colour) @ unit(COLOURS["orange.png"]), abs=1e-3)
    first = hits[0]
    assert (first.path, first.width, first.height) == (folder / "reddish.png", 40, 30)
    assert (first.taken_at, first.gone) == (None, False)
    assert first.to_json() == {
        "id": id_of(index, folder / "reddish.png"),
        "score": round(first.score, 6),
        "path": str(folder / "reddish.png"),
        "width": 40,
        "height": 30,
        "taken_at": None,
        "gone": False,
    }


def test_all_forms_of_one_image_are_one_question(index, folder, encoder):
    path = folder / "green.png"
    picture = Image.open(path)
    content = path.read_bytes()
    outside = folder.parent / "copy.png"
    outside.write_bytes(content)
    number = id_of(index, path)
    forms = [path, str(path), content, picture, np.asarray(picture), outside, number, f"id:{number}"]
    for form in forms:
        question = index.ask([form])
        assert np.allclose(question.descriptor, unit(COLOURS["green.png"]), atol=1e-3)
        assert np.linalg.norm(question.descriptor) == pytest.approx(1, abs=1e-6)
        hits = index.search(form, include_self=True)
        assert hits[0].path == path
        assert hits[0].score == pytest.approx(1, abs=1e-3)
    assert encoder.embedded == 2 * 4  # bytes, image, array, and the file that the index does not have


def test_a_known_file_is_not_opened_unless_it_has_changed(index, folder, encoder):
    index.search(folder / "red.png")
    index.search(folder / "sub" / ".." / "red.png")
    (folder / "link.png").symlink_to(folder / "red.png")
    index.search(folder / "link.png")
    assert encoder.embedded == 0
    paint(folder / "red.png", (20, 10, 250), size=(50, 30))
    hits = index.search(folder / "red.png", k=1)
    assert encoder.embedded == 1
    assert names(hits) == ["blue.png"]  # what it looks like now, and not what the index saw


def test_the_query_itself_is_left_out_unless_it_is_wanted(index, folder):
    assert "red.png" not in names(index.search(folder / "red.png", k=10))
    assert len(index.search(folder / "red.png", k=6)) == 6
    both = index.search(folder / "red.png", k=2, include_self=True)
    assert set(names(both)) == {"red.png", "red-again.png"}
    outside = (folder / "red.png").read_bytes()  # no item: its copies are found
    assert set(names(index.search(outside, k=2))) == {"red.png", "red-again.png"}


def test_several_images_and_a_folder_are_asked_by_their_mean(index, folder):
    pair = [folder / "sub" / "blue.png", folder / "sub" / "violet.png"]
    mean = unit(COLOURS["sub/blue.png"]) + unit(COLOURS["sub/violet.png"])
    for form in (pair, folder / "sub", [folder / "sub"], [id_of(index, path) for path in pair]):
        question = index.ask(form if isinstance(form, list) else [form])
        assert np.allclose(question.descriptor, unit(mean), atol=1e-3)
        assert question.ids == tuple(id_of(index, path) for path in pair)
        hits = index.search(form, k=10)
        assert names(hits) == names(index.search(pair, k=10))
        assert len(hits) == 5
    twice = index.ask([pair[0], pair[0], pair[1]])
    assert len(twice.ids) == 2
    assert len(twice.sources) == 3


def test_filters_choose_among_the_photos(index, folder):
    hits = index.search(folder / "red.png", where="path GLOB 'sub/*'")
    assert names(hits) == ["violet.png", "blue.png"]
    assert names(index.search(folder / "red.png", where="width < 40")) == ["red-again.png"]
    assert index.search(folder / "red.png", where="width > 4000") == []
    scores = [hit.score for hit in index.search(folder / "red.png", k=10)]
    kept = index.search(folder / "red.png", k=10, min_score=0.9)
    assert [hit.score for hit in kept] == [score for score in scores if score >= 0.9]
    assert 0 < len(kept) < len(scores)
    assert index.search(folder / "red.png", min_score=1.01) == []


def test_of_near_duplicates_the_best_is_kept_and_places_are_filled(index, folder):
    hits = index.search((folder / "red.png").read_bytes(), k=4, unique=True)
    assert names(hits) == ["red-again.png", "orange.png", "violet.png", "green.png"]  # reddish: cosine .978
    rows = index.descriptors(np.array([hit.id for hit in hits])).astype(np.float64)
    alike = rows @ rows.T
    assert (alike[~np.eye(len(hits), dtype=bool)] < 0.97).all()


def test_photos_that_are_gone_are_marked_or_left_out(index, folder):
    (folder / "reddish.png").unlink()
    hits = index.search(folder / "orange.png", k=10)
    assert {hit.path.name for hit in hits if hit.gone} == {"reddish.png"}
    kept = index.search(folder / "orange.png", k=5, existing=True)
    assert names(kept) == [name for name in names(hits) if name != "reddish.png"][:5]
    gone = index.search(id_of(index, folder / "reddish.png"), k=1)  # its descriptor is still known
    assert names(gone) == ["red-again.png"]


def test_a_region_is_asked_instead_of_the_whole(index, folder, encoder):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = COLOURS["green.png"], COLOURS["sub/blue.png"]
    Image.fromarray(pixels).save(folder / "half.png")
    left, right = Region(0, 0, 40, 40), Region(0.5, 0, 0.5, 1, relative=True)
    assert names(index.search(folder / "half.png", k=1, region=left)) == ["green.png"]
    assert names(index.search(folder / "half.png", k=1, region=right)) == ["blue.png"]
    before = encoder.embedded
    index.search(folder / "red.png", region=Region(0, 0, 10, 10))
    assert encoder.embedded == before + 1  # the stored descriptor is that of the whole image
    with pytest.raises(ArgumentError, match="region"):
        index.search(1, region=left)
    with pytest.raises(ArgumentError):
        index.search(folder / "half.png", region=Region(0, 0, 100, 10))


def test_what_cannot_be_asked_is_said(index, folder):
    (folder.parent / "rubbish.jpg").write_bytes(b"rubbish")
    with pytest.raises(ImageError, match="rubbish"):
        index.search(folder.parent / "rubbish.jpg")
    with pytest.raises(ImageError, match=r"nowhere\.jpg"):
        index.search(folder / "nowhere.jpg")
    with pytest.raises(ArgumentError, match="999"):
        index.search("id:999")
    with pytest.raises(ArgumentError, match="no query"):
        index.search([])
    with pytest.raises(ArgumentError):
        index.search(folder / "red.png", k=0)
    with pytest.raises(ArgumentError, match="cannot filter"):
        index.search(folder / "red.png", where="DROP TABLE files")


def test_queries_that_cancel_out_have_no_direction(index, monkeypatch, encoder):
    rows = iter([np.array([[1, 0, 0]], np.float32), np.array([[-1, 0, 0]], np.float32)])
    monkeypatch.setattr(encoder, "embed", lambda pixels: next(rows))
    image = Image.new("RGB", (20, 20))
    with pytest.raises(ArgumentError, match="cancel"):
        index.search([image, image])


def test_a_descriptor_that_is_not_finite_is_refused(index, monkeypatch, encoder):
    monkeypatch.setattr(encoder, "embed", lambda pixels: np.full((1, 3), np.nan, np.float32))
    with pytest.raises(ImageError, match="finite"):
        index.search(Image.new("RGB", (20, 20)))


def test_another_model_is_refused_before_it_answers(folder):
    other = ColourEncoder()
    other.identity = ModelIdentity("other", "1" * 64, 3, "mean", other.view.describe())
    with Index.open(folder.parent / "ix", encoder=other) as index:
        assert len(index.search("id:1")) == 6  # asks nothing of the model
        with pytest.raises(StoreMismatch):
            index.search(Image.new("RGB", (20, 20), "red"))


def test_a_model_that_cannot_be_loaded_is_an_error_that_names_the_index(folder):
    with (
        Index.open(folder.parent / "ix") as index,
        pytest.raises(WeightsError, match="the model of the index") as caught,
    ):
        index.search(Image.new("RGB", (20, 20), "red"))
    assert caught.value.hint


def test_a_directory_without_an_index_is_missing(tmp_path):
    with pytest.raises(StoreMissing):
        Index.open(tmp_path)


def test_an_open_index_does_not_see_what_is_written_later(index, folder, encoder):
    paint(folder / "new.png", (245, 15, 12))
    (folder / "red-again.png").unlink()
    index_photos(folder.parent / "ix", [folder], encoder=ColourEncoder())
    assert len(index) == 7
    assert "new.png" not in names(index.search(folder / "red.png", k=10))
    with Index.open(folder.parent / "ix", encoder=encoder) as later:
        assert names(later.search(folder / "red.png", k=1)) == ["new.png"]


def test_asking_for_a_known_photo_loads_no_torch(folder):
    script = f"""
import sys
from dinov2kit.indexes import Index
with Index.open({os.fspath(folder.parent / "ix")!r}) as index:
    hits = index.search("id:1", k=3) + index.search({os.fspath(folder / "green.png")!r}, k=2)
heavy = [name for name in ("torch", "cv2", "transformers") if name in sys.modules]
print(len(hits), heavy)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5 []"


def test_stdin_bytes_of_a_broken_image_are_named_as_such(index):
    buffer = io.BytesIO()
    Image.new("RGB", (300, 300), "red").save(buffer, "JPEG")
    with pytest.raises(ImageError):
        index.search(buffer.getvalue()[:300])
