"""Flow files: the bytes are those of the format, and what is written reads back bit for bit."""

import struct
from pathlib import Path

import numpy as np
import pytest

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.flow_files import read_flow, write_flow

NAN = np.nan


def random_flow(height: int = 7, width: int = 11, *, holes: bool = True) -> np.ndarray:
    rng = np.random.default_rng(0)
    flow = rng.normal(0, 100, (height, width, 2)).astype(np.float32)
    if holes:
        flow[rng.random((height, width)) < 0.3] = NAN
    return flow


def test_the_bytes_of_a_flo_file_are_those_of_the_format(tmp_path: Path) -> None:
    flow = np.array([[[1.5, -2.25], [NAN, NAN], [0, 3e-5]]], np.float32)
    write_flow(tmp_path / "a.flo", flow)
    written = (tmp_path / "a.flo").read_bytes()
    assert written[:4] == b"PIEH"
    assert written == b"PIEH" + struct.pack("<ii6f", 3, 1, 1.5, -2.25, 1e10, 1e10, 0, 3e-5)


def test_a_flo_file_made_by_hand_is_read(tmp_path: Path) -> None:
    values = [1, 2, 3, 4, 5, 6, 7, 8, 9, -10, 1.7e9, 0]
    (tmp_path / "a.FLO").write_bytes(struct.pack("<fii12f", 202021.25, 2, 3, *values))
    expected = np.array(values, np.float32).reshape(3, 2, 2)
    expected[2, 1] = NAN  # one component says unknown
    np.testing.assert_array_equal(read_flow(tmp_path / "a.FLO"), expected)


@pytest.mark.parametrize("suffix", [".flo", ".npy", ".npz"])
def test_flow_reads_back_bit_for_bit_and_can_be_changed(tmp_path: Path, suffix: str) -> None:
    flow, path = random_flow(), tmp_path / f"flow{suffix}"
    before = flow.copy()
    write_flow(path, flow)
    read = read_flow(path)
    np.testing.assert_array_equal(read.view(np.uint32), flow.view(np.uint32))
    np.testing.assert_array_equal(flow.view(np.uint32), before.view(np.uint32))  # the argument is untouched
    assert np.isnan(read).any()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    read[:] = 0
    np.testing.assert_array_equal(read_flow(path), flow)  # the file does not change with the array


def test_a_pixel_of_which_one_component_is_missing_has_no_flow(tmp_path: Path) -> None:
    flow = random_flow(holes=False)
    flow[2, 3, 0], flow[4, 5, 1], flow[0, 0, 1] = NAN, np.inf, -2e9
    for suffix in (".flo", ".npy"):
        write_flow(tmp_path / f"a{suffix}", flow)
        missing = np.isnan(read_flow(tmp_path / f"a{suffix}"))
        assert sorted(zip(*np.nonzero(missing.all(axis=2)), strict=True)) == [(0, 0), (2, 3), (4, 5)]
        assert missing.sum() == 6


def test_flow_that_is_not_contiguous_is_written_in_its_order(tmp_path: Path) -> None:
    flow = random_flow(holes=False)
    for suffix in (".flo", ".npy"):
        write_flow(tmp_path / f"a{suffix}", flow[::-1, ::2])
        np.testing.assert_array_equal(read_flow(tmp_path / f"a{suffix}"), flow[::-1, ::2])


def test_the_certainty_goes_into_an_npz_file_and_into_no_other(tmp_path: Path) -> None:
    flow, certainty = random_flow(), np.random.default_rng(1).random((7, 11), np.float32)
    write_flow(tmp_path / "a.npz", flow, certainty=certainty)
    with np.load(tmp_path / "a.npz") as held:
        np.testing.assert_array_equal(held["certainty"], certainty)
        np.testing.assert_array_equal(held["flow"], flow)
    np.testing.assert_array_equal(read_flow(tmp_path / "a.npz"), flow)
    for suffix in (".flo", ".npy"):
        with pytest.raises(ArgumentError, match="no room for certainty"):
            write_flow(tmp_path / f"a{suffix}", flow, certainty=certainty)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npz"]


def test_other_floats_in_an_npy_file_are_read(tmp_path: Path) -> None:
    flow = random_flow().astype(np.float64)
    np.save(tmp_path / "a.npy", flow)
    np.testing.assert_array_equal(read_flow(tmp_path / "a.npy"), flow.astype(np.float32))


def flo(width: int, height: int, n_floats: int, magic: float = 202021.25) -> bytes:
    return struct.pack("<fii", magic, width, height) + bytes(4 * n_floats)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cut short: 0 bytes"),
        (b"PIEH\x01\x00", "cut short: 6 bytes"),
        (flo(2, 2, 8, magic=1.0), "starts with 1; wanted 202021.25"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "starts with .*; wanted 202021.25"),
        (struct.pack(">fii", 202021.25, 2, 2) + bytes(32), "starts with"),  # the other byte order
        (flo(2, 2, 7), "has 40 bytes; 2x2 pixels of flow need 44"),
        (flo(2, 2, 9), "has 48 bytes; 2x2 pixels of flow need 44"),
        (flo(0, 2, 0), "says it has 0x2 pixels"),
        (flo(2, -2, 8), "says it has 2x-2 pixels"),
        (flo(2**31 - 1, 2**31 - 1, 8), "says it has 2147483647x2147483647 pixels"),
        (flo(100_000, 100_000, 8), "need 80000000012"),
    ],
)
def test_a_damaged_flo_file_is_refused_with_the_reason(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    (tmp_path / "a.flo").write_bytes(content)
    with pytest.raises(ImageError, match=complaint):
        read_flow(tmp_path / "a.flo")


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 of shape \(4, 5, 3\)"),
        (np.zeros((4, 5), np.float32), r"float32 of shape \(4, 5\)"),
        (np.zeros((4, 5, 2), np.int32), "int32"),
        (np.zeros((0, 5, 2), np.float32), "5x0 pixels"),
        (np.array([{"a": 1}], object), "holds no flow"),
    ],
)
def test_an_npy_file_of_something_else_is_refused(tmp_path: Path, array: np.ndarray, complaint: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ImageError, match=complaint):
        read_flow(tmp_path / "a.npy")


def test_an_npy_file_shorter_than_it_says_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (99_999, 99_999, 2)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.write(bytes(64))
    with pytest.raises(ImageError, match="holds no flow"):
        read_flow(tmp_path / "a.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_file_that_numpy_cannot_read_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_flow(path, random_flow())
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ImageError):
            read_flow(path)
    np.savez(tmp_path / "b.npz", other=random_flow())
    with pytest.raises(ImageError, match=r"holds no flow.*flow"):
        read_flow(tmp_path / "b.npz")


def test_what_is_not_there_or_has_another_suffix_is_named(tmp_path: Path) -> None:
    for suffix in (".flo", ".npy", ".npz"):
        with pytest.raises(ImageError, match=rf"absent{suffix}: No such file"):
            read_flow(tmp_path / f"absent{suffix}")
    (tmp_path / "folder.flo").mkdir()
    with pytest.raises(ImageError, match="cannot read"):
        read_flow(tmp_path / "folder.flo")
    for name in ("a.png", "flo", "a"):
        with pytest.raises(ArgumentError, match=r"wanted a name that ends in \.flo, \.npy, \.npz"):
            read_flow(tmp_path / name)
        with pytest.raises(ArgumentError, match=r"wanted a name that ends in"):
            write_flow(tmp_path / name, random_flow())


def test_a_write_that_fails_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path, flow = tmp_path / "a.npy", random_flow()
    write_flow(path, flow)
    with pytest.raises(ArgumentError, match="cannot write"):
        write_flow(tmp_path / "absent" / "a.npy", flow)
    with pytest.raises(ArgumentError, match="wanted sides of 1"):
        write_flow(path, np.zeros((0, 4, 2), np.float32))
    np.testing.assert_array_equal(read_flow(path), flow)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.npy"]
