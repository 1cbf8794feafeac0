"""The Gram loss is the plain formula and the released numbers, and knows only how alike patches are."""

import math

import numpy as np
import pytest
import torch

from dinov2kit.errors import ArgumentError
from dinov2kit.train.gram import gram_loss


def sines(shape: tuple[int, ...], factor: float) -> torch.Tensor:
    return torch.from_numpy(np.sin(factor * np.arange(math.prod(shape))).reshape(shape)).float()


def cloud(seed: int, b: int = 3, n: int = 7, dim: int = 5) -> torch.Tensor:
    return torch.randn(b, n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def restated(student: np.ndarray, teacher: np.ndarray, *, per_image: bool, clip: str) -> float:
    """Do it pair by pair."""

    def cosine(first: np.ndarray, second: np.ndarray) -> float:
        return first @ second / np.linalg.norm(first) / np.linalg.norm(second)

    places = [(image, token) for image in range(student.shape[0]) for token in range(student.shape[1])]
    errors = []
    for first in places:
        for second in places:
            if per_image and first[0] != second[0]:
                continue
            found, wanted = cosine(student[first], student[second]), cosine(teacher[first], teacher[second])
            found = max(found, 0) if clip == "both" else found
            wanted = wanted if clip == "none" else max(wanted, 0)
            errors.append((found - wanted) ** 2)
    return float(np.mean(errors))


@pytest.mark.parametrize("clip", ["none", "both", "teacher"])
@pytest.mark.parametrize("per_image", [True, False])
def test_it_is_the_plain_restatement(per_image, clip) -> None:
    found = gram_loss(cloud(0), cloud(1), per_image=per_image, clip_negative=clip)
    wanted = restated(cloud(0).numpy(), cloud(1).numpy(), per_image=per_image, clip=clip)
    assert found.item() == pytest.approx(wanted, rel=1e-12)


def test_the_released_code_gives_these_numbers() -> None:
    student, teacher = sines((2, 4, 6), 0.37), sines((2, 4, 6), 0.91)
    assert gram_loss(student, teacher).item() == pytest.approx(1.0016257, abs=1e-6)
    assert gram_loss(student, teacher, per_image=False).item() == pytest.approx(1.0100696, abs=1e-6)


def test_a_rotation_and_other_lengths_cost_nothing() -> None:
    student = cloud(0)
    turn = torch.linalg.qr(cloud(2, 1, 5, 5)[0]).Q
    teacher = student @ turn * torch.linspace(0.1, 9, 7)[:, None]
    assert gram_loss(student, teacher).item() < 1e-28
    assert gram_loss(student, teacher, per_image=False).item() < 1e-28


def test_images_may_be_turned_apart_only_where_they_are_not_compared() -> None:
    student = cloud(0, b=2)
    teacher = student.clone()
    teacher[1] = -teacher[1]
    assert gram_loss(student, teacher).item() < 1e-28
    assert gram_loss(student, teacher, per_image=False).item() > 0.1


def test_only_the_student_learns() -> None:
    student, teacher = cloud(0).requires_grad_(), cloud(1).requires_grad_()
    gram_loss(student, teacher).backward()
    assert teacher.grad is None
    for settings in ({}, {"per_image": False}, {"clip_negative": "both"}, {"clip_negative": "teacher"}):
        assert torch.autograd.gradcheck(
            lambda student, settings=settings: gram_loss(student, teacher, **settings), (student,)
        )


def test_autocast_and_narrow_tokens_change_no_more_than_their_own_rounding() -> None:
    student, teacher = cloud(0).float(), cloud(1).float()
    with torch.autocast("cpu", torch.bfloat16):
        found = gram_loss(student, teacher)
    assert found.item() == gram_loss(student, teacher).item()
    narrow = student.to(torch.bfloat16)
    assert gram_loss(narrow, teacher).item() == gram_loss(narrow.float(), teacher).item()


def test_a_token_of_zeros_is_finite() -> None:
    student = cloud(0).float()
    student[0, 0] = 0
    student.requires_grad_()
    gram_loss(student, cloud(1).float()).backward()
    assert student.grad.isfinite().all()


def test_another_clip_is_refused() -> None:
    with pytest.raises(
        ArgumentError, match="unknown clip_negative 'student'; wanted one of none, both, teacher"
    ):
        gram_loss(cloud(0), cloud(1), clip_negative="student")
