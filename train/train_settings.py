"""Settings of a training run from their layers: defaults, a preset, a file, then what was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from dinov2kit.errors import ArgumentError

from .presets import read_preset
from .released_config import is_released, translate_released
from .resolved import DEFAULT, GIVEN, Resolved
from .settings import check_names, fit_settings, setting_names, split_settings
from .train_config import BUDGETS, TrainConfig
from .train_rules import apply_preset, settle
from .written import Written, read_yaml_file

__all__ = ["Resolved", "given", "read_distill_settings", "read_train_settings", "settle"]

_TWINS = (("loss.prototypes", "loss.ibot_prototypes"), ("loss.bottleneck", "loss.ibot_bottleneck"))


def read_train_settings(arguments: Sequence[str]) -> Resolved:
    """Read the settings of a training run from `key=value` arguments.

    Besides the settings there are `config=FILE.yaml`, a file of settings, a run or a config of the DINOv2
    release, whose values stand below the arguments; and `gpus=N` for the latter, which counts images per GPU.

    Raises:
        ArgumentError: as for `read_settings`; or a preset or file is missing or makes no sense.
    """
    known = setting_names(TrainConfig)
    layer = split_settings(arguments, [*known, "config", "gpus"])
    file, gpus = layer.pop("config", None), layer.pop("gpus", None)
    below: dict[str, Written] = {}
    notes: tuple[str, ...] = ()
    if file is not None:
        below, notes = _read_file(Path(file.text), gpus, given_batch="batch" in layer)
    elif gpus is not None:
        raise ArgumentError(
            "gpus is known with a config of the DINOv2 release only",
            hint="the number of processes is that of torchrun or SLURM; batch counts the images of all",
        )
    preset = {**below, **layer}.get("preset")
    if preset is not None and preset.readings[0] is not None:
        below = overlay(read_preset(preset.text).settings, below)
    written = overlay(below, layer)
    config = fit_settings(TrainConfig, written)
    reasons = {name: written[name].source if name in written else DEFAULT for name in known}
    return Resolved(config, reasons, notes)


def read_distill_settings(arguments: Sequence[str]) -> list[Resolved]:
    """Read the settings of one run for each student from `key=value` arguments.

    Besides those of `read_train_settings` there are `teacher=`, which is distill.teacher, and `student=`,
    which is model. Several students, `student=[vitt14,vits14]`, learn side by side in folders of their names
    in `out`.

    Raises:
        ArgumentError: as for `read_train_settings`; or there is no teacher, or a student is named twice.
    """
    plain, students = [], list[str]()
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "student" and value:
            students += [name.strip() for name in value.strip("[] ").split(",")]
        else:
            plain.append(f"distill.{argument}" if key == "teacher" else argument)
    if len(set(students)) < len(students) or "" in students:
        raise ArgumentError(f"student is {', '.join(students)}; wanted different names")
    several = len(students) > 1
    found = []
    for student in students or [""]:
        resolved = read_train_settings([*plain, f"model={student}"] if student else plain)
        if resolved.config.distill.teacher is None:
            raise ArgumentError(
                "a student learns from a teacher, and there is none",
                hint="add teacher=, a run, a model, hf:NAME or a file of features; without: dinokit train",
            )
        if several:
            resolved = resolved.choose({"out": resolved.config.out / str(student)}, GIVEN)
        found.append(resolved)
    return found


def given(config: TrainConfig) -> Resolved:
    """Return settings made in Python with their reasons: what was set there counts as given.

    Raises:
        ArgumentError: there is no such preset, or it does not agree with what was set.
    """
    chosen = _fields_set(config)
    reasons = {name: GIVEN if name in chosen else DEFAULT for name in setting_names(TrainConfig)}
    resolved = Resolved(config, reasons)
    return (
        resolved
        if config.preset is None
        else apply_preset(resolved, config.preset, f"preset {config.preset}")
    )


def overlay(below: Mapping[str, Written], above: Mapping[str, Written]) -> dict[str, Written]:
    """Lay settings over others.

    A length of the run replaces a length of any other kind, and in a shared head the patch tokens follow what
    is said of the class tokens.
    """
    lengths = [key for key in BUDGETS if key in above and above[key].readings[0] is not None]
    merged = {key: one for key, one in below.items() if not (lengths and key in BUDGETS)}
    merged.update(above)
    shared = merged.get("loss.shared_head")
    if shared is None or shared.readings[0] is True:
        for leader, twin in _TWINS:
            if leader in above and twin not in above:
                merged[twin] = replace(above[leader], source="rule: the head is shared")
    return merged


def _read_file(
    path: Path, gpus: Written | None, *, given_batch: bool
) -> tuple[dict[str, Written], tuple[str, ...]]:
    """Read a file of settings, ours or the release's, and what should be said of it."""
    path = path / "config.yaml" if path.is_dir() else path
    written = read_yaml_file(path)
    if is_released(written):
        return translate_released(written, gpus=gpus, given_batch=given_batch)
    check_names(written, setting_names(TrainConfig))
    return written, ()


def _fields_set(model: BaseModel, prefix: str = "") -> set[str]:
    """Return the dotted names of the settings that somebody set."""
    names: set[str] = set()
    for name in model.model_fields_set:
        value = getattr(model, name)
        names |= _fields_set(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {prefix + name}
    return names
