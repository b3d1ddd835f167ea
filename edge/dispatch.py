"""Sends calls to workers and brings their answers back.

Keeps one pipelined connection to every worker that the routes name, picks the lighter of two
random replicas by their own load reports, and tries once more elsewhere when a worker broke before
it answered.  A call for an engine that nobody has loaded goes to the first live worker of
`wake_at`: it is the wake.  While no worker can be reached the call waits, up to its deadline; a
worker that is cold is dialled only then, because to dial it is to start it.  One that has left, or
is lost for longer, may rest by now: it is dialled again with a call for it, or by newer routes.
Knows nothing of HTTP, keys or caches.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec
import structlog

from edge.errors import (
    BadRequest,
    ClientGone,
    DeadlineExceeded,
    ModelFailed,
    NotFound,
    Refusal,
    TooLarge,
    Unavailable,
    Unprocessable,
    WorkerLost,
    jittered,
)
from edge.starting import START_S_MAX, needs_call, to_start
from edge.watch import ArmWatch
from pool.wire import data
from pool.wire.arena import PLACE_BYTES_MIN, Arena
from pool.wire.control import EngineRoute, Routes, WorkerRoute
from pool.wire.data import Tensor, TensorHead
from pool.wire.frames import Buffer, WireError, padded
from pool.wire.handshake import Secrets
from pool.wire.peer import DIAL_S_MAX, Address, Peer, dial

Ref = tuple[str, str]  # model, version

REDIAL_S_MIN = 0.02
REDIAL_S_MAX = (
    0.25  # a worker that came back is not kept waiting; one that is gone leaves the routes
)
STEADY_S = 1.0  # after a connection that lasted so long the next one is dialled almost at once
LATE_S = 0.03  # how long after its deadline a worker may still answer, before the edge does
SWEEP_S = 0.02  # so often calls are looked for whose deadline is near; these get a timer each
LOST_RETRIES = 1  # a call is sent again so often when its worker broke: it may have run
HELD_RETRIES = 2  # and so often when it had not loaded the model yet, so that it never ran
RETURNS_MAX = 8  # and so often when a worker gave it back, because it never ran

_log = structlog.get_logger()


class Answer(msgspec.Struct, frozen=True, gc=False):
    """What a worker computed.  `queue_us` and `infer_us` are the worker's own measurements."""

    outputs: Sequence[data.TensorLike]
    queue_us: int
    infer_us: int
    batch_rows: int


def refusal_of(reply: data.Reply) -> Refusal:
    """Return what a worker's refusal means to the caller."""
    match reply.status:
        case 400:
            return BadRequest(reply.detail)
        case 404:
            return NotFound(reply.detail)
        case 422:
            return Unprocessable(reply.detail)
        case 503:
            return Unavailable(reply.detail, retry_after_s=jittered(reply.retry_after_ms / 1000))
        case 504:
            return DeadlineExceeded(reply.detail)
        case 500:
            return ModelFailed(reply.detail)
        case _:
            return WorkerLost(f"the worker answered {reply.status}")


class Call:
    """One call on its way; `future` ends with an Answer or a Refusal, exactly once."""

    __slots__ = (
        "conn",
        "deadline_s",
        "digest",
        "future",
        "gave_back",
        "has_parts",
        "id",
        "inputs",
        "on_chunk",
        "on_held",
        "outputs",
        "pool",
        "priority",
        "ref",
        "request_id",
        "rows_max",
        "sent",
        "sent_s",
        "shadow",
        "unit",
        "watch",
    )

    def __init__(
        self,
        *,
        ref: Ref,
        digest: str,
        request_id: str,
        inputs: Sequence[data.TensorLike],
        outputs: tuple[str, ...],
        deadline_s: float,
        priority: int = 0,
        rows_max: int = 0,
        on_chunk: Callable[[Sequence[Tensor]], None] | None = None,
        on_held: Callable[[str, float], None] | None = None,
    ) -> None:
        self.ref = ref
        self.digest = digest
        self.request_id = request_id
        self.inputs = inputs
        self.outputs = outputs
        self.deadline_s = deadline_s
        self.priority = priority
        self.rows_max = rows_max
        self.on_chunk = on_chunk
        self.on_held = on_held  # hears what the load does that it waits for, and how long still
        self.has_parts = False
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pool: Pool | None = None
        self.conn: WorkerConn | None = None
        self.id = 0
        self.sent = 0
        self.gave_back: tuple[WorkerConn, ...] = ()
        self.sent_s = 0.0
        self.shadow: tuple[data.ShadowOf, ...] = ()  # who answer it as well, for a comparison
        self.watch: ArmWatch | None = None  # is told how it ends
        self.unit: bytes | None = None  # whose it is then

    @property
    def is_starting(self) -> bool:
        """Tell whether it waits for a process that is started for it."""
        return self.conn is None and self.pool is not None and self.pool.is_starting(self.ref)

    def cancel(self) -> None:
        """End the call because nobody waits for it any more."""
        if self.pool is not None:
            self.pool.cancel(self)

    def fail(self, error: Refusal) -> None:
        """End the call with `error` unless it has ended."""
        if not self.future.done():
            self.future.set_exception(error)
            if self.watch is not None and self.sent:
                self.tell(self.watch, error.status)

    def tell(self, watch: ArmWatch, status: int, outputs: Sequence[data.TensorLike] = ()) -> None:
        """Tell a rollout's guards how the call ended."""
        now_s = time.monotonic()
        watch.observe(self.unit, status, now_s - self.sent_s, now_s, outputs)


class WorkerConn:
    """The connection to one worker, redialled for a while when it is lost.

    One that `needs_call` is dialled once per `start` or `want`.

    Args:
        pool: whose it is.
        worker: what the routes say of the worker.
        has_left: its process said that it drains: it is cold until newer routes say otherwise.
    """

    def __init__(self, pool: Pool, worker: WorkerRoute, *, has_left: bool = False) -> None:
        self.id = worker.id
        self.address = worker.address
        self.route = worker
        self.is_cold = has_left or worker.state == "cold"
        self._pool = pool
        # The whole mutable state: the connection once the worker has spoken on it, and before; the
        # memory shared over it; the calls it carries; the last load report.
        self.peer: Peer | None = None
        self._dialled: Peer | None = None
        self._offered: Arena | None = None
        self._arena: Arena | None = None  # once the worker looks into it
        self.calls: dict[int, Call] = {}
        self.wait_us = 0
        self._incarnation = ""  # of the process that has spoken
        self.has_heir = False  # routes that came since name another process
        self._next_id = 0
        self.dialled_s = None if self.is_cold else time.monotonic()  # see `starting.Reach`
        self.failed_s = -math.inf
        self._wanted = asyncio.Event()
        self._lost = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    @property
    def is_up(self) -> bool:
        """Tell whether a call can be sent now."""
        return self.peer is not None and self.peer.is_open

    @property
    def load(self) -> float:
        """How long a call sent now would roughly wait, in ms; ties go by calls under way."""
        return self.wait_us / 1000 + len(self.calls)

    def send(self, call: Call, now_s: float) -> None:
        """Send `call` on its way to this worker; it insists on one that gave it back before."""
        assert self.peer is not None
        self._next_id += 1
        call.id = self._next_id
        call.conn = self
        call.sent += 1
        call.sent_s = now_s
        inputs = call.inputs
        heads = [TensorHead(t.name, t.datatype, tuple(t.shape), len(t.data)) for t in inputs]
        at = 0 if self._arena is None else self._arena_at(inputs)
        message = data.Call(
            call.id,
            call.request_id,
            call.ref[0],
            call.ref[1],
            call.digest,
            max(0, int((call.deadline_s - now_s) * 1e6)),
            call.priority,
            tuple(heads),
            call.outputs,
            call.on_chunk is not None,
            call.rows_max,
            at,
            self in call.gave_back,
            call.on_held is not None,
            # Not again: what broke the first worker may have been a copy of the call.
            call.shadow if call.sent == 1 else (),
        )
        try:
            buffers = data.encode(message, () if at else inputs)
        except ValueError as error:  # decoded, a body may be larger than a frame may be
            call.fail(TooLarge(f"the inputs are too large: {error}"))
            return
        self.calls[call.id] = call
        self.peer.send(buffers)
        if len(self.calls) == 1:
            # Nobody else is under way: waiting for company would only cost this call time.
            self.peer.flush()

    def _arena_at(self, inputs: Sequence[data.TensorLike]) -> int:
        """Put large inputs into the shared memory; 0 where they take the socket."""
        size_bytes = sum([padded(len(tensor.data)) for tensor in inputs])
        if size_bytes < PLACE_BYTES_MIN or self._arena is None:
            return 0
        at = self._arena.put([tensor.data for tensor in inputs], size_bytes)
        return 0 if at is None else at

    def forget(self, call: Call) -> None:
        """Drop a call that nobody waits for any more, here and at the worker."""
        if self.calls.pop(call.id, None) is not None and self.peer is not None:
            self.peer.send(data.encode(data.Cancel(call.id)))

    def close(self) -> None:
        """Stop redialling; calls under way fail as if the worker had broken."""
        self._task.cancel()
        if self._dialled is not None:
            self._dialled.close()

    def follow(self, worker: WorkerRoute) -> None:
        """Go by what newer routes say of the worker."""
        self.route = worker
        self.is_cold = worker.state == "cold"
        self.has_heir = self.is_up and worker.incarnation != self._incarnation
        if not self.is_cold and not self.is_up:
            self.start()
        elif self.is_cold and self._dialled is None:
            self.dialled_s = None
            self._wanted.clear()

    def start(self) -> None:
        """Dial, even if that starts the worker; others wait for the outcome."""
        if self.dialled_s is None:
            self.dialled_s = time.monotonic()
        self._wanted.set()

    def want(self) -> None:
        """Dial for a call, even if that starts the worker; nobody waits for the outcome."""
        if not self.is_up:
            self._wanted.set()

    def leave(self) -> None:
        """Dial no more; calls under way may still come to their end."""
        self.is_cold = True

    async def _keep(self) -> None:
        redial_s = REDIAL_S_MIN
        while True:
            if needs_call(self, time.monotonic()) and not self._wanted.is_set():
                if self.is_cold:
                    self.dialled_s = None
                await self._wanted.wait()
            self._wanted.clear()
            began_s = time.monotonic()
            self.dialled_s = self.dialled_s or began_s
            s_max = START_S_MAX if self.is_cold else DIAL_S_MAX
            try:
                peer = await dial(Address.parse(self.address), self._pool.secrets, s_max=s_max)
            except (OSError, ValueError, WireError) as error:
                _log.info("worker_unreachable", worker=self.id, error=str(error))
                self._unreached()
            else:
                self._lost.clear()
                self._dialled = peer
                peer.on_frame = self._frame
                peer.on_lost = self._on_lost
                peer.send(data.encode(self._hello(peer)))
                await self._lost.wait()
            if time.monotonic() - began_s > STEADY_S:
                redial_s = REDIAL_S_MIN
            await asyncio.sleep(redial_s * random.uniform(0.5, 1.0))
            redial_s = min(redial_s * 2, REDIAL_S_MAX)

    def _unreached(self) -> None:
        now_s = time.monotonic()
        if not self.is_cold:
            self.dialled_s = self.dialled_s or now_s
        elif self.dialled_s is not None:
            self.dialled_s, self.failed_s = None, now_s

    def _hello(self, peer: Peer) -> data.Hello:
        """Return our first message, which offers a worker of this host memory to share."""
        hello = data.Hello(data.WIRE, "edge", self._pool.edge_id, "")
        if peer.local_pid is None:
            return hello
        try:
            arena = self._offered = Arena()
        except OSError as error:
            _log.warning("no_arena", worker=self.id, error=str(error))
            return hello
        return msgspec.structs.replace(hello, arena_fd=arena.fd, arena_bytes=arena.bytes_max)

    def _greeted(self, hello: data.Hello) -> None:
        """Let calls go to the worker, now that it has shown that it lives.

        That it could be dialled does not: the kernel accepts for a process that is about to die.
        """
        if hello.wire != data.WIRE or hello.id != self.id:
            raise WireError(f"{self.address} is {hello.id} of wire {hello.wire}, not {self.id}")
        self.wait_us = 0
        self._incarnation = hello.incarnation
        self._wanted.clear()
        self.dialled_s = None
        self.peer = self._dialled
        if hello.arena_bytes:
            self._arena = self._offered
        self._pool.on_up()

    def _on_lost(self, error: Exception | None) -> None:
        self.peer = self._dialled = self._arena = None
        if self._offered is not None:
            self._offered.close()
            self._offered = None
        self._lost.set()
        self._unreached()
        calls, self.calls = self.calls, {}
        if calls:
            _log.warning("worker_lost", worker=self.id, calls=len(calls), error=str(error or ""))
        for call in calls.values():
            self._pool.on_broken(call)

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        if type(message) is data.Reply:
            self.wait_us = message.wait_us
            call = self.calls.pop(message.call_id, None)
            if call is not None and not call.future.done():
                self._settle(call, message, body)
        elif type(message) is data.Chunk:
            call = self.calls.get(message.call_id)
            if call is not None and call.on_chunk is not None and not call.future.done():
                call.has_parts = True
                call.on_chunk(data.tensors(message.outputs, body))
        elif type(message) is data.Progress:
            call = self.calls.get(message.call_id)
            if call is not None and call.on_held is not None:
                call.on_held(message.phase, message.left_us / 1e6)
        elif type(message) is data.Load:
            self.wait_us = message.wait_us
            if message.draining:
                self._pool.on_draining(self)
        elif type(message) is data.Release and self._arena is not None:
            self._arena.released(message.places)
        elif type(message) is data.Hello:
            self._greeted(message)
        else:
            raise WireError(f"a worker does not send {type(message).__name__}")

    def _settle(self, call: Call, reply: data.Reply, body: Buffer) -> None:
        if reply.status == 200:
            try:
                outputs = data.tensors(reply.outputs, body)
            except WireError:
                call.fail(WorkerLost("the worker's answer could not be read"))
                raise
            call.future.set_result(
                Answer(outputs, reply.queue_us, reply.infer_us, reply.batch_rows)
            )
            if call.watch is not None:
                call.tell(call.watch, 200, outputs)
        elif reply.not_run and len(call.gave_back) < RETURNS_MAX:
            call.gave_back += (self,)
            self._pool.on_returned(call)
        else:
            call.fail(refusal_of(reply))


def _asleep(wake_s: float) -> Unavailable:
    return Unavailable(
        f"the model sleeps, and waking it takes about {wake_s:.2g} s: longer than this call's "
        "deadline allows",
        retry_after_s=jittered(wake_s),
    )


class Pool:
    """Every worker that the routes name, and the calls that wait for one."""

    def __init__(self, edge_id: str, secrets: Secrets | None) -> None:
        self.edge_id = edge_id
        self.secrets = secrets
        # The whole mutable state: connections by worker id, routes by engine, and the calls that
        # wait until some worker can be reached.
        self._conns: dict[str, WorkerConn] = {}
        self._engines: dict[Ref, EngineRoute] = {}
        self._waiting: dict[Call, None] = {}  # in order: who came first is sent first
        self.retries = 0  # calls sent again because their worker broke
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
        self._engines = {(engine.model, engine.version): engine for engine in routes.engines}
        self.on_up()

    def route(self, ref: Ref) -> EngineRoute | None:
        """Return what the controller last said of an engine."""
        return self._engines.get(ref)

    @property
    def workers_up(self) -> int:
        """How many workers can be called now."""
        return sum(conn.is_up for conn in self._conns.values())

    def start(self, call: Call) -> None:
        """Send `call`, or let it wait for a worker; its future ends soon after its deadline."""
        call.pool = self
        now_s = time.monotonic()
        conn = self._pick_for(call)
        if conn is not None:
            conn.send(call, now_s)
            return
        self._waiting[call] = None
        # Also for one that is refused: it may come back.
        self._start_for(call.ref, now_s, call.deadline_s)
        engine = self._engines.get(call.ref)
        wake_s = engine.wake_ms / 1000 if engine is not None else 0.0
        if call.deadline_s < now_s + wake_s:
            self.cancel(call, _asleep(wake_s))

    def cancel(self, call: Call, error: Refusal | None = None) -> None:
        """End a call that nobody waits for, all the way down."""
        self._waiting.pop(call, None)
        if call.conn is not None:
            call.conn.forget(call)
        call.fail(error or ClientGone())

    def _pick_for(self, call: Call) -> WorkerConn | None:
        """Pick a worker; one that gave the call back only when nobody else can be reached."""
        engine = self._engines.get(call.ref)
        if not call.gave_back or engine is None:
            return self._pick(call.ref)
        named = map(self._conns.get, (*engine.warm, *engine.wake_at))
        up = [conn for conn in named if conn is not None and conn.is_up]
        return min(up, key=call.gave_back.count, default=None)

    def _pick(self, ref: Ref) -> WorkerConn | None:
        engine = self._engines.get(ref)
        if engine is None:
            return None
        warm = engine.warm
        if len(warm) == 1:
            conn = self._conns.get(warm[0])
            if conn is not None and conn.is_up:
                return conn
            self._want(warm)
        elif warm:
            up = [c for c in map(self._conns.get, warm) if c is not None and c.is_up]
            if len(up) < len(warm):
                self._want(warm)
            if len(up) > 2:
                up = random.sample(up, 2)
            if up:
                return min(up, key=lambda conn: conn.load)
        for worker_id in engine.wake_at:
            conn = self._conns.get(worker_id)
            if conn is not None and conn.is_up:
                return conn
        return None

    def _want(self, warm: Iterable[str]) -> None:
        """Dial the replicas that could not be reached for a call, whoever takes it."""
        for conn in map(self._conns.get, warm):
            if conn is not None:
                conn.want()

    def _start_for(self, ref: Ref, now_s: float, deadline_s: float) -> None:
        """Have a worker started for a call that waits, if need be; dial those that were lost."""
        engine = self._engines.get(ref)
        if engine is None:
            return
        found = map(self._conns.get, (*engine.warm, *engine.wake_at))
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
        engine = self._engines.get(ref)
        named = map(self._conns.get, () if engine is None else engine.wake_at)
        return any(conn is not None and conn.is_cold for conn in named)

    def waiting(self) -> dict[str, int]:
        """Return by "model/version" how many calls wait because no worker can be reached."""
        return dict(Counter("/".join(call.ref) for call in self._waiting))

    def on_up(self) -> None:
        """Try the calls that wait: a worker or a route has come."""
        now_s = time.monotonic()
        for call in list(self._waiting):
            conn = self._pick_for(call)
            if conn is not None:
                self._waiting.pop(call, None)
                conn.send(call, now_s)
        self._start_for_waiting(now_s)

    def _start_for_waiting(self, now_s: float) -> None:
        first_s: dict[Ref, float] = {}
        for call in self._waiting:
            first_s[call.ref] = min(call.deadline_s, first_s.get(call.ref, math.inf))
        for ref, deadline_s in first_s.items():
            self._start_for(ref, now_s, deadline_s)

    def on_broken(self, call: Call) -> None:
        """Try a call once more whose worker broke before it answered.

        One that waited for a load that its worker did not survive is tried wherever it may wake.
        """
        if call.future.done():
            return
        engine = self._engines.get(call.ref)
        was_warm = engine is not None and call.conn is not None and call.conn.id in engine.warm
        call.conn = None
        if call.has_parts or call.sent > (LOST_RETRIES if was_warm else HELD_RETRIES):
            call.fail(WorkerLost("the worker that had this call broke"))
            return
        self.retries += 1
        self.start(call)

    def on_draining(self, conn: WorkerConn) -> None:
        """Send nothing more over `conn`, and dial whoever takes the worker's place.

        Until the routes know of one, that is done for a call only: the worker may be told to rest.
        The worker waits for us to hang up, which the sweep does after the last answer.
        """
        if self._conns.get(conn.id) is conn:
            self._conns[conn.id] = WorkerConn(self, conn.route, has_left=not conn.has_heir)
            self._leaving.add(conn)
            conn.leave()

    def on_returned(self, call: Call) -> None:
        """Send a call elsewhere that its worker gave back: it never ran."""
        call.conn = None
        call.sent -= 1
        self.returns += 1
        self.start(call)

    async def sweep_forever(self) -> None:
        """Give a timer to every call whose deadline comes before the next look.

        One for each call from its start would cost more than most calls do.
        """
        while True:
            await asyncio.sleep(SWEEP_S)
            for conn in [conn for conn in self._leaving if not conn.calls]:
                self._leaving.discard(conn)
                conn.close()
            self._start_for_waiting(time.monotonic())
            until_s = time.monotonic() + 2 * SWEEP_S  # the next look may be late
            for call in [c for c in self._waiting if c.deadline_s < until_s]:
                self._expire_at(call, call.deadline_s)
            for conn in (*self._conns.values(), *self._leaving):
                if conn.calls:
                    near = [c for c in conn.calls.values() if c.deadline_s + LATE_S < until_s]
                    for call in near:
                        self._expire_at(call, call.deadline_s + LATE_S)

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
            why = "can be reached" if call.ref in self._engines else "knows this model yet"
            text = f"no worker of the pool {why}"
            self.cancel(call, Unavailable(text, retry_after_s=jittered(1.0)))
        else:
            self.cancel(call, DeadlineExceeded("no answer before the deadline"))

    async def close(self) -> None:
        """Close every connection."""
        for conn in (*self._conns.values(), *self._leaving):
            conn.close()
        self._conns.clear()
        self._leaving.clear()
