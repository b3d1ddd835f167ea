"""One version of a model in this worker: brought, loaded once, queued for, unloaded.

    cold ── a call or a command ──▶ loading ──▶ warm ◀──▶ draining ──▶ cold
                                       └──▶ failed ── after a pause, by the next call ──▶ loading

One that drains because others have the version takes nothing new: it gives calls back, ends what
it has, and then leaves, unless it is wanted again before that.
Calls that come while it loads wait here, each by its own deadline; one load serves them all.  One
that cannot be in time, as far as the last loads tell, is refused at once, and has it loaded for
whoever comes next.
While it is warm a better engine may take the place of the one that serves.
Knows neither the wire nor the controller.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from pool.engines.base import reason_of
from pool.loaded import CannotLoad, Loaded, NoRoom, difference
from pool.phases import HAND_OVER, enter
from pool.queueing.alone import Gate
from pool.queueing.engine_queue import EngineQueue
from pool.queueing.expiry import Expiries
from pool.queueing.ticket import Failed, Outcome, Overdue, Returned, Ticket
from pool.waking import RETRY_AFTER_S_MIN, Wakes, Waking, too_late

BACKOFF_S_MIN = 1.0
BACKOFF_S_MAX = 60.0
PASSING_S_MAX = 2.0  # where it is not the version's fault
LATE_S = 2.0  # so long after it has left, a call may come that was sent by older routes
ELSEWHERE = "other workers have the model loaded"
HELD_S = 0.5  # so often whoever waits for a load hears how far it is

_log = structlog.get_logger()


class Waiting(Protocol):
    """A call, which may have come before its engine was warm; compared by identity."""

    @property
    def arrived_s(self) -> float: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def insists(self) -> bool:
        """Tell whether no other worker is to be asked."""

    def make_ticket(self, loaded: Loaded) -> Ticket:
        """Return the call's ticket; one that does not fit the engine is settled already."""

    def settle(self, outcome: Outcome) -> None:
        """Take the outcome of a call that never got a ticket."""

    def held(self, phase: str, left_s: float) -> None:
        """Hear what the load is doing, and how long it may still take; 0: not known."""


class EngineSlot:
    """The place of one version in this worker.

    Args:
        load: brings the artifact and makes it runnable; raises `CannotLoad`.
        on_change: called whenever `state` has changed.
        soon: where the engine's queue puts its next step.
        wakes: what is known of loads; without it nothing is, and nobody refused for it.
        take_up_s: returns since when the call of the next load has waited for this process to take
            it, if the process was started for that; then None.
        gate: which runs may begin in the process.
    """

    def __init__(
        self,
        model: str,
        version: str,
        load: Callable[[str, str], Awaitable[Loaded]],
        on_change: Callable[[], None],
        soon: Callable[[Callable[[], None]], object] | None = None,
        wakes: Wakes | None = None,
        take_up_s: Callable[[], float | None] = lambda: None,
        gate: Gate | None = None,
    ) -> None:
        self.model = model
        self.version = version
        self._load = load
        self._on_change = on_change
        self._soon = soon
        self._wakes = wakes
        self._take_up_s = take_up_s
        self._gate = gate
        # The whole mutable state.
        self.state = "cold"
        self.detail = ""
        self.passes = False  # failed, and not by the version's fault
        self.loads = 0
        self.arrived = 0  # calls ever, and the rows in them as far as they were known
        self.arrived_rows = 0
        self.phases: dict[str, int] = {}  # of the last load, in µs
        self.loaded: Loaded | None = None
        self.queue: EngineQueue | None = None
        self._replaced: dict[EngineQueue, asyncio.Task[None]] = {}  # till their last runs end
        self.used_s = time.monotonic()
        self._waiting: dict[Waiting, None] = {}
        self._expiries: Expiries[Waiting] = Expiries(
            self._waiting.keys(), self._expire, time.monotonic, asyncio.get_running_loop()
        )
        self._failures = 0
        self._retry_at_s = 0.0
        self._loading: asyncio.Task[None] | None = None
        self._waking: Waking | None = None
        self._is_closed = False
        # Until when calls are left to other workers, and what wakes a drain up to look again.
        self._elsewhere_until_s = -math.inf
        self._stirred = asyncio.Event()

    @property
    def calls(self) -> int:
        """How many calls wait or run."""
        inside = self.queue.tickets_inside if self.queue else 0
        return len(self._waiting) + inside + sum(old.tickets_inside for old in self._replaced)

    @property
    def waiting(self) -> int:
        """How many of them do not run yet."""
        return len(self._waiting) + (self.queue.tickets_waiting if self.queue else 0)

    @property
    def wait_us(self) -> int:
        """How long a call that came now would wait for its run."""
        return int(self.queue.wait_s() * 1e6) if self.queue else 0

    @property
    def wake_s(self) -> float:
        """How long a call would wait for a load that began now; 0: not known."""
        return self._wakes.wake_s((self.model, self.version)) if self._wakes else 0.0

    @property
    def left_s(self) -> float:
        """How long a call that came now would wait for the load; 0: not known, or it is warm."""
        if self.state == "warm":
            return 0.0
        return self._waking.left_s if self._waking else self.wake_s

    def ensure(self, began_s: float | None = None) -> None:
        """Begin to load unless that is done, under way, or just failed.

        Args:
            began_s: when the call came that this is for; now by default.
        """
        if self._is_closed:
            return
        until_s, self._elsewhere_until_s = self._elsewhere_until_s, -math.inf
        if until_s == math.inf:  # it drains, and nothing is given up yet
            self._set("warm")
            self._stirred.set()
            return
        if self.state == "cold" or (
            self.state == "failed" and time.monotonic() >= self._retry_at_s
        ):
            self._waking = Waking(self.wake_s, began_s, self._take_up_s())
            asyncio.get_running_loop().call_later(HELD_S, self._tell_held, self._waking)
            self._set("loading")
            self._loading = asyncio.get_running_loop().create_task(self._load_once())

    def fail(self, detail: str) -> None:
        """Show that it cannot be loaded, before anybody has tried."""
        if self.state == "cold" and not self._is_closed:
            self._fail(detail)

    def submit(self, waiting: Waiting) -> None:
        """Take a call: into the queue, or to wait for the load; or give it back."""
        if self.state != "warm" and self._gives_back(waiting):
            return
        self.arrived += 1
        self.used_s = waiting.arrived_s
        self._take(waiting)

    def _gives_back(self, waiting: Waiting) -> bool:
        """Give a call back that another worker is to have; tell whether it is one."""
        if self._is_closed:
            waiting.settle(Returned())
        elif time.monotonic() < self._elsewhere_until_s and not waiting.insists:
            waiting.settle(Returned(ELSEWHERE))
        else:
            self.ensure(waiting.arrived_s)
            return False
        return True

    def _take(self, waiting: Waiting) -> None:
        if self.queue is not None and self.loaded is not None and self.state == "warm":
            ticket = waiting.make_ticket(self.loaded)
            if not ticket.settled:
                self.arrived_rows += ticket.rows
                self.queue.submit(ticket)
            return
        if self.state == "failed":
            waiting.settle(Failed(503, f"the model cannot be loaded: {self.detail}"))
            return
        left_s = self.left_s
        if waiting.deadline_s < time.monotonic() + left_s:
            waiting.settle(too_late(left_s))
            return
        self._waiting[waiting] = None
        self._expiries.watch(waiting)

    def cancel(self, ticket: Ticket) -> None:
        """Settle a ticket that a queue has, because its caller is gone."""
        for old in self._replaced:
            if old.runs(ticket):
                old.cancel(ticket)
                return
        if self.queue is not None:
            self.queue.cancel(ticket)

    def forget(self, waiting: Waiting) -> bool:
        """Drop a call that nobody wants any more; tell whether it waited for the load."""
        if waiting not in self._waiting:
            return False
        del self._waiting[waiting]
        return True

    def _tell_held(self, waking: Waking) -> None:
        """Tell those who wait how far the load is, for as long as it goes on."""
        if waking is not self._waking:
            return
        for one in list(self._waiting):
            one.held(waking.phases.name, waking.left_s)
        asyncio.get_running_loop().call_later(HELD_S, self._tell_held, waking)

    def _expire(self, waiting: Waiting) -> None:
        """End a call whose deadline passes while the engine loads."""
        del self._waiting[waiting]
        waiting.settle(Overdue(time.monotonic() - waiting.arrived_s, was_shed=False))

    async def swap(self, loaded: Loaded) -> bool:
        """Let another engine of the same artifact serve from now on.

        It does so before this first gives the loop back: who waits is in its queue then, in the
        same order.  Whatever the old one runs, a stream too, goes on to its end, and only then is
        the old session closed, for which this waits.

        Args:
            loaded: warm; its session belongs to the slot from now on.

        Returns:
            Whether it serves.  If this version is not served here any more it does not, and its
            session is closed.

        Raises:
            CannotLoad: it would give other answers than the old one; its session is closed.
        """
        old, old_queue = self.loaded, self.queue
        if self._is_closed or self.state != "warm" or old is None or old_queue is None:
            await asyncio.to_thread(loaded.session.close)
            return False
        other = difference(old, loaded)
        if other:
            await asyncio.to_thread(loaded.session.close)
            raise CannotLoad(f"{loaded.engine} cannot take the place of {old.engine}: {other}")
        self.loaded = loaded
        self.queue = self._make_queue(loaded)
        self.queue.succeed(old_queue)
        leaving = asyncio.get_running_loop().create_task(self._see_off(old_queue))
        self._replaced[old_queue] = leaving
        _log.info(
            "engine_swapped",
            model=self.model,
            version=self.version,
            engine=loaded.engine,
            plan=loaded.plan,
            before=old.engine,
            waiting=self.queue.tickets_waiting,
        )
        self._on_change()
        await asyncio.shield(leaving)
        return True

    async def _see_off(self, old: EngineQueue) -> None:
        await old.close(lets_streams_end=True)
        del self._replaced[old]
        self._stirred.set()

    def _make_queue(self, loaded: Loaded) -> EngineQueue:
        return EngineQueue(
            loaded.session,
            name=f"{self.model}/{self.version}",
            rows_max=loaded.manifest.rows_max,
            on_idle=self._stirred.set,
            soon=self._soon,
            gate=self._gate,
        )

    def _take_waiting(self) -> list[Waiting]:
        waiting = list(self._waiting)
        self._waiting.clear()
        return waiting

    async def unload(self, *, is_elsewhere: bool = False) -> None:
        """Give the memory back.

        Args:
            is_elsewhere: others have the version: what is here is ended first, and calls that
                come are given back, unless they insist.  Being wanted again ends that.
                Otherwise nothing happens if somebody has called since it was decided, and a call
                that comes meanwhile waits, and has the engine loaded anew.
        """
        if self.calls and not is_elsewhere:
            return
        if self.state == "failed":
            self._set("cold")
        if self.state != "warm" or self.queue is None:
            return
        if is_elsewhere:
            self._elsewhere_until_s = math.inf
        self._set("draining")
        if is_elsewhere:
            while self.calls and self._elsewhere_until_s == math.inf and not self._is_closed:
                self._stirred.clear()
                await self._stirred.wait()
            if self._elsewhere_until_s != math.inf or self._is_closed:
                return
            self._elsewhere_until_s = time.monotonic() + LATE_S
        await self._close_queues()
        self.queue = None
        self.loaded = None
        self._set("cold")
        if self._waiting:
            self.ensure()

    def stop_loading(self) -> None:
        """Load no more: who waits for that is returned, and who comes for it later."""
        self._is_closed = True
        self._stirred.set()
        if self._loading is not None:
            self._loading.cancel()
        self._waking = None
        self._settle_waiting(Returned())

    async def close(self) -> None:
        """End everything: the run under way; who still waits is returned, and who comes later."""
        self.stop_loading()
        self._expiries.close()
        await self._close_queues()

    async def _close_queues(self) -> None:
        queues = [*self._replaced, self.queue]
        await asyncio.gather(*(queue.close() for queue in queues if queue is not None))

    async def _load_once(self) -> None:
        waking = self._waking
        assert waking is not None
        waking.phases.watch()
        try:
            loaded = await self._load(self.model, self.version)
        except NoRoom as error:
            self._turn_away(str(error))
            return
        except CannotLoad as error:
            self._fail(str(error), passes=error.passes)
            return
        except Exception as error:
            # Whatever a loader raises must end as a failed slot, not as a silent one.
            _log.exception("bug", model=self.model, version=self.version)
            self._fail(reason_of(error))
            return
        enter(HAND_OVER)
        self.loads += 1
        self.used_s = time.monotonic()  # who has it warmed must not lose it before the first call
        self._failures = 0
        self.loaded = loaded
        self.queue = self._make_queue(loaded)
        self.state, self.detail, self._waking = "warm", "", None
        waiting = self._take_waiting()
        for one in waiting:
            self._take(one)
        if waiting:
            # All of them at once, and before anything else: the first run is as large as what has
            # waited.  Meanwhile anything may happen to the slot.
            await asyncio.sleep(0)
        self.phases = waking.phases.end()
        if self._wakes is not None:
            self._wakes.learn((self.model, self.version), loaded.engine, waking.own_s)
        _log.info(
            "engine_warm",
            model=self.model,
            version=self.version,
            engine=loaded.engine,
            plan=loaded.plan,
            load_s=round(sum(self.phases.values()) / 1e6, 4),
            phases_us=self.phases,
            waiting=len(waiting),
        )
        self._on_change()

    def _fail(self, detail: str, *, passes: bool = False) -> None:
        self._failures += 1
        doublings = min(self._failures - 1, 16)  # far beyond the longest pause already
        longest_s = PASSING_S_MAX if passes else BACKOFF_S_MAX
        pause_s = min(BACKOFF_S_MIN * 2**doublings, longest_s)
        self._retry_at_s = time.monotonic() + pause_s
        self._waking = None
        self.detail, self.passes = detail, passes
        _log.error("engine_failed", model=self.model, version=self.version, error=detail)
        self._set("failed")
        self._settle_waiting(Failed(503, f"the model cannot be loaded: {detail}"))

    def _turn_away(self, why: str) -> None:
        """Let other workers have who waits; what is in use here has not failed, only stayed."""
        self._waking = None
        _log.warning("no_room", model=self.model, version=self.version, why=why)
        self._set("cold")
        for one in self._take_waiting():
            one.settle(Failed(503, why) if one.insists else Returned(why))

    def wait_no_longer(self, why: str, longest_s: float) -> None:
        """Look, while there is no room for it here, who is to wait on.

        Args:
            why: there is none.
            longest_s: who may be answered by another worker waits so long.  Who insists waits for
                as long as it can still be in time, if there were room now.
        """
        now_s = time.monotonic()
        late_s = now_s + max(self.left_s, RETRY_AFTER_S_MIN)
        for one in list(self._waiting):
            if one.insists and one.deadline_s <= late_s:
                outcome: Failed | Returned = Failed(503, why)
            elif not one.insists and now_s - one.arrived_s >= longest_s:
                outcome = Returned(why)
            else:
                continue
            del self._waiting[one]
            one.settle(outcome)

    def _settle_waiting(self, outcome: Failed | Returned) -> None:
        for one in self._take_waiting():
            one.settle(outcome)

    def _set(self, state: str) -> None:
        self.state = state
        if state != "failed":
            self.detail, self.passes = "", False
        self._on_change()
