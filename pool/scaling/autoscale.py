"""How many replicas the demand of one version asks for.

Whether the first one is warm while nobody calls is the keep-alive's business.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from pool.scaling.envelope import Envelope, Held
from pool.scaling.seasonal import Seasonal
from pool.scaling.signals import Signals

# How long a call may wait by plan, of the two seconds or so that a caller hardly minds.
WAIT_S: Final = 0.5
# Peaks count for so many wakes, within bounds: what is let go too early costs a wake to get back.
HOLD_WAKES: Final = 2.0
HOLD_S_MIN: Final = 30.0
HOLD_S_MAX: Final = 1800.0
# How many calls are inside is drawn anew about as often as one takes: the highest of so many draws
# is exceeded once in as many.  It matters where calls take long.
HOLD_CALLS: Final = 20.0
# What waits once the replicas of a panic are warm is to be gone in this time.  A long wake piles
# up so much that to clear it as fast would take many times the replicas of the burst itself.
CLEAR_S: Final = 2.0
CLEAR_WAKES: Final = 1 / 6
# What is asked for in need is kept so long after it is warm, or it would flap.
RESCUE_S: Final = 3.0


class Wanted(msgspec.Struct, frozen=True):
    """Replicas by each term, and until when that holds if nothing happens."""

    demand: int  # of the recent past
    panic: int
    needed: int  # of this moment alone
    until_s: float  # of these
    forecast: int
    forecast_until_s: float


class Autoscaler:
    """Knows what arrived; `observe` and `wanted` are called with times that never fall."""

    def __init__(self) -> None:
        # The whole mutable state; the last is since when replicas load.
        self._envelope = Envelope(WAIT_S)
        self._seasonal = Seasonal()
        self._rescue = Held()
        self._loading_since_s: float | None = None

    def observe(self, signals: Signals) -> None:
        """Take note of what is seen."""
        inside = signals.waiting + signals.running
        call_s = 1 / signals.calls_per_s if signals.calls_per_s > 0 else 0.0
        hold_s = max(HOLD_S_MIN, HOLD_WAKES * signals.wake_s, HOLD_CALLS * call_s)
        hold_s = min(hold_s, HOLD_S_MAX)
        self._envelope.observe(signals.now_s, signals.arrived, inside, hold_s, call_s)
        self._seasonal.observe(signals)
        if signals.waiting and signals.calls_per_s > 0:
            rescue = max(self._backlog(signals), self._panic(signals))
            self._rescue.add(signals.now_s, rescue, signals.wake_s + RESCUE_S)
        if not signals.loading:
            self._loading_since_s = None
        elif self._loading_since_s is None:
            self._loading_since_s = signals.now_s

    def wanted(self, signals: Signals) -> Wanted:
        """Return how many replicas each term asks for; changes nothing."""
        now_s, rate = signals.now_s, signals.calls_per_s
        if rate <= 0:  # nothing has been measured: one replica will tell
            return Wanted(0, 0, 0, math.inf, 0, math.inf)
        peak, until_s = self._envelope.peak(now_s)
        rescue, rescue_until_s = self._rescue.highest(now_s)
        forecast, forecast_until_s = self._seasonal.replicas(signals)
        demand = _whole(peak / rate)
        return Wanted(
            demand=demand,
            panic=int(rescue),
            needed=max(_whole(self._envelope.demand() / rate), int(rescue)),
            until_s=min(
                until_s if demand > 1 else math.inf,
                rescue_until_s if rescue > 1 else math.inf,
            ),
            forecast=forecast,
            forecast_until_s=forecast_until_s,
        )

    def regret(self, signals: Signals) -> dict[str, float]:
        """Return what acting upon forecasts would have been good for so far, and what it cost."""
        return self._seasonal.regret(signals.calls_per_s)

    def save(self) -> bytes:
        """Return what was learned, as of the last look."""
        return self._seasonal.save()

    def restore(self, data: bytes, now_s: float) -> None:
        """Take over what was learned until `now_s`; what is not readable is ignored."""
        self._seasonal.restore(data, now_s)

    def _backlog(self, signals: Signals) -> int:
        """Return what is busy, and what the calls that wait for long need to be gone in time."""
        rate, clear_s = signals.calls_per_s, _clear_s(signals)
        if signals.waiting <= self._envelope.wait_s * rate * signals.warm:
            return 0
        busy = min(self._envelope.demand() / rate, signals.warm, signals.running)
        return _whole(busy + signals.waiting / (rate * clear_s))

    def _panic(self, signals: Signals) -> int:
        """Return what a sudden rise needs, with what piles up until help is warm."""
        rate = signals.calls_per_s
        capacity = signals.warm * rate
        calls_per_s = self._envelope.step(signals.now_s, capacity)
        if not calls_per_s:
            return 0
        left_s = signals.wake_s
        if self._loading_since_s is not None:
            left_s = max(0.0, left_s - (signals.now_s - self._loading_since_s))
        piled = signals.waiting + (calls_per_s - capacity) * left_s
        clear_s = _clear_s(signals)
        return _whole((calls_per_s + piled / clear_s) / rate)


def _clear_s(signals: Signals) -> float:
    return max(CLEAR_S, CLEAR_WAKES * signals.wake_s, 1 / signals.calls_per_s)


def _whole(replicas: float) -> int:
    return math.ceil(replicas - 1e-9)
