"""Settings with the reason of each: a default, a preset, a file, an argument or a rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError

from dinov2kit.errors import ArgumentError

from .settings import as_tree, setting_names
from .train_config import TrainConfig

DEFAULT, GIVEN = "default", "given"


@dataclass(frozen=True)
class Resolved:
    """Settings of a training run, and where each comes from.

    Attributes:
        config: the settings.
        reasons: of every setting by its dotted name: "default", "preset tiny", a file, "given", or a rule
            such as "rule: 9,469 images".
        notes: what else should be said, in sentences.
    """

    config: TrainConfig
    reasons: dict[str, str]
    notes: tuple[str, ...] = ()

    def open(self, key: str) -> bool:
        """Return whether nobody has chosen a setting."""
        return self.reasons[key] == DEFAULT

    def bends(self, key: str) -> bool:
        """Return whether a rule may fit a setting to the others: it is a default or of a preset."""
        return self.open(key) or self.reasons[key].startswith("preset ")

    def choose(self, values: Mapping[str, object], reason: str) -> Resolved:
        """Return the same with some settings changed, by dotted name.

        Raises:
            ArgumentError: they do not agree with the others.
        """
        merged = {**flat_settings(self.config), **values}
        try:
            config = TrainConfig.model_validate(as_tree(merged))
        except ValidationError as error:
            said = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
            raise ArgumentError(f"{reason} does not agree with the other settings; wanted {said}") from error
        return Resolved(config, {**self.reasons, **dict.fromkeys(values, reason)}, self.notes)


def flat_settings(config: BaseModel) -> dict[str, object]:
    """Return every setting by its dotted name, in the order of the model."""
    values: dict[str, object] = {}
    for name in setting_names(type(config)):
        place: object = config
        for part in name.split("."):
            place = getattr(place, part)
        values[name] = place
    return values
