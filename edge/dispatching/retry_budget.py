"""How many calls may be sent once more: a share of those that came, and a few to begin with.

Whoever tries again without a bound turns one lost worker into overload of all the others.  Pure.
"""

from __future__ import annotations

from typing import Final

RETRY_SHARE: Final = 0.1  # of the calls
RETRIES_FREE: Final = 3.0  # so that the first calls of a quiet edge have their second try too
RETRIES_SAVED_MAX: Final = 100.0  # what a thousand calls leave; a calm day is no leave for a storm


class Budget:
    """What may be sent besides what came: never more than `share` of it, and `free`.

    Every call pays in its share, every extra one takes 1 out; nothing is ever lent.  So over the
    life of an edge process ``extra <= share * calls + free``, whatever happens in which order.

    Args:
        share: of the calls.
        free: there from the start, once.
        saved_max: more than this is not kept.

    Source:
        The token bucket of Finagle's RetryBudget, without its minimum per second; the share is
        that of chapter 21 of "Site Reliability Engineering".

    >>> budget = Budget(0.1, free=1.0)
    >>> budget.take(), budget.take()
    (True, False)
    >>> for _ in range(10):
    ...     budget.pay()
    >>> budget.take(), budget.take()
    (True, False)
    """

    __slots__ = ("saved", "saved_max", "share")

    def __init__(
        self,
        share: float = RETRY_SHARE,
        free: float = RETRIES_FREE,
        saved_max: float = RETRIES_SAVED_MAX,
    ) -> None:
        self.share = share
        self.saved_max = saved_max
        self.saved = free  # the whole mutable state

    def pay(self) -> None:
        """Take note of a call that came."""
        if self.saved < self.saved_max:
            self.saved += self.share

    def take(self) -> bool:
        """Tell whether one more may be sent; it counts as sent then."""
        if self.saved < 1.0 - 1e-9:  # ten times 0.1 are one
            return False
        self.saved -= 1.0
        return True
