"""The bins in which idle gaps are counted, histograms that forget, and what versions share."""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0

# Edges of the bins, in seconds.  Fine where a window costs little and gaps are many, coarse
# where both turn round; what is longer than the last edge is in the one open bin behind it.
EDGES_S: Final[tuple[float, ...]] = (
    *(0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0),
    *(MINUTE_S * minute for minute in range(1, 60)),
    *(MINUTE_S * minute for minute in range(60, 240, 4)),
    *(MINUTE_S * minute for minute in range(240, 24 * 60 + 1, 20)),
)
EDGES: Final = np.array(EDGES_S)
WIDTHS_S: Final = np.diff(EDGES)
BINS: Final = len(EDGES_S)  # the open one included

# Counts are heavier by a scale than they are worth; before it overflows, all are divided by it.
_SCALE_MAX: Final = 1e100
# Of what versions have in common and what is supposed of any, so much weighs the latter.
SUPPOSED: Final = 0.3


def bin_of(gap_s: float) -> int:
    """Return the bin of a gap of at least 0 s.

    >>> bin_of(0.0), bin_of(90.0), bin_of(1e9) == BINS - 1
    (0, 7, True)
    """
    return bisect_right(EDGES_S, gap_s) - 1


class GapHistogram:
    """Counts per bin; with each gap that is counted, the older ones fade by the factor `keep`."""

    def __init__(self, keep: float) -> None:
        assert 0 < keep <= 1
        self._keep = keep
        # The whole mutable state: counts, heavier by `_scale` than they are worth, and their sum.
        self._counts = [0.0] * BINS
        self._scale = 1.0
        self._total = 0.0

    @property
    def total(self) -> float:
        """How many gaps it stands for."""
        return self._total / self._scale

    def add(self, index: int) -> None:
        """Count one gap in this bin; O(1)."""
        self._scale /= self._keep
        self._counts[index] += self._scale
        self._total += self._scale
        if self._scale > _SCALE_MAX:
            self.take(self.counts())

    def count(self, index: int) -> float:
        """Return how many gaps the bin stands for."""
        return self._counts[index] / self._scale

    def counts(self) -> Floats:
        """Return what every bin stands for, shape (BINS,)."""
        return np.array(self._counts) / self._scale

    def take(self, counts: Floats) -> None:
        """Put these counts, shape (BINS,), in place of its own."""
        assert counts.shape == (BINS,)
        self._counts, self._scale, self._total = counts.tolist(), 1.0, float(counts.sum())


class GapPool:
    """How the idle gaps of all versions are distributed: what is supposed of a new one.

    A version tells with which weights it is like each of the same distributions.  Every version
    weighs the same, however many calls it has.
    """

    def __init__(self) -> None:
        # The whole mutable state: the weights that the versions told, added up; how many did.
        self._weights: Floats | None = None
        self._versions = 0

    def exchange(self, before: Floats | None, now: Floats) -> None:
        """Take a version's weights, shape (members,), in place of those that it told before."""
        self._weights = now.copy() if self._weights is None else self._weights + now
        if before is None:
            self._versions += 1
        else:
            self._weights -= before

    def prior(self, members: int) -> Floats:
        """Return how likely each of the distributions is for one of which nothing is known."""
        if self._weights is None:
            return np.full(members, 1 / members)
        assert self._weights.shape == (members,)
        common = np.maximum(self._weights, 0.0) / self._versions
        return np.asarray((1 - SUPPOSED) * common + SUPPOSED / members)
