"""Calibration: precision and recall of pairs of known origin, and the threshold that follows."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint
from PIL import Image

from dinov2kit.copies import KINDS
from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import index_photos
from dinov2kit.indexes.calibration import (
    FILE,
    SHOWN,
    _best_row,
    _row,
    calibrate,
    read_threshold,
    write_calibration,
)
from dinov2kit.indexes.index import Index

COLOURS = [(250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20)]


def scores(*per_photo: float) -> np.ndarray:
    """Return pairs of which all kinds of one photo score the same."""
    return np.repeat(np.array(per_photo, np.float64)[:, None], len(KINDS), axis=1)


def open_index(directory: Path) -> Index:
    return Index.open(directory, encoder=ColourEncoder())


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number, colour in enumerate(COLOURS):
        paint(tmp_path / "photos" / f"{number}.png", colour, size=(40, 32))
    return tmp_path / "photos"


def indexed(photos: Path) -> Path:
    return index_photos(photos.parent / "ix", [photos], encoder=ColourEncoder()).directory


def test_precision_and_recall_by_hand():
    pairs = scores(0.9, 0.8, 0.7, 0.6)
    pairs[0, KINDS.index("flip")] = 0.1
    nearest = np.array([0.75, 0.5, 0.4, 0.3])
    row = _row(pairs, nearest, 0.7)
    assert row.recall == pytest.approx(3 / 4 - 1 / 24)
    assert row.false == 1 / 4
    assert row.precision == pytest.approx(row.recall / (row.recall + 1 / 4))
    assert row.kinds == {kind: 0.5 if kind == "flip" else 0.75 for kind in KINDS}
    assert _row(pairs, nearest, 0.76).precision == 1.0
    assert _row(pairs, nearest, 0.95).precision is None


def test_the_threshold_is_the_lowest_copy_that_is_precise_enough():
    pairs, nearest = scores(0.95, 0.9, 0.8, 0.4), np.array([0.85, 0.6, 0.5, 0.45])
    assert _best_row(pairs, nearest, 1.0).threshold == 0.9
    assert _best_row(pairs, nearest, 0.76).threshold == 0.9
    assert _best_row(pairs, nearest, 0.75).threshold == 0.8  # recall 3/4, false 1/4
    assert _best_row(pairs, nearest, 0.5).threshold == 0.4  # recall 1, false 1
    assert _best_row(scores(0.2), np.array([0.9]), 0.99) is None


def test_the_threshold_is_rounded_so_that_its_own_copy_still_counts():
    pairs = scores(0.98765432199)
    best = _best_row(pairs, np.array([0.5]), 0.99)
    assert (best.threshold, best.recall) == (0.987654, 1.0)


def test_copies_and_other_colours_are_told_apart(photos):
    """Pictures of one colour: only a border changes it; two colours apart have a cosine of 0.16 or 0.73."""
    with open_index(indexed(photos)) as index:
        found = calibrate(index)
    assert (found.photos, found.left_out, found.unreadable) == (4, 0, ())
    assert (found.model, found.fingerprint) == ("colour", ColourEncoder().identity.fingerprint)
    assert [row.threshold for row in found.rows] == [round(threshold, 6) for threshold in SHOWN]
    by_threshold = {row.threshold: row for row in found.rows}
    assert by_threshold[0.5].false == 0.75  # yellow lies beside red and green; blue is alone
    assert by_threshold[0.5].precision == pytest.approx(1 / 1.75)
    assert by_threshold[0.8].precision == 1.0
    assert all(row.kinds["resize"] == row.kinds["crop"] == row.kinds["flip"] == 1 for row in found.rows)
    assert found.best.recall == found.best.precision == 1.0
    assert 0.8 < found.best.threshold < 1


def test_the_same_seed_gives_the_same_and_photos_are_drawn(photos):
    with open_index(indexed(photos)) as index:
        runs = [calibrate(index, photos=3, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert runs[0] == runs[1]
    assert len({str(run.to_json()) for run in runs}) > 1
    assert {run.photos for run in runs} == {3}


def test_copies_inside_the_collection_do_not_poison_the_threshold(photos):
    """A second file of the same content, and a near copy: both are left out, not taken for other photos."""
    rng = np.random.default_rng(0)
    for number in range(1, 4):  # the first stays plain, where pixels say nothing and only the content can
        smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120), Image.BICUBIC)
        smooth.save(photos / f"{number}.png")
    with open_index(indexed(photos)) as index:
        clean = calibrate(index)
    (photos / "same.png").write_bytes((photos / "0.png").read_bytes())
    Image.open(photos / "1.png").save(photos / "near.jpg", quality=85)
    index_photos(photos.parent / "ix", encoder=ColourEncoder())
    with open_index(photos.parent / "ix") as index:
        found = calibrate(index)
    assert found.left_out == 4
    assert found.rows[-1].threshold == 0.9999
    assert found.rows[-1].false == clean.rows[-1].false == 0
    assert found.best.threshold == pytest.approx(clean.best.threshold, abs=0.01)


def test_photos_that_are_gone_or_changed_are_named_and_left_out(photos):
    directory = indexed(photos)
    (photos / "0.png").unlink()
    paint(photos / "1.png", (9, 9, 200), size=(44, 32))
    steps = []
    with open_index(directory) as index:
        found = calibrate(index, watch=lambda *step: steps.append(step))
    assert found.photos == 2
    assert [(path.name, reason) for path, reason in found.unreadable] == [
        ("0.png", "no such file"), ("1.png", "it has changed since it was indexed"),
    ]  # fmt: skip
    assert steps[:4] == [("Copying", number, 4) for number in range(4)]
    for path in photos.iterdir():
        path.unlink()
    with open_index(directory) as index, pytest.raises(ArgumentError, match="0 of 4 photos can be read"):
        calibrate(index)


def test_numbers_out_of_range_are_refused_before_any_work(photos):
    with open_index(indexed(photos)) as index:
        for wrong in ({"photos": 1}, {"precision": 0.0}, {"precision": 1.01}):
            with pytest.raises(ArgumentError, match="wanted 2 or more, and above 0 to 1"):
                calibrate(index, **wrong)


def test_what_is_written_is_read_for_the_same_model_only(photos):
    directory = indexed(photos)
    with open_index(directory) as index:
        assert read_threshold(index.snapshot) is None
        found = calibrate(index)
        path = write_calibration(directory, found)
        assert path == directory / FILE
        assert read_threshold(index.snapshot) == found.best.threshold
        assert json.loads(path.read_text())["photos"] == 4
        write_calibration(directory, replace(found, fingerprint="of another model"))
        assert read_threshold(index.snapshot) is None
        for wrong in ("{", '{"schema": "dinokit.dedup-calibration/2"}', "[]"):
            path.write_text(wrong)
            with pytest.raises(ArgumentError, match=r"dedup\.json cannot be understood"):
                read_threshold(index.snapshot)


def test_a_calibration_without_a_threshold_is_not_written(photos):
    directory = indexed(photos)
    with open_index(directory) as index:
        found = replace(calibrate(index), best=None)
    with pytest.raises(ArgumentError, match=r"no threshold reaches a precision of 0\.99 with colour"):
        write_calibration(directory, found)
    assert not (directory / FILE).exists()
    assert found.to_json()["threshold"] is None
