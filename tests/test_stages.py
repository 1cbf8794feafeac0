"""The stage cache: what is reused, what is computed again, and what survives an interruption."""

import json
from pathlib import Path

import numpy as np
import pytest

from dinov2kit.errors import StoreError
from dinov2kit.indexes.stages import RESULT, StageCache, digest


class Counting:
    """A stage that counts how often it runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, work: Path) -> dict[str, np.ndarray]:
        self.runs += 1
        return {"squares": np.arange(4) ** 2, "none": np.zeros((0, 3), np.float16)}


def test_a_result_is_reused_by_a_later_run_and_is_the_same(tmp_path: Path) -> None:
    stage, facts = Counting(), {"k": 3, "ids": np.arange(5)}
    first, second = StageCache(tmp_path / "a"), StageCache(tmp_path / "a")
    made, kept = first.run("pairs", facts, stage), second.run("pairs", facts, stage)
    assert stage.runs == 1
    assert (first.computed, first.reused) == (["pairs"], [])
    assert (second.computed, second.reused) == ([], ["pairs"])
    for name, array in made.items():
        np.testing.assert_array_equal(kept[name], array)
        assert kept[name].dtype == array.dtype


@pytest.mark.parametrize(
    "changed",
    [{"k": 4}, {"ids": np.arange(6)}, {"ids": np.arange(5.0)}, {"ids": np.arange(5)[::-1]}, {"more": 1}],
    ids=str,
)
def test_whatever_a_stage_depends_on_makes_another_result(tmp_path: Path, changed: dict) -> None:
    stage, facts = Counting(), {"k": 3, "ids": np.arange(5)}
    StageCache(tmp_path).run("pairs", facts, stage)
    StageCache(tmp_path).run("pairs", facts | changed, stage)
    StageCache(tmp_path).run("near", facts, stage)
    assert stage.runs == 3
    StageCache(tmp_path).run("pairs", facts, stage)
    assert stage.runs == 3


def test_a_fresh_run_computes_anew_and_forgets_unfinished_work(tmp_path: Path) -> None:
    stage = Counting()
    StageCache(tmp_path).run("pairs", {}, stage)
    (folder,) = tmp_path.iterdir()
    (folder / "work").mkdir()
    (folder / "work" / "block").write_text("half")

    def look(work: Path) -> dict[str, np.ndarray]:
        assert list(work.iterdir()) == []
        return stage(work)

    StageCache(tmp_path, fresh=True).run("pairs", {}, look)
    assert stage.runs == 2


def test_an_interrupted_stage_finds_its_work_again_and_a_finished_one_leaves_none(tmp_path: Path) -> None:
    def break_off(work: Path) -> dict[str, np.ndarray]:
        (work / "block").write_text("done")
        raise KeyboardInterrupt

    def go_on(work: Path) -> dict[str, np.ndarray]:
        assert (work / "block").read_text() == "done"
        return {"n": np.ones(1)}

    with pytest.raises(KeyboardInterrupt):
        StageCache(tmp_path).run("pairs", {}, break_off)
    (folder,) = tmp_path.iterdir()
    assert not (folder / RESULT).exists()
    StageCache(tmp_path).run("pairs", {}, go_on)
    assert sorted(path.name for path in folder.iterdir()) == [RESULT, "stage.json"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x00" * 500, "cut", "flipped"])
def test_a_torn_result_is_computed_again(tmp_path: Path, content: bytes | str) -> None:
    stage = Counting()
    StageCache(tmp_path).run("pairs", {}, stage)
    (result,) = tmp_path.glob(f"*/{RESULT}")
    whole = bytearray(result.read_bytes())
    if content == "cut":
        content = bytes(whole[: len(whole) // 2])
    elif content == "flipped":
        whole[whole.index(np.int64(9).tobytes())] ^= 1
        content = bytes(whole)
    result.write_bytes(content)
    again = StageCache(tmp_path).run("pairs", {}, stage)
    assert stage.runs == 2
    assert again["squares"].tolist() == [0, 1, 4, 9]
    StageCache(tmp_path).run("pairs", {}, stage)
    assert stage.runs == 2


def test_people_can_read_what_a_result_depends_on(tmp_path: Path) -> None:
    StageCache(tmp_path).run("pairs", {"k": 3, "ids": np.arange(5)}, Counting())
    (facts,) = tmp_path.glob("pairs-*/stage.json")
    assert json.loads(facts.read_text()) == {
        "format": 1,
        "stage": "pairs",
        "k": 3,
        "ids": digest(np.arange(5)),
    }


def test_nothing_is_written_before_the_first_stage_and_a_bad_folder_is_a_clear_error(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "a")
    assert not cache.folder.exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be kept in") as caught:
        StageCache(tmp_path / "file" / "a").run("pairs", {}, Counting())
    assert "--work DIR" in str(caught.value.hint)


def test_a_digest_tells_values_kinds_and_shapes_apart() -> None:
    arrays = [
        np.zeros(4, np.int64),
        np.zeros(8, np.int32),
        np.zeros((2, 2), np.int64),
        np.zeros(0),
        np.ones(4),
    ]
    assert len({digest(array) for array in arrays}) == len(arrays)
    assert digest(np.arange(10)[::2]) == digest(np.array([0, 2, 4, 6, 8]))
