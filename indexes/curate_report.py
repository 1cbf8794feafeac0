"""What `curate` did, in numbers that add up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from .cluster_sampling import ClusterUse


@dataclass(frozen=True)
class Dropped:
    """Photos that a stage dropped, and what each is like.

    Attributes:
        stage: name of the stage.
        reason: in words, the same for all of them.
        ids: the photos, ascending.
        like: the photo that it resembles; -1 where there is none, or only through others.
        score: their cosine; NaN where there is none.
        reference: place of the set that `like` belongs to; -1 for the pool itself.
    """

    stage: str
    reason: str
    ids: Int64[np.ndarray, " n"]
    like: Int64[np.ndarray, " n"]
    score: Float32[np.ndarray, " n"]
    reference: int = -1

    @classmethod
    def plainly(cls, stage: str, reason: str, ids: Int64[np.ndarray, " n"]) -> Dropped:
        """Note photos that resemble nothing in particular."""
        return cls(stage, reason, ids, np.full(len(ids), -1), np.full(len(ids), np.nan, np.float32))


@dataclass(frozen=True)
class Stage:
    """One stage in numbers; `came` = `left` + the sum of `why`.

    Attributes:
        name: which stage.
        came: photos before it.
        left: photos after it.
        why: how many were dropped for what reason.
    """

    name: str
    came: int
    left: int
    why: dict[str, int]

    @property
    def dropped(self) -> int:
        """Photos that it dropped."""
        return self.came - self.left


@dataclass(frozen=True)
class Accounting:
    """Rows asked for and rows returned; `asked` = `returned` + `shortfall`.

    Attributes:
        asked: retrieve: k times the queries. cluster: photos drawn for all query sets. Else the rows.
        returned: rows of the output.
        unique: different photos among them; fewer only with the collision rule "keep".
        collisions: retrieve: how many of the k nearest of all queries name a photo that was named before,
            whatever became of it. cluster: how many draws took a photo that another query set has.
        shortfall: rows asked for that there are not.
    """

    asked: int
    returned: int
    unique: int
    collisions: int
    shortfall: int


@dataclass(frozen=True)
class CurateReport:
    """What `curate` did.

    Attributes:
        index: the pool.
        model: name of its model.
        mode: how photos were chosen.
        seed: of all draws.
        queries: how many photos were looked for.
        stages: in their order.
        accounting: asked and returned.
        clusters: use of the clusters, at the top of a hierarchy; None for modes without.
        out: the file written; None without one.
        page: the HTML page written; None without one.
        unreadable: (path, reason) of photos of the sets that could not be described, and of chosen ones that
            could not be copied.
        computed: stages that were computed.
        reused: stages whose results were there from an earlier run.
        work: where they are kept.
    """

    index: Path
    model: str
    mode: str
    seed: int
    queries: int
    stages: tuple[Stage, ...]
    accounting: Accounting
    clusters: ClusterUse | None
    out: Path | None
    page: Path | None
    unreadable: tuple[tuple[Path, str], ...]
    computed: tuple[str, ...]
    reused: tuple[str, ...]
    work: Path

    def to_json(self) -> dict[str, object]:
        """Return the report as `json.dumps` takes it."""
        clusters = None
        if self.clusters is not None:
            use = self.clusters
            clusters = {
                "count": len(use.pool),
                "used": int((use.chosen > 0).sum()),
                "entropy": round(use.entropy, 6),
                "pool": use.pool.tolist(),
                "hits": use.hits.tolist(),
                "chosen": use.chosen.tolist(),
            }
        return {
            "index": str(self.index),
            "model": self.model,
            "mode": self.mode,
            "seed": self.seed,
            "queries": self.queries,
            "stages": [
                {"name": stage.name, "in": stage.came, "out": stage.left, "dropped": stage.why}
                for stage in self.stages
            ],
            **vars(self.accounting),
            "clusters": clusters,
            "out": None if self.out is None else str(self.out),
            "page": None if self.page is None else str(self.page),
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
            "computed": list(self.computed),
            "reused": list(self.reused),
            "work": str(self.work),
        }
