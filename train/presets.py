"""Presets: settings that go together, as YAML files in `presets/`, each with its source in a comment."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from dinov2kit.errors import ArgumentError

from .settings import check_names, setting_names
from .train_config import TrainConfig
from .written import Written, read_yaml_file

_FOLDER = Path(__file__).with_name("presets")


@dataclass(frozen=True)
class Preset:
    """Settings that go together.

    Attributes:
        name: as `preset=NAME` takes it.
        summary: for whom, in a line.
        settings: what it sets, by dotted name.
    """

    name: str
    summary: str
    settings: dict[str, Written]

    def value(self, key: str) -> object:
        """Return what it says of a setting; None if nothing."""
        return self.settings[key].readings[0] if key in self.settings else None


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def list_presets() -> list[Preset]:
    """Return all presets, sorted by name."""
    return [read_preset(name) for name in preset_names()]


def read_preset(name: str) -> Preset:
    """Return a preset.

    Raises:
        ArgumentError: there is none of that name.
    """
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"presets are {', '.join(names)}"
        raise ArgumentError(f"unknown preset {name!r}", hint=hint)
    path = _FOLDER / f"{name}.yaml"
    settings = read_yaml_file(path, f"preset {name}")
    check_names(settings, setting_names(TrainConfig))
    first = path.read_text("utf-8").partition("\n")[0]
    return Preset(name, first.removeprefix("#").strip(), settings)
