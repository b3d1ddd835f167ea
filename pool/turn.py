"""What is to be done at the end of one read from a socket.

Calls that came in one read are to share a batch, so an engine's step must wait until all of them
are queued.  Waiting for the loop's next turn would cost a system call and, on an idle machine, a
tenth of a small call's latency; the end of the read is just as late as is needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pool.queueing.alone import Gate, Loads


class Turn:
    """Collects what to do at the end of the read under way, or else in the loop's next turn.

    Args:
        loads: of the process.
    """

    def __init__(self, loads: Loads | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        # The whole mutable state: whether a read is under way, and what to do at its end.
        self._is_reading = False
        self._later: list[Callable[[], None]] = []
        self.alone = Gate(loads)  # which runs, of any engine, may begin

    def begin(self) -> None:
        """A read has brought a frame."""
        self._is_reading = True

    def soon(self, work: Callable[[], None]) -> None:
        """Do `work` once everything of this read is taken in."""
        if self._is_reading:
            self._later.append(work)
        else:
            self._loop.call_soon(work)

    def end(self) -> None:
        """The read is over: do what has come together."""
        self._is_reading = False
        later, self._later = self._later, []
        for work in later:
            work()
