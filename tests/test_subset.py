import pickle

import numpy as np
import pytest

from dinov2kit.train.drawn_shapes import DrawnShapes
from dinov2kit.train.subset import Subset, hold_out


def test_what_is_set_aside_and_what_is_kept_are_the_whole_set() -> None:
    images = DrawnShapes(100)
    kept, aside = hold_out(images, 15, seed=0)
    assert aside is not None
    assert (len(kept), len(aside)) == (85, 15)
    names = [kept.name(i) for i in range(85)] + [aside.name(i) for i in range(15)]
    assert sorted(names) == sorted(images.name(i) for i in range(100))
    assert np.array_equal(aside.read(3), images.read(int(aside.places[3])))  # type: ignore[attr-defined]
    assert aside.labels == [images.labels[i] for i in aside.places]  # type: ignore[attr-defined,index]


def test_the_choice_depends_on_the_seed_alone_and_the_digest_tells_choices_apart() -> None:
    images = DrawnShapes(100)
    first, again, other = (hold_out(images, 15, seed=seed)[1] for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.digest == again.digest == pickle.loads(pickle.dumps(first)).digest
    assert first.digest not in (other.digest, images.digest)


@pytest.mark.parametrize(("images", "asked", "aside"), [(100, 90, 20), (9, 512, 0), (10, 512, 2), (50, 1, 0)])
def test_never_more_than_a_fifth_and_never_a_single_one(images: int, asked: int, aside: int) -> None:
    kept, held = hold_out(DrawnShapes(images), asked, seed=0)
    assert len(kept) == images - aside
    assert (0 if held is None else len(held)) == aside
    assert isinstance(kept, Subset) == bool(aside)
