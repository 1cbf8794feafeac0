"""Bringing an index in line with folders: what is opened, what is kept, what is refused."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder, paint

from dinov2kit.errors import ImageError, PruneRefused, StoreLocked, StoreMismatch
from dinov2kit.identity import ModelIdentity
from dinov2kit.indexes import Snapshot, UpdateRules, WalkRules, index_photos, list_errors, read_facts
from dinov2kit.indexes import update as engine
from dinov2kit.indexes.store import Store


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Thirty photos of different colours, some in a folder inside."""
    folder = tmp_path / "photos"
    for place in range(30):
        paint(
            folder / ("trip" if place % 3 == 0 else ".") / f"{place:02}.png",
            (5 + 8 * place, 100, 250 - 8 * place),
        )
    return folder


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "ix"


def run(directory: Path, *folders: Path, encoder: ColourEncoder | None = None, **rules):
    """Bring the index up to date; return the report and how many images were described."""
    encoder = encoder or ColourEncoder()
    done = index_photos(directory, folders, encoder=encoder, rules=UpdateRules(**rules))
    assert done.report.described == encoder.embedded
    assert done.items == len(content(directory))
    return done.report


def content(directory: Path) -> dict[Path, np.ndarray]:
    """Return the descriptor of each photo in the index."""
    with Snapshot.open(directory) as snapshot:
        paths = [photo.path for photo in snapshot.photos(snapshot.ids)]
        return dict(zip(paths, snapshot.descriptors(snapshot.ids), strict=True))


def ids(directory: Path) -> dict[Path, int]:
    with Snapshot.open(directory) as snapshot:
        return {photo.path: photo.id for photo in snapshot.photos(snapshot.ids)}


def counts(report) -> dict[str, int]:
    names = ("new", "changed", "moved", "unchanged", "removed", "kept", "described")
    found = {name: getattr(report, name) for name in names} | {"errors": len(report.errors)}
    return {name: count for name, count in found.items() if count}


def fresh(tmp_path: Path, *folders: Path) -> dict[Path, np.ndarray]:
    """Return what an index made anew has."""
    other = tmp_path / "anew"
    shutil.rmtree(other, ignore_errors=True)
    run(other, *folders)
    return content(other)


def same(first: dict[Path, np.ndarray], second: dict[Path, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[path], second[path]) for path in first)


def test_the_first_run_describes_all_and_the_second_opens_nothing(photos, directory, monkeypatch):
    assert counts(run(directory, photos)) == {"new": 30, "described": 30}
    monkeypatch.setattr(
        engine, "hashed", lambda sightings, stop: iter([] if not list(sightings) else ["opened"])
    )
    assert counts(run(directory, photos)) == {"unchanged": 30}
    assert all(path.is_absolute() for path in content(directory))


def test_descriptors_are_those_of_the_encoder(photos, directory):
    run(directory, photos)
    pixels = np.full((1, 14, 14, 3), (5 + 8 * 7, 100, 250 - 8 * 7), np.uint8)
    expected = ColourEncoder().embed(pixels)[0]
    assert np.allclose(content(directory)[photos / "07.png"].astype(np.float32), expected, atol=1e-3)


def test_renamed_and_touched_files_are_not_described_again(photos, directory, tmp_path):
    run(directory, photos)
    before = ids(directory)
    for path in list(photos.rglob("*.png")):
        path.rename(path.with_name("new-" + path.name))
    assert counts(run(directory, photos)) == {"moved": 30}
    after = ids(directory)
    assert {path.name.removeprefix("new-"): number for path, number in after.items()} == {
        path.name: number for path, number in before.items()
    }
    for path in photos.rglob("*.png"):
        os.utime(path, ns=(1, 10**18))
    assert counts(run(directory, photos)) == {"unchanged": 30}
    assert ids(directory) == after
    assert same(content(directory), fresh(tmp_path, photos))


def test_names_that_are_handed_on_in_a_row_are_not_described_again(photos, directory, tmp_path):
    run(directory, photos)
    row = sorted(photos.glob("*.png"))
    for old, new in zip(row[:0:-1], [*row[:0:-1][1:], row[0]], strict=True):
        assert old != new
    for number in range(len(row) - 1, -1, -1):  # 1.png becomes 2.png, 2.png becomes 3.png and so on
        row[number].rename(row[number + 1] if number + 1 < len(row) else photos / "last.png")
    report = run(directory, photos)
    assert report.described == 0
    assert same(content(directory), fresh(tmp_path, photos))


def test_two_files_that_swap_names_are_not_described_again(photos, directory, tmp_path):
    run(directory, photos)
    (photos / "01.png").rename(photos / "x")
    (photos / "02.png").rename(photos / "01.png")
    (photos / "x").rename(photos / "02.png")
    assert run(directory, photos).described == 0
    assert same(content(directory), fresh(tmp_path, photos))


def test_a_copy_is_not_described_and_copies_in_one_run_are_described_once(photos, directory, tmp_path):
    shutil.copy(photos / "01.png", photos / "copy.png")
    assert counts(run(directory, photos)) == {"new": 31, "described": 30}
    shutil.copy(photos / "02.png", photos / "late.png")
    assert counts(run(directory, photos)) == {"new": 1, "unchanged": 31}
    found = content(directory)
    assert np.array_equal(found[photos / "copy.png"], found[photos / "01.png"])
    assert np.array_equal(found[photos / "late.png"], found[photos / "02.png"])


def test_a_changed_photo_gets_a_new_item_and_a_removed_one_leaves(photos, directory, tmp_path):
    run(directory, photos)
    before = ids(directory)
    paint(photos / "01.png", (1, 2, 250))
    (photos / "02.png").unlink()
    assert counts(run(directory, photos)) == {"changed": 1, "removed": 1, "unchanged": 28, "described": 1}
    after = ids(directory)
    assert after[photos / "01.png"] > max(before.values())
    assert photos / "02.png" not in after
    assert same(content(directory), fresh(tmp_path, photos))


def test_a_change_that_keeps_size_and_time_is_found_by_its_hash(photos, directory):
    run(directory, photos)
    path = photos / "01.png"
    facts = path.stat()
    other = (photos / "02.png").read_bytes()
    assert len(other) == facts.st_size, "both pictures must have the same size"
    with path.open("r+b") as file:
        file.write(other)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert counts(run(directory, photos)) == {"unchanged": 30}
    assert counts(run(directory, photos, verify_hash=True)) == {"changed": 1, "unchanged": 29}
    found = content(directory)
    assert np.array_equal(found[path], found[photos / "02.png"])


def test_bad_files_are_explained_and_tried_again_when_asked(photos, directory):
    (photos / "bad.jpg").write_bytes(b"\xff\xd8\xff not a picture")
    (photos / "empty.png").touch()
    os.mkfifo(photos / "pipe.png")
    report = run(directory, photos)
    assert counts(report) == {"new": 30, "described": 30, "errors": 3}
    reasons = {path.name: reason for path, reason in report.errors}
    assert "a named pipe" in reasons["pipe.png"]
    assert all(reasons.values())
    assert {error.path.name for error in list_errors(directory)} == {"bad.jpg", "empty.png", "pipe.png"}
    assert counts(run(directory, photos)) == {"unchanged": 30, "errors": 3}
    paint(photos / "good.png", (9, 9, 9))
    (photos / "bad.jpg").write_bytes((photos / "good.png").read_bytes())
    assert counts(run(directory, photos)) == {"new": 2, "unchanged": 30, "errors": 2, "described": 1}
    assert counts(run(directory, photos, retry_errors=True)) == {"unchanged": 32, "errors": 2}


def test_an_error_that_was_only_passing_is_retried_on_request(photos, directory):
    class Blind(ColourEncoder):
        def embed(self, pixels):
            return np.full_like(super().embed(pixels), np.nan)

    done = index_photos(directory, [photos], encoder=Blind())
    assert len(done.report.errors) == 30
    assert counts(run(directory, photos)) == {"errors": 30}
    assert counts(run(directory, photos, retry_errors=True)) == {"new": 30, "described": 30}


def test_what_the_rules_leave_out_is_neither_added_nor_removed(photos, directory):
    run(directory, photos)
    paint(photos / "trip/new.png", (1, 1, 1))
    (photos / "03.png").unlink(missing_ok=True)
    (photos / "01.png").unlink()
    rules = WalkRules(exclude=("trip", "01.png"))
    assert counts(run(directory, photos, walk=rules)) == {"unchanged": 19}
    assert photos / "01.png" in content(directory)
    listed = frozenset({photos / "trip/new.png", photos / "nowhere.png"})
    report = run(directory, photos, listed=listed)
    assert counts(report) == {"new": 1, "described": 1}
    assert [path for path, _ in report.unread] == [photos / "nowhere.png"]
    assert counts(run(directory, photos)) == {"unchanged": 30, "removed": 1}


def test_an_unmounted_disk_removes_nothing(photos, directory, tmp_path):
    run(directory, photos)
    photos.rename(tmp_path / "away")
    photos.mkdir()
    with pytest.raises(PruneRefused, match=r"30 of 30 files.*looks unmounted"):
        run(directory, photos)
    assert len(content(directory)) == 30
    assert counts(run(directory, photos, prune="never")) == {"kept": 30}
    photos.rmdir()
    report = run(directory)  # all known folders; this one is not there
    assert [path for path, _ in report.unread] == [photos]
    with pytest.raises(ImageError, match="does not exist"):
        run(directory, photos)
    (tmp_path / "away").rename(photos)
    assert counts(run(directory, photos)) == {"unchanged": 30}


def test_many_gone_at_once_need_a_word_and_the_rest_is_done_first(photos, directory):
    run(directory, photos)
    for path in sorted(photos.glob("*.png"))[:15]:
        path.unlink()
    paint(photos / "new.png", (1, 1, 1))
    with pytest.raises(PruneRefused, match="15 of 30 files"):
        run(directory, photos)
    assert len(content(directory)) == 31
    assert counts(run(directory, photos, prune="force")) == {"unchanged": 16, "removed": 15}


def test_another_disk_in_the_same_place_removes_nothing(photos, directory):
    run(directory, photos)
    with Store.open(directory) as store:
        store.set_device(1, photos.stat().st_dev + 1)
        store.commit()
    (photos / "01.png").unlink()
    with pytest.raises(PruneRefused, match="another disk"):
        run(directory, photos)
    assert counts(run(directory, photos, prune="force")) == {"unchanged": 29, "removed": 1}
    (photos / "02.png").unlink()
    assert counts(run(directory, photos)) == {"unchanged": 28, "removed": 1}


def test_a_folder_that_cannot_be_read_keeps_its_photos(photos, directory, monkeypatch):
    run(directory, photos)
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "trip":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    report = run(directory, photos)
    assert counts(report) == {"unchanged": 20, "kept": 10}
    assert report.unread == [(photos / "trip", "Permission denied")]


def test_inner_and_outer_folders_share_their_photos(photos, directory, tmp_path):
    run(directory, photos / "trip")
    before = ids(directory)
    assert counts(run(directory, photos)) == {"unchanged": 10, "new": 20, "described": 20}
    assert before.items() <= ids(directory).items()
    paint(photos / "trip/new.png", (1, 1, 1))
    (photos / "trip/00.png").unlink()
    (photos / "01.png").unlink()
    assert counts(run(directory, photos / "trip")) == {"unchanged": 9, "new": 1, "removed": 1, "described": 1}
    assert photos / "01.png" in content(directory)
    assert counts(run(directory)) == {"unchanged": 29, "removed": 1}
    assert same(content(directory), fresh(tmp_path, photos))


def test_two_folders_in_one_index_and_photos_that_move_between_them(photos, directory, tmp_path):
    other = tmp_path / "other"
    paint(other / "a.png", (7, 7, 70))
    assert run(directory, photos, other).new == 31
    (photos / "01.png").rename(other / "b.png")
    assert counts(run(directory)) == {"moved": 1, "unchanged": 30}
    assert other / "b.png" in content(directory)


def test_stopping_keeps_what_was_begun_and_the_next_run_goes_on(photos, directory, tmp_path):
    encoder = ColourEncoder()
    done = index_photos(
        directory,
        [photos],
        encoder=encoder,
        rules=UpdateRules(batch_size=4),
        stop=lambda: encoder.embedded >= 8,
    )
    assert done.report.interrupted
    assert 8 <= done.report.new == encoder.embedded < 30
    assert len(content(directory)) == done.report.new
    report = run(directory, photos)
    assert report.new == report.described == 30 - done.report.new
    assert same(content(directory), fresh(tmp_path, photos))


def test_a_model_of_another_kind_is_refused_before_anything_is_opened(photos, directory):
    run(directory, photos)
    other = ColourEncoder()
    other.identity = ModelIdentity("other", "1" * 64, 3, "mean", other.view.describe())
    with pytest.raises(StoreMismatch, match="other"):
        index_photos(directory, [photos], encoder=other)


def test_a_second_writer_is_refused(photos, directory):
    run(directory, photos)
    with Store.open(directory), pytest.raises(StoreLocked, match=str(os.getpid())):
        run(directory, photos)


def test_an_index_of_nothing_is_not_made(tmp_path, directory):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/film.mp4").touch()
    with pytest.raises(ImageError, match=r"no image in .*1 \.mp4"):
        index_photos(directory, [tmp_path / "empty"], encoder=ColourEncoder())
    assert not directory.exists()


def test_long_runs_commit_on_the_way(photos, directory, monkeypatch):
    monkeypatch.setattr(engine, "COMMIT_ROWS", 7)
    seen = []
    index_photos(
        directory,
        [photos],
        encoder=ColourEncoder(),
        rules=UpdateRules(batch_size=3),
        watch=lambda stage, done, total: seen.append(
            read_facts(directory).items if stage == "Indexing" else 0
        ),
    )
    assert {0, 30} <= {*seen, len(content(directory))}
    assert len({count for count in seen if 0 < count < 30}) >= 3
