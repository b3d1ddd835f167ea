"""When a call is worth sending to a second replica as well: after the p95 of its engine.  Pure."""

from __future__ import annotations

import math
from typing import Final

from edge.dispatching.retry_budget import Budget

QUANTILE: Final = 0.95
TIMES_MIN: Final = 100  # before it is said what usual is
TIMES_MAX: Final = 2000  # then what was weighs half: p95 follows the engine
LOOK_EACH: Final = 50  # times between two looks at the quantile
SAVED_MAX: Final = 10.0  # hedges that a quiet time leaves
FLOOR_S: Final = 1e-4
STEP: Final = math.log(1.1)  # buckets are a tenth apart
BUCKETS: Final = 200  # up to 4 hours


class Usual:
    """How long the calls of an engine take, from being sent to the answer.

    >>> usual = Usual()
    >>> usual.p95_s is None
    True
    >>> for n in range(1000):
    ...     usual.add(0.1 if n % 10 else 1.0)
    >>> 1.0 <= usual.p95_s < 1.1
    True
    """

    __slots__ = ("_counts", "_seen", "_total", "p95_s")

    def __init__(self) -> None:
        # The whole mutable state.
        self._counts = [0] * BUCKETS
        self._total = 0
        self._seen = 0
        self.p95_s: float | None = None  # not more than a tenth above the true one

    def add(self, seconds: float) -> None:
        """Take the time of a call that was answered."""
        place = int(math.log(max(seconds, FLOOR_S) / FLOOR_S) / STEP) + 1
        self._counts[min(place, BUCKETS - 1)] += 1
        self._total += 1
        self._seen += 1
        if self._total >= TIMES_MIN and self._seen >= LOOK_EACH:
            self._seen = 0
            self.p95_s = self._quantile_s()
            if self._total >= TIMES_MAX:
                self._counts = [count // 2 for count in self._counts]
                self._total = sum(self._counts)

    def _quantile_s(self) -> float:
        below = 0
        for place, count in enumerate(self._counts):
            below += count
            if below >= QUANTILE * self._total:
                return FLOOR_S * math.exp(STEP * place)
        raise AssertionError("the counts do not add up to their total")


class Hedges:
    """Whether and when the calls of one engine are hedged.

    Source:
        Dean and Barroso, "The Tail at Scale" (2013): a second request once the first has been out
        for longer than the 95th percentile, so that the extra load is about 5 %.  That holds only
        while p95 is what it was; the budget holds always.
    """

    __slots__ = ("budget", "usual")

    def __init__(self) -> None:
        self.usual = Usual()
        self.budget = Budget(0.0, free=0.0, saved_max=SAVED_MAX)

    def began(self, share: float) -> float | None:
        """Take a call that may be hedged; return after how long, or None.

        Args:
            share: of the calls that may be hedged at most, as their endpoint says.
        """
        self.budget.share = share
        self.budget.pay()
        return self.usual.p95_s
