"""Encoder: descriptors are right whatever the batch, the orientation or the precision."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from dinov2kit import ArgumentError, DeviceError, Encoder
from dinov2kit.features import FeatureSpec
from dinov2kit.images import load_picture
from dinov2kit.views import CenterCrop, KeepAspect
from dinov2kit.weights import load_model


@pytest.fixture(scope="module")
def encoder():
    return Encoder("untrained:vitt14", precision="fp32", device="cpu")


@pytest.fixture(scope="module")
def photos(encoder):
    sources = [data.astronaut(), data.chelsea(), data.coffee()]
    return np.stack([load_picture(source, encoder.view).pixels for source in sources])


def stored_with(orientation: int, photo: np.ndarray) -> bytes:
    """Store a photo so that a viewer that obeys EXIF shows it upright."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = Image.fromarray(photo)
    if undo is not None:
        image = image.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


def test_descriptors_have_length_one_and_differ_between_photos(encoder, photos):
    rows = encoder.embed(photos)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1.0, abs=1e-5)
    cosines = rows @ rows.T
    assert cosines[np.triu_indices(3, 1)].max() < 0.999


def test_batched_equals_single(encoder, photos):
    batched = encoder.embed(photos)
    single = np.concatenate([encoder.embed(photos[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(batched, single, atol=1e-5)


def test_a_descriptor_is_the_normalised_class_token_of_the_normalised_image(encoder, photos):
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    images = ((torch.from_numpy(photos).float() / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(encoder.vit(images).class_token, dim=-1)
    np.testing.assert_allclose(encoder.embed(photos), wanted.numpy(), atol=1e-5)


@pytest.mark.parametrize("photo", ["chelsea", "astronaut"])
def test_eight_exif_orientations_of_one_photo_give_one_descriptor(encoder, photo):
    pixels = getattr(data, photo)()
    stored = [stored_with(orientation, pixels) for orientation in range(1, 9)]
    rows = encoder.embed(np.stack([load_picture(source, encoder.view).pixels for source in stored]))
    assert (rows @ rows.T).min() >= 0.999


def test_features_live_on_the_grid_of_the_whole_image(encoder):
    photo = data.chelsea()  # 300 x 451
    features = encoder.encode(photo, FeatureSpec(size=224))
    assert (features.grid.rows, features.grid.cols) == (11, 16)
    assert features.patch_tokens.shape == (11 * 16, 192)
    assert features.register_tokens.shape == (4, 192)
    lengths = torch.linalg.vector_norm(features.local_descriptors, dim=1)
    torch.testing.assert_close(lengths, torch.ones(11 * 16))
    pixels = load_picture(photo, KeepAspect(size=224, patch_size=14)).pixels
    torch.testing.assert_close(
        features.global_descriptor, torch.from_numpy(encoder.embed(pixels[None])[0]), atol=1e-5, rtol=0
    )


def test_automatic_precision_agrees_with_fp32(encoder, photos):
    automatic = Encoder("untrained:vitt14", device="cpu", precision="auto")
    cosines = (automatic.embed(photos) * encoder.embed(photos)).sum(axis=1)
    assert cosines.min() >= 0.999
    assert automatic.precision in ("fp32", "bf16")


def test_bf16_is_refused_when_it_disagrees_with_fp32(photos, monkeypatch):
    monkeypatch.setattr("dinov2kit.encoder.computes_bf16", lambda device: True)
    monkeypatch.setattr("dinov2kit.encoder.SAFE_COSINE", 1.1)
    strict = Encoder("untrained:vitt14", device="cpu", precision="auto")
    strict.embed(photos)
    assert strict.precision == "fp32"


def test_bf16_is_taken_when_it_agrees(photos, monkeypatch):
    monkeypatch.setattr("dinov2kit.encoder.computes_bf16", lambda device: True)
    lenient = Encoder("untrained:vitt14", device="cpu", precision="auto")
    assert lenient.precision == "fp32"
    lenient.embed(photos)
    assert lenient.precision == "bf16"


def test_identity_names_the_weights_and_not_the_place_they_came_from():
    same, other = Encoder("untrained:vitt14"), Encoder("untrained:vitt14:1")
    again = Encoder("untrained:vitt14:0")
    assert same.identity.fingerprint == again.identity.fingerprint
    assert same.identity.fingerprint != other.identity.fingerprint


@pytest.mark.parametrize(
    ("model", "crop", "resize"),
    [
        ("untrained:vitt14", 224, 256),
        ("untrained:vitn16", 224, 256),
        ("untrained:vitn15", 210, 240),
        ("untrained:vitn18", 216, 247),
    ],
)
def test_the_view_has_whole_patches(model, crop, resize):
    encoder = Encoder(model, device="cpu")
    assert (encoder.view.crop, encoder.view.resize) == (crop, resize)
    rows = encoder.embed(load_picture(data.chelsea(), encoder.view).pixels[None])
    assert np.linalg.norm(rows) == pytest.approx(1.0, abs=1e-5)


def test_the_identity_of_a_model_without_a_normalisation_of_its_own_is_that_of_its_view():
    encoder = Encoder("untrained:vitt14", device="cpu")
    assert encoder.identity.preprocess == CenterCrop(256, 224).describe()
    named = dataclasses.replace(
        load_model("untrained:vitt14"),
        metadata={"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]", "image_size": "224"},
    )
    assert Encoder(named, device="cpu").identity.fingerprint == encoder.identity.fingerprint
    for other in ({"mean": "[0.5, 0.5, 0.5]", "std": "[0.2, 0.2, 0.2]"}, {"image_size": "98"}):
        changed = Encoder(dataclasses.replace(named, metadata=other), device="cpu")
        assert changed.identity.fingerprint != encoder.identity.fingerprint


def test_unknown_device_and_precision_are_named():
    with pytest.raises(ArgumentError, match="int3"):
        Encoder("untrained:vitt14", precision="int3")
    with pytest.raises(DeviceError, match="cuda:99"):
        Encoder("untrained:vitt14", device="cuda:99")
