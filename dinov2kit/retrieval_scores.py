"""How well a ranking finds what belongs to its query: average precision and its relatives.

Every measure starts from the ranks of a query's positives, counted from 0 among all items but junk. An item
that scores as high as a positive and is none comes first: whoever cannot tell two images apart gains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int64

from dinov2kit.errors import ArgumentError

Ranks = Int64[np.ndarray, " p"]
Rule = Literal["average", "trapezoid"]


def positive_ranks(
    scores: Float[np.ndarray, " n"], positive: Int64[np.ndarray, " p"], junk: Int64[np.ndarray, " j"]
) -> Ranks:
    """Return the ranks of the positives of one query, ascending, as if its junk were not there.

    Args:
        scores: of every item, higher is better.
        positive: places of the positives in `scores`, each once.
        junk: places of the items that count neither way, none of them positive.
    """
    others = np.ones(len(scores), np.bool_)
    others[positive] = others[junk] = False
    negatives = np.sort(scores[others])
    best = np.sort(scores[positive])[::-1]
    above = len(negatives) - np.searchsorted(negatives, best, side="left")
    ranks: Ranks = (above + np.arange(len(best))).astype(np.int64)
    return ranks


def average_precision(ranks: Ranks, *, rule: Rule = "average") -> float:
    """Return the area under precision over recall of one query.

    Each positive adds an equal step of recall. The rule "average" gives it the precision at the positive;
    "trapezoid" the mean of that and of the precision just before it, which is 1 before the first rank. The
    second is what the Oxford, Paris and Holidays protocols count; it is lower, except for a perfect ranking.

    Args:
        ranks: as `positive_ranks` gives them.
        rule: how the curve is closed between two positives.

    Raises:
        ArgumentError: there is no positive.

    Source: Philbin et al., "Object retrieval with large vocabularies", CVPR 2007; Radenovic et al.,
        "Revisiting Oxford and Paris", CVPR 2018.
    """
    _check_some(ranks)
    found = np.arange(len(ranks))
    after = (found + 1) / (ranks + 1)
    if rule == "average":
        return float(after.mean())
    before = np.where(ranks > 0, found / np.maximum(ranks, 1), 1.0)
    return float((before + after).mean() / 2)


def average_precision_at_r(ranks: Ranks) -> float:
    """Return the average precision over the first R ranks, where R is the number of positives (MAP@R).

    A positive beyond rank R adds nothing.

    Raises:
        ArgumentError: there is no positive.

    Source: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, section 3.2.
    """
    _check_some(ranks)
    early = ranks[ranks < len(ranks)]
    return float(((np.arange(len(early)) + 1) / (early + 1)).sum() / len(ranks))


def precision_at_k(ranks: Ranks, k: int) -> float:
    """Return the share of positives among the first k ranks; k ends with the last positive.

    So three positives at the first three ranks have a precision of 1 at 10.

    Raises:
        ArgumentError: there is no positive, or k is below 1.

    Source: the mP@k of Radenovic et al., "Revisiting Oxford and Paris", CVPR 2018.
    """
    _check_some(ranks)
    _check_k(k)
    depth = min(k, int(ranks.max()) + 1)
    return float((ranks < depth).sum() / depth)


def found_within_k(ranks: Ranks, k: int) -> bool:
    """Say whether one positive or more is among the first k ranks: its mean is the recall@k of the field.

    Raises:
        ArgumentError: there is no positive, or k is below 1.

    Source: Jegou et al., "Product quantization for nearest neighbor search", PAMI 2011 (recall@R); Song et
        al., "Deep Metric Learning via Lifted Structured Feature Embedding", CVPR 2016.
    """
    _check_some(ranks)
    _check_k(k)
    return bool(ranks.min() < k)


@dataclass(frozen=True)
class MicroScore:
    """How well one threshold for all queries tells matches from other pairs.

    Attributes:
        average_precision: micro average precision (µAP), in [0, 1].
        recall: the largest recall at a precision of `precision` or more; 0 when no threshold has it.
        precision: the precision that `recall` is for.
        threshold: the score of the last pair that `recall` takes; None when it is 0.
    """

    average_precision: float
    recall: float
    precision: float
    threshold: float | None


def micro_average_precision(
    scores: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], wanted: int, *, precision: float = 0.9
) -> MicroScore:
    """Rank the pairs of all queries together, and return the area under precision over recall.

    Args:
        scores: of pairs of a query and an item.
        right: whether the pair is a match.
        wanted: how many matches there are in all, also those that are not among the pairs.
        precision: what precision to give the recall for.

    Raises:
        ArgumentError: no match is wanted.

    Source: Douze et al., "The 2021 Image Similarity Dataset and Challenge", 2021, section 4.
    """
    if wanted < 1:
        raise ArgumentError("no query has a match: there is nothing to find")
    order = np.lexsort((right, -scores))
    hits = right[order]
    precisions = np.cumsum(hits) / (np.arange(len(hits)) + 1)
    enough = np.flatnonzero(hits & (precisions >= precision))
    last = int(enough[-1]) if len(enough) else None
    return MicroScore(
        average_precision=float(precisions[hits].sum() / wanted),
        recall=0.0 if last is None else float(hits[: last + 1].sum() / wanted),
        precision=precision,
        threshold=None if last is None else float(scores[order[last]]),
    )


def _check_some(ranks: Ranks) -> None:
    if not len(ranks):
        raise ArgumentError("the query has no positive: there is nothing to find")


def _check_k(k: int) -> None:
    if k < 1:
        raise ArgumentError(f"k is {k}; wanted 1 or more")
