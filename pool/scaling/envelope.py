"""The demand envelope of one version: how many calls a second it must be able to take.

Knows no replicas and reads no clock.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from typing import Final

from pool.scaling.clumps import Clumps

# Doubling from about a service time up to a minute: short ones see a burst, long ones a trend.
WINDOWS_S: Final = (4.0, 8.0, 16.0, 32.0, 60.0)
# A step is judged by the shortest of these in which it cannot be chance.
STEP_WINDOWS_S: Final = (0.5, 1.0, 2.0, 4.0)
# Calls that take longer than the longest window are counted for as long as they take, up to this.
KEPT_S_MAX: Final = 900.0
# Two looks nearer to each other than this are one.
LOOK_S: Final = 0.25
# When something comes it is looked at within this.
IDLE_LOOK_S: Final = 0.5
# More calls than expected by this many deviations of a Poisson count, and this many, are no chance.
# Where calls clump it is clumps that are counted: as many calls as the dispersion says.
CHANCE_DEVIATIONS: Final = 3.0
CHANCE_CALLS: Final = 2.0
# The more calls clump, the longer they may wait by plan, up to this: a clump is worth its queue.
WAIT_S_MAX: Final = 1.5
# Of calls that clump, this share may wait longer than this.
LATE_SHARE: Final = 0.01
LATE_S: Final = 2.0


class Held:
    """The highest value that still counts; each counts for a while after it was seen."""

    def __init__(self) -> None:
        # The whole mutable state: until when, and what; the former rises, the latter falls.
        self._values: deque[tuple[float, float]] = deque()

    def add(self, now_s: float, value: float, hold_s: float) -> None:
        """Let this value count for `hold_s`, which is about the same every time."""
        values = self._values
        while values and values[-1][1] <= value:
            values.pop()
        if value > 0:
            values.append((now_s + hold_s, value))
        while values and values[0][0] <= now_s:
            values.popleft()

    def highest(self, now_s: float) -> tuple[float, float]:
        """Return the highest value that counts, or 0, and until when it does."""
        for until_s, value in self._values:
            if now_s < until_s:
                return value, until_s
        return 0.0, math.inf


class Envelope:
    """Counts arrivals over several windows at once, and remembers the highest demand of late.

    A rate r serves all calls of a window of W seconds with a wait of at most d when
    ``calls <= r * (W + d)``; the demand is the least r for which that holds in every window.
    Calls that clump may wait longer, and in return their mean has room above it.

    Source:
        Arrival curves of network calculus (Cruz 1991); the doubling windows and the maximum
        over the recent past are InferLine's (SoCC 2020).

    Args:
        wait_s: how long calls that do not clump may wait by plan.
    """

    def __init__(self, wait_s: float) -> None:
        # The whole mutable state: looks (when, calls ever), how much calls clump, and the maxima
        # of the recent past.
        self._poisson_wait_s = wait_s
        self._clumps = Clumps()
        self._call_s = 0.0
        self._looks_s: list[float] = []
        self._arrived: list[int] = []
        self._last_arrived = 0
        self._was_idle = True
        self._demand = 0.0
        self._peaks = Held()

    def observe(
        self, now_s: float, arrived: int, inside: int, hold_s: float, call_s: float = 0.0
    ) -> None:
        """Take note that there have been `arrived` calls.

        Args:
            now_s: the time of this look.
            arrived: calls ever; where it falls it is counted anew.
            inside: calls that have not ended.
            hold_s: for how long a demand counts after it was seen.
            call_s: in which one replica ends one call; so many calls never ask for more than as
                many replicas, however short the window.
        """
        looks_s, counts = self._looks_s, self._arrived
        if not looks_s or arrived < self._last_arrived:  # what came before, came at any time
            looks_s.clear()
            counts.clear()
            self._last_arrived = max(0, arrived - inside)
        if not looks_s or (self._was_idle and looks_s[-1] < now_s - IDLE_LOOK_S):
            # Nobody looked while nothing came, so what is seen now came just now.
            looks_s.append(now_s - IDLE_LOOK_S)
            counts.append(self._last_arrived)
            self._clumps.restart(looks_s[-1], self._last_arrived)
        self._clumps.observe(now_s, arrived, call_s)
        self._was_idle = not inside
        self._last_arrived = arrived
        self._call_s = call_s
        self._demand = self._highest(now_s)
        if now_s - looks_s[-1] >= LOOK_S:
            looks_s.append(now_s)
            counts.append(arrived)
            # The oldest look that a window needs is the last one before it.
            kept_s = max(WINDOWS_S[-1], min(call_s, KEPT_S_MAX))
            while len(looks_s) > 1 and looks_s[1] <= now_s - kept_s:
                del looks_s[0], counts[0]
        self._peaks.add(now_s, self._demand, hold_s)

    @property
    def wait_s(self) -> float:
        """How long a call may wait by plan."""
        return min(self._poisson_wait_s * math.sqrt(self._clumps.dispersion), WAIT_S_MAX)

    def demand(self) -> float:
        """Return the calls per second that the last minute asks for."""
        return self._demand

    def peak(self, now_s: float) -> tuple[float, float]:
        """Return the highest demand that still counts, and until when it does."""
        return self._peaks.highest(now_s)

    def step(self, now_s: float, capacity: float) -> float:
        """Return the calls per second of a rise that is no chance, or 0.

        Args:
            now_s: the time of the last look, or later.
            capacity: calls per second that can be taken as it is.
        """
        highest, clump = 0.0, self._clumps.dispersion
        for window_s in STEP_WINDOWS_S:
            calls, seen_s = self._calls(now_s, window_s)
            if not calls:
                break
            expected = capacity * seen_s
            chance = CHANCE_DEVIATIONS * math.sqrt(clump * expected) + CHANCE_CALLS * clump
            if calls > expected + chance:
                highest = max(highest, calls / max(seen_s, self._call_s))
        return highest

    def _highest(self, now_s: float) -> float:
        """Return the highest demand of any window."""
        wait_s = self.wait_s
        shortest_s, *others_s, longest_s = WINDOWS_S
        longest_s = max(longest_s, min(self._call_s, KEPT_S_MAX))  # all that can be inside
        calls, seen_s = self._calls(now_s, shortest_s)
        most, most_s = self._calls(now_s, longest_s)
        demand = calls / max(seen_s + wait_s, self._call_s)
        if most == calls:  # nothing came before the shortest window: the others ask for less
            return demand
        for window_s in others_s:
            calls, seen_s = self._calls(now_s, window_s)
            demand = max(demand, calls / max(seen_s + wait_s, self._call_s))
        demand = max(demand, most / max(most_s + wait_s, self._call_s))
        return max(demand, self._with_room(most / most_s))

    def _with_room(self, rate: float) -> float:
        """Return the least rate at which few of so many calls a second are late by their clumps.

        Where c calls a second can be taken and the dispersion is I, a share of about
        ``exp(-2 c (c - rate) d / (rate I))`` waits longer than d.  What it asks of Poisson's
        calls is left to the windows.

        Source:
            Heavy traffic (Kingman 1962); effective bandwidths (Kelly 1996).
        """
        extra = self._clumps.dispersion - 1.0
        room = -math.log(LATE_SHARE) / (2 * max(LATE_S, self._call_s)) * extra * rate
        return (rate + math.sqrt(rate * rate + 4 * room)) / 2

    def _calls(self, now_s: float, window_s: float) -> tuple[int, float]:
        """Return how many calls came in this window, or since the last look before it."""
        index = bisect_right(self._looks_s, now_s - window_s + 1e-9) - 1
        if index < 0:  # before the first look there was nothing
            return self._last_arrived - self._arrived[0], window_s
        came = self._last_arrived - self._arrived[index]
        if self._arrived[index + 1 : index + 2] == [self._arrived[index]]:
            return came, window_s  # nothing came before the look after it
        return came, now_s - self._looks_s[index]
