"""Runs that are to be the only thing that a process does, whatever its engines have to do.

A process that dies of a run that was suspected must not take another suspect with it, and must not
have died of anything else: one would be blamed for what another has done.  So while such a run goes
on, no other begins, of whatever model, and no load.  That has bounds: others are held for
`CLEAR_S_MAX` until nothing runs, and for `ONLY_S_MAX` after that, and not again for as long as they
were held.  Whoever runs beside others in the end is told so: it proves nothing then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

CLEAR_S_MAX: Final = 1.0
ONLY_S_MAX: Final = 1.0
LOOK_S: Final = 0.1  # so often it is looked whether anybody waits for a run that takes longer
REST_S_MIN: Final = 0.002  # as long as others have at least, to begin


class Loads(Protocol):
    """The loads of a process, which happen in threads; see `pool.load_guard`."""

    def hold(self, on_clear: Callable[[], None]) -> bool:
        """Let no load begin; tell whether none is under way, and else call once that is so."""

    def go_on(self) -> None:
        """Let loads begin again."""

    @property
    def waits(self) -> bool:
        """Tell whether a load has been held."""


class Visitor(NamedTuple):
    """A run that is to be alone."""

    begin: Callable[[bool], None]  # told whether it is the only one
    # Hears that it is not any more, and calls as soon as others may begin.
    crowd: Callable[[Callable[[], None]], None]
    patience_s: float


class Gate:
    """What may begin in one process: runs beside each other, or one that is alone.

    Belongs to one event loop.  Of those that are to be alone one is in at a time, in the order in
    which they came.
    """

    def __init__(self, loads: Loads | None = None) -> None:
        """Make it, with nothing in it.

        Args:
            loads: are held as well.
        """
        self._loop = asyncio.get_running_loop()
        self._loads = loads
        # The whole mutable state: whether ordinary runs may begin, how many are under way, and who
        # is held; who is in to be alone, and whether its run has begun; who is next, and when.
        self.is_open = True
        self._runs = 0
        self._held: dict[Callable[[], None], None] = {}
        self._in: Visitor | None = None
        self._has_begun = False
        self._next: deque[Visitor] = deque()
        self._closed_s = 0.0
        self._rest_until_s = 0.0  # until then others are not held again
        self._timer: asyncio.TimerHandle | None = None

    # ordinary runs

    def wait(self, again: Callable[[], None]) -> None:
        """Call `again` once runs may begin; it is not open."""
        self._held[again] = None

    def began(self) -> None:
        """Take note of a run that goes on when the loop does."""
        self._runs += 1

    def ended(self) -> None:
        """Take note of its end."""
        self._runs -= 1
        self._look()

    # runs that are alone

    def enter(self, visitor: Visitor) -> None:
        """Have a run begin as soon as it may; whoever has begun leaves exactly once."""
        self._next.append(visitor)
        self._admit()

    def leave(self) -> None:
        """Take note that the run of the one that is in has ended, and that its edge knows."""
        self._in = None
        self._open()
        self._admit()

    def _admit(self) -> None:
        if self._in is not None or not self._next:
            return
        rest_s = self._rest_until_s - self._loop.time()
        if rest_s > 0:
            self._after(rest_s, self._admit)
            return
        self._in = self._next.popleft()
        self._has_begun = False
        self.is_open = False
        self._closed_s = self._loop.time()
        self._after(min(CLEAR_S_MAX, max(0.0, self._in.patience_s)), self._begin_beside)
        self._look()

    def _look(self) -> None:
        """Let the one that is in begin, if nothing else goes on."""
        if self._in is None or self._has_begun or self._runs:
            return
        if self._loads is not None and not self._loads.hold(self._on_clear):
            return
        self._has_begun = True
        self._after(ONLY_S_MAX, self._end_patience)
        self._in.begin(True)

    def _on_clear(self) -> None:
        """Look again: no load is under way any more, as a thread has found out."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._look)

    def _begin_beside(self) -> None:
        """Wait no longer for others to end."""
        assert self._in is not None
        self._has_begun = True
        self._open()
        self._in.begin(False)

    def _end_patience(self) -> None:
        """Hold others no longer, once there are any."""
        visitor = self._in
        assert visitor is not None
        if self._held or (self._loads is not None and self._loads.waits):
            visitor.crowd(lambda: self._open() if self._in is visitor else None)
        else:
            self._after(LOOK_S, self._end_patience)

    def _open(self) -> None:
        """Let others begin, and for as long as they were held be."""
        self._after(0.0, None)
        if self.is_open:
            return
        self.is_open = True
        held, self._held = self._held, {}
        has_held = bool(held)
        if self._loads is not None:
            has_held |= self._loads.waits
            self._loads.go_on()
        if has_held:
            now_s = self._loop.time()
            self._rest_until_s = now_s + max(REST_S_MIN, now_s - self._closed_s)
        for again in held:
            again()

    def _after(self, s: float, do: Callable[[], None] | None) -> None:
        """Set the timer, instead of what it was set to."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if do is None else self._loop.call_later(s, do)
