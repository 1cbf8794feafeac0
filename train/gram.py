"""Gram anchoring: which patches of an image are alike should stay as an earlier teacher saw it."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from jaxtyping import Float
from torch import Tensor

from dinov2kit.errors import check_choice

CLIPS = ("none", "both", "teacher")


def gram_loss(
    student: Float[Tensor, "b n dim"],
    teacher: Float[Tensor, "b n dim"],
    *,
    per_image: bool = True,
    clip_negative: str = "none",
) -> Float[Tensor, ""]:
    """Return the mean squared difference between the cosines among the student's patches and the teacher's.

    Nothing is asked of the tokens themselves: any rotation of all of them leaves the loss as it is. It is
    computed in fp32 at least, whatever the input and autocast are. The teacher gets no gradient.

    Args:
        student: patch tokens.
        teacher: patch tokens of the same places.
        per_image: compare patches within each image; otherwise all patches of the batch with each other,
            which needs memory for (b n)^2 cosines.
        clip_negative: "both" takes cosines below 0 as 0, "teacher" only those of the teacher.

    Raises:
        ArgumentError: there is no such way to clip.

    Source: Siméoni et al., "DINOv3", 2025, section 4, and its released code; there "teacher" is
        `remove_only_teacher_neg`, of which the line for the student has no effect.
    """
    check_choice("clip_negative", clip_negative, CLIPS)
    with torch.autocast(student.device.type, enabled=False):
        found = _cosines(student, per_image)
        with torch.no_grad():
            wanted = _cosines(teacher, per_image)
        if clip_negative != "none":
            wanted = wanted.clamp(min=0)
        if clip_negative == "both":
            found = found.clamp(min=0)
        return (found - wanted).square().mean()


def _cosines(tokens: Float[Tensor, "b n dim"], per_image: bool) -> Float[Tensor, "groups m m"]:
    rows = functional.normalize(tokens.to(torch.promote_types(tokens.dtype, torch.float32)), dim=2)
    if not per_image:
        rows = rows.flatten(0, 1)[None]
    return rows @ rows.mT
