"""The plan of a deduplication: which file of each group stays, which may go, and why.

A plan is JSON Lines, made to be read and edited before anything happens: a header, then one group per line. A
path whose bytes are no UTF-8 is shown with escapes and stands in `path_bytes` as hexadecimal digits, because
programs such as jq cannot carry it as text.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.files import written_whole

SCHEMA = "dinokit.dedup-plan/1"
_HASH = re.compile(r"[0-9a-f]{32}")
_WANTED = {
    str: "a text", int: "a whole number", float: "a number",
    dict: "an object", list: "a list of objects",
}  # fmt: skip


@dataclass(frozen=True)
class PlannedFile:
    """A file as it was when the plan was made.

    Attributes:
        path: absolute path.
        hash: blake2b-128 of the content, 32 hexadecimal digits.
        size: bytes.
        mtime_ns: modification time.
        width: of the upright image, in pixels.
        height: of the upright image, in pixels.
    """

    path: Path
    hash: str
    size: int
    mtime_ns: int
    width: int
    height: int


@dataclass(frozen=True)
class Removal:
    """A file that may go.

    Attributes:
        file: which.
        score: cosine with the keeper; None where only the contents were compared.
        check: what says that it is a copy: "same content", "phash 2, pixels 0.98", ...
    """

    file: PlannedFile
    score: float | None
    check: str


@dataclass(frozen=True)
class PlannedGroup:
    """Copies of one photo.

    Attributes:
        number: for people to speak of it.
        keep: the file that stays.
        remove: those that may go; may be empty.
        related: files that belong to them and are left alone, such as a raw file.
        reason: why the keeper is the keeper.
        min_score: the lowest score of a removal; None without scores.
    """

    number: int
    keep: PlannedFile
    remove: tuple[Removal, ...]
    related: tuple[PlannedFile, ...] = ()
    reason: str = ""
    min_score: float | None = None


@dataclass(frozen=True)
class DedupPlan:
    """What a deduplication proposes.

    Attributes:
        index: directory of the index that was looked at.
        model: name of its model.
        settings: how the groups were found, as JSON takes it.
        groups: in the order of the file.
    """

    index: str
    model: str
    settings: dict[str, object] = field(default_factory=dict)
    groups: tuple[PlannedGroup, ...] = ()

    @property
    def reclaimable(self) -> int:
        """Bytes of all files that may go."""
        return sum(removal.file.size for group in self.groups for removal in group.remove)


def write_plan(path: Path, plan: DedupPlan, *, overwrite: bool = False) -> None:
    """Write a plan; the file is complete or not there at all.

    Raises:
        ArgumentError: the file exists, or cannot be written.
    """
    if path.exists() and not overwrite:
        raise ArgumentError(f"{path} exists", hint="name another file, or add --overwrite")
    header = {"schema": SCHEMA, "index": plan.index, "model": plan.model, "settings": plan.settings}
    with written_whole(path) as temporary, temporary.open("w", encoding="ascii") as file:
        file.write(json.dumps(header) + "\n")
        for group in plan.groups:
            file.write(json.dumps(_group_line(group)) + "\n")


def read_plan(path: Path) -> DedupPlan:
    """Read a plan, also after it was edited; blank lines and unknown keys do not matter.

    Raises:
        ImageError: the file cannot be read.
        ArgumentError: it is no plan, a newer version wrote it, a line cannot be understood, or a file is
            removed twice, or removed and kept. The message names the line, what it has and what was wanted.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ImageError(f"cannot read the plan {path}: {error.strerror or error}") from error
    header: _Line | None = None
    groups: list[PlannedGroup] = []
    uses: dict[str, tuple[int, str]] = {}
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        line = _Line.parse(path, number, raw)
        if header is None:
            header = line
            _check_header(line)
        else:
            groups.append(_read_group(line))
            _note_uses(line, groups[-1], uses)
    if header is None:
        raise ArgumentError(f"{path} is empty; wanted a plan of dinokit dedup")
    return DedupPlan(header.text("index"), header.text("model"), header.mapping("settings"), tuple(groups))


def file_facts(file: PlannedFile) -> dict[str, object]:
    """Return a file as a line of JSON has it."""
    return {
        **path_facts(file.path),
        "hash": file.hash,
        "size": file.size,
        "mtime_ns": file.mtime_ns,
        "width": file.width,
        "height": file.height,
    }


def path_facts(path: Path) -> dict[str, str]:
    """Return a path as JSON has it; its bytes beside it where they are no UTF-8."""
    raw = os.fsencode(path)
    shown = _shown(raw)
    return {"path": shown} if shown.encode() == raw else {"path": shown, "path_bytes": raw.hex()}


def path_from(record: Mapping[str, Any]) -> Path:
    """Return the path of a JSON object that `path_facts` made.

    Raises:
        ValueError: there is none, it is not absolute, or text and bytes do not agree.
    """
    shown, digits = record.get("path"), record.get("path_bytes")
    if not isinstance(shown, str) or not isinstance(digits, str | None):
        raise ValueError(f"path is {json.dumps(shown)}; wanted a text")
    raw = shown.encode("utf-8", "surrogateescape") if digits is None else bytes.fromhex(digits)
    if digits is not None and _shown(raw) != shown:
        raise ValueError(f"path is {shown!r} and path_bytes {_shown(raw)!r}; change both or none")
    if not raw.startswith(b"/") or b"\0" in raw or b".." in raw.split(b"/"):
        raise ValueError(f"path is {shown!r}; wanted an absolute path without ..")
    return Path(os.fsdecode(raw))


@dataclass(frozen=True)
class _Line:
    """An object of a line of a plan; says where it stands when something is not as it should be."""

    place: str
    record: dict[str, Any]

    @classmethod
    def parse(cls, path: Path, number: int, raw: bytes) -> _Line:
        place = f"line {number} of {path}"
        try:
            record = json.loads(raw)
        except ValueError as error:
            raise ArgumentError(
                f"{place} is no JSON: {error}", hint="write one object per line; with jq: jq -c"
            ) from error
        if not isinstance(record, dict):
            raise ArgumentError(f"{place} is {_brief(record)}; wanted an object")
        return cls(place, record)

    def _get(self, key: str, *kinds: type) -> Any:
        value = self.record.get(key)
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if not good or (isinstance(value, float) and not math.isfinite(value)):
            got = f"{key} is {_brief(value)}" if key in self.record else f"{key} is missing"
            raise ArgumentError(f"{self.place}: {got}; wanted {_WANTED[kinds[0]]}")
        return value

    def text(self, key: str) -> str:
        return str(self._get(key, str))

    def mapping(self, key: str) -> dict[str, object]:
        return dict(self._get(key, dict))

    def whole(self, key: str) -> int:
        value = self._get(key, int, float)  # some programs write large numbers as 1.6e+18
        if value < 0 or value != int(value):
            raise ArgumentError(f"{self.place}: {key} is {value}; wanted a whole number, 0 or more")
        return int(value)

    def score(self, key: str) -> float | None:
        return None if self.record.get(key) is None else float(self._get(key, float, int))

    def inner(self, key: str) -> _Line:
        return _Line(f"{self.place}: {key}", self._get(key, dict))

    def each(self, key: str) -> list[_Line]:
        records = self._get(key, list)
        if not all(isinstance(record, dict) for record in records):
            raise ArgumentError(f"{self.place}: {key} is {_brief(records)}; wanted a list of objects")
        return [_Line(f"{self.place}: {key}[{place}]", record) for place, record in enumerate(records)]

    def file(self) -> PlannedFile:
        digest = self.text("hash")
        if not _HASH.fullmatch(digest):
            raise ArgumentError(f"{self.place}: hash is {digest!r}; wanted 32 hexadecimal digits, lower case")
        try:
            path = path_from(self.record)
        except ValueError as error:
            raise ArgumentError(f"{self.place}: {error}") from error
        numbers = [self.whole(key) for key in ("size", "mtime_ns", "width", "height")]
        return PlannedFile(path, digest, *numbers)


def _check_header(line: _Line) -> None:
    schema = str(line.record.get("schema", "missing"))
    if schema == SCHEMA:
        return
    if schema.startswith(SCHEMA.partition("/")[0] + "/"):
        raise ArgumentError(
            f"{line.place}: the plan has schema {schema}; this version reads {SCHEMA}",
            hint="upgrade dinov2kit, or make the plan again: dinokit dedup",
        )
    raise ArgumentError(
        f"{line.place}: schema is {schema}; wanted {SCHEMA}",
        hint="keep the first line that dinokit dedup wrote",
    )


def _read_group(line: _Line) -> PlannedGroup:
    remove = tuple(Removal(one.file(), one.score("score"), one.text("check")) for one in line.each("remove"))
    related = tuple(one.file() for one in line.each("related")) if "related" in line.record else ()
    reason = line.text("reason") if "reason" in line.record else ""
    keep = line.inner("keep").file()
    return PlannedGroup(line.whole("group"), keep, remove, related, reason, line.score("min_score"))


def _note_uses(line: _Line, group: PlannedGroup, uses: dict[str, tuple[int, str]]) -> None:
    """Refuse a file that is removed twice, or removed and kept, in this line or with an earlier one."""
    found = [(group.keep.path, "kept")] + [(removal.file.path, "removed") for removal in group.remove]
    for path, use in found:
        name = os.path.normpath(path)
        if name in uses and "removed" in (use, uses[name][1]):
            number, earlier = uses[name]
            raise ArgumentError(
                f"{line.place}: {_shown(os.fsencode(path))} is {use} in group {group.number}"
                f" and {earlier} in group {number}",
                hint="a file is removed once, and not kept elsewhere; take it out of one of the two",
            )
        uses[name] = group.number, use


def _group_line(group: PlannedGroup) -> dict[str, object]:
    return {
        "group": group.number,
        "keep": file_facts(group.keep),
        "remove": [{**file_facts(one.file), "score": one.score, "check": one.check} for one in group.remove],
        "related": [file_facts(file) for file in group.related],
        "reason": group.reason,
        "min_score": group.min_score,
    }


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
