"""How much more the calls of one version clump than calls that know nothing of each other."""

from __future__ import annotations

from typing import Final

# Calls are counted over so long, or over one call's time where that is longer.
COUNT_S: Final = 1.0
# What was learned is halved in about 0.7 times so many counts.
COUNTS: Final = 120.0
# Two counts that are further apart than by so many deviations are a rise or a fall, not chance:
# they count as if they were just so far apart.
DEVIATIONS_MAX: Final = 4.0


class Clumps:
    """Learns the index of dispersion of counts: their variance over their mean.

    It is 1 for Poisson arrivals, and for independent gaps the square of their coefficient of
    variation.  Each count is compared with the one before it and not with a mean, so a rise,
    however long it lasts, is one pair among many.

    Source:
        The chi-square of two Poisson counts, whose mean is 1; neighbours as in von Neumann's
        ratio (1941).
    """

    def __init__(self) -> None:
        # The whole mutable state: where this count began, and the one before it.
        self._begin_s = 0.0
        self._begin_arrived = 0
        self._calls = 0
        self._length_s = 0.0  # 0: there is none before it
        self._dispersion = 1.0

    @property
    def dispersion(self) -> float:
        """The variance of counts over their mean: 1 or more."""
        return max(1.0, self._dispersion)

    def restart(self, now_s: float, arrived: int) -> None:
        """Count from here on; what came before is not compared with it."""
        self._begin_s, self._begin_arrived, self._length_s = now_s, arrived, 0.0

    def observe(self, now_s: float, arrived: int, call_s: float) -> None:
        """Take note that there have been `arrived` calls, no fewer than before.

        Args:
            now_s: the time of this look, not before that of `restart`.
            arrived: calls ever.
            call_s: in which one replica ends one call.
        """
        length_s, calls = now_s - self._begin_s, arrived - self._begin_arrived
        if length_s < max(COUNT_S, call_s):
            return
        both = calls + self._calls
        if self._length_s and both:
            apart = calls * self._length_s - self._calls * length_s
            square = apart * apart / (both * length_s * self._length_s)
            square = min(square, DEVIATIONS_MAX**2 * self.dispersion)
            self._dispersion += (square - self._dispersion) / COUNTS
        self._begin_s, self._begin_arrived = now_s, arrived
        self._calls, self._length_s = calls, length_s
