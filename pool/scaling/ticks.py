"""A version that is called by a clock: its period, and how late its last call was."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from pool.scaling.gaps import EDGES, EDGES_S, Floats

# A gap this near to the period is another tick, late or early; any other starts anew.
NEAR: Final = 0.3
# Before ticks have told how unpunctual they are: a tenth of the period, as if seen once.
UNPUNCTUAL: Final = 0.1
# Nothing is more punctual than this share of its period, nor than a second.
PUNCTUAL: Final = 0.02
PUNCTUAL_S: Final = 1.0
# Ticks that count: what is older has faded, so that a period may change.
TICKS_MAX: Final = 50
# Each tick moves the phase by at least this of its lateness, and the period by at least that.
PHASE_GAIN: Final = 0.1
PERIOD_GAIN: Final = 0.015
# The mean deviation of a logistic distribution is 2 ln 2 of its scale; a little more is allowed.
DEVIATION_TO_SCALE: Final = 0.6


class Ticks:
    """Follows a clock whose ticks are late or early by chance, each by itself.

    After a late tick the next gap is shorter: what lateness is known of the last tick is taken
    off the period.  This is a phase-locked loop; its gains fall with the ticks seen, as in the
    mean of so many, down to a floor.
    """

    def __init__(self) -> None:
        # The whole mutable state: gaps that fitted, the period, how late the last tick was, and
        # the mean deviation of the ticks, added up.
        self._ticks = 0
        self._period_s = 0.0
        self._late_s = 0.0
        self._deviations_s = 0.0

    @property
    def is_known(self) -> bool:
        """Whether at least two gaps in a row were alike."""
        return self._ticks > 0

    @property
    def due_s(self) -> float:
        """How long after the last call the next is expected."""
        return self._period_s - self._late_s

    @property
    def scale_s(self) -> float:
        """The scale of the logistic distribution about it."""
        deviation_s = (self._deviations_s + UNPUNCTUAL * self._period_s) / (self._ticks + 1)
        least_s = max(PUNCTUAL * self._period_s, PUNCTUAL_S)
        return DEVIATION_TO_SCALE * max(deviation_s, least_s)

    def share(self, index: int) -> float:
        """Return the probability that the next gap ends in this bin, if it is a tick."""
        above = 1.0
        if index + 1 < len(EDGES_S):
            above = self._ends_by(EDGES_S[index + 1])
        below = self._ends_by(EDGES_S[index]) if index else 0.0
        return above - below

    def shares(self) -> Floats:
        """Return the probability of every bin, shape (BINS,)."""
        ends_by = 0.5 * (1 + np.tanh((EDGES - self.due_s) / (2 * self.scale_s)))
        ends_by[0] = 0.0
        return np.diff(ends_by, append=1.0)

    def _ends_by(self, gap_s: float) -> float:
        return 0.5 * (1 + math.tanh((gap_s - self.due_s) / (2 * self.scale_s)))

    def add(self, gap_s: float) -> None:
        """Take note of a gap."""
        off_s = gap_s - self.due_s
        if not self._period_s or abs(off_s) >= NEAR * self._period_s:
            self._ticks, self._period_s = 0, gap_s
            self._late_s = self._deviations_s = 0.0
            return
        self._ticks += 1
        self._deviations_s += abs(off_s)
        if self._ticks > TICKS_MAX:
            self._ticks = TICKS_MAX
            self._deviations_s *= TICKS_MAX / (TICKS_MAX + 1)
        seen = self._ticks + 1
        self._late_s = off_s * (1 - max(PHASE_GAIN, 1 / seen))
        self._period_s += off_s * max(PERIOD_GAIN, 0.5 / seen)

    def save(self) -> tuple[int, float, float, float]:
        """Return what `take` takes."""
        return self._ticks, self._period_s, self._late_s, self._deviations_s

    def take(self, saved: tuple[int, float, float, float]) -> None:
        """Put this in place of what it knows."""
        self._ticks, self._period_s, self._late_s, self._deviations_s = saved
