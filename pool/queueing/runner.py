"""Where blocking work is done: in a thread that belongs to one engine, or right here.

Many engines and drivers want all their calls from one thread, and a run that hangs must not
take the threads of other engines.  Which it is, is decided by `pool.queueing.inline`.
"""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol, TypeVar

T = TypeVar("T")


class Runner(Protocol):
    """Carries out blocking work away from the loop, piece by piece, in the order of `start`."""

    def start(self, work: Callable[[], T], done: Callable[[T, float], None]) -> None:
        """Carry out `work`, which never raises; then call `done` on the loop.

        `done` gets the result and the duration in seconds.
        """

    def close(self) -> None:
        """Take no more work; what was started still ends."""


def run_here(work: Callable[[], T], clock: Callable[[], float]) -> tuple[T, float, float]:
    """Carry out `work` in this thread.

    Returns:
        Its result, its duration, and how much of that was its own doing, in seconds: without
        the time in which the system ran something else instead.  Waiting is its own doing.
    """
    before = resource.getrusage(resource.RUSAGE_THREAD)
    started_s = clock()
    result = work()
    run_s = clock() - started_s
    after = resource.getrusage(resource.RUSAGE_THREAD)
    if after.ru_nvcsw != before.ru_nvcsw:  # it gave the core away, so it waited
        return result, run_s, run_s
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result, run_s, min(run_s, cpu_s)


class ThreadRunner:
    """Threads of its own, one unless more pieces of work are to overlap.

    They are daemons: a run that hangs must not keep the process from ending.
    """

    def __init__(self, name: str, loop: asyncio.AbstractEventLoop, *, threads: int = 1) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = threads
        for _ in range(threads):
            threading.Thread(target=self._run_forever, name=name, daemon=True).start()

    def start(self, work: Callable[[], T], done: Callable[[T, float], None]) -> None:
        """Carry out `work` in a thread, then call `done` on the loop."""

        def job() -> None:
            started_s = time.monotonic()
            result = work()
            self._tell(done, result, time.monotonic() - started_s)

        self._jobs.put(job)

    def close(self) -> None:
        """Let the threads end after what was started."""
        for _ in range(self._threads):
            self._jobs.put(None)

    def _tell(self, done: Callable[[T, float], None], result: T, run_s: float) -> None:
        try:
            self._loop.call_soon_threadsafe(done, result, run_s)
        except RuntimeError:
            # The loop was closed while the work ran; nobody is left to be told.
            pass

    def _run_forever(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
            del job  # or the last batch would be kept until the next one
