"""What is asked of `curate`: mode, sizes, thresholds, seed; checked when it is made.

What is not given is chosen by the size of the pool: `auto_clusters`, `auto_levels`, `auto_keep`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from dinov2kit.errors import ArgumentError, check_choice

MODES = ("retrieve", "cluster", "hkmeans", "semdedup", "random")
COLLISIONS = ("next", "drop", "keep")
PICKS = ("random", "closest")
_ASKING = ("retrieve", "cluster")  # modes that need queries
_SIZED = ("hkmeans", "random")  # modes that need a target size

_PER_CLUSTER, _FEW_CLUSTERS, _FEW_PER_CLUSTER = 1200, 64, 20
_PER_LEAF, _PER_PARENT, _MOST_LEVELS, _FEWEST_AT_TOP = 25, 10, 3, 4


@dataclass(frozen=True)
class CurateSpec:
    """What to choose from a pool of photos.

    Attributes:
        mode: "retrieve" (the nearest of each query), "cluster" (from the clusters that queries fall into),
            "hkmeans" (evenly over a hierarchy of clusters), "semdedup" (all but what says the same as another
            photo), "random".
        queries: folders or indexes of the photos to look for; each is a query set.
        k: retrieve: photos per query.
        on_collision: retrieve: what happens to a photo that several queries want: "next" gives it to the most
            similar and the others their next one, "drop" counts it once, "keep" keeps it for each.
        max_depth: retrieve: the farthest neighbour that "next" may look at.
        clusters: cluster, semdedup: how many; None takes `auto_clusters`.
        min_hits: cluster: queries that a cluster must hold to be drawn from. LVD-142M: more than 3.
        per_cluster: cluster: the most photos from one cluster, per query set.
        cap: cluster: the most photos per query set.
        levels: hkmeans: clusters per level, lowest first; None takes `auto_levels`.
        keep: hkmeans: points per cluster that resampling goes on with, per level; None takes `auto_keep`.
        resample: hkmeans: rounds of resampling, per level, or one number for all.
        target_size: hkmeans, random: how many photos.
        pick: hkmeans: which photos of a cluster: "random", or those "closest" to its centroid.
        eps: semdedup: a photo goes when its cosine to one that stays is above 1 - eps.
        dedup: first drop copies: of photos connected by cosines above this, one stays. None: do not.
        exclude_near: folders or indexes of evaluation photos; what is like one of them is dropped.
        exclude_threshold: cosine above which a photo is like an evaluation photo.
        chain: also drop what is connected, by cosines above the threshold, to a photo that is dropped so.
        where: only photos for which this SQL expression holds.
        seed: of everything that is drawn.

    Raises:
        ArgumentError: a value makes no sense, or the mode lacks something.
    """

    mode: str = "retrieve"
    queries: tuple[Path, ...] = ()
    k: int = 4
    on_collision: str = "next"
    max_depth: int = 4096
    clusters: int | None = None
    min_hits: int = 4
    per_cluster: int = 10_000
    cap: int = 1_000_000
    levels: tuple[int, ...] | None = None
    keep: tuple[int, ...] | None = None
    resample: tuple[int, ...] = (10,)
    target_size: int | None = None
    pick: str = "random"
    eps: float = 0.05
    dedup: float | None = None
    exclude_near: tuple[Path, ...] = ()
    exclude_threshold: float = 0.96
    chain: bool = True
    where: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("collision rule", self.on_collision, COLLISIONS)
        check_choice("pick", self.pick, PICKS)
        self._check_numbers()
        if self.mode in _ASKING and not self.queries:
            raise ArgumentError(
                f"mode {self.mode} needs queries", hint="name the photos to look for with --queries DIR"
            )
        if self.mode in _SIZED and self.target_size is None:
            raise ArgumentError(
                f"mode {self.mode} needs a target size", hint="say how many photos with --target-size N"
            )
        if self.mode not in _SIZED and self.target_size is not None:
            raise ArgumentError(
                f"mode {self.mode} has no target size",
                hint=f"only {' and '.join(_SIZED)} have one; retrieve has -k, cluster has --cap",
            )
        self._check_levels()

    @property
    def asks(self) -> bool:
        """Whether the mode has queries."""
        return self.mode in _ASKING

    def rounds(self, levels: int) -> tuple[int, ...]:
        """Return the rounds of resampling of each level."""
        return self.resample * levels if len(self.resample) == 1 else self.resample

    def _check_numbers(self) -> None:
        counts = {
            "k": self.k, "max_depth": self.max_depth, "clusters": self.clusters, "min_hits": self.min_hits,
            "per_cluster": self.per_cluster, "cap": self.cap, "target_size": self.target_size,
        }  # fmt: skip
        for name, count in counts.items():
            if count is not None and count < 1:
                raise ArgumentError(f"{name} is {count}; wanted 1 or more")
        if self.max_depth < self.k:
            raise ArgumentError(f"max_depth is {self.max_depth}, below k, which is {self.k}")
        if self.seed < 0:
            raise ArgumentError(f"the seed is {self.seed}; wanted 0 or more")
        if not 0 < self.eps <= 1:
            raise ArgumentError(f"eps is {self.eps:g}; wanted above 0, up to 1: what is above 1 - eps goes")
        for name, cosine in (("dedup", self.dedup), ("exclude_threshold", self.exclude_threshold)):
            if cosine is not None and not -1 <= cosine < 1:
                raise ArgumentError(f"{name} is {cosine:g}; wanted a cosine of at least -1, and below 1")

    def _check_levels(self) -> None:
        for name, counts in (("levels", self.levels), ("r", self.keep)):
            if counts is not None and (not counts or min(counts) < 1):
                raise ArgumentError(f"{name} is {_listed(counts)}; wanted numbers of 1 or more")
        if not self.resample or min(self.resample) < 0:
            raise ArgumentError(f"resample is {_listed(self.resample)}; wanted numbers of 0 or more")
        levels = self.levels
        if levels is None:
            if self.keep is not None or len(self.resample) > 1:
                raise ArgumentError("r and resample per level need levels", hint="give --levels as well")
            return
        if any(upper >= lower for lower, upper in pairwise(levels)):
            raise ArgumentError(
                f"levels are {_listed(levels)}; wanted them descending, lowest level first",
                hint="for instance: --levels 20000,2000,200",
            )
        for name, counts in (("r", self.keep), ("resample", self.rounds(len(levels)))):
            if counts is not None and len(counts) != len(levels):
                raise ArgumentError(f"{name} has {len(counts)} numbers for {len(levels)} levels")


def auto_clusters(n: int) -> int:
    """Return the clusters for a pool of `n` photos: one per 1,200, and 64 where that leaves each 20 photos.

    LVD-142M had 100,000 clusters for 744 million images.
    """
    return max(1, round(n / _PER_CLUSTER), min(_FEW_CLUSTERS, n // _FEW_PER_CLUSTER))


def auto_levels(n: int) -> tuple[int, ...]:
    """Return the clusters per level for a pool of `n` photos: 20,000, 2,000 and 200 for 500,000."""
    levels = [max(1, n // _PER_LEAF)]
    while len(levels) < _MOST_LEVELS and levels[-1] // _PER_PARENT >= _FEWEST_AT_TOP:
        levels.append(levels[-1] // _PER_PARENT)
    return tuple(levels)


def auto_keep(n: int, levels: tuple[int, ...]) -> tuple[int, ...]:
    """Return the points per cluster that resampling goes on with: half the mean size of a cluster."""
    return tuple(max(1, below // (2 * level)) for below, level in zip((n, *levels), levels, strict=False))


def _listed(counts: tuple[int, ...]) -> str:
    return ",".join(map(str, counts)) or "empty"
