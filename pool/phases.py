"""What a load, or the start of a process, spends its time on: phases without gaps between them.

A load goes through threads and many hands.  Each says what it begins by `enter`, which finds the
load of its own context, so that nobody need hand it on: engines of others mark phases of their own
where they like.
"""

from __future__ import annotations

import os
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Final

FETCH: Final = "fetch"  # the artifact is looked for on the node, and brought if it is not there
BUILD_WAIT: Final = "build_wait"  # which plans are here; nobody ever waits for one that is not
ROOM: Final = "room"  # until others have given up the memory that it takes
TURN: Final = "turn"  # until a load that must be alone is over
IMPORT: Final = "import"  # of modules; of a process, from its first instruction on
CONTEXT: Final = "context"  # engines, devices and connections, before it can be dialled
CONNECT: Final = "connect"  # until the call has come for which the process was started
DESERIALISE: Final = "deserialise"
WARM_UP: Final = "warm_up"
HAND_OVER: Final = "hand_over"  # back on the loop: who waited gets into the queue
SPAWN: Final = "spawn"  # from the wish for a process to its first instruction

PHASES_MAX: Final = 32  # as many as the wire takes; what comes later is part of the last one

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")

_under_way: ContextVar[Phases | None] = ContextVar("phases", default=None)


class Phases:
    """The phases of one thing that is under way; they add up to the time since it began.

    Args:
        first: the phase that it begins with.
        began_s: by `time.monotonic`; now by default.
    """

    def __init__(self, first: str, began_s: float | None = None) -> None:
        self.began_s = time.monotonic() if began_s is None else began_s
        # The whole mutable state: what is over, and what is under way since when.
        self._took_s: dict[str, float] = {}
        self.name = first
        self._since_s = self.began_s

    def enter(self, name: str, at_s: float | None = None) -> None:
        """End the phase under way and begin this one; one that comes twice adds up."""
        now_s = max(self._since_s, time.monotonic() if at_s is None else at_s)
        self._took_s[self.name] = self._took_s.get(self.name, 0.0) + now_s - self._since_s
        self._since_s = now_s
        if name in self._took_s or len(self._took_s) < PHASES_MAX:
            self.name = name

    def elapsed_s(self) -> float:
        """Return how long it has taken so far."""
        return time.monotonic() - self.began_s

    def took_s(self, name: str) -> float:
        """Return how long this phase has taken so far."""
        running_s = time.monotonic() - self._since_s if name == self.name else 0.0
        return self._took_s.get(name, 0.0) + running_s

    def end(self, at_s: float | None = None) -> dict[str, int]:
        """Return the phases in order, in µs."""
        self.enter(self.name, at_s)
        return {name: round(took_s * 1e6) for name, took_s in self._took_s.items()}

    def watch(self) -> None:
        """Let `enter` mean this from now on, in this task and the threads that work for it."""
        _under_way.set(self)


def enter(name: str) -> None:
    """Say that the load of this context begins a phase; nothing happens where there is none."""
    phases = _under_way.get()
    if phases is not None:
        phases.enter(name)


def process_began_s() -> float:
    """Return when this process was made, by `time.monotonic`, to a hundredth of a second.

    Without a readable /proc it is now.
    """
    now_s = time.monotonic()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[19])  # since the machine's start, also while it slept
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS_PER_S
    except (OSError, ValueError, IndexError):
        return now_s
    return now_s - max(0.0, age_s)


def of_start(asked_s: float, began_s: float, imported_s: float, up_s: float) -> dict[str, int]:
    """Return the phases of a process's start: spawn, import and context, in µs.

    Args:
        asked_s: when it was wished for; 0: not known, and then it counts from `began_s`.

    >>> of_start(10.0, 10.02, 10.5, 10.51)
    {'spawn': 20000, 'import': 480000, 'context': 10000}
    """
    phases = Phases(SPAWN, asked_s or began_s)
    phases.enter(IMPORT, began_s)
    phases.enter(CONTEXT, imported_s)
    return phases.end(up_s)
