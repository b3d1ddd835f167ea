"""Which endpoints are to be warm by the clock or by request: pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from registry_sync import schedules
from registry_sync.documents import EndpointSpec, EndpointState


def timed(
    specs: Mapping[str, EndpointSpec], states: Mapping[str, EndpointState]
) -> dict[str, tuple[str, float]]:
    """Return the endpoints that a clock may make due: their schedule, and until when by request."""
    found = {}
    for name, spec in specs.items():
        until_unix_s = states[name].warm_until_unix_s if name in states else 0.0
        if spec.scale.warm or until_unix_s:
            found[name] = (spec.scale.warm, until_unix_s)
    return found


def why_due(schedule: str, until_unix_s: float, unix_s: float, lead_s: float = 0.0) -> str:
    """Say what makes an endpoint due at `unix_s`: "schedule", "request", or nothing.

    Args:
        schedule: as the endpoint's spec has it; empty: none.
        until_unix_s: until when it was asked for; 0: it was not.
        unix_s: wall clock.
        lead_s: so long before its hours begin it is due, to be warm when they do.
    """
    if unix_s < until_unix_s:
        return "request"
    if schedule:
        hours = schedules.parse(schedule)
        if hours.is_due(unix_s) or (lead_s and hours.is_due(unix_s + lead_s)):
            return "schedule"
    return ""


class Ahead:
    """Remembers which hours endpoints are due for before these begin.

    What they are due by may grow shorter while their machine starts, and once it is up: were they
    let go for that, it would rest and be started once more.

    >>> ahead = Ahead()
    >>> ahead.why({"m": ("Mon-Sun 00:10-00:20 UTC", 0.0)}, 300.0, lambda endpoint: 301.0)
    {'m': 'schedule'}
    >>> ahead.why({"m": ("Mon-Sun 00:10-00:20 UTC", 0.0)}, 400.0, lambda endpoint: 1.0)
    {'m': 'schedule'}
    >>> Ahead().why({"m": ("Mon-Sun 00:10-00:20 UTC", 0.0)}, 400.0, lambda endpoint: 1.0)
    {}
    """

    def __init__(self) -> None:
        # The whole mutable state: by endpoint, a moment of the hours that it is due for.
        self._unix_s: dict[str, float] = {}

    def why(
        self,
        timed: Mapping[str, tuple[str, float]],
        unix_s: float,
        lead_s: Callable[[str], float],
    ) -> dict[str, str]:
        """Return the endpoints that are due, and why; see `why_due`.

        Args:
            timed: what `timed` returns.
            unix_s: wall clock.
            lead_s: of an endpoint.
        """
        before_unix_s, self._unix_s = self._unix_s, {}
        found = {}
        for name, (schedule, until_unix_s) in timed.items():
            ahead_unix_s = unix_s + lead_s(name)
            why = why_due(schedule, until_unix_s, unix_s, ahead_unix_s - unix_s)
            if not why and before_unix_s.get(name, 0.0) > unix_s:
                ahead_unix_s = before_unix_s[name]
                why = why_due(schedule, 0.0, unix_s, ahead_unix_s - unix_s)
            if why:
                found[name] = why
            if why == "schedule":
                self._unix_s[name] = ahead_unix_s
        return found
