"""An asyncio loop whose clock jumps: hours of a shell's life in milliseconds, the same each time.

Not for code that uses threads, sockets or processes: what they wait for takes real time.
"""

from __future__ import annotations

import asyncio
import selectors
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

TURNS_MAX: Final = 100_000  # of the loop at one moment of its clock


class Deadlock(RuntimeError):
    """Every task waits and no timer is set."""


class Livelock(RuntimeError):
    """The loop turns and its clock stands still."""


class TookTooLong(RuntimeError):
    """A task never gave the loop back."""


class _Alarm(BaseException):
    """Rings in whatever runs.  No `Exception`, so that no task can swallow it."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never blocks: where the loop would sleep, its clock is moved instead."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.turns = 0
        self.problem: TookTooLong | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.problem is not None:
            # The alarm ended the task that it rang in, which perhaps nobody awaits.
            problem, self.problem = self.problem, None
            raise problem
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise Deadlock("every task waits and no timer is set")
        self.turns = 0 if timeout > 0 else self.turns + 1
        if self.turns > TURNS_MAX:
            self.turns = 0  # for the clearing up
            raise Livelock(f"the clock stands still at {self.now_s} s")
        self.now_s += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that begins at 0 s and never sleeps."""

    def __init__(self) -> None:
        self.jumping = _JumpingSelector()
        super().__init__(self.jumping)
        # Timers that lie closer together than this run in one turn; rounding errors are less.
        self._clock_resolution = 1e-9

    def time(self) -> float:
        """Return the time that would have passed, in seconds."""
        return self.jumping.now_s


def run(main: Coroutine[Any, Any, T], *, wall_s_max: float = 60.0) -> T:
    """Run a coroutine in virtual time.

    Raises:
        Deadlock: every task waits and no timer is set.
        Livelock: the clock stood still for `TURNS_MAX` turns.
        TookTooLong: a task did not give the loop back within `wall_s_max` of real time.
    """
    loop = VirtualTimeLoop()
    loop.set_exception_handler(_report)
    with _alarm(wall_s_max, loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(main)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # `run` raises for the alarm; the task in which it rang needs no word of its own.
    if not isinstance(context.get("exception"), _Alarm):
        loop.default_exception_handler(context)


@contextmanager
def _alarm(wall_s: float, loop: VirtualTimeLoop) -> Iterator[None]:
    def ring(_signal: int, _frame: FrameType | None) -> None:
        loop.jumping.problem = TookTooLong(f"still running after {wall_s} s of real time")
        raise _Alarm

    # Somebody else, such as pytest-timeout, may use the same timer; it gets it back.
    handler = signal.signal(signal.SIGALRM, ring)
    left_s, interval_s = signal.setitimer(signal.ITIMER_REAL, wall_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left_s, interval_s)
        signal.signal(signal.SIGALRM, handler)
