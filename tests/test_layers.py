"""The house: which room may import which, by which door, and how long its files and functions are."""

import ast
import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "dinov2kit": set(),
    "indexes": {"dinov2kit"},
    "train": {"dinov2kit"},
    "cli": {"dinov2kit", "indexes", "train"},
}
MOST_LINES, MOST_IN_FUNCTION, MOST_IN_TRAINING_LOOP = 350, 60, 120
VAGUE = {"utils", "util", "common", "misc", "helpers", "helper", "tools", "manager", "managers", "base"}
HIDDEN_STANDARD = {"ssl", "random", "types", "io", "json", "logging", "platform", "queue", "copy", "time"}


def folder(room: str) -> Path:
    """Return where a room lies, in a checkout or installed."""
    name = "dinov2kit" if room == "dinov2kit" else f"dinov2kit.{room}"
    return Path(str(importlib.import_module(name).__file__)).parent


def files(*rooms: str) -> list[Path]:
    return [path for room in rooms for path in sorted(folder(room).glob("*.py"))]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            bare = base in ("dinov2kit", "..")
            names = [f"{base}.{alias.name}" for alias in node.names] if bare else [base]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names)


def violations(path: Path, room: str) -> Iterator[str]:
    for line, name in imports(path):
        head, *rest = name.split(".")
        where = f"{path.name}:{line}: {name}"
        if name.startswith(".."):
            yield f"{where} climbs out of its room"
        elif head != "dinov2kit" and head in MAY_IMPORT:
            yield f"{where} lacks the dinov2kit. prefix"
        elif head == "dinov2kit" and rest and rest[0] in MAY_IMPORT:
            if rest[0] not in MAY_IMPORT[room]:
                yield f"{where} is not below {room}"
            elif len(rest) > 1:
                yield f"{where} goes past the door"


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function from its first statement on: neither signature nor docstring."""
    body = function.body
    first = body[1:] if ast.get_docstring(function) is not None else body
    return (function.end_lineno or 0) - first[0].lineno + 1 if first else 0


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it_and_by_its_door(room: str) -> None:
    found = [said for path in files(room) for said in violations(path, room)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "line", "complaint"),
    [
        ("dinov2kit", "from dinov2kit.indexes import Index", "is not below"),
        ("dinov2kit", "from dinov2kit import cli", "is not below"),
        ("indexes", "import dinov2kit.train", "is not below"),
        ("indexes", "from train import fit", "lacks the dinov2kit. prefix"),
        ("cli", "from dinov2kit.indexes.store import Store", "goes past the door"),
        ("cli", "from ..indexes import Index", "climbs out"),
        ("cli", "from .. import indexes", "climbs out"),
        ("train", "def late():\n    from dinov2kit.cli import app", "is not below"),
    ],
)
def test_planted_violations_are_caught(room: str, line: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(line)
    (said,) = violations(tmp_path / "planted.py", room)
    assert complaint in said


def test_allowed_imports_pass(tmp_path: Path) -> None:
    lines = (
        "from dinov2kit.errors import KitError\nfrom dinov2kit.indexes import Index\nfrom . import console"
    )
    (tmp_path / "planted.py").write_text(lines)
    assert not list(violations(tmp_path / "planted.py", "cli"))


def test_files_are_short_and_named_for_what_they_hold() -> None:
    examples = list((ROOT / "examples").glob("*.py"))
    paths = [*files(*MAY_IMPORT), *examples]
    assert len(paths) > 40
    long = [
        f"{path.name} has {count} lines"
        for path in paths
        if (count := len(path.read_text("utf-8").splitlines())) > MOST_LINES
    ]
    assert not long, "\n".join(long)
    vague = [str(path) for path in paths if path.stem in VAGUE | HIDDEN_STANDARD]
    assert not vague, "\n".join(vague)


def test_functions_are_short() -> None:
    training = set(files("train"))
    long = []
    for path in [*files(*MAY_IMPORT), *(ROOT / "examples").glob("*.py")]:
        most = MOST_IN_TRAINING_LOOP if path in training else MOST_IN_FUNCTION
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_length(node) > most:
                long.append(f"{path.name}:{node.lineno}: {node.name} has {body_length(node)} lines")
    assert not long, "\n".join(long)


def test_the_library_neither_prints_nor_exits() -> None:
    found = []
    for path in files("dinov2kit", "indexes", "train"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "exit", "sys.exit", "quit"):
                found.append(f"{path.name}:{node.lineno}: {called}")
    assert not found, "\n".join(found)


def test_rooms_are_flat_and_every_room_is_shipped() -> None:
    for room in MAY_IMPORT:
        inside = {path.parent.name for path in folder(room).glob("*/__init__.py")}
        assert inside <= (set(MAY_IMPORT) if room == "dinov2kit" else set())
    settings = next(
        path for path in (ROOT / "pyproject.toml", ROOT / "pytest-settings.toml") if path.exists()
    )
    tool = tomllib.loads(settings.read_text("utf-8"))["tool"]["setuptools"]
    names = {"dinov2kit", *(f"dinov2kit.{room}" for room in MAY_IMPORT if room != "dinov2kit")}
    assert set(tool["packages"]) == set(tool["package-dir"]) == names
    assert set(tool["package-dir"].values()) == set(MAY_IMPORT)
