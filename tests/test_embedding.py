"""Descriptors written to a file: order, content, bad images, every format."""

import json

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from dinov2kit import ArgumentError, Encoder, ImageError
from dinov2kit.cli import app
from dinov2kit.embedding import write_descriptors
from dinov2kit.features import FeatureSpec
from dinov2kit.images import list_images, load_picture


@pytest.fixture(scope="module")
def encoder():
    return Encoder("untrained:vitt14", precision="fp32", device="cpu")


@pytest.fixture
def photos(tmp_path):
    for name in ("coffee", "astronaut", "chelsea"):
        Image.fromarray(getattr(data, name)()).save(tmp_path / f"{name}.jpg")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 not really")
    return [tmp_path / f"{name}.jpg" for name in ("coffee", "broken", "astronaut", "chelsea")]


@pytest.fixture
def wanted(encoder, photos):
    good = [photos[0], photos[2], photos[3]]
    return encoder.embed(np.stack([load_picture(path, encoder.view).pixels for path in good]))


def read(out):
    if out.suffix == ".h5":
        with h5py.File(out) as file:
            return file["descriptors"][:], [p.decode() for p in file["paths"]], len(file["failed"])
    if out.suffix == ".npy":
        document = json.loads(out.with_name(out.name + ".json").read_text())
        return np.load(out), document["paths"], len(document["errors"])
    table = pq.read_table(out)
    return np.stack(table["descriptor"].to_numpy(zero_copy_only=False)), table["path"].to_pylist(), 1


@pytest.mark.parametrize("suffix", [".h5", ".npy", ".parquet"])
def test_rows_are_the_descriptors_in_the_order_of_the_inputs(encoder, photos, wanted, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    report = write_descriptors(encoder, photos, out)
    rows, paths, failed = read(out)
    np.testing.assert_allclose(rows, wanted, atol=1e-5)
    assert paths == [str(photos[i]) for i in (0, 2, 3)] == [str(path) for path in report.written]
    assert [path for path, _ in report.errors] == [photos[1]]
    assert failed == 1
    assert not list(tmp_path.glob(".*tmp"))


def test_local_descriptors_come_with_their_grid(encoder, photos, tmp_path):
    out = tmp_path / "out.h5"
    write_descriptors(encoder, photos, out, patches=True, size=112)
    features = encoder.encode(photos[3], FeatureSpec(size=112))
    with h5py.File(out) as file:
        group = file["local/2"]
        np.testing.assert_allclose(group["descriptors"][:], features.local_descriptors.numpy(), atol=1e-3)
        assert {key: group.attrs[key] for key in group.attrs} == pytest.approx(vars(features.grid))


def test_an_existing_file_is_kept_unless_asked(encoder, photos, tmp_path):
    out = tmp_path / "out.npy"
    out.write_text("precious")
    with pytest.raises(ArgumentError, match="exists"):
        write_descriptors(encoder, photos, out)
    assert out.read_text() == "precious"
    write_descriptors(encoder, photos, out, overwrite=True)
    assert len(np.load(out)) == 3


def test_a_run_that_fails_leaves_nothing_behind(encoder, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"")
    with pytest.raises(ImageError, match="none of 1"):
        write_descriptors(encoder, [bad], tmp_path / "out.h5")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]


@pytest.mark.parametrize(("name", "patches"), [("out.txt", False), ("out.npy", True)])
def test_formats_that_cannot_hold_the_result_are_refused(encoder, photos, tmp_path, name, patches):
    with pytest.raises(ArgumentError):
        write_descriptors(encoder, photos, tmp_path / name, patches=patches)


def test_folders_are_listed_sorted_and_files_as_given(photos, tmp_path):
    names = [path.name for path in list_images([photos[3], tmp_path])]
    assert names == ["chelsea.jpg", "astronaut.jpg", "broken.jpg", "chelsea.jpg", "coffee.jpg"]
    with pytest.raises(ImageError, match="no such"):
        list_images([tmp_path / "nowhere"])


def test_the_command_lists_bad_images_and_reports_in_json(photos, tmp_path):
    out = tmp_path / "out.h5"
    arguments = [
        "embed",
        *map(str, photos),
        "--out",
        str(out),
        "-m",
        "untrained:vitt14",
        "--workers",
        "0",
        "--json",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert (document["schema"], document["written"]) == ("dinokit.embed/1", 3)
    assert document["errors"][0]["path"] == str(photos[1])
    assert "broken.jpg" in result.stderr
    assert CliRunner().invoke(app, [*arguments, "--overwrite", "--strict"]).exit_code == 1
    assert CliRunner().invoke(app, arguments).exit_code == 2  # the file exists now
