"""Labelled images in every layout that is read, written as it is distributed."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dinov2kit.errors import ImageError
from dinov2kit.labelled_images import read_class_folders, read_labelled, read_labelled_csv


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def pairs(images: list, root: Path) -> list[tuple[str, str]]:
    return [(image.path.relative_to(root).as_posix(), image.label) for image in images]


def test_folders_are_classes_however_deep_their_images_lie(tmp_path: Path) -> None:
    touch(tmp_path, "dog/b.JPG", "dog/a.png", "cat/young/c.webp", "cat/notes.txt", "loose.jpg")
    (tmp_path / "empty").mkdir()
    assert pairs(read_class_folders(tmp_path), tmp_path) == [
        ("cat/young/c.webp", "cat"),
        ("dog/a.png", "dog"),
        ("dog/b.JPG", "dog"),
    ]


def test_folders_of_splits_are_told_from_folders_of_classes(tmp_path: Path) -> None:
    touch(tmp_path, "set/train/cat/1.jpg", "set/validation/cat/2.jpg", "set/validation/dog/3.jpg")
    assert pairs(read_labelled(tmp_path / "set", "train"), tmp_path / "set") == [("train/cat/1.jpg", "cat")]
    assert pairs(read_labelled(tmp_path / "set", "val"), tmp_path / "set") == [
        ("validation/cat/2.jpg", "cat"),
        ("validation/dog/3.jpg", "dog"),
    ]
    touch(tmp_path, "vehicles/train/1.jpg", "vehicles/bus/2.jpg")  # a class may be called train
    assert pairs(read_labelled(tmp_path / "vehicles", "train"), tmp_path / "vehicles") == [
        ("bus/2.jpg", "bus"),
        ("train/1.jpg", "train"),
    ]


def test_a_table_keeps_its_order_its_splits_and_names_that_are_no_text(tmp_path: Path) -> None:
    table = tmp_path / "set.csv"
    strange = b"gr\xfcn.jpg"
    table.write_bytes("\ufeffLabel, Path ,split\n".encode() + b"x," + strange + b",Train\ny,sub/b.jpg,val\n")
    rows = read_labelled_csv(table)
    assert [(os.fsencode(row.path.name), row.label, row.split) for row in rows] == [
        (strange, "x", "train"),
        (b"b.jpg", "y", "val"),
    ]
    assert rows[1].path == tmp_path / "sub/b.jpg"
    assert read_labelled(table, "val") == rows[1:]
    table.write_text("path,label\na.jpg,x\n")
    assert len(read_labelled(table, "train")) == len(read_labelled(table, "val")) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("file,label\na.jpg,x\n", "no column path"),
        ("", "no column label and no path"),
        ("path,label\n", "has no rows"),
        ("path,label\na.jpg,x\nb.jpg\n", "line 3: path or label is empty"),
        ("path,label,split\na.jpg,x,val\n", "no row with the split train or training"),
    ],
)
def test_a_bad_table_is_told_what_it_lacks(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "set.csv").write_text(content)
    with pytest.raises(ImageError, match=said):
        read_labelled(tmp_path / "set.csv", "train")


@pytest.mark.parametrize("where", ["", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_is_read_where_the_archives_put_it(tmp_path: Path, where: str) -> None:
    base = tmp_path / where
    touch(base, "train/n01440764/n01440764_18.JPEG", "train/n02102040/n02102040_1.JPEG")
    touch(base, "val/ILSVRC2012_val_00000002.JPEG", "val/ILSVRC2012_val_00000001.JPEG")
    assert [image.label for image in read_labelled(tmp_path, "train")] == ["n01440764", "n02102040"]
    with pytest.raises(ImageError, match="nothing says what they show"):
        read_labelled(tmp_path, "val")
    expected = ["n02102040", "n01440764"]

    notes = tmp_path / ("ILSVRC/" if where.startswith("ILSVRC") else "") / "Annotations/CLS-LOC/val"
    touch(notes, "x")
    for number, synset in enumerate(expected, 1):
        text = (
            f"<annotation><object><name>{synset}</name></object><object><name>n9</name></object></annotation>"
        )
        (notes / f"ILSVRC2012_val_{number:08}.xml").write_text(text)
    assert [image.label for image in read_labelled(tmp_path, "val")] == expected
    assert [image.path.name[15:23] for image in read_labelled(tmp_path, "val")] == ["00000001", "00000002"]

    kaggle = "ImageId,PredictionString\nILSVRC2012_val_00000002,n01440764 1 2 3 4 \n"
    (tmp_path / "LOC_val_solution.csv").write_text(kaggle)
    if where == "":  # the nearer answer counts
        with pytest.raises(ImageError, match=r"does not say what ILSVRC2012_val_00000001\.JPEG shows"):
            read_labelled(tmp_path, "val")
        whole = kaggle + "ILSVRC2012_val_00000001,n02102040 1 2 3 4 n02102040 5 6 7 8 \n"
        (tmp_path / "LOC_val_solution.csv").write_text(whole)
        assert [image.label for image in read_labelled(tmp_path, "val")] == expected


def test_the_development_kit_numbers_the_synsets(tmp_path: Path) -> None:
    touch(tmp_path, *(f"val/ILSVRC2012_val_{number:08}.JPEG" for number in (1, 2, 3)))
    kit = tmp_path / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array([(1, "n02119789", "kit fox", 0), (2, "n02100735", "setter", 0)], dtype=fields)
    savemat(kit / "meta.mat", {"synsets": synsets[:, None]})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n2\n")
    assert [image.label for image in read_labelled(tmp_path, "val")] == [
        "n02100735",
        "n02119789",
        "n02100735",
    ]
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n7\n")
    with pytest.raises(ImageError, match="ILSVRC2012_devkit_t12"):
        read_labelled(tmp_path, "val")


def test_what_is_no_set_is_refused_with_what_was_wanted(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such folder") as raised:
        read_labelled(tmp_path / "set.zip", "train")
    assert raised.value.hint == "unpack it first"
    touch(tmp_path, "flat/1.jpg")
    with pytest.raises(ImageError, match="no folders with images"):
        read_labelled(tmp_path / "flat", "train")
    with pytest.raises(ImageError, match="no such folder"):
        read_class_folders(tmp_path / "nowhere")
