"""The hybrid histogram of Serverless in the Wild: one window between two percentiles of the gaps.

Source:
    Shahrad et al., "Serverless in the Wild", ATC 2020.  Its forecast for gaps beyond the
    histogram (ARIMA) is the median of these gaps here, with the same margins.  The histograms of
    single days, which it forgets after two weeks, are one.
"""

from __future__ import annotations

import math
from bisect import insort
from typing import Final

from infra.simulate.fixed import Fixed
from pool.scaling.signals import Decision, Limits, Signals

BIN_S: Final = 60.0
BINS: Final = 240
RANGE_S: Final = BIN_S * BINS

GAPS_MIN: Final = 5  # fewer say nothing
CV_MIN: Final = 2.0  # of the bins' counts; a flatter histogram says nothing
BEYOND_MAX: Final = 0.5  # share of gaps beyond the range; with more, these are forecast
HEAD, TAIL = 0.05, 0.99
MARGIN: Final = 0.1
FORECAST_MARGIN: Final = 0.15

# Calls at once are no part of it: more than one replica is kept as providers do.
KEEP_MORE_S: Final = 600.0


class HybridHistogram:
    """Keeps one replica from the head to the tail of the gaps seen, and for 4 h at first."""

    def __init__(self) -> None:
        self._more = Fixed(KEEP_MORE_S)
        # The whole mutable state: gaps by bin, the sum of the counts' squares, gaps beyond, the
        # calls seen, since when nothing is inside, and the window in seconds of idleness.
        self._counts = [0] * BINS
        self._bins = 0  # up to the last that has any
        self._inside = 0
        self._squares = 0
        self._beyond_s: list[float] = []
        self._arrived = 0
        self._idle_since_s: float | None = None
        self._window_s = (0.0, RANGE_S)

    def observe(self, signals: Signals) -> None:
        """Take note of a gap when it ends, and of when the next one begins."""
        self._more.observe(signals)
        is_in_use = signals.waiting + signals.running > 0
        if signals.arrived > self._arrived or is_in_use:
            if self._idle_since_s is not None and signals.arrived > self._arrived:
                self._add(signals.now_s - self._idle_since_s)
                self._window_s = self._window()
            self._idle_since_s = None if is_in_use else signals.now_s
        elif self._idle_since_s is None:
            self._idle_since_s = signals.now_s
        self._arrived = signals.arrived

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return what is wanted at this point of the gap, or while something is inside."""
        more = self._more.decide(limits, signals)
        wanted, until_s = limits.replicas_min, math.inf
        if self._idle_since_s is None:
            wanted = max(1, wanted)
        else:
            idle_s = signals.now_s - self._idle_since_s
            opens_s, closes_s = self._window_s
            if idle_s < opens_s:
                until_s = self._idle_since_s + opens_s
            elif idle_s < closes_s:
                wanted, until_s = max(1, wanted), self._idle_since_s + closes_s
        if more.replicas > max(1, wanted):
            return more
        return Decision(replicas=wanted, reason="window", until_s=min(until_s, more.until_s))

    def _add(self, gap_s: float) -> None:
        index = int(gap_s / BIN_S)
        if index >= BINS:
            insort(self._beyond_s, gap_s)
            return
        self._bins = max(self._bins, index + 1)
        self._squares += 2 * self._counts[index] + 1
        self._counts[index] += 1
        self._inside += 1

    def _window(self) -> tuple[float, float]:
        """Return from when to when of a gap to be warm."""
        inside, beyond = self._inside, len(self._beyond_s)
        if inside + beyond < GAPS_MIN:
            return 0.0, RANGE_S
        if beyond > BEYOND_MAX * (inside + beyond):
            forecast_s = self._beyond_s[beyond // 2]
            return forecast_s * (1 - FORECAST_MARGIN), forecast_s * (1 + FORECAST_MARGIN)
        mean = inside / BINS
        if self._squares / BINS - mean**2 < (CV_MIN * mean) ** 2:
            return 0.0, RANGE_S
        head, below = 0, self._counts[0]
        while below < HEAD * inside:
            head += 1
            below += self._counts[head]
        tail, above = self._bins, 0
        while above + self._counts[tail - 1] <= (1 - TAIL) * inside:
            tail -= 1
            above += self._counts[tail]
        return head * BIN_S * (1 - MARGIN), tail * BIN_S * (1 + MARGIN)
