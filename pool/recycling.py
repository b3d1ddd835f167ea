"""When a worker process is to be replaced because its memory does not come back: a pure policy.

Libraries keep what they once had: arenas, caches, fragments.  What a worker holds beyond what its
engines and its calls account for comes back only with a new process.
"""

from __future__ import annotations

from typing import Final

import msgspec

SLACK_BYTES: Final = 512 << 20
# What an engine says of its memory are its weights; its activations and the arena they lie in may
# well be as much again.
ENGINE_FACTOR: Final = 2.0
HOLD_S: Final = 30.0  # for so long without a break it has been too much
CALM_SHARE: Final = 0.8  # below this share of the slack it is no longer too much
INTERVAL_S: Final = 1800.0  # that a process lives at least; see `next_interval_s`
INTERVAL_S_MAX: Final = 24 * 3600.0


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker holds, and what accounts for it; in bytes."""

    now_s: float
    held: int  # anonymous memory of the process
    base: int  # of it, before anything was loaded
    engines: int  # as they say themselves
    calls: int  # of the calls inside
    available: int  # to the whole machine
    is_busy: bool  # it drains, loads, or has asked for a successor already

    @property
    def excess(self) -> float:
        """What nothing accounts for."""
        return self.held - self.base - ENGINE_FACTOR * self.engines - self.calls

    @property
    def successor(self) -> float:
        """What a successor takes while both are there."""
        return self.base + ENGINE_FACTOR * self.engines


class State(msgspec.Struct, frozen=True):
    """What is remembered from one look to the next."""

    over_since_s: float | None = None


def look(
    state: State, sample: Sample, *, started_s: float, interval_s: float, slack_bytes: int
) -> tuple[bool, State]:
    """Decide whether a worker is to ask for its successor now.

    Args:
        state: of the last look.
        sample: of now.
        started_s: when the process began.
        interval_s: how long it lives at least.
        slack_bytes: how much beyond what is accounted for is not worth a new process; 0: never.

    Returns:
        Whether, and the state for the next look.

    >>> over = Sample(now_s=0.0, held=9, base=1, engines=2, calls=0, available=99, is_busy=False)
    >>> look(State(), over, started_s=-9e9, interval_s=1.0, slack_bytes=2)
    (False, State(over_since_s=0.0))
    """
    if not slack_bytes:
        return False, State()
    since_s = state.over_since_s
    if sample.excess > slack_bytes:
        since_s = sample.now_s if since_s is None else since_s
    elif sample.excess < CALM_SHARE * slack_bytes:
        since_s = None
    state = State(since_s)
    if since_s is None or sample.is_busy:
        return False, state
    is_due = (
        sample.now_s - since_s >= HOLD_S
        and sample.now_s - started_s >= interval_s
        and sample.available > sample.successor
    )
    return is_due, state


def next_interval_s(lived_s: float, interval_s: float) -> float:
    """Return how long a successor lives at least.

    Twice as long as its predecessor had to, if that asked almost as soon as it might: then a new
    process does not help, and engines hold more than they say.
    """
    if lived_s < 2 * interval_s:
        return min(2 * interval_s, INTERVAL_S_MAX)
    return INTERVAL_S
