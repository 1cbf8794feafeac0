"""The error tree: as it is drawn, whole after a journey between processes, each with its exit code."""

import inspect
import pickle
import re
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import dinov2kit
from dinov2kit import errors
from dinov2kit.cli import console
from dinov2kit.cli.app import KitGroup
from dinov2kit.errors import KitError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, KitError)]
EXIT_CODES = {
    "KitError": 1,
    "ArgumentError": 2,
    "DependencyError": 1,
    "ImageError": 3,
    "WeightsError": 4,
    "DeviceError": 5,
    "DeviceMemoryError": 5,
    "MatchError": 1,
    "StoreError": 6,
    "StoreMissing": 6,
    "StoreLocked": 6,
    "StoreMismatch": 6,
    "StoreTooNew": 6,
    "StoreCorrupt": 6,
    "PruneRefused": 1,
}


def drawn_tree() -> dict[str, str]:
    """Read the tree in the docstring: name -> name of its parent."""
    above: list[tuple[int, str]] = []
    parents = {}
    for line in str(errors.__doc__).splitlines():
        found = re.match(r"([│├└─ ]*)(\w+) {2,}\S", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        while above and above[-1][0] >= depth:
            above.pop()
        parents[name] = above[-1][1] if above else "Exception"
        above.append((depth, name))
    return parents


def test_the_tree_is_as_it_is_drawn() -> None:
    def parent(kind: type) -> str:
        return next(base.__name__ for base in kind.__mro__[1:] if base in TREE or base is Exception)

    assert drawn_tree() == {kind.__name__: parent(kind) for kind in TREE}


@pytest.mark.parametrize("kind", TREE)
def test_an_error_survives_pickling_with_its_hint(kind: type[KitError]) -> None:
    for hint in (None, "drop --model"):
        copy = pickle.loads(pickle.dumps(kind("got 3, wanted 4", hint=hint)))
        assert type(copy) is kind
        assert (copy.message, copy.hint, str(copy)) == ("got 3, wanted 4", hint, "got 3, wanted 4")


@pytest.mark.parametrize("kind", TREE)
def test_an_error_has_its_exit_code(kind: type[KitError]) -> None:
    assert console.exit_code(kind("no")) == EXIT_CODES[kind.__name__]
    assert set(EXIT_CODES) == {known.__name__ for known in TREE}


@pytest.mark.parametrize("kind", TREE)
@pytest.mark.parametrize("as_json", [False, True])
def test_the_app_ends_an_error_with_one_line_a_hint_and_its_code(
    kind: type[KitError], as_json: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = typer.Typer(cls=KitGroup)
    app.callback()(lambda: None)

    @app.command()
    def fail() -> None:
        raise kind("got [3], wanted 4", hint="say 4")

    monkeypatch.setattr(sys, "argv", ["dinokit", "fail", *(["--json"] if as_json else [])])
    result = CliRunner().invoke(app, ["fail"])
    assert (result.exit_code, result.stdout) == (EXIT_CODES[kind.__name__], "")
    if as_json:
        assert f'"kind": "{kind.__name__}"' in result.stderr
        assert result.stderr.count("\n") == 1
    else:
        assert result.stderr == "error: got [3], wanted 4\n  hint: say 4\n"


def test_an_interrupt_ends_with_130() -> None:
    app = typer.Typer(cls=KitGroup)
    app.callback()(lambda: None)

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    assert CliRunner().invoke(app, ["wait"]).exit_code == 130


def test_standard_errors_are_meant_where_they_exist() -> None:
    assert issubclass(errors.ArgumentError, ValueError)
    assert issubclass(errors.DependencyError, ImportError)


def test_all_errors_are_public() -> None:
    assert {kind.__name__ for kind in TREE} <= set(dinov2kit.__all__)


def test_an_error_of_a_process_of_its_own_arrives_whole() -> None:
    program = (
        "import pickle, sys; from dinov2kit.errors import StoreLocked;"
        "sys.stdout.buffer.write(pickle.dumps(StoreLocked('pid 7 writes', hint='--wait 60')))"
    )
    sent = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    arrived = pickle.loads(sent)
    assert (type(arrived), arrived.hint) == (errors.StoreLocked, "--wait 60")
