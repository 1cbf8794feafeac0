"""The layout of hloc, read back with plain h5py: names, rows, frames, one-to-one, whole files."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pixel_encoder import PixelEncoder, paint_views

from dinov2kit.errors import ArgumentError, MatchError
from dinov2kit.features import Features
from dinov2kit.grid import PatchGrid
from dinov2kit.hloc import (
    distinct_pairs,
    find_pair,
    image_names,
    new_file,
    one_to_one,
    own_file,
    pair_keys,
    read_pairs,
    write_image_group,
    write_pair_group,
)
from dinov2kit.matches import Matches
from dinov2kit.matching import MatchSpec, match_all

GRID = PatchGrid(rows=2, cols=3, patch_size=10, width=30, height=20, scale_x=1.0, scale_y=1.0)
LETTERBOX = PatchGrid(4, 4, 14, width=112, height=56, scale_x=0.5, scale_y=0.5, offset_y=14.0)
FINEST = PatchGrid(2, 2, 14, width=28, height=28, scale_x=1.0, scale_y=1.0)


def carried(keypoints1: list, confidence: list[float], kept: list[bool]) -> Matches:
    n = len(confidence)
    facts = np.arange(n, dtype=np.float32)
    return Matches(
        keypoints0=np.stack([facts, facts + 0.25], axis=1),
        keypoints1=np.array(keypoints1, np.float32).reshape(n, 2),
        score=facts / 8,
        confidence=np.array(confidence, np.float32),
        cycle_error=facts / 4,
        uncertainty=facts,
        ratio=facts,
        kept=np.array(kept, bool),
    )


HAND_MADE = carried(
    [(15, 5), (13, 6), (24, 16), (4, 4), (5, 5), (6, 5), (9.6, 9.6)],
    [0.9, 0.95, 0.5, 0.99, 0.25, 0.25, 0.75],
    [True, True, True, False, True, True, True],
)
ANSWERS = [
    -1,
    1,
    5,
    -1,
    0,
    -1,
    4,
]  # the first loses to the second, the fourth is not kept, the sixth comes late


def test_a_pair_is_written_as_hloc_reads_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        write_pair_group(file, ["db/day 1/a.jpg", "é/b.jpg"], [FINEST, GRID], HAND_MADE)
    with h5py.File(tmp_path / "m.h5") as file:
        assert list(file) == ["db-day 1-a.jpg"]
        assert list(file["db-day 1-a.jpg"]) == ["é-b.jpg"]
        group = file["db-day 1-a.jpg/é-b.jpg"]
        assert (group["matches0"].dtype, group["matches0"][:].tolist()) == (np.int32, ANSWERS)
        assert group["matching_scores0"].dtype == np.float16
        np.testing.assert_array_equal(
            group["matching_scores0"][:], np.array([0, 0.95, 0.5, 0, 0.25, 0, 0.75], np.float16)
        )
        assert group["keypoints1"].dtype == np.float32
        for column in ("keypoints0", "keypoints1", "score", "cycle_error"):
            np.testing.assert_array_equal(group[column][:], getattr(HAND_MADE, column))
        assert (group.attrs["name0"], group.attrs["name1"]) == ("db/day 1/a.jpg", "é/b.jpg")
        assert group.attrs["image_size1"].tolist() == [30, 20]


def test_a_pair_is_found_from_either_side(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "m.h5", "w") as file:
        write_pair_group(file, ["x/a.jpg", "b.jpg"], [FINEST, GRID], HAND_MADE)
        forth, back = find_pair(file, "x/a.jpg", "b.jpg"), find_pair(file, "b.jpg", "x/a.jpg")
        assert find_pair(file, "a.jpg", "b.jpg") is None
        assert pair_keys(file) == ["x-a.jpg/b.jpg"]
    assert forth[0].tolist() == [[1, 1], [2, 5], [4, 0], [6, 4]]
    assert back[0].tolist() == [[1, 1], [5, 2], [0, 4], [4, 6]]
    assert forth[1].tolist() == back[1].tolist() == pytest.approx([0.95, 0.5, 0.25, 0.75], abs=1e-3)


def test_of_equals_the_first_has_the_patch() -> None:
    confidence = [0.25] * 10 + np.random.default_rng(0).choice([0.25, 0.5, 0.75], 290).tolist()
    answers = one_to_one(carried([(5, 5)] * 300, confidence, [True] * 300), GRID)
    assert np.flatnonzero(answers >= 0).tolist() == [confidence.index(0.75)]


@given(
    st.lists(
        st.tuples(st.floats(-5, 35, width=32), st.floats(-5, 25, width=32), st.booleans()),
        min_size=1,
        max_size=30,
    ),
    st.randoms(use_true_random=False),
)
def test_no_patch_is_the_answer_twice_and_the_most_confident_has_it(rows: list, random) -> None:
    confidence = [(i + 1) / 32 for i in range(len(rows))]
    random.shuffle(confidence)
    matches = carried([row[:2] for row in rows], confidence, [row[2] for row in rows])
    answers = one_to_one(matches, GRID)
    centers = GRID.centers()
    nearest = [int(((centers - place) ** 2).sum(axis=1).argmin()) for place in matches.keypoints1]
    distances = np.sort(np.linalg.norm(centers[None] - matches.keypoints1[:, None], axis=2), axis=1)
    assume((distances[:, 1] - distances[:, 0] > 1e-3).all())  # half-way between two patches either is right
    for patch in range(6):
        wanting = [row for row in range(len(rows)) if matches.kept[row] and nearest[row] == patch]
        best = [max(wanting, key=lambda row: confidence[row])] if wanting else []
        assert np.flatnonzero(answers == patch).tolist() == best
    order = np.array(random.sample(range(len(rows)), len(rows)))
    np.testing.assert_array_equal(one_to_one(matches.take(order), GRID), answers[order])


def test_padding_is_no_keypoint_and_rows_count_what_is_visible(tmp_path: Path) -> None:
    tokens = torch.arange(32, dtype=torch.float32).reshape(16, 2) + 1
    with h5py.File(tmp_path / "f.h5", "w") as file:
        write_image_group(file, "a/b.jpg", Features(tokens[0], tokens, tokens[:0], LETTERBOX))
        assert image_names(file) == ["a/b.jpg"]
    with h5py.File(tmp_path / "f.h5") as file:
        group = file["a"]["b.jpg"]
        x, y = (
            [13.5, 41.5, 69.5, 97.5],
            [13.5, 41.5],
        )  # patches of 28 pixels; pixel 0 reaches from -0.5 to 0.5
        assert group["keypoints"][:].tolist() == [[a, b] for b in y for a in x]
        assert group["keypoints"].attrs["uncertainty"] == 14
        assert (group["keypoints"].dtype, group["descriptors"].dtype) == (np.float32, np.float16)
        assert group["image_size"][:].tolist() == [112, 56]
        assert group["scores"][:].tolist() == [1.0] * 8
        unit = tokens[4:12] / tokens[4:12].norm(dim=1, keepdim=True)
        np.testing.assert_array_equal(group["descriptors"][:], unit.numpy().T.astype(np.float16))
    to_last_row = carried([(97.5, 41.5), (13.5, 13.5)], [0.5, 0.5], [True, True])
    assert one_to_one(to_last_row, LETTERBOX).tolist() == [7, 0]


def test_an_image_that_lies_on_padding_alone_is_refused(tmp_path: Path) -> None:
    off = PatchGrid(1, 1, 14, width=2, height=2, scale_x=1.0, scale_y=1.0, offset_x=20.0)
    with h5py.File(tmp_path / "f.h5", "w") as file, pytest.raises(MatchError, match="no patch"):
        write_image_group(file, "a.jpg", Features(torch.ones(2), torch.ones(1, 2), torch.ones(0, 2), off))


def test_a_known_shift_becomes_a_known_list_of_rows(tmp_path: Path) -> None:
    paint_views(tmp_path, ["a.png", "b.png"])
    sides = [PixelEncoder().encode(tmp_path / name) for name in ("a.png", "b.png")]
    matches, _ = match_all(*sides, spec=MatchSpec(min_score=0.9))
    with h5py.File(tmp_path / "m.h5", "w") as file:
        group = write_pair_group(file, ["a", "b"], [side.grid for side in sides], matches)
        truth = [-1 if col == 0 else row * 8 + col - 1 for row in range(5) for col in range(8)]
        assert group["matches0"][:].tolist() == truth


def test_lists_of_pairs_hold_spaces_behind_a_tab(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_bytes("\ufeffq/a.jpg  db/b.jpg\r\n\r\n my photo.jpg\tdb/é ü.jpg \n".encode())
    assert read_pairs(path) == [("q/a.jpg", "db/b.jpg"), ("my photo.jpg", "db/é ü.jpg")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a b\na b c\n", r"line 2.*'a b c'"),
        (b"a\n", "line 1"),
        (b"a\tb\tc\n", "line 1"),
        (b"a\t\n", "line 1"),
        (b"\xff\xfe b\n", "cannot read"),
    ],
)
def test_what_is_no_pair_is_named_by_its_line(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "pairs.txt").write_bytes(content)
    with pytest.raises(ArgumentError, match=said):
        read_pairs(tmp_path / "pairs.txt")
    with pytest.raises(ArgumentError, match="absent"):
        read_pairs(tmp_path / "absent.txt")


def test_pairs_count_once_whichever_way_round() -> None:
    pairs = [("a", "b"), ("b", "c"), ("b", "a"), ("a", "b"), ("c", "c"), ("c", "c")]
    assert distinct_pairs(pairs) == [("a", "b"), ("b", "c"), ("c", "c")]


@pytest.mark.parametrize("name", ["/etc/a.jpg", "../a.jpg", "x/../a.jpg", "./a.jpg", "x//a.jpg", "x/"])
def test_names_outside_the_root_are_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="lies below no root"):
        distinct_pairs([("a.jpg", name)])


def test_names_that_are_one_for_hloc_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"'x/a\.jpg' and 'x-a\.jpg'.*both 'x-a\.jpg'"):
        distinct_pairs([("x/a.jpg", "b"), ("b", "x-a.jpg")])


def test_a_new_file_is_whole_or_absent_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    path = tmp_path / "[m].h5"
    (tmp_path / ".[m].h5.1.tmp").write_bytes(b"half")
    (tmp_path / ".other.h5.1.tmp").write_bytes(b"of another")
    with pytest.raises(TypeError), new_file(path, "kind/1", {}) as file:
        file["a"] = object()
    assert [found.name for found in tmp_path.iterdir()] == [".other.h5.1.tmp"]
    with new_file(path, "kind/1", {"size": 3}) as file:
        file["a"] = 1
    with own_file(path, "kind/1") as (file, facts):
        assert (file["a"][()], facts) == (1, {"size": 3})
    with pytest.raises(ArgumentError, match=r"no kind/2 file"), own_file(path, "kind/2"):
        pass
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ArgumentError, match="damaged"), own_file(path, "kind/1"):
        pass
    with pytest.raises(ArgumentError, match="no such file"), own_file(tmp_path / "absent.h5", "kind/1"):
        pass
    with pytest.raises(ArgumentError, match="cannot write"), new_file(tmp_path / "no" / "m.h5", "kind/1", {}):
        pass
