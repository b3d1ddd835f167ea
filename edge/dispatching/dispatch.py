"""Chooses a worker for every call, and ends those that are not answered by their deadline.

Keeps one connection to every worker that the routes name, picks the lighter of two random replicas
by their own load reports, and tries once more elsewhere, within a budget, when a worker broke or
went silent before it answered.  A call for an engine that nobody has loaded goes to the first live
worker of `wake_at`: it is the wake.  A fallback worker that is named behind others waits a moment
for them: they may have lost no more than their connection.  While no worker can be reached the call
waits, up to its deadline; a worker that is cold is dialled only then, because to dial it is to
start it.  One that has left, or is lost for longer, may rest by now: it is dialled again with a
call for it, or by newer routes.  Knows nothing of HTTP, keys or caches.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Sequence

import structlog

from edge.dispatching.calls import Call, Ref
from edge.dispatching.reach import FAR, Reach
from edge.dispatching.replicas import Engines, Replicas
from edge.dispatching.retry_budget import Budget
from edge.dispatching.starting import are_missed, is_starting, to_start
from edge.dispatching.suspects import Suspects
from edge.dispatching.twins import Twins
from edge.dispatching.waiting import Waiting
from edge.dispatching.worker_conn import Silent, WorkerConn
from edge.errors import (
    ClientGone,
    DeadlineExceeded,
    Refusal,
    Unavailable,
    WorkerLost,
    jittered,
)
from pool.wire import data
from pool.wire.control import EngineRoute, Routes
from pool.wire.handshake import Secrets
from pool.wire.peer import DIAL_S_MAX, Address
from pool.wire.renewal import RENEW_S, is_outdated, takes_current

LATE_S = 0.03  # how long after its deadline a worker may still answer, before the edge does
SWEEP_S = 0.02  # so often calls are looked for whose deadline is near; these get a timer each
STALL_S = 0.2  # a look that comes so late says nothing about who was silent meanwhile
LOST_RETRIES = 1  # a call is sent again so often when its worker was lost: it may have run
HELD_RETRIES = 2  # and so often when it had not loaded the model yet, so that it never ran
ALONE_SENT_MAX = 4  # so often in all, if it was to run alone and had not begun

_log = structlog.get_logger()


def _asleep(wake_s: float, *, is_far: bool) -> Unavailable:
    why, code = "waking it takes", ""
    if is_far:
        why, code = "no instance of the pool is up: one takes", "no_instance"
    return Unavailable(
        f"the model sleeps, and {why} about {wake_s:.0f} s: longer than this call's deadline allows"
        if wake_s >= 10
        else f"the model sleeps, and {why} about {wake_s:.2g} s: longer than this call's "
        "deadline allows",
        retry_after_s=jittered(wake_s),
        code=code,
    )


class Pool:
    """Every worker that the routes name, and the calls that wait for one."""

    def __init__(self, edge_id: str, secrets: Secrets | None) -> None:
        self.edge_id = edge_id
        self.secrets = secrets
        # The whole mutable state: connections by worker id, routes by engine, and the calls that
        # wait until some worker can be reached.
        self._conns: dict[str, WorkerConn] = {}
        self.reach = Reach(self._conns)
        self.engines = Engines(self._is_up)
        self._waiting = Waiting()
        self.budget = Budget()
        self.calls_begun = 0
        self.retries = 0  # calls sent again because their worker was lost
        self.retries_refused = 0  # calls that ended because their worker broke
        self.suspects = Suspects(self)
        self.twins = Twins(self, self.suspects.watched)
        self.silences = 0  # workers that hung, or could not be heard
        self.helped: Counter[Ref] = Counter()  # calls that fallback workers answered
        self.refused_far: Counter[Ref] = Counter()  # and those that no instance was up for
        self.returns = 0  # calls sent elsewhere because their worker gave them back
        self._leaving: set[WorkerConn] = set()  # get nothing new, and may have calls under way

    def update(self, routes: Routes) -> None:
        """Go by new routes: dial who is new, leave who is gone, try who waits."""
        wanted = {worker.id: worker for worker in routes.workers}
        for worker_id, conn in list(self._conns.items()):
            worker = wanted.get(worker_id)
            if worker is None or worker.address != conn.address:
                del self._conns[worker_id]
                if conn.calls:
                    # Routes move before a worker drains: its calls may still come to their end.
                    conn.leave()
                    self._leaving.add(conn)
                else:
                    conn.close()
        for worker_id, worker in wanted.items():
            known = self._conns.get(worker_id)
            if known is None:
                self._conns[worker_id] = WorkerConn(self, worker)
            else:
                known.follow(worker)
        self.engines.follow(routes)
        self.reach.update(routes.far, time.monotonic())
        self.twins.keep([(engine.model, engine.version) for engine in routes.engines])
        self.on_up()

    def route(self, ref: Ref) -> EngineRoute | None:
        """Return what the controller last said of an engine."""
        engine = self.engines.get(ref)
        return None if engine is None else engine.route

    def route_in_reach(self, ref: Ref) -> EngineRoute | None:
        """Return the same without the workers that this edge cannot reach."""
        route = self.route(ref)
        return None if route is None else self.reach.seen(route)

    def _is_up(self, worker: str) -> bool:
        conn = self._conns.get(worker)
        return conn is not None and conn.is_up

    @property
    def workers_up(self) -> int:
        """How many workers can be called now."""
        return sum(conn.is_up for conn in self._conns.values())

    def start(self, call: Call) -> None:
        """Send `call`, or let it wait for a worker; its future ends soon after its deadline."""
        call.pool = self
        self.calls_begun += 1
        self.budget.pay()
        self.send(call)
        if call.hedge_share and call.on_chunk is None:
            self.twins.follow(call)

    def send_beside(self, call: Call, twin: Call) -> bool:
        """Send the twin of `call` to another warm replica; False: none can be called."""
        engine, now_s = self.engines.get(call.ref), time.monotonic()
        warm = () if engine is None else engine.route.warm
        up = [conn for conn in self._up(warm) if conn is not call.conn]
        if engine is None or not up:
            return False
        twin.pool = self
        self.engines.send(twin, engine.choose(up, now_s), now_s)
        return True

    def send(self, call: Call) -> None:
        """Send a call that has come before, or let it wait; it may have to, or be refused."""
        if call.ref in self.suspects.watched and self.suspects.stops(call):
            return
        now_s = time.monotonic()
        conn = self._pick_for(call, now_s)
        if conn is not None:
            self.engines.send(call, conn, now_s)
            self._waiting.reached(call.ref)
            return
        self._waiting.add(call, now_s)
        # Also for one that is refused: it may come back.
        self._start_for(call.ref, now_s, call.deadline_s)
        route = self.route(call.ref)
        wake_s = route.wake_ms / 1000 if route is not None else 0.0
        if call.deadline_s < now_s + wake_s:
            is_far = route is not None and route.state in FAR
            self.refused_far[call.ref] += is_far
            self.cancel(call, _asleep(wake_s, is_far=is_far))
        elif self._waiting.is_in_vain(call, now_s) and not self._is_coming(route, now_s):
            text = "no worker of the pool can be reached, and none is being started"
            self.cancel(call, Unavailable(text, retry_after_s=jittered(1.0)))

    def _is_coming(self, route: EngineRoute | None, now_s: float) -> bool:
        """Tell whether a worker is being started, or nobody knows yet who may be."""
        if route is None or route.state in FAR:
            return True
        if not self.reach.far and self.reach.may_be_far(now_s):
            return True
        named = map(self._conns.get, (*route.warm, *route.wake_at))
        return any(c is not None and c.is_cold and is_starting(c, now_s) for c in named)

    def cancel(self, call: Call, error: Refusal | None = None) -> None:
        """End a call that nobody waits for, all the way down."""
        self._waiting.give_up(call, time.monotonic())
        self.suspects.forget(call)
        if call.conn is not None:
            call.conn.forget(call)
        call.fail(error or ClientGone())

    def _pick_for(self, call: Call, now_s: float) -> WorkerConn | None:
        """Pick a worker; one that gave the call back only when nobody else can be reached."""
        engine = self.engines.get(call.ref)
        if engine is None:
            return None
        if not call.gave_back:
            return self._pick(engine, now_s, call.deadline_s)
        up = self._up((*engine.route.warm, *engine.route.wake_at))
        conn = min(up, key=call.gave_back.count, default=None)
        if conn is not None and self._is_early(conn, engine.route, now_s, call.deadline_s):
            return None
        return conn

    def _up(self, names: Iterable[str]) -> list[WorkerConn]:
        """Return those of the workers that can be called now."""
        return [conn for conn in map(self._conns.get, names) if conn is not None and conn.is_up]

    def _pick(self, engine: Replicas, now_s: float, deadline_s: float) -> WorkerConn | None:
        warm = engine.route.warm
        if len(warm) == 1:
            conn = self._conns.get(warm[0])
            if conn is not None and conn.is_up:
                return conn
            self._want(warm)
        elif warm:
            up = self._up(warm)
            if len(up) < len(warm):
                self._want(warm)
            if up:
                return engine.choose(up, now_s)
        for worker_id in engine.route.wake_at:
            conn = self._conns.get(worker_id)
            if conn is not None and conn.is_up:
                is_early = self._is_early(conn, engine.route, now_s, deadline_s)
                return None if is_early else conn
        return None

    def _is_early(
        self, conn: WorkerConn, route: EngineRoute, now_s: float, deadline_s: float
    ) -> bool:
        """Tell whether a call waits for others to come back before this worker helps out."""
        if not conn.is_fallback or conn.id in route.warm:
            return False
        names = (*route.warm, *route.wake_at[: route.wake_at.index(conn.id)])
        found = [conn for conn in map(self._conns.get, names) if conn is not None]
        return are_missed(found, now_s, deadline_s - now_s)

    def _want(self, warm: Iterable[str]) -> None:
        """Dial the replicas that could not be reached for a call, whoever takes it."""
        for conn in map(self._conns.get, warm):
            if conn is not None:
                conn.want()

    def _start_for(self, ref: Ref, now_s: float, deadline_s: float) -> None:
        """Have a worker started for a call that waits, if need be; dial those that were lost."""
        route = self.route(ref)
        if route is None:
            return
        found = map(self._conns.get, (*route.warm, *route.wake_at))
        named = [conn for conn in found if conn is not None]
        conn = to_start(named, now_s, deadline_s - now_s)
        if conn is not None:
            _log.info("worker_started", worker=conn.id, model=ref[0], version=ref[1])
            conn.start()
        for conn in named:
            if not conn.is_cold:
                conn.want()

    def is_starting(self, ref: Ref) -> bool:
        """Tell whether there are places without a process where `ref` may wake."""
        route = self.route(ref)
        named = map(self._conns.get, () if route is None else route.wake_at)
        return any(conn is not None and conn.is_cold for conn in named)

    def calls(self) -> list[Call]:
        """Return the calls that are under way, or wait because no worker can be reached."""
        conns = (*self._conns.values(), *self._leaving)
        return [*self._waiting, *(call for conn in conns for call in conn.calls.values())]

    def away(self) -> dict[str, str]:
        """Return by worker why it gets no calls now, or only some on trial."""
        found = self.engines.away()
        found.update((conn.id, ["silent"]) for conn in self._conns.values() if conn.is_silent)
        return {name: ", ".join(whys) for name, whys in found.items()}

    def waiting(self) -> dict[str, int]:
        """Return by "model/version" how many calls wait because no worker can be reached."""
        return self._waiting.counts()

    def unserved(self) -> dict[str, int]:
        """Return by "model/version" how many calls ended without having been given to a worker."""
        return dict(self._waiting.unserved)

    def unserved_age_s(self) -> dict[str, int]:
        """Return by "model/version" how many seconds ago the last of them ended, if few."""
        return self._waiting.unserved_age_s(time.monotonic())

    def on_up(self) -> None:
        """Try the calls that wait: a worker or a route has come."""
        now_s = time.monotonic()
        for call in self._waiting:
            conn = self._pick_for(call, now_s)
            if conn is not None:
                self._waiting.remove(call)
                self._waiting.reached(call.ref)
                self.engines.send(call, conn, now_s)
        self._start_for_waiting(now_s)

    def _see_to_waiting(self, now_s: float) -> None:
        """Let those who wait go where they did not go at once, or have somebody started."""
        for ref, deadline_s in self._waiting.first_s().items():
            engine = self.engines.get(ref)
            if engine is not None and self._pick(engine, now_s, deadline_s) is not None:
                self.on_up()
                return
            self._start_for(ref, now_s, deadline_s)

    def _start_for_waiting(self, now_s: float) -> None:
        for ref, deadline_s in self._waiting.first_s().items():
            self._start_for(ref, now_s, deadline_s)

    def on_greeted(self, conn: WorkerConn) -> None:
        """Learn whether the process that had this name before still lives."""
        self.suspects.heard(conn.id, conn.incarnation)

    def on_ran(self, call: Call) -> None:
        """Trust a call again that was suspected, and has run alone."""
        self.suspects.ran(call)

    def on_lost(self, conn: WorkerConn, calls: Sequence[Call], error: Exception | None) -> None:
        """Try calls once more whose worker broke before it answered; one may have broken it."""
        if not isinstance(error, Silent):
            self.suspects.lost(conn, calls)
        # Held against the worker once, however many calls it had.
        for ref in {call.ref for call in calls if call.is_watched}:
            self.engines.failed(ref, conn.id)
        for call in calls:
            self._on_broken(call, conn)

    def _on_broken(self, call: Call, conn: WorkerConn) -> None:
        if call.future.done():
            return
        call.conn = None
        if call.is_twin:
            call.fail(WorkerLost("the worker that had this call as well broke"))
            return
        if self.suspects.holds(call):
            return
        if call.twin is not None and not call.twin.future.done():
            call.rests = True
            return
        has_waited = call.alone and not call.has_begun and conn.tells_begin
        if call.sent < ALONE_SENT_MAX if has_waited else self._may_retry(call):
            self.retries += 1
            self.send(call)
        else:
            self.retries_refused += 1
            call.fail(WorkerLost("the worker that had this call broke"))

    def _may_retry(self, call: Call) -> bool:
        """Tell whether a call whose worker was lost may be sent again, and take that as done.

        One that waited for a load that its worker did not survive has not run: it is tried wherever
        it may wake, and takes nothing out of the budget.
        """
        if call.has_parts or call.is_twin or call.twin is not None:
            return False
        if call.is_held:
            return call.sent <= HELD_RETRIES
        return call.sent <= LOST_RETRIES and self.budget.take()

    def on_helped(self, call: Call) -> None:
        """Count what a fallback worker has answered."""
        self.helped[call.ref] += 1

    def on_ended(self, call: Call, conn: WorkerConn, reply: data.Reply) -> None:
        """Compare how a worker answered with what others do."""
        self.engines.answered(call, conn.id, reply)

    def on_silent(self, conn: WorkerConn) -> None:
        """Send the calls elsewhere that a silent worker has, as far as there is somebody else.

        The others stay: it may speak again in time.  What it says of those that left is dropped.
        """
        self.silences += 1
        self._move_from(conn)

    def _move_from(self, conn: WorkerConn) -> None:
        now_s = time.monotonic()
        for call in list(conn.calls.values()):
            found = self._pick_for(call, now_s) if call.deadline_s > now_s else None
            if found is not None and not call.future.done() and self._may_retry(call):
                conn.forget(call)
                self.retries += 1
                self.engines.send(call, found, now_s)

    def on_draining(self, conn: WorkerConn) -> None:
        """Send nothing more over `conn`, and dial whoever takes the worker's place.

        Until the routes know of one, that is done for a call only: the worker may be told to rest.
        The worker waits for us to hang up, which the sweep does after the last answer.
        """
        if self._conns.get(conn.id) is conn:
            self._conns[conn.id] = WorkerConn(self, conn.route, has_left=not conn.has_heir)
            self._leaving.add(conn)
            conn.leave()

    async def renew_forever(self) -> None:
        """Dial anew whoever was dialled with an earlier fleet secret, once it takes the new one."""
        while True:
            await asyncio.sleep(RENEW_S)
            secrets = self.secrets
            for conn in [c for c in self._conns.values() if is_outdated(c.peer, secrets)]:
                if secrets and await takes_current(Address.parse(conn.address), secrets):
                    await self._renew(conn)

    async def _renew(self, conn: WorkerConn) -> None:
        """Put a new connection in the place of `conn`, which keeps its calls to their end."""
        heir = WorkerConn(self, conn.route)
        for _ in range(int(DIAL_S_MAX / SWEEP_S)):
            if heir.is_up:
                break
            await asyncio.sleep(SWEEP_S)
        if heir.is_up and self._conns.get(conn.id) is conn:
            self._conns[conn.id] = heir
            self._leaving.add(conn)
            conn.leave()
        else:
            heir.close()

    def on_returned(self, call: Call) -> None:
        """Send a call elsewhere that its worker gave back: it never ran."""
        call.conn = None
        if call.is_twin:
            call.fail(Unavailable("its worker gave it back", retry_after_s=jittered(1.0)))
            return
        call.sent -= 1
        self.returns += 1
        self.send(call)

    async def sweep_forever(self) -> None:
        """Give a timer to every call whose deadline comes before the next look.

        One for each call from its start would cost more than most calls do.
        """
        before_s = time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.monotonic()
            self._listen(now_s, now_s - before_s - SWEEP_S)
            before_s = now_s
            for conn in [conn for conn in self._leaving if not conn.calls]:
                self._leaving.discard(conn)
                conn.close()
            self._see_to_waiting(time.monotonic())
            until_s = time.monotonic() + 2 * SWEEP_S  # the next look may be late
            for call in [c for c in self._waiting if c.deadline_s < until_s]:
                self._expire_at(call, call.deadline_s)
            for conn in (*self._conns.values(), *self._leaving):
                if conn.calls:
                    near = [c for c in conn.calls.values() if c.deadline_s + LATE_S < until_s]
                    for call in near:
                        self._expire_at(call, call.deadline_s + LATE_S)

    def _listen(self, now_s: float, late_s: float) -> None:
        stalled_s = late_s if late_s >= STALL_S else 0.0
        for conn in (*self._conns.values(), *self._leaving):
            conn.listen(now_s, stalled_s)
            if conn.is_silent and conn.calls:
                self._move_from(conn)
        self.reach.look(now_s)

    def _expire_at(self, call: Call, at_s: float) -> None:
        left_s = at_s - time.monotonic()
        if left_s <= 0:
            self._expire(call)
        else:
            asyncio.get_running_loop().call_later(left_s, self._expire, call)

    def _expire(self, call: Call) -> None:
        """End a call whose deadline has passed without the worker's saying so.

        A worker that has the call answers at its deadline by itself, if it still waits there; so
        that it is heard first, the edge leaves it `LATE_S`.
        """
        if call.future.done():
            return
        if call in self._waiting:
            self.cancel(call, self._unreached(call.ref))
        else:
            conn = call.conn
            self.cancel(call, DeadlineExceeded("no answer before the deadline"))
            if call.is_watched and isinstance(conn, WorkerConn) and not conn.is_silent:
                self.engines.failed(call.ref, conn.id)

    def _unreached(self, ref: Ref) -> Unavailable:
        """Say why a call has waited in vain, and when it may come back."""
        route = self.route(ref)
        if route is not None and route.state in FAR and route.wake_ms and not route.wake_at:
            self.refused_far[ref] += 1
            return _asleep(route.wake_ms / 1000, is_far=True)
        why = "can be reached" if route is not None else "knows this model yet"
        return Unavailable(f"no worker of the pool {why}", retry_after_s=jittered(1.0))

    async def close(self) -> None:
        """Close every connection."""
        for conn in (*self._conns.values(), *self._leaving):
            conn.close()
        self._conns.clear()
        self._leaving.clear()
