"""What came at the same distance in time before, and so is expected again.

A period is trusted while going by it would have paid off of late; without one there is no forecast.
"""

from __future__ import annotations

import math
import zlib
from array import array
from typing import Annotated, Final

import msgspec

from pool.scaling.kept import unpack
from pool.scaling.signals import Signals

BUCKET_S: Final = 5.0
PERIODS_S: Final = (300, 600, 900, 1800, 3600, 7200, 10_800, 14_400, 21_600, 43_200, 86_400)
PERIODS: Final = tuple(round(period_s / BUCKET_S) for period_s in PERIODS_S)  # in buckets
LAG_MAX: Final = 120  # buckets: a wake that takes longer is foreseen by so much
BUCKETS: Final = PERIODS[-1] + LAG_MAX + 16  # that are kept
UNSEEN_MAX: Final = 720  # buckets without a look, from which on nothing is concluded
# Demand of the last so many buckets is there anyway, as an autoscaler holds it.
HELD: Final = 6
# What one call that is not late for once is worth, in calls that idle replicas could have taken.
WORTH: Final = 10.0
# A period's successes and failures count half after so many periods.
MEMORY_PERIODS: Final = 3.0
# Rises of so many deviations of a Poisson count are no achievement.
CHANCE_DEVIATIONS: Final = 2.0
# A call arrives up to this long before or after its time.
SLACK: Final = 1  # buckets


# Rates are kept in bytes, by their logarithm: 0 to 8 million calls per second, 6 % apart.
STEPS: Final = 16.0
# No score gets beyond what such a rate adds to it, nor does what comes of all forecasts.
_Score = Annotated[float, msgspec.Meta(ge=-1e14, le=1e14)]
_Calls = Annotated[float, msgspec.Meta(ge=0, le=1e18)]


class _Saved(msgspec.Struct, array_like=True):
    """What is kept over a restart, as of the last look."""

    rates: bytes  # a byte for each bucket, oldest first, compressed
    scores: Annotated[list[_Score], msgspec.Meta(min_length=len(PERIODS), max_length=len(PERIODS))]
    spared_calls: _Calls
    idle_calls: _Calls


_saved_of = msgspec.msgpack.Decoder(_Saved)


class Seasonal:
    """Remembers a day of arrivals once one replica was not enough, and looks one wake ahead.

    Source:
        Predicted replicas are added and never taken away, as AWS predictive scaling does; the
        choice of a model by what each would have cost is Autopilot's (EuroSys 2020).
    """

    def __init__(self) -> None:
        # The whole mutable state: calls per second by bucket, the bucket that fills, each period's
        # score, and what comes of them.
        self._rates: array[float] | None = None
        self._begun = 0  # the first bucket that was seen
        self._bucket = 0
        self._calls = 0
        self._arrived = -1  # nothing was seen yet
        self._scores = [0.0] * len(PERIODS)
        self._best = -1
        self.spared_calls = 0.0  # that were not late, or would not have been
        self.idle_calls = 0.0  # that could have been taken and did not come

    def observe(self, signals: Signals) -> None:
        """Take note of what has arrived."""
        bucket = math.floor(signals.now_s / BUCKET_S)
        came = max(0, signals.arrived - self._arrived) if self._arrived >= 0 else 0
        self._arrived = signals.arrived
        if self._rates is None:
            if bucket != self._bucket:
                self._bucket, self._calls = bucket, 0
            self._calls += came
            if self._calls <= BUCKET_S * signals.calls_per_s or signals.calls_per_s <= 0:
                return
            self._rates = array("f", bytes(4 * BUCKETS))
            self._begun = bucket
            return
        if bucket - self._bucket > UNSEEN_MAX:
            self._skip(self._rates, bucket)
        while self._bucket < bucket:
            self._close(self._rates, signals.wake_s)
        self._calls += came

    def replicas(self, signals: Signals) -> tuple[int, float]:
        """Return how many replicas are expected to be needed, and until when that holds.

        It is 0 where one will do: that one is the keep-alive's business.
        """
        if self._rates is None or self._best < 0 or signals.calls_per_s <= 0:
            return 0, math.inf
        bucket = math.floor(signals.now_s / BUCKET_S)
        then = bucket - PERIODS[self._best]
        last = min(then + _lag(signals.wake_s) + SLACK, self._bucket - 1)
        if last < then:  # nobody has looked for longer than the period
            return 0, math.inf
        expected = _highest(self._rates, then - SLACK, last)
        needed = math.ceil(expected / signals.calls_per_s - 1e-9)
        return (needed if needed > 1 else 0), (bucket + 1) * BUCKET_S

    def regret(self, calls_per_s: float) -> dict[str, float]:
        """Return what forecasts were good for, or would have been: late calls, idle replicas."""
        if self._rates is None or calls_per_s <= 0:
            return {}
        return {
            "forecast_spared_calls": self.spared_calls,
            "forecast_idle_replica_s": self.idle_calls / calls_per_s,
        }

    def save(self) -> bytes:
        """Return what was learned, as of the last look; empty: nothing."""
        if self._rates is None:
            return b""
        first = max(self._begun, self._bucket - BUCKETS + 1)
        rates = (self._rates[bucket % BUCKETS] for bucket in range(first, self._bucket))
        packed = bytes(min(255, round(STEPS * math.log1p(rate))) for rate in rates)
        saved = _Saved(
            zlib.compress(packed), list(self._scores), self.spared_calls, self.idle_calls
        )
        return msgspec.msgpack.encode(saved)

    def restore(self, data: bytes, now_s: float) -> None:
        """Take over what was learned until `now_s`; what is not readable is ignored."""
        saved = unpack(data, _saved_of)
        if saved is None:
            return
        try:
            packed = zlib.decompressobj().decompress(saved.rates, BUCKETS)
        except zlib.error:
            return
        self._bucket = math.floor(now_s / BUCKET_S)
        self._begun = self._bucket - len(packed)
        self._calls = 0
        self._rates = array("f", bytes(4 * BUCKETS))
        for bucket, step in enumerate(packed, self._begun):
            self._rates[bucket % BUCKETS] = math.expm1(step / STEPS)
        self._scores = list(saved.scores)
        self._choose()
        self.spared_calls, self.idle_calls = saved.spared_calls, saved.idle_calls

    def _skip(self, rates: array[float], bucket: int) -> None:
        """Nothing came for long; nobody looked, so no period has failed."""
        rates[self._bucket % BUCKETS] = self._calls / BUCKET_S
        for between in range(max(self._bucket + 1, bucket - BUCKETS), bucket):
            rates[between % BUCKETS] = 0.0
        if bucket - self._bucket > BUCKETS:
            self._begun = bucket
            self._scores = [0.0] * len(PERIODS)
            self._best = -1
        self._bucket, self._calls = bucket, 0

    def _close(self, rates: array[float], wake_s: float) -> None:
        """Write the bucket that filled, and see how well each period has foretold it."""
        bucket = self._bucket
        rate = self._calls / BUCKET_S
        rates[bucket % BUCKETS] = rate
        lag = _lag(wake_s)
        there = _highest(rates, bucket - lag - HELD, bucket - lag)
        chance = CHANCE_DEVIATIONS * math.sqrt(max(there, 1.0) / BUCKET_S)
        late_s = min(BUCKET_S, wake_s)
        for index, period in enumerate(PERIODS):
            if bucket - period <= self._begun:
                break
            then = bucket - period
            expected = _highest(rates, then - SLACK, then + SLACK)
            spared = max(0.0, min(expected, rate) - there - chance) * late_s
            idle = max(0.0, expected - max(rate, there)) * BUCKET_S
            decay = 0.5 ** (1 / (MEMORY_PERIODS * period))
            self._scores[index] = self._scores[index] * decay + WORTH * spared - idle
            if index == self._best:
                self.spared_calls += spared
                self.idle_calls += idle
        self._choose()
        self._bucket, self._calls = bucket + 1, 0

    def _choose(self) -> None:
        best = max(self._scores)
        self._best = self._scores.index(best) if best > 0 else -1


def _lag(wake_s: float) -> int:
    """Return how many buckets pass until what is wanted now is there."""
    return min(max(1, math.ceil(wake_s / BUCKET_S)), LAG_MAX)


def _highest(rates: array[float], first: int, last: int) -> float:
    """Return the highest rate of these buckets, the last one included."""
    begin, end = first % BUCKETS, last % BUCKETS
    if begin <= end:
        return max(rates[begin : end + 1])
    return max(max(rates[begin:]), max(rates[: end + 1]))
