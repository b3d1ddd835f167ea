"""One load of an engine: what it is doing, and how long whoever waits for it will still wait.

Owns neither the engine nor those who wait; see `slots`.
"""

from __future__ import annotations

from typing import Protocol

from pool.phases import CONNECT, FETCH, ROOM, Phases
from pool.queueing.ticket import Failed
from pool.wake_estimates import Ref

RETRY_AFTER_S_MIN = 0.05


class Wakes(Protocol):
    """What is known of wakes; see `WakeBook`."""

    def wake_s(self, ref: Ref) -> float: ...
    def learn(self, ref: Ref, engine: str, wake_s: float) -> None: ...


class Waking:
    """One load that is under way.

    Args:
        expected_s: as long as the last ones took, without the artifact's way to the node; 0: not
            known.
        began_s: see `Phases`.
        up_s: when the process was up that was started for this call, which has waited since; None:
            it was there before.
    """

    def __init__(
        self, expected_s: float, began_s: float | None = None, up_s: float | None = None
    ) -> None:
        self.phases = Phases(FETCH, began_s)
        if up_s is not None:
            self.phases = Phases(CONNECT, up_s)
            self.phases.enter(FETCH, began_s)
        self._expected_s = expected_s

    @property
    def own_s(self) -> float:
        """How long it has taken so far, without the artifact's way to the node and others'."""
        phases = self.phases
        return phases.elapsed_s() - sum([phases.took_s(name) for name in (CONNECT, FETCH, ROOM)])

    @property
    def left_s(self) -> float:
        """How long it may still take; 0: not known."""
        return max(0.0, self._expected_s - self.own_s)


def too_late(left_s: float) -> Failed:
    """Refuse a call that would be answered after its deadline; the engine wakes all the same."""
    return Failed(
        503,
        f"the model is waking up, which takes about {left_s:.2g} s more: longer than this call's "
        "deadline allows",
        retry_after_s=max(left_s, RETRY_AFTER_S_MIN),
    )
