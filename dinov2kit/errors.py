"""The error tree: every failure that a caller can cause or meet.

KitError                    base; `message` says what happened, what was got and wanted, `hint` what to do
├── ArgumentError           an option or argument makes no sense (also a ValueError)
├── DependencyError         an optional package is missing, or two packages provide the same module
├── ImageError              an image cannot be found, read or decoded
├── WeightsError            model weights are unknown, missing, damaged or of the wrong shape
├── DeviceError             the device asked for is absent
│   └── DeviceMemoryError   the device has too little memory
├── MatchError              two images cannot be matched
└── StoreError              an index cannot be used
    ├── StoreMissing        there is no index here
    ├── StoreLocked         another process is writing
    ├── StoreMismatch       the index was made with another model or preprocessing
    ├── StoreTooNew         the index was written by a newer version
    ├── StoreCorrupt        files of the index are damaged or do not agree
    └── PruneRefused        too many files vanished at once; nothing was removed
"""

from __future__ import annotations

from collections.abc import Sequence


class KitError(Exception):
    """Base of all errors of this project.

    Args:
        message: what happened, what was got and what was wanted, in one line.
        hint: what the user can do about it, in one line.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:  # errors travel between processes with their hint
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[KitError], message: str, hint: str | None) -> KitError:
    return kind(message, hint=hint)


class ArgumentError(KitError, ValueError):
    """An option or argument makes no sense."""


class DependencyError(KitError, ImportError):
    """An optional package is missing, or two packages provide the same module."""


class ImageError(KitError):
    """An image cannot be found, read or decoded."""


class WeightsError(KitError):
    """Model weights are unknown, missing, damaged or of the wrong shape."""


class DeviceError(KitError):
    """The device asked for is absent."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory for the work."""


class MatchError(KitError):
    """Two images cannot be matched."""


class StoreError(KitError):
    """An index cannot be used."""


class StoreMissing(StoreError):
    """There is no index at the given place."""


class StoreLocked(StoreError):
    """Another process is writing the index."""


class StoreMismatch(StoreError):
    """The index was made with another model or preprocessing."""


class StoreTooNew(StoreError):
    """The index was written by a newer version of this project."""


class StoreCorrupt(StoreError):
    """Files of the index are damaged or do not agree with each other."""


class PruneRefused(StoreError):
    """Too many files vanished at once; nothing was removed."""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of those that there are.

    Raises:
        ArgumentError: it is none of them.
    """
    if value not in choices:
        raise ArgumentError(f"unknown {name} {value!r}; wanted one of {', '.join(choices)}")
