"""Copies of real photos are found and grouped; whatever else happens to files, no wrong one is proposed."""

import os
from html import escape
from pathlib import Path

import numpy as np
import pytest
from colour_encoder import ColourEncoder
from copies_of_photos import brighter, captioned, framed, photo, resized, write
from PIL import Image
from PIL.ExifTags import IFD, Base

from dinov2kit.errors import ArgumentError
from dinov2kit.indexes import copy_evidence
from dinov2kit.indexes.dedup_plan import read_plan, write_plan
from dinov2kit.indexes.duplicate_page import write_duplicates_page
from dinov2kit.indexes.duplicates import DedupRules, Duplicates, expect_dedup, find_duplicates
from dinov2kit.indexes.photos import index_photos
from dinov2kit.indexes.snapshot import Snapshot


def album(folder: Path) -> Path:
    """Write two photos, four copies of the one and one of the other, and a photo without copies."""
    cat, coffee = photo("cat"), photo("coffee")
    write(folder / "cat.png", cat)
    write(folder / "twin" / "cat.png", cat)
    write(folder / "small.jpg", resized(cat), 80)
    write(folder / "bright.jpg", brighter(cat), 90)
    write(folder / "framed.jpg", framed(cat, (10, 60, 200)), 90)
    write(folder / "coffee.jpg", coffee, 95)
    write(folder / "web" / "coffee.jpg", coffee, 60)
    write(folder / "astronaut.jpg", photo("astronaut"))
    return folder


def index(folder: Path) -> Path:
    directory = folder.with_name(f"{folder.name}.idx")
    index_photos(directory, [folder], encoder=ColourEncoder())
    return directory


def find(directory: Path, **rules: object) -> Duplicates:
    with Snapshot.open(directory) as snapshot:
        return find_duplicates(snapshot, DedupRules(**rules))


def groups(found: Duplicates, folder: Path) -> dict[str, set[str]]:
    """Return keeper -> copies, as paths below a folder."""
    return {
        str(group.keeper.path.relative_to(folder)): {
            str(copy.photo.path.relative_to(folder)) for copy in group.copies
        }
        for group in found.groups
    }


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = album(tmp_path_factory.mktemp("shared") / "photos")
    return folder, index(folder)


@pytest.fixture
def folder(tmp_path):
    return album(tmp_path / "photos")


def test_copies_are_grouped_around_the_best_and_nothing_else_is_touched(shared):
    folder, directory = shared
    before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    found = find(directory)
    assert groups(found, folder) == {
        "cat.png": {"twin/cat.png", "small.jpg", "bright.jpg", "framed.jpg"},
        "coffee.jpg": {"web/coffee.jpg"},
    }
    cat = next(group for group in found.groups if group.keeper.path.name == "cat.png")
    checks = {copy.photo.path.name: copy for copy in cat.copies}
    assert (checks["cat.png"].score, checks["cat.png"].check) == (None, "same content")
    assert checks["small.jpg"].check.startswith("phash ")
    assert cat.min_score == min(copy.score for copy in cat.copies if copy.score is not None)
    assert found.reclaimable == sum(path.photo.size for group in found.groups for path in group.copies)
    assert (found.photos, found.copies, found.skipped, found.related) == (8, 5, (), ())
    assert found == find(directory)
    after = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
    kept = {path for path in before if not path.name.endswith(("-wal", "-shm"))}  # of SQLite, for readers
    assert {path: after[path] for path in kept} == {path: before[path] for path in kept}
    assert {path.name for path in after.keys() - before.keys()} <= {
        "manifest.sqlite-wal",
        "manifest.sqlite-shm",
    }


def test_exact_opens_no_photo_and_near_leaves_equal_contents_alone(shared, monkeypatch):
    folder, directory = shared
    near = find(directory, scope="near")
    assert groups(near, folder)["cat.png"] == {"small.jpg", "bright.jpg", "framed.jpg"}
    monkeypatch.setattr(copy_evidence, "read_signatures", None)
    assert groups(find(directory, scope="exact"), folder) == {"cat.png": {"twin/cat.png"}}


def test_without_verification_the_cosine_alone_decides(shared, monkeypatch):
    folder, directory = shared
    monkeypatch.setattr(copy_evidence, "read_signatures", None)
    everything = find(directory, verify="none", threshold=-1.0)
    assert (len(everything.groups), everything.copies) == (1, 7)
    strict = find(directory, verify="none", threshold=1.0)
    assert groups(strict, folder) == {"cat.png": {"twin/cat.png"}}
    assert {copy.check for copy in everything.groups[0].copies} == {"not verified"}


def test_the_hash_finds_what_the_model_does_not_propose(shared):
    folder, directory = shared
    found = find(directory, threshold=1.0)
    assert groups(found, folder) == groups(find(directory, threshold=-1.0), folder)
    assert groups(found, folder) == groups(find(directory, threshold=-1.0, k=1), folder)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)


def enlarged(levels: np.ndarray, times: int = 8) -> np.ndarray:
    return np.kron(levels, np.ones((times, times), np.uint8))[..., None].repeat(3, axis=2)


def test_a_chain_is_not_one_group(tmp_path):
    first = noise(1)
    second = first.copy()
    second[:8] = noise(2)[:8]  # a quarter of the blocks
    third = second.copy()
    third[24:] = noise(3)[24:]  # another quarter: half of it agrees with the first
    for name, levels in (("1", first), ("2", second), ("3", third)):
        write(tmp_path / "photos" / f"{name}.png", enlarged(levels))
    directory = index(tmp_path / "photos")
    best = {"verify": "pixel", "threshold": 0.5, "keep": ("path",)}
    assert groups(find(directory, **best), tmp_path / "photos") == {"1.png": {"2.png"}}
    (tmp_path / "photos" / "2.png").rename(tmp_path / "photos" / "0.png")
    index(tmp_path / "photos")
    assert groups(find(directory, **best), tmp_path / "photos") == {"0.png": {"1.png", "3.png"}}


def test_a_reference_folder_always_stays_and_brings_others_to_go(folder):
    write(folder / "best" / "cat.jpg", resized(photo("cat"), 0.8, 0.8), 90)
    write(folder / "best" / "again.jpg", resized(photo("cat"), 0.6, 0.6), 90)
    directory = index(folder)
    found = groups(find(directory, reference=folder / "best"), folder)
    assert found["best/cat.jpg"] == {"cat.png", "twin/cat.png", "small.jpg", "bright.jpg", "framed.jpg"}
    assert "best/again.jpg" not in set().union(*found.values())
    few = groups(find(directory, within=folder / "web", reference=folder / "best"), folder)
    assert few == {}
    only = groups(find(directory, within=folder / "twin", reference=folder / "best"), folder)
    assert only == {"best/cat.jpg": {"twin/cat.png"}}


def test_folders_and_expressions_narrow_the_search(shared):
    folder, directory = shared
    assert groups(find(directory, across_dirs=True), folder) == {
        "cat.png": {"twin/cat.png"},
        "coffee.jpg": {"web/coffee.jpg"},
    }
    assert groups(find(directory, where="name GLOB 'c*'"), folder) == {
        "cat.png": {"twin/cat.png"},
        "coffee.jpg": {"web/coffee.jpg"},
    }
    assert groups(find(directory, within=folder / "web"), folder) == {}
    for name in ("within", "reference"):
        with pytest.raises(ArgumentError, match=f"no photo in .*nowhere .--{name}"):
            find(directory, **{name: folder / "nowhere"})


def test_names_of_one_file_are_no_copies_and_tie_it_down(folder):
    os.link(folder / "small.jpg", folder / "linked.jpg")
    os.link(folder / "twin" / "cat.png", folder / "twin" / "other-name.png")
    found = find(index(folder))
    proposed = groups(found, folder)
    assert proposed["twin/cat.png"] == {"cat.png", "bright.jpg", "framed.jpg"}
    assert {(entry.kind, entry.path.name, entry.to.name) for entry in found.related} == {
        ("hard link", "linked.jpg", "small.jpg"),
        ("hard link", "other-name.png", "cat.png"),
    }
    keeper = next(group for group in found.groups if group.keeper.path.name == "cat.png")
    assert keeper.reason == "it has other names on disk"
    assert [entry.path.name for entry in keeper.related] == ["other-name.png"]


def test_bursts_and_companions_are_related_and_not_proposed(tmp_path):
    cat = photo("cat")
    for number, (pixels, second) in enumerate([(cat, 1), (brighter(cat, 1.1), 2), (resized(cat), 1)]):
        exif = Image.Exif()
        exif[Base.Model] = "X1"
        exif.get_ifd(IFD.Exif)[Base.DateTimeOriginal] = f"2024:05:31 12:00:0{second}"
        write(tmp_path / "photos" / f"IMG_{number}.jpg", pixels, exif=exif)
    (tmp_path / "photos" / "IMG_0.CR2").write_bytes(b"raw")
    found = find(index(tmp_path / "photos"))
    assert groups(found, tmp_path / "photos") == {"IMG_0.jpg": {"IMG_2.jpg"}}
    assert ("burst", "IMG_1.jpg", "IMG_0.jpg") in {(e.kind, e.path.name, e.to.name) for e in found.related}
    assert [(entry.kind, entry.path.name) for entry in found.groups[0].related] == [("raw", "IMG_0.CR2")]


def test_files_that_are_gone_changed_or_damaged_are_named_and_not_proposed(folder, monkeypatch):
    (folder / "web" / "framed.jpg").write_bytes((folder / "framed.jpg").read_bytes())
    directory = index(folder)
    (folder / "small.jpg").unlink()
    write(folder / "bright.jpg", captioned(photo("cat")))
    for path in (folder / "framed.jpg", folder / "web" / "framed.jpg"):  # damaged unnoticed, as by a bad disk
        stat = path.stat()
        path.write_bytes(b"\0" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = find(directory)
    assert groups(found, folder)["cat.png"] == {"twin/cat.png"}
    reasons = {path.name: reason for path, reason in found.skipped}
    assert reasons.keys() == {"small.jpg", "bright.jpg", "framed.jpg"}
    assert len(found.skipped) == 4
    assert reasons["small.jpg"] == "it is gone"
    assert reasons["bright.jpg"] == "it has changed; run dinokit index first"
    proposed = {copy.photo.path.name for group in found.groups for copy in group.copies}
    assert not proposed & reasons.keys()


def test_a_mirrored_copy_and_a_part_are_found_when_asked_for(tmp_path):
    cat = photo("cat", 300)
    write(tmp_path / "photos" / "cat.png", cat)
    write(tmp_path / "photos" / "mirror.png", (resized(cat)[:, ::-1] * [1, 0.9, 0.7]).astype(np.uint8))
    write(tmp_path / "photos" / "part.png", cat[:150, 40:250])
    directory = index(tmp_path / "photos")
    assert not find(directory).groups
    for threshold in (0.9, 1.0):  # the model proposes it; only the hash does
        found = find(directory, flips=True, threshold=threshold)
        assert groups(found, tmp_path / "photos") == {"cat.png": {"mirror.png"}}
    found = find(directory, flips=True, allow_crop=True, threshold=0.9)
    assert groups(found, tmp_path / "photos") == {"cat.png": {"mirror.png", "part.png"}}
    part = next(copy for copy in found.groups[0].copies if copy.photo.path.name == "part.png")
    assert part.check.startswith("part: ")


def test_a_neighbour_of_a_neighbour_is_compared_as_well(shared):
    _, directory = shared
    with Snapshot.open(directory) as snapshot:
        photos = snapshot.photos(snapshot.ids)
        evidence = copy_evidence.Evidence(snapshot, photos, lambda *_: None)
        assert evidence.around(0) == {0}
        evidence.neighbours |= {0: {1}, 1: {0, 2}, 2: {1, 3}, 3: {2}}
        assert evidence.around(0) == {0, 1, 2}


@pytest.mark.parametrize("count", [0, 1])
def test_an_index_of_no_or_one_photo_has_no_copies(tmp_path, count):
    folder = tmp_path / "photos"
    write(folder / "a.png", photo("cat"))
    write(folder / "b.png", photo("coffee"))
    directory = index(folder)
    for name in ("a.png", "b.png")[: 2 - count]:
        (folder / name).unlink()
    from dinov2kit.indexes.update import UpdateRules

    index_photos(directory, [folder], encoder=ColourEncoder(), rules=UpdateRules(prune="force"))
    found = find(directory, flips=True)
    assert (found.photos, found.groups, found.skipped) == (count, (), ())
    assert find(directory, scope="exact").groups == ()


def test_the_plan_has_every_copy_once_as_the_index_knows_it(shared, tmp_path):
    _, directory = shared
    found = find(directory)
    write_plan(tmp_path / "plan.jsonl", found.to_plan())
    plan = read_plan(tmp_path / "plan.jsonl")
    assert plan == found.to_plan()
    assert plan.reclaimable == found.reclaimable
    assert plan.settings["threshold"] == 0.96
    for group in plan.groups:
        for file in (group.keep, *(removal.file for removal in group.remove)):
            facts = file.path.stat()
            assert (file.size, file.mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert [group.reason for group in plan.groups] == [group.reason for group in found.groups]


def test_the_calibrated_threshold_is_taken_when_none_is_given(folder):
    directory = index(folder)
    with Snapshot.open(directory) as snapshot:
        fingerprint = snapshot.card.model.fingerprint
    said = '{"schema": "dinokit.dedup-calibration/1", "threshold": 0.875, "fingerprint": "%s"}'
    (directory / "dedup.json").write_text(said % fingerprint)
    assert find(directory).settings["threshold"] == 0.875
    assert find(directory, threshold=0.5).settings["threshold"] == 0.5


def test_an_interrupted_run_goes_on_where_parts_are_kept(shared, tmp_path, monkeypatch):
    _, directory = shared
    with Snapshot.open(directory) as snapshot:
        first = find_duplicates(snapshot, work=tmp_path / "a" / "b")
        monkeypatch.setattr("dinov2kit.decoding._attempt", lambda *_: pytest.fail("a photo was read again"))
        assert find_duplicates(snapshot, work=tmp_path / "a" / "b") == first
        (tmp_path / "file").write_text("")
        with pytest.raises(ArgumentError, match="cannot make the folder"):
            find_duplicates(snapshot, work=tmp_path / "file")


def test_the_page_frames_the_keeper_and_shows_what_each_copy_is(shared, tmp_path):
    _, directory = shared
    found = find(directory)
    write_duplicates_page(tmp_path / "page.html", found)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count('<li class="query">') == len(found.groups) == 2
    assert page.count("data:image/webp") == 7
    for group in found.groups:
        assert escape(group.reason) in page
        assert all(copy.check in page for copy in group.copies)
    write_duplicates_page(tmp_path / "page.html", found, groups=1)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count('<li class="query">') == 1
    assert "Shown are the 1 groups that free most." in page
    assert "5 copies in 2 groups" in page


def test_the_cost_is_said_before_where_there_is_one(shared):
    _, directory = shared
    with Snapshot.open(directory) as snapshot:
        assert expect_dedup(snapshot, DedupRules(scope="exact")) is None
        assert "8 items" in str(expect_dedup(snapshot, DedupRules()))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"scope": "all"}, "both, exact, near"),
        ({"verify": "eye"}, "phash, pixel, none"),
        ({"keep": ("best",)}, "unknown rule 'best'"),
        ({"k": 0}, "k is 0"),
        ({"threshold": 1.5}, "threshold 1.5"),
        ({"verify": "none", "flips": True}, "no pixel is read"),
    ],
)
def test_rules_without_sense_are_refused_before_any_work(rules, said):
    with pytest.raises(ArgumentError, match=said):
        DedupRules(**rules)
