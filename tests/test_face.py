"""The public face: what is promised is there, is typed and documented, and importing it has no effect."""

import ast
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FACES = ("dinov2kit", "dinov2kit.indexes", "dinov2kit.train", "dinov2kit.cli")
LAZY = ("dinov2kit", "dinov2kit.indexes")
HEAVY = {"torch", "faiss", "cv2", "numpy", "h5py", "PIL", "jaxtyping"}

WATCH = """
import json, logging, os, sys, threading, warnings
before = set(sys.modules)
handlers = list(logging.getLogger().handlers)
settings = dict(os.environ)
filters = list(warnings.filters)
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    for name in sys.argv[1:]:
        __import__(name)
ours = [name for name in logging.root.manager.loggerDict if name.startswith("dinov2kit")]
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "threads": threading.active_count(),
    "handlers": len(logging.getLogger().handlers) - len(handlers)
        + sum(len(logging.getLogger(name).handlers) for name in ours),
    "levels": [logging.getLogger(name).level for name in ours if logging.getLogger(name).level],
    "warned": [str(warning.message) for warning in warned],
    "filters": list(warnings.filters) == filters,
    "environment": dict(os.environ) == settings,
}))
"""


def source(face: ModuleType) -> ast.Module:
    return ast.parse(Path(str(face.__file__)).read_text("utf-8"))


def typed_names(face: ModuleType) -> dict[str, str]:
    """Return the names imported for type checkers, with the module that each comes from."""
    for node in source(face).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return {
                alias.name: str(line.module).rpartition(".")[2]
                for line in node.body
                if isinstance(line, ast.ImportFrom)
                for alias in line.names
            }
    raise AssertionError(f"{face.__name__} has no TYPE_CHECKING block")


@pytest.mark.parametrize("name", LAZY)
def test_the_names_promised_typed_and_loaded_are_the_same(name: str) -> None:
    face = importlib.import_module(name)
    assert face.__all__ == sorted(face.__all__)
    assert list(face._HOME) == face.__all__
    assert typed_names(face) == face._HOME


@pytest.mark.parametrize("name", FACES)
def test_every_promised_name_is_there(name: str) -> None:
    face = importlib.import_module(name)
    for public in getattr(face, "__all__", []):
        found = getattr(face, public)
        assert found is not None
        assert getattr(found, "__name__", public) == public or name == "dinov2kit.cli"


@pytest.mark.parametrize("name", LAZY)
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    face = importlib.import_module(name)
    with pytest.raises(AttributeError, match="no attribute 'Gallery'"):
        _ = face.Gallery
    with pytest.raises(ImportError):
        exec(f"from {name} import Gallery")


def test_importing_has_no_effect(tmp_path: Path) -> None:
    env = {**os.environ, "HOME": str(tmp_path), "DINOKIT_HOME": str(tmp_path / "home")}
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", WATCH, *FACES]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=True)
    seen = json.loads(run.stdout)
    assert run.stderr == ""
    assert not HEAVY & set(seen["modules"])
    assert (seen["threads"], seen["handlers"], seen["levels"], seen["warned"]) == (1, 0, [], [])
    assert seen["filters"]
    assert seen["environment"]
    assert list(tmp_path.iterdir()) == []


def test_loading_every_public_name_warns_of_nothing_and_starts_no_thread(tmp_path: Path) -> None:
    program = WATCH.replace(
        "__import__(name)",
        "[getattr(__import__(name, fromlist=['x']), n) for n in __import__(name, fromlist=['x']).__all__]",
    )
    env = {
        **os.environ,
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-c", program, *LAZY]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, check=True)
    seen = json.loads(run.stdout)
    assert {"torch", "numpy"} <= set(seen["modules"])
    assert "faiss" not in seen["modules"]
    assert (run.stderr, seen["threads"], seen["handlers"]) == ("", 1, 0)


def undocumented(path: Path) -> list[str]:
    """Return the public functions, classes and methods of a file that have no docstring."""

    def look(body: list[ast.stmt], prefix: str) -> list[str]:
        found = []
        for node in body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            if node.name.startswith("_") or "overload" in map(ast.unparse, node.decorator_list):
                continue
            if ast.get_docstring(node) is None:
                found.append(f"{path.name}:{node.lineno}: {prefix}{node.name}")
            if isinstance(node, ast.ClassDef):
                found += look(node.body, f"{prefix}{node.name}.")
        return found

    tree = ast.parse(path.read_text("utf-8"))
    missing = [] if ast.get_docstring(tree) else [f"{path.name}: the module"]
    return missing + look(tree.body, "")


def test_everything_public_has_a_docstring() -> None:
    paths = [
        path
        for name in FACES
        for path in Path(str(importlib.import_module(name).__file__)).parent.glob("*.py")
    ]
    found = [said for path in paths for said in undocumented(path)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", LAZY)
def test_public_functions_are_annotated(name: str) -> None:
    face = importlib.import_module(name)
    for public in face.__all__:
        found = getattr(face, public)
        if inspect.isfunction(found):
            signature = inspect.signature(found)
            bare = [key for key, p in signature.parameters.items() if p.annotation is inspect.Parameter.empty]
            assert not bare, f"{public}: {bare}"
            assert signature.return_annotation is not inspect.Signature.empty, public
