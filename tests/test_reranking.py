"""Re-ranking: the photo that truly shows the same comes first; what cannot be compared is kept and said."""

from dataclasses import replace
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
from colour_encoder import ColourEncoder
from PIL import Image
from pixel_encoder import PATCH, PixelEncoder

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.features import FeatureSpec
from dinov2kit.indexes import Hit, Index, Question, index_photos, rerank
from dinov2kit.indexes.query import Part
from dinov2kit.matching import match_all
from dinov2kit.views import Region

ROWS, COLS = 6, 8
SPEC = FeatureSpec()


def texture(seed: int, rows: int = ROWS, cols: int = COLS + 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows * PATCH, cols * PATCH, 3), np.uint8)


def shuffled(pixels: np.ndarray, seed: int) -> np.ndarray:
    """Return the same patches in another order: all match, but in no geometry."""
    rows, cols = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    tiles = pixels.reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2).reshape(-1, PATCH, PATCH, 3)
    tiles = tiles[np.random.default_rng(seed).permutation(len(tiles))]
    return tiles.reshape(rows, cols, PATCH, PATCH, 3).swapaxes(1, 2).reshape(pixels.shape)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A query; itself moved by two patches; its patches shuffled; half of it; something else."""
    scene = texture(1)
    half = texture(2)[:, : COLS * PATCH].copy()
    half[:, : COLS * PATCH // 2] = scene[:, : COLS * PATCH // 2]
    views = {
        "query.png": scene[:, : COLS * PATCH],
        "moved.png": scene[:, 2 * PATCH :],
        "shuffled.png": shuffled(scene[:, : COLS * PATCH], 3),
        "half.png": half,
        "other.png": texture(4)[:, : COLS * PATCH],
    }
    for name, pixels in views.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / name)
    return tmp_path


def hits_of(folder: Path, scores: dict[str, float]) -> list[Hit]:
    return [
        Hit(number, score, folder / f"{name}.png", 1, 1, None, gone=False)
        for number, (name, score) in enumerate(scores.items(), 1)
    ]


def question_of(*sources, region: Region | None = None, weight: float = 1.0) -> Question:
    descriptor = np.array([1, 0, 0], np.float32)
    return Question(descriptor, tuple(Part(descriptor, weight, source, None, region) for source in sources))


def names(found) -> list[str]:
    return [one.hit.path.stem for one in found]


def test_the_photo_of_the_same_scene_comes_first_whatever_the_global_scores_said(folder):
    hits = hits_of(folder, {"other": 0.9, "shuffled": 0.8, "half": 0.8, "moved": 0.8})
    found = rerank(PixelEncoder(), question_of(folder / "query.png"), hits)
    assert names(found) == ["moved", "half", "shuffled", "other"]
    by_name = dict(zip(names(found), found, strict=True))
    assert by_name["moved"].inliers == ROWS * (COLS - 2)  # two columns of patches are out of sight
    assert by_name["shuffled"].matches == ROWS * COLS
    assert by_name["shuffled"].inliers == 0
    assert by_name["half"].inliers >= ROWS * COLS / 2
    assert [one.hit.score for one in found] == [0.8, 0.8, 0.8, 0.9]
    assert all(one.note is None for one in found)


def test_the_score_is_the_product_that_is_promised(folder):
    hits = hits_of(folder, {"half": 0.5})
    encoder = PixelEncoder()
    (found,) = rerank(encoder, question_of(folder / "query.png"), hits)
    sides = [encoder.encode(folder / name, SPEC) for name in ("query.png", "half.png")]
    matches, _ = match_all(*sides)
    mean = matches.confidence[matches.kept].sum() / (ROWS * COLS)
    assert found.score == pytest.approx(0.5 * (1 + mean) * (1 + found.inliers / (ROWS * COLS)), rel=1e-6)
    (plain,) = rerank(encoder, question_of(folder / "query.png"), hits, geometry=None)
    assert plain.score == pytest.approx(0.5 * (1 + mean), rel=1e-6)
    assert (plain.inliers, plain.matches) == (None, found.matches)
    facts = found.to_json()
    assert list(facts)[-4:] == ["rerank_score", "matches", "inliers", "note"]
    assert {**hits[0].to_json(), **facts} == facts


def test_without_a_geometry_the_order_of_the_patches_does_not_matter(folder):
    hits = hits_of(folder, {"moved": 0.5, "shuffled": 0.5})
    assert names(rerank(PixelEncoder(), question_of(folder / "query.png"), hits, geometry=None)) == [
        "shuffled",  # has all patches of the query
        "moved",
    ]


def test_only_the_first_are_compared_and_the_others_follow_as_they_were(folder):
    hits = hits_of(folder, {"other": 0.9, "half": 0.8, "shuffled": 0.7, "moved": 0.6})
    encoder = PixelEncoder()
    found = rerank(encoder, question_of(folder / "query.png"), hits, count=2)
    assert names(found) == ["half", "other", "shuffled", "moved"]
    assert [one.score is None for one in found] == [False, False, True, True]
    assert encoder.encoded == ["query.png", "other.png", "half.png"]  # each once


def test_photos_that_are_gone_or_broken_stay_behind_those_compared_and_say_why(folder):
    (folder / "half.png").unlink()
    (folder / "moved.png").write_bytes(b"rubbish")
    hits = hits_of(folder, {"half": 0.9, "moved": 0.8, "other": 0.7, "shuffled": 0.6})
    stages = []
    found = rerank(
        PixelEncoder(),
        question_of(folder / "query.png"),
        hits,
        count=3,
        watch=lambda *stage: stages.append(stage),
    )
    assert names(found) == ["other", "half", "moved", "shuffled"]
    assert [one.note and one.note[:16] for one in found] == [
        None,
        "the file is gone",
        "cannot read " + str(folder)[:4],
        None,
    ]
    assert stages == [("Matching", done, 3) for done in range(4)]


def test_of_several_query_images_the_best_counts_and_negative_ones_do_not(folder):
    hits = hits_of(folder, {"other": 0.5, "moved": 0.5})
    both = question_of(folder / "shuffled.png", folder / "query.png")
    alone = question_of(folder / "query.png")
    scores = [
        {one.hit.path: one.score for one in rerank(PixelEncoder(), asked, hits)} for asked in (both, alone)
    ]
    assert scores[0][folder / "moved.png"] == scores[1][folder / "moved.png"]
    unlike = Part(both.descriptor, -1.0, folder / "other.png", None, None)
    found = rerank(PixelEncoder(), replace(alone, parts=(*alone.parts, unlike)), hits)
    assert {one.hit.path: one.score for one in found} == scores[1]
    for empty in (question_of(folder / "query.png", weight=-1.0), question_of(None)):
        with pytest.raises(ArgumentError, match="an image that is asked for"):
            rerank(PixelEncoder(), empty, hits)


def test_a_region_restricts_the_patches_of_the_query_and_not_its_picture(folder):
    """The left half of the query is in `half`, the right half is nowhere but in `moved`."""
    hits = hits_of(folder, {"half": 0.5, "moved": 0.5})
    left, right = Region(0, 0, 0.5, 1, relative=True), Region(0.5, 0, 0.5, 1, relative=True)
    for region, first, count in ((left, "half", ROWS * COLS // 2), (right, "moved", ROWS * COLS // 2)):
        encoder = PixelEncoder()
        found = rerank(encoder, question_of(folder / "query.png", region=region), hits)
        assert names(found)[0] == first
        assert found[0].matches == found[0].inliers == count
        assert encoder.encoded.count("query.png") == 1
    tiny = Region(3 * PATCH + 1, 2 * PATCH + 1, 3, 3)
    found = rerank(PixelEncoder(), question_of(folder / "query.png", region=tiny), hits, geometry=None)
    assert [one.matches for one in found] == [1, 1]
    with pytest.raises(ArgumentError, match="beyond the image"):
        rerank(PixelEncoder(), question_of(folder / "query.png", region=Region(0, 0, 999, 9)), hits)


def test_hits_without_a_global_score_come_by_what_they_had(folder):
    hits = hits_of(folder, {"other": -0.1, "moved": -0.2})
    found = rerank(PixelEncoder(), question_of(folder / "query.png"), hits)
    assert [one.score for one in found] == [0, 0]
    assert names(found) == ["other", "moved"]


def test_what_makes_no_sense_is_said_before_any_work(folder, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of tests
    hits = hits_of(folder, {"moved": 0.5})
    encoder = PixelEncoder()
    with pytest.raises(ArgumentError, match="geometry 'plane'"):
        rerank(encoder, question_of(folder / "query.png"), hits, geometry="plane")
    assert encoder.encoded == []
    with pytest.raises(ImageError, match="nowhere"):
        rerank(encoder, question_of(folder / "nowhere.png"), hits)
    assert rerank(encoder, question_of(folder / "query.png"), []) == []


class PatchyEncoder(ColourEncoder):
    """Describes an image by its mean colour, and its patches by their pixels."""

    def __init__(self, *arguments: object, **settings: object) -> None:
        super().__init__(*arguments, **settings)
        self.pixels = PixelEncoder()

    def encode(self, source, spec=None):
        return self.pixels.encode(source, spec)


def test_an_index_opens_its_model_and_encodes_each_photo_once_or_reads_it_from_a_cache(folder, monkeypatch):
    monkeypatch.setenv("DINOKIT_HOME", str(folder / "home"))
    index_photos(folder / "ix", [folder], encoder=ColourEncoder())
    encoder = PatchyEncoder()
    with Index.open(folder / "ix", encoder=encoder) as index:
        question = index.ask([folder / "query.png"])
        hits = index.answer(question, 10)
        found = index.rerank(question, hits, cache=folder / "cache.h5")
        assert names(found)[0] == "moved"
        assert len(found) == 4
        again = index.rerank(question, hits, cache=folder / "cache.h5")
        assert [one.to_json() for one in again] == [one.to_json() for one in found]
        assert sorted(encoder.pixels.encoded) == sorted(path.name for path in folder.glob("*.png"))
    encoder = PatchyEncoder()
    with Index.open(folder / "ix", encoder=encoder) as index:
        again = index.rerank(question, hits, cache=folder / "cache.h5")
        assert [one.to_json() for one in again] == [one.to_json() for one in found]
        assert encoder.pixels.encoded == []
    with (
        Index.open(folder / "ix", encoder=ColourEncoder()) as index,
        pytest.raises(ArgumentError, match="patches"),
    ):
        index.rerank(question, hits)
