"""Undoing a run: bytes, times and permissions come back, after any crash, and nothing else is touched."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_plan import MTIME, group, look, plan_of, write

from dinov2kit.errors import ArgumentError, StoreLocked
from dinov2kit.indexes.dedup_apply import apply_plan, link_name
from dinov2kit.indexes.dedup_log import RunLog, list_runs, log_folder, one_at_a_time
from dinov2kit.indexes.dedup_plan import DedupPlan, write_plan
from dinov2kit.indexes.dedup_undo import UndoReport, undo_run
from dinov2kit.indexes.quarantine import FOLDER

COPY = b"pixels of a cat"
RAW = os.fsdecode(b"sub/\xff\xfe.jpg")
REVERSIBLE = ["quarantine", "hardlink", "symlink"]


class Crash(BaseException):
    """Ends a run as a kill does: nothing catches it."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A keeper and three copies, each with another time and other permissions."""
    folder = tmp_path / "photos"
    write(folder / "keep.jpg", COPY)
    for number, name in enumerate(("a.jpg", "sub/b.jpg", RAW), 1):
        write(folder / name, COPY, mtime_ns=MTIME + number, mode=0o600 + number)
    return folder


def a_plan(photos: Path) -> DedupPlan:
    copies = [photos / name for name in ("a.jpg", "sub/b.jpg", RAW)]
    return plan_of(group(1, photos / "keep.jpg", *copies))


def fates(report: UndoReport) -> list[str]:
    return [file.reason or file.fate for file in report.files]


@pytest.mark.parametrize("action", REVERSIBLE)
def test_bytes_times_permissions_and_places_come_back(photos, action):
    plan, before = a_plan(photos), look(photos)
    applied = apply_plan(plan, action=action)
    assert len(applied.done) == 3
    assert look(photos) != before
    report = undo_run(applied.run)
    assert (fates(report), report.run, report.action) == (["restored"] * 3, applied.run, action)
    assert look(photos) == before
    assert not list(photos.rglob(FOLDER))
    assert not any((photos / name).samefile(photos / "keep.jpg") for name in ("a.jpg", "sub/b.jpg", RAW))


@pytest.mark.parametrize("action", REVERSIBLE)
def test_undoing_twice_changes_nothing(photos, action):
    plan, before = a_plan(photos), look(photos)
    apply_plan(plan, action=action)
    undo_run()
    written = log_folder().joinpath(f"{list_runs()[0].run}.jsonl").read_bytes()
    assert fates(undo_run()) == ["in place"] * 3
    assert (look(photos), list_runs()[0].path.read_bytes()) == (before, written)


def test_without_a_name_the_latest_run_is_undone(photos):
    (whole,) = a_plan(photos).groups
    parts = [replace(whole, remove=(removal,)) for removal in whole.remove[:2]]
    runs = [apply_plan(plan_of(part)).run for part in parts]
    assert [log.run for log in list_runs()] == runs
    assert undo_run().run == runs[1]
    assert not (photos / "a.jpg").exists()
    assert undo_run(runs[0]).run == runs[0]
    assert (photos / "a.jpg").exists()


def test_what_now_stands_there_is_not_overwritten_and_the_others_come_back(photos):
    plan = a_plan(photos)
    place = apply_plan(plan).outcomes[0].moved_to
    write(photos / "a.jpg", b"a new photo")
    report = undo_run()
    assert fates(report) == [
        f"another file is there now; the removed one is {place}", "restored", "restored",
    ]  # fmt: skip
    assert (photos / "a.jpg").read_bytes() == b"a new photo"
    assert place.read_bytes() == COPY
    (photos / "a.jpg").unlink()
    assert fates(undo_run()) == ["restored", "in place", "in place"]
    assert look(photos)[b"a.jpg"][:2] == (COPY, MTIME + 1)


def test_a_dangling_link_in_the_way_counts_as_something(photos):
    apply_plan(a_plan(photos))
    (photos / "a.jpg").symlink_to("nowhere")
    assert fates(undo_run())[0].startswith("another file is there now")
    assert (photos / "a.jpg").is_symlink()


def test_a_folder_that_went_meanwhile_is_made_again(photos, tmp_path):
    before = look(photos)
    apply_plan(a_plan(photos), quarantine=tmp_path)
    (photos / "sub").rmdir()
    assert fates(undo_run()) == ["restored"] * 3
    assert look(photos) == before


def test_an_emptied_quarantine_is_said(photos):
    moved = [outcome.moved_to for outcome in apply_plan(a_plan(photos)).outcomes]
    moved[0].unlink()
    moved[1].rename(photos / "sub/b.jpg")
    write(photos / RAW, b"another")
    moved[2].unlink()
    gone = "it is no longer in the quarantine, where it was"
    assert fates(undo_run()) == [
        f"{gone} {moved[0]}", "in place", f"another file is there now; {gone} {moved[2]}",
    ]  # fmt: skip


@pytest.mark.parametrize("hard", [True, False])
def test_a_link_comes_back_only_with_the_very_content(photos, hard):
    plan = a_plan(photos)
    apply_plan(plan, action="hardlink" if hard else "symlink")
    (photos / "a.jpg").unlink()  # the user removed the link
    write(photos / "new", b"edited in place of it").rename(photos / "sub/b.jpg")
    keep = (photos / "keep.jpg").read_bytes()
    assert fates(undo_run()) == ["restored", "another file is there now", "restored"]
    assert look(photos)[b"a.jpg"][:2] == (keep, MTIME + 1)
    (photos / "sub/b.jpg").unlink()
    write(photos / "keep.jpg", b"another cat")
    changed = f"the keeper {photos / 'keep.jpg'} has changed, and the file was a link to it"
    assert fates(undo_run()) == ["in place", changed, "in place"]
    (photos / "keep.jpg").unlink()
    assert "is gone, and the file was a link to it" in fates(undo_run())[1]
    assert not list(photos.rglob(".dinokit-*"))


def test_a_symbolic_link_to_something_else_stays(photos):
    apply_plan(a_plan(photos), action="symlink")
    (photos / "a.jpg").unlink()
    (photos / "a.jpg").symlink_to(photos / "elsewhere")
    assert fates(undo_run()) == ["another link is there now", "restored", "restored"]


def test_hard_links_outlive_their_keeper_and_become_files_of_their_own(photos):
    before = look(photos)
    del before[b"keep.jpg"]
    apply_plan(a_plan(photos), action="hardlink")
    (photos / "keep.jpg").unlink()
    assert fates(undo_run()) == ["restored", "restored", "in place"]
    assert look(photos) == before


def test_deleted_and_binned_files_are_said_to_be_beyond_this(photos, monkeypatch):
    plan = a_plan(photos)
    apply_plan(plan, action="delete")
    assert fates(undo_run()) == ["it was deleted for good"] * 3
    for removal in plan.groups[0].remove:
        write(removal.file.path, COPY)
    assert fates(undo_run()) == ["in place"] * 3


def test_unknown_runs_and_broken_logs_are_refused(photos):
    with pytest.raises(ArgumentError, match="nothing was ever removed"):
        undo_run()
    with pytest.raises(ArgumentError, match="there is no run 'absent'") as caught:
        undo_run("absent")
    assert "--list" in str(caught.value.hint)
    write(log_folder() / "x.jsonl", b'{"schema": "dinokit.dedup-log/2"}\n')
    with pytest.raises(ArgumentError, match=r"its schema is dinokit\.dedup-log/2, wanted"):
        undo_run("x")
    write(log_folder() / "x.jsonl", b'{"schema": ')
    with pytest.raises(ArgumentError, match="cannot be understood"):
        undo_run("x")
    assert list_runs() == []


def test_no_undo_while_another_applies(photos):
    apply_plan(a_plan(photos))
    with one_at_a_time(), pytest.raises(StoreLocked):
        undo_run()


def test_an_undo_can_be_stopped_and_goes_on(photos):
    before = look(photos)
    apply_plan(a_plan(photos))
    seen = []
    report = undo_run(watch=lambda *step: seen.append(step), stop=lambda: len(seen) == 1)
    assert (report.interrupted, fates(report), seen) == (True, ["restored"], [("Restoring", 0, 3)])
    assert fates(undo_run()) == ["in place", "restored", "restored"]
    assert look(photos) == before


def crash_after(count: int, owner: type, name: str, monkeypatch: pytest.MonkeyPatch, *, before: bool) -> None:
    """End the process, so to speak, before or after the call number `count` of a method."""
    whole: Callable[..., object] = getattr(owner, name)
    calls = []

    def call(*arguments: object, **more: object) -> object:
        calls.append(arguments)
        if before and len(calls) == count:
            raise Crash
        result = whole(*arguments, **more)
        if len(calls) == count:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, call)


MOMENTS = [
    (owner, name, before)
    for owner, name in ((RunLog, "intend"), (RunLog, "note"), (Path, "replace"))
    for before in (True, False)
]


@pytest.mark.parametrize("action", REVERSIBLE)
@pytest.mark.parametrize(("owner", "name", "before"), MOMENTS)
def test_a_run_that_ends_at_any_moment_can_be_undone(photos, monkeypatch, action, owner, name, before):
    plan, as_was = a_plan(photos), look(photos)
    with monkeypatch.context() as patched:
        crash_after(2, owner, name, patched, before=before)
        with pytest.raises(Crash):
            apply_plan(plan, action=action)
    assert set(fates(undo_run())) <= {"restored", "in place"}
    assert look(photos) == as_was


@pytest.mark.parametrize("action", REVERSIBLE)
@pytest.mark.parametrize(("owner", "name", "before"), [moment for moment in MOMENTS if moment[1] != "intend"])
def test_an_undo_that_ends_at_any_moment_can_be_repeated(photos, monkeypatch, action, owner, name, before):
    plan, as_was = a_plan(photos), look(photos)
    apply_plan(plan, action=action)
    with monkeypatch.context() as patched:
        crash_after(2, owner, name, patched, before=before)
        with pytest.raises(Crash):
            undo_run()
    assert set(fates(undo_run())) <= {"restored", "in place"}
    assert look(photos) == as_was


@pytest.mark.parametrize("hard", [True, False])
def test_a_link_that_a_kill_left_behind_goes(photos, monkeypatch, hard):
    plan, as_was = a_plan(photos), look(photos)
    with monkeypatch.context() as patched:
        crash_after(1, Path, "replace", patched, before=True)
        with pytest.raises(Crash):
            apply_plan(plan, action="hardlink" if hard else "symlink")
    (log,) = list_runs()
    left = link_name(photos / "a.jpg", log.run, 1)
    left.hardlink_to(photos / "keep.jpg") if hard else left.symlink_to(photos / "keep.jpg")
    assert fates(undo_run()) == ["in place"]
    assert look(photos) == as_was


def test_a_line_that_was_cut_off_counts_as_not_written(photos):
    as_was = look(photos)
    apply_plan(a_plan(photos))
    (log,) = list_runs()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole + b'{"deed": 4, "state": "inten')
    assert fates(undo_run()) == ["restored"] * 3
    assert look(photos) == as_was
    assert log.path.read_bytes().startswith(whole)
    assert [deed.state for deed in RunLog.open(log.run).deeds.values()] == ["undone"] * 3


@pytest.mark.parametrize("line", [2, 4, 7])
def test_killed_for_good_and_undone_from_what_is_on_the_disk(photos, tmp_path, line):
    """The process kills itself when the log has so many lines."""
    as_was = look(photos)
    write_plan(tmp_path / "plan.jsonl", a_plan(photos))
    program = """
        import os, signal, sys
        from pathlib import Path
        from dinov2kit.indexes.dedup_apply import apply_plan
        from dinov2kit.indexes.dedup_log import RunLog
        from dinov2kit.indexes.dedup_plan import read_plan
        whole = RunLog._append
        def append(log, records):
            whole(log, records)
            if log.path.read_bytes().count(b"\\n") == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        RunLog._append = append
        apply_plan(read_plan(Path(sys.argv[1])))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "plan.jsonl"), str(line)], check=False
    )
    assert done.returncode == -signal.SIGKILL
    moved = {2: 0, 4: 1, 7: 3}[line]
    report = undo_run()
    assert sorted(fates(report)) == sorted(["restored"] * moved + ["in place"] * (len(report.files) - moved))
    assert look(photos) == as_was
