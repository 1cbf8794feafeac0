"""Settings as people write them, `steps=500 optim.lr=1e-3`, read into a model that knows what they are."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from dinov2kit.errors import ArgumentError

Model = TypeVar("Model", bound=BaseModel)

_WORDS = {"true": True, "false": False, "null": None}
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

    A key is a field, or a field of a group: `optim.lr=1e-3`. A value is true, false, null, a number, a JSON
    list, object or string, else the text itself; where a text is wanted, `out=2024` is one. A whole number
    may be written 1e6. Nothing is converted silently: 1.5 is no whole number, and 1 is not true.

    Args:
        model: a pydantic model, frozen, with `extra="forbid"`; its groups are such models too.
        arguments: the settings, each given once; what is not given keeps its default.

    Raises:
        ArgumentError: an argument is no `key=value`, a key is unknown, given twice or missing, or a value is
            of another type or out of range. The message says what was got and wanted, the hint the nearest
            name.
    """
    known = setting_names(model)
    texts: dict[str, str] = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or not key:
            raise ArgumentError(f"{argument!r} is no setting", hint="write key=value, for instance steps=500")
        if key not in known:
            raise _unknown(key, known)
        if key in texts:
            raise ArgumentError(f"{key} is given twice: {texts[key]!r} and {text!r}")
        texts[key] = text
    values = {key: _parse(text) for key, text in texts.items()}
    try:
        return _validated(model, values)
    except ValidationError as error:
        first = error
    refused = {_key(fault, known) for fault in first.errors()} & values.keys()
    try:  # what was no good as a number may be wanted as a text
        return _validated(model, {**values, **{key: texts[key] for key in refused}})
    except ValidationError as error:
        still = {_key(fault, known) for fault in error.errors()}
        faults = [fault for fault in first.errors() if _key(fault, known) in still] or error.errors()
        raise _explain(faults, texts, known) from error


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


def _parse(text: str) -> object:
    """Read one value; what is no JSON is a text."""
    if text in _WORDS:
        return _WORDS[text]
    if text[:1] in ('"', "[", "{"):
        try:
            return json.loads(text)
        except ValueError:
            return text
    try:
        return int(text)
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if number.is_integer() and "." not in text else number


def _validated(model: type[Model], values: dict[str, Any]) -> Model:
    """Build the model as from a JSON file, which allows a text for a path but no text for a number."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *groups, name = key.split(".")
        place = tree
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = value
    return model.model_validate_json(json.dumps(tree), strict=True)


def _key(fault: ErrorDetails, known: list[str]) -> str:
    """Return the setting that a fault is in; an item of a list belongs to its list."""
    parts = [str(part) for part in fault["loc"]]
    return next(
        (name for end in range(len(parts), 0, -1) if (name := ".".join(parts[:end])) in known),
        ".".join(parts),
    )


def _unknown(key: str, known: list[str]) -> ArgumentError:
    inside = [name for name in known if name.startswith(f"{key}.")]
    if inside:
        return ArgumentError(f"{key} is a group of settings", hint=f"set one of {', '.join(inside)}")
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or [
        name for name in known if difflib.get_close_matches(key, [name.rpartition(".")[2]], cutoff=0.5)
    ]
    hint = f"did you mean {near[0]}?" if near else f"settings are {', '.join(known)}"
    return ArgumentError(f"unknown setting {key!r}", hint=hint)


def _explain(faults: list[ErrorDetails], texts: dict[str, str], known: list[str]) -> ArgumentError:
    """Say in words what was got and what was wanted, of every fault."""
    said: dict[str, list[str]] = {}
    for fault in faults:
        key = _key(fault, known)
        if fault["type"] == "missing":
            inside = [name for name in known if name.startswith(f"{key}.")]
            said[key] = [f"{' and '.join(inside) or key} is missing"]
            continue
        wanted = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        for name, words in _PLAIN.items():
            wanted = wanted.replace(f"a valid {name}", words)
        said.setdefault(key, [f"{key} is {texts.get(key, '')!r}; wanted {wanted}"])
        if (other := f"wanted {wanted}") not in said[key][0]:
            said[key].append(other)
    return ArgumentError("; ".join(" or ".join(parts) for parts in said.values()))
