"""One load of an engine: what it is doing, and how long whoever waits for it will still wait.

Owns neither the engine nor those who wait; see `slots`.
"""

from __future__ import annotations

from typing import Protocol

from pool.phases import FETCH, ROOM, Phases
from pool.ticket import Failed
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
    """

    def __init__(self, expected_s: float, began_s: float | None = None) -> None:
        self.phases = Phases(FETCH, began_s)
        self._expected_s = expected_s

    @property
    def own_s(self) -> float:
        """How long it has taken so far, without the artifact's way to the node and others'."""
        return self.phases.elapsed_s() - self.phases.took_s(FETCH) - self.phases.took_s(ROOM)

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
