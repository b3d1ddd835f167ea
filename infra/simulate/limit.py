"""The clairvoyant: what can be had at all where a wake takes its time."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque

from infra.simulate.engine import Load, World
from infra.simulate.ideal import needs
from pool.scaling.signals import Decision, Limits, Signals


class Limit:
    """Knows every arrival: has in each second the replicas that it needs, woken just in time.

    Between two calls it stays warm where a new wake would take as long.
    """

    def __init__(self, load: Load, world: World) -> None:
        self._from_s, self._replicas = _plan(load, world.wake_s)

    def observe(self, signals: Signals) -> None:
        """Nothing is news."""

    def decide(self, limits: Limits, signals: Signals) -> Decision:
        """Return what is planned for now, until the plan's next change."""
        index = bisect_right(self._from_s, signals.now_s)
        replicas = self._replicas[index - 1] if index else 0
        until_s = self._from_s[index] if index < len(self._from_s) else math.inf
        replicas = min(max(replicas, limits.replicas_min), limits.replicas_max)
        return Decision(replicas=replicas, reason="known", until_s=until_s)


def _plan(load: Load, wake_s: float) -> tuple[list[float], list[int]]:
    """Return from when on how many replicas load or are warm.

    That is the most that any second from now until one wake later needs: a sliding maximum over
    the seconds that have work.
    """
    starts_s, replicas = (column.tolist() for column in needs(load))
    from_s: list[float] = []
    wanted: list[int] = []

    def change(at_s: float, count: int) -> None:
        if from_s and from_s[-1] == at_s:
            wanted[-1] = count
        elif (wanted[-1] if wanted else 0) != count:
            from_s.append(at_s)
            wanted.append(count)

    open_: deque[tuple[float, int]] = deque()  # ends of seconds with their needs, which fall
    for start_s, count in zip(starts_s, replicas, strict=True):
        enters_s = start_s - wake_s
        while open_ and open_[0][0] <= enters_s:
            end_s, _ = open_.popleft()
            change(end_s, open_[0][1] if open_ else 0)
        while open_ and open_[-1][1] <= count:
            open_.pop()
        open_.append((start_s + 1.0, count))
        change(enters_s, open_[0][1])
    while open_:
        end_s, _ = open_.popleft()
        change(end_s, open_[0][1] if open_ else 0)
    return from_s, wanted
