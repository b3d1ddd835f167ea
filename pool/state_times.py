"""For how long each version has been in which state, as edges were told; pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from pool.wire.control import EngineRoute

Ref: TypeAlias = tuple[str, str]  # model, version


class StateTimes:
    """Adds up the times between looks; a version that is gone is forgotten.

    >>> times = StateTimes()
    >>> times.look([EngineRoute("m", "1", (), (), "no_instance")], 10.0)
    >>> times.look([EngineRoute("m", "1", ("w",), (), "warm")], 12.5)
    >>> times.seconds(("m", "1"))
    {'no_instance': 2.5, 'warm': 0.0}
    """

    def __init__(self) -> None:
        # The whole mutable state: seconds by version and state, what holds, and since when.
        self._seconds: dict[Ref, dict[str, float]] = {}
        self._states: dict[Ref, str] = {}
        self._looked_s = 0.0

    def look(self, routes: Iterable[EngineRoute], now_s: float) -> None:
        """Take note of what holds from now on."""
        self._add(now_s)
        self._states = {(route.model, route.version): route.state for route in routes}
        for ref in self._seconds.keys() - self._states.keys():
            del self._seconds[ref]
        self._add(now_s)

    def seconds(self, ref: Ref) -> dict[str, float]:
        """Return how long a version was in each state, as of the last look."""
        return dict(self._seconds.get(ref, {}))

    def _add(self, now_s: float) -> None:
        for ref, state in self._states.items():
            times = self._seconds.setdefault(ref, {})
            times[state] = times.get(state, 0.0) + now_s - self._looked_s
        self._looked_s = now_s
