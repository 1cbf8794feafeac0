"""Random lives of a folder: after each run the index has exactly what is there."""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from colour_encoder import ColourEncoder, paint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from PIL import Image

from dinov2kit.indexes import Snapshot, UpdateRules, index_photos, list_errors
from dinov2kit.indexes.verifying import verify


def content(directory: Path) -> dict[Path, np.ndarray]:
    """Return the descriptor of each photo in the index."""
    with Snapshot.open(directory) as snapshot:
        paths = [photo.path for photo in snapshot.photos(snapshot.ids)]
        return dict(zip(paths, snapshot.descriptors(snapshot.ids), strict=True))


class PhotosAgainstFolder(RuleBasedStateMachine):
    """Random lives of a folder: after each run the index is what an index made anew would be."""

    @initialize()
    def begin(self):
        self.top = Path(tempfile.mkdtemp())
        os.environ["DINOKIT_HOME"] = str(self.top / "home")
        self.folder, self.directory = self.top / "photos", self.top / "ix"
        paint(self.folder / "first.png", (1, 2, 3))
        self.up_to_date()

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.png"))

    @rule(name=st.sampled_from("abcdef"), colour=st.sampled_from([(9, 9, 99), (99, 9, 9), (9, 99, 9)]))
    def write(self, name, colour):
        paint(self.folder / f"{name}.png", colour)

    @rule(name=st.sampled_from("abc"))
    def write_rubbish(self, name):
        (self.folder / f"{name}.png").write_bytes(b"rubbish")

    @precondition(lambda self: len(self.files()) > 1)
    @rule(draw=st.data(), name=st.sampled_from(["a", "sub/b", "sub/c", "d"]))
    def move(self, draw, name):
        target = self.folder / f"{name}.png"
        target.parent.mkdir(exist_ok=True)
        draw.draw(st.sampled_from(self.files())).rename(target)

    @precondition(lambda self: len(self.files()) > 1)
    @rule(draw=st.data())
    def copy(self, draw):
        (self.folder / "copy.png").write_bytes(draw.draw(st.sampled_from(self.files())).read_bytes())

    @precondition(lambda self: len(self.files()) > 1)
    @rule(draw=st.data())
    def remove(self, draw):
        draw.draw(st.sampled_from(self.files())).unlink()

    @rule()
    def up_to_date(self):
        index_photos(self.directory, [self.folder], encoder=ColourEncoder(), rules=UpdateRules(prune="force"))
        pictures = {path: path.read_bytes() for path in self.files()}
        good = {path: found for path, found in pictures.items() if found != b"rubbish"}
        found = content(self.directory)
        assert found.keys() == good.keys()
        for path, row in found.items():
            colour = np.asarray(Image.open(path).convert("RGB"))[0, 0]
            expected = ColourEncoder().embed(np.broadcast_to(colour, (1, 14, 14, 3)).astype(np.uint8))[0]
            assert np.allclose(row.astype(np.float32), expected, atol=1e-3)
        assert {error.path for error in list_errors(self.directory)} == pictures.keys() - good.keys()

    @invariant()
    def index_agrees_with_itself(self):
        if hasattr(self, "directory"):
            assert verify(self.directory).ok

    def teardown(self):
        if hasattr(self, "top"):
            shutil.rmtree(self.top)


TestPhotosAgainstFolder = PhotosAgainstFolder.TestCase
TestPhotosAgainstFolder.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)
