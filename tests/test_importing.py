"""Descriptors from elsewhere: what this project wrote comes back; files of others are understood."""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from colour_encoder import ColourEncoder, paint
from small_index import MODEL, contents, make_index, stored

from dinov2kit.errors import ArgumentError, StoreMismatch
from dinov2kit.indexes import Index, export_npy, export_parquet, import_descriptors, index_photos
from dinov2kit.indexes.snapshot import Snapshot


def exported(directory: Path, out: Path, **wishes: str) -> Path:
    with Snapshot.open(directory) as snapshot:
        write = export_npy if out.suffix == ".npy" else export_parquet
        write(snapshot, out, **wishes)
    return out


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_an_export_comes_back_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    directory = make_index(tmp_path / "a", 9)
    source = exported(directory, tmp_path / f"x{suffix}")
    done = import_descriptors(tmp_path / "b", source)
    assert (done.items, done.absent, done.model) == (9, 9, "tiny")
    assert contents(tmp_path / "b") == contents(directory)
    with Snapshot.open(tmp_path / "b") as snapshot:
        assert snapshot.card.model == MODEL
        photo = snapshot.photos(np.array([3]))[0]
    assert (photo.width, photo.height, photo.size) == (640, 480, 1003)


def test_fp32_rows_of_any_length_are_normalised(tmp_path: Path) -> None:
    source = exported(make_index(tmp_path / "a", 3), tmp_path / "x.npy", precision="fp32")
    np.save(source, 7 * np.load(source))
    import_descriptors(tmp_path / "b", source)
    with Snapshot.open(tmp_path / "b") as snapshot:
        rows = snapshot.descriptors(snapshot.ids).astype(np.float32)
    np.testing.assert_allclose(rows, np.stack([stored(seed) for seed in (1, 2, 3)]), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-3)


def test_files_on_disk_are_known_to_the_next_run_and_not_described_again(tmp_path: Path) -> None:
    for name, colour in (("red", (200, 10, 10)), ("green", (10, 200, 10)), ("blue", (10, 10, 200))):
        paint(tmp_path / "photos" / f"{name}.png", colour)
    made = index_photos(tmp_path / "a", [tmp_path / "photos"], encoder=ColourEncoder())
    source = exported(made.directory, tmp_path / "x.parquet")
    assert import_descriptors(tmp_path / "b", source).absent == 0
    encoder = ColourEncoder()
    again = index_photos(tmp_path / "b", [tmp_path / "photos"], encoder=encoder)
    assert (encoder.embedded, again.items) == (0, 3)
    with Index.open(tmp_path / "b", encoder=encoder) as index:
        assert index.search(tmp_path / "photos" / "red.png", k=1, include_self=True)[0].path.name == "red.png"


def test_files_of_others_need_a_path_per_row_and_a_name(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5))
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(ArgumentError, match="which file each row") as caught:
        import_descriptors(tmp_path / "b", tmp_path / "x.npy", name="mine")
    assert "x.jsonl" in str(caught.value.hint)
    lines = [json.dumps({"path": f"/far/{name}"}) for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg")]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with pytest.raises(ArgumentError, match="does not say which model"):
        import_descriptors(tmp_path / "b", tmp_path / "x.npy")
    done = import_descriptors(tmp_path / "b", tmp_path / "x.npy", name="mine")
    assert (done.items, done.absent) == (3, 3)
    with Snapshot.open(tmp_path / "b") as snapshot:
        assert [str(photo.path) for photo in snapshot.photos(snapshot.ids)] == [
            "/far/a/1.jpg",
            "/far/a/2.jpg",
            "/far/b/3.jpg",
        ]
        assert snapshot.card.model.dim == 5
        digests = {photo.digest for photo in snapshot.photos(snapshot.ids)}
    assert len(digests) == 3  # what nobody can read is no copy of anything


def test_the_sidecar_of_embed_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(MODEL.dim, dtype=np.float32)[:2])
    document = {"model": MODEL.to_json(), "paths": ["/far/1.jpg", "/far/2.jpg"]}
    (tmp_path / "x.npy.json").write_text(json.dumps(document))
    assert import_descriptors(tmp_path / "b", tmp_path / "x.npy").model == "tiny"


def test_rows_for_another_model_are_refused(tmp_path: Path) -> None:
    source = exported(make_index(tmp_path / "a", 2), tmp_path / "x.npy")
    target = make_index(tmp_path / "b", 1)
    sidecar = tmp_path / "x.npy.json"
    said = json.loads(sidecar.read_text())
    said["model"]["weights_sha256"] = "cd" * 32
    sidecar.write_text(json.dumps(said))
    before = contents(target)
    with pytest.raises(StoreMismatch):
        import_descriptors(target, source)
    assert contents(target) == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda x: np.save(x, np.zeros((2, 8))), "row 0 of .* is not finite, or zero"),
        (lambda x: np.save(x, np.full((2, 8), np.nan)), "row 0 of .* is not finite"),
        (lambda x: np.save(x, np.ones((3, 8))), "3 rows, but there are 2 paths"),
        (lambda x: np.save(x, np.ones(8)), "wanted floats"),
        (lambda x: np.save(x, np.ones((2, 8), int)), "wanted floats"),
        (lambda x: x.write_bytes(b"no matrix"), "is no NumPy file"),
        (lambda x: x.with_suffix(".jsonl").write_text('{"path": "/a"}\n[1]\n'), "line 2: wanted an object"),
        (lambda x: x.with_suffix(".jsonl").write_text('{"path": "/a"}\n{"pa'), "line 2"),
        (lambda x: x.with_suffix(".jsonl").write_text('{"path": "/a"}\n{"name": "b"}'), "has no path"),
        (lambda x: x.unlink(), "there is no file"),
    ],
)
def test_what_cannot_be_imported_is_named(tmp_path: Path, spoil, said: str) -> None:
    source = exported(make_index(tmp_path / "a", 2), tmp_path / "x.npy")
    spoil(source)
    with pytest.raises(ArgumentError, match=said):
        import_descriptors(tmp_path / "b", source)


def test_parquet_of_others_may_lack_everything_but_path_and_descriptor(tmp_path: Path) -> None:
    table = pyarrow.table({"path": ["/far/1.jpg"], "descriptor": [[0.6, 0.8]]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert import_descriptors(tmp_path / "b", tmp_path / "x.parquet", name="mine").items == 1
    with Snapshot.open(tmp_path / "b") as snapshot:
        np.testing.assert_allclose(snapshot.descriptors(snapshot.ids), [[0.6, 0.8]], atol=1e-3)
    pyarrow.parquet.write_table(table.select(["path"]), tmp_path / "y.parquet")
    with pytest.raises(ArgumentError, match="has the columns path; wanted path, descriptor"):
        import_descriptors(tmp_path / "c", tmp_path / "y.parquet", name="mine")
