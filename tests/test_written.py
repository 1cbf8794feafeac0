"""One grammar for arguments and YAML files: numbers, words, lists, texts, and what is no YAML at all."""

from pathlib import Path

import pytest

from dinov2kit.errors import ArgumentError
from dinov2kit.train.written import read_argument, read_yaml, read_yaml_file


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.0e-04", 0.0002),
        (".5", 0.5),
        ("5", 5),
        ("1e6", 1_000_000),
        ("1.0", 1.0),
        ("true", True),
        ("null", None),
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("0x10", "0x10"),
        ("012", 12),
        ("2026-11-23", "2026-11-23"),
        ("vitl16-short", "vitl16-short"),
        ("a/b:c", "a/b:c"),
        ("[.98, 1]", [0.98, 1]),
        ("[1e-3, on]", [0.001, "on"]),
        ('["2", 2]', ["2", 2]),
        ('"2024"', "2024"),
    ],
)
def test_a_value_means_the_same_as_an_argument_and_in_a_file(text: str, value: object) -> None:
    in_file = read_yaml(f"key: {text}", "file")["key"].readings[0]
    argument = read_argument(text).readings[0]
    assert repr(in_file) == repr(argument) == repr(value)


def test_what_looks_like_a_number_may_be_a_text() -> None:
    assert read_argument("2024").readings == (2024, "2024")
    assert read_argument("[1, 2]").readings == ([1, 2], ["1", "2"], "[1, 2]")
    assert read_yaml("key: 1.50", "file")["key"].readings == (1.5, "1.50")
    assert read_yaml('key: "1.50"', "file")["key"].readings[0] == "1.50"


def test_groups_become_dotted_names_with_their_lines() -> None:
    text = (
        "steps: 5\noptim:\n  lr: 1e-3  # peak\n  betas:\n  - .9\n  - .99\nteacher: {momentum: [.99, 1.0]}\n"
    )
    written = read_yaml(text, "a.yaml")
    assert {key: (one.readings[0], one.line) for key, one in written.items()} == {
        "steps": (5, 1),
        "optim.lr": (0.001, 3),
        "optim.betas": ([0.9, 0.99], 5),
        "teacher.momentum": ([0.99, 1.0], 7),
    }
    assert written["optim.lr"].text == "1e-3"
    assert written["optim.lr"].place == " (a.yaml, line 3)"
    assert read_argument("3").place == ""


@pytest.mark.parametrize("text", ["key:", "key: ~", "key: null"])
def test_nothing_is_null(text: str) -> None:
    assert read_yaml(text, "file")["key"].readings[0] is None


@pytest.mark.parametrize("text", ["", "# a comment alone\n", "{}"])
def test_an_empty_file_sets_nothing(text: str) -> None:
    assert read_yaml(text, "file") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1, 2\nb: 3", "file, line 2 is no YAML"),
        ("a: 1\n\tb: 2", "file, line 2 is no YAML"),
        ("- 1\n- 2", "file holds no settings"),
        ("just words", "file holds no settings"),
        ("a: 1\nb: 2\na: 3", "a stands twice in file: lines 1 and 3"),
        ("g:\n  a: 1\ng.a: 3", "g.a stands twice in file: lines 2 and 3"),
    ],
)
def test_what_is_no_file_of_settings_is_refused(text: str, said: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        read_yaml(text, "file")
    assert said in caught.value.message


def test_an_argument_that_is_no_list_after_all_is_a_text() -> None:
    assert read_argument("[draft").readings == ("[draft",)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"cannot read .*none\.yaml: No such file"):
        read_yaml_file(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArgumentError, match=r"cannot read .*bytes\.yaml"):
        read_yaml_file(tmp_path / "bytes.yaml")
