"""The plan of a deduplication: written, edited by hand and by programs, read again, refused where wrong."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_plan import MTIME, plan_of

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.indexes.dedup_plan import (
    SCHEMA,
    DedupPlan,
    PlannedFile,
    PlannedGroup,
    Removal,
    path_facts,
    path_from,
    read_plan,
    write_plan,
)

BAD = os.fsdecode(b"/photos/sub/\xff\xfe \xc3\xa9.jpg")


def file(path: str, **facts: object) -> PlannedFile:
    return replace(PlannedFile(Path(path), "ab" * 16, 1000, MTIME, 640, 480), **facts)


def a_plan() -> DedupPlan:
    first = PlannedGroup(
        1,
        file("/photos/a.jpg"),
        (Removal(file("/photos/b.jpg", size=7), 0.993, "phash 2"), Removal(file(BAD), None, "same content")),
        related=(file("/photos/a.dng"),),
        reason="4032x3024 > 2016x1512",
        min_score=0.993,
    )
    return plan_of(first, PlannedGroup(2, file("/photos/c.jpg"), (Removal(file("/photos/d.jpg"), 1.0, "x"),)))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_plan(tmp_path / "plan.jsonl", a_plan())
    return tmp_path / "plan.jsonl"


def edit(path: Path, number: int, change: object) -> None:
    """Replace a line, counted from 1, by text, or by what a function makes of its object."""
    lines = path.read_text().splitlines()
    if callable(change):
        record = json.loads(lines[number - 1])
        change(record)
        lines[number - 1] = json.dumps(record)
    else:
        lines[number - 1] = str(change)
    path.write_text("\n".join(lines) + "\n")


def test_a_plan_is_read_as_it_was_written(written):
    assert read_plan(written) == a_plan()
    assert read_plan(written).reclaimable == 7 + 1000 + 1000
    assert written.read_bytes().isascii()


def test_a_line_is_as_documented(written):
    header, first, _ = (json.loads(line) for line in written.read_text().splitlines())
    assert header == {"schema": SCHEMA, "index": "/nowhere", "model": "tiny", "settings": {"threshold": 0.96}}
    assert list(first) == ["group", "keep", "remove", "related", "reason", "min_score"]
    assert first["remove"][0] == {
        "path": "/photos/b.jpg", "hash": "ab" * 16, "size": 7, "mtime_ns": MTIME, "width": 640, "height": 480,
        "score": 0.993, "check": "phash 2",
    }  # fmt: skip
    assert first["remove"][1]["path"] == "/photos/sub/\\xff\\xfe é.jpg"
    assert first["remove"][1]["path_bytes"] == os.fsencode(BAD).hex()


def test_an_existing_file_is_kept_unless_told_otherwise(written):
    before = written.read_bytes()
    with pytest.raises(ArgumentError, match="exists"):
        write_plan(written, plan_of())
    assert written.read_bytes() == before
    write_plan(written, plan_of(), overwrite=True)
    assert read_plan(written) == plan_of()


@given(st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw and b".." not in raw))
def test_any_path_survives(raw):
    path = Path(os.fsdecode(b"/" + raw))
    assert path_from(json.loads(json.dumps(path_facts(path)))) == path


def test_a_path_that_only_looks_escaped_is_text():
    path = Path("/photos/\\xff.jpg")
    assert path_facts(path) == {"path": "/photos/\\xff.jpg"}
    assert path_from(path_facts(path)) == path


def test_edits_by_hand_are_taken(written):
    edit(written, 2, lambda record: record["remove"].pop(0))
    edit(written, 3, lambda record: record.update(remove=[], note="keep both", reason=""))
    written.write_text(written.read_text().replace("\n", "\n\n"))
    plan = read_plan(written)
    assert [removal.file.path for removal in plan.groups[0].remove] == [Path(BAD)]
    assert plan.groups[1].remove == ()


def test_related_files_and_reasons_may_be_left_out(written):
    edit(written, 2, lambda record: [record.pop(key) for key in ("related", "reason", "min_score")])
    (group, _) = read_plan(written).groups
    assert (group.related, group.reason, group.min_score) == ((), "", None)


def test_a_program_that_knows_doubles_only_can_edit_a_plan(written):
    """As older versions of jq do: long numbers are rounded, bytes that are no UTF-8 become U+FFFD."""
    lines = [json.loads(line, parse_int=float) for line in written.read_text().splitlines()]
    written.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = read_plan(written)
    assert plan.groups[0].remove[1].file.path == Path(BAD)
    assert plan.groups[0].keep.mtime_ns == pytest.approx(MTIME, abs=300)
    assert isinstance(plan.groups[0].keep.size, int)


def test_jq_can_edit_a_plan(written):
    try:
        program = "if .group == 1 then .remove |= map(select(.score == null)) else . end"
        done = subprocess.run(["jq", "-c", program, written], capture_output=True, check=True)
    except FileNotFoundError:
        pytest.skip("jq is not installed")
    written.write_bytes(done.stdout)
    assert [removal.file.path for removal in read_plan(written).groups[0].remove] == [Path(BAD)]


@pytest.mark.parametrize(
    ("number", "change", "said"),
    [
        (3, "{broken", r"line 3 of .*plan\.jsonl is no JSON"),
        (3, "{", r"line 3 .* is no JSON"),
        (3, "7", r"line 3 .* is 7; wanted an object"),
        (2, lambda line: line.pop("keep"), "line 2 .*: keep is missing; wanted an object"),
        (2, lambda line: line.update(keep=[]), r"line 2 .*: keep is \[\]; wanted an object"),
        (2, lambda line: line.pop("remove"), "line 2 .*: remove is missing; wanted a list of objects"),
        (2, lambda line: line.update(remove=["b.jpg"]), r'remove is \["b.jpg"\]; wanted a list of objects'),
        (2, lambda line: line.update(group=True), "group is true; wanted a whole number"),
        (2, lambda line: line.update(group=1.5), "group is 1.5; wanted a whole number, 0 or more"),
        (2, lambda line: line["keep"].pop("hash"), "line 2 .*: keep: hash is missing; wanted a text"),
        (2, lambda line: line["keep"].update(hash="AB"), "keep: hash is 'AB'; wanted 32 hexadecimal digits"),
        (2, lambda line: line["keep"].update(size=-1), "keep: size is -1; wanted a whole number"),
        (2, lambda line: line["keep"].update(path=5), "keep: path is 5; wanted a text"),
        (2, lambda line: line["keep"].update(path="a.jpg"), "path is 'a.jpg'; wanted an absolute path"),
        (2, lambda line: line["keep"].update(path="/a/../b"), r"wanted an absolute path without \.\."),
        (2, lambda line: line["remove"][1].update(path="/x.jpg"), r"\[1\]: path is '/x.jpg' and path_bytes"),
        (2, lambda line: line["remove"][1].update(path_bytes="zz"), r"remove\[1\]: .*non-hexadecimal"),
        (2, lambda line: line["remove"][0].update(score="high"), r'\[0\]: score is "high"; wanted a number'),
        (2, lambda line: line["remove"][0].pop("check"), r"remove\[0\]: check is missing; wanted a text"),
        (1, lambda line: line.pop("index"), "line 1 .*: index is missing; wanted a text"),
        (1, lambda line: line.update(settings=3), "line 1 .*: settings is 3; wanted an object"),
    ],
)
def test_a_wrong_line_is_named_with_what_was_wanted(written, number, change, said):
    edit(written, number, change)
    with pytest.raises(ArgumentError, match=said):
        read_plan(written)


@pytest.mark.parametrize("number", ["1e999", "NaN", "-Infinity"])
def test_numbers_that_are_none_are_refused(written, number):
    written.write_text(written.read_text().replace('"size": 7', f'"size": {number}'))
    with pytest.raises(ArgumentError, match=r"remove\[0\]: size is .*; wanted a whole number"):
        read_plan(written)


def test_other_schemas_are_refused(written, tmp_path):
    edit(written, 1, lambda line: line.update(schema="dinokit.dedup-plan/2"))
    with pytest.raises(
        ArgumentError, match=r"has schema dinokit\.dedup-plan/2; this version reads"
    ) as caught:
        read_plan(written)
    assert "upgrade" in str(caught.value.hint)
    edit(written, 1, lambda line: line.update(schema="dinokit.match/1"))
    with pytest.raises(ArgumentError, match=r"schema is dinokit\.match/1; wanted dinokit\.dedup-plan/1"):
        read_plan(written)
    written.write_text(written.read_text().split("\n", 1)[1])
    with pytest.raises(ArgumentError, match="schema is missing"):
        read_plan(written)
    written.write_text("\n")
    with pytest.raises(ArgumentError, match="is empty"):
        read_plan(written)
    with pytest.raises(ImageError, match=r"cannot read the plan .*No such file"):
        read_plan(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda line: line["remove"].append(line["remove"][0]), "line 3 .*d.jpg is removed .* and removed"),
        (lambda line: line["remove"].append(line["keep"] | {"score": 1, "check": ""}), "c.jpg .* and kept"),
        (lambda line: line["keep"].update(path="/photos/b.jpg"), "b.jpg is kept in group 2 and removed"),
        (lambda line: line["remove"][0].update(path="/photos/a.jpg"), "a.jpg is removed .* and kept"),
        (lambda line: line["remove"][0].update(path="/photos//./b.jpg"), "b.jpg is removed .* and removed"),
    ],
)
def test_a_file_that_is_removed_twice_or_removed_and_kept_is_refused(written, change, said):
    edit(written, 3, change)
    with pytest.raises(ArgumentError, match=said):
        read_plan(written)


def test_one_file_may_keep_two_groups(written):
    edit(written, 3, lambda line: line["keep"].update(path="/photos/a.jpg"))
    assert {group.keep.path for group in read_plan(written).groups} == {Path("/photos/a.jpg")}
