"""Every member of a star was compared with its keeper; chains fall apart; the order decides."""

from hypothesis import given
from hypothesis import strategies as st

from dinov2kit.indexes.groups import Link, split_stars, two_steps

LIKE = Link(0.99, "phash 2, pixels 1.00")


def split(order: list[int], pairs: set[tuple[int, int]]) -> list[tuple[int, list[int]]]:
    """Split items whose links are exactly the pairs given."""
    neighbours: dict[int, set[int]] = {}
    for one, other in pairs:
        neighbours.setdefault(one, set()).add(other)
        neighbours.setdefault(other, set()).add(one)

    def link(keeper: int, others: list[int]) -> dict[int, Link]:
        return {other: LIKE for other in others if other in neighbours.get(keeper, ())}

    stars = split_stars(order, lambda item: two_steps(item, neighbours), link)
    return [(star.keeper, list(star.members)) for star in stars]


def test_the_ends_of_a_chain_are_not_put_together():
    assert split([1, 2, 3], {(1, 2), (2, 3)}) == [(1, [2])]  # 3 is no copy of 1, and stays
    assert split([2, 1, 3], {(1, 2), (2, 3)}) == [(2, [1, 3])]  # 2 was compared with both


def test_what_is_left_of_a_chain_makes_groups_of_its_own():
    chain = {(1, 2), (2, 3), (3, 4), (4, 5)}
    assert split([1, 2, 3, 4, 5], chain) == [(1, [2]), (3, [4])]
    assert split([5, 1, 3, 2, 4], chain) == [(5, [4]), (1, [2])]


def test_members_come_in_the_order_in_which_they_would_be_keepers():
    everything = {(a, b) for a in range(5) for b in range(a)}
    assert split([3, 0, 4, 1, 2], everything) == [(3, [0, 4, 1, 2])]


def test_links_that_are_only_found_on_demand_count():
    asked = []

    def link(keeper: int, others: list[int]) -> dict[int, Link]:
        asked.append((keeper, others))
        return dict.fromkeys(others, LIKE)

    neighbours = {1: {2}, 2: {1, 3}, 3: {2}}  # 1 and 3 were not compared yet
    stars = split_stars([1, 2, 3], lambda item: two_steps(item, neighbours), link)
    assert [(star.keeper, list(star.members)) for star in stars] == [(1, [2, 3])]
    assert asked == [(1, [2, 3])]


def test_no_items_and_no_links_are_no_groups():
    assert split([], set()) == []
    assert split([4, 7], set()) == []


@given(
    count=st.integers(1, 12),
    pairs=st.sets(st.tuples(st.integers(0, 11), st.integers(0, 11)).filter(lambda pair: pair[0] < pair[1])),
    data=st.data(),
)
def test_stars_are_disjoint_linked_ranked_and_leave_no_pair_of_keepers_linked(count, pairs, data):
    order = data.draw(st.permutations(range(count)))
    pairs = {pair for pair in pairs if max(pair) < count}
    stars = split(order, pairs)
    used = [item for keeper, members in stars for item in (keeper, *members)]
    assert len(used) == len(set(used))
    gone = {item for _, members in stars for item in members}
    for keeper, members in stars:
        for member in members:
            assert (min(keeper, member), max(keeper, member)) in pairs
            assert order.index(keeper) < order.index(member)
    assert not [pair for pair in pairs if not gone & set(pair)]  # of every pair of copies one goes
    assert stars == split(order, pairs)
