"""Everything that README.md and docs/ tell to run does run, and what they link to is there.

Fences: ```bash and ```python run, in the order of the page, in one folder that holds `photos`; ```console and
```text are only shown; "```bash no-run: reason" is for what needs a network, a GPU or another environment.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

import dinov2kit

ROOT = Path(__file__).parent.parent
PACKAGE = Path(dinov2kit.__file__).parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN, SHOWN = {"bash", "python"}, {"console", "text", "json", "sql"}


@dataclass(frozen=True)
class Block:
    """A fenced block: the language and what follows it, the first line of its code, and the code."""

    language: str
    note: str
    line: int
    code: str


def blocks(text: str) -> list[Block]:
    found, fence, start, kept = [], None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        if fence is None and line.startswith("```"):
            fence, start, kept = line[3:].strip(), number + 1, []
        elif line.rstrip() == "```":
            language, _, note = str(fence).partition(" ")
            found.append(Block(language, note.strip(), start, "\n".join(kept)))
            fence = None
        elif fence is not None:
            kept.append(line)
    assert fence is None, f"the fence before line {start} is never closed"
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a few photos, as the pages suppose it."""
    photos = tmp_path / "photos"
    photos.mkdir()
    cat = Image.fromarray(data.chelsea())
    cat.resize((225, 150)).save(photos / "cat.jpg")
    cat.crop((60, 20, 400, 280)).resize((170, 130)).save(photos / "cat2.jpg")
    Image.fromarray(data.coffee()).resize((150, 100)).save(photos / "coffee.jpg")
    Image.fromarray(data.rocket()).resize((160, 107)).save(photos / "rocket.jpg")
    Image.fromarray(data.astronaut()).resize((128, 128)).save(photos / "astronaut.png")
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DINOKIT_")}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "DINOKIT_HOME": str(folder / ".home"),
        "DINOKIT_MODEL": "untrained:vitt14",
        "DINOKIT_OFFLINE": "1",
    }


def run(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    shell = ["bash", "-euo", "pipefail", "-c", block.code]
    command = shell if block.language == "bash" else [sys.executable, "-c", block.code]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=environment(folder), check=False
    )


def test_there_is_a_readme_that_runs_something_in_both_languages() -> None:
    assert (ROOT / "README.md").is_file()
    run_here = [block for block in blocks(PAGES[0].read_text("utf-8")) if not block.note]
    assert {block.language for block in run_here} >= RUN
    assert {"cli.md", "formats.md"} <= {page.name for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        assert block.language in RUN | SHOWN, f"{page.name}:{block.line}: a fence of {block.language!r}"
        if block.note:
            reason = re.fullmatch(r"no-run:? (.{10,})", block.note)
            assert reason, f"{page.name}:{block.line}: wanted no-run and a reason, got {block.note!r}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_that_is_meant_to_run_runs(page: Path, folder: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        if block.language in RUN and not block.note:
            result = run(block, folder)
            said = f"{page.name}:{block.line} ended with {result.returncode}:\n{block.code}\n{result.stderr}"
            assert result.returncode == 0, said
            assert "Traceback" not in result.stderr, said


def aim_of(page: Path, path: str) -> Path:
    """Return the file that a link leads to; one into the package lies where that is installed."""
    aim = (page.parent / path).resolve()
    inside = ROOT.resolve() / "dinov2kit"
    return PACKAGE / aim.relative_to(inside) if aim.is_relative_to(inside) else aim


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        aim = page if not path else aim_of(page, path)
        assert aim.exists(), f"{page.name} links to {target}, which is not there"
        if heading and aim.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", aim.read_text("utf-8"), re.M)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{page.name} links to the heading {target}, which is not there"


def test_a_failing_block_is_noticed(folder: Path) -> None:
    (bash, python) = blocks("```bash\nfalse | cat\n```\ntext\n```python\nraise SystemExit(3)\n```\n")
    assert (bash.line, python.line) == (2, 6)
    assert run(bash, folder).returncode == 1
    assert run(python, folder).returncode == 3
