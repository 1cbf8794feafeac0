"""What a training run says of itself: how far it is, and what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Stop = Callable[[], bool]


@dataclass(frozen=True)
class TrainProgress:
    """How far a run is.

    Attributes:
        stage: "train", "eval" or "save".
        step: how many steps are done.
        steps: of how many.
        images_per_second: over the last steps; 0 while nothing is known.
        line: the last line of metrics; empty before the first.
        diagnoses: what is wrong, in sentences; only those that are new.
    """

    stage: str
    step: int
    steps: int
    images_per_second: float
    line: Mapping[str, Any]
    diagnoses: tuple[str, ...] = ()


Watch = Callable[[TrainProgress], None]


@dataclass(frozen=True)
class TrainReport:
    """What a run did.

    Attributes:
        out: folder of the run.
        state: "finished" or "stopped".
        step: how many steps are done in all.
        steps: of how many.
        resumed_at: how many of them an earlier sitting had done.
        images: how many images the run has seen.
        knn: the last nearest-neighbour score; None where nothing was measured.
        knn_kind: "labels" or "views", see `Probe`.
        export: folder of the exported model; None where none was written.
        bad_images: images that could not be read; others stood in for them.
        seconds: how long this sitting took.
        leads: whether this process is the one that reports.
    """

    out: Path
    state: str
    step: int
    steps: int
    resumed_at: int
    images: int
    knn: float | None
    knn_kind: str | None
    export: Path | None
    bad_images: int
    seconds: float
    leads: bool = True

    def to_json(self) -> dict[str, object]:
        """Return a dict that `json.dumps` takes."""
        export = None if self.export is None else str(self.export)
        facts = {name: value for name, value in vars(self).items() if name != "leads"}
        return {**facts, "out": str(self.out), "export": export, "seconds": round(self.seconds, 1)}
