"""Keeping what was in use for a fixed time, as providers of functions do."""

from __future__ import annotations

import math
from collections import deque

from pool.scaling.signals import Decision, Limits, Signals


class Fixed:
    """Keeps so many replicas as were in use at any time within the last `keep_s`.

    In use is one per call that runs; and for calls that wait, as many as would have them all
    running within a second.
    """

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        # The whole mutable state: the calls seen, what was in use when last seen, and until when
        # how many are kept: the later, the fewer.
        self._arrived = 0
        self._in_use = 0
        self._kept: deque[tuple[float, int]] = deque()

    def observe(self, signals: Signals) -> None:
        """Take note of what is in use."""
        kept = self._kept
        while kept and kept[0][0] <= signals.now_s:
            kept.popleft()
        in_use = signals.running + math.ceil(signals.waiting / max(1.0, signals.calls_per_s))
        came = signals.arrived > self._arrived
        most = max(in_use, self._in_use, int(came))  # until now; a call may have come and gone
        self._arrived, self._in_use = signals.arrived, in_use
        if most:
            while kept and kept[-1][1] <= most:
                kept.pop()
            kept.append((signals.now_s + self._keep_s, most))

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return the most that were in use, until the first of them has been kept long enough."""
        if not self._kept:
            return Decision(replicas=limits.replicas_min, reason="idle", until_s=math.inf)
        until_s, replicas = self._kept[0]
        replicas = min(max(replicas, limits.replicas_min), limits.replicas_max)
        return Decision(replicas=replicas, reason="kept", until_s=until_s)
