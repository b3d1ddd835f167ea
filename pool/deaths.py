"""When a version may be loaded whose loads have killed the worker: a pure policy.

A load that kills the process, by a crash in a library or for taking all memory, is nobody's
exception.  The next process knows from a file what was being loaded, and would do the same again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import msgspec

DEATHS_MAX: Final = 3
PAUSE_S_MIN: Final = 60.0
PAUSE_S_MAX: Final = 3600.0


class What(NamedTuple):
    """What is loaded."""

    model: str
    version: str
    engine: str

    def __str__(self) -> str:
        """Name it for a log or a caller."""
        return f"{self.model} version {self.version} with {self.engine}"


class Deaths(msgspec.Struct, frozen=True):
    """How often in a row the worker died while it was loading one thing, and when last."""

    count: int
    at_s: float  # by the machine's monotonic clock, which begins anew when the machine does


Record: TypeAlias = Mapping[What, Deaths]


def after_death(record: Record, loading: frozenset[What], now_s: float) -> dict[What, Deaths]:
    """Return what is known once a process has died that was loading these.

    >>> mind = What("m", "1", "e")
    >>> after_death({mind: Deaths(1, 5.0)}, frozenset({mind}), 9.0)[mind]
    Deaths(count=2, at_s=9.0)
    """
    known = dict(record)
    for what in loading:
        before = known.get(what)
        known[what] = Deaths(1 + (before.count if before else 0), now_s)
    return known


def is_suspect(record: Record, what: What) -> bool:
    """Tell whether `what` is to be loaded alone, so that no other is blamed for its crash."""
    return what in record


def pause_s(deaths: Deaths | None, now_s: float) -> float:
    """Return for how long nobody is to load it, in seconds; 0 if anybody may.

    After the third death a minute, and twice as long after each further one, up to an hour.
    """
    if deaths is None or deaths.count < DEATHS_MAX:
        return 0.0
    doublings = min(deaths.count - DEATHS_MAX, 16)  # far beyond the longest pause already
    until_s = deaths.at_s + min(PAUSE_S_MIN * float(2**doublings), PAUSE_S_MAX)
    if deaths.at_s > now_s:  # the machine was started anew
        return 0.0
    return max(0.0, until_s - now_s)


def refusal(deaths: Deaths, left_s: float) -> str:
    """Say why it is not loaded."""
    return (
        f"the worker died {deaths.count} times while loading it; the next try is in {left_s:.0f} s"
    )
