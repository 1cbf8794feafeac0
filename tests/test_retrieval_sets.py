"""Each layout is written as its authors distribute it, and read back."""

import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from dinov2kit.errors import ImageError
from dinov2kit.plain_pickle import read_plain_pickle
from dinov2kit.public_retrieval_sets import READERS
from dinov2kit.retrieval_eval import RetrievalSpec, read_retrieval_set
from dinov2kit.retrieval_sets import RetrievalSet, read_own_csv, read_own_folders


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def named(found: RetrievalSet, root: Path) -> dict[str, set[str]]:
    """Return the names of the positives of each query, in the set's only setup."""
    (setup,) = found.setups.values()
    index = [path.relative_to(root).as_posix() for path in found.index]
    return {
        query.path.relative_to(root).as_posix(): {index[place] for place in query.truth(setup)[0]}
        for query in found.queries
    }


def revisited(root: Path, protocol: int) -> dict[str, object]:
    truth = {
        "imlist": ["all_souls_000001", "all_souls_000002", "oxford_000317", "worcester_000012"],
        "qimlist": ["all_souls_000013", "radcliffe_camera_000519"],
        "gnd": [
            {"bbx": [136.5, 34.1, 648.5, 955.7], "easy": [0], "hard": np.array([2]), "junk": [3]},
            {"bbx": np.array([1.0, 2, 3, 4]), "easy": [], "hard": [1, 2], "junk": np.int64(0)},
        ],
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth, protocol))
    return truth


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("above", [False, True])
def test_the_revisited_truth_becomes_three_setups(tmp_path: Path, protocol: int, above: bool) -> None:
    base = tmp_path / "roxford5k"
    revisited(base, protocol)
    found = READERS["roxford5k"](tmp_path if above else base)
    assert found.index[2] == base / "jpg/oxford_000317.jpg"
    first = found.queries[0]
    assert first.path == base / "jpg/all_souls_000013.jpg"
    assert first.box == (136.5, 34.1, 648.5, 955.7)
    assert [query.group for query in found.queries] == ["all_souls", "radcliffe_camera"]
    truths = {
        name: [[sorted(side.tolist()) for side in query.truth(setup)] for query in found.queries]
        for name, setup in found.setups.items()
    }
    assert truths == {
        "easy": [[[0], [2, 3]], [[], [0, 1, 2]]],
        "medium": [[[0, 2], [3]], [[1, 2], [0]]],
        "hard": [[[2], [0, 3]], [[1, 2], [0]]],
    }
    assert found.rule == "trapezoid"


class _Trap:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch trap",)


@pytest.mark.parametrize(
    "bad",
    [
        pickle.dumps({"gnd": _Trap()}),
        b"cbuiltins\neval\n(V__import__('os')\ntR.",
        b"c_codecs\nencode\n(Vx\nVzlib\ntR.",
        b"cnumpy.lib.npyio\nload\n.",
        pickle.dumps({"gnd": 1})[:-3],
        b"no pickle",
        b"",
    ],
)
def test_a_pickle_that_wants_more_than_facts_is_refused(tmp_path: Path, bad: bytes, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gnd_rparis6k.pkl").write_bytes(bad)
    with pytest.raises(ImageError, match=r"gnd_rparis6k\.pkl is not read"):
        READERS["rparis6k"](tmp_path)
    assert not (tmp_path / "trap").exists()


def test_plain_facts_come_back_as_they_were(tmp_path: Path) -> None:
    facts = {"a": [1, 2.5, "ä", b"raw", None, True], "b": (np.arange(6).reshape(2, 3), np.float32(0.5))}
    for protocol in range(6):
        (tmp_path / "facts.pkl").write_bytes(pickle.dumps(facts, protocol))
        read = read_plain_pickle(tmp_path / "facts.pkl")
        assert read["a"] == facts["a"]
        assert np.array_equal(read["b"][0], facts["b"][0])
        assert read["b"][1] == np.float32(0.5)


def test_a_pickle_of_numpy_1_is_read(tmp_path: Path) -> None:
    """NumPy 2 moved `numpy.core`; the files of 2018 name the old place."""
    content = pickle.dumps({"easy": np.arange(3)}, 2).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy._core" not in content
    pickletools.dis(content, io.StringIO())  # still a whole pickle
    (tmp_path / "old.pkl").write_bytes(content)
    assert read_plain_pickle(tmp_path / "old.pkl")["easy"].tolist() == [0, 1, 2]


def test_a_place_beyond_the_index_is_named(tmp_path: Path) -> None:
    truth = revisited(tmp_path, 2)
    truth["gnd"][1]["hard"] = [1, 4]
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(ImageError, match="place 4 is not among 4 images"):
        READERS["roxford5k"](tmp_path)
    truth["imlist"][0] = "../../secret"
    truth["gnd"][1]["hard"] = [1]
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(ImageError, match="leads out of"):
        READERS["roxford5k"](tmp_path)


def test_holidays_asks_with_the_first_of_each_hundred_and_leaves_it_out(tmp_path: Path) -> None:
    touch(tmp_path, *(f"jpg/{number}.jpg" for number in (100000, 100001, 100002, 100100, 100101)))
    found = READERS["holidays"](tmp_path)
    assert named(found, tmp_path / "jpg") == {
        "100000.jpg": {"100001.jpg", "100002.jpg"},
        "100100.jpg": {"100101.jpg"},
    }
    assert [query.truth(found.setups["all"])[1].tolist() for query in found.queries] == [[0], [3]]
    assert (len(found.index), found.rule) == (5, "trapezoid")


def test_copydays_searches_the_originals_for_every_kind_of_copy(tmp_path: Path) -> None:
    touch(
        tmp_path,
        *("original/200000.jpg", "original/200100.jpg", "strong/200001.jpg", "strong/200102.jpg"),
        *("jpegqual/3/200000.jpg", "jpegqual/75/200100.jpg", "crops/80/200000.jpg", "crops/80/readme.txt"),
    )
    found = READERS["copydays"](tmp_path)
    assert named(found, tmp_path) == {
        "strong/200001.jpg": {"original/200000.jpg"},
        "strong/200102.jpg": {"original/200100.jpg"},
        "jpegqual/3/200000.jpg": {"original/200000.jpg"},
        "jpegqual/75/200100.jpg": {"original/200100.jpg"},
        "crops/80/200000.jpg": {"original/200000.jpg"},
    }
    assert [query.group for query in found.queries] == [
        *("strong", "strong", "jpegqual/3", "jpegqual/75", "crops/80")
    ]


@pytest.mark.parametrize("header", ["", "query_id,reference_id\n"])
def test_disc21_has_distractors_among_its_queries(tmp_path: Path, header: str) -> None:
    touch(tmp_path, "dev_queries_50k_0/Q00000.jpg", "dev_queries_50k_0/Q00001.jpg", "queries/Q00002.jpg")
    touch(tmp_path, "refs_50k_0/R000000.jpg", "refs_50k_1/R050000.jpg", "train/T000000.jpg")
    table = f"{header}Q00002,R050000\nQ00001,\nQ00000,R000000\nQ00000,R050000\n"
    (tmp_path / "dev_queries_groundtruth.csv").write_text(table)
    found = READERS["disc21"](tmp_path)
    assert named(found, tmp_path) == {
        "dev_queries_50k_0/Q00000.jpg": {"refs_50k_0/R000000.jpg", "refs_50k_1/R050000.jpg"},
        "dev_queries_50k_0/Q00001.jpg": set(),
        "queries/Q00002.jpg": {"refs_50k_1/R050000.jpg"},
    }
    (tmp_path / "dev_queries_groundtruth.csv").write_text("Q00009,R000000\n")
    with pytest.raises(ImageError, match="Q00009"):
        READERS["disc21"](tmp_path)


def test_cub_asks_with_its_last_hundred_classes(tmp_path: Path) -> None:
    (tmp_path / "images.txt").write_text("1 001.Albatross/a.jpg\n2 101.Pelican/b.jpg\n3 101.Pelican/c.jpg\n")
    (tmp_path / "image_class_labels.txt").write_text("1 1\n2 101\n3 101\n")
    found = READERS["cub200"](tmp_path)
    assert named(found, tmp_path / "images") == {
        "101.Pelican/b.jpg": {"101.Pelican/c.jpg"},
        "101.Pelican/c.jpg": {"101.Pelican/b.jpg"},
    }


def test_products_and_clothes_are_read_from_their_tables(tmp_path: Path) -> None:
    head = "image_id class_id super_class_id path\n"
    rows = "59552 11319 1 bicycle_final/251_0.JPG\n59553 11319 1 bicycle_final/251_1.JPG\n"
    (tmp_path / "Ebay_test.txt").write_text(head + rows)
    assert named(READERS["sop"](tmp_path), tmp_path) == {
        "bicycle_final/251_0.JPG": {"bicycle_final/251_1.JPG"},
        "bicycle_final/251_1.JPG": {"bicycle_final/251_0.JPG"},
    }
    (tmp_path / "Eval").mkdir()
    lines = [
        "4\nimage_name item_id evaluation_status",
        "img/WOMEN/id_1/02_1_front.jpg                      id_1 train",
        "img/WOMEN/id_2/02_1_front.jpg                      id_2 query",
        "img/WOMEN/id_2/02_2_side.jpg                       id_2 gallery",
        "img/WOMEN/id_3/02_2_side.jpg                       id_3 gallery",
    ]
    (tmp_path / "Eval/list_eval_partition.txt").write_text("\n".join(lines))
    found = READERS["inshop"](tmp_path)
    assert named(found, tmp_path) == {"img/WOMEN/id_2/02_1_front.jpg": {"img/WOMEN/id_2/02_2_side.jpg"}}
    assert len(found.index) == 2
    touch(tmp_path, "Img/img/x")
    assert READERS["inshop"](tmp_path).index[0] == tmp_path / "Img/img/WOMEN/id_2/02_2_side.jpg"


def test_own_folders_ask_for_their_like_or_in_an_index(tmp_path: Path) -> None:
    touch(tmp_path, "one/cat/1.jpg", "one/cat/deep/2.png", "one/dog/3.jpg", "one/dog/notes.txt")
    assert named(read_own_folders(tmp_path / "one"), tmp_path / "one") == {
        "cat/1.jpg": {"cat/deep/2.png"},
        "cat/deep/2.png": {"cat/1.jpg"},
        "dog/3.jpg": set(),
    }
    touch(
        tmp_path,
        "two/query/cat/1.jpg",
        "two/gallery/cat/2.jpg",
        "two/gallery/cat/3.jpg",
        "two/gallery/dog/4.jpg",
    )
    assert named(read_own_folders(tmp_path / "two"), tmp_path / "two") == {
        "query/cat/1.jpg": {"gallery/cat/2.jpg", "gallery/cat/3.jpg"}
    }


def test_own_tables_ask_for_their_like_or_in_an_index(tmp_path: Path) -> None:
    table = tmp_path / "set.csv"
    table.write_text("path,label\na.jpg,x\nb.jpg,x\nc.jpg,y\n")
    assert named(read_own_csv(table), tmp_path) == {"a.jpg": {"b.jpg"}, "b.jpg": {"a.jpg"}, "c.jpg": set()}
    table.write_text("label,split,path\nx,query,a.jpg\nx,index,b.jpg\ny,index,c.jpg\n")
    assert named(read_own_csv(table), tmp_path) == {"a.jpg": {"b.jpg"}}
    table.write_text("path,label,split\na.jpg,x,query\nb.jpg,x,holdout\n")
    with pytest.raises(ImageError, match=r"the split of .* is 'holdout'"):
        read_own_csv(table)


@pytest.mark.parametrize("name", READERS)
def test_what_is_missing_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=str(tmp_path)):
        READERS[name](tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("cub200", "images.txt", "1\n"),
        ("cub200", "image_class_labels.txt", "1 one\n"),
        ("sop", "Ebay_test.txt", "head\n1 2 path\n"),
        ("inshop", "Eval/list_eval_partition.txt", "1\nhead\nimg/a.jpg id_1\n"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, name: str, file: str, content: str) -> None:
    (tmp_path / "images.txt").write_text("1 101.Pelican/b.jpg\n")
    (tmp_path / "image_class_labels.txt").write_text("1 101\n")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(content)
    with pytest.raises(ImageError, match=Path(file).name):
        READERS[name](tmp_path)


def test_drawn_queries_are_some_of_all_and_distractors_match_nothing(tmp_path: Path) -> None:
    touch(tmp_path, *(f"set/{label}/{number}.jpg" for label in "abc" for number in range(4)), "far/x.jpg")
    whole = read_retrieval_set(RetrievalSpec("folders", tmp_path / "set"))
    spec = RetrievalSpec("folders", tmp_path / "set", limit=5, seed=3, distractors=tmp_path / "far")
    drawn = read_retrieval_set(spec)
    paths = [query.path for query in whole.queries]
    places = [paths.index(query.path) for query in drawn.queries]
    assert len(places) == 5
    assert places == sorted(places)
    assert drawn.index == (*whole.index, tmp_path / "far/x.jpg")
    assert [query.path for query in read_retrieval_set(spec).queries] == [paths[place] for place in places]
    assert all(12 not in query.truth(drawn.setups["all"])[0] for query in drawn.queries)
