"""`undo_run`: what an `apply` removed comes back: bytes, modification time, permissions and place.

Nothing that stands in the way is touched. A run that crashed in the middle is undone as far as it came, and
undoing twice changes nothing.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dinov2kit.errors import ImageError

from .dedup_apply import content_hash, link_name
from .dedup_log import Deed, RunLog, one_at_a_time, open_run
from .dedup_plan import path_facts
from .layout import sync_folder
from .quarantine import clear_away, move_file
from .records import Watch

Fate = Literal["restored", "in place", "refused"]


@dataclass(frozen=True)
class Restored:
    """What became of one file of a run.

    Attributes:
        path: the file.
        size: bytes.
        fate: it was brought back; it was there already; or it could not be brought back.
        reason: why not; None otherwise.
    """

    path: Path
    size: int
    fate: Fate
    reason: str | None = None


@dataclass(frozen=True)
class UndoReport:
    """What `undo_run` did.

    Attributes:
        run: the run that was undone.
        action: what had happened to the files.
        files: one for each file of the run, in its order; fewer when interrupted.
        interrupted: whether it was stopped before the end.
    """

    run: str
    action: str
    files: tuple[Restored, ...]
    interrupted: bool = False

    def count(self, fate: str) -> int:
        """Return how many files met a fate."""
        return sum(file.fate == fate for file in self.files)

    def to_json(self) -> dict[str, object]:
        """Return the report as `json.dumps` takes it."""
        files = [{**path_facts(file.path), "fate": file.fate, "reason": file.reason} for file in self.files]
        return {
            "run": self.run,
            "action": self.action,
            "restored": self.count("restored"),
            "in_place": self.count("in place"),
            "refused": self.count("refused"),
            "interrupted": self.interrupted,
            "files": files,
        }


def undo_run(
    run: str | None = None, *, watch: Watch | None = None, stop: Callable[[], bool] | None = None
) -> UndoReport:
    """Bring back what a run removed.

    A quarantined file is moved back. In the place of a link the content of the keeper is written anew, with
    the time and the permissions that the file had.

    Args:
        run: its name; None is the latest.
        watch: called with the stage of the work.
        stop: asked between files.

    Returns: what became of each file; one that cannot be brought back does not hinder the others.

    Raises:
        ArgumentError: there is no such run, or none at all.
        StoreLocked: another apply or undo is running.
        KitError: the undo log cannot be written.
    """
    watch, stop = watch or (lambda *_: None), stop or (lambda: False)
    with one_at_a_time():
        log = open_run(run)
        files: list[Restored] = []
        for deed in list(log.deeds.values()):
            if stop():
                break
            watch("Restoring", len(files), len(log.deeds))
            files.append(_undo(log, deed))
    return UndoReport(log.run, log.action, tuple(files), interrupted=len(files) < len(log.deeds))


def _undo(log: RunLog, deed: Deed) -> Restored:
    if deed.state == "undone":
        return Restored(deed.path, deed.size, "in place")
    try:
        if log.action == "quarantine":
            fate = _move_back(deed)
        elif log.action in ("hardlink", "symlink"):
            fate = _replace_link(deed, link_name(deed.path, log.run, deed.number))
        else:
            fate = _expect(deed, log.action)
    except ImageError as error:
        reason = error.message + (f" ({error.hint})" if error.hint else "")
        return Restored(deed.path, deed.size, "refused", reason)
    except OSError as error:
        return Restored(deed.path, deed.size, "refused", error.strerror or str(error))
    log.note(deed.number, "undone")
    return Restored(deed.path, deed.size, fate)


def _move_back(deed: Deed) -> Fate:
    """Move a file out of the quarantine; or see that a crash came before it was moved."""
    place = deed.moved_to
    if place is None or not os.path.lexists(place):
        return _expect(deed, "quarantine")
    if os.path.lexists(deed.path):
        raise ImageError(f"another file is there now; the removed one is {place}")
    move_file(place, deed.path)
    clear_away(place)
    return "restored"


def _expect(deed: Deed, action: str) -> Fate:
    """See that a file is there as it was; here nothing can be brought back.

    Raises:
        ImageError: it is not.
    """
    missing = {
        "quarantine": f"it is no longer in the quarantine, where it was {deed.moved_to}",
        "trash": "it is in the bin of the desktop, and can be brought back there",
    }.get(action, "it was deleted for good")
    if not os.path.lexists(deed.path):
        raise ImageError(missing)
    if _hash(deed.path) != deed.hash:
        raise ImageError(f"another file is there now; {missing}")
    return "in place"


def _replace_link(deed: Deed, temporary: Path) -> Fate:
    """Write the content that a link shows as a file of its own, and rename it over the link.

    Raises:
        ImageError: something else is there, or the content is nowhere any more.
    """
    temporary.unlink(missing_ok=True)  # of a crash
    path, source = deed.path, deed.keeper
    if path.is_symlink():
        if path.readlink() != deed.keeper:
            raise ImageError("another link is there now")
    elif os.path.lexists(path):
        if _hash(path) != deed.hash:
            raise ImageError("another file is there now")
        if _stands_alone(path, deed.keeper):  # a crash came before the link
            _dress(path, deed)
            return "in place"
        source = path
    if not source.exists():
        raise ImageError(f"the keeper {source} is gone, and the file was a link to it")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, temporary)
        if _hash(temporary) != deed.hash:
            raise ImageError(f"the keeper {source} has changed, and the file was a link to it")
        _dress(temporary, deed)
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return "restored"


def _stands_alone(path: Path, keeper: Path) -> bool:
    """Say whether a file is no hard link to its keeper; of one that is gone, the other links may be left."""
    return not path.samefile(keeper) if keeper.exists() else path.stat().st_nlink == 1


def _dress(path: Path, deed: Deed) -> None:
    """Give a file the permissions and the modification time of the removed one, down to the disk."""
    with path.open("rb") as file:
        os.fchmod(file.fileno(), deed.mode)
        os.utime(file.fileno(), ns=(deed.mtime_ns, deed.mtime_ns))
        os.fsync(file.fileno())


def _hash(path: Path) -> str:
    """Return the hash of the content of a regular file, and of anything else nothing that is one."""
    if not stat.S_ISREG(path.lstat().st_mode):
        return ""
    with path.open("rb") as file:
        return content_hash(file)
