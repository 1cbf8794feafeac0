"""The settings of a run in its folder: `config.yaml` to run it again, `resolved.txt` with the reasons."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from dinov2kit.files import written_whole

from .resolved import flat_settings
from .settings import check_names, fit_settings, setting_names
from .train_config import TrainConfig
from .written import read_yaml_file

CONFIG, REASONS = "config.yaml", "resolved.txt"


def write_run_config(run: Path, config: TrainConfig, reasons: Mapping[str, str]) -> None:
    """Write the settings of a run into its folder.

    Args:
        run: the folder.
        config: the settings.
        reasons: why each has its value, by dotted name.

    Raises:
        ArgumentError: the folder does not exist or cannot be written.
    """
    tree = config.model_dump(mode="json", exclude={"overwrite"})
    text = yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, allow_unicode=True, width=100)
    said = f"# All settings of this run. Again: dinokit train config={run / CONFIG} out=ANOTHER_FOLDER\n"
    with written_whole(run / CONFIG) as temporary:
        temporary.write_text(said + text, "utf-8")
    rows = [(key, in_words(value), reasons.get(key, "")) for key, value in flat_settings(config).items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{key:{widths[0]}}  {value:{widths[1]}}  {reason}".rstrip() for key, value, reason in rows]
    with written_whole(run / REASONS) as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")


def read_run_config(run: Path) -> TrainConfig:
    """Return the settings of a run.

    Raises:
        ArgumentError: its `config.yaml` is missing or makes no sense.
    """
    written = read_yaml_file(run / CONFIG)
    check_names(written, setting_names(TrainConfig))
    return fit_settings(TrainConfig, written)


def differences(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Say which settings that change what is learned differ, one sentence for each.

    Folders, devices, checkpoints and the like do not count; the length of the run does, for the schedules
    follow it.
    """
    then, today = _flat(before.learning()), _flat(now.learning())
    return [
        f"{key} was {in_words(then.get(key))}, now {in_words(value)}"
        for key, value in today.items()
        if then.get(key) != value
    ]


def in_words(value: object) -> str:
    """Return a value as it can be given: lists in brackets, null for nothing."""
    if isinstance(value, str | Path):
        return str(value)
    return json.dumps(value, default=str)


def _flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    values: dict[str, object] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            values |= _flat(value, f"{prefix}{name}.")
        else:
            values[prefix + name] = value
    return values
