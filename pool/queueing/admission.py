"""Whether a call that comes now may wait for an engine: only if it can be answered in time.

A queue that is bounded by a number of calls is too long for one engine and too short for another;
bounded by time, whoever cannot be in time hears so at once and can go elsewhere.  Decides only;
pure.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from pool.queueing.batching import Limits, target_rows

# Once a call of a tenant was refused, and until none of its calls waits, those that are taken are
# to wait for no more than this part of their time: predictions are off by something, and a queue
# that is always full to the brim answers everybody at the last moment.  Where it is known what
# calls of each tenant take: only if its own backlog, with its part of the engine, is longer.
STANDING_SHARE: Final = 0.6
# Where batches grow, whose whole time is not longer is left to the engine's next steps: these drop
# who makes a batch late, which leaves room for who comes last, and it hears of that soon enough.
SHORT_S: Final = 0.1
RETRY_AFTER_S_MIN: Final = 1.0
COMPETING_S: Final = 1.0  # a tenant competes for so long after its last call


class Ahead(msgspec.Struct, frozen=True):
    """What a call would wait for."""

    free_in_s: float  # until the engine can begin something
    rows: int  # that are served before the call
    at_once: int = 1  # so many batches at a time
    full_mean_s: float = math.inf  # how long a full batch takes in the mean; else as the limits say
    # Where one call runs at a time, by what calls of each tenant take: how long all those rows do,
    # and how long the call's tenant needs for its own of them, with its part of the engine.
    work_s: float | None = None
    own_s: float = math.inf


def finish_in_s(
    rows: int, ahead: Ahead, limits: Limits, slo_s: float, arrival_rows_per_s: float
) -> tuple[float, float]:
    """Predict when a call of so many rows begins and when it is answered, from now on.

    What waits is run in full batches, some of which take longer than the mean and some shorter:
    their deviations add up like those of chance; the run under way and the call's own are taken for
    as long as such runs are in the mean.  The last batch, in which the call is, grows until it
    begins by what arrives, up to the size that keeps up with that.  Where calls run one by one,
    `ahead` has the seconds, and the limits are those of the call's tenant.

    >>> one_by_one = Limits(1, lambda rows: 0.02)
    >>> [round(s, 2) for s in finish_in_s(1, Ahead(0.01, 5), one_by_one, 0.5, 0.0)]
    [0.11, 0.13]
    """
    if ahead.work_s is not None:
        begin_s = ahead.free_in_s + ahead.work_s
        return begin_s, begin_s + limits.run_s(rows)
    rows_max = limits.rows_max
    batches, rest = divmod(ahead.rows, rows_max)
    high_s = limits.run_s(rows_max)
    mean_s = min(ahead.full_mean_s, high_s)
    # Nobody is refused for what may happen to one run: the engine's next step will know.
    likely = mean_s / high_s if high_s else 1.0
    begin_s = likely * ahead.free_in_s
    if batches:
        begin_s += (batches * mean_s + math.sqrt(batches) * (high_s - mean_s)) / ahead.at_once
    own = rest + rows
    if own < rows_max and arrival_rows_per_s and begin_s:
        grown = own + int(arrival_rows_per_s * begin_s)
        own = max(own, min(grown, target_rows(limits, slo_s, arrival_rows_per_s)))
    return begin_s, begin_s + likely * limits.run_s(own)


class Admission:
    """Remembers whose calls have been standing, and which tenants compete."""

    __slots__ = ("_last", "_last_s", "_other_s", "standing")

    def __init__(self) -> None:
        # The whole mutable state: tenants of whom a call was refused since none of theirs waited;
        # whose call came last, and when; and when somebody else's did.
        self.standing: set[str] = set()
        self._last = ""
        self._last_s = self._other_s = float("-inf")

    def came(self, tenant: str, now_s: float) -> None:
        """Note that a call has come."""
        if tenant != self._last:
            self._last, self._other_s = tenant, self._last_s
        self._last_s = now_s

    def has_rivals(self, now_s: float) -> bool:
        """Tell whether anybody but the tenant whose call came last has called lately."""
        return now_s - self._other_s < COMPETING_S

    def refused_s(
        self,
        tenant: str,
        rows: int,
        left_s: float,
        slo_s: float,
        ahead: Ahead,
        limits: Limits,
        arrival_rows_per_s: float,
    ) -> float:
        """Decide about a call.

        Args:
            tenant: whose call it is.
            rows: of the call.
            left_s: until its deadline.
            slo_s: from its arrival to its deadline.
            ahead: what it would wait for.
            limits: of the engine.
            arrival_rows_per_s: lately.

        Returns:
            0 if the call may wait; else in how many seconds another try makes sense.
        """
        rows_max = limits.rows_max
        if rows_max > 1 and slo_s <= SHORT_S:
            return 0.0
        is_next = ahead.rows + rows <= rows_max
        begin_s, end_s = finish_in_s(rows, ahead, limits, slo_s, arrival_rows_per_s)
        if end_s > left_s:
            # Else its time is short and no queue long, or the queue is not of its making.
            if ahead.rows >= rows_max and ahead.own_s > STANDING_SHARE * slo_s:
                self.standing.add(tenant)
        elif tenant not in self.standing or is_next or begin_s <= STANDING_SHARE * slo_s:
            return 0.0
        return max(RETRY_AFTER_S_MIN, begin_s)
