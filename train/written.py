"""A setting as it was written, as an argument or in a YAML file, and what the words may mean.

Arguments and files follow one grammar: true, false, null, numbers as `1e-3` or `.5`, lists as `[.9, .99]`,
and everything else is a text. Files are read by PyYAML, but its own guesses, that `on` is true and `1e-3` a
text, are not asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from dinov2kit.errors import ArgumentError

_WORDS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Written:
    """One setting as it was written.

    Attributes:
        text: as it stands there.
        readings: what it may mean, the likeliest first: 2024 is a number, but a text where one is wanted.
        source: where it stands, such as "given", "preset tiny" or a file.
        line: of the file; 0 for an argument.
    """

    text: str
    readings: tuple[object, ...]
    source: str = "given"
    line: int = 0

    @property
    def place(self) -> str:
        """Where it stands, for a message; nothing for an argument."""
        return f" ({self.source}, line {self.line})" if self.line else ""


def read_argument(text: str) -> Written:
    """Read the value of a `key=value` argument; what is neither a number nor a list is a text."""
    if text[:1] in ('"', "[", "{"):
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError:
            return Written(text, (text,))
        return Written(text, _distinct(_meaning(node), _texts(node), text))
    return Written(text, _distinct(plain_value(text), text))


def read_yaml(text: str, source: str) -> dict[str, Written]:
    """Read the settings of a YAML file; those of a group get dotted names.

    Args:
        text: of the file.
        source: what to call it.

    Raises:
        ArgumentError: it is no YAML, no mapping, or names a setting twice.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or "it cannot be parsed"
        raise ArgumentError(f"{source}{line} is no YAML: {said}") from error
    written: dict[str, Written] = {}
    if node is None:
        return written
    if not isinstance(node, yaml.MappingNode):
        raise ArgumentError(f"{source} holds no settings", hint="write lines such as steps: 500")
    for key, value in _leaves(node, ""):
        line = value.start_mark.line + 1
        if key in written:
            raise ArgumentError(f"{key} stands twice in {source}: lines {written[key].line} and {line}")
        shown = text[value.start_mark.index : value.end_mark.index].strip()
        written[key] = Written(shown, _distinct(_meaning(value), _texts(value), shown), source, line)
    return written


def read_yaml_file(path: Path, source: str | None = None) -> dict[str, Written]:
    """Read the settings of a YAML file.

    Args:
        path: of the file.
        source: what to call it; its path if not given.

    Raises:
        ArgumentError: it cannot be read, or is no YAML with settings.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return read_yaml(text, source or str(path))


def plain_value(text: str) -> object:
    """Return what a word means: true, false, null, a finite number, else the text itself."""
    if text in _WORDS:
        return _WORDS[text]
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


def _leaves(node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
    """Yield every setting below a mapping with its dotted name."""
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode):
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value


def _meaning(node: yaml.Node) -> object:
    """Return a value with its plain words read; what stands in quotes is a text."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _meaning(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_meaning(value) for value in node.value]
    if node.style is not None:
        return node.value
    return None if node.value in ("", "~") else plain_value(node.value)


def _texts(node: yaml.Node) -> object:
    """Return a value with all its words as texts."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _texts(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_texts(value) for value in node.value]
    return node.value


def _distinct(*readings: object) -> tuple[object, ...]:
    """Return the readings without repetitions; 1 and 1.0 and true are not the same."""
    kept: list[object] = []
    for reading in readings:
        if all(repr(reading) != repr(other) for other in kept):
            kept.append(reading)
    return tuple(kept)
