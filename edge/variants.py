"""Which arm of an endpoint answers whom: weighted rendezvous hashing, and nothing else.

The promise: a unit gets the same arm in every process, on every day, whatever the order of the
document; and it moves to another arm only if that one's weight rose against its own arm's.  Of two
arms that means: only from the one that fell to the one that rose.  Of three or more, a unit of
the fallen arm may land in one whose share stands still while one of that arm's goes on to the
risen arm; nobody ever leaves a risen arm for one that did not rise more.  No function of unit and
weights alone can promise less movement than that (Bavarian et al., "The Optimality of Correlated
Sampling", 2016: up to twice the changed share).
The hash is part of the contract: `tests/edge/test_variants.py` pins it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import NamedTuple

from registry_sync.documents import Assign

# The top 52 bits of the hash and a half: a multiple of 2^-53, which a double holds exactly, and
# neither 0 nor 1, so that its logarithm is finite and below zero.
_HASH_BYTES = 8
_HASH_SHIFT = 12
_HASH_UNIT = 2.0**-52


class Arm(NamedTuple):
    """One arm, as far as assignment is concerned."""

    name: str
    weight: float  # only the ratios matter; 0: gets nobody


class Arms:
    """The arms of an endpoint, made ready for many assignments; immutable."""

    __slots__ = ("_alone", "_racers", "_shares")

    def __init__(self, arms: Sequence[Arm], salt: str) -> None:
        """Prepare the hash of every arm.

        Args:
            arms: in any order; the names differ, and at least one weight is above 0.
            salt: keeps the assignments of two endpoints independent of each other.

        Raises:
            ValueError: the arms are not as above; names the value.
        """
        if len({arm.name for arm in arms}) != len(arms):
            raise ValueError(f"two arms have one name: {sorted(arm.name for arm in arms)}")
        for arm in arms:
            if not 0 <= arm.weight < math.inf:
                raise ValueError(f"arm {arm.name!r}: weight {arm.weight} is not 0 or more")
        running = [(index, arm) for index, arm in enumerate(arms) if arm.weight > 0]
        if not running:
            raise ValueError("no arm has a weight above 0")
        key = blake2b(salt.encode(), digest_size=32).digest()
        # Sorted by name, so that not even a tie depends on the order of the document.
        self._racers = tuple(
            (_hasher(key, arm.name), 1.0 / arm.weight, index)
            for index, arm in sorted(running, key=lambda pair: pair[1].name)
        )
        self._shares = tuple((index, arm.weight) for index, arm in running)
        self._alone = running[0][0] if len(running) == 1 else -1

    @property
    def running(self) -> tuple[int, ...]:
        """The arms that get units, by their indices in the sequence that these were made of."""
        return tuple(index for index, _ in self._shares)

    def assign(self, unit: bytes) -> int:
        """Choose the arm of a unit.

        The arm with the largest -w / ln h wins, where h in (0, 1) is the hash of salt, unit and
        the arm's name.

        Returns:
            The arm's index in the sequence that these arms were made of.

        Source:
            Weighted rendezvous hashing: Schindelhauer and Schomaker, "Weighted Distributed Hash
            Tables", SPAA 2005, the logarithmic method.
        """
        if self._alone >= 0:
            return self._alone
        best, winner = -math.inf, -1
        for hasher, per_weight, index in self._racers:
            hashed = hasher.copy()
            hashed.update(unit)
            bits = int.from_bytes(hashed.digest(), "little") >> _HASH_SHIFT
            # ln(h) / w orders as -w / ln(h) does, and has no division left in it.
            score = math.log((bits + 0.5) * _HASH_UNIT) * per_weight
            if score > best:
                best, winner = score, index
        return winner

    def draw(self, uniform: float) -> int:
        """Choose an arm for nobody in particular, from a random number in [0, 1)."""
        left = uniform * math.fsum(weight for _, weight in self._shares)
        for index, weight in self._shares:
            left -= weight
            if left < 0:
                return index
        return self._shares[-1][0]


def assign(arms: Sequence[Arm], salt: str, unit: bytes) -> int:
    """Choose the arm of one unit; `Arms` does the same for many."""
    return Arms(arms, salt).assign(unit)


def unit_of(rule: Assign, header: Callable[[str], str | None], key_id: str) -> bytes | None:
    """Find whom an arm sticks to.

    Args:
        rule: its `by` names sources in order: ``header:<name>`` or ``key``.
        header: looks a request header up by its lower-case name.
        key_id: the id of the caller's key.

    Returns:
        The first source that the request has, empty ones aside; None if it has none: draw.
    """
    for source in rule.by:
        if source == "key":
            value: str | None = key_id
        else:
            value = header(source.removeprefix("header:").lower())
        if value:
            # A header may hold bytes that are no text; they must hash, not fail.
            return value.encode("utf-8", "surrogatepass")
    return None


def _hasher(key: bytes, name: str) -> blake2b:
    encoded = name.encode()
    return blake2b(len(encoded).to_bytes(4, "little") + encoded, key=key, digest_size=_HASH_BYTES)
