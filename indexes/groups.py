"""Groups of copies as stars: every copy was compared with the keeper itself, never only with another copy.

Chains lead astray: A is like B and B like C, and A and C have nothing in common. So the best photo becomes
the keeper, and takes those that are copies of it; what is left goes on without them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """What makes one photo a copy of another.

    Attributes:
        score: cosine of their descriptors; None where the content is the same.
        check: what else was compared, in words.
    """

    score: float | None
    check: str


@dataclass(frozen=True)
class Star:
    """A keeper and its copies, in the order in which they would be keepers."""

    keeper: int
    members: dict[int, Link]


def split_stars(
    order: Sequence[int],
    around: Callable[[int], Collection[int]],
    link: Callable[[int, list[int]], Mapping[int, Link]],
) -> list[Star]:
    """Cut items into stars; each item is in one star at most.

    Args:
        order: items, the best keeper first.
        around: items that may be copies of an item.
        link: of some items those that are copies of a keeper, and may go, with what makes them copies.
    """
    rank = {item: place for place, item in enumerate(order)}
    left = set(order)
    stars = []
    for keeper in order:
        if keeper not in left:
            continue
        left.remove(keeper)
        asked = sorted(left.intersection(around(keeper)), key=rank.__getitem__)
        found = link(keeper, asked) if asked else {}
        members = {item: found[item] for item in asked if item in found}
        if members:
            stars.append(Star(keeper, members))
        left.difference_update(members)
    return stars


def two_steps(item: int, neighbours: Mapping[int, Collection[int]]) -> set[int]:
    """Return what one edge or two lead to; where few neighbours are known, a copy may be two steps away."""
    first = neighbours.get(item, ())
    reached = set(first).union(*(neighbours.get(other, ()) for other in first))
    return reached - {item}
