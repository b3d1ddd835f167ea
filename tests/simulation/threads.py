"""Threads that take turns with the loop: one runs at a time, and its sleeping is virtual.

A thread of the simulation is a real one, so that what must not be called from a thread fails as it
would; but it runs only while the loop waits for it.  It gives the turn back when it ends, sleeps,
or waits for a condition.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tests.simulation.processes import Gone, Process, of

if TYPE_CHECKING:
    from tests.simulation.loop import SimulatedLoop

T = TypeVar("T")

STALL_S_MAX: Final = 10.0  # of real time, without giving the turn back
ON_LOOP_S_MAX: Final = 0.005  # the loop of one process must not hold up all of them for longer

_Condition = threading.Condition


class Stalled(RuntimeError):
    """A thread waits for something of which the loop does not know, or the loop itself sleeps."""


class Thread:
    """One real thread, used for one piece of work after the other."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._go = threading.Lock()
        self._go.acquire()
        self._parked = 0  # how often it has given the turn back in the middle of its work
        self.process: Process | None = None
        self.is_gone = False  # its process or the scenario has ended: unwind
        self._job: Callable[[], None] = _nothing
        self.real = threading.Thread(target=self._run_forever, daemon=True)
        self.real.start()

    def begin(self, job: Callable[[], None]) -> None:
        """Start `job`, on the loop."""
        self._job = job
        self.resume()

    def resume(self) -> None:
        """Give the thread the turn, on the loop, until it gives it back."""
        threads = self._threads
        before, threads.running = threads.running, self
        self._go.release()
        if not threads.turn.acquire(timeout=STALL_S_MAX):
            raise Stalled(f"a thread of {self.process} did not give the turn back")
        threads.running = before

    def park(self, wake: Callable[[Callable[[], None]], object]) -> None:
        """Give the turn back, in the thread, until what `wake` gets is called on the loop."""
        self._parked += 1
        parked = self._parked

        def resume() -> None:
            if self._parked == parked:
                self._parked += 1
                self.resume()

        if not self.is_gone:
            wake(resume)
            self._threads.parked.add(self)
            self._threads.turn.release()
            self._go.acquire()
            self._threads.parked.discard(self)
        if self.is_gone:
            raise Gone

    def _run_forever(self) -> None:
        while True:
            self._go.acquire()
            if self._job is _nothing:
                return
            self._job()
            self._job = _nothing
            self._threads.idle.append(self)
            self._threads.turn.release()

    def end(self) -> None:
        """Let an idle thread end."""
        self._go.release()
        self.real.join(STALL_S_MAX)


class Threads:
    """All threads of a simulation."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self.turn = threading.Lock()
        self.turn.acquire()
        self.idle: list[Thread] = []
        self.parked: set[Thread] = set()
        self.running: Thread | None = None

    def start(
        self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], object]
    ) -> None:
        """Carry out `work` in a thread, from the loop's next turn; then call `done` on the loop."""
        loop, context = self._loop, contextvars.copy_context()

        def job() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = context.run(work)
            except Gone:
                return
            except BaseException as found:
                error = found
            context.run(loop.call_soon, done, result, error)

        def begin() -> None:
            thread = self.idle.pop() if self.idle else Thread(self)
            thread.process = of(context)
            thread.begin(job)

        loop.call_soon(begin)

    def here(self) -> Thread | None:
        """Return the thread of the simulation in which this is called; None: the loop's."""
        running = self.running
        return running if running and running.real is threading.current_thread() else None

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass; this is `time.sleep`."""
        thread = self.here()
        if thread is not None:
            thread.park(lambda resume: self._loop.call_later(seconds, resume))
        elif threading.current_thread() is not threading.main_thread():
            raise Stalled("a thread that is none of the simulation's sleeps")
        elif seconds <= ON_LOOP_S_MAX:
            self._loop.jumping.now_s += seconds
        else:
            raise Stalled(f"the loop itself sleeps for {seconds} s")

    def close(self) -> None:
        """End every thread, those in the middle of their work too."""
        while self.parked:
            thread = self.parked.pop()
            thread.is_gone = True
            thread.resume()
        while self.idle:
            self.idle.pop().end()


class Runner:
    """Does what `pool.queueing.runner.ThreadRunner` does, in threads of the simulation."""

    def __init__(self, name: str, loop: SimulatedLoop, *, threads: int = 1) -> None:
        self._loop = loop
        self._free = threads
        self._jobs: deque[tuple[Callable[[], Any], Callable[[Any, float], None]]] = deque()

    def start(self, work: Callable[[], T], done: Callable[[T, float], None]) -> None:
        """Carry out `work` in a thread, then call `done` on the loop."""
        self._jobs.append((work, done))
        self._next()

    def close(self) -> None:
        """Nothing has to end: threads go back to whoever needs one."""

    def _next(self) -> None:
        if not self._free or not self._jobs:
            return
        self._free -= 1
        work, done = self._jobs.popleft()
        loop = self._loop

        def timed() -> tuple[Any, float]:
            started_s = loop.time()
            result = work()
            return result, loop.time() - started_s

        def told(ran: tuple[Any, float] | None, error: BaseException | None) -> None:
            self._free += 1
            self._next()
            if error is not None:
                raise error
            assert ran is not None
            done(*ran)

        loop.threads.start(timed, told)


class Executor(concurrent.futures.Executor):
    """`ThreadPoolExecutor`, in threads of the simulation."""

    def __init__(self, max_workers: int = 8, *_: object, **__: object) -> None:
        loop = _running_loop()
        assert loop is not None
        self._runner = Runner("executor", loop, threads=max_workers)
        self._unfinished: set[concurrent.futures.Future[Any]] = set()

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._unfinished.add(future)
        future.add_done_callback(self._unfinished.discard)

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        self._runner.start(work, lambda result, run_s: None)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        for future in list(self._unfinished):
            if cancel_futures:
                future.cancel()
        if wait:
            concurrent.futures.wait(list(self._unfinished))


class Condition(_Condition):
    """`threading.Condition`, and so semaphores and events: its waiting gives the turn back."""

    def __init__(self, lock: Any = None) -> None:
        super().__init__(lock)
        self._sleepers: deque[list[Callable[[], object]]] = deque()

    def wait(self, timeout: float | None = None) -> bool:
        loop = _running_loop()
        thread = None if loop is None else loop.threads.here()
        if loop is None or thread is None:
            return super().wait(timeout)
        cell: list[Callable[[], object]] = []
        timers: list[asyncio.TimerHandle] = []
        told = False

        def wake(resume: Callable[[], None]) -> None:
            def notified() -> None:
                nonlocal told
                told = True
                resume()

            cell.append(lambda: loop.call_soon(notified))
            self._sleepers.append(cell)
            if timeout is not None:
                timers.append(loop.call_later(timeout, resume))

        saved = self._release_save()
        try:
            thread.park(wake)
        finally:
            self._acquire_restore(saved)
            for timer in timers:
                timer.cancel()
            if cell in self._sleepers:
                self._sleepers.remove(cell)
        return told

    def notify(self, n: int = 1) -> None:
        while self._sleepers and n > 0:
            self._sleepers.popleft()[0]()
            n -= 1
        if n > 0:
            super().notify(n)

    def notify_all(self) -> None:
        self.notify(len(self._sleepers) + len(self._waiters))


_loops: list[SimulatedLoop] = []  # the one of the simulation that runs


def _running_loop() -> SimulatedLoop | None:
    return _loops[-1] if _loops else None


def enter(loop: SimulatedLoop) -> None:
    """Let conditions know the loop of the simulation that begins."""
    _loops.append(loop)


def leave() -> None:
    """The simulation is over."""
    _loops.pop()


def _nothing() -> None:
    pass
