"""Versions that are to be warm for calls that came while no machine was up for them.

Such a call was refused, or a fallback worker has answered it; either way nothing of it is inside
any more long before a machine is there.  What it began is not called off for that.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final, TypeAlias

from pool.scaling.signals import Signals

Ref: TypeAlias = tuple[str, str]  # model, version

FAR_STARTS: Final = 2.0  # a machine may take so many times what it usually does
# Who was refused was told to come back within this, and is to find it warm.
COME_BACK_S: Final = 120.0


class Awaited:
    """Remembers for whom machines are started; `look` is called with times that never fall."""

    def __init__(self) -> None:
        # The whole mutable state: calls ever at the last look, and until when each is awaited.
        self._arrived: dict[Ref, int] = {}
        self._until_s: dict[Ref, float] = {}

    def look(self, ref: Ref, signals: Signals, far_s: float, now_s: float) -> bool:
        """Tell whether `ref` is awaited.

        Args:
            ref: the version.
            signals: what is seen of it.
            far_s: how long a machine takes; 0: one is up.
            now_s: monotonic.
        """
        before, self._arrived[ref] = self._arrived.get(ref, signals.arrived), signals.arrived
        if far_s and (signals.arrived > before or signals.waiting or signals.running):
            self._until_s[ref] = now_s + FAR_STARTS * far_s + COME_BACK_S
        until_s = self._until_s.get(ref)
        if until_s is None:
            return False
        if signals.warm:
            until_s = self._until_s[ref] = min(until_s, now_s + COME_BACK_S)
        if now_s >= until_s:
            del self._until_s[ref]
        return now_s < until_s

    def keep(self, refs: Container[Ref]) -> None:
        """Forget all others."""
        for known in (self._arrived, self._until_s):
            for ref in [ref for ref in known if ref not in refs]:
                del known[ref]
