"""The settings of a run whose student learns from a finished network instead of its own moving average."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, model_validator

from .train_groups import FROZEN, AtLeast0, Count, Whole


class DistillSettings(BaseModel):
    """What the student learns from; idle while there is no teacher.

    Attributes:
        teacher: a run, a released model, a weight file, "hf:NAME", "torch:MODULE:NAME", or teacher features;
            null: the student's own moving average.
        by: what is compared: "prototypes", the answers of the teacher's heads, as the small models of the
            release were made; "features", class and patch tokens; "auto": prototypes where there are heads.
        size: side of what the teacher sees; null: as the student, in whole patches of the teacher.
        views: how many views of each image there are, which come again; null: always new ones.
        cache: folder that keeps what the teacher says of all views; needs `views`.
        class_token: weight of the distance of class tokens; by features.
        patch_tokens: weight of the distance of patch tokens; by features.
        hidden: width inside the projectors; 0: a projector is one linear layer.
        class_dim: length of the teacher's class token; the teacher decides.
        patch_dim: length of its patch tokens; the teacher decides.
        digest: of the teacher, who must not change; the teacher decides.
    """

    model_config = FROZEN

    teacher: str | None = None
    by: Literal["auto", "prototypes", "features"] = "auto"
    size: Count | None = None
    views: Count | None = None
    cache: Path | None = None
    class_token: AtLeast0 = 1.0
    patch_tokens: AtLeast0 = 1.0
    hidden: Whole = 0
    class_dim: Count | None = None
    patch_dim: Count | None = None
    digest: str | None = None

    @property
    def by_features(self) -> bool:
        """Whether tokens themselves are compared, in single views of images."""
        return self.teacher is not None and self.by == "features"

    @property
    def by_prototypes(self) -> bool:
        """Whether the answers of the teacher's heads are compared, in global and local crops."""
        return self.teacher is not None and self.by == "prototypes"

    @model_validator(mode="after")
    def _agree(self) -> DistillSettings:
        if self.cache is not None and self.views is None:
            raise ValueError("views with a cache: what never comes again is not worth keeping")
        if self.by == "prototypes" and self.views is not None:
            raise ValueError("no views with by=prototypes: they are of distillation by features")
        if not (self.class_token or self.patch_tokens):
            raise ValueError("a weight above 0 for class_token or patch_tokens, else nothing is learned")
        return self
