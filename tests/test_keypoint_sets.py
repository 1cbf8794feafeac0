"""Each layout is written as its authors distribute it, and read back."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dinov2kit.animal_pairs import read_ap10k
from dinov2kit.errors import ImageError
from dinov2kit.keypoint_sets import (
    read_pairs_json,
    read_pf_pascal,
    read_pf_willow,
    read_spair,
    write_pairs_json,
)

SPAIR = "000001-2008_002719-2008_004100:aeroplane"


def write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def spair(root: Path, colon: str = ":") -> Path:
    write(root / "Layout/large/test.txt", f"{SPAIR}\n")
    facts = {
        "src_imname": "2008_002719.jpg",
        "trg_imname": "2008_004100.jpg",
        "src_imsize": [500, 333, 3],
        "trg_imsize": [480, 360, 3],
        "src_bndbox": [10, 20, 300, 200],
        "trg_bndbox": [5, 6, 205, 306],
        "category": "aeroplane",
        "src_kps": [[12, 34], [56.5, 78]],
        "trg_kps": [[21, 43], [65, 87]],
        "kps_ids": ["0", "4"],
        "mirror": 0,
        "viewpoint_variation": 2,
        "scale_variation": 1,
        "truncation": 0,
        "occlusion": 3,
    }
    write(root / "PairAnnotation/test" / f"{SPAIR.replace(':', colon)}.json", facts)
    return root


@pytest.mark.parametrize("colon", [":", "_"])
def test_spair_is_read_with_its_buckets(tmp_path: Path, colon: str) -> None:
    (pair,) = read_spair(spair(tmp_path, colon))
    assert pair.name == SPAIR
    assert pair.path0 == tmp_path / "JPEGImages/aeroplane/2008_002719.jpg"
    assert pair.path1 == tmp_path / "JPEGImages/aeroplane/2008_004100.jpg"
    assert pair.keypoints0.tolist() == [[12, 34], [56.5, 78]]
    assert pair.keypoints1.tolist() == [[21, 43], [65, 87]]
    assert pair.box1 == (5, 6, 205, 306)
    assert pair.buckets == {"viewpoint": "2", "scale": "1", "truncation": "0", "occlusion": "3"}


def test_a_missing_file_of_spair_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"Layout/large/test\.txt is missing"):
        list(read_spair(tmp_path))
    (spair(tmp_path) / "PairAnnotation/test" / f"{SPAIR}.json").write_text("{")
    with pytest.raises(ImageError, match="cannot be read"):
        list(read_spair(tmp_path))
    (tmp_path / "PairAnnotation/test" / f"{SPAIR}.json").write_text("{}")
    with pytest.raises(ImageError, match=r"aeroplane\.json: KeyError\('category'\)"):
        list(read_spair(tmp_path))


def test_pf_pascal_is_read_from_the_list(tmp_path: Path) -> None:
    image = tmp_path / "PF-dataset-PASCAL/JPEGImages/2008_006325.jpg"
    write(image, "")
    row = "PF-dataset-PASCAL/JPEGImages/2008_006325.jpg,PF-dataset-PASCAL/JPEGImages/2010_005643.jpg,1"
    write(
        tmp_path / "image_pairs/test_pairs.csv",
        f"source_image,target_image,class,XA,YA,XB,YB\n{row},1.5;2;3,4;5;6,7;8;9,10;11;12\n",
    )
    (pair,) = read_pf_pascal(tmp_path)
    assert pair.path0 == image
    assert pair.category == "aeroplane"
    assert pair.keypoints0.tolist() == [[1.5, 4], [2, 5], [3, 6]]
    assert pair.keypoints1.tolist() == [[7, 10], [8, 11], [9, 12]]


@pytest.mark.parametrize("folder", ["", "image_pairs", "PF-dataset-PASCAL"])
@pytest.mark.parametrize("ending", ["", "_pf_pascal"])
@pytest.mark.parametrize(
    ("split", "word"), [("test", "test"), ("val", "val"), ("trn", "train"), ("trn", "trn")]
)
def test_the_list_of_pf_pascal_is_found_under_the_names_in_use(
    tmp_path: Path, folder: str, ending: str, split: str, word: str
) -> None:
    head, row = "source_image,target_image,class,XA,YA,XB,YB", "a.jpg,b.jpg,20,1,2,3,4"
    write(tmp_path / folder / f"{word}_pairs{ending}.csv", f"{head}\n{row}\n")
    (pair,) = read_pf_pascal(tmp_path, split)
    assert (pair.category, pair.keypoints1.tolist()) == ("tvmonitor", [[3, 4]])


def test_a_row_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    head = "source_image,target_image,class,XA,YA,XB,YB"
    write(tmp_path / "test_pairs.csv", f"{head}\na.jpg,b.jpg,99,1,2,3,4\n")
    with pytest.raises(ImageError, match=r"test_pairs\.csv: .*row 0"):
        list(read_pf_pascal(tmp_path))
    write(tmp_path / "test_pairs.csv", f"{head}\na.jpg,b.jpg,1,1;2,2;3,3,4\n")
    with pytest.raises(ImageError, match="2 keypoints in the source and 1 in the target"):
        list(read_pf_pascal(tmp_path))


def test_pf_pascal_reads_annotations_where_the_list_has_none_and_leaves_mirrored_rows(tmp_path: Path) -> None:
    for stem, points in (("a", [[1, 2], [np.nan, np.nan], [5, 6]]), ("b", [[7, 8], [9, 10], [11, 12]])):
        path = tmp_path / f"Annotations/bicycle/{stem}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"kps": np.array(points, float), "bbox": np.array([1, 2, 3, 4.0])})
    rows = "JPEGImages/a.jpg,JPEGImages/b.jpg,2,0\nJPEGImages/a.jpg,JPEGImages/b.jpg,2,1\n"
    write(tmp_path / "train_pairs.csv", f"source_image,target_image,class,flip\n{rows}")
    (pair,) = read_pf_pascal(tmp_path, "trn")
    assert pair.keypoints0.tolist() == [[1, 2], [5, 6]]  # what one image lacks is in neither
    assert pair.keypoints1.tolist() == [[7, 8], [11, 12]]


def test_pf_willow_pairs_all_images_of_a_folder_in_order(tmp_path: Path) -> None:
    for number in range(3):
        path = tmp_path / f"PF-dataset/car(G)/0{number}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"pts_coord": np.stack([np.arange(10) + number, 100 + np.arange(10)])})
    pairs = list(read_pf_willow(tmp_path))
    assert len(pairs) == 6
    first = pairs[0]
    assert (first.path0.name, first.path1.name, first.category) == ("00.png", "01.png", "car(G)")
    assert first.keypoints0[2].tolist() == [2, 102]
    assert first.keypoints1[2].tolist() == [3, 102]


def test_pf_willow_is_read_from_the_list_of_weakalign(tmp_path: Path) -> None:
    heads = [f"{axis}{side}{i}" for side in "AB" for axis in "XY" for i in range(1, 11)]
    numbers = [str(value) for value in range(40)]
    names = "PF-dataset/duck(S)/060_0000.png,PF-dataset/duck(S)/060_0001.png"
    write(tmp_path / "test_pairs_pf.csv", f"imageA,imageB,{','.join(heads)}\n{names},{','.join(numbers)}\n")
    (pair,) = read_pf_willow(tmp_path)
    assert pair.category == "duck(S)"
    assert pair.keypoints0[0].tolist() == [0, 10]
    assert pair.keypoints1[9].tolist() == [29, 39]
    with pytest.raises(ImageError, match=r"no folders of images with \.mat files"):
        list(read_pf_willow(tmp_path / "PF-dataset"))


def test_pairs_of_ones_own_are_read(tmp_path: Path) -> None:
    entry = {"src": "a.jpg", "trg": "b.jpg", "src_kps": [[1, 2]], "trg_kps": [[3, 4]]}
    write(tmp_path / "pairs.json", [{**entry, "trg_bbox": [0, 1, 10, 20], "set": "mine"}, entry])
    (tmp_path / "images").mkdir()
    first, second = read_pairs_json(tmp_path)
    assert first.path0 == tmp_path / "images/a.jpg"
    assert (first.box1, second.box1) == ((0, 1, 10, 20), None)
    assert first.buckets == {"set": "mine"}
    write(tmp_path / "pairs.json", [{"src": "a.jpg"}])
    with pytest.raises(ImageError, match="wanted src, trg, src_kps and trg_kps"):
        list(read_pairs_json(tmp_path / "pairs.json"))


ENTRY = {"src": "a.jpg", "trg": "b.jpg", "src_kps": [[1, 2], [3, 4]], "trg_kps": [[5, 6], [7, 8]]}


def test_images_of_ones_own_lie_beside_the_list_or_in_its_folder_of_images(tmp_path: Path) -> None:
    write(tmp_path / "images/a.jpg", "")
    write(tmp_path / "b.jpg", "")
    write(tmp_path / "pairs.json", [ENTRY, {**ENTRY, "src": "images/a.jpg"}])
    for pair in read_pairs_json(tmp_path):
        assert (pair.path0, pair.path1) == (tmp_path / "images/a.jpg", tmp_path / "b.jpg")


def test_a_keypoint_that_one_image_lacks_is_in_neither(tmp_path: Path) -> None:
    write(tmp_path / "pairs.json", [{**ENTRY, "trg_kps": [[None, None], [7, 8]]}])
    (pair,) = read_pairs_json(tmp_path)
    assert (pair.keypoints0.tolist(), pair.keypoints1.tolist()) == ([[3, 4]], [[7, 8]])


@pytest.mark.parametrize("count", [1, 3])
def test_keypoints_that_do_not_belong_together_are_refused(tmp_path: Path, count: int) -> None:
    write(tmp_path / "pairs.json", [{**ENTRY, "trg_kps": [[5, 6]] * count}])
    with pytest.raises(ImageError, match=f"2 keypoints in the source and {count} in the target"):
        list(read_pairs_json(tmp_path))


@pytest.mark.parametrize("box", [[1, 2, 3], ["a", 2, 3, 4], 5])
def test_a_box_that_is_none_is_named(tmp_path: Path, box: object) -> None:
    write(tmp_path / "pairs.json", [{**ENTRY, "trg_bbox": box}])
    with pytest.raises(ImageError, match=r"pairs\.json: .*pair 0"):
        list(read_pairs_json(tmp_path))


def test_pairs_survive_being_written(tmp_path: Path) -> None:
    pairs = list(read_spair(spair(tmp_path / "spair")))
    write_pairs_json(tmp_path / "mine.json", pairs)
    (found,) = read_pairs_json(tmp_path / "mine.json")
    for name in ("path0", "path1", "category", "box1", "buckets"):
        assert getattr(found, name) == getattr(pairs[0], name)
    np.testing.assert_array_equal(found.keypoints0, pairs[0].keypoints0)
    np.testing.assert_array_equal(found.keypoints1, pairs[0].keypoints1)


def ap10k(root: Path, per_species: int = 60) -> Path:
    """Write two species of one family and one of another; of one image two animals are marked."""
    kinds = [(1, "antelope", "Bovidae"), (2, "buffalo", "Bovidae"), (3, "wolf", "Canidae")]
    images, annotations = [], []
    for kind, _, _ in kinds:
        for number in range(per_species):
            identity = kind * 1000 + number
            images.append({"id": identity, "file_name": f"{identity:012}.jpg"})
            points = [[number + i, 2 * i, 2 if i < 5 + number % 3 else 0] for i in range(17)]
            row = {"image_id": identity, "category_id": kind, "bbox": [1, 2, 30, 40], "iscrowd": 0}
            annotations.append({**row, "keypoints": np.ravel(points).tolist()})
    annotations.append({**annotations[0]})  # a second animal
    categories = [{"id": i, "name": name, "supercategory": family} for i, name, family in kinds]
    parts = np.array_split(np.arange(len(annotations) - 1), 3)
    for part, rows in zip(("train", "val", "test"), parts, strict=True):
        marked = [annotations[row] for row in rows] + (annotations[-1:] if 0 in rows else [])
        wanted = {row["image_id"] for row in marked}
        document = {
            "images": [image for image in images if image["id"] in wanted],
            "annotations": marked,
            "categories": categories,
        }
        write(root / f"annotations/ap10k-{part}-split1.json", document)
    return root


def test_ap10k_makes_pairs_within_and_across(tmp_path: Path) -> None:
    pairs = list(read_ap10k(ap10k(tmp_path)))
    kinds = [pair.buckets["kind"] for pair in pairs]
    assert kinds.count("intra") == 3 * 30 * 29 // 2
    assert kinds.count("cross-species") == 400
    assert kinds.count("cross-family") == 30
    assert all(len(pair.keypoints0) >= 3 for pair in pairs)
    assert {pair.box1 for pair in pairs} == {(1, 2, 31, 42)}
    used = {pair.path0.stem for pair in pairs if pair.category == "antelope"}
    assert min(used) == f"{1030:012}"  # the last 30 by name
    assert [pair.name for pair in read_ap10k(tmp_path)] == [pair.name for pair in pairs]
    assert [pair.name for pair in read_ap10k(tmp_path, seed=1)] != [pair.name for pair in pairs]


def test_ap10k_keeps_the_splits_apart_and_leaves_out_images_of_two_animals(tmp_path: Path) -> None:
    ap10k(tmp_path)
    names = {
        split: {path.name for pair in read_ap10k(tmp_path, split) for path in (pair.path0, pair.path1)}
        for split in ("test", "val", "trn")
    }
    assert not names["test"] & names["val"]
    assert not (names["test"] | names["val"]) & names["trn"]
    assert len(names["val"]) == 3 * 20
    assert f"{1000:012}.jpg" not in names["trn"]
    with pytest.raises(ImageError, match="is missing"):
        list(read_ap10k(tmp_path / "nowhere"))
