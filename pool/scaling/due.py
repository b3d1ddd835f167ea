"""Which endpoints are to be warm by the clock or by request: pure."""

from __future__ import annotations

from collections.abc import Mapping

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
