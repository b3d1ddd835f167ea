"""Tells the moment at which the deadline of somebody who waits passes.

One timer for all, set to the earliest deadline.  Owns nobody: it asks whether one still waits, so
that taking one out of a queue costs nothing here.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Container
from typing import Any, Final, Generic, Protocol, TypeVar

# uvloop's timers count in milliseconds and may fire up to half a one early.
TIMER_ROUNDING_S: Final = 0.001
ENTRIES_MIN: Final = 256  # below it, clearing out is not worth the work


class HasDeadline(Protocol):
    """Whoever waits until a time; compared and hashed by identity."""

    @property
    def deadline_s(self) -> float: ...


T = TypeVar("T", bound=HasDeadline)


class Expiries(Generic[T]):
    """The deadlines of those who wait in a queue."""

    def __init__(
        self,
        waiting: Container[Any],
        expire: Callable[[T], None],
        clock: Callable[[], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """Watch over `waiting`; `expire` is called for each of them that is overdue."""
        self._waiting = waiting
        self._expire = expire
        self._clock = clock
        self._loop = loop
        # The whole mutable state: a heap of deadlines, whose entries outlive their owners'
        # wait; and the timer with its time.
        self._heap: list[tuple[float, int, T]] = []
        self._watched = 0
        self._clear_out_at = ENTRIES_MIN
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = 0.0

    def watch(self, ticket: T) -> None:
        """Call `expire` when the deadline of `ticket` has passed, if it waits until then."""
        self._watched += 1
        heapq.heappush(self._heap, (ticket.deadline_s, self._watched, ticket))
        if len(self._heap) > self._clear_out_at:
            self._heap = [entry for entry in self._heap if entry[2] in self._waiting]
            heapq.heapify(self._heap)
            self._clear_out_at = max(2 * len(self._heap), ENTRIES_MIN)
        if self._timer is None or ticket.deadline_s < self._timer_at_s:
            self._set_timer()

    def close(self) -> None:
        """Forget everybody."""
        self._heap.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer_at_s = self._heap[0][0]
            left_s = max(0.0, self._timer_at_s - self._clock()) + TIMER_ROUNDING_S
            self._timer = self._loop.call_later(left_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now_s = self._clock()
        overdue: list[T] = []
        while self._heap and (self._heap[0][0] <= now_s or self._heap[0][2] not in self._waiting):
            overdue.append(heapq.heappop(self._heap)[2])
        self._set_timer()
        for ticket in overdue:
            if ticket in self._waiting:
                self._expire(ticket)
