"""Calls that edges gave to no worker and that do not wait any more: demand that nobody else shows.

Edges count since their incarnation began; what counts here is what has come since the last look.
Of an edge that is heard of for the first time one call counts, if the last one is so young that
its caller was told to come back and has not had the time: a predecessor may not have seen it.
Pure: knows no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pool.scaling.awaited import COME_BACK_S

EDGES_MAX: Final = 4096  # whose last reports are remembered


class Unserved:
    """Adds up what the edges say.

    >>> unserved = Unserved()
    >>> for at_s, count in enumerate((5, 7, 8)):
    ...     unserved.report("e/1", {"m/1": count}, {}, at_s)
    >>> unserved.take(3.0), unserved.take(3.0)
    ({'m/1': 3}, {})
    >>> unserved.report("e/2", {"m/1": 9}, {"m/1": 30}, 4.0)
    >>> unserved.take(5.0)
    {'m/1': 1}
    """

    def __init__(self) -> None:
        # The whole mutable state: the last report of every edge, and what came since the last look
        # and until when somebody may come back for it.
        self._last: dict[str, Mapping[str, int]] = {}
        self._found: dict[str, tuple[int, float]] = {}

    def report(
        self, edge: str, counts: Mapping[str, int], ages_s: Mapping[str, int], now_s: float
    ) -> None:
        """Take an edge's report.

        Args:
            edge: its id and incarnation.
            counts: calls by "model/version".
            ages_s: how long ago the last of them was, of those that are young, likewise.
            now_s: monotonic.
        """
        last = self._last.get(edge)
        for name, count in counts.items():
            left_s = COME_BACK_S - ages_s.get(name, 0 if last is not None else COME_BACK_S)
            more = count - last.get(name, 0) if last is not None else min(count, 1)
            if more > 0 and left_s > 0:
                before, until_s = self._found.get(name, (0, now_s))
                self._found[name] = before + more, max(until_s, now_s + left_s)
        self._last.pop(edge, None)
        self._last[edge] = counts
        if len(self._last) > EDGES_MAX:
            del self._last[next(iter(self._last))]

    def take(self, now_s: float) -> dict[str, int]:
        """Return what came since this was called last, but for what nobody comes back for."""
        found, self._found = self._found, {}
        return {name: count for name, (count, until_s) in found.items() if now_s < until_s}
