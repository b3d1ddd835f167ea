"""Whether somebody could answer a call: what the routes say, less what this edge cannot reach.

The routes may name a worker as up that hangs, or that the network has cut off from this edge.  It
counts as in reach for a moment more, so that a restart is not told to the world.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Final, Protocol

import msgspec

from pool.wire.control import EngineRoute

FAR: Final = ("no_instance", "starting")  # of routes: asleep, and no machine is up to wake it on
# Who begins to lead may hear of the nodes whose machines start only so much later.
FAR_GONE_S: Final = 60.0
OUT_OF_REACH_S: Final = 2.5  # so long after it was heard last a worker is out of reach


class Worker(Protocol):
    """How a worker can be reached; times are monotonic."""

    @property
    def is_up(self) -> bool: ...

    is_cold: bool  # it is started by a call
    heard_s: float

    def want(self) -> None: ...


class Reach:
    """Who of the workers can be reached.

    Args:
        workers: by name; the owner's own, which change.
    """

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers
        # The whole mutable state: when somebody was in reach last, also of workers that the routes
        # do not name any more; None: they never named one.
        self._last_s: float | None = None
        self.far = 0  # places whose machines only the controller can start, as the routes say
        self._far_gone_s: float | None = None  # when they named one last; None: not before now

    def look(self, now_s: float) -> None:
        """Note who is in reach; to be called often."""
        for worker in self._workers.values():
            at_s = now_s if worker.is_cold else worker.heard_s
            self._last_s = max(at_s, self._last_s or at_s)

    def update(self, far: int, now_s: float) -> None:
        """Take note of how many places the routes say only the controller can start."""
        if self.far:
            self._far_gone_s = now_s
        self.far = far

    def may_be_far(self, now_s: float) -> bool:
        """Tell whether there are such places, or were a moment ago and may be named again."""
        if self.far or self._far_gone_s is None:
            return self.far > 0
        return now_s - self._far_gone_s < FAR_GONE_S

    def has_anybody(self) -> bool:
        """Tell whether some worker can be called or started, or could be a moment ago.

        Also where no worker was ever named: then nobody is missed; nor where all machines are at
        rest.  Who starts those may not be heard of for as long as AWS hangs, which every edge is
        told alike: another one in this one's place would know no better, and the calls that wait
        here would be lost.
        """
        if (self.far or self._far_gone_s is not None) and not self._workers:
            return True
        if any(worker.is_up or worker.is_cold for worker in self._workers.values()):
            return True
        self._dial(self._workers)
        return self._last_s is None or time.monotonic() - self._last_s < OUT_OF_REACH_S

    def seen(self, route: EngineRoute) -> EngineRoute:
        """Return `route` without the workers that are out of reach; without any it sleeps."""
        warm = self._in_reach(route.warm)
        if warm or route.state == "failed" or (route.state in FAR and not route.wake_at):
            return route
        wake_at = self._in_reach(route.wake_at)
        if not wake_at:
            self._dial((*route.warm, *route.wake_at))
        state = route.state if wake_at and not route.warm else "asleep"
        return msgspec.structs.replace(route, warm=(), wake_at=wake_at, state=state)

    def _in_reach(self, names: Iterable[str]) -> tuple[str, ...]:
        since_s = time.monotonic() - OUT_OF_REACH_S
        found = [(name, self._workers.get(name)) for name in names]
        return tuple(
            name
            for name, worker in found
            if worker and (worker.is_up or worker.is_cold or worker.heard_s > since_s)
        )

    def _dial(self, names: Iterable[str]) -> None:
        """Dial those anew that were lost: who gets no calls would not see that they are back."""
        for worker in map(self._workers.get, names):
            if worker is not None:
                worker.want()
