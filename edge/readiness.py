"""Whether a version would answer inside its endpoint's deadline, by what the controller last said.

Looking never wakes anything.
"""

from __future__ import annotations

from edge.dispatching.reach import FAR
from pool.wire.control import EngineRoute


def state_of(route: EngineRoute | None) -> str:
    """Return where a version is.

    One of warm, fallback (warm where the fallback workers are, and nowhere else), asleep (a worker
    that is up wakes it), no_instance (asleep, and no machine is up), starting (one is on its way),
    loading, failed, no_worker and unknown.
    """
    if route is None:
        return "unknown"
    if route.state == "asleep" and not route.wake_at:
        return "no_worker"
    return route.state


def is_ready(route: EngineRoute | None, deadline_s: float) -> bool:
    """Tell whether a call that came now would be answered in `deadline_s`.

    What sleeps, by policy or by request, is woken by the call.  How long that takes is known once
    it has been loaded; so what loads for the first time is not ready, and what loads again is.  Nor
    is what waits for a machine, unless it is known how long, or a fallback worker wakes it.
    """
    state = state_of(route)
    if route is None or state in ("warm", "fallback"):
        return route is not None
    is_in_time = route.wake_ms <= deadline_s * 1e3
    if state == "loading" or (state in FAR and not route.wake_at):
        return is_in_time and route.wake_ms > 0
    return is_in_time and state in ("asleep", *FAR)
