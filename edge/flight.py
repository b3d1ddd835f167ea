"""Single flight: of identical requests that miss at the same time, one is computed.

The computation belongs to the flight, not to the caller that came first, so no caller's departure
disturbs the others; it is cancelled only when nobody waits for it any more.  Every caller waits by
its own deadline: who leads by that of the computation that it began, a follower by a timer.

What a failure does:
    the body's or the model's fault (400, 404, 422, 500)
        goes to everybody: the requests are identical, a second run would fail the same way and
        only count twice against the variant
    the leader's own affair (its deadline, its quota, its client left)
        goes to the leader; of the others the one with the most time left leads the next run
    anything else (overload, lost worker, a bug)
        goes to the leader; one of the others leads one more run; then it goes to everybody

A failure is never kept.  Flights are per process: what several edges miss at once is computed
once in each.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

from edge.errors import (
    BadRequest,
    ClientGone,
    DeadlineExceeded,
    ModelFailed,
    NotFound,
    QuotaExceeded,
    Unprocessable,
    WorkerLost,
)

V = TypeVar("V")


class Run(Protocol[V]):
    """A computation under way, such as a call to a worker."""

    @property
    def future(self) -> asyncio.Future[V]:
        """Its result; ends soon after its deadline at the latest."""

    def cancel(self) -> None:
        """Nobody waits for it any more."""


RUNS_MAX = 8  # of one flight; each run on a deadline takes at least that long, so few are needed
FAILURES_MAX = 2  # that are nobody's own

_EVERYBODYS = (BadRequest, NotFound, Unprocessable, ModelFailed)
_LEADERS_OWN = (DeadlineExceeded, QuotaExceeded, ClientGone)


class _Waiter(Generic[V]):
    __slots__ = ("deadline_s", "future", "start")

    def __init__(
        self,
        future: asyncio.Future[V],
        deadline_s: float,
        start: Callable[[], Run[V]],
    ) -> None:
        self.future = future
        self.deadline_s = deadline_s
        self.start = start


class _Flight(Generic[V]):
    __slots__ = ("failures", "leader", "run", "runs", "waiters")

    def __init__(self) -> None:
        self.waiters: dict[asyncio.Future[V], _Waiter[V]] = {}  # in order of arrival
        self.leader: asyncio.Future[V] | None = None
        self.run: Run[V] | None = None
        self.runs = 0
        self.failures = 0


class Flights(Generic[V]):
    """The computations under way in this process, by key."""

    def __init__(self) -> None:
        # The whole mutable state: what is being computed, and who waits for it.
        self._flights: dict[Hashable, _Flight[V]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    def __repr__(self) -> str:
        waiting = sum(len(flight.waiters) for flight in self._flights.values())
        return f"<Flights {len(self)} under way, {waiting} callers>"

    async def run(self, key: Hashable, deadline_s: float, start: Callable[[], Run[V]]) -> V:
        """Join the flight of `key`, or lead one.

        Args:
            key: equal keys mean equal answers.
            deadline_s: of this caller, on the loop's clock.
            start: begins the computation under this caller's deadline; called only if this caller
                leads.

        Returns:
            The answer, the same object for everybody: it must not be changed.

        Raises:
            DeadlineExceeded: this caller's deadline passed.
            Refusal: and whatever else `start` raises, as the module says.
        """
        loop = asyncio.get_running_loop()
        waiter: _Waiter[V] = _Waiter(loop.create_future(), deadline_s, start)
        future = waiter.future
        flight = self._flights.get(key)
        timer: asyncio.TimerHandle | None = None
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.waiters[future] = waiter
            self._launch(key, flight, waiter)
        else:
            flight.waiters[future] = waiter
            timer = loop.call_at(deadline_s, _expire, future)
        try:
            return await future
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(key, flight, future)

    def _launch(self, key: Hashable, flight: _Flight[V], waiter: _Waiter[V]) -> None:
        flight.leader = waiter.future
        flight.runs += 1
        run = flight.run = waiter.start()
        run.future.add_done_callback(lambda _: self._land(key, flight, run))

    def _leave(self, key: Hashable, flight: _Flight[V], future: asyncio.Future[V]) -> None:
        flight.waiters.pop(future, None)
        if flight.waiters or flight.run is None:
            return
        if self._flights.get(key) is flight:
            del self._flights[key]
        run, flight.run = flight.run, None
        run.cancel()

    def _land(self, key: Hashable, flight: _Flight[V], run: Run[V]) -> None:
        error = _error_of(run.future)
        if flight.run is not run:
            return  # everybody had left
        flight.run = None
        if error is None:
            self._finish(key, flight)
            result = run.future.result()
            for future in flight.waiters:
                if not future.done():
                    future.set_result(result)
            return
        if not isinstance(error, _LEADERS_OWN):
            flight.failures += 1
        is_shared = isinstance(error, _EVERYBODYS) or flight.failures >= FAILURES_MAX
        if not is_shared and flight.runs < RUNS_MAX:
            self._fail(flight.leader, error)
            heir = self._heir(flight)
            if heir is not None:
                self._launch(key, flight, heir)
                return
        self._finish(key, flight)
        for future in flight.waiters:
            self._fail(future, error)

    def _heir(self, flight: _Flight[V]) -> _Waiter[V] | None:
        waiting = [waiter for waiter in flight.waiters.values() if not waiter.future.done()]
        return max(waiting, key=lambda waiter: waiter.deadline_s, default=None)

    def _finish(self, key: Hashable, flight: _Flight[V]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    @staticmethod
    def _fail(future: asyncio.Future[V] | None, error: BaseException) -> None:
        if future is not None and not future.done():
            future.set_exception(error)


def _error_of(future: asyncio.Future[Any]) -> BaseException | None:
    if future.cancelled():
        return WorkerLost("the computation was given up")
    return future.exception()


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("no answer before the deadline"))
