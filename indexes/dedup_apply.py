"""`apply_plan`: what a plan proposes is done, file by file, after looking at every file again.

Nothing of the plan is trusted but the names. Right before a file goes, it and its keeper are opened and
hashed, and what differs from the plan is left alone, with the reason. What is to be done is in the undo log
before it is done. A keeper of any group, under whatever name, never goes: so a plan that was edited into a
circle cannot remove the last copy.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from dinov2kit.errors import ArgumentError, DependencyError, ImageError, StoreError, check_choice

from .dedup_log import Deed, RunLog, one_at_a_time
from .dedup_plan import DedupPlan, PlannedFile, PlannedGroup, Removal, path_facts
from .facts import read_facts
from .layout import sync_folder
from .quarantine import check_disk, clear_away, move_file, quarantine_place, run_folder
from .records import Watch

ACTIONS = ("quarantine", "hardlink", "symlink", "trash", "delete")
_OTHER_DISK = "its keeper is on another disk"
Inode = tuple[int, int]  # device and number: what a file is, whatever it is called


@dataclass(frozen=True)
class Outcome:
    """What became of one file.

    Attributes:
        group: number of its group.
        path: the file.
        keeper: the copy that stays.
        size: bytes, as the plan has it.
        moved_to: where it lies now, or would lie; None when it was not moved.
        reason: why it was left alone; None when it is gone, or would go.
    """

    group: int
    path: Path
    keeper: Path
    size: int
    moved_to: Path | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ApplyReport:
    """What `apply_plan` did.

    Attributes:
        run: names the undo log; None when nothing was done.
        action: what happened to the files.
        dry_run: nothing was changed; the outcomes say what would be.
        outcomes: one for each file to remove, in the order of the plan; fewer when interrupted.
        interrupted: whether it was stopped before the end.
    """

    run: str | None
    action: str
    dry_run: bool
    outcomes: tuple[Outcome, ...]
    interrupted: bool = False

    @property
    def done(self) -> list[Outcome]:
        """The files that went, or would go."""
        return [outcome for outcome in self.outcomes if outcome.reason is None]

    @property
    def skipped(self) -> list[Outcome]:
        """The files that were left alone."""
        return [outcome for outcome in self.outcomes if outcome.reason is not None]

    @property
    def nbytes(self) -> int:
        """Bytes of the files that went, or would go."""
        return sum(outcome.size for outcome in self.done)

    @property
    def quarantines(self) -> list[Path]:
        """The folders of this run that hold files now, or would."""
        moved = (outcome.moved_to for outcome in self.done)
        return sorted({run_folder(place) for place in moved if place is not None})

    def to_json(self) -> dict[str, object]:
        """Return the report as `json.dumps` takes it."""
        files = [
            {
                "group": outcome.group,
                **path_facts(outcome.path),
                "keeper": path_facts(outcome.keeper)["path"],
                "moved_to": None if outcome.moved_to is None else path_facts(outcome.moved_to)["path"],
                "reason": outcome.reason,
            }
            for outcome in self.outcomes
        ]
        return {
            "run": self.run,
            "action": self.action,
            "dry_run": self.dry_run,
            "done": len(self.done),
            "skipped": len(self.skipped),
            "bytes": self.nbytes,
            "interrupted": self.interrupted,
            "files": files,
        }


def apply_plan(
    plan: DedupPlan,
    *,
    action: str = "quarantine",
    quarantine: Path | None = None,
    dry_run: bool = False,
    watch: Watch | None = None,
    stop: Callable[[], bool] | None = None,
) -> ApplyReport:
    """Remove the files that a plan proposes, each after looking again at it and at its keeper.

    Args:
        plan: as read by `read_plan`.
        action: "quarantine" moves a file into a hidden folder of the indexed folder that holds it; "hardlink"
            and "symlink" put a link to the keeper in its place, for equal contents only; "trash" gives it to
            the bin of the desktop; "delete" unlinks it for good.
        quarantine: another folder to move to, on the same disk.
        dry_run: look at everything, change nothing.
        watch: called with the stage of the work.
        stop: asked between files.

    Returns: what became of each file. The index is not touched: its next update sees that files are gone.

    Raises:
        ArgumentError: the action is unknown, or does not go with the other arguments.
        DependencyError: the action needs a package that is missing.
        StoreLocked: another apply or undo is running.
        KitError: the undo log cannot be written.
    """
    check_choice("action", action, ACTIONS)
    if quarantine is not None and action != "quarantine":
        raise ArgumentError(f"a quarantine folder was named, but the action is {action}")
    if action == "trash":
        _load_trash()
    entries = [(group, removal) for group in plan.groups for removal in group.remove]
    watch, stop = watch or (lambda *_: None), stop or (lambda: False)
    with nullcontext() if dry_run else one_at_a_time():
        run = _Run(plan, action, quarantine, dry_run=dry_run)
        outcomes: list[Outcome] = []
        for group, removal in entries:
            if stop():
                break
            watch("Looking" if dry_run else "Removing", len(outcomes), len(entries))
            outcomes.append(run.remove(group, removal))
    name = run.log.run if run.log.deeds else None
    return ApplyReport(name, action, dry_run, tuple(outcomes), interrupted=len(outcomes) < len(entries))


class _Run:
    """One application of a plan: what must not go, and the log."""

    def __init__(self, plan: DedupPlan, action: str, quarantine: Path | None, *, dry_run: bool) -> None:
        self.log = RunLog.begin(action, plan.index)
        self._action = action
        self._quarantine = quarantine
        self._dry_run = dry_run
        self._roots = _roots(plan)
        self._keepers = dict(_inodes(plan.groups))

    def remove(self, group: PlannedGroup, removal: Removal) -> Outcome:
        """Remove one file, or say why not."""
        planned, keeper = removal.file, group.keep.path
        place = None
        try:
            facts, kept = self._look(group, removal)
            if self._action == "quarantine":
                named = self._quarantine
                place = quarantine_place(planned.path, self.log.run, roots=self._roots, named=named)
                check_disk(place, facts.st_dev)
            if not self._dry_run:
                self._act(planned, facts, keeper, kept, place)
        except ImageError as error:
            reason = error.message + (f" ({error.hint})" if error.hint else "")
            return Outcome(group.number, planned.path, keeper, planned.size, reason=reason)
        return Outcome(group.number, planned.path, keeper, planned.size, moved_to=place)

    def _look(self, group: PlannedGroup, removal: Removal) -> tuple[os.stat_result, os.stat_result]:
        """Return how a file and its keeper are now.

        Raises:
            ImageError: the file must not go.
        """
        if self._action in ("hardlink", "symlink") and removal.file.hash != group.keep.hash:
            raise ImageError("only a file of equal content can become a link; this one would be lost")
        kept = _as_planned(group.keep, "the keeper")
        facts = _as_planned(removal.file, "it", follow=False)
        if _inode(facts) == _inode(kept):
            raise ImageError("it is the keeper itself under another name")
        if self._action == "hardlink" and facts.st_dev != kept.st_dev:
            raise ImageError(_OTHER_DISK)
        if (number := self._keepers.get(_inode(facts))) is not None:
            raise ImageError(f"it is the keeper of group {number}")
        return facts, kept

    def _act(
        self,
        planned: PlannedFile,
        facts: os.stat_result,
        keeper: Path,
        kept: os.stat_result,
        place: Path | None,
    ) -> None:
        """Note what is to be done, do it, note that it is done."""
        number = len(self.log.deeds) + 1
        mode = stat.S_IMODE(facts.st_mode)
        deed = Deed(number, planned.path, keeper, place, planned.hash, facts.st_size, facts.st_mtime_ns, mode)
        self.log.intend(deed)
        if place is not None:
            try:
                move_file(planned.path, place)
            except ImageError:
                clear_away(place)
                raise
        else:
            _without_move(self._action, deed, self.log.run, kept)
        self.log.note(number, "done")


def link_name(path: Path, run: str, number: int) -> Path:
    """Return the name that a link has until it takes the place of its file."""
    return path.with_name(f".dinokit-{run}-{number}")


def _without_move(action: str, deed: Deed, run: str, kept: os.stat_result) -> None:
    """Put a link in the place of a file, give it to the bin, or delete it.

    Raises:
        ImageError: the system refuses; the file is as it was.
    """
    try:
        if action in ("hardlink", "symlink"):
            _replace_by_link(deed, link_name(deed.path, run, deed.number), kept, hard=action == "hardlink")
        elif action == "trash":
            _load_trash()(os.fsencode(deed.path))
        else:
            deed.path.unlink()
            sync_folder(deed.path.parent)
    except OSError as error:
        why = f"it cannot be removed: {error.strerror or error}"
        raise ImageError(_OTHER_DISK if error.errno == errno.EXDEV else why) from error


def _replace_by_link(deed: Deed, temporary: Path, kept: os.stat_result, *, hard: bool) -> None:
    """Make the link under another name first, then rename it over the file: at no moment is there neither."""
    try:
        if hard:
            temporary.hardlink_to(deed.keeper.resolve())
        else:
            temporary.symlink_to(deed.keeper)
        if _inode(temporary.stat()) != _inode(kept):
            raise ImageError("the keeper has changed since the plan was made")
        temporary.replace(deed.path)
        sync_folder(deed.path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _as_planned(planned: PlannedFile, name: str, *, follow: bool = True) -> os.stat_result:
    """Return how a file is now, if its content is what the plan says.

    Raises:
        ImageError: it is gone, no regular file, changed, or cannot be read.
    """
    path = planned.path
    try:
        facts = path.stat(follow_symlinks=follow)
        if not stat.S_ISREG(facts.st_mode):
            what = "a symbolic link" if stat.S_ISLNK(facts.st_mode) else "no regular file"
            raise ImageError(f"{name} is {what}")
        with path.open("rb") as file:
            facts = os.fstat(file.fileno())
            same = facts.st_size == planned.size and content_hash(file) == planned.hash
        again = path.stat(follow_symlinks=follow)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(f"{name} is gone") from error
    except OSError as error:
        raise ImageError(f"{name} cannot be read: {error.strerror or error}") from error
    if not same or (_inode(again), again.st_mtime_ns) != (_inode(facts), facts.st_mtime_ns):
        raise ImageError(f"{name} has changed since the plan was made")
    return facts


def content_hash(file: BufferedReader) -> str:
    """Return blake2b-128 of an open file, as an index and a plan have it."""
    return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _inode(facts: os.stat_result) -> Inode:
    return facts.st_dev, facts.st_ino


def _inodes(groups: Sequence[PlannedGroup]) -> Iterator[tuple[Inode, int]]:
    """Yield what each keeper is, and the number of its group."""
    for group in groups:
        with suppress(OSError):  # a keeper that is gone keeps its own group from going
            yield _inode(group.keep.path.stat()), group.number


def _roots(plan: DedupPlan) -> tuple[Path, ...]:
    """Return the folders that the index of a plan scans; none when the index is gone."""
    try:
        return read_facts(Path(plan.index)).roots
    except StoreError:
        return ()


def _load_trash() -> Callable[[bytes], None]:
    try:
        from send2trash import send2trash
    except ImportError as error:
        raise DependencyError(
            "the bin of the desktop needs the package send2trash", hint="pip install 'dinov2kit[trash]'"
        ) from error
    binned: Callable[[bytes], None] = send2trash
    return binned
