"""How much of its quota a key may still use at this edge process: pure, by the caller's clock.

Each limit holds for the fleet; an edge process keeps to its part of it (`leases` says which).

- *Requests* are taken from a token bucket before the body is read.
- *Rows* are known only once a body is decoded, so they are taken afterwards and may leave a debt:
  while there is one, the key's next request is refused.
- *Calls under way* are counted from the check until the request's end, whatever end that is.

An answer out of the cache counts like any other: limits are on what a caller asks for, so that a
purge of the cache does not turn a caller within its limits into one beyond them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pool.wire.control import QuotaParts
from registry_sync.documents import Quota

UNLIMITED = 2**53  # calls under way
INTERVAL_S_MAX = 1e9  # of a part of nothing
ROUNDING_S = 1e-6  # sums of intervals are off by less
CONCURRENT_WAIT_S = 0.25  # when a call under way ends nobody can say
SPAN_S_MIN = 0.25  # a burst is not taken for a rate over less
CHANCE = 2.5  # standard deviations of a count of independent requests
FEW = 10  # requests, whose count says little
KEPT, KEPT_FEW = 0.5, 0.75  # of the demand a second before, in the average
FIRST_S = 0.9  # what is seen first is believed if it was seen for so long
DEMAND_MIN = 1e-4  # less is nothing
IDLE_S = 60.0  # a meter not asked for so long is forgotten once nothing is owed
REQUESTS, ROWS, CONCURRENT = "requests_per_s", "rows_per_s", "concurrent"

NOTHING = (0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that must wait: for which limit, its value over the fleet, and how long."""

    limit: str
    value: float
    wait_s: float


class Bucket:
    """A token bucket, kept as the moment at which it will be full again.

    Args:
        per_s: tokens that come each second; 0 is next to none.
        burst_s: so many seconds of them fit in, but always one token.
        need: tokens that must be there before any are taken: 1, or 0 where a debt may be made.
        now_s: it is full then.

    Source:
        The generic cell rate algorithm (ITU-T I.371).
    """

    __slots__ = ("full_s", "interval_s", "need", "size", "slack_s")

    def __init__(self, per_s: float, burst_s: float, need: int, now_s: float) -> None:
        self.need = need
        self.full_s = now_s
        self._shape(per_s, burst_s)

    def _shape(self, per_s: float, burst_s: float) -> None:
        self.interval_s = 1 / per_s if per_s * INTERVAL_S_MAX > 1 else INTERVAL_S_MAX
        self.size = max(1.0, per_s * burst_s)
        self.slack_s = (self.size - self.need) * self.interval_s + ROUNDING_S

    def tokens(self, now_s: float) -> float:
        """Return how many are there; below 0 is a debt."""
        return self.size - max(0.0, self.full_s - now_s) / self.interval_s

    def resize(self, per_s: float, burst_s: float, now_s: float) -> None:
        """Go on with another rate.

        Tokens stay as they are, and what no longer fits is lost: a part of a limit that moves
        between processes must not bring a burst along each time.
        """
        tokens = self.tokens(now_s)
        self._shape(per_s, burst_s)
        self.full_s = now_s + max(0.0, self.size - tokens) * self.interval_s

    def take(self, count: float, now_s: float) -> None:
        """Take `count` tokens, there or not."""
        self.full_s = max(self.full_s, now_s) + count * self.interval_s


class Meter:
    """One key's use of its quota at this edge process.

    Args:
        quota: the key's limits over the fleet.
        parts: which part of each this process may use.
        now_s: on the clock of all other calls.
    """

    __slots__ = ("_concurrent_most", "_demand", "_per_s", "_requests", "_rows", "_since_s",
                 "_turned_away", "asked", "asked_s", "parts", "peak", "quota", "row_mean",
                 "under_way")  # fmt: skip

    def __init__(self, quota: Quota, parts: QuotaParts, now_s: float) -> None:
        # The whole mutable state: limits, what is used of them, and what was asked for lately.
        self.under_way = 0
        self.asked = 0
        self.asked_s = now_s
        self.peak = 0
        self.row_mean = 1.0
        self._turned_away = 0
        self._since_s = now_s
        self._per_s = 0.0
        self._demand = NOTHING
        self._requests: Bucket | None = None
        self._rows: Bucket | None = None
        self.change(quota, parts, now_s)

    def change(self, quota: Quota, parts: QuotaParts, now_s: float) -> None:
        """Go by another quota, or other parts of it."""
        self.quota, self.parts = quota, parts
        burst_s = quota.burst_s
        self._requests = _changed(
            self._requests, quota.requests_per_s, parts.requests, burst_s, 1, now_s
        )
        self._rows = _changed(self._rows, quota.rows_per_s, parts.rows, burst_s, 0, now_s)
        # Each process lets one call through: else a small limit would be none at most of them.
        self._concurrent_most = (
            UNLIMITED
            if quota.concurrent is None
            else max(1, int(quota.concurrent * parts.concurrent + ROUNDING_S))
        )

    def take(self, now_s: float) -> Refused | None:
        """Begin a request, which `release` must end; or say why it must wait."""
        self.asked += 1
        self.asked_s = now_s
        if self.under_way >= self._concurrent_most:
            self._turned_away += 1
            return Refused(CONCURRENT, self.quota.concurrent or 0, CONCURRENT_WAIT_S)
        rows = self._rows
        if rows is not None and rows.full_s - now_s > rows.slack_s:
            wait_s = rows.full_s - now_s - rows.slack_s + ROUNDING_S
            return Refused(ROWS, self.quota.rows_per_s or 0, wait_s)
        requests = self._requests
        if requests is not None:
            full_s = requests.full_s
            if full_s - now_s > requests.slack_s:
                wait_s = full_s - now_s - requests.slack_s + ROUNDING_S
                return Refused(REQUESTS, self.quota.requests_per_s or 0, wait_s)
            requests.full_s = (full_s if full_s > now_s else now_s) + requests.interval_s
        self.under_way += 1
        if self.under_way > self.peak:
            self.peak = self.under_way
        return None

    def take_rows(self, count: int, now_s: float) -> None:
        """Take the rows of a request that was begun."""
        rows = self._rows
        if rows is not None:
            self.row_mean += (count - self.row_mean) / 8
            rows.take(count, now_s)

    def release(self) -> None:
        """End a request that was begun; once for each."""
        assert self.under_way > 0, "a request ended twice"
        self.under_way -= 1

    def demand(self, now_s: float) -> tuple[float, float, float]:
        """Return which parts of the limits were asked for lately, each 0 to 1.

        Requests, rows and calls under way, in this order.  What was refused is asked for too; its
        rows, which nobody has read, are taken to be as many as those of others.
        """
        if not self.asked and not self.under_way and self._demand == NOTHING:
            self._since_s = now_s  # as most keys at most times
            return NOTHING
        quota, span_s = self.quota, now_s - self._since_s
        per_s = self.asked / max(span_s, SPAN_S_MIN)
        found = (
            min(1.0, per_s / (quota.requests_per_s or INTERVAL_S_MAX)),
            min(1.0, per_s * self.row_mean / (quota.rows_per_s or INTERVAL_S_MAX)),
            min(1.0, (self.peak + self._turned_away) / (quota.concurrent or UNLIMITED)),
        )
        expected = self._per_s * span_s
        more = self.asked - expected
        is_change = abs(more) > CHANCE * math.sqrt(max(expected, self.asked)) + 1
        if span_s < SPAN_S_MIN:  # too short to tell that it has become less
            if (is_change and more > 0) or self._turned_away:
                self._demand = _most(self._demand, found)
            return self._demand
        # What is more than chance is believed at once; all else is averaged.
        is_first = not self._per_s and span_s > FIRST_S
        kept = (KEPT if expected > FEW else KEPT_FEW) ** span_s
        kept = 0.0 if is_change or is_first else kept
        before = self._demand
        self._per_s = self._per_s * kept + per_s * (1 - kept)
        self._demand = (
            _averaged(before[0], found[0], kept),
            _averaged(before[1], found[1], kept),
            found[2] if self._turned_away else _averaged(before[2], found[2], kept),
        )
        self.asked = self._turned_away = 0
        self.peak = self.under_way
        self._since_s = now_s
        return self._demand

    def is_news(self, limit: str) -> bool:
        """Tell whether the demand that was last returned does not explain a refusal by `limit`."""
        requests, rows, concurrent = self._demand
        parts = self.parts
        if limit == REQUESTS:
            return requests <= parts.requests < 1
        return rows <= parts.rows < 1 if limit == ROWS else concurrent <= parts.concurrent < 1

    def is_idle(self, now_s: float) -> bool:
        """Tell whether nothing would be lost if a new meter took this one's place."""
        if self.under_way or now_s - self.asked_s < IDLE_S:
            return False
        return all(
            bucket is None or bucket.full_s <= now_s for bucket in (self._requests, self._rows)
        )


def _averaged(before: float, found: float, kept: float) -> float:
    value = before * kept + found * (1 - kept)
    return value if value > DEMAND_MIN else 0.0


def _most(
    one: tuple[float, float, float], other: tuple[float, float, float]
) -> tuple[float, float, float]:
    return max(one[0], other[0]), max(one[1], other[1]), max(one[2], other[2])


def _changed(
    bucket: Bucket | None,
    limit_per_s: float | None,
    part: float,
    burst_s: float,
    need: int,
    now_s: float,
) -> Bucket | None:
    if limit_per_s is None:
        return None
    if bucket is None:
        return Bucket(limit_per_s * part, burst_s, need, now_s)
    bucket.resize(limit_per_s * part, burst_s, now_s)
    return bucket
