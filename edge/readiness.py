"""Whether a version would answer inside its endpoint's deadline, by what the controller last said.

Looking never wakes anything.
"""

from __future__ import annotations

from edge.dispatch import Pool
from edge.snapshot import Endpoint, Ref
from pool.wire.control import UNLOADED

READY = ("warm", "asleep")  # asleep by policy or by request, and wakeable


def state_of(pool: Pool, ref: Ref, endpoint: Endpoint) -> str:
    """Return warm, asleep, loading, failed, no_worker or unknown."""
    route = pool.route(ref)
    if route is None:
        return "unknown"
    if route.state == "asleep" and not route.wake_at:
        return "no_worker"
    sleeps = endpoint.spec is None or endpoint.spec.scale.idle_s != "auto"
    if route.state == "asleep" and not sleeps and route.detail != UNLOADED:
        return "loading"  # it never sleeps by policy: its first load is about to begin
    return route.state
