"""Which patches of the global crops the student does not see: blocks of them, in exact numbers."""

from __future__ import annotations

import math
from random import Random

import numpy as np
from jaxtyping import Bool

_LEAST_CELLS, _TRIES = 4, 10  # of a block; to place it
_ASPECTS = (math.log(0.3), math.log(1 / 0.3))  # height over width of a block


def draw_masks(
    images: int,
    rows: int,
    cols: int,
    *,
    share: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    seed: int,
    step: int,
) -> Bool[np.ndarray, "images n"]:
    """Draw the masks of all global crops of a step, whichever process has them.

    A share of the crops is masked. How many of its patches each of them loses rises evenly over the ratio: it
    has a stratum of its own and takes the middle of it, where the release draws in it, and the number is
    exact, where the release ends up to three short. So every step masks the same number of patches.

    Args:
        images: global crops of the step.
        rows: patches from top to bottom.
        cols: patches from left to right.
        share: of the crops that are masked, rounded down.
        ratio: smallest and largest share of masked patches in them.
        seed: of everything random.
        step: number of the step.

    Returns: True where a patch is masked, rows one after the other.

    Source: Bao et al., "BEiT", ICLR 2022, algorithm 1; the released code (masking and collate).
    """
    random = Random(f"masks of step {step}, seed {seed}")
    masks = np.zeros((images, rows, cols), bool)
    masked = int(images * share)
    for stratum, image in enumerate(random.sample(range(images), masked)):
        middle = ratio[0] + (ratio[1] - ratio[0]) * (stratum + 0.5) / masked
        _cover(masks[image], int(rows * cols * middle), random)
    return masks.reshape(images, rows * cols)


def _cover(mask_: Bool[np.ndarray, "rows cols"], target: int, random: Random) -> None:
    """Put blocks on an empty mask until one does not fit, then single patches until it has so many."""
    rows, cols = mask_.shape
    count, largest = 0, rows // 2 * cols
    while added := _add_block(mask_, min(target - count, largest), random):
        count += added
    free = np.flatnonzero(~mask_)
    mask_.flat[free[random.sample(range(len(free)), target - count)]] = True


def _add_block(mask_: Bool[np.ndarray, "rows cols"], most: int, random: Random) -> int:
    """Add a block of at most so many new patches; return how many, 0 where none fits in ten tries."""
    rows, cols = mask_.shape
    for _ in range(_TRIES if most > 0 else 0):
        area = random.uniform(_LEAST_CELLS, most)  # the other way round where fewer than four are left
        aspect = math.exp(random.uniform(*_ASPECTS))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= rows or width >= cols:
            continue
        top, left = random.randint(0, rows - height), random.randint(0, cols - width)
        block = mask_[top : top + height, left : left + width]
        added = height * width - int(np.count_nonzero(block))
        if 0 < added <= most:
            block[:] = True
            return added
    return 0
