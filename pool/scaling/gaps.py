"""How long a version idles between its calls: histograms that forget, and what versions share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

MINUTE_S: Final = 60.0

# Edges of the bins, in seconds.  Fine where a window costs little and gaps are many, coarse
# where both turn round; what is longer than the last edge is in the one open bin behind it.
EDGES_S: Final[tuple[float, ...]] = (
    *(0.0, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0),
    *(MINUTE_S * minute for minute in range(1, 60)),
    *(MINUTE_S * minute for minute in range(60, 240, 4)),
    *(MINUTE_S * minute for minute in range(240, 24 * 60 + 1, 20)),
)
BINS: Final = len(EDGES_S)  # the open one included
WIDTHS_S: Final[NDArray[np.float64]] = np.diff(np.array(EDGES_S))

# Counts are divided by the scale they were added with; before it overflows, all are divided.
_SCALE_MAX: Final = 1e100


def bin_of(gap_s: float) -> int:
    """Return the bin of a gap of at least 0 s.

    >>> bin_of(0.0), bin_of(90.0), bin_of(1e9) == BINS - 1
    (0, 7, True)
    """
    return bisect_right(EDGES_S, gap_s) - 1


class GapHistogram:
    """Counts per bin of which each gap makes the older ones `keep` times as heavy."""

    def __init__(self, keep: float) -> None:
        assert 0 < keep <= 1
        self._keep = keep
        # The whole mutable state: counts, heavier by `_scale` than they are worth.
        self._counts = [0.0] * BINS
        self._scale = 1.0
        self._total = 0.0

    @property
    def total(self) -> float:
        """How many gaps it stands for, after forgetting."""
        return self._total / self._scale

    def add(self, gap_s: float) -> None:
        """Count one gap; O(1)."""
        self._scale /= self._keep
        self._counts[bin_of(gap_s)] += self._scale
        self._total += self._scale
        if self._scale > _SCALE_MAX:
            self._counts = [count / self._scale for count in self._counts]
            self._total, self._scale = self._total / self._scale, 1.0

    def counts(self) -> NDArray[np.float64]:
        """Return the counts as they weigh now, shape (BINS,)."""
        return np.array(self._counts) / self._scale

    def take(self, counts: Sequence[float]) -> None:
        """Put these counts, one per bin, in place of its own."""
        assert len(counts) == BINS
        self._counts, self._scale, self._total = list(counts), 1.0, sum(counts)


class GapPool:
    """What the gaps of all versions look like together: the prior of a version that is new.

    Every version weighs the same, however many calls it has.
    """

    def __init__(self) -> None:
        # The whole mutable state: the shares of every version that has told of itself.
        self._shares = np.zeros(BINS)
        self._versions = 0.0

    def exchange(self, before: NDArray[np.float64] | None, now: NDArray[np.float64]) -> None:
        """Take a version's shares, shape (BINS,), in place of those that it gave before."""
        if before is None:
            self._versions += 1
        else:
            self._shares -= before
        self._shares += now

    def prior(self) -> NDArray[np.float64] | None:
        """Return the mean shares, shape (BINS,), or None while nobody told anything."""
        return self._shares / self._versions if self._versions else None
