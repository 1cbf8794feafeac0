"""What is asked: weights, negative queries, descriptors, regions; the sums are known by hand."""

from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint
from PIL import Image

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import Index, index_photos, read_vectors
from dinov2kit.views import Region

COLOURS = {
    "blue.png": (0, 0, 250),
    "green.png": (0, 250, 0),
    "purple.png": (200, 0, 200),
    "red.png": (250, 0, 0),
    "yellow.png": (200, 200, 0),
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)
    for name, colour in COLOURS.items():
        paint(tmp_path / "photos" / name, colour, size=(40, 30))
    index_photos(tmp_path / "ix", [tmp_path / "photos"], encoder=ColourEncoder())
    return tmp_path / "photos"


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def index(folder, encoder):
    with Index.open(folder.parent / "ix", encoder=encoder) as opened:
        yield opened


def unit(*values: float) -> np.ndarray:
    return np.array(values) / np.linalg.norm(values)


def names(hits) -> list[str]:
    return [hit.path.name for hit in hits]


def test_weights_are_those_of_a_sum(index, folder):
    question = index.ask([folder / "red.png", folder / "green.png"], weights=[3.0, 1.0])
    assert np.allclose(question.descriptor, unit(3, 1, 0), atol=1e-3)
    scaled = index.ask([folder / "red.png", folder / "green.png"], weights=[0.75, 0.25])
    assert np.allclose(scaled.descriptor, question.descriptor, atol=1e-6)
    plain = index.ask([folder / "red.png", folder / "green.png"])
    same = index.ask([folder / "red.png", folder / "green.png"], weights=[2.0, 2.0])
    assert np.allclose(plain.descriptor, unit(1, 1, 0), atol=1e-3)
    assert np.allclose(same.descriptor, plain.descriptor, atol=1e-6)
    assert names(index.search([folder / "red.png", folder / "blue.png"], 1, weights=[1.0, 1.0])) == [
        "purple.png"
    ]


def test_the_weight_of_a_folder_is_that_of_each_of_its_images(index, folder):
    pair = folder.parent / "pair"
    for name in ("green.png", "blue.png"):
        paint(pair / name, COLOURS[name])
    question = index.ask([folder / "red.png", pair], weights=[1.0, 2.0])
    assert np.allclose(question.descriptor, unit(1, 2, 2), atol=1e-3)
    assert [part.weight for part in question.parts] == [1, 2, 2]


def test_a_negative_photo_is_subtracted_and_never_found(index, folder):
    """Purple without blue is red; blue itself would be the worst of all."""
    pair = [folder / "purple.png", folder / "blue.png"]
    question = index.ask(pair, weights=[1.0, -0.5])
    assert np.allclose(question.descriptor, unit(*(unit(1, 0, 1) - [0, 0, 0.5])), atol=1e-3)
    hits = index.search(pair, 10, weights=[1.0, -0.5])
    assert names(hits) == ["red.png", "yellow.png", "green.png"]
    assert names(index.search(pair, 10, weights=[1.0, -0.5], include_self=True))[:2] == [
        "red.png",
        "purple.png",
    ]
    assert "blue.png" not in names(index.search(pair, 10, weights=[1.0, -0.5], include_self=True))
    red, purple, blue = (index.snapshot.find(folder / f"{name}.png") for name in ("red", "purple", "blue"))
    assert (question.ids, question.unwanted_ids) == ((purple,), (blue,))
    assert question.sources == (folder / "purple.png",)
    assert names(index.search(pair, 10, weights=[1.0, -0.5], where=f"id <> {red}"))[0] == "yellow.png"


def test_only_negative_photos_ask_for_what_is_least_like_them(index, folder):
    hits = index.search([folder / "red.png"], 10, weights=[-1.0])
    assert set(names(hits)[:2]) == {"blue.png", "green.png"}
    assert [hit.score for hit in hits] == pytest.approx([0, 0, -(0.5**0.5), -(0.5**0.5)], abs=1e-3)


def test_what_cancels_out_has_no_direction_also_when_fp16_leaves_something(index, folder, encoder):
    """A stored descriptor and the one of the same picture outside the index differ by rounding alone."""
    copy = folder.parent / "copy.png"
    paint(copy, (201, 99, 37))
    paint(folder / "new.png", (201, 99, 37))
    index_photos(folder.parent / "ix", [folder], encoder=ColourEncoder())
    with Index.open(folder.parent / "ix", encoder=encoder) as later:
        stored, fresh = (later.ask([path]).descriptor for path in (folder / "new.png", copy))
        assert 0 < np.linalg.norm(stored - fresh) < 1e-3
        for weights in ([1.0, -1.0], [-7.0, 7.0]):
            with pytest.raises(ArgumentError, match="cancel"):
                later.ask([folder / "new.png", copy], weights=weights)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0], "1 weights for 2"),
        ([1.0, 0.0], "a weight is 0"),
        ([1.0, np.nan], "nan"),
        ([np.inf, 1.0], "inf"),
    ],
)
def test_weights_that_make_no_sense_are_refused(index, folder, weights, said):
    with pytest.raises(ArgumentError, match=said):
        index.ask([folder / "red.png", folder / "blue.png"], weights=weights)


def test_weights_go_with_the_mean_only_and_unknown_aggregations_are_named(index, folder, monkeypatch):
    pair = [folder / "purple.png", folder / "yellow.png"]
    for agg in ("max", "min", "rrf"):
        assert len(index.search(pair, agg=agg)) == 3
        with pytest.raises(ArgumentError, match=f"not with '{agg}'"):
            index.search(pair, agg=agg, weights=[1.0, -1.0])
    assert names(index.search(pair, 1, agg="min")) == ["red.png"]  # half of each
    assert index.search(pair, 1, agg="min")[0].score == pytest.approx(0.5**0.5, abs=1e-3)
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of tests
    with pytest.raises(ArgumentError, match="unknown aggregation 'median'; wanted one of mean"):
        index.search(pair, agg="median")


def test_a_descriptor_is_a_question_that_needs_no_model(index, folder, encoder):
    for vector in (np.array([0.0, 9.0, 0.0]), np.array([0, 1, 0], np.float16)):
        hits = index.search(vector, 10)
        assert hits[0].path.name == "green.png"
        assert len(hits) == 5  # it is no photo of the index, so none is left out
    assert index.ask([np.array([0.0, 0.0, 2.0])]).sources == ()
    assert encoder.embedded == 0
    mixed = index.ask([folder / "red.png", np.array([0.0, 1.0, 0.0])], weights=[1.0, 2.0])
    assert np.allclose(mixed.descriptor, unit(1, 2, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("vector", "said"),
    [([1.0, 0.0], "2 numbers, the index 3"), ([0.0, 0.0, 0.0], "zero"), ([np.nan, 0.0, 1.0], "not finite")],
)
def test_a_descriptor_that_the_index_cannot_have_is_refused(index, vector, said):
    with pytest.raises(ArgumentError, match=said):
        index.ask([np.array(vector)])


def test_descriptors_are_read_from_files(tmp_path):
    np.save(tmp_path / "one.npy", np.array([1, 2, 3], np.float16))
    np.save(tmp_path / "two.npy", np.eye(2, 3))
    assert [row.tolist() for row in read_vectors(tmp_path / "one.npy")] == [[1, 2, 3]]
    assert [row.tolist() for row in read_vectors(tmp_path / "two.npy")] == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("kind", ["missing", "text", "pickle", "ints", "cube", "empty", "archive"])
def test_files_that_hold_no_descriptors_are_refused(tmp_path, kind):
    path = tmp_path / f"{kind}.npy"
    arrays = {
        "ints": np.ones(3, int),
        "cube": np.ones((1, 2, 3)),
        "empty": np.ones((0, 3)),
        "pickle": np.array([{}], object),
    }
    if kind == "text":
        path.write_text("1 2 3")
    elif kind == "archive":
        with path.open("wb") as file:
            np.savez(file, a=np.ones(3))
    elif kind in arrays:
        np.save(path, arrays[kind], allow_pickle=True)
    with pytest.raises(ArgumentError, match=f"{kind}.npy"):
        read_vectors(path)


def test_each_image_has_its_own_region(index, folder):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40], pixels[:, 40:] = COLOURS["green.png"], COLOURS["blue.png"]
    Image.fromarray(pixels).save(folder / "half.png")
    left, right = Region(0, 0, 40, 40), Region(0.5, 0, 0.5, 1, relative=True)
    half = folder / "half.png"
    assert np.allclose(index.ask([half, half], region=[left, right]).descriptor, unit(0, 1, 1), atol=1e-3)
    assert np.allclose(index.ask([half, half], region=left).descriptor, unit(0, 1, 0), atol=1e-3)
    mixed = index.ask([half, folder / "red.png"], region=[right, None])
    assert np.allclose(mixed.descriptor, unit(1, 0, 1), atol=1e-3)
    assert [part.region for part in mixed.parts] == [right, None]
    with pytest.raises(ArgumentError, match="2 regions for 1"):
        index.ask([half], region=[left, right])
    with pytest.raises(ArgumentError, match="a region needs an image"):
        index.ask([np.array([1.0, 0.0, 0.0])], region=left)


def test_a_region_of_an_item_is_one_of_its_file(index, folder, encoder):
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[:, :20], pixels[:, 20:] = COLOURS["green.png"], COLOURS["blue.png"]
    Image.fromarray(pixels).save(folder / "half.png")
    index_photos(folder.parent / "ix", [folder], encoder=ColourEncoder())
    with Index.open(folder.parent / "ix", encoder=encoder) as later:
        number = later.snapshot.find(folder / "half.png")
        for query in (number, f"id:{number}"):
            hits = later.search(query, 1, region=Region(20, 0, 20, 30))
            assert names(hits) == ["blue.png"]
        assert encoder.embedded == 2
        with pytest.raises(ArgumentError, match="beyond the image of 40x30"):
            later.search(number, region=Region(0, 0, 41, 30))
