"""What the edges have counted, added up over their lives and bounded in memory.

An edge reports cumulative counts of one incarnation.  Those of an incarnation that has ended stay,
because its requests were answered; once there are too many they are folded into one sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from pool.wire.control import VariantCount

INCARNATIONS_MAX = 256  # of edges that have gone and may dial again with the same counts
FOLDED_MAX = 4096  # arms of which a sum over ended incarnations is kept

ArmKey = tuple[str, int, str, str]  # endpoint, revision, variant, version


class Ended(msgspec.Struct, frozen=True):
    """Requests that have ended, whatever became of them."""

    requests: int = 0
    errors: int = 0  # of these, with 500, 502 or 504
    failed: int = 0  # of these, with 500 or more

    def __add__(self, other: Ended) -> Ended:
        """Return both together."""
        return Ended(
            self.requests + other.requests,
            self.errors + other.errors,
            self.failed + other.failed,
        )


class Tally:
    """The last counts of every incarnation of every edge."""

    def __init__(self) -> None:
        # The whole mutable state: counts by incarnation, the longest silent first, and the sum of
        # those that were forgotten.
        self._counts: dict[str, tuple[VariantCount, ...]] = {}
        self._folded: dict[ArmKey, VariantCount] = {}

    def report(self, incarnation: str, counts: tuple[VariantCount, ...]) -> None:
        """Take the cumulative `counts` of an incarnation; the last report is what holds."""
        self._counts.pop(incarnation, None)
        self._counts[incarnation] = counts
        if len(self._counts) > INCARNATIONS_MAX:
            self._fold(self._counts.pop(next(iter(self._counts))))

    def totals(self) -> Mapping[tuple[str, str, str], tuple[int, int, int]]:
        """Return requests, errors and hits by endpoint, variant and version.

        A variant's name goes from version to version, and what one of them did is not the next's.
        """
        total: dict[tuple[str, str, str], tuple[int, int, int]] = {}
        for counts in (self._folded.values(), *self._counts.values()):
            for count in counts:
                key = (count.endpoint, count.variant, count.version)
                requests, errors, hits = total.get(key, (0, 0, 0))
                total[key] = (requests + count.requests, errors + count.errors, hits + count.hits)
        return total

    def since(self, revisions: Mapping[str, int]) -> Mapping[tuple[str, str], Ended]:
        """Return what has ended by endpoint and variant, as of these revisions.

        Args:
            revisions: by endpoint, the first one that counts; other endpoints are left out.
        """
        total: dict[tuple[str, str], Ended] = {}
        for counts in (self._folded.values(), *self._counts.values()):
            for count in counts:
                if count.revision >= revisions.get(count.endpoint, math.inf):
                    key = (count.endpoint, count.variant)
                    total[key] = total.get(key, Ended()) + _ended(count)
        return total

    def _fold(self, counts: tuple[VariantCount, ...]) -> None:
        for count in counts:
            key = (count.endpoint, count.revision, count.variant, count.version)
            old = self._folded.pop(key, None)
            self._folded[key] = count if old is None else _sum(old, count)
        while len(self._folded) > FOLDED_MAX:
            del self._folded[next(iter(self._folded))]


def _ended(count: VariantCount) -> Ended:
    # An edge of an earlier release tells less of it.
    return Ended(
        max(count.requests, sum(count.seconds)),
        max(count.errors, count.model_failed),
        max(count.errors, count.failed),
    )


def _sum(one: VariantCount, other: VariantCount) -> VariantCount:
    return msgspec.structs.replace(
        one,
        requests=one.requests + other.requests,
        errors=one.errors + other.errors,
        hits=one.hits + other.hits,
        failed=one.failed + other.failed,
        seconds=(sum(one.seconds) + sum(other.seconds),),  # whatever their bounds
        model_failed=one.model_failed + other.model_failed,
    )
