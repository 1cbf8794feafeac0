"""An index over archives, videos and lists of files: equal to one over plain files, and kept up to date."""

import os
import shutil
from pathlib import Path

import pytest
from colour_encoder import ColourEncoder, paint
from small_tar import write_tar
from small_video import COLOURS, write_video
from typer.testing import CliRunner

from dinov2kit import encoder as encoder_module
from dinov2kit.cli import app
from dinov2kit.errors import ImageError, PruneRefused
from dinov2kit.indexes import Index, Snapshot, UpdateRules, WalkRules, index_photos, list_errors, plan_photos
from dinov2kit.indexes import contents as hashing
from dinov2kit.indexes.locate import read_registry


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DINOKIT_INDEX", raising=False)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Twenty photos of different colours, some in a folder inside."""
    for place in range(20):
        name = f"{'trip/' if place % 3 == 0 else ''}{place:02}.png"
        paint(tmp_path / "photos" / name, (5 + 12 * place, 100, 250 - 12 * place))
    return tmp_path / "photos"


def pack(path: Path, photos: Path, *, only: slice = slice(None)) -> Path:
    files = sorted(file for file in photos.rglob("*.png"))[only]
    path.parent.mkdir(parents=True, exist_ok=True)
    put = {str(file.relative_to(photos)): file.read_bytes() for file in files}
    return write_tar(path, {**put, **{name.replace(".png", ".json"): b"{}" for name in put}})


@pytest.fixture
def shard(tmp_path, photos) -> Path:
    return pack(tmp_path / "data/shard.tar", photos)


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "ix"


def run(directory: Path, *folders: Path, encoder: ColourEncoder | None = None, walk=None, **rules):
    encoder = encoder or ColourEncoder()
    rules = UpdateRules(walk=walk or WalkRules(), **rules)
    report = index_photos(directory, folders, encoder=encoder, rules=rules).report
    assert report.described == encoder.embedded
    return report


def counts(report) -> dict[str, int]:
    names = ("new", "changed", "moved", "unchanged", "removed", "kept", "described")
    found = {name: getattr(report, name) for name in names} | {"errors": len(report.errors)}
    return {name: count for name, count in found.items() if count}


def content(directory: Path) -> dict[str, tuple]:
    """Return what an index says of each photo, by path."""
    with Snapshot.open(directory) as snapshot:
        rows = snapshot.descriptors(snapshot.ids)
        return {
            str(photo.path): (
                row.tobytes(),
                photo.digest,
                photo.size,
                photo.width,
                photo.height,
                photo.taken_at,
            )
            for photo, row in zip(snapshot.photos(snapshot.ids), rows, strict=True)
        }


def below(found: dict[str, tuple], folder: Path) -> dict[str, tuple]:
    return {path.removeprefix(f"{folder}/"): facts for path, facts in found.items()}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_index_of_an_archive_equals_one_of_the_files_in_it(photos, shard, directory, tmp_path, workers):
    assert counts(run(directory, shard, workers=workers)) == {"new": 20, "described": 20}
    run(tmp_path / "plain", photos)
    assert below(content(directory), shard) == below(content(tmp_path / "plain"), photos)
    assert len(content(directory)) == 20


def test_the_files_and_the_archive_in_one_index_are_described_once(photos, shard, directory):
    report = run(directory, photos, shard.parent, walk=WalkRules(tars=True))
    assert counts(report) == {"new": 40, "described": 20}


def test_an_archive_as_it_was_is_not_read(shard, directory, monkeypatch):
    run(directory, shard)
    monkeypatch.setattr(hashing, "open_content", None)
    assert counts(run(directory, shard)) == {"unchanged": 20}
    assert counts(run(directory)) == {"unchanged": 20}  # all that the index has scanned
    assert counts(run(directory, shard.parent, walk=WalkRules(tars=True))) == {"unchanged": 20}
    assert plan_photos(directory, [shard]).open == 0


def test_an_archive_that_moved_is_recognised_by_its_contents(shard, directory, tmp_path):
    tars = WalkRules(tars=True)
    run(directory, shard.parent, walk=tars)
    shard.rename(shard.with_name("renamed.tar"))
    assert counts(run(directory, shard.parent, walk=tars)) == {"moved": 20}
    assert set(below(content(directory), shard.with_name("renamed.tar"))) >= {"01.png", "trip/00.png"}
    shutil.move(shard.with_name("renamed.tar"), tmp_path / "elsewhere.tar")
    assert counts(run(directory, tmp_path / "elsewhere.tar")) == {"new": 20}  # 0 described


def test_a_rewritten_archive_loses_and_gains_members_and_describes_only_the_new(photos, shard, directory):
    run(directory, shard)
    paint(photos / "05.png", (1, 2, 3))
    paint(photos / "new.png", (9, 200, 9))
    (photos / "07.png").unlink()
    pack(shard, photos)
    report = run(directory, shard)
    assert counts(report) == {"new": 1, "changed": 1, "unchanged": 18, "removed": 1, "described": 2}
    names = set(below(content(directory), shard))
    assert "07.png" not in names
    assert "new.png" in names


def test_without_the_option_closed_archives_keep_their_photos_and_lost_ones_do_not(
    photos, directory, tmp_path
):
    for number in range(4):
        pack(tmp_path / f"data/{number}.tar", photos, only=slice(5 * number, 5 * number + 5))
    paint(tmp_path / "data/plain.png", (200, 1, 1))
    run(directory, tmp_path / "data", walk=WalkRules(tars=True))
    (tmp_path / "data/2.tar").unlink()
    report = run(directory, tmp_path / "data")
    assert counts(report) == {"unchanged": 1, "removed": 5}
    assert report.unsupported == {".tar": 3}
    assert len(content(directory)) == 16


def test_an_archive_that_is_being_written_gives_what_is_there_and_removes_nothing(photos, shard, directory):
    whole = shard.read_bytes()
    shard.write_bytes(whole[:9000])
    report = run(directory, shard)
    ((path, reason),) = report.errors
    assert (path, 0 < report.new < 20) == (shard, True)
    assert "ends within" in reason or "incomplete" in reason or "damaged" in reason
    shard.write_bytes(whole)
    os.utime(shard, ns=(1, 1))
    assert counts(run(directory, shard))["new"] == 20 - report.new
    shard.write_bytes(whole[:9000])
    assert counts(run(directory, shard)).keys() == {"unchanged", "errors"}
    assert len(content(directory)) == 20


def test_a_damaged_archive_does_not_keep_other_photos_from_being_removed(photos, shard, directory):
    data = shard.parent
    paint(data / "a.png", (1, 1, 90))
    paint(data / "b.png", (1, 90, 1))
    shard.write_bytes(shard.read_bytes()[:9000])
    run(directory, data, walk=WalkRules(tars=True))
    (data / "b.png").unlink()
    assert run(directory, data, walk=WalkRules(tars=True)).removed == 1


def test_a_bad_image_in_an_archive_is_an_error_of_its_path(shard, directory):
    write_tar(
        shard,
        {"a.jpg": b"rubbish", "b.jpg": b"", "c.png": paint(shard.parent / "c.png", (1, 2, 3)).read_bytes()},
    )
    report = run(directory, shard)
    assert counts(report) == {"new": 1, "described": 1, "errors": 2}
    assert {str(error.path) for error in list_errors(directory)} == {f"{shard}/a.jpg", f"{shard}/b.jpg"}
    assert not any(str(shard) in error.reason for error in list_errors(directory))


def test_names_in_archives_never_become_files(photos, directory, tmp_path):
    good = (photos / "01.png").read_bytes()
    names = ["../evil.png", "/tmp/abs.png", "a/../../evil.png", "caf\udce9.png", "ok.png"]
    (tmp_path / "data").mkdir()
    tar = write_tar(tmp_path / "data/x.tar", [(name, good) for name in names])
    before = {path for path in tmp_path.rglob("*") if directory not in path.parents}
    report = run(directory, tar)
    assert set(below(content(directory), tar)) == {"tmp/abs.png", "caf\udce9.png", "ok.png"}
    assert report.unsupported == {"(unsafe name or sparse) in a tar": 2}
    after = {path for path in tmp_path.rglob("*") if directory not in path.parents}
    assert {path for path in after - before if tmp_path / "home" not in (path, *path.parents)} == {directory}


def test_nothing_to_index_says_what_is_there_and_which_option_helps(directory, tmp_path):
    (tmp_path / "data").mkdir()
    write_tar(tmp_path / "data/x.tar", {"notes.txt": b"x"})
    with pytest.raises(ImageError, match=r"1 \.tar") as refused:
        run(directory, tmp_path / "data")
    assert "--tar" in (refused.value.hint or "")
    with pytest.raises(ImageError, match=r"1 \.txt in a tar"):
        run(directory, tmp_path / "data/x.tar")
    (tmp_path / "data/bad.tar").write_bytes(b"rubbish" * 100)
    with pytest.raises(ImageError, match="no tar archive"):
        run(directory, tmp_path / "data/bad.tar")
    assert not directory.exists()


def test_frames_are_photos_of_their_time_and_found_again(directory, tmp_path):
    clip = write_video(tmp_path / "clips/a.mp4")
    still = paint(tmp_path / "clips/blue.png", COLOURS[2])
    report = run(directory, tmp_path / "clips", walk=WalkRules(every=1.0), workers=2)
    assert counts(report) == {"new": 7, "described": 7}
    with Index.open(directory, encoder=ColourEncoder()) as index:
        hit = index.search(still, 1)[0]
        assert hit.path == clip / "t=0000002.000s"
        assert (hit.width, hit.height, hit.gone) == (64, 48, False)
        again = index.search(clip / "t=0000004.000s", 1, include_self=True)[0]
        assert again.path == clip / "t=0000004.000s"
    clip.unlink()
    with Index.open(directory, encoder=ColourEncoder()) as index:
        assert index.search(still, 1)[0].gone


def test_other_times_replace_the_frames_and_common_ones_stay(directory, tmp_path):
    write_video(tmp_path / "clips/a.mp4")
    clips = tmp_path / "clips"
    run(directory, clips, walk=WalkRules(every=0.25))
    assert counts(run(directory, clips, walk=WalkRules(every=0.25))) == {"unchanged": 24}
    assert counts(run(directory, clips, walk=WalkRules(every=3.0))) == {"unchanged": 2, "removed": 22}
    report = run(directory, clips, walk=WalkRules(every=2.0))
    assert counts(report) == {"unchanged": 1, "new": 2, "removed": 1, "described": 2}
    assert (
        counts(run(directory, clips, walk=WalkRules(tars=True))) == {}
    )  # closed: nothing is added or removed
    assert len(content(directory)) == 3


def test_a_video_that_moved_is_not_decoded_again(directory, tmp_path):
    clip = write_video(tmp_path / "clips/a.mp4")
    run(directory, tmp_path / "clips", walk=WalkRules(every=1.0))
    clip.rename(clip.with_name("b.mp4"))
    assert counts(run(directory, tmp_path / "clips", walk=WalkRules(every=1.0))) == {"moved": 6}
    assert counts(run(tmp_path / "other", clip.with_name("b.mp4"), walk=WalkRules(every=2.0)))["new"] == 3


def test_many_frames_that_vanish_with_their_videos_still_need_a_word(directory, tmp_path):
    for number in range(3):
        write_video(tmp_path / f"clips/{number}.mp4", rotation=90 * number)
    run(directory, tmp_path / "clips", walk=WalkRules(every=1.0))
    for number in range(2):
        (tmp_path / f"clips/{number}.mp4").unlink()
    with pytest.raises(PruneRefused, match="12 of 18"):
        run(directory, tmp_path / "clips", walk=WalkRules(every=1.0))


def test_a_list_alone_is_a_source_and_nothing_else_is_looked_at(photos, shard, directory, tmp_path):
    listed = frozenset({photos / "01.png", photos / "trip/03.png", shard / "02.png"})
    assert counts(run(directory, listed=listed)) == {"new": 3, "described": 3}
    assert set(content(directory)) == {str(path) for path in listed}
    (photos / "01.png").unlink()
    more = frozenset({photos / "trip/03.png", photos / "04.png", photos / "gone.png"})
    report = run(directory, listed=more)
    assert counts(report) == {"unchanged": 1, "new": 1, "described": 1}
    assert [path for path, _ in report.unread] == [photos / "gone.png"]
    assert len(content(directory)) == 4
    plan = plan_photos(directory, rules=UpdateRules(listed=more))
    assert (plan.open, plan.unchanged, plan.gone) == (0, 2, 0)


def test_folders_of_a_list_are_not_scanned_unless_they_are_named(photos, directory):
    run(directory, listed=frozenset({photos / "01.png", photos / "trip/00.png"}))
    report = run(directory)
    assert (counts(report), [path for path, _ in report.unread]) == ({}, [photos])
    assert counts(run(directory, photos)) == {"unchanged": 2, "new": 18, "described": 18}
    (photos / "01.png").unlink()
    assert counts(run(directory)) == {"unchanged": 19, "removed": 1}  # now it is one that the index scans


def test_a_list_of_nothing_makes_no_index(photos, directory):
    for listed in (frozenset({photos / "nowhere.png"}), frozenset({photos})):
        with pytest.raises(ImageError, match="none of the"):
            run(directory, listed=listed)
    assert not directory.exists()
    run(directory, photos)
    assert counts(run(directory, listed=frozenset())) == {}  # nothing to do today
    with pytest.raises(ImageError, match=r"nowhere.png: .*No such file"):
        run(directory, listed=frozenset({photos / "nowhere.png"}))


def test_globs_hold_for_listed_files_below_their_folder(photos, directory):
    listed = frozenset({photos / "01.png", photos / "trip/00.png", photos / "02.png"})
    report = run(directory, listed=listed, walk=WalkRules(exclude=("trip", "02.*")))
    assert counts(report) == {"new": 1, "described": 1}
    assert {path for path, _ in report.unread} == {photos / "trip/00.png", photos / "02.png"}


def dinokit(*args: object, **options: object):
    return CliRunner().invoke(app, [str(arg) for arg in args], **options)


def test_the_command_takes_archives_lists_and_videos(photos, shard, directory, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_module, "Encoder", ColourEncoder)
    monkeypatch.chdir(tmp_path)
    done = dinokit("index", "data/shard.tar", "-i", "ix", "--workers", "0")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "20 new" in done.stderr
    hint = dinokit("index", "data", "photos", "-i", "ix", "--workers", "0").stderr
    assert "tar archives left out: 1; to index the images in them: --tar" in hint
    Path("names.txt").write_text("photos/01.png\ndata/shard.tar/03.png\ndata/shard.tar/02.png\n")
    listed = dinokit("index", "--list", "names.txt", "-i", "ix2", "--workers", "0")
    assert listed.exit_code == 0
    assert "2 new" in listed.stderr or "3 new" in listed.stderr
    found = dinokit("search", "data/shard.tar/02.png", "-i", "ix2", "-f", "--include-self", "-k", "1")
    assert found.stdout.strip() == str(tmp_path / "data/shard.tar/02.png")
    write_video(tmp_path / "clips/a.mp4")
    video = dinokit("index", "clips", "-i", "ix3", "--video", "--every", "3s", "--workers", "0")
    assert "2 new" in video.stderr
    refused = dinokit("index", "clips", "-i", "ix4", "--video", "--every", "0")
    assert refused.exit_code == 2
    assert "at least 0.001 s" in refused.stderr


def test_an_archive_without_a_named_index_gets_one_and_finds_it_again(shard, tmp_path):
    encoder = ColourEncoder()
    first = index_photos(None, [shard], encoder=encoder)
    assert index_photos(None, [shard], encoder=encoder).directory == first.directory
    assert read_registry()[first.directory] == [shard]
    beside = index_photos(
        None, [pack(tmp_path / "more/x.tar", tmp_path / "photos")], encoder=encoder, in_place=True
    )
    assert beside.directory == tmp_path / "more/.dinokit"


def test_an_archive_that_is_away_keeps_its_photos(shard, directory, tmp_path):
    run(directory, shard)
    shutil.move(shard, tmp_path / "away.tar")
    report = run(directory)
    assert counts(report) == {}
    assert [path for path, _ in report.unread] == [shard]
    assert len(content(directory)) == 20
