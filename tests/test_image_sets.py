"""Sets of images: every kind of source gives the pixels that were written, in every process."""

from __future__ import annotations

import csv
import io
import multiprocessing
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tar import write_tar

from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.train.drawn_shapes import DrawnShapes
from dinov2kit.train.image_sets import ImageSet, open_images

COUNT = 7


def image(number: int) -> np.ndarray:
    """Return an image of its own content and size."""
    return np.random.default_rng(number).integers(0, 256, (5 + number, 9, 3), np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image(number)).save(file, "PNG")
    return file.getvalue()


def even(number: int) -> np.ndarray:
    """Return an image as large as all others."""
    return np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)


EVEN = np.stack([even(number) for number in range(COUNT)])
PNGS = {f"{number}.png": png(number) for number in range(COUNT)}


def write_files(folder: Path, contents: dict[str, bytes] = PNGS) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_zip(path: Path, contents: dict[str, bytes] = PNGS, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def write_parquet(path: Path, columns: dict[str, list], rows: int = 3) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def write_encoded_hdf5(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        blocks = file.create_dataset("pictures", (COUNT,), h5py.vlen_dtype(np.uint8))
        for number in range(COUNT):
            blocks[number] = np.frombuffer(png(number), np.uint8)
        file["descriptors"] = np.zeros((COUNT, 4), np.float32)
    return path


def make_folder(root: Path) -> str:
    return str(write_files(root / "photos"))


def make_list(root: Path) -> str:
    write_files(root / "photos")
    lines = ["# a comment", *(f"photos/{name}" for name in PNGS), ""]
    lines[1] = str(root / "photos/0.png")  # one in full
    (root / "list.txt").write_text("\n".join(lines))
    return str(root / "list.txt")


def make_table(root: Path) -> str:
    write_files(root / "photos")
    (root / "table.csv").write_text("\n".join(["size,Path", *(f"1,photos/{name}" for name in PNGS)]))
    return str(root / "table.csv")


def make_tar(root: Path) -> str:
    return str(write_tar(root / "x.tar", {"read.me": b"no image", **PNGS}))


def make_stored_zip(root: Path) -> str:
    return str(write_zip(root / "x.zip"))


def make_deflated_zip(root: Path) -> str:
    contents = {"read.me": b"no image", "__MACOSX/._0.png": b"no image", **PNGS}
    return str(write_zip(root / "x.zip", contents, zipfile.ZIP_DEFLATED))


def make_encoded_hdf5(root: Path) -> str:
    return str(write_encoded_hdf5(root / "x.h5"))


def make_parquet(root: Path) -> str:
    return str(write_parquet(root / "x.parquet", {"id": list(range(COUNT)), "jpg": list(PNGS.values())}))


def make_hugging_face(root: Path) -> str:
    cells = [{"bytes": content, "path": name} for name, content in PNGS.items()]
    return str(write_parquet(root / "x.parquet", {"image": cells, "thumb": list(PNGS.values())}))


def make_folder_of_archives(root: Path) -> str:
    parts = [dict(list(PNGS.items())[start : start + 3]) for start in (0, 3, 6)]
    write_files(root / "set", {"a/" + name: content for name, content in parts[0].items()})
    write_tar(root / "set/b.tar", parts[1])
    write_zip(root / "set/c.zip", parts[2])
    return str(root / "set")


def make_hdf5(root: Path) -> str:
    with h5py.File(root / "x.hdf5", "w") as file:
        file.create_dataset("group/pixels", data=EVEN, chunks=(2, 6, 8, 3), compression="gzip")
    return str(root / "x.hdf5")


def make_npy(root: Path) -> str:
    np.save(root / "x.npy", EVEN)
    return str(root / "x.npy")


def make_npz(root: Path) -> str:
    np.savez_compressed(root / "x.npz", pixels=EVEN, labels=np.arange(COUNT))
    return str(root / "x.npz")


def make_folder_of_arrays(root: Path) -> str:
    (root / "arrays").mkdir()
    for number in range(COUNT):
        np.save(root / f"arrays/{number}.npy", EVEN[number])
    return str(root / "arrays")


MAKERS: list[tuple[Callable[[Path], str], Callable[[int], np.ndarray], str]] = [
    (make_folder, image, "photos/3.png"),
    (make_list, image, "photos/3.png"),
    (make_table, image, "photos/3.png"),
    (make_tar, image, "x.tar/3.png"),
    (make_stored_zip, image, "x.zip/3.png"),
    (make_deflated_zip, image, "x.zip/3.png"),
    (make_encoded_hdf5, image, "x.h5:pictures[3]"),
    (make_parquet, image, "x.parquet[3]"),
    (make_hugging_face, image, "x.parquet[3]"),
    (make_folder_of_archives, image, "set/b.tar/3.png"),
    (make_hdf5, even, "x.hdf5:group/pixels[3]"),
    (make_npy, even, "x.npy[3]"),
    (make_npz, even, "x.npz:pixels[3]"),
    (make_folder_of_arrays, even, "arrays/3.npy"),
]
each_source = pytest.mark.parametrize(
    ("make", "truth", "name"), MAKERS, ids=[make.__name__ for make, _, _ in MAKERS]
)


def read_all(images: ImageSet) -> list[np.ndarray]:
    order = [5, 0, 6, 3, 1, 4, 2]  # in no order, as training reads
    found = {number: images.read(number) for number in order}
    return [found[number] for number in range(len(images))]


@each_source
def test_the_pixels_are_those_written_in_this_process_and_in_others(
    make: Callable[[Path], str], truth: Callable[[int], np.ndarray], name: str, tmp_path: Path
) -> None:
    images = open_images([make(tmp_path)])
    expected = [truth(number) for number in range(COUNT)]
    assert len(images) == COUNT
    assert images.name(3) == f"{tmp_path}/{name}"
    assert images.labels is None
    travelled = pickle.loads(pickle.dumps(images))
    here = read_all(images)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        there = pool.map(read_all, [travelled])[0]
    for found in (here, there):
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_joined_set_travels_to_a_process_that_shares_nothing(tmp_path: Path) -> None:
    makers = [make_tar, make_encoded_hdf5, make_parquet, make_npy]
    images = open_images([*(make(tmp_path) for make in makers), "drawn-shapes:3"])
    picks = [0, 6, 7, 14, 21, 27, 28, 30]
    here = [images.read(number) for number in picks]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.map(images.read, picks)
    assert all(np.array_equal(*pair) for pair in zip(here, there, strict=True))


def test_sources_are_joined_in_their_order(tmp_path: Path) -> None:
    folder, array = make_folder(tmp_path), make_npy(tmp_path)
    images = open_images([array, folder, f"{folder}/2.png", Path(folder, "1.png"), "drawn-shapes:4"])
    assert len(images) == COUNT + COUNT + 2 + 4
    assert np.array_equal(images.read(6), even(6))
    assert np.array_equal(images.read(7), image(0))
    assert np.array_equal(images.read(14), image(2))
    assert np.array_equal(images.read(15), image(1))
    assert np.array_equal(images.read(16), DrawnShapes(4).read(0))
    assert [images.name(number).rpartition("/")[2] for number in (6, 7, 14)] == ["x.npy[6]", "0.png", "2.png"]
    assert images.name(19).startswith("drawn-shapes[3]")


def test_a_large_set_of_names_pickles_small_and_fast(tmp_path: Path) -> None:
    contents = {f"{number:05}.png": b"" for number in range(1000)}
    images = open_images([write_files(tmp_path / "many", contents)])
    assert len(pickle.dumps(images)) < 1000 * (9 + 8) + 1000  # name and its end
    assert images.name(999).endswith("00999.png")


def test_folders_are_searched_deep_through_links_and_without_what_is_hidden(tmp_path: Path) -> None:
    write_files(
        tmp_path / "set",
        {"b/2.JPG": b"", "b/deep/3.png": b"", "1.png": b"", ".4.png": b"", ".bin/5.png": b"", "6.txt": b""},
    )
    write_files(tmp_path / "elsewhere", {"7.webp": b""})
    (tmp_path / "set/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/again").symlink_to(tmp_path / "elsewhere")  # the same folder, entered once
    (tmp_path / "set/b/round").symlink_to(tmp_path / "set")
    (tmp_path / "set/nowhere.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "set/folder.png").mkdir()
    os.mkfifo(tmp_path / "set/pipe.png")
    images = open_images([tmp_path / "set"])
    names = [images.name(number).removeprefix(f"{tmp_path}/set/") for number in range(len(images))]
    assert names == ["1.png", "again/7.webp", "b/2.JPG", "b/deep/3.png"]


def test_each_file_is_asked_for_its_size_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path / "set", {f"{k % 3}/{k}.png": b"" for k in range(30)})
    asked: list[object] = []
    plain = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **options: asked.append(path) or plain(path, **options))
    assert len(open_images([tmp_path / "set"])) == 30
    assert len(asked) < 10  # folders only; the files are asked through their entries


@pytest.mark.parametrize("pack", ["folder", "tar", "zip"])
@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat/1.png", "cat/2.png", "dog/3.png"], ["cat", "cat", "dog"]),
        (["set/cat/1.png", "set/dog/deep/2.png"], ["cat", "dog"]),
        (["train/cat/1.png", "train/dog/2.png", "val/cat/3.png"], ["cat", "dog", "cat"]),
        (["train/1.png", "val/2.png"], None),
        (["cat/1.png", "cat/2.png"], None),
        (["1.png", "cat/2.png", "dog/3.png"], None),
    ],
)
def test_class_folders_are_labels(
    pack: str, names: list[str], labels: list[str] | None, tmp_path: Path
) -> None:
    contents = dict.fromkeys(names, png(0))
    source = {
        "folder": lambda: write_files(tmp_path / "x", contents),
        "tar": lambda: write_tar(tmp_path / "x.tar", contents),
        "zip": lambda: write_zip(tmp_path / "x.zip", contents),
    }[pack]()
    images = open_images([source])
    found = [images.name(number).removeprefix(f"{source}/") for number in range(len(images))]
    expected = None if labels is None else dict(zip(names, labels, strict=True))
    assert sorted(found) == sorted(names)
    assert (None if images.labels is None else dict(zip(found, images.labels, strict=True))) == expected


def test_tables_and_parquet_bring_labels_and_so_do_sets_joined_of_such(tmp_path: Path) -> None:
    write_files(tmp_path)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), ("0.png", "x, y"), ("1.png", "z")])
    cells = [{"bytes": png(number), "path": None} for number in range(2)]
    write_parquet(tmp_path / "b.parquet", {"image": cells, "label": [3, 4]})
    assert open_images([tmp_path / "a.csv"]).labels == ["x, y", "z"]
    joined = open_images([tmp_path / "a.csv", tmp_path / "b.parquet", "drawn-shapes:1"])
    assert joined.labels == ["x, y", "z", "3", "4", "disc"]
    assert open_images([tmp_path / "a.csv", tmp_path / "0.png"]).labels is None


def test_the_digest_changes_with_the_list_and_not_with_its_place(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_files(tmp_path / place / "photos")
    first, second = (open_images([tmp_path / place / "photos"]).digest for place in ("a", "b"))
    assert first == second
    assert set(first) <= set("0123456789abcdef")
    (tmp_path / "b/photos/0.png").write_bytes(png(0) + b"x")
    longer = open_images([tmp_path / "b/photos"]).digest
    (tmp_path / "b/photos/0.png").rename(tmp_path / "b/photos/9.png")
    renamed = open_images([tmp_path / "b/photos"]).digest
    joined = open_images([tmp_path / "a/photos", "drawn-shapes"]).digest
    assert len({first, longer, renamed, joined}) == 4


def test_channels_and_window_reach_every_kind_of_source(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).random((COUNT, 6, 8, 5)).astype(np.float32)
    expected = np.rint(np.clip(deep * 2 - 0.5, 0, 1).astype(np.float64) * 255)
    np.save(tmp_path / "x.npy", deep)
    np.savez(tmp_path / "x.npz", deep)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["deep"] = deep
    (tmp_path / "arrays").mkdir()
    for number in range(COUNT):
        np.save(tmp_path / f"arrays/{number}.npy", deep[number])
    for name in ("x.npy", "x.npz", "x.h5", "arrays"):
        images = open_images([tmp_path / name], channels=5, window=(0.25, 0.75))
        for number in range(COUNT):
            assert np.abs(images.read(number) - expected[number]).max() <= 1, name
        with pytest.raises(ImageError, match="5 channels; wanted 3"):
            open_images([tmp_path / name], window=(0.25, 0.75)).read(0)
    grey = open_images([write_files(tmp_path / "photos"), "drawn-shapes:2"], channels=1)
    assert [grey.read(number).shape for number in (0, 8)] == [(5, 9, 1), (24, 24, 1)]


def test_grey_and_sixteen_bit_stacks(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 65536, (3, 6, 8), np.uint16)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["stack"] = stack
    expected = np.rint(stack / 257).astype(np.uint8)
    grey, colour = (open_images([tmp_path / "x.h5"], channels=channels) for channels in (1, 3))
    for number in range(3):
        assert np.array_equal(grey.read(number)[:, :, 0], expected[number])
        assert np.array_equal(colour.read(number), np.repeat(expected[number][:, :, None], 3, axis=2))


def test_one_of_several_arrays_or_columns_is_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["train/pixels"], file["val/pixels"] = EVEN, EVEN[:2]
    np.savez(tmp_path / "x.npz", train=EVEN, val=EVEN[:2])
    columns = {"left": list(PNGS.values()), "right": list(PNGS.values())[::-1], "id": list(range(COUNT))}
    write_parquet(tmp_path / "x.parquet", columns)
    for name, first, second in (
        ("x.h5", "train/pixels", "val/pixels"),
        ("x.npz", "train", "val"),
        ("x.parquet", "left", "right"),
    ):
        with pytest.raises(ImageError, match=f"several .*{first}, {second}") as caught:
            open_images([tmp_path / name])
        assert f"{name}:{first}" in str(caught.value.hint)
        with pytest.raises(ImageError, match=r"has no .*wrong"):
            open_images([f"{tmp_path / name}:wrong"])
    assert len(open_images([f"{tmp_path}/x.h5:val/pixels"])) == 2
    assert len(open_images([f"{tmp_path}/x.npz:val"])) == 2
    assert np.array_equal(open_images([f"{tmp_path}/x.parquet:right"]).read(0), image(6))
    with pytest.raises(ImageError, match="id holds int64; wanted"):
        open_images([f"{tmp_path}/x.parquet:id"])


def test_drawn_shapes_are_named_like_a_source() -> None:
    assert open_images(["drawn-shapes"]).digest == DrawnShapes().digest
    assert len(open_images([Path("drawn-shapes:12")])) == 12
    for wrong in ("drawn-shapes:0", "drawn-shapes:many"):
        with pytest.raises(ImageError, match="wanted a number"):
            open_images([wrong])
    with pytest.raises(ArgumentError, match="2 channels; wanted 1 or 3"):
        open_images(["drawn-shapes"], channels=2)
