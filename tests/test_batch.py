"""One image against many, and lists of pairs: each image once, nothing twice, and the same after any kill."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image
from pixel_encoder import PixelEncoder, paint_views

from dinov2kit import batch, feature_cache
from dinov2kit.batch import match_many, match_pairs
from dinov2kit.colmap import export_colmap
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.feature_cache import FeatureCache
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.matching import MatchSpec
from dinov2kit.pairs import PairSpec, match_images

NAMES = ["a.png", "b.png", "x/c.png", "x/é.png"]
PAIRS = [(NAMES[i], NAMES[j]) for i in range(4) for j in range(i + 1, 4)]
SURE = MatchSpec(min_score=0.9)
PLAIN = PairSpec(mask="none", matching=SURE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    paint_views(tmp_path / "root", NAMES)
    return tmp_path / "root"


def read(path: Path) -> dict[str, bytes | str]:
    """Return everything in an HDF5 file, by plain h5py."""
    content: dict[str, bytes | str] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        content.update({f"{name}@{key}": repr(value) for key, value in item.attrs.items()})
        if isinstance(item, h5py.Dataset):
            content[name] = str(item.dtype).encode() + item[()].tobytes()

    with h5py.File(path) as file:
        note("", file)
        file.visititems(note)
    return content


def truth(shift: int) -> list[int]:
    """Return `matches0` of two views of the texture, 5 rows by 8 columns, the second `shift` patches on."""
    return [-1 if col < shift else row * 8 + col - shift for row in range(5) for col in range(8)]


def test_image_0_is_encoded_once_and_targets_are_ranked_by_confidence(root: Path, tmp_path: Path) -> None:
    noisy = np.asarray(Image.open(root / "b.png"), np.float32)
    noisy = noisy + np.random.default_rng(1).normal(0, 30, noisy.shape)
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / "noisy.png")
    (root / "bad.png").write_bytes(b"no image")
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (70, 112, 3), np.uint8)).save(
        root / "other.png"
    )
    targets = [root / name for name in ("other.png", "noisy.png", "bad.png", "b.png", "absent.png")]
    encoder, seen, advanced = PixelEncoder(), [], []
    ranking = match_many(
        encoder, root / "a.png", targets, spec=PLAIN, each=seen.append, advance=advanced.append
    )
    assert encoder.encoded == ["a.png", *(path.name for path in targets)]
    assert [ranked.path.name for ranked in ranking.found] == ["b.png", "noisy.png", "other.png"]
    assert [path.name for path, reason in ranking.failed if reason] == ["bad.png", "absent.png"]
    assert [pair.paths[1].name for pair in seen] == ["other.png", "noisy.png", "b.png"]
    assert advanced == targets
    for ranked in ranking.found[:2]:
        alone = match_images(PixelEncoder(), root / "a.png", ranked.path, spec=PLAIN)
        assert ranked.matches.keypoints1.tolist() == alone.matches.keypoints1.tolist()
        assert ranked.confidence == pytest.approx(alone.matches.confidence[alone.matches.kept].mean())
    assert (ranking.found[2].confidence, len(ranking.found[2].matches)) == (0.0, 0)


def test_equal_targets_stay_in_their_order_and_a_bad_image_0_is_an_error(root: Path) -> None:
    for name in ("2.png", "1.png", "3.png"):
        (root / name).write_bytes((root / "b.png").read_bytes())
    targets = [root / "2.png", root / "1.png", root / "3.png"]
    assert [r.path for r in match_many(PixelEncoder(), root / "a.png", targets, spec=PLAIN).found] == targets
    with pytest.raises(ImageError, match=r"absent\.png"):
        match_many(PixelEncoder(), root / "absent.png", targets)


def test_a_list_of_known_shifts_becomes_a_file_of_known_rows(root: Path, tmp_path: Path) -> None:
    encoder, seen = PixelEncoder(), []
    report = match_pairs(encoder, PAIRS, root, tmp_path / "m.h5", matching=SURE, advance=seen.append)
    assert (report.matched, report.skipped, report.failed, seen) == (PAIRS, [], [], PAIRS)
    assert Counter(encoder.encoded) == dict.fromkeys(("a.png", "b.png", "c.png", "é.png"), 1)
    with h5py.File(tmp_path / "m.h5") as file:
        assert sorted(file) == ["a.png", "b.png", "x-c.png"]
        for i in range(4):
            for j in range(i + 1, 4):
                group = file[NAMES[i].replace("/", "-")][NAMES[j].replace("/", "-")]
                assert group["matches0"][:].tolist() == truth(j - i)
                matched = group["matches0"][:] >= 0
                moved = group["keypoints0"][:][matched] - group["keypoints1"][:][matched]
                np.testing.assert_allclose(moved, [[14 * (j - i), 0]] * matched.sum(), atol=1e-3)
                assert (group["matching_scores0"][:] > 0).tolist() == matched.tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "root"]


def test_what_is_there_is_skipped_and_what_is_new_is_added(root: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "m.h5", [pair[::-1] for pair in PAIRS[:2]]
    match_pairs(PixelEncoder(), PAIRS[:3], root, out, matching=SURE)
    encoder = PixelEncoder()
    report = match_pairs(encoder, [*again, PAIRS[5]], root, out, matching=SURE)
    assert (report.skipped, report.matched) == (again, [PAIRS[5]])
    assert sorted(encoder.encoded) == ["c.png", "é.png"]
    inode = out.stat().st_ino
    assert match_pairs(encoder, PAIRS[:3], root, out, matching=SURE).skipped == PAIRS[:3]
    assert out.stat().st_ino == inode
    match_pairs(PixelEncoder(), [*PAIRS[:3], PAIRS[5]], root, tmp_path / "straight.h5", matching=SURE)
    assert read(out) == read(tmp_path / "straight.h5")


def test_a_pair_whose_image_changed_is_matched_again(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    match_pairs(PixelEncoder(), PAIRS, root, out, matching=SURE)
    (root / "b.png").write_bytes((root / "x/é.png").read_bytes())
    turned = [pair[::-1] for pair in PAIRS]  # the old way round must not stay behind
    report = match_pairs(PixelEncoder(), turned, root, out, matching=SURE)
    assert report.matched == [pair for pair in turned if "b.png" in pair]
    with h5py.File(out) as file:
        assert file["b.png/a.png/matches0"][:].tolist().count(-1) == 15  # now three patches on
        assert "a.png/b.png" not in file
        assert sum(len(file[first]) for first in file) == 6


def test_images_that_cannot_be_read_fail_their_pairs_alone(root: Path, tmp_path: Path) -> None:
    (root / "bad.png").write_bytes(b"no image")
    pairs = [("a.png", "bad.png"), ("a.png", "b.png"), ("absent.png", "b.png")]
    report = match_pairs(PixelEncoder(), pairs, root, tmp_path / "m.h5", matching=SURE)
    assert (report.matched, [pair for pair, _ in report.failed]) == ([pairs[1]], [pairs[0], pairs[2]])
    assert "bad.png" in report.failed[0][1]
    assert "absent.png" in report.failed[1][1]
    with h5py.File(tmp_path / "m.h5") as file:
        assert {first: list(file[first]) for first in file} == {"a.png": ["b.png"]}
    report = match_pairs(PixelEncoder(), pairs[2:], root, tmp_path / "empty.h5", matching=SURE)
    with h5py.File(report.out) as file:
        assert len(file) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"matching": MatchSpec(min_score=0.8)}, r"matching\.min_score 0\.9, not 0\.8"),
        ({"features": FeatureSpec(size=84)}, r"features\.size 518, not 84"),
        ({"encoder": PixelEncoder("1" * 64)}, "model.weights_sha256 '0000"),
    ],
)
def test_other_settings_are_refused_by_name_and_overwrite_starts_anew(
    root: Path, tmp_path: Path, change: dict, said: str
) -> None:
    out, given = tmp_path / "m.h5", {"encoder": PixelEncoder(), "matching": SURE} | change
    match_pairs(PixelEncoder(), PAIRS, root, out, matching=SURE)
    before, encoder = out.read_bytes(), given.pop("encoder")
    with pytest.raises(ArgumentError, match=said) as caught:
        match_pairs(encoder, PAIRS[:1], root, out, **given)
    assert "--overwrite" in caught.value.hint
    assert out.read_bytes() == before
    assert match_pairs(encoder, PAIRS[:1], root, out, **given, overwrite=True).matched == PAIRS[:1]
    with h5py.File(out) as file:
        assert list(file) == ["a.png"]


def test_a_file_of_another_program_is_kept(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.h5"
    for content, said in ((b"text", "damaged, or no HDF5"), (None, "another program")):
        if content is None:
            with h5py.File(out, "w") as file:
                file["a.png/b.png/matches0"] = [1]
        else:
            out.write_bytes(content)
        before = out.read_bytes()
        with pytest.raises(ArgumentError, match=said):
            match_pairs(PixelEncoder(), PAIRS, root, out)
        assert out.read_bytes() == before
    with pytest.raises(ArgumentError, match="another program"):
        match_pairs(PixelEncoder(), PAIRS, root, tmp_path / "n.h5", cache=FeatureCache(out))
    with pytest.raises(ArgumentError, match="lies below no root"):
        match_pairs(PixelEncoder(), [("a.png", "/b.png")], root, tmp_path / "n.h5")
    for out, kept in ((tmp_path / "no" / "n.h5", None), (tmp_path / "n.h5", tmp_path / "no" / "f.h5")):
        with pytest.raises(ArgumentError, match="there is no folder"):
            match_pairs(PixelEncoder(), PAIRS, root, out, cache=kept and FeatureCache(kept))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "root"]


def test_an_interrupt_keeps_what_is_done_and_the_rest_follows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(PixelEncoder):
        def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
            if len(self.encoded) == 3:
                raise KeyboardInterrupt
            return super().encode(source, spec)

    monkeypatch.setattr(batch, "PAIRS_PER_PART", 4)
    out = tmp_path / "m.h5"
    with pytest.raises(KeyboardInterrupt):
        match_pairs(Interrupted(), PAIRS, root, out, matching=SURE)
    with h5py.File(out) as file:
        assert {first: list(file[first]) for first in file} == {"a.png": ["b.png", "x-c.png"]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "root"]
    report = match_pairs(PixelEncoder(), PAIRS, root, out, matching=SURE)
    assert (report.skipped, report.matched) == (PAIRS[:2], PAIRS[2:])
    match_pairs(PixelEncoder(), PAIRS, root, tmp_path / "straight.h5", matching=SURE)
    assert read(out) == read(tmp_path / "straight.h5")


@pytest.mark.parametrize(("images", "encoded"), [(0, 12), (1, 12), (2, 8), (4, 4)])
def test_images_are_encoded_as_seldom_as_memory_allows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: int, encoded: int
) -> None:
    size = 4 * (43 * 588 + 40)  # 43 tokens and 40 lengths an image
    monkeypatch.setattr(feature_cache, "MEMORY", images * size)
    encoder, star = PixelEncoder(), PixelEncoder()
    match_pairs(encoder, PAIRS, root, tmp_path / "little.h5", matching=SURE)
    assert len(encoder.encoded) == encoded
    match_pairs(star, PAIRS[:3], root, tmp_path / "star.h5", matching=SURE)
    assert star.encoded.count("a.png") == (1 if images > 1 else 3)  # what is in use is not what has to go
    match_pairs(PixelEncoder(), PAIRS, root, tmp_path / "much.h5", matching=SURE)
    assert read(tmp_path / "little.h5") == read(tmp_path / "much.h5")


def test_a_cache_saves_the_next_run_every_encoding_and_feeds_colmap(root: Path, tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "f.h5")
    match_pairs(PixelEncoder(), PAIRS, root, tmp_path / "m.h5", matching=SURE, cache=cache)
    encoder = PixelEncoder()
    again = FeatureCache(tmp_path / "f.h5")
    match_pairs(encoder, PAIRS, root, tmp_path / "n.h5", matching=SURE, cache=again)
    assert (encoder.encoded, again.misses, cache.misses) == ([], 0, 4)
    assert read(tmp_path / "m.h5") == read(tmp_path / "n.h5")
    with h5py.File(tmp_path / "f.h5") as features, h5py.File(tmp_path / "m.h5") as matches:
        for name in NAMES:
            assert features[name]["keypoints"].shape == (40, 2)
        rows = matches["a.png/x-c.png/matches0"][:]
        moved = features["a.png/keypoints"][:][rows >= 0] - features["x/c.png/keypoints"][:][rows[rows >= 0]]
        assert moved.tolist() == [[28, 0]] * 30
    export_colmap(tmp_path / "f.h5", tmp_path / "m.h5", tmp_path / "colmap")
    assert (tmp_path / "colmap/x/é.png.txt").read_text().startswith("40 128\n7.0000 7.0000 1 0 0 ")
    assert "\n\na.png x/é.png\n3 0\n4 1\n" in (tmp_path / "colmap/matches.txt").read_text()


# Each run is a child that kills itself with -9 just before or just after the n-th file it renames or deletes,
# or when it comes to encode the n-th image; the next child goes on from what it finds.
KILLED = """
import os, signal, sys
from pathlib import Path
from pixel_encoder import PixelEncoder
from test_batch import PAIRS, SURE, read
from dinov2kit import batch, feature_cache
from dinov2kit.feature_cache import FeatureCache
folder = Path(sys.argv[1])
batch.PAIRS_PER_PART = 1
SOME = [PAIRS[0], PAIRS[3], PAIRS[1]]  # of three images

def run(place, moment, late):
    child = os.fork()
    if child == 0:
        left = [moment]
        def deadly(call):
            def counted(*args, **options):
                left[0] -= 1
                if left[0] == 0 and not late:
                    os.kill(os.getpid(), signal.SIGKILL)
                try:
                    return call(*args, **options)
                finally:
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
            return counted
        os.replace, os.unlink, os.rmdir = deadly(os.replace), deadly(os.unlink), deadly(os.rmdir)
        PixelEncoder.encode = deadly(PixelEncoder.encode)
        batch.match_pairs(PixelEncoder(), SOME, folder / "root", place / "m.h5", matching=SURE,
                          cache=FeatureCache(place / "f.h5"))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    for name in ("m.h5", "f.h5"):
        if (place / name).exists():
            found = read(place / name)
            assert found.items() <= wanted[name].items(), name
    return status == 0

def new_place(name):
    (folder / name).mkdir()
    return folder / name

wanted = {"m.h5": {}, "f.h5": {}}
straight = new_place("straight")
batch.match_pairs(PixelEncoder(), SOME, folder / "root", straight / "m.h5", matching=SURE,
                  cache=FeatureCache(straight / "f.h5"))
wanted = {name: read(straight / name) for name in wanted}
moment, survived = 0, False
while not survived:
    moment += 1
    place = new_place(f"at{moment}")
    survived = run(place, moment, moment % 2)
    assert run(place, 10**6, False)
    assert {name: read(place / name) for name in wanted} == wanted
    assert sorted(path.name for path in place.iterdir()) == ["f.h5", "f.h5.parts", "m.h5"]
often, kills = new_place("often"), 0
while not run(often, 6, kills % 2):
    kills += 1
assert {name: read(often / name) for name in wanted} == wanted
print(moment, kills)
"""


def test_a_kill_at_any_moment_and_a_rerun_give_what_a_straight_run_gives(root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}  # it forks
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    moments, kills = map(int, done.stdout.split())
    assert moments > 20
    assert kills > 3
