"""Small plans of deduplication over real files: contents are made up, no picture is needed."""

import hashlib
import os
from pathlib import Path

from dinov2kit.indexes.dedup_plan import DedupPlan, PlannedFile, PlannedGroup, Removal

MTIME = 1_600_000_000_123_456_789  # no double holds it


def write(path: Path, content: bytes, *, mtime_ns: int = MTIME, mode: int = 0o644) -> Path:
    """Write a file with a known time and known permissions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
    os.utime(path, ns=(mtime_ns, mtime_ns))
    return path


def planned(path: Path) -> PlannedFile:
    """Return a file as it is now, for a plan."""
    facts = path.stat()
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    return PlannedFile(path, digest, facts.st_size, facts.st_mtime_ns, 640, 480)


def group(number: int, keep: Path, *remove: Path) -> PlannedGroup:
    """Return a group of files that exist."""
    removals = tuple(Removal(planned(path), 0.99, "phash 2, pixels 0.98") for path in remove)
    return PlannedGroup(number, planned(keep), removals, reason="640x480 > 320x240", min_score=0.99)


def plan_of(*groups: PlannedGroup, index: Path | str = "/nowhere") -> DedupPlan:
    """Return a plan; its index need not exist."""
    return DedupPlan(str(index), "tiny", {"threshold": 0.96}, groups)


def look(folder: Path) -> dict[bytes, tuple[bytes, int, int]]:
    """Return path below a folder -> (content, mtime_ns, mode) of every file in it; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_dir() or path.is_symlink():
            facts = path.lstat()
            content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
            found[os.fsencode(path.relative_to(folder))] = (content, facts.st_mtime_ns, facts.st_mode)
    return found
