"""Sources that are missing, empty, damaged or of another kind say so; a damaged image is named."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tar import write_tar

from dinov2kit.errors import ImageError
from dinov2kit.train.image_sets import open_images


def picture(file: Path) -> bytes:
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(file)
    return file.read_bytes()


@pytest.fixture
def png(tmp_path: Path) -> bytes:
    return picture(tmp_path / "good.png")


def test_nothing_to_open_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no source") as caught:
        open_images([])
    assert "folder" in str(caught.value.hint)
    with pytest.raises(ImageError, match=r"no such image, folder or archive: .*gone"):
        open_images([tmp_path / "gone"])
    with pytest.raises(ImageError, match=r"no such .*gone\.h5:key"):
        open_images([f"{tmp_path}/gone.h5:key"])
    (tmp_path / "empty/deep").mkdir(parents=True)
    (tmp_path / "empty/notes.txt").touch()
    with pytest.raises(ImageError, match=r"no images in .*empty"):
        open_images([tmp_path / "empty"])
    (tmp_path / "empty/photos.tar.gz").touch()
    with pytest.raises(ImageError, match="no images") as caught:
        open_images([tmp_path / "empty"])
    assert "decompress photos.tar.gz" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "words"),
    [("x.tar.gz", "compressed as a whole"), ("x.pth", "nothing that holds"), ("x", "nothing")],
)
def test_files_of_another_kind_are_refused(name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ImageError, match=words):
        open_images([tmp_path / name])


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.h5", "x.parquet", "x.npy", "x.npz"])
@pytest.mark.parametrize("content", [b"", b"rubbish" * 100], ids=["empty", "rubbish"])
def test_archives_that_are_none_are_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=name.replace(".", r"\.")):
        open_images([tmp_path / name])


@pytest.mark.parametrize("name", ["x.tar", "x.zip", "x.h5", "x.parquet", "x.npy", "x.npz"])
def test_archives_that_were_cut_off_are_refused_by_name(name: str, tmp_path: Path, png: bytes) -> None:
    path = tmp_path / name
    stack = np.zeros((30, 40, 40, 3), np.uint8)
    if name == "x.tar":
        write_tar(path, {f"{k}.png": png for k in range(5)})
    elif name == "x.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", png)
    elif name == "x.h5":
        with h5py.File(path, "w") as file:
            file["pixels"] = stack
    elif name == "x.parquet":
        pq.write_table(pa.table({"image": [png] * 5}), path)
    else:
        np.save(path, stack) if name == "x.npy" else np.savez(path, stack)
    open_images([path])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=name.replace(".", r"\.")):
        open_images([path])


def test_archives_without_images_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.txt": b""})
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", b"")
    for name in ("x.tar", "x.zip"):
        with pytest.raises(ImageError, match=rf"no images among 1 members of .*{name}"):
            open_images([tmp_path / name])
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["descriptors"] = np.zeros((4, 8), np.float32)
    with pytest.raises(ImageError, match=r"holds no images, but descriptors float32 \(4, 8\)"):
        open_images([tmp_path / "x.h5"])
    with pytest.raises(ImageError, match=r"descriptors is float32 \(4, 8\); wanted"):
        open_images([f"{tmp_path}/x.h5:descriptors"])
    np.save(tmp_path / "x.npy", np.zeros((4, 8)))
    with pytest.raises(ImageError, match=r"holds no images, but float64 \(4, 8\)"):
        open_images([tmp_path / "x.npy"])
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ImageError, match="no column of encoded images, but text"):
        open_images([tmp_path / "x.parquet"])
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "y.parquet")
    with pytest.raises(ImageError, match="no rows"):
        open_images([tmp_path / "y.parquet"])


def test_zips_that_cannot_be_read_in_place_say_why(tmp_path: Path, png: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("a.png", png)
    with pytest.raises(ImageError, match=r"a\.png: compressed by method 12"):
        open_images([tmp_path / "x.zip"])
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("a.png", png)
    content = bytearray((tmp_path / "y.zip").read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag of encryption in its directory
    (tmp_path / "y.zip").write_bytes(content)
    with pytest.raises(ImageError, match="encrypted"):
        open_images([tmp_path / "y.zip"])


def test_lists_say_what_they_name_that_is_not_there(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "list.txt").write_text("good.png\nlost.png\n# lost too\nlost2.png\n")
    with pytest.raises(
        ImageError, match=r"list\.txt names 2 of 3 images that are not there; the first is lost\.png"
    ):
        open_images([tmp_path / "list.txt"])
    (tmp_path / "table.csv").write_text("path,label\ngood.png,a\nlost.png,b\n")
    with pytest.raises(ImageError, match="names 1 of 2"):
        open_images([tmp_path / "table.csv"])
    (tmp_path / "table.csv").write_text("file,label\ngood.png,a\n")
    with pytest.raises(ImageError, match="no column path"):
        open_images([tmp_path / "table.csv"])
    (tmp_path / "table.csv").write_text("path,size\ngood.png,1\n,2\n")
    with pytest.raises(ImageError, match="row 2: path is empty"):
        open_images([tmp_path / "table.csv"])
    for name, content in (("list.txt", "# nothing\n"), ("table.csv", "path\n"), ("table.csv", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ImageError, match=r"no images|no column path"):
            open_images([tmp_path / name])


def test_a_damaged_image_is_an_error_that_names_it_and_its_neighbours_are_well(
    tmp_path: Path, png: bytes
) -> None:
    broken = png[: len(png) // 2]
    contents = {"a.png": png, "b.png": broken, "c.png": png}
    (tmp_path / "set").mkdir()
    for name, content in contents.items():
        (tmp_path / "set" / name).write_bytes(content)
    write_tar(tmp_path / "x.tar", contents)
    for name, method in (("x.zip", zipfile.ZIP_STORED), ("y.zip", zipfile.ZIP_DEFLATED)):
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            for member, content in contents.items():
                archive.writestr(member, content)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        blocks = file.create_dataset("images", (3,), h5py.vlen_dtype(np.uint8))
        for at, content in enumerate(contents.values()):
            blocks[at] = np.frombuffer(content, np.uint8)
    pq.write_table(pa.table({"image": list(contents.values())}), tmp_path / "x.parquet")
    names = {
        "set": "set/b.png",
        "x.tar": "x.tar/b.png",
        "x.zip": "x.zip/b.png",
        "y.zip": "y.zip/b.png",
        "x.h5": "x.h5:images[1]",
        "x.parquet": "x.parquet[1]",
    }
    for source, name in names.items():
        images = open_images([tmp_path / source])
        with pytest.raises(ImageError, match="damaged or truncated") as caught:
            images.read(1)
        assert caught.value.message.startswith(f"{tmp_path}/{name}: ")
        assert caught.value.message.count(name) == 1
        assert np.array_equal(images.read(0), images.read(2))


def test_a_bit_that_flips_in_a_zip_is_noticed(tmp_path: Path, png: bytes) -> None:
    raw = np.zeros((64, 64, 3), np.uint8)
    file = tmp_path / "raw.bmp"
    PIL.Image.fromarray(raw).save(file)  # any content of a BMP can be decoded
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        path = tmp_path / f"{method}.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.write(file, "raw.bmp")
        images = open_images([path])
        assert not images.read(0).any()
        content = bytearray(path.read_bytes())
        content[len(content) // 2 if method == zipfile.ZIP_STORED else 55] ^= 4
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"zip/raw\.bmp: damaged"):
            images.read(0)


def test_what_vanishes_after_it_was_listed_is_a_bad_image_and_no_crash(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "list.txt").write_text("good.png")
    write_tar(tmp_path / "x.tar", {"a.png": png})
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["pixels"] = np.zeros((2, 4, 4, 3), np.uint8)
    pq.write_table(pa.table({"image": [png]}), tmp_path / "x.parquet")
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4, 3), np.uint8))
    names = ["list.txt", "x.tar", "x.h5", "x.parquet", "x.npy"]
    sets = [open_images([tmp_path / name]) for name in names]
    for name in ("good.png", *names):
        (tmp_path / name).unlink()
    for images in sets:
        with pytest.raises(ImageError, match="cannot be read"):
            images.read(0)


def test_a_tar_that_has_become_shorter_is_a_bad_image(tmp_path: Path, png: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": png, "b.png": png}, format=tarfile.USTAR_FORMAT)
    images = open_images([path])
    path.write_bytes(path.read_bytes()[: 512 + 100])
    with pytest.raises(ImageError, match=r"x\.tar/b\.png: the archive ends within it"):
        images.read(1)
