"""The connection to one worker: dials it, sends calls, and ends them with what it answers.

One connection carries many calls at a time, large inputs through memory that is shared with a
worker of this host.  Where a call goes whose worker broke or gave it back is its owner's decision.

A worker that says how often it speaks and then does not is silent: it hangs, or the network does.
It is sent nothing new, and its connection is kept: if it speaks again it is up again.  One that is
silent for long is hung up on and dialled anew; it has to greet before it is sent anything.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Sequence
from typing import Protocol

import msgspec
import structlog

from edge.dispatching.calls import Answer, Call, refusal_of
from edge.dispatching.given_up import GivenUp
from edge.dispatching.late_bills import LateBills
from edge.dispatching.starting import START_S_MAX, needs_call
from edge.errors import TooLarge, WorkerLost
from pool.wire import data
from pool.wire.arena import PLACE_BYTES_MIN, Arena
from pool.wire.control import WorkerRoute
from pool.wire.data import TensorHead
from pool.wire.frames import Buffer, WireError, padded
from pool.wire.handshake import Secrets
from pool.wire.peer import DIAL_S_MAX, Address, Peer, dial

REDIAL_S_MIN = 0.02
REDIAL_S_MAX = 0.25  # who came back is not kept waiting; who is gone leaves the routes
STEADY_S = 1.0  # after a connection that lasted so long the next one is dialled almost at once
SILENT_BEATS = 2.9  # a worker of which so many reports in a row are missing is silent
LOST_BEATS = 20  # and after so many its connection is given up
RETURNS_MAX = 8  # a call is sent again so often when a worker gave it back, because it never ran

_log = structlog.get_logger()


class Silent(WireError):
    """A worker that does not speak any more; it may live."""


class Owner(Protocol):
    """Whose connections these are: who dials, and who is told what becomes of them."""

    edge_id: str
    secrets: Secrets | None

    def on_greeted(self, conn: WorkerConn) -> None:
        """The worker has said which process it is."""

    def on_up(self) -> None:
        """A worker can be called now."""

    def on_lost(self, conn: WorkerConn, calls: Sequence[Call], error: Exception | None) -> None:
        """The worker broke before it answered these calls; some may have been cancelled."""

    def on_ran(self, call: Call) -> None:
        """A call that was to run alone has run to its end."""

    def on_ended(self, call: Call, conn: WorkerConn, reply: data.Reply) -> None:
        """A call that is watched was answered."""

    def on_helped(self, call: Call) -> None:
        """A fallback worker has answered a call."""

    def on_silent(self, conn: WorkerConn) -> None:
        """The worker has gone silent just now."""

    def on_returned(self, call: Call) -> None:
        """The worker of `call` gave it back: it never ran."""

    def on_draining(self, conn: WorkerConn) -> None:
        """The worker takes nothing new, and waits for us to hang up."""


class WorkerConn:
    """The connection to one worker, redialled for a while when it is lost.

    One that `needs_call` is dialled once per `start` or `want`.

    Args:
        owner: whose it is.
        worker: what the routes say of the worker.
        has_left: its process said that it drains: it is cold until newer routes say otherwise.
    """

    def __init__(self, owner: Owner, worker: WorkerRoute, *, has_left: bool = False) -> None:
        self.id = worker.id
        self.address = worker.address
        self.route = worker
        self.is_cold = has_left or worker.state == "cold"
        self.is_fallback = worker.is_fallback
        self._owner = owner
        # The whole mutable state: the connection once the worker has spoken on it, and before; the
        # memory shared over it; the calls it carries; the last load report.
        self.peer: Peer | None = None
        self._dialled: Peer | None = None
        self._offered: Arena | None = None
        self._arena: Arena | None = None  # once the worker looks into it
        self.calls: dict[int, Call] = {}
        self._given_up = GivenUp()  # of these
        self._late_bills = LateBills()
        self.device = ""  # of the worker, as its time is counted; empty: it has not said
        self.wait_us = 0
        self.is_silent = False
        self._silent_s_min = math.inf  # as long as the worker never is while it lives
        self._reads = 0
        self.heard_s = time.monotonic()  # or made
        self.incarnation = ""  # of the process that has spoken
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
        return self.peer is not None and self.peer.is_open and not self.is_silent

    @property
    def tells_begin(self) -> bool:
        """Tell whether the worker says it of a call that is to run alone; older ones know none."""
        return self._silent_s_min < math.inf

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
        call.has_begun = call.is_only = False
        call.is_helped = self.is_fallback
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
            call.shadow if call.sent == 1 and not self.is_fallback else (),
            call.tenant,
            call.share,
            call.alone,
            call.traceparent,
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
            self._given_up.add(call, time.monotonic())
            self._late_bills.add(call.id, call.device_us)

    def close(self) -> None:
        """Stop redialling; calls under way fail as if the worker had broken."""
        self._task.cancel()
        if self._dialled is not None:
            self._dialled.close()

    def follow(self, worker: WorkerRoute) -> None:
        """Go by what newer routes say of the worker."""
        self.route = worker
        self.is_cold, self.is_fallback = worker.state == "cold", worker.is_fallback
        self.has_heir = self.is_up and worker.incarnation != self.incarnation
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

    def listen(self, now_s: float, stalled_s: float) -> None:
        """Notice whether the worker has gone silent, or speaks again; to be called often.

        Args:
            now_s: monotonic.
            stalled_s: for so long this process has heard nobody, by its own fault.
        """
        peer = self.peer
        if peer is None:
            return
        self.heard_s += stalled_s
        if peer.reads != self._reads or not self.tells_begin:
            self._reads, self.heard_s = peer.reads, now_s
            if self.is_silent:
                self._set_silent(None)
                _log.info("worker_speaks", worker=self.id)
                self._owner.on_up()
        elif not self.is_silent:
            if now_s - self.heard_s >= self._silent_s_min:
                self._set_silent(now_s)
                _log.warning("worker_silent", worker=self.id, calls=len(self.calls))
                self._owner.on_silent(self)
        elif now_s - self.heard_s >= self._silent_s_min * LOST_BEATS / SILENT_BEATS:
            peer.close(Silent("it has gone silent"))

    def _set_silent(self, since_s: float | None) -> None:
        self.is_silent = since_s is not None
        self.dialled_s = since_s  # for a while nobody is started in its place

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
                peer = await dial(Address.parse(self.address), self._owner.secrets, s_max=s_max)
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
        hello = data.Hello(data.WIRE, "edge", self._owner.edge_id, "")
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
        self._silent_s_min = hello.load_ms / 1000 * SILENT_BEATS or math.inf
        self.heard_s = time.monotonic()
        self.incarnation = hello.incarnation
        self.device = hello.device
        self._wanted.clear()
        self.dialled_s = None
        self.peer = self._dialled
        if hello.arena_bytes:
            self._arena = self._offered
        self._owner.on_greeted(self)
        self._owner.on_up()

    def _on_lost(self, error: Exception | None) -> None:
        self.peer = self._dialled = self._arena = None
        self.is_silent = False
        if self._offered is not None:
            self._offered.close()
            self._offered = None
        self._lost.set()
        self._unreached()
        calls, self.calls = self.calls, {}
        self._late_bills.clear()
        if calls:
            _log.warning("worker_lost", worker=self.id, calls=len(calls), error=str(error or ""))
        gone = [*calls.values(), *self._given_up.take(self, time.monotonic())]
        if gone:
            self._owner.on_lost(self, gone, error)

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        if type(message) is data.Reply:
            self.wait_us = message.wait_us
            call = self.calls.pop(message.call_id, None)
            if message.device_us:
                self._count(call, message)
            if call is not None and not call.future.done():
                self._settle(call, message, body)
        elif type(message) is data.Chunk:
            call = self.calls.get(message.call_id)
            if call is not None and call.on_chunk is not None and not call.future.done():
                call.has_parts = True
                call.on_chunk(data.tensors(message.outputs, body))
        elif type(message) is data.Began:
            call = self.calls.get(message.call_id)
            self._given_up.began(message.call_id, is_only=message.is_only)
            if call is not None:
                call.has_begun, call.is_only = True, message.is_only
        elif type(message) is data.Progress:
            call = self.calls.get(message.call_id)
            if call is not None and call.on_held is not None:
                call.on_held(message.phase, message.left_us / 1e6)
        elif type(message) is data.Load:
            self.wait_us = message.wait_us
            if message.draining:
                self._owner.on_draining(self)
        elif type(message) is data.Release and self._arena is not None:
            self._arena.released(message.places)
        elif type(message) is data.Hello:
            self._greeted(message)
        else:
            raise WireError(f"a worker does not send {type(message).__name__}")

    def _count(self, call: Call | None, reply: data.Reply) -> None:
        """Count what a call has had of the device, also one that has ended before its run."""
        payer = self._late_bills.take(reply.call_id) if call is None else call.device_us
        if payer is not None:
            payer[self.device] = payer.get(self.device, 0) + reply.device_us

    def _settle(self, call: Call, reply: data.Reply, body: Buffer) -> None:
        if call.on_chunk is not None and reply.status != 200:
            self._late_bills.add(call.id, call.device_us)  # a stream's run goes on for a moment
        if call.has_begun and reply.status != WorkerLost.status:
            self._owner.on_ran(call)
        if call.is_watched:
            self._owner.on_ended(call, self, reply)
        if reply.status == 200:
            try:
                outputs = data.tensors(reply.outputs, body)
            except WireError:
                call.fail(WorkerLost("the worker's answer could not be read"))
                raise
            if self.is_fallback:
                self._owner.on_helped(call)
            call.succeed(Answer(outputs, reply.queue_us, reply.infer_us, reply.batch_rows))
        elif reply.not_run and len(call.gave_back) < RETURNS_MAX:
            call.gave_back += (self,)
            self._owner.on_returned(call)
        elif reply.status == WorkerLost.status:
            # Its process lost the device, and ends: as good as dead, and maybe of this call.
            call.gave_back += (self,)
            self._owner.on_lost(self, [call], None)
        else:
            call.fail(refusal_of(reply))
