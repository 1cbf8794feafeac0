"""Applying a plan: what goes, what is left alone and why, and that no last copy ever goes."""

import errno
import os
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from small_index import make_index
from small_plan import MTIME, group, look, plan_of, write

from dinov2kit.errors import ArgumentError, DependencyError, KitError, StoreLocked
from dinov2kit.indexes.dedup_apply import ACTIONS, ApplyReport, apply_plan
from dinov2kit.indexes.dedup_log import RunLog, list_runs, log_folder, one_at_a_time
from dinov2kit.indexes.quarantine import FOLDER, quarantine_place
from dinov2kit.indexes.store import Store

KEEP, COPY, NEAR = b"pixels of a cat", b"pixels of a cat", b"pixels of a cat, smaller"
CHANGED = "it has changed since the plan was made"
CHANGED_KEEPER = "the keeper has changed since the plan was made"
RAW = os.fsdecode(b"sub/\xff\xfe.jpg")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A keeper, an exact copy in a folder below, a near copy, and a photo that no plan speaks of."""
    folder = tmp_path / "photos"
    write(folder / "keep.jpg", KEEP)
    write(folder / "sub/copy.jpg", COPY, mtime_ns=MTIME + 1, mode=0o600)
    write(folder / "near.jpg", NEAR, mtime_ns=MTIME + 2, mode=0o640)
    write(folder / "other.jpg", b"a dog")
    return folder


def reasons(report: ApplyReport) -> list[str | None]:
    return [outcome.reason for outcome in report.outcomes]


def inodes(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Return what each file is, when it was changed, and how many names it has."""
    files = {path: path.lstat() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    return {path: (facts.st_ino, facts.st_mtime_ns, facts.st_nlink) for path, facts in files.items()}


def exact(photos: Path):
    return plan_of(group(1, photos / "keep.jpg", photos / "sub/copy.jpg"))


def both(photos: Path):
    return plan_of(group(1, photos / "keep.jpg", photos / "sub/copy.jpg", photos / "near.jpg"))


def test_files_go_to_the_quarantine_of_the_indexed_folder_with_bytes_time_and_tree(photos, tmp_path):
    index = make_index(tmp_path / "ix")
    with Store.open(index) as store:
        store.root_id(photos)
        store.root_id(tmp_path)
        store.commit()
    before = look(photos)
    report = apply_plan(replace(both(photos), index=str(index)))
    place = photos / FOLDER / str(report.run)
    assert [outcome.moved_to for outcome in report.done] == [place / "sub/copy.jpg", place / "near.jpg"]
    assert look(place) == {name: before[name] for name in (b"sub/copy.jpg", b"near.jpg")}
    assert set(look(photos)) - {os.fsencode(path.relative_to(photos)) for path in place.rglob("*")} == {
        b"keep.jpg", b"other.jpg",
    }  # fmt: skip
    assert (reasons(report), report.nbytes) == ([None, None], len(COPY) + len(NEAR))


def test_without_an_index_a_file_goes_beside_itself(photos):
    report = apply_plan(both(photos))
    assert [outcome.moved_to for outcome in report.done] == [
        photos / "sub" / FOLDER / str(report.run) / "copy.jpg",
        photos / FOLDER / str(report.run) / "near.jpg",
    ]


def test_the_innermost_folder_or_the_one_named_holds_the_quarantine():
    path, roots = Path("/a/b/c/x.jpg"), (Path("/a"), Path("/a/b"), Path("/a/b/cc"))
    assert quarantine_place(path, "run", roots=roots, named=None) == Path(f"/a/b/{FOLDER}/run/c/x.jpg")
    named = quarantine_place(path, "run", roots=roots, named=Path("/q"))
    assert named == Path(f"/q/{FOLDER}/run/a/b/c/x.jpg")


def test_a_dry_run_says_the_same_and_changes_nothing(photos, home):
    write(photos / "near.jpg", b"edited")
    plan = plan_of(exact(photos).groups[0], group(2, photos / "other.jpg", photos / "near.jpg"))
    write(photos / "near.jpg", b"edited again")
    before = look(photos)
    dry = apply_plan(plan, dry_run=True)
    assert (look(photos), home.exists(), dry.run) == (before, False, None)
    wet = apply_plan(plan)
    assert reasons(dry) == reasons(wet) == [None, CHANGED]
    assert dry.nbytes == wet.nbytes == len(COPY)


@pytest.mark.parametrize(
    ("befall", "said"),
    [
        (lambda p: write(p / "keep.jpg", b"PIXELS of a cat"), CHANGED_KEEPER),
        (lambda p: write(p / "keep.jpg", KEEP + b"!"), CHANGED_KEEPER),
        (lambda p: (p / "keep.jpg").unlink(), "the keeper is gone"),
        (lambda p: (p / "keep.jpg").rename(p / "kept.jpg"), "the keeper is gone"),
        (lambda p: ((p / "keep.jpg").unlink(), (p / "keep.jpg").mkdir()), "the keeper is no regular file"),
        (lambda p: ((p / "keep.jpg").unlink(), os.mkfifo(p / "keep.jpg")), "the keeper is no regular file"),
        (lambda p: write(p / "sub/copy.jpg", b"PIXELS of a cat"), CHANGED),
        (lambda p: (p / "sub/copy.jpg").unlink(), "it is gone"),
        (lambda p: (p / "sub").rename(p / "bus"), "it is gone"),
        (lambda p: ((p / "sub").rename(p / "bus"), write(p / "sub", b"")), "it is gone"),
        (
            lambda p: ((p / "sub/copy.jpg").unlink(), (p / "sub/copy.jpg").hardlink_to(p / "keep.jpg")),
            "it is the keeper itself under another name",
        ),
        (
            lambda p: ((p / "keep.jpg").unlink(), (p / "keep.jpg").symlink_to(p / "sub/copy.jpg")),
            "it is the keeper itself under another name",
        ),
        (
            lambda p: ((p / "sub/copy.jpg").unlink(), (p / "sub/copy.jpg").symlink_to(p / "keep.jpg")),
            "it is a symbolic link",
        ),
        (
            lambda p: ((p / "sub/copy.jpg").unlink(), (p / "sub").rmdir(), (p / "sub").symlink_to(p),
                       (p / "keep.jpg").rename(p / "copy.jpg"), (p / "keep.jpg").symlink_to("copy.jpg")),
            "it is the keeper itself under another name",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "befall",
)  # fmt: skip
@pytest.mark.parametrize("action", ["quarantine", "hardlink", "symlink", "delete"])
def test_what_is_not_as_planned_is_left_alone(photos, befall, said, action):
    plan = exact(photos)
    befall(photos)
    before = inodes(photos)
    report = apply_plan(plan, action=action)
    assert (reasons(report), report.run, report.nbytes) == ([said], None, 0)
    assert inodes(photos) == before
    assert list_runs() == []


def test_a_new_time_with_the_same_content_is_no_change(photos):
    plan = exact(photos)
    os.utime(photos / "sub/copy.jpg", ns=(1, 1))
    os.utime(photos / "keep.jpg", ns=(2, 2))
    assert reasons(apply_plan(plan)) == [None]


def test_one_bad_entry_does_not_hinder_the_others(photos):
    plan = both(photos)
    write(photos / "sub/copy.jpg", b"edited")
    assert reasons(apply_plan(plan)) == [CHANGED, None]
    assert not (photos / "near.jpg").exists()


def test_a_circle_removes_nothing(photos):
    """A plan that was edited so that two copies keep each other, under other spellings of their names."""
    a, b = photos / "keep.jpg", photos / "sub/copy.jpg"
    link = photos.parent / "link"
    link.symlink_to(photos)
    plan = plan_of(group(1, a, b), group(2, link / "sub/copy.jpg", link / "keep.jpg"))
    for _ in range(2):
        assert reasons(apply_plan(plan)) == ["it is the keeper of group 2", "it is the keeper of group 1"]
    assert a.exists()
    assert b.exists()


def test_a_chain_of_keepers_stops_at_each_of_them(photos):
    """A stays for B, B stays for C: B is needed, whichever line comes first."""
    a, b, c = photos / "keep.jpg", photos / "sub/copy.jpg", photos / "near.jpg"
    groups = group(1, a, b), group(2, b, c)
    for order in (groups, groups[::-1]):
        found = apply_plan(plan_of(*order), dry_run=True)
        assert {outcome.path: outcome.reason for outcome in found.outcomes} == {
            b: "it is the keeper of group 2", c: None
        }  # fmt: skip


def test_a_file_named_twice_goes_once(photos):
    plan = plan_of(exact(photos).groups[0], exact(photos).groups[0])
    assert reasons(apply_plan(plan)) == [None, "it is gone"]


def test_names_that_are_no_text_survive(photos):
    path = write(photos / RAW, COPY)
    report = apply_plan(plan_of(group(1, photos / "keep.jpg", path)))
    (deed,) = RunLog.open(str(report.run)).deeds.values()
    assert deed.path == path
    assert os.fsencode(deed.moved_to).endswith(b"/\xff\xfe.jpg")
    assert deed.moved_to.read_bytes() == COPY
    assert report.to_json()["files"][0]["path_bytes"] == os.fsencode(path).hex()


def test_a_place_that_is_taken_is_not_overwritten(photos, monkeypatch):
    monkeypatch.setattr(
        "dinov2kit.indexes.dedup_apply.quarantine_place", lambda *_, **__: photos / "other.jpg"
    )
    assert reasons(apply_plan(exact(photos))) == [f"{photos / 'other.jpg'} exists"]
    assert (photos / "other.jpg").read_bytes() == b"a dog"
    assert (photos / "sub/copy.jpg").exists()


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EXDEV, "is on another disk (name a folder on the disk of the file)"),
        (errno.EACCES, "it cannot be moved: Permission denied"),
        (errno.ENOSPC, "it cannot be moved: No space left on device"),
    ],
)
def test_a_move_that_the_system_refuses_leaves_everything_as_it_was(photos, monkeypatch, number, said):
    plan, before = both(photos), look(photos)

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", refuse)
    report = apply_plan(plan)
    assert [str(reason)[-len(said) :] for reason in reasons(report)] == [said, said]
    assert look(photos) == before
    assert not list(photos.rglob(FOLDER))


@pytest.mark.parametrize("dry_run", [True, False])
def test_another_disk_is_refused_and_a_dry_run_says_so(photos, dry_run):
    other = Path("/dev/shm") / f"dinokit-{os.getpid()}"
    if not other.parent.is_dir() or other.parent.stat().st_dev == photos.stat().st_dev:
        pytest.skip("there is no second disk")
    report = apply_plan(exact(photos), quarantine=other, dry_run=dry_run)
    assert "is on another disk (name a folder on the disk of the file)" in str(reasons(report)[0])
    assert not other.exists()
    keep = write(other / "keep.jpg", KEEP)
    try:
        plan = plan_of(group(1, keep, photos / "sub/copy.jpg"))
        hard = apply_plan(plan, action="hardlink", dry_run=dry_run)
        assert reasons(hard) == ["its keeper is on another disk"]
        soft = apply_plan(plan, action="symlink", dry_run=dry_run)
        assert reasons(soft) == [None]
    finally:
        shutil.rmtree(other)
    assert (photos / "sub/copy.jpg").is_symlink() is not dry_run


def test_an_unreadable_file_is_left_alone(photos, monkeypatch):
    plan, whole = both(photos), Path.open

    def refuse(path: Path, *rest: object, **more: object):
        if path.name == "copy.jpg":
            raise PermissionError(errno.EACCES, "Permission denied")
        return whole(path, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    assert reasons(apply_plan(plan)) == ["it cannot be read: Permission denied", None]


@pytest.mark.parametrize("hard", [True, False])
def test_a_link_takes_the_place_of_an_exact_copy_only(photos, hard):
    report = apply_plan(both(photos), action="hardlink" if hard else "symlink")
    assert reasons(report) == [None, "only a file of equal content can become a link; this one would be lost"]
    keep, copy = photos / "keep.jpg", photos / "sub/copy.jpg"
    assert (copy.samefile(keep), copy.is_symlink(), copy.read_bytes()) == (True, not hard, COPY)
    assert look(photos)[b"near.jpg"][0] == NEAR
    assert sorted(path.name for path in photos.rglob("*")) == [
        "copy.jpg", "keep.jpg", "near.jpg", "other.jpg", "sub",
    ]  # fmt: skip


@pytest.mark.parametrize("action", ["hardlink", "symlink"])
def test_a_link_that_cannot_be_made_loses_nothing(photos, monkeypatch, action):
    plan, before = exact(photos), look(photos)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "hardlink_to", refuse)
        patched.setattr(Path, "symlink_to", refuse)
        assert reasons(apply_plan(plan, action=action)) == ["its keeper is on another disk"]
    assert look(photos) == before
    monkeypatch.setattr(Path, "replace", refuse)
    assert apply_plan(plan, action=action).done == []
    assert look(photos) == before


def test_a_keeper_that_is_replaced_at_the_last_moment_gets_no_link(photos, monkeypatch):
    plan, whole = exact(photos), Path.hardlink_to

    def replaced(path: Path, target: Path) -> None:
        write(photos / "new", b"another photo").rename(photos / "keep.jpg")
        whole(path, target)

    monkeypatch.setattr(Path, "hardlink_to", replaced)
    assert reasons(apply_plan(plan, action="hardlink")) == [CHANGED_KEEPER]
    assert (photos / "sub/copy.jpg").read_bytes() == COPY


def test_delete_removes_for_good(photos):
    report = apply_plan(both(photos), action="delete")
    assert reasons(report) == [None, None]
    assert set(look(photos)) == {b"keep.jpg", b"other.jpg"}
    assert RunLog.open(str(report.run)).action == "delete"


def test_the_bin_of_the_desktop_gets_the_very_bytes_of_the_name(photos, monkeypatch):
    binned = []
    module = types.ModuleType("send2trash")
    module.send2trash = lambda path: (binned.append(path), Path(os.fsdecode(path)).unlink())
    monkeypatch.setitem(sys.modules, "send2trash", module)
    path = write(photos / RAW, COPY)
    report = apply_plan(plan_of(group(1, photos / "keep.jpg", path)), action="trash")
    assert (reasons(report), binned) == ([None], [os.fsencode(path)])


def test_without_its_package_the_bin_is_refused_before_anything_happens(photos, monkeypatch):
    before = look(photos)
    monkeypatch.setitem(sys.modules, "send2trash", None)
    with pytest.raises(DependencyError, match="send2trash") as caught:
        apply_plan(exact(photos), action="trash")
    assert caught.value.hint == "pip install 'dinov2kit[trash]'"
    assert look(photos) == before


def test_wrong_arguments_are_refused_before_anything_happens(photos):
    before = look(photos)
    with pytest.raises(ArgumentError, match=f"wanted one of {', '.join(ACTIONS)}"):
        apply_plan(exact(photos), action="shred")
    with pytest.raises(ArgumentError, match="a quarantine folder was named, but the action is symlink"):
        apply_plan(exact(photos), action="symlink", quarantine=photos)
    assert look(photos) == before


def test_what_is_intended_is_on_the_disk_before_it_is_done(photos, monkeypatch):
    plan, whole, seen = exact(photos), Path.replace, []

    def observe(path: Path, target: Path) -> Path:
        if path.name == "copy.jpg":
            (log,) = list_runs()
            seen.extend(log.deeds.values())
        return whole(path, target)

    synced = []
    monkeypatch.setattr(Path, "replace", observe)
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(Path(f"/proc/self/fd/{number}").readlink()))
    report = apply_plan(plan)
    log = RunLog.open(str(report.run))
    (deed,) = seen
    assert (deed.path, deed.keeper) == (photos / "sub/copy.jpg", photos / "keep.jpg")
    assert (deed.state, deed.mtime_ns, deed.mode) == ("intended", MTIME + 1, 0o600)
    assert deed.moved_to == report.done[0].moved_to
    assert [deed.state for deed in log.deeds.values()] == ["done"]
    assert synced[:2] == [log.path, log_folder()]


def test_without_a_log_nothing_is_done(photos, monkeypatch, home):
    before = look(photos)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        with pytest.raises(KitError, match=r"cannot write the undo log .*No space left"):
            apply_plan(exact(photos))
    assert look(photos) == before
    write(home.parent / "file", b"")
    monkeypatch.setenv("DINOKIT_HOME", str(home.parent / "file"))
    with pytest.raises(KitError, match="cannot write to "):
        apply_plan(exact(photos))
    assert look(photos) == before


def test_only_one_may_apply_at_a_time(photos):
    with one_at_a_time(), pytest.raises(StoreLocked, match="another dinokit dedup apply or undo is running"):
        apply_plan(exact(photos))
    assert apply_plan(exact(photos)).done


def test_a_run_can_be_stopped_between_files_and_says_where_it_is(photos):
    seen = []
    report = apply_plan(
        both(photos),
        watch=lambda stage, done, total: seen.append((stage, done, total)),
        stop=lambda: len(seen) == 1,
    )
    assert (report.interrupted, reasons(report), seen) == (True, [None], [("Removing", 0, 2)])
    assert (photos / "near.jpg").exists()


def test_the_report_counts_what_happened(photos):
    plan = both(photos)
    (photos / "near.jpg").unlink()
    report = apply_plan(plan)
    said = report.to_json()
    assert (said["done"], said["skipped"], said["bytes"], said["action"]) == (1, 1, len(COPY), "quarantine")
    assert said["files"][1] == {
        "group": 1, "path": str(photos / "near.jpg"), "keeper": str(photos / "keep.jpg"), "moved_to": None,
        "reason": "it is gone",
    }  # fmt: skip
