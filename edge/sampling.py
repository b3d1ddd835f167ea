"""Which requests get a line in the access log: all of them, until there are too many.

One budget each for what was fine, what was refused to the caller, and what failed or was slow, so
that neither a busy service nor somebody with a wrong key can push out the lines that an operator
looks for.  A pure policy: budgets grow only when somebody says how much time has passed.
"""

from __future__ import annotations

import math

FINE, REFUSED, FAILED = 0, 1, 2  # FAILED: our fault, or slow
BURST_S = 1.0  # a budget holds at most what comes in so much time, and at least one line


def kind_of(status: int, total_s: float, slow_s: float) -> int:
    """Return the budget that a request's line is paid from."""
    if status >= 500 or total_s >= slow_s:
        return FAILED
    return FINE if status < 400 else REFUSED


class Sampler:
    """Three budgets of lines, and how many requests went without one.

    Every request is either taken or counted: lines written and the sum of `dropped` on them, plus
    `dropped` now, are all requests.

    Args:
        lines_per_s: by budget: fine, refused, failed; `math.inf` for all.
    """

    __slots__ = ("_burst", "_left", "_rate", "dropped", "dropped_total")

    def __init__(self, lines_per_s: tuple[float, float, float]) -> None:
        self._rate = lines_per_s
        self._burst = [max(1.0, rate * BURST_S) if rate > 0 else 0.0 for rate in lines_per_s]
        # The whole mutable state: what is left of each budget, and what went without a line.
        self._left = list(self._burst)
        self.dropped = 0  # since the last line
        self.dropped_total = 0

    def takes(self, kind: int) -> bool:
        """Decide whether a request of this kind gets a line."""
        if self._left[kind] >= 1.0:
            self._left[kind] -= 1.0
            return True
        self.drop()
        return False

    def drop(self, count: int = 1) -> None:
        """Take note of requests that get no line after all."""
        self.dropped += count
        self.dropped_total += count

    def take_dropped(self) -> int:
        """Return how many went without a line since the last one, for this one to say."""
        dropped, self.dropped = self.dropped, 0
        return dropped

    def refill(self, passed_s: float) -> None:
        """Let the budgets grow by what `passed_s` brings."""
        for kind, rate in enumerate(self._rate):
            if rate < math.inf:
                self._left[kind] = min(self._burst[kind], self._left[kind] + rate * passed_s)
