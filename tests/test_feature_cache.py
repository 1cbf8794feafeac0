"""Features kept on disk: equal to fresh ones, found when nothing changed, renewed when anything did."""

import dataclasses
import logging
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from pixel_encoder import PixelEncoder, paint_views
from skimage import data

from dinov2kit.encoder import Encoder
from dinov2kit.errors import ArgumentError, ImageError
from dinov2kit.feature_cache import CachedEncoder, FeatureCache, feature_key, write_features
from dinov2kit.features import Features, FeatureSpec
from dinov2kit.pairs import LocalEncoder

NAMES = ["a.png", "sub/b.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    paint_views(tmp_path / "photos", NAMES)
    return tmp_path / "photos"


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "features.h5")


def entries(cache: FeatureCache) -> list[Path]:
    return sorted(cache.path.with_name("features.h5.parts").rglob("*"))


def assert_same(found: Features, other: Features) -> None:
    assert found.grid == other.grid
    for name, tensor in vars(other).items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(getattr(found, name), tensor), name


def test_what_is_kept_is_what_was_computed_but_for_the_rounding_of_patch_tokens(
    photos: Path, cache: FeatureCache
) -> None:
    fresh = PixelEncoder().encode(photos / "a.png")
    stub = PixelEncoder()
    encoder = CachedEncoder(stub, cache)
    assert isinstance(encoder, LocalEncoder)
    missed, found = encoder.encode(photos / "a.png"), encoder.encode(photos / "a.png")
    assert (cache.misses, cache.hits, stub.encoded) == (1, 1, ["a.png"])
    assert_same(found, missed)  # a resumed run sees what a straight one saw
    assert_same(found, dataclasses.replace(fresh, patch_tokens=fresh.patch_tokens.half().float()))
    assert not torch.equal(found.patch_tokens, fresh.patch_tokens)
    largest = (found.patch_tokens - fresh.patch_tokens).abs() / fresh.patch_tokens.abs()
    assert largest.nan_to_num().max() <= 2**-11


def test_scores_of_a_real_encoder_stay_within_the_rounding(tmp_path: Path, cache: FeatureCache) -> None:
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.png")
    encoder = Encoder("untrained:vitt14", device="cpu", precision="fp32")
    for spec in (FeatureSpec(size=112), FeatureSpec(size=112, resize="letterbox", facet="key", turns=1)):
        fresh = encoder.encode(tmp_path / "cat.png", spec)
        CachedEncoder(encoder, cache).encode(tmp_path / "cat.png", spec)
        found = CachedEncoder(encoder, FeatureCache(cache.path)).encode(tmp_path / "cat.png", spec)
        assert found.grid == fresh.grid
        assert torch.equal(found.magnitudes, fresh.magnitudes)
        assert torch.equal(found.class_token, fresh.class_token)
        cosine = (found.local_descriptors.double() * fresh.local_descriptors.double()).sum(dim=1)
        assert cosine.min() > 1 - 2**-20  # 2^-22 by the rounding, the rest by the arithmetic of fp32
        scores = [features.local_descriptors @ features.local_descriptors.T for features in (found, fresh)]
        assert (scores[0] - scores[1]).abs().max() < 0.001
    assert (cache.hits, cache.misses) == (0, 2)


@pytest.mark.parametrize("change", ["image", "spec", "weights", "nothing", "name"])
def test_everything_that_changes_features_is_a_miss_and_nothing_else_is(
    photos: Path, cache: FeatureCache, change: str
) -> None:
    CachedEncoder(PixelEncoder(), cache).encode(photos / "a.png")
    stub, path, spec = PixelEncoder(), photos / "a.png", FeatureSpec()
    if change == "image":
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    elif change == "spec":
        spec = FeatureSpec(turns=1)
    elif change == "weights":
        stub = PixelEncoder("1" * 64)
    elif change == "name":
        stub.identity = dataclasses.replace(stub.identity, name="/weights/pixels.pth")
        path = path.rename(photos / "moved.png")
    CachedEncoder(stub, cache).encode(path, spec)
    assert len(stub.encoded) == cache.hits ^ 1 == (change in ("image", "spec", "weights"))


def test_every_choice_of_a_spec_is_part_of_the_key() -> None:
    model = PixelEncoder().identity
    changes = {
        "size": 700,
        "resize": "squash",
        "layer": 3,
        "facet": "key",
        "norm": False,
        "stride": 7,
        "debias": 2,
        "turns": 2,
        "mirrored": True,
    }
    assert changes.keys() == FeatureSpec().describe().keys()
    specs = [FeatureSpec(), *(FeatureSpec(**{name: value}) for name, value in changes.items())]
    assert len({feature_key("ab", model, spec) for spec in specs}) == len(specs)
    assert feature_key("ab", model, FeatureSpec(size=518)) == feature_key("ab", model, FeatureSpec())


@pytest.mark.parametrize("left", [0, 100, 0.5, -1, "one bit"])
def test_a_damaged_entry_is_encoded_anew_with_a_warning(
    photos: Path, cache: FeatureCache, caplog: pytest.LogCaptureFixture, left: float | str
) -> None:
    first = CachedEncoder(PixelEncoder(), cache).encode(photos / "a.png")
    (entry,) = [path for path in entries(cache) if path.is_file()]
    content = bytearray(entry.read_bytes())
    if isinstance(left, str):
        tokens = np.asarray(first.patch_tokens.half()).tobytes()
        content[content.index(tokens[:64]) + 40] ^= 1
    else:
        content = content[: int(left * len(content)) if isinstance(left, float) else left]
    entry.write_bytes(content)
    stub = PixelEncoder()
    with caplog.at_level(logging.WARNING):
        assert_same(CachedEncoder(stub, cache).encode(photos / "a.png"), first)
    assert f"{entry} is damaged" in caplog.text
    assert stub.encoded == ["a.png"]
    assert_same(CachedEncoder(stub, cache).encode(photos / "a.png"), first)
    assert stub.encoded == ["a.png"]  # the entry is whole again


def test_an_entry_that_lacks_something_is_damaged_too(photos: Path, cache: FeatureCache) -> None:
    stub = PixelEncoder()
    CachedEncoder(stub, cache).encode(photos / "a.png")
    (entry,) = [path for path in entries(cache) if path.is_file()]
    for count, spoil in enumerate(
        [
            lambda file: file.pop("class_token"),
            lambda file: file.attrs.pop("rows"),
            lambda file: file.attrs.modify("rows", 6),
        ],
        start=2,
    ):
        with h5py.File(entry, "a") as file:
            spoil(file)
        CachedEncoder(stub, cache).encode(photos / "a.png")
        assert len(stub.encoded) == count


def test_what_fp16_cannot_hold_is_not_kept(photos: Path, cache: FeatureCache) -> None:
    class Loud(PixelEncoder):
        def encode(self, source: Path, spec: FeatureSpec | None = None) -> Features:
            features = super().encode(source, spec)
            return dataclasses.replace(features, patch_tokens=features.patch_tokens * 1000)

    stub = Loud()
    for _ in range(2):
        found = CachedEncoder(stub, cache).encode(photos / "a.png")
        assert torch.isfinite(found.patch_tokens).all()
    assert (stub.encoded, entries(cache)) == (["a.png"] * 2, [])


def test_an_image_that_cannot_be_read_is_an_error_and_leaves_no_entry(
    photos: Path, cache: FeatureCache
) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    for name in ("bad.png", "absent.png", "sub"):
        with pytest.raises(ImageError, match=name):
            CachedEncoder(PixelEncoder(), cache).encode(photos / name)
    assert entries(cache) == []


def test_a_folder_that_cannot_be_written_is_named(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = FeatureCache(tmp_path / "file" / "features.h5")
    with pytest.raises(ArgumentError, match="cannot write"):
        CachedEncoder(PixelEncoder(), cache).encode(photos / "a.png")


def test_the_features_file_is_in_the_layout_of_hloc(photos: Path, cache: FeatureCache) -> None:
    stub, images = PixelEncoder(), {name: photos / name for name in NAMES}
    assert write_features(CachedEncoder(stub, cache), images, cache.path) == []
    with h5py.File(cache.path) as file:
        assert sorted(file) == ["a.png", "sub"]
        for name in NAMES:
            group, fresh = file[name], PixelEncoder().encode(photos / name)
            truth = [[14 * col + 6.5, 14 * row + 6.5] for row in range(5) for col in range(8)]
            assert group["keypoints"][:].tolist() == truth
            assert group["keypoints"].attrs["uncertainty"] == 7
            assert group["image_size"][:].tolist() == [112, 70]
            assert group["scores"].shape == (40,)
            assert group["descriptors"].shape == (588, 40)
            np.testing.assert_allclose(group["descriptors"][:].T, fresh.local_descriptors, atol=1e-4)
    assert stub.encoded == ["a.png", "b.png"]


def test_the_features_file_is_left_alone_until_an_image_changes(photos: Path, cache: FeatureCache) -> None:
    encoder, images = CachedEncoder(PixelEncoder(), cache), {name: photos / name for name in NAMES}
    write_features(encoder, images, cache.path)
    inode = cache.path.stat().st_ino
    write_features(encoder, images, cache.path)
    assert cache.path.stat().st_ino == inode
    with h5py.File(cache.path) as file:
        before = {name: file[name]["descriptors"][:] for name in NAMES}
    (photos / "a.png").write_bytes((photos / "sub/b.png").read_bytes())
    write_features(encoder, images, cache.path)
    with h5py.File(cache.path) as file:
        np.testing.assert_array_equal(file["a.png/descriptors"][:], before["sub/b.png"])
        np.testing.assert_array_equal(file["sub/b.png/descriptors"][:], before["sub/b.png"])
    write_features(encoder, {"a.png": photos / "a.png"}, cache.path)
    with h5py.File(cache.path) as file:
        assert list(file) == ["a.png"]


def test_images_that_cannot_be_read_are_listed(photos: Path, cache: FeatureCache) -> None:
    (photos / "bad.png").write_bytes(b"no image")
    images = {name: photos / name for name in (*NAMES, "bad.png", "absent.png")}
    failed = write_features(PixelEncoder(), images, cache.path)
    assert [name for name, _ in failed] == ["absent.png", "bad.png"]
    assert "No such file" in failed[0][1]
    with h5py.File(cache.path) as file:
        assert sorted(file) == ["a.png", "sub"]


def test_the_file_of_another_program_is_not_replaced(photos: Path, cache: FeatureCache) -> None:
    with h5py.File(cache.path, "w") as file:
        file["a.png/keypoints"] = np.zeros((1, 2))
    before = cache.path.read_bytes()
    with pytest.raises(ArgumentError, match="another program"):
        write_features(PixelEncoder(), {"a.png": photos / "a.png"}, cache.path)
    assert cache.path.read_bytes() == before
