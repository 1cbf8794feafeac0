"""What `dinokit adapt` is told, what it plans to do, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dinov2kit.blocks import Facet

from .held_out import Measure
from .pseudo_pairs import FEWEST, Partners


class AdaptConfig(BaseModel):
    """Settings of an adapter's training; the defaults suit a CPU and a small model.

    Attributes:
        images: folder, or list of folders and files, with the photos to learn from.
        out: the .safetensors file to write; `OUT.unfinished` beside it keeps an unfinished run.
        model: the frozen backbone, as `Encoder` takes it.
        device: as for `Encoder`.
        precision: of the backbone, as for `Encoder`; the adapter itself is trained in fp32.
        size: side of the square views in pixels, a multiple of the patch. The closer to the size that photos
            are matched at, the better, and the slower.
        steps: how many updates.
        batch: pairs in each.
        points: most keypoints of a pair.
        pseudo: share of pairs of different photos, which raw features label; the others are synthetic.
        partners: how these find each other: "folder", "nearest" or "auto", see `find_partners`.
        flips: mirror one view of half of the synthetic pairs. Left and right then look the same.
        dropout: share of the numbers in the tokens that is zeroed in training.
        lr: highest learning rate of the one cycle.
        weight_decay: of AdamW.
        sigma: of the Gaussian targets, in cells, at the start and at the end.
        layer: which tokens the adapter reads, as in `FeatureSpec`.
        facet: as in `FeatureSpec`.
        norm: as in `FeatureSpec`; the published adapters read tokens before the final norm.
        holdout: share of the photos that training never sees.
        holdout_most: most of them to measure on.
        holdout_pairs: keypoint pairs to measure on as well, as `read_pairs_json` reads them; training
            leaves their photos out.
        seed: of everything random.
        save_every: steps between two savings of the unfinished run; one comes also after 60 seconds.
        overwrite: replace `out`, and an unfinished run of other settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: Path | tuple[Path, ...]
    out: Path
    model: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    size: Annotated[int, Field(ge=1)] = 280
    steps: Annotated[int, Field(ge=1)] = 1000
    batch: Annotated[int, Field(ge=1)] = 8
    points: Annotated[int, Field(ge=FEWEST)] = 64
    pseudo: Annotated[float, Field(ge=0, le=1)] = 0.0
    partners: Partners = "auto"
    flips: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    lr: Annotated[float, Field(gt=0)] = 1.25e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-3
    sigma: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (3.0, 1.0)
    layer: int = -1
    facet: Facet = "token"
    norm: bool = False
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.1
    holdout_most: Annotated[int, Field(ge=1)] = 64
    holdout_pairs: Path | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    save_every: Annotated[int, Field(ge=1)] = 100
    overwrite: bool = False

    @property
    def sources(self) -> list[Path]:
        """The folders and files with photos."""
        return [self.images] if isinstance(self.images, Path) else list(self.images)

    def learning(self) -> dict[str, object]:
        """Return the settings that change what is learned, ready for JSON; they name no file."""
        apart = {
            "images",
            "out",
            "model",
            "device",
            "holdout_most",
            "holdout_pairs",
            "save_every",
            "overwrite",
        }
        return self.model_dump(mode="json", exclude=apart)


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: "train": steps; "measure": held-out pairs.
        done: how many are done.
        total: of how many.
        loss: InfoNCE of the keypoints of the last step, in nats: about the logarithm of how many places still
            compete with the true one. None while measuring.
    """

    stage: Literal["train", "measure"]
    done: int
    total: int
    loss: float | None = None


@dataclass(frozen=True)
class AdaptPlan:
    """What a run would do.

    Attributes:
        out: the file to write.
        model: name of the backbone.
        device: where it runs.
        precision: its arithmetic.
        dim: length of its tokens.
        parameters: how many numbers are learned.
        photos: how many are learned from.
        held_out: how many are measured on, of those held out.
        pairs: how many marked pairs are measured on as well.
        cells: patches on each side of a view.
        steps: how many updates in all.
        done: how many an unfinished run has done already.
        seconds: how long the rest would take, from one step.
    """

    out: Path
    model: str
    device: str
    precision: str
    dim: int
    parameters: int
    photos: int
    held_out: int
    pairs: int
    cells: int
    steps: int
    done: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        return {**asdict(self), "out": str(self.out), "seconds": round(self.seconds, 1)}


@dataclass(frozen=True)
class AdaptReport:
    """What a run did.

    Attributes:
        out: the adapter file.
        model: name of the backbone.
        photos: how many were learned from.
        held_out: how many were measured on.
        steps: how many updates.
        resumed_at: how many of them an earlier run had done.
        loss_start: mean keypoint loss of the first tenth of the steps.
        loss_end: that of the last tenth.
        measures: raw beside adapted, on what was held out.
        unreadable: photos that could not be read; others stood in for them.
        seconds: how long this run took.
    """

    out: Path
    model: str
    photos: int
    held_out: int
    steps: int
    resumed_at: int
    loss_start: float
    loss_end: float
    measures: tuple[Measure, ...]
    unreadable: tuple[Path, ...]
    seconds: float

    @property
    def recommended(self) -> bool:
        """Whether the adapter is at least as good as raw tokens on everything that was measured."""
        return not any(measure.lost for measure in self.measures)

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        return {
            **asdict(self),
            "out": str(self.out),
            "unreadable": [str(path) for path in self.unreadable],
            "measures": [asdict(measure) for measure in self.measures],
            "seconds": round(self.seconds, 1),
            "recommended": self.recommended,
        }
