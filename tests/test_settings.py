"""`key=value` arguments read into pydantic models: what is accepted, and what is said of the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, field_validator

from dinov2kit.errors import ArgumentError
from dinov2kit.train import read_settings


class Optim(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    name: Literal["adamw", "sgd"] = "adamw"


class Run(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    out: Path
    steps: Annotated[int, Field(ge=1)] = 100
    flips: bool = False
    limit: int | None = 7
    note: str = ""
    optim: Optim = Optim()

    @field_validator("note")
    @classmethod
    def short(cls, note: str) -> str:
        if len(note) > 5:
            raise ValueError("at most 5 letters")
        return note


def refusal(*arguments: str) -> ArgumentError:
    with pytest.raises(ArgumentError) as caught:
        read_settings(Run, arguments)
    return caught.value


@pytest.mark.parametrize(
    ("argument", "name", "wanted"),
    [
        ("steps=500", "steps", 500),
        ("steps=1e6", "steps", 1_000_000),
        ("flips=true", "flips", True),
        ("flips=false", "flips", False),
        ("limit=null", "limit", None),
        ("limit=3", "limit", 3),
        ("note=null", "note", "null"),
        ("note=2024", "note", "2024"),
        ("note=1.50", "note", "1.50"),
        ('note="a=b"', "note", "a=b"),
        ("note=a=b", "note", "a=b"),
        ("note=[x]", "note", "[x]"),
        ("note=nan", "note", "nan"),
        ("note=", "note", ""),
    ],
)
def test_a_value_becomes_what_its_setting_wants(argument: str, name: str, wanted: object) -> None:
    run = read_settings(Run, ["out=a", argument])
    assert getattr(run, name) == wanted
    assert type(getattr(run, name)) is type(wanted)


@pytest.mark.parametrize(
    ("argument", "name", "wanted"),
    [
        ("optim.lr=1e-3", "lr", 0.001),
        ("optim.lr=.5", "lr", 0.5),
        ("optim.lr=2", "lr", 2.0),
        ("optim.betas=[0.8, 0.9]", "betas", (0.8, 0.9)),
        ("optim.name=sgd", "name", "sgd"),
    ],
)
def test_a_dotted_key_reaches_into_a_group_and_leaves_its_other_values(
    argument: str, name: str, wanted: object
) -> None:
    run = read_settings(Run, ["out=a", argument])
    assert run.optim == Optim(**{name: wanted})


def test_what_is_not_given_keeps_its_default_and_paths_are_paths() -> None:
    assert read_settings(Run, ["out=2024"]) == Run(out=Path("2024"))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("step", "did you mean steps?"),
        ("lr", "did you mean optim.lr?"),
        ("optim.l", "did you mean optim.lr?"),
        ("opitm.lr", "did you mean optim.lr?"),
        ("beta", "did you mean optim.betas?"),
        ("zzz", "settings are out, steps, flips, limit, note, optim.lr, optim.betas, optim.name"),
        ("steps.x", "did you mean steps?"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_name(key: str, hint: str) -> None:
    error = refusal("out=a", f"{key}=1")
    assert (error.message, error.hint) == (f"unknown setting {key!r}", hint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["steps=5"], "out is missing"),
        (["out=a", "steps=many"], "steps is 'many'; wanted a whole number"),
        (["out=a", "steps=1.5"], "steps is '1.5'; wanted a whole number"),
        (["out=a", "steps=true"], "steps is 'true'; wanted a whole number"),
        (["out=a", "steps=0"], "steps is '0'; wanted greater than or equal to 1"),
        (["out=a", "flips=1"], "flips is '1'; wanted true or false"),
        (["out=a", "flips=yes"], "flips is 'yes'; wanted true or false"),
        (["out=a", "optim.lr=-1"], "optim.lr is '-1'; wanted greater than 0"),
        (["out=a", "optim.lr=nan"], "optim.lr is 'nan'; wanted a number"),
        (["out=a", "optim.name=lion"], "optim.name is 'lion'; wanted 'adamw' or 'sgd'"),
        (["out=a", 'optim.betas=[1, "x"]'], "optim.betas is '[1, \"x\"]'; wanted a number"),
        (["out=a", "note=letters"], "note is 'letters'; wanted at most 5 letters"),
        (
            ["note=2024", "steps=0", "out=5", "limit=x"],
            "steps is '0'; wanted greater than or equal to 1; limit is 'x'; wanted a whole number",
        ),
        (["out=a", "steps=1", "steps=2"], "steps is given twice: '1' and '2'"),
        (["out=a", "steps"], "'steps' is no setting"),
        (["out=a", "--steps=5"], "unknown setting '--steps'"),
        (["out=a", "optim=3"], "optim is a group of settings"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_got_and_wanted(
    arguments: list[str], message: str
) -> None:
    assert refusal(*arguments).message == message
