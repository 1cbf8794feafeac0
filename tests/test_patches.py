"""Padding, turning and debiasing are proved on numbers; stride and facets on the network itself."""

from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch
from skimage import data

from dinov2kit import ArgumentError, Encoder, FeatureSpec
from dinov2kit.grid import PatchGrid
from dinov2kit.patches import main_directions, pad_to_grid, project_out, turn, turn_back
from dinov2kit.positions import subdivide_positions
from dinov2kit.views import Letterbox, Squash

PHOTO = data.chelsea()[:280, :420]
SPEC = FeatureSpec(size=168)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder("untrained:vitt14", precision="fp32", device="cpu")


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_patches_are_turned_back_to_where_they_were(turns: int, mirrored: bool) -> None:
    """A network that copies the top left pixel of each patch must give back the upright image."""
    grid = PatchGrid(rows=3, cols=5, patch_size=1, width=5, height=3, scale_x=1.0, scale_y=1.0)
    image = torch.arange(15.0).view(1, 1, 3, 5).expand(1, 3, 3, 5)
    spec = replace(SPEC, turns=turns, mirrored=mirrored)
    seen = turn(image, spec)
    assert seen.shape[2:] == ((5, 3) if turns % 2 else (3, 5))
    rows = seen[0].flatten(1).T
    torch.testing.assert_close(turn_back(rows, grid, spec)[:, 0], torch.arange(15.0))
    assert (turns == 0 and not mirrored) or not torch.equal(rows[:, 0], torch.arange(15.0))


@pytest.mark.parametrize(
    "pose", [{"turns": 1}, {"turns": 3}, {"mirrored": True}, {"turns": 2, "mirrored": True}]
)
def test_a_turned_image_seen_turned_back_has_the_features_of_the_upright_one(
    encoder: Encoder, pose: dict[str, int]
) -> None:
    spec = replace(SPEC, **pose)
    stored = np.rot90(PHOTO, -spec.turns)
    stored = np.ascontiguousarray(stored[:, ::-1] if spec.mirrored else stored)
    # the network sees rot90(flip(stored), turns); for it to be PHOTO, stored is flip(rot90(PHOTO, -turns))
    straight, seen = encoder.encode(PHOTO, SPEC), encoder.encode(stored, spec)
    wanted = straight.patch_tokens.view(straight.grid.rows, straight.grid.cols, -1)
    wanted = torch.rot90(wanted, -spec.turns, (0, 1))
    wanted = (wanted.flip(1) if spec.mirrored else wanted).flatten(0, 1)
    cosine = torch.nn.functional.cosine_similarity(seen.patch_tokens, wanted, dim=1)
    assert cosine.mean() > 0.995  # resizing goes in another order of directions
    assert (seen.grid.width, seen.grid.height) == (stored.shape[1], stored.shape[0])


def test_letterboxed_pixels_lie_where_the_grid_says() -> None:
    view = Letterbox(size=56)
    grid = view.grid(40, 20)
    placed = pad_to_grid(torch.ones(1, 3, 28, 56), grid)
    assert placed.shape == (1, 3, 56, 56)
    assert placed[0, 0, 14:42].eq(1).all()
    assert placed[0, 0, :14].eq(0).all()
    assert placed[0, 0, 42:].eq(0).all()
    np.testing.assert_allclose(grid.to_cells(np.array([[-0.5, -0.5]], np.float32)), [[-0.5, 0.5]])


@pytest.mark.parametrize("view", [Letterbox(size=112), Squash(size=112)])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (333, 500), (97, 31)])
def test_points_survive_letterbox_and_squash(view: Letterbox | Squash, width: int, height: int) -> None:
    grid = view.grid(width, height)
    pixels = np.random.default_rng(0).uniform(0, 1, (200, 2)) * [width, height] - 0.5
    np.testing.assert_allclose(grid.to_pixels(grid.to_cells(pixels.astype(np.float32))), pixels, atol=1e-3)
    on_image = grid.centers()[grid.inside()]
    assert on_image.min() > -0.5
    assert (on_image < [width - 0.5, height - 0.5]).all()


@pytest.mark.parametrize("resize", ["letterbox", "squash"])
def test_a_square_image_is_seen_alike_by_every_view(encoder: Encoder, resize: str) -> None:
    photo = PHOTO[:252, :252]
    kept, other = (encoder.encode(photo, replace(SPEC, resize=how)) for how in ("keep", resize))
    assert other.grid == kept.grid
    torch.testing.assert_close(other.patch_tokens, kept.patch_tokens)


def test_squares_that_are_no_whole_patches_are_refused() -> None:
    with pytest.raises(ArgumentError, match="515 pixels") as caught:
        Letterbox(size=515)
    assert "518" in str(caught.value.hint)
    with pytest.raises(ArgumentError, match="cannot be cut"):
        Squash(size=28)


def test_half_a_stride_doubles_the_grid_and_keeps_every_other_patch_in_its_place() -> None:
    grid = PatchGrid(rows=8, cols=12, patch_size=14, width=168, height=112, scale_x=1.0, scale_y=1.0)
    fine = grid.overlapped(7)
    assert (fine.rows, fine.cols) == (15, 23)
    assert fine.cell_px == (7, 7)
    centers = fine.centers().reshape(15, 23, 2)
    np.testing.assert_allclose(centers[::2, ::2].reshape(-1, 2), grid.centers())
    np.testing.assert_allclose(centers[0, 1], [13.5, 6.5])
    assert grid.overlapped(14) is grid


def test_overlapping_patches_have_the_positions_between_those_of_whole_ones() -> None:
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    plane = (2 * x - 3 * y + 1).flatten()[None, :, None]
    between = subdivide_positions(plane, rows=5, cols=7, parts=2).view(9, 13)
    y, x = torch.meshgrid(torch.arange(9.0) / 2, torch.arange(13.0) / 2, indexing="ij")
    inner = (slice(2, -2), slice(2, -2))  # at the border bicubic weights see a replicated row
    torch.testing.assert_close(between[inner], (2 * x - 3 * y + 1)[inner])
    torch.testing.assert_close(between[::2, ::2].flatten(), plane.flatten())


def test_whole_patches_enter_the_network_alike_at_either_stride(encoder: Encoder) -> None:
    images = torch.randn(1, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        coarse, fine = (encoder.vit._embed(images, None, stride)[0, 5:] for stride in (0, 7))
    assert len(coarse) == 4 * 6
    torch.testing.assert_close(fine.view(7, 11, -1)[::2, ::2].flatten(0, 1), coarse)


def test_patches_of_a_constant_image_differ_from_their_neighbours_by_half_at_half_the_stride() -> None:
    encoder = Encoder("untrained:vitt14", precision="fp32", device="cpu")
    flat = np.full((112, 112, 3), 90, np.uint8)
    coarse, fine = (encoder.encode(flat, replace(SPEC, size=112, stride=s)).local_descriptors for s in (0, 7))
    step = torch.linalg.vector_norm(coarse[1:] - coarse[:-1], dim=1).median()
    half = torch.linalg.vector_norm(fine[1:] - fine[:-1], dim=1).median()
    assert half < 0.8 * step


@pytest.mark.parametrize("model", ["untrained:vitt14", "untrained:vits14"])
def test_registers_and_the_class_token_never_leak_into_the_grid(model: str) -> None:
    encoder = Encoder(model, precision="fp32", device="cpu")
    features = encoder.encode(PHOTO, SPEC)
    assert len(features.patch_tokens) == features.grid.n_patches == 8 * 12
    before = encoder.encode(PHOTO, replace(SPEC, norm=False)).patch_tokens
    with torch.inference_mode():
        normed = encoder.vit.norm(before)
    torch.testing.assert_close(normed, features.patch_tokens)
    torch.testing.assert_close(features.magnitudes, torch.linalg.vector_norm(before, dim=1))


@pytest.mark.parametrize("layer", [-1, 3, -4])
def test_layers_and_facets_are_those_of_the_blocks(encoder: Encoder, layer: int) -> None:
    spec = replace(SPEC, layer=layer, norm=False)
    caught: dict[int, torch.Tensor] = {}
    depth = len(encoder.vit.blocks)
    block = encoder.vit.blocks[layer % depth]
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: caught.__setitem__(0, out)),
        block.attn.qkv.register_forward_hook(lambda _m, _i, out: caught.__setitem__(1, out)),
    ]
    tokens = encoder.encode(PHOTO, spec).patch_tokens
    torch.testing.assert_close(tokens, caught[0][0, 5:])
    for part, facet in enumerate(("query", "key", "value")):
        rows = encoder.encode(PHOTO, replace(spec, facet=facet)).patch_tokens
        torch.testing.assert_close(rows, caught[1][0, 5:, part * 192 : (part + 1) * 192])
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("wrong", [{"layer": 12}, {"layer": -13}, {"stride": 4}, {"debias": 10_000}])
def test_what_the_model_does_not_have_is_refused(encoder: Encoder, wrong: dict[str, int]) -> None:
    with pytest.raises(ArgumentError):
        encoder.encode(PHOTO, replace(SPEC, **wrong))


@pytest.mark.parametrize(
    "wrong", [{"facet": "values"}, {"resize": "crop"}, {"stride": -1}, {"turns": 4}, {"debias": -1}]
)
def test_a_spec_that_makes_no_sense_is_refused(
    wrong: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is outside of tests
    with pytest.raises(ArgumentError):
        FeatureSpec(**wrong)


def test_main_directions_find_a_planted_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.linalg.qr(torch.randn(32, 2, generator=generator))[0]
    rows = 5 * torch.ones(1, 32) / 32**0.5 + torch.randn(200, 2, generator=generator) @ plane.T
    found = main_directions(rows, 2)
    torch.testing.assert_close(found.T @ found, torch.eye(2), atol=1e-5, rtol=0)
    overlap = torch.linalg.svdvals(found.T @ plane)
    assert overlap.min() > 0.9


def test_what_is_projected_out_is_gone(encoder: Encoder) -> None:
    black = np.zeros_like(PHOTO)
    plain = encoder.encode(black, SPEC).local_descriptors
    directions = main_directions(plain, 8)
    debiased = encoder.encode(PHOTO, replace(SPEC, debias=8)).patch_tokens
    left = (debiased @ directions).abs().max() / debiased.norm(dim=1).max()
    assert left < 1e-4
    rows = torch.randn(5, 192)
    torch.testing.assert_close(
        project_out(project_out(rows, directions), directions), project_out(rows, directions)
    )
