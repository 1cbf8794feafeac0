"""What holds for every command: help, example, documentation, quick start, exit codes."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dinov2kit.cli import console
from dinov2kit.cli.app import app

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAVY = ("torch", "faiss", "cv2", "numpy", "h5py", "PIL", "transformers")


def walk(command: object, words: tuple[str, ...] = ()) -> dict[str, object]:
    """Return the commands of a tree by their words; groups that only hold others are left out."""
    if not hasattr(command, "commands"):
        return {" ".join(words): command}
    found = {" ".join(words): command} if command.invoke_without_command else {}
    for name, below in command.commands.items():
        found |= walk(below, (*words, name))
    return found


COMMANDS = walk(typer.main.get_command(app))


def options_of(command: object) -> set[str]:
    return {name for option in command.params for name in (*option.opts, *option.secondary_opts)} | {"--help"}


def section(name: str) -> str:
    """Return what docs/cli.md says of a command."""
    found = re.search(
        rf"^## dinokit {re.escape(name)}\n(.*?)(?=^##? |\Z)", PAGE.read_text("utf-8"), re.M | re.S
    )
    assert found, f"docs/cli.md has no section '## dinokit {name}'"
    return found[1]


def parse(line: str) -> None:
    """Parse a command line as the shell would hand it over; raise where dinokit would refuse it."""
    plain = re.split(r"\s(?:>|\||&&|#)", line)[0]
    words = shlex.split(plain)
    assert words[0] == "dinokit"
    command = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        if command.invoke_without_command and (not rest or rest[0].startswith("-")):
            break  # the group is a command itself
        assert rest, f"{line!r} names no command"
        assert rest[0] in command.commands, f"{line!r}: there is no command {rest[0]!r}"
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(" ".join(words), list(rest))


def test_the_commands_are_found() -> None:
    assert {"index", "search", "match", "embed", "info", "doctor", "models pull"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_shows_an_example_that_parses(name: str) -> None:
    examples = re.findall(r"Example: (dinokit .*)", str(COMMANDS[name].help))
    assert len(examples) == 1
    assert examples[0].startswith(f"dinokit {name} ") or examples[0] == f"dinokit {name}"
    parse(examples[0])


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_complete(name: str) -> None:
    command = COMMANDS[name]
    for option in command.params:
        assert getattr(option, "help", None), f"{name}: {option.name} has no help"
        assert str(option.help).endswith((".", ")")), f"{name}: the help of {option.name} is no sentence"
    result = CliRunner().invoke(app, [*name.split(), "--help"])
    assert result.exit_code == 0
    assert "Example: dinokit" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_section_whose_examples_parse(name: str) -> None:
    said = section(name)
    lines = [
        line
        for block in re.findall(r"^```bash.*?\n(.*?)^```", said, re.M | re.S)
        for line in block.splitlines()
        if line.startswith("dinokit ")
    ]
    assert any(line.startswith(f"dinokit {name}") for line in lines)
    for line in lines:
        parse(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_section_speaks_of_options_that_exist(name: str) -> None:
    prose = re.sub(r"^```.*?^```", "", section(name), flags=re.M | re.S)
    spoken = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", prose))
    assert spoken <= options_of(COMMANDS[name])


def test_the_page_has_no_section_of_a_command_that_is_gone() -> None:
    sections = re.findall(r"^## dinokit (.*)$", PAGE.read_text("utf-8"), re.M)
    assert sorted(sections) == sorted(COMMANDS)


def test_the_page_has_the_exit_codes_of_the_program() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE.read_text("utf-8"), re.M)}
    known = ("DONE", "FAILURE", "USAGE", "INPUT", "WEIGHTS", "DEVICE", "INDEX", "INTERRUPTED")
    assert table == {getattr(console, name) for name in known} == {0, 1, 2, 3, 4, 5, 6, 130}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["serach"], 2),
        (["search"], 2),
        (["search", "a.jpg", "--no-such-option"], 2),
        (["models", "pull"], 2),
        (["match", "a.jpg"], 2),
        (["match", "no.jpg", "no.jpg", "--no-draw", "--model", "untrained:vitt14"], 3),
        (["embed", "no.jpg", "--out", "x.h5"], 3),
        (["models", "info", "no-such-model"], 4),
        (["match", "a.jpg", "b.jpg", "--no-draw", "--device", "cuda:99", "--model", "untrained:vitt14"], 5),
        (["info", "-i", "nowhere"], 6),
        (["verify", "-i", "nowhere"], 6),
    ],
)
def test_exit_codes(arguments: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINOKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DINOKIT_OFFLINE", "1")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    if code:
        assert result.stdout == ""
        assert "Traceback" not in result.stderr


def test_every_schema_that_is_printed_is_documented_and_no_other() -> None:
    room = Path(str(console.__file__)).parent
    sources = "".join(path.read_text("utf-8") for path in room.glob("*.py"))
    printed = {f"dinokit.{name}" for name in re.findall(r'emit_json\(\s*"([\w/-]+)"', sources)}
    printed |= set(re.findall(r'"schema": "(dinokit\.[\w/-]+)"', sources))
    table = (PAGE.parent / "formats.md").read_text("utf-8")
    assert set(re.findall(r"^\| `(dinokit\.[\w/-]+)` \|", table, re.M)) == printed


def test_a_misspelt_command_is_answered_with_the_right_one() -> None:
    assert "search" in CliRunner().invoke(app, ["serach"]).stderr


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["--version"], ["models", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from dinov2kit.cli import main\n"
        f"sys.argv = ['dinokit', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stderr.strip() == "[]"
    assert run.stdout


def test_help_takes_little_time() -> None:
    def cpu_seconds() -> float:
        process = subprocess.Popen(
            [sys.executable, "-m", "dinov2kit.cli", "--help"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        process.communicate()
        return usage().ru_utime + usage().ru_stime

    import resource

    def usage() -> resource.struct_rusage:
        return resource.getrusage(resource.RUSAGE_CHILDREN)

    before = usage().ru_utime + usage().ru_stime
    times = []
    for _ in range(5):
        after = cpu_seconds()
        times.append(after - before)
        before = after
    assert min(times) < 0.6


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m dinov2kit.cli models list | true"
    env = {**os.environ, "DINOKIT_HOME": str(tmp_path)}
    run = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=env, check=False)
    assert "Traceback" not in run.stderr
