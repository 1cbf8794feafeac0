"""The foreground is planted, so the masks are known patch by patch."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image as PillowImage

from dinov2kit.errors import ArgumentError, ImageError, MatchError
from dinov2kit.features import Features
from dinov2kit.foreground import clean_mask, find_foreground, otsu_threshold, read_foreground, read_mask
from dinov2kit.grid import PatchGrid
from dinov2kit.principal import principal_axes

WIDE = PatchGrid(rows=20, cols=30, patch_size=14, width=420, height=280, scale_x=1.0, scale_y=1.0)
SQUARE = PatchGrid(rows=24, cols=24, patch_size=14, width=672, height=672, scale_x=0.5, scale_y=0.5)
LETTERBOX = PatchGrid(
    rows=24, cols=24, patch_size=14, width=672, height=336, scale_x=0.5, scale_y=0.5, offset_y=84.0
)
DIM = 16


def disc(grid: PatchGrid, col: float, row: float, radius: float) -> np.ndarray:
    """Patches within a distance of a place, both in patches."""
    y, x = np.mgrid[: grid.rows, : grid.cols]
    return ((x - col) ** 2 + (y - row) ** 2 <= radius**2).ravel()


def direction(index: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(index), DIM).float()


THING, SURROUNDINGS, ELSEWHERE = (direction(index) for index in range(3))


def planted(
    grid: PatchGrid,
    thing: np.ndarray,
    *,
    inner: torch.Tensor = THING,
    outer: torch.Tensor = SURROUNDINGS,
    class_token: torch.Tensor = THING,
    noise: float = 0.05,
    seed: int = 0,
) -> Features:
    """Features whose patches look like `inner` where `thing` is, and like `outer` elsewhere."""
    tokens = torch.where(torch.from_numpy(thing)[:, None], inner, outer)
    tokens = tokens + noise * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed))
    return Features(class_token, 3 * tokens, torch.zeros(0, DIM), grid)


@pytest.fixture
def things() -> list[np.ndarray]:
    return [disc(WIDE, 9, 11, 5), disc(SQUARE, 15, 8, 6)]


@pytest.fixture
def pair(things: list[np.ndarray]) -> list[Features]:
    return [planted(WIDE, things[0], seed=1), planted(SQUARE, things[1], seed=2)]


def assert_masks(found, wanted) -> None:
    assert found.masks is not None
    for mask, thing in zip(found.masks, wanted, strict=True):
        np.testing.assert_array_equal(mask, thing)


def test_a_thing_in_two_images_is_found_patch_by_patch(pair, things) -> None:
    found = find_foreground(pair)
    # a disc on a grid has single patches at its four tips, which the majority takes away
    assert_masks(found, [clean_mask(thing, one.grid) for thing, one in zip(things, pair, strict=True)])
    for mask, thing in zip(found.masks, things, strict=True):
        assert not (mask & ~thing).any()
        assert (thing & ~mask).sum() <= 8
    assert (found.mode, found.reason) == ("pca", None)
    assert found.shares == pytest.approx([mask.mean() for mask in found.masks])


def test_a_single_image_is_enough(pair, things) -> None:
    assert_masks(find_foreground(pair[:1]), [clean_mask(things[0], WIDE)])


def test_the_sign_of_the_eigenvectors_changes_nothing(pair, monkeypatch) -> None:
    straight, eigh = find_foreground(pair), np.linalg.eigh
    monkeypatch.setattr("numpy.linalg.eigh", lambda matrix: (eigh(matrix)[0], -eigh(matrix)[1]))
    assert_masks(find_foreground(pair), straight.masks)
    monkeypatch.undo()

    def turned(rows, count):
        axes = principal_axes(rows, count)
        return replace(axes, directions=-axes.directions)

    monkeypatch.setattr("dinov2kit.foreground.principal_axes", turned)
    assert_masks(find_foreground(pair), straight.masks)


def test_two_cuts_that_are_equally_good_are_decided_by_the_middle_and_not_by_the_sign() -> None:
    """Three bands of the same size, evenly apart: Otsu's criterion is the same for both cuts."""
    levels = np.repeat([[-1.0, 1.0, 0.0]], 5, axis=1).repeat(12, axis=0)
    grid = replace(WIDE, rows=12, cols=15, width=210, height=168)

    def mask_of(sign: int) -> np.ndarray:
        tokens = torch.from_numpy(sign * levels.ravel()).float()[:, None] * SURROUNDINGS + 3 * THING
        found = find_foreground([Features(THING, tokens, torch.zeros(0, DIM), grid)])
        assert found.masks is not None
        return found.masks[0].reshape(12, 15)

    np.testing.assert_array_equal(mask_of(1), mask_of(-1))
    assert mask_of(1)[:, 5:10].all()
    assert not mask_of(1)[:, :5].any()


def test_permuting_the_images_permutes_the_masks(pair) -> None:
    third = planted(LETTERBOX, disc(LETTERBOX, 12, 12, 4), seed=3)
    straight = find_foreground([*pair, third])
    permuted = find_foreground([third, pair[1], pair[0]])
    assert_masks(permuted, straight.masks[::-1])
    assert permuted.shares == straight.shares[::-1]


@pytest.mark.parametrize("fallback", [False, True])
def test_rotating_descriptor_space_changes_nothing(pair, fallback: bool) -> None:
    images = different_backgrounds() if fallback else pair
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(4))).Q
    turned = [
        replace(one, class_token=one.class_token @ turn, patch_tokens=one.patch_tokens @ turn)
        for one in images
    ]
    straight = find_foreground(images)
    assert straight.mode == ("class-similarity" if fallback else "pca")
    assert_masks(find_foreground(turned), straight.masks)


def test_swapping_the_looks_of_thing_and_surroundings_changes_nothing(pair, things) -> None:
    swapped = [
        planted(one.grid, thing, inner=SURROUNDINGS, outer=THING)
        for one, thing in zip(pair, things, strict=True)
    ]
    assert_masks(find_foreground(swapped), find_foreground(pair).masks)


@pytest.mark.parametrize("inner", [0, 1])
def test_a_thing_that_fills_most_of_the_image_and_half_of_the_border_is_still_the_thing(inner: int) -> None:
    """At the border it is ahead with 52 %, which is within the margin, so the middle decides."""
    thing = np.ones((24, 24), bool)
    thing[:8, :8] = thing[16:, 16:] = thing[:8, 16:] = False
    border = np.concatenate([thing[0], thing[-1], thing[1:-1, 0], thing[1:-1, -1]])
    assert 0.5 < border.mean() < 0.6
    image = planted(SQUARE, thing.ravel(), inner=direction(inner), outer=direction(1 - inner))
    (mask,) = find_foreground([image]).masks
    assert (mask == thing.ravel()).mean() > 0.98


def test_what_covers_most_of_the_border_is_background_though_it_is_in_the_middle_too() -> None:
    corners = [disc(SQUARE, col, row, 4) for col in (5, 18) for row in (5, 18)]
    things = np.logical_or.reduce(corners)
    found = find_foreground([planted(SQUARE, things)], multi=True)
    assert_masks(found, [clean_mask(things, SQUARE, multi=True)])


def test_padding_is_neither_foreground_nor_border() -> None:
    """The padding looks like the thing; were it counted, the thing would cover most of the border."""
    thing = disc(LETTERBOX, 12, 12, 4)
    inside = LETTERBOX.inside()
    image = planted(LETTERBOX, thing | ~inside)
    found = find_foreground([image])
    assert_masks(found, [clean_mask(thing, LETTERBOX)])
    assert found.shares[0] == pytest.approx(found.masks[0].sum() / inside.sum())
    everything = np.ones(LETTERBOX.n_patches, bool)
    np.testing.assert_array_equal(clean_mask(everything, LETTERBOX), inside)
    lonely = ~inside
    lonely[6 * 24 + 12] = True  # in the first row on the image
    assert not clean_mask(lonely, LETTERBOX).any()


def different_backgrounds(things: list[np.ndarray] | None = None, sign: float = 1) -> list[Features]:
    """Two images that differ most in their backgrounds; their class tokens are like the things.

    With a negative sign they are unlike the things. The second one hardly is either, so that one threshold
    cannot serve both.
    """
    things = things or [disc(WIDE, 9, 11, 5), disc(SQUARE, 15, 8, 6)]
    sides = zip((WIDE, SQUARE), things, (SURROUNDINGS, ELSEWHERE), (0, 5), strict=True)
    return [
        planted(
            grid,
            thing,
            inner=outer + 0.7 * THING,
            outer=outer,
            class_token=outer + sign * THING + unrelated * direction(9),
            noise=0.01,
        )
        for grid, thing, outer, unrelated in sides
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_images_that_differ_in_their_backgrounds_are_cut_at_the_similarity_to_the_class_token(sign) -> None:
    images = different_backgrounds(sign=sign)
    found = find_foreground(images)
    assert found.mode == "class-similarity"
    assert found.reason is not None
    assert found.reason.startswith("by the first principal component")
    wanted = [disc(WIDE, 9, 11, 5), disc(SQUARE, 15, 8, 6)]
    assert_masks(found, [clean_mask(thing, one.grid) for thing, one in zip(wanted, images, strict=True)])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_middle_has_the_last_word_there_as_well(sign) -> None:
    big = [np.ones((grid.rows, grid.cols), bool) for grid in (WIDE, SQUARE)]
    for thing in big:
        thing[: len(thing) // 3, :8] = thing[-(len(thing) // 3) :, -8:] = thing[: len(thing) // 3, -8:] = (
            False
        )
    images = different_backgrounds([thing.ravel() for thing in big], sign)
    found = find_foreground(images)
    assert found.mode == "class-similarity"
    for mask, thing in zip(found.masks, big, strict=True):
        assert (mask == thing.ravel()).mean() > 0.98


def test_images_without_anything_have_no_mask_and_say_why() -> None:
    uniform = [planted(grid, np.zeros(grid.n_patches, bool), noise=0) for grid in (WIDE, SQUARE)]
    found = find_foreground(uniform)
    assert (found.masks, found.mode, found.shares) == (None, "none", ())
    assert found.reason == "all patches have the same descriptor"


def test_too_little_is_no_foreground_by_either_way() -> None:
    """Of a disc of 13 patches the majority leaves nine of 576."""
    found = find_foreground([planted(SQUARE, disc(SQUARE, 12, 12, 2), noise=0)])
    assert (found.masks, found.mode, found.shares) == (None, "none", ())
    assert found.reason == (
        "by the first principal component 1.6% of image 0 would be foreground; "
        "by the similarity to the class token 1.6% of image 0 would be foreground"
    )


def test_only_the_largest_part_is_kept_unless_told_otherwise() -> None:
    large, small = disc(WIDE, 8, 9, 5), disc(WIDE, 23, 9, 3)
    image = planted(WIDE, large | small)
    assert_masks(find_foreground([image]), [clean_mask(large, WIDE)])
    assert_masks(find_foreground([image], multi=True), [clean_mask(large | small, WIDE, multi=True)])


def test_features_that_do_not_belong_together_are_refused(pair) -> None:
    with pytest.raises(ArgumentError, match="no image"):
        find_foreground([])
    longer = Features(torch.ones(8), torch.randn(WIDE.n_patches, 8), torch.zeros(0, 8), WIDE)
    with pytest.raises(MatchError, match="8 and 16"):
        find_foreground([pair[0], longer])
    broken = replace(pair[0], patch_tokens=torch.full((WIDE.n_patches, DIM), torch.nan))
    with pytest.raises(MatchError, match="not finite"):
        find_foreground([broken])
    nowhere = replace(pair[0], grid=replace(WIDE, offset_x=-9000.0))
    with pytest.raises(MatchError, match="no patch of image 1"):
        find_foreground([pair[0], nowhere])


@given(
    arrays.arrays(
        np.float64, st.integers(2, 30), elements=st.floats(-100, 100, allow_nan=False, width=32), unique=True
    )
)
def test_the_threshold_is_the_best_of_all_splits(scores: np.ndarray) -> None:
    def scatter(threshold: float) -> float:
        sides = scores[scores > threshold], scores[scores <= threshold]
        return sum(((side - side.mean()) ** 2).sum() for side in sides if len(side))

    ordered = np.sort(scores)
    best = min(scatter(threshold) for threshold in ordered[:-1])
    assert scatter(otsu_threshold(scores)) <= best + 1e-9 * (1 + best)


def test_the_threshold_lies_half_way_between_two_clusters_of_any_size() -> None:
    assert otsu_threshold(np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 8.0])) == 4.0
    assert otsu_threshold(np.array([7.0, 1.0, 3.0, 7.0])) == 5.0
    assert otsu_threshold(np.array([3.0, 3.0])) == 3.0


TINY = PatchGrid(rows=6, cols=7, patch_size=14, width=98, height=84, scale_x=1.0, scale_y=1.0)


def drawn(picture: str) -> np.ndarray:
    return np.array([[cell == "#" for cell in line] for line in picture.split()]).ravel()


def test_cleaning_fills_holes_cuts_threads_and_rounds_corners_as_computed_by_hand() -> None:
    before = """
    .......
    .####..
    .#.###.
    .####..
    .####.#
    .......
    """
    after = """
    .......
    ..###..
    .####..
    .#####.
    ..##...
    .......
    """
    np.testing.assert_array_equal(clean_mask(drawn(before), TINY), drawn(after))


def test_at_the_border_only_patches_on_the_image_vote_and_even_votes_change_nothing() -> None:
    before = """
    ###....
    ###....
    #......
    .......
    .....##
    .....##
    """
    kept = """
    ###....
    ###....
    #......
    .......
    .....##
    .....##
    """
    largest = """
    ###....
    ###....
    #......
    .......
    .......
    .......
    """
    # (2, 0) sees 4 of 6; (0, 2) sees 4 of 6; (1, 2) sees 4 of 9; (4, 5) sees 4 of 9; (3, 0) sees 1 of 6
    kept, largest = (drawn(picture) for picture in (kept, largest))
    for index in ((1, 2), (4, 5)):
        kept[np.ravel_multi_index(index, (6, 7))] = False
        largest[np.ravel_multi_index(index, (6, 7))] = False
    np.testing.assert_array_equal(clean_mask(drawn(before), TINY, multi=True), kept)
    np.testing.assert_array_equal(clean_mask(drawn(before), TINY), largest)


def test_parts_under_one_percent_are_dropped_and_corners_connect() -> None:
    grid = PatchGrid(rows=40, cols=40, patch_size=14, width=560, height=560, scale_x=1.0, scale_y=1.0)
    mask = np.zeros((40, 40), bool)
    mask[2:6, 2:6] = True  # 12 patches once its corners are gone: under 16
    mask[20:25, 20:25] = True
    mask[25:30, 25:30] = True  # touches the one above at a corner
    smooth = clean_mask(mask.ravel(), grid, multi=True).reshape(40, 40)
    assert not smooth[:10].any()
    assert smooth[20:30, 20:30].sum() == smooth.sum() > 40
    np.testing.assert_array_equal(clean_mask(mask.ravel(), grid).reshape(40, 40), smooth)
    assert not clean_mask(np.zeros(1600, bool), grid).any()


def write(path: Path, mask: np.ndarray) -> Path:
    PillowImage.fromarray(mask.astype(np.uint8) * 255).save(path)
    return path


def test_a_patch_is_foreground_from_half_of_its_area_on(tmp_path: Path) -> None:
    grid = PatchGrid(rows=2, cols=3, patch_size=14, width=30, height=20, scale_x=1.4, scale_y=1.4)
    white = np.zeros((20, 30), bool)
    white[:, :5] = True  # the half of 10 pixels
    white[:10, 10:14] = True  # less than half
    white[0:10, 20:30] = True
    white[10:20, 20:30] = np.add.outer(np.arange(10), np.arange(10)) < 10  # the lower triangle: 55 of 100
    found = read_mask(write(tmp_path / "m.png", white), grid)
    assert found.tolist() == [True, False, True, True, False, True]
    white[0, 0] = white[19, 20] = False
    assert read_mask(write(tmp_path / "m.png", white), grid).tolist()[:1] == [False]


def test_patches_that_cut_pixels_count_the_parts(tmp_path: Path) -> None:
    """Three patches over ten pixels: 3 1/3 pixels each, and half of that is 1 2/3."""
    grid = PatchGrid(rows=1, cols=3, patch_size=14, width=10, height=4, scale_x=4.2, scale_y=3.5)
    for columns, wanted in (
        ([0], [False, False, False]),
        ([0, 1], [True, False, False]),
        ([2, 3], [False, False, False]),  # 1 1/3 of the first, 2/3 of the second
        ([1, 2, 3, 4], [True, True, False]),  # 2 1/3 and 1 2/3: exactly half
        ([5, 6], [False, True, False]),  # 1 2/3 and 1/3
    ):
        white = np.zeros((4, 10), bool)
        white[:, columns] = True
        assert read_mask(write(tmp_path / "m.png", white), grid).tolist() == wanted


def test_a_mask_of_a_letterboxed_image_lies_where_the_image_lies(tmp_path: Path) -> None:
    y, x = np.mgrid[:336, :672]
    found = read_mask(write(tmp_path / "m.png", (x < 224) & (y >= 168)), LETTERBOX).reshape(24, 24)
    wanted = np.zeros((24, 24), bool)
    wanted[12:18, :8] = True
    np.testing.assert_array_equal(found, wanted)
    everything = read_mask(write(tmp_path / "m.png", np.ones((336, 672), bool)), LETTERBOX)
    np.testing.assert_array_equal(everything, LETTERBOX.inside())


def test_of_a_patch_half_on_padding_only_the_part_on_the_image_counts(tmp_path: Path) -> None:
    grid = replace(TINY, rows=7, height=90, offset_y=4.0)  # rows begin 4 pixels above the image
    white = np.zeros((90, 98), bool)
    white[:5] = True  # half of the 10 rows that the first patches have there, a third of their 14
    found = read_mask(write(tmp_path / "m.png", white), grid).reshape(7, 7)
    assert found[0].all()
    assert not found[1:].any()


def test_overlapping_patches_are_measured_whole(tmp_path: Path) -> None:
    grid = TINY.overlapped(7)
    white = np.zeros((84, 98), bool)
    white[:, 14:28] = True
    found = read_mask(write(tmp_path / "m.png", white), grid).reshape(grid.rows, grid.cols)
    assert found[3].tolist() == [False, True, True, True, *[False] * 9]


def test_what_is_brighter_than_127_is_white_and_transparency_is_white(tmp_path: Path) -> None:
    grid = PatchGrid(rows=1, cols=4, patch_size=14, width=56, height=14, scale_x=1.0, scale_y=1.0)
    levels = np.repeat(np.array([[127, 128, 0, 0]], np.uint8), 14, axis=1).repeat(14, axis=0)
    alpha = np.repeat(np.array([[255, 255, 255, 0]], np.uint8), 14, axis=1).repeat(14, axis=0)
    PillowImage.fromarray(np.dstack([levels] * 3 + [alpha])).save(tmp_path / "m.png")
    assert read_mask(tmp_path / "m.png", grid).tolist() == [False, True, False, True]


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    small = write(tmp_path / "m.png", np.ones((84, 97), bool))
    with pytest.raises(ImageError, match=r"m\.png has 97x84 pixels; wanted 98x84"):
        read_mask(small, TINY)
    (tmp_path / "text.png").write_text("no image at all")
    with pytest.raises(ImageError, match=r"text\.png"):
        read_mask(tmp_path / "text.png", TINY)
    with pytest.raises(ImageError, match=r"absent\.png"):
        read_mask(tmp_path / "absent.png", TINY)


def test_mask_files_become_a_foreground_with_shares_of_the_image(tmp_path: Path) -> None:
    half = np.zeros((336, 672), bool)
    half[:, :336] = True
    paths = [write(tmp_path / "a.png", np.ones((84, 98), bool)), write(tmp_path / "b.png", half)]
    found = read_foreground(paths, [TINY, LETTERBOX])
    assert (found.mode, found.shares, found.reason) == ("files", (1.0, 0.5), None)
    assert_masks(found, [read_mask(paths[0], TINY), read_mask(paths[1], LETTERBOX)])
    with pytest.raises(ArgumentError, match="got 2 mask files for 1 images"):
        read_foreground(paths, [TINY])
