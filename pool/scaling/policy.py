"""How many replicas of one version are wanted: demand, forecast and keep-alive put together."""

from __future__ import annotations

import math

from pool.scaling.signals import Decision, Limits, Signals


class ScalingPolicy:
    """Decides for one version; `observe` and `decide` are called with times that never fall."""

    def __init__(self) -> None:
        # The whole mutable state: when the version was last in use, and the calls seen by then.
        self._used_s = -math.inf
        self._arrived = 0

    def observe(self, signals: Signals) -> None:
        """Take note of what is seen: whenever that changed, and at least every second of use."""
        if signals.arrived > self._arrived or signals.waiting or signals.running:
            self._used_s = max(self._used_s, signals.now_s - signals.idle_s)
        self._arrived = signals.arrived

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return what is wanted now; changes nothing."""
        least = max(limits.replicas_min, int(limits.is_due))
        in_use = signals.waiting + signals.running > 0
        if limits.idle_s is None:
            return Decision(replicas=max(1, least), reason="keep-alive", until_s=math.inf)
        idle_s = limits.idle_s
        until_s = self._used_s + idle_s
        if in_use or signals.now_s < until_s:
            return Decision(replicas=max(1, least), reason="in use", until_s=until_s)
        return Decision(replicas=least, reason="minimum", until_s=math.inf)

    def save(self) -> bytes:
        """Return what was learned, to be kept; times in it are relative."""
        return b""

    def restore(self, data: bytes, now_s: float) -> None:
        """Take over what a predecessor had learned; what is not readable is ignored."""
