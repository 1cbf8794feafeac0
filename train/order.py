"""In which order images are drawn: a formula, so that nothing is stored and any draw is found at once.

Every epoch is a permutation of its own. It is a Feistel network: the bits of a position are cut into two
halves, and each half in turn is changed by a hash of the other, which can be undone and so never sends two
positions to one place. What lands beyond the last image is sent on until it lands on one (cycle-walking).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64, UInt64

from dinov2kit.errors import ArgumentError

_ROUNDS, _FEWEST_BITS = 8, 6  # fewer are enough for large sets; of a few images every order is as likely
_LARGEST = 2**62
_ORDER, _REPLACEMENT = 1, 2  # keys of random numbers

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: spreads what is counted
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def sample_index(positions: Int64[np.ndarray, " m"], n: int, *, seed: int) -> Int64[np.ndarray, " m"]:
    """Return which image is drawn at each position; every n positions in a row from 0 hold each image once.

    Args:
        positions: numbers of draws from 0, below 2**62, in any order; position // n is the epoch.
        n: how many images there are.
        seed: of the order, 0 or more.

    Raises:
        ArgumentError: n, the seed or a position is out of range.

    Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002; the hash is the mixing
        function of Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    if not 1 <= n <= _LARGEST:
        raise ArgumentError(f"an order of {n} images; wanted 1 to 2**62")
    if len(positions) and not 0 <= positions.min() <= positions.max() < _LARGEST:
        raise ArgumentError(
            f"positions from {positions.min()} to {positions.max()}; wanted 0 or more, below 2**62"
        )
    epochs, places = np.divmod(positions.astype(np.uint64), np.uint64(n))
    keys = _mix(_mix(epochs * _GOLDEN) ^ _seed_key(seed, _ORDER))
    return _permuted(places, keys, n).astype(np.int64)


def replacement_index(index: int, attempt: int, n: int, seed: int) -> int:
    """Return the image that stands in for one that cannot be read.

    Attempts 1 to n - 1 name every other image once, in an order that differs from image to image.

    Args:
        index: the image that cannot be read.
        attempt: how many images have failed so far, this one counted; from 1.
        n: how many images there are; of a single one nothing else can stand in.
        seed: of the order, 0 or more.

    Raises:
        ArgumentError: an argument is out of range.
    """
    if not 0 <= index < n or attempt < 1:
        raise ArgumentError(f"attempt {attempt} to replace image {index} of {n}; wanted 1 or more, below {n}")
    if n == 1:
        return 0
    place = np.array([(attempt - 1) % (n - 1)], np.uint64)
    key = _mix(np.array([index], np.uint64) * _GOLDEN ^ _seed_key(seed, _REPLACEMENT))
    return (index + 1 + int(_permuted(place, key, n - 1)[0])) % n


def _permuted(
    places: UInt64[np.ndarray, " m"], keys: UInt64[np.ndarray, " m"], n: int
) -> UInt64[np.ndarray, " m"]:
    """Permute 0 .. n - 1, each place by the permutation of its key."""
    bits = max((n - 1).bit_length(), _FEWEST_BITS)
    found = _feistel(places, keys, bits)
    beyond = np.flatnonzero(found >= n)
    while len(beyond):
        found[beyond] = _feistel(found[beyond], keys[beyond], bits)
        beyond = beyond[found[beyond] >= n]
    return found


def _feistel(
    places: UInt64[np.ndarray, " m"], keys: UInt64[np.ndarray, " m"], bits: int
) -> UInt64[np.ndarray, " m"]:
    """Permute all numbers of so many bits; the halves differ by one bit where their number is odd."""
    width = np.uint64(bits // 2)
    low_mask, high_mask = (np.uint64((1 << half) - 1) for half in (bits // 2, bits - bits // 2))
    high, low = places >> width, places & low_mask
    for _ in range(_ROUNDS // 2):
        keys = keys + _GOLDEN
        high ^= _mix(low + keys) & high_mask
        keys = keys + _GOLDEN
        low ^= _mix(high + keys) & low_mask
    return (high << width) | low


def _mix(values: UInt64[np.ndarray, " m"]) -> UInt64[np.ndarray, " m"]:
    """Return a new array in which every bit depends on every bit of the old one."""
    mixed: np.ndarray = (values ^ (values >> np.uint64(30))) * _FIRST
    mixed ^= mixed >> np.uint64(27)
    mixed *= _SECOND
    mixed ^= mixed >> np.uint64(31)
    return mixed


def _seed_key(seed: int, key: int) -> np.uint64:
    if seed < 0:
        raise ArgumentError(f"the seed is {seed}; wanted 0 or more")
    return np.uint64(np.random.SeedSequence([seed, key]).generate_state(1, np.uint64)[0])
