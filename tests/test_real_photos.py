"""Real photos, where the test data is at hand: copies of a photo lead back to it, even without training."""

import json
import os
from pathlib import Path

import pytest

from dinov2kit import Encoder
from dinov2kit.indexes import Index, index_photos

DATA = Path(os.environ.get("DINOKIT_TEST_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
COPIES = DATA / "retrieval" / "copydetect"

pytestmark = pytest.mark.skipif(
    not COPIES.is_dir(), reason="needs the test data; say where it is with DINOKIT_TEST_DATA"
)


@pytest.mark.parametrize(("edit", "share"), [("jpeg8", 1.0), ("rot15", 0.95)])
def test_copies_of_a_photo_lead_back_to_it(tmp_path, monkeypatch, edit, share):
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    encoder = Encoder("untrained:vitt14", device="cpu", precision="fp32")
    run = index_photos(tmp_path / "ix", [COPIES / "originals"], encoder=encoder)
    assert (run.items, run.report.errors) == (60, [])
    copies = [
        row for row in json.loads((COPIES / "groundtruth.json").read_text())["copies"] if row[2] == edit
    ]
    assert len(copies) == 60
    with Index.open(run.directory, encoder=encoder) as index:
        right = [
            index.search(COPIES / copy, k=1)[0].path == COPIES / original for copy, original, _ in copies
        ]
    assert sum(right) / 60 >= share
