"""What there is to index, folders or the files of a list, compared with what the index knows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

from dinov2kit.contents import Place, find_place, stat_content
from dinov2kit.errors import ImageError

from .changes import UNSCANNED, Changes, find_changes, find_owner, known_below
from .records import FileStat, Root
from .store import Store
from .walk import Walk, WalkRules, advise, is_container

Found = tuple[str, FileStat]


def survey(
    store: Store,
    folders: Sequence[Path],
    rules: WalkRules,
    *,
    listed: frozenset[Path] | None = None,
    open_unchanged: bool = False,
    retry_errors: bool = False,
    seen: Callable[[int], None] | None = None,
) -> list[Changes]:
    """Compare folders, or listed files, with the index.

    Args:
        store: the index; only read, but for the note of new roots.
        folders: absolute paths, none inside another; archives and videos count as folders.
        rules: which files count; others are neither added nor removed.
        listed: absolute paths of files, archives, videos, or what lies in these. Then nothing else is looked
            at, nothing is gone, and the folders, if any, only say where listed files may lie.
        open_unchanged: do not trust stats.
        retry_errors: open again what could not be read.
        seen: called with the number of files found so far.

    Raises:
        ImageError: none of the listed files is an image that is there.
    """
    roots = {root.path: root for root in store.roots()}
    if listed is None:
        options = {"open_unchanged": open_unchanged, "retry_errors": retry_errors}
        return [find_changes(store, roots, folder, rules, seen=seen, **options) for folder in folders]
    looked = Walk(Path("/"), rules)
    found = list(find_listed(looked, listed, folders))
    if not listed:
        return []
    if not found:
        raise nothing_listed(looked, len(listed))
    all_changes = []
    for root, files in _by_root(store, roots, folders, found):
        changes = Changes(root.path, root, Walk(root.path, rules), listed=True)
        known = known_below(store, roots, root, root.path)
        changes.known = len(known)
        start = len(os.path.join(root.path, ""))  # noqa: PTH118 - also right for "/"
        for path, stat in files:
            relpath = os.fsencode(path[start:])
            if not rules.takes(relpath):
                looked.errors.append((Path(path), "it is listed, but hidden, or left out by a glob"))
                continue
            changes.note(known, relpath, stat, trust=not open_unchanged, retry=retry_errors)
            if seen is not None and changes.found % 1000 == 0:
                seen(changes.found)
        all_changes.append(changes)
    all_changes[0].walk.errors += looked.errors
    all_changes[0].failed += looked.damaged
    all_changes[0].walk.unsupported.update(looked.unsupported)
    return all_changes


def find_listed(walk: Walk, listed: Iterable[Path], folders: Sequence[Path] = ()) -> Iterator[Found]:
    """Yield the listed images that are there with their stats, in the order of their paths.

    What is listed and is no image, not there, or not below one of the folders, is noted in the walk.

    Args:
        walk: from "/"; says which files count.
        listed: absolute paths.
        folders: if any, files elsewhere do not count.
    """
    owners = {str(folder) for folder in folders}
    within = cache(lambda folder: folder in owners or (folder != "/" and within(os.path.dirname(folder))))  # noqa: PTH120
    names = _resolved(listed)
    for path in sorted(names):
        if owners and not within(path):
            walk.errors.append((Path(path), "it is listed, but lies in none of the folders named"))
            continue
        try:
            file = Path(path)
            place = find_place(file)
            if place is None or str(place.container) not in names:  # else it comes with its archive
                yield from _look(walk, file, place)
        except (OSError, ImageError) as error:
            reason = error.message if isinstance(error, ImageError) else error.strerror or str(error)
            walk.errors.append((Path(path), f"it is listed, but: {reason}"))


def nothing_listed(walk: Walk, count: int) -> ImageError:
    """Return what is wrong when a walk found none of so many listed images."""
    reasons = [f"{path}: {reason}" for path, reason in (*walk.damaged, *walk.errors)][:3]
    kinds = [f"{number:,} {suffix}" for suffix, number in walk.unsupported.most_common(5)]
    said = "; ".join(reasons) or ", ".join(kinds) or "the list is empty"
    hint = "; ".join(advise(walk.unsupported)) or None
    return ImageError(f"none of the {count:,} listed files is an image that is there: {said}", hint=hint)


def common_folders(files: Iterable[Path]) -> list[Path]:
    """Return the folder that holds some files; where that is "/", one for each folder right below it."""
    parents = {os.path.dirname(path) for path in _resolved(files)}  # noqa: PTH120
    if not parents:
        return []
    groups: Iterable[list[str]] = [sorted(parents)]
    if os.path.commonpath(parents) == "/":
        groups = [list(group) for _, group in groupby(sorted(parents), lambda path: path.split("/")[1])]
    shared = [Path(os.path.commonpath(group)) for group in groups]
    places = [find_place(folder) for folder in shared]
    return [place.container if place else folder for place, folder in zip(places, shared, strict=True)]


def _look(walk: Walk, file: Path, place: Place | None) -> Iterator[Found]:
    """Yield what a listed file stands for: itself, or all images in an archive or a video.

    Raises:
        OSError, ImageError: it is not there.
    """
    path = str(file)
    if place is None and is_container(file):
        for name, stat in walk.inside("", file):
            yield f"{path}/{os.fsdecode(name)}", stat
        return
    if place is None and file.is_dir():
        raise ImageError("it is a folder; name it as a PATH")
    facts = FileStat(*stat_content(file))
    is_frame = place is not None and place.time is not None
    if is_frame or (walk.reads(path) and not 0 < facts.size < walk.rules.min_size):
        yield path, facts


def _by_root(
    store: Store, roots: dict[Path, Root], folders: Sequence[Path], found: list[Found]
) -> Iterator[tuple[Root, list[Found]]]:
    """Yield the roots with the files that belong to each; new ones are noted in the index.

    A folder that was not named, but holds what is listed, gets no device: later runs do not scan it unasked.
    """
    for folder in folders:
        if find_owner(roots, folder) is None:
            roots[folder] = Root(store.root_id(folder), folder, folder.stat().st_dev)
    find = cache(lambda folder: find_owner(roots, Path(folder)))
    new = [Path(path) for path, _ in found if find(os.path.dirname(path)) is None]  # noqa: PTH120
    for folder in common_folders(new):
        roots[folder] = Root(store.root_id(folder), folder, UNSCANNED)
        store.set_device(roots[folder].id, UNSCANNED)
    find.cache_clear()
    files: dict[Path, list[Found]] = {}
    for path, stat in found:
        owner = find(os.path.dirname(path))  # noqa: PTH120
        if owner is not None:
            files.setdefault(owner.path, []).append((path, stat))
    for folder, part in files.items():
        yield roots[folder], part


def _resolved(files: Iterable[Path]) -> set[str]:
    """Return paths with the links of their folders followed; a link to a file keeps its own name."""
    real = cache(os.path.realpath)
    split = (os.path.split(path) for path in files)
    return {os.path.join(real(folder), name) for folder, name in split}  # noqa: PTH118
