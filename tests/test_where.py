"""Filters in SQL: every column and function against Python, and nothing else gets through."""

import hashlib
import re
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from small_index import MODEL, ROOT, Shot, content, contents, direction, make_index, put, stat

from dinov2kit import ArgumentError
from dinov2kit.indexes import where
from dinov2kit.indexes.layout import Layout, read_card
from dinov2kit.indexes.manifest import open_for_reading
from dinov2kit.indexes.records import FileStat
from dinov2kit.indexes.snapshot import Snapshot
from dinov2kit.indexes.store import Store
from dinov2kit.indexes.where import COLUMNS, add_view, select_ids

NAMES = [
    "1.jpg", "2020/Beach.JPG", "2020/deep/a.b.c.png", ".hidden", ".dot.webp", "v1.2/noext", "v1.2/ends.",
    'o\'brien "x" ; -- .jpg', "%_[x]*.jpg", "café/É.jpeg", "2021/with space.TIFF", "..jpg", "🙂/🙂.gif",
]  # fmt: skip
UNDECODABLE = [b"\xff\xfe.jpg", b"caf\xe9/\xabx.jpg", b"a\xc3/\xa9.p\xff", b"\x80\x81/\x80.gif"]


def facts(number: int) -> dict[str, object]:
    """Return what Python says of an item, by column."""
    relpath = [name.encode() for name in NAMES] + UNDECODABLE
    path = relpath[number - 1]
    name = path.rsplit(b"/", 1)[-1]
    stem, dot, ending = name.rpartition(b".")
    when = datetime.fromtimestamp(mtime(number) // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return {
        "id": number, "path": path, "name": name, "ext": ending.lower() if stem and dot else b"",
        "width": 100 * number, "height": 3000 - 100 * number, "bytes": 5000 * number,
        "taken_at": taken_at(number), "modified": when, "orientation": 1 + number % 8,
    }  # fmt: skip


def mtime(number: int) -> int:
    return 1_500_000_000_123_456_789 + number * 86_400_000_000_000 * 40


def taken_at(number: int) -> str | None:
    return f"20{number:02}-0{1 + number % 9}-1{number % 10}T0{number % 10}:30:00" if number % 4 else None


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("where") / "ix"
    Store.create(path, MODEL)
    with Store.open(path) as store:
        for number in range(1, 1 + len(NAMES) + len(UNDECODABLE)):
            said = facts(number)
            shot = Shot(
                direction(number), said["width"], said["height"], said["orientation"], said["taken_at"]
            )
            known = FileStat(said["bytes"], mtime(number), number)
            store.put(store.root_id(ROOT), said["path"], known, content(number), shot)
        store.put_error(store.root_id(ROOT), b"broken.jpg", stat(), None, "broken")
        store.commit()
    return path


ALL = range(1, 1 + len(NAMES) + len(UNDECODABLE))


def chosen(directory: Path, expression: str) -> list[int]:
    with Snapshot.open(directory) as snapshot:
        return snapshot.where(expression).tolist()


@pytest.mark.parametrize("column", COLUMNS)
def test_each_column_says_what_python_says(directory, column):
    for number in ALL:
        said = facts(number)[column]
        if isinstance(said, bytes):
            said = f"CAST(x'{said.hex()}' AS TEXT)"
        elif isinstance(said, str):
            said = f"'{said}'"
        same = [other for other in ALL if facts(other)[column] == facts(number)[column]]
        assert chosen(directory, f"{column} IS {'NULL' if said is None else said}") == same


CASES = {
    "width >= 500 AND height < 2000": lambda f: f["width"] >= 500 and f["height"] < 2000,
    "abs(width - height) <= 400": lambda f: abs(f["width"] - f["height"]) <= 400,
    "coalesce(taken_at, 'never') = 'never'": lambda f: f["taken_at"] is None,
    "ifnull(taken_at, 'x') = 'x' OR id = 1": lambda f: f["taken_at"] is None or f["id"] == 1,
    "nullif(width, 300) IS NULL": lambda f: f["width"] == 300,
    "iif(id > 3, 1, 0)": lambda f: f["id"] > 3,
    "glob('2020/*', path)": lambda f: f["path"].startswith(b"2020/"),
    "path GLOB '2020/*' OR path LIKE '%.GIF'": lambda f: (
        f["path"].startswith(b"2020/") or f["path"].endswith(b".gif")
    ),
    "like('beach.%', name)": lambda f: f["name"].lower().startswith(b"beach."),
    "path LIKE '\\%\\_[x]*%' ESCAPE '\\'": lambda f: f["path"].startswith(b"%_[x]*"),
    "instr(path, '/deep/') > 0": lambda f: b"/deep/" in f["path"],
    "length(ext) = 3": lambda f: len(f["ext"].decode("latin-1")) == 3,
    "lower(name) = 'beach.jpg'": lambda f: f["name"].lower() == b"beach.jpg",
    "upper(ext) = 'TIFF'": lambda f: f["ext"].upper() == b"TIFF",
    "ltrim(path, '.') <> path": lambda f: f["path"].startswith(b"."),
    "rtrim(path, '.') <> path": lambda f: f["path"].endswith(b"."),
    "trim(name, '.') <> name": lambda f: f["name"].startswith(b".") or f["name"].endswith(b"."),
    "max(width, height) = width": lambda f: f["width"] >= f["height"],
    "min(width, height) = width": lambda f: f["width"] <= f["height"],
    "replace(path, '2020', '2019') LIKE '2019/%'": lambda f: f["path"].startswith(b"2020/"),
    "round(width / 1000.0) = 1": lambda f: 500 <= f["width"] < 1500,
    "substr(path, 1, 5) = '2020/'": lambda f: f["path"].startswith(b"2020/"),
    "substring(path, 1, 5) = '2021/'": lambda f: f["path"].startswith(b"2021/"),
    "typeof(taken_at) = 'null'": lambda f: f["taken_at"] is None,
    "typeof(path) = 'text' AND typeof(width) = 'integer'": lambda f: True,
    "date(taken_at) = '2002-03-12'": lambda f: (f["taken_at"] or "").startswith("2002-03-12"),
    "time(taken_at) = '05:30:00'": lambda f: (f["taken_at"] or "").endswith("T05:30:00"),
    "datetime(taken_at) = '2001-02-11 01:30:00'": lambda f: f["taken_at"] == "2001-02-11T01:30:00",
    "strftime('%Y', taken_at) = '2003'": lambda f: (f["taken_at"] or "").startswith("2003"),
    "julianday(modified) < julianday('2018-01-01')": lambda f: f["modified"] < "2018",
    "unixepoch(modified) % 2 = 0": lambda f: (
        datetime.fromisoformat(f["modified"] + "+00:00").timestamp() % 2 == 0
    ),
    "taken_at >= '2005' AND taken_at < '2008'": lambda f: "2005" <= (f["taken_at"] or "") < "2008",
    "CASE WHEN id < 3 THEN 1 ELSE 0 END": lambda f: f["id"] < 3,
    "id IN (1, 3, 999) OR id BETWEEN 5 AND 6": lambda f: f["id"] in (1, 3, 5, 6),
    "name = 'o''brien \"x\" ; -- .jpg'": lambda f: f["id"] == 8,
    "id = 2 -- a remark": lambda f: f["id"] == 2,
    "taken_at": lambda f: bool(f["taken_at"]),
    "NOT (ext = '' OR ext IN ('jpg', 'png'))": lambda f: f["ext"] not in (b"", b"jpg", b"png"),
}


@pytest.mark.parametrize("expression", CASES)
def test_expression_selects_what_python_selects(directory, expression):
    wanted = [number for number in ALL if CASES[expression](facts(number))]
    assert chosen(directory, expression) == wanted


def test_each_allowed_function_has_a_case():
    called = {name for expression in CASES for name in re.findall(r"(\w+)\(", expression)}
    assert called >= where._FUNCTIONS


def test_name_and_extension_of_any_bytes(tmp_path):
    """Names come from file systems that never heard of UTF-8; slashes and dots cut them all the same."""
    dice = np.random.default_rng(0)
    alphabet = [b"a", b"B", b".", b"/", b"\xe9", b"\xab", b"\xc3", b"\xa9", b"\xf0", b"'", b"%", b" "]
    names = {b"".join(dice.choice(alphabet, dice.integers(1, 9))) for _ in range(400)}
    names = {name for name in names if all(part not in (b"", b".", b"..") for part in name.split(b"/"))}
    make_index(tmp_path / "ix")
    with Store.open(tmp_path / "ix") as store:
        ids = {put(store, name, 1): name for name in sorted(names)}
        store.commit()
    assert len(ids) > 150
    with Snapshot.open(tmp_path / "ix") as snapshot:
        for item, path in ids.items():
            name = path.rsplit(b"/", 1)[-1]
            stem, _, ending = name.rpartition(b".")
            ext = ending.lower() if stem else b""
            truth = {"path": path, "name": name, "ext": ext}
            same = " AND ".join(f"{key} = CAST(x'{value.hex()}' AS TEXT)" for key, value in truth.items())
            assert snapshot.where(same).tolist() == [item], path


ENDLESS = "WITH RECURSIVE c(x) AS (VALUES(1) UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"
ATTACKS = [
    "1; DROP TABLE files", "1); DELETE FROM files; --", "1) ; ATTACH '/tmp/x.db' AS x; SELECT (1",
    "ATTACH DATABASE '/tmp/x.db' AS x", "PRAGMA writable_schema = 1", "1) ; PRAGMA journal_mode = DELETE; --",
    "1) UNION SELECT id FROM files WHERE (1", "1) UNION SELECT hash FROM files WHERE (1",
    "1) UNION ALL SELECT id FROM photos WHERE (1", "1) UNION VALUES (1", "1) EXCEPT SELECT (1",
    "id IN (SELECT id FROM files)", "id IN (SELECT rowid FROM files)", "id IN files", "id IN meta",
    "id IN (SELECT item_id FROM files)", "EXISTS (SELECT 1 FROM meta)", "(SELECT count(*) FROM roots) > 0",
    "EXISTS (SELECT * FROM sqlite_master)", "id IN (SELECT rootpage FROM sqlite_master)",
    "EXISTS (SELECT * FROM temp.sqlite_temp_master)", "EXISTS (SELECT * FROM pragma_table_info('files'))",
    "(SELECT path FROM photos LIMIT 1) = ''", "EXISTS (SELECT 1)", "id IN (SELECT 1)", "id IN (VALUES (1))",
    "id IN (WITH photos AS (SELECT id FROM files) SELECT id FROM photos)",
    "id IN (WITH photos(id) AS (SELECT rootpage FROM sqlite_master) SELECT id FROM photos)",
    "EXISTS (SELECT 1 FROM (SELECT sql FROM sqlite_master) AS photos)",
    f"id IN ({ENDLESS})", f"EXISTS ({ENDLESS})", f"1) UNION SELECT * FROM ({ENDLESS}) WHERE (1",
    "load_extension('/tmp/x.so')", "writefile('/tmp/x', 'y')", "readfile('/etc/passwd')",
    "randomblob(1000000000)",
    "zeroblob(1000000000)", "printf('%1000000000d', 1)", "hex(path)", "random() > 0", "sqlite_version() > ''",
    "count(*) > 0", "group_concat(path) > ''", "fts3_tokenizer('x')", "edit(path)", "last_insert_rowid()",
    "row_number() OVER () = 1", "relpath = ''", "root_id = 1", "files.hash IS NOT NULL", "main.files.id = 1",
    "no_such_column = 1", "file_name(path) = ''", "file_ext(path) = ''",
    "id = ?", "id = :name", "id = $x", "id = @x", "", "  \n", ")", "(",
    "1) --", "1 /*", "'", "SELECT 1", "1) LIMIT (1", "1) ORDER BY (1", "id MATCH 'x'",
    "id = 1\0 OR 1", "\0", "path REGEXP '.*'", "\udcff", "id = 1" + " AND 1" * 5000,
    "(" * 5000 + "1" + ")" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("expression", ATTACKS, ids=lambda attack: repr(attack)[:50])
def test_everything_else_is_refused_and_changes_nothing(directory, expression):
    before = state(directory)
    with Snapshot.open(directory) as snapshot:
        started = time.monotonic()
        with pytest.raises(ArgumentError, match="cannot filter by") as caught:
            snapshot.where(expression)
        assert time.monotonic() - started < 15
        assert "taken_at" in caught.value.hint  # the columns are listed
        assert snapshot.where("id <= 2").tolist() == [1, 2]  # the snapshot can be used on
        assert [photo.id for photo in snapshot.photos(np.array([2]))] == [2]
    assert state(directory) == before


def state(directory: Path) -> dict[str, str]:
    """Return name -> digest of every file of an index but SQLite's shared memory."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.endswith(("-shm", "-wal"))
    }


def test_expression_that_takes_too_long_is_stopped(directory):
    layout = Layout(directory)
    with closing(open_for_reading(layout, read_card(layout).uuid)) as db:
        add_view(db)
        long = " + ".join(["length(replace(path, 'a', name))"] * 400) + " >= 0"
        assert len(select_ids(db, long)) == len(ALL)
        with pytest.raises(ArgumentError, match="takes longer than 0 s"):
            select_ids(db, long, seconds=0.0)
        assert select_ids(db, "id = 3").tolist() == [3]  # handlers are taken off again
        assert db.execute("SELECT count(*) FROM meta").fetchone()[0] > 0


def test_expression_cannot_eat_all_memory(directory):
    """Nested replacements grow without end inside a single step, where no deadline is looked at."""
    bomb = "path || 'aaaa'"
    for _ in range(8):
        bomb = f"replace({bomb}, 'a', '{'a' * 50}')"
    started = time.monotonic()
    with pytest.raises(ArgumentError, match="too big"):
        chosen(directory, f"length({bomb}) > 0")
    assert time.monotonic() - started < 1


def test_view_and_authorizer_leave_the_index_to_others(directory):
    """The view is private to a connection: nobody else sees it, and the manifest has no trace of it."""
    assert len(contents(directory)) == len(ALL)
    with Snapshot.open(directory) as snapshot:
        snapshot.where("id > 0")
        with closing(sqlite3.connect(directory / "manifest.sqlite")) as other:
            names = {name for (name,) in other.execute("SELECT name FROM sqlite_master")}
    assert where.VIEW not in names
