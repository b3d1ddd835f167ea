"""What is started for calls that came while no machine was up for them.

Such a call was refused, or a fallback worker has answered it; either way nothing of it is inside
any more long before a machine is there.  What it began is not called off for that: not while the
version is awaited, and not because somebody else leads by now, who does not know for whom it was.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
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

    def look(
        self, ref: Ref, signals: Signals, far_s: float, now_s: float, *, is_unserved: bool = False
    ) -> bool:
        """Tell whether `ref` is awaited.

        Args:
            ref: the version.
            signals: what is seen of it.
            far_s: how long a machine takes; 0: one is up.
            now_s: monotonic.
            is_unserved: calls have come that no worker was given, which counts at the first look
                too: others of then may be old.
        """
        before, self._arrived[ref] = self._arrived.get(ref, signals.arrived), signals.arrived
        has_come = is_unserved or signals.arrived > before
        if far_s and (has_come or signals.waiting or signals.running):
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


class Inherited:
    """Places whose machines start although this controller never said so: a predecessor did.

    >>> inherited = Inherited()
    >>> inherited.look(starting=["w"], asked=(), there=(), far_s=60.0, now_s=0.0)
    {'w'}
    >>> inherited.look(starting=["w"], asked=["w"], there=(), far_s=60.0, now_s=239.0)
    {'w'}
    >>> inherited.look(starting=["w"], asked=["w"], there=(), far_s=60.0, now_s=240.0)
    set()
    """

    def __init__(self) -> None:
        # The whole mutable state: who was ever asked for, and until when each is awaited.
        self._asked: set[str] = set()
        self._until_s: dict[str, float] = {}

    def look(
        self,
        *,
        starting: Iterable[str],
        asked: Iterable[str],
        there: Container[str],
        far_s: float,
        now_s: float,
    ) -> set[str]:
        """Return who is awaited.

        Args:
            starting: places that start and cannot be dialled.
            asked: those that were said last to be up.
            there: workers that have registered.
            far_s: how long a machine takes.
            now_s: monotonic.
        """
        self._asked.update(asked)
        for name in starting:
            if name not in self._asked:
                self._asked.add(name)
                self._until_s[name] = now_s + FAR_STARTS * far_s + COME_BACK_S
        self._until_s = {
            name: min(until_s, now_s + COME_BACK_S) if name in there else until_s
            for name, until_s in self._until_s.items()
            if now_s < until_s
        }
        return set(self._until_s)
