"""Whether a version without calls is to be warm: learned from how long it idled before."""

from __future__ import annotations

import math
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from pool.scaling.gaps import BINS, GapHistogram, GapPool
from pool.scaling.hazard import Windows, windows

# A version of which little is known stays warm for this long, for as many gaps.
EXPLORE_S: Final = 4 * 3600.0
EXPLORE_GAPS: Final = 4


class _Saved(msgspec.Struct, array_like=True):
    """What is kept of a version over a restart; nothing in it is a time of day."""

    gaps: int
    counts: list[float]


class KeepAlive:
    """Decides for one version, whether one replica stays or becomes warm while nothing calls.

    Times are in seconds on one clock that never falls.  A new version counts as in use until
    `ended` is called for the first time; the owner does so when it first sees the version.
    """

    def __init__(self, pool: GapPool | None = None) -> None:
        # The whole mutable state: what was learned, since when it idles, and the plan.
        self._pool = pool
        self._told: NDArray[np.float64] | None = None
        self._histogram = GapHistogram(keep=0.99)
        self._gaps = 0
        self._idle_since_s: float | None = None
        self._plan: Windows = []
        self._planned_for: tuple[int, float, float] | None = None

    def began(self, now_s: float, idle_s: float) -> None:
        """A call came after `idle_s` without any."""
        self._idle_since_s = None
        self._gaps += 1
        self._histogram.add(idle_s)

    def ended(self, now_s: float) -> None:
        """Nothing is inside any more."""
        self._idle_since_s = now_s

    def wants(self, now_s: float, cost_s: float, wake_s: float) -> tuple[bool, float]:
        """Say whether to be warm now, and until when that holds if nothing happens.

        Args:
            now_s: the time of the decision.
            cost_s: how long one replica may idle for the sake of one cold start spared.
            wake_s: how long a wake takes; a window opens that much early.
        """
        if self._idle_since_s is None:
            return True, math.inf
        self._make_plan(cost_s, wake_s)
        idle_s = now_s - self._idle_since_s
        for opens_s, closes_s in self._plan:
            if idle_s < opens_s:
                return False, self._idle_since_s + opens_s
            if idle_s < closes_s:
                return True, self._idle_since_s + closes_s
        return False, math.inf

    def _make_plan(self, cost_s: float, wake_s: float) -> None:
        key = (self._gaps, cost_s, wake_s)
        if self._planned_for == key:
            return
        self._planned_for = key
        if self._gaps < EXPLORE_GAPS:
            self._plan = [(0.0, EXPLORE_S)]
            return
        counts = self._histogram.counts()
        prior = self._pool.prior() if self._pool else None
        if prior is None:
            prior = np.full(BINS, 1 / BINS)
        shares = (counts + prior) / (counts.sum() + 1.0)
        self._plan = windows(shares, cost_s, wake_s)

    def save(self) -> bytes:
        """Return what was learned."""
        saved = _Saved(self._gaps, self._histogram.counts().tolist())
        return msgspec.msgpack.encode(saved)

    def restore(self, data: bytes) -> None:
        """Take over what a predecessor had learned; what is not readable is ignored."""
        try:
            saved = msgspec.msgpack.decode(data, type=_Saved)
        except msgspec.DecodeError:
            return
        if len(saved.counts) == BINS:
            self._gaps = saved.gaps
            self._histogram.take(saved.counts)
