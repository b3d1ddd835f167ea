"""Calls that edges gave to no worker and that do not wait any more: demand that nobody else shows.

Edges count since their incarnation began; what counts here is what has come since the last look.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

EDGES_MAX: Final = 4096  # whose last reports are remembered


class Unserved:
    """Adds up what the edges say.

    >>> unserved = Unserved()
    >>> for count in (5, 7, 8):
    ...     unserved.report("e/1", {"m/1": count})
    >>> unserved.take(), unserved.take()
    ({'m/1': 3}, {})
    """

    def __init__(self) -> None:
        # The whole mutable state: the last report of every edge, and what came since the last look.
        self._last: dict[str, Mapping[str, int]] = {}
        self._found: dict[str, int] = {}

    def report(self, edge: str, counts: Mapping[str, int]) -> None:
        """Take an edge's counts by "model/version"; its first ones may be old."""
        last = self._last.get(edge, counts)
        for name, count in counts.items():
            more = count - last.get(name, 0)
            if more > 0:
                self._found[name] = self._found.get(name, 0) + more
        self._last.pop(edge, None)
        self._last[edge] = counts
        if len(self._last) > EDGES_MAX:
            del self._last[next(iter(self._last))]

    def take(self) -> dict[str, int]:
        """Return what came since this was called last."""
        found, self._found = self._found, {}
        return found
