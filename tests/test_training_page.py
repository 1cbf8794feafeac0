"""docs/training.md names every setting of `dinokit train`, with its default and in the words of the code."""

import inspect
import re
from pathlib import Path

from pydantic import BaseModel

from dinov2kit.train.presets import list_presets
from dinov2kit.train.run_config import in_words
from dinov2kit.train.train_config import TrainConfig

PAGE = Path(__file__).parent.parent / "docs" / "training.md"


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return what the docstring of a group says of each of its settings."""
    text = inspect.cleandoc(str(model.__doc__)).partition("Attributes:\n")[2]
    found: dict[str, str] = {}
    for line in text.splitlines():
        name = re.match(r"    (\w+): (.*)", line)
        if name:
            found[name[1]] = name[2]
        elif line.strip():
            found[list(found)[-1]] += " " + line.strip()
    return found


def rows(model: type[BaseModel] = TrainConfig, prefix: str = "") -> list[str]:
    """Return the rows of the table, in the order of the code."""
    found = []
    for name, said in meanings(model).items():
        field = model.model_fields[name]
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += rows(kind, f"{prefix}{name}.")
            continue
        default = "" if field.is_required() else f"`{in_words(field.default)}`"
        found.append(f"| `{prefix}{name}` | {default} | {said.rstrip('.')} |")
    return found


def test_the_table_of_settings_is_that_of_the_code() -> None:
    table = [
        line
        for line in PAGE.read_text("utf-8").splitlines()
        if re.match(r"\| `[a-z_.0-9]+` \| (`| \|)", line)
    ]
    assert table == rows()


def test_every_preset_is_named() -> None:
    text = PAGE.read_text("utf-8")
    assert all(f"`{preset.name}`" in text for preset in list_presets())
