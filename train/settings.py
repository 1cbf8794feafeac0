"""Settings as people write them, `steps=500 optim.lr=1e-3`, read into a model that knows what they are."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dinov2kit.errors import ArgumentError

from .written import Written, read_argument

Model = TypeVar("Model", bound=BaseModel)

_PLAIN = {  # what pydantic calls "a valid ...", in words for a person
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "array": 'a list such as ["a", "b"]',
    "tuple": 'a list such as ["a", "b"]',
}


def read_settings(model: type[Model], arguments: Sequence[str]) -> Model:
    """Read `key=value` arguments into a settings model.

    A key is a field, or a field of a group: `optim.lr=1e-3`. A value is true, false, null, a number, a list
    such as [.9, .99], a JSON object or string, else the text itself; where a text is wanted, `out=2024` is
    one. A whole number may be written 1e6. Nothing is converted silently: 1.5 is no whole number, and 1 is
    not true.

    Args:
        model: a pydantic model, frozen, with `extra="forbid"`; its groups are such models too.
        arguments: the settings, each given once; what is not given keeps its default.

    Raises:
        ArgumentError: an argument is no `key=value`, a key is unknown, given twice or missing, or a value is
            of another type or out of range. The message says what was got and wanted, the hint the nearest
            name.
    """
    return fit_settings(model, split_settings(arguments, setting_names(model)))


def split_settings(arguments: Sequence[str], known: Sequence[str]) -> dict[str, Written]:
    """Split `key=value` arguments.

    Raises:
        ArgumentError: an argument is no `key=value`, or a key is unknown or given twice.
    """
    written: dict[str, Written] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ArgumentError(f"{argument!r} is no setting", hint="write key=value, for instance steps=500")
        if key not in known:
            raise unknown_setting(key, known)
        if key in written:
            raise ArgumentError(f"{key} is given twice: {written[key].text!r} and {text!r}")
        written[key] = read_argument(text)
    return written


def fit_settings(model: type[Model], written: Mapping[str, Written]) -> Model:
    """Build a settings model from what was written.

    Raises:
        ArgumentError: a key is missing, or a value is of another type or out of range.
    """
    known = setting_names(model)
    turn = dict.fromkeys(written, 0)
    first: list[ErrorDetails] | None = None
    while True:
        try:
            return _validated(model, {key: one.readings[turn[key]] for key, one in written.items()})
        except ValidationError as error:
            faults = error.errors()
            first = faults if first is None else first
            refused = {_key(fault, known) for fault in faults} & written.keys()
            again = {key for key in refused if turn[key] + 1 < len(written[key].readings)}
            if not again:
                still = {_key(fault, known) for fault in faults}
                said = [fault for fault in first if _key(fault, known) in still] or faults
                raise _explain(said, written, known) from error
            turn.update({key: turn[key] + 1 for key in again})


def setting_names(model: type[BaseModel]) -> list[str]:
    """Return the name of every setting, in the order of the model; those of a group as `group.name`."""
    names: list[str] = []
    for name, facts in model.model_fields.items():
        kind = facts.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            names += [f"{name}.{inner}" for inner in setting_names(kind)]
        else:
            names.append(name)
    return names


def check_names(written: Mapping[str, Written], known: Sequence[str]) -> None:
    """Refuse a setting that is none.

    Raises:
        ArgumentError: there is one, with the nearest name as its hint.
    """
    for key, one in written.items():
        if key not in known:
            raise unknown_setting(key, known, place=one.place)


def unknown_setting(key: str, known: Sequence[str], *, place: str = "") -> ArgumentError:
    """Return the error for a key that is no setting, with the nearest name as its hint.

    Args:
        key: what was written.
        known: names of all settings.
        place: where it was written.
    """
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return ArgumentError(f"{key} is a group of settings{place}", hint=f"set one of {', '.join(inside)}")
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [
        name for name in known if difflib.get_close_matches(key, [name.rpartition(".")[2]], cutoff=0.5)
    ]
    names = known if len(known) < 20 else dict.fromkeys(re.sub(r"\..*", ".*", name) for name in known)
    hint = f"did you mean {near[0]}?" if near else f"settings are {', '.join(names)}"
    return ArgumentError(f"unknown setting {key!r}{place}", hint=hint)


def _validated(model: type[Model], values: Mapping[str, object]) -> Model:
    """Build the model as from a JSON file, which allows a text for a path but no text for a number."""
    return model.model_validate_json(json.dumps(as_tree(values)), strict=True)


def as_tree(values: Mapping[str, object]) -> dict[str, Any]:
    """Turn dotted names into groups: {"optim.lr": 1} becomes {"optim": {"lr": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return tree


def _key(fault: ErrorDetails, known: list[str]) -> str:
    """Return the setting that a fault is in; an item of a list belongs to its list."""
    parts = [str(part) for part in fault["loc"]]
    return next(
        (name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in known),
        ".".join(parts),
    )


def _explain(faults: list[ErrorDetails], written: Mapping[str, Written], known: list[str]) -> ArgumentError:
    """Say in words what was got and what was wanted, of every fault."""
    said: dict[str, list[str]] = {}
    for fault in faults:
        key = _key(fault, known)
        if fault["type"] == "missing" and key not in written:
            inside = [name for name in known if name.startswith(f"{key}.")]
            said[key] = [f"{' and '.join(inside) or key} is missing"]
            continue
        wanted = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if fault["type"] == "missing":  # an item of a list
            wanted = "more values"
        for name, words in _PLAIN.items():
            wanted = wanted.replace(f"a valid {name}", words)
        if key in written:
            got = f"{key} is {written[key].text!r}{written[key].place}"
        else:  # of several settings together
            got = f"settings of {key} do not agree" if key else "settings do not agree"
        said.setdefault(key, [f"{got}; wanted {wanted}"])
        if (other := f"wanted {wanted}") not in said[key][0]:
            said[key].append(other)
    return ArgumentError("; ".join(" or ".join(parts) for parts in said.values()))
