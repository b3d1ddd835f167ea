"""The worker's side of the data wire: calls of one edge in, replies out.

Owns what is between a frame and a ticket, and between an outcome and a frame.  Knows neither how
engines are loaded nor the controller.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
import structlog

from pool.arrays import BadTensor, to_array, to_tensors
from pool.engines.base import Tensors, reason_of
from pool.loaded import Loaded
from pool.queueing.alone import Visitor
from pool.queueing.inside import Inside
from pool.queueing.ticket import (
    ROWS_UNBOUNDED,
    Answer,
    Begin,
    Failed,
    Outcome,
    Overdue,
    Returned,
    Ticket,
    Traced,
)
from pool.queueing.traced import end_span
from pool.shadow import Shadows
from pool.slots import EngineSlot
from pool.turn import Turn
from pool.wire import data
from pool.wire.arena import ArenaView
from pool.wire.data import Tensor
from pool.wire.frames import Buffer, WireError, padded
from pool.wire.peer import Peer
from registry_sync.documents import PRIORITY_DEFAULT
from registry_sync.names import BadName
from registry_sync.tracing import Span, Tracing

RETRY_AFTER_MS = 1000  # of a refusal that may pass
GONE = 499  # nobody waited for the call any more when its run was over
FULL = {
    429: "this key's tenant has more bytes waiting than its part; send fewer at a time",
    503: "the worker's queues are full",
}
DETAIL_CHARS_MAX = 1000  # well within what the wire takes, in any script
PHASE_CHARS_MAX = 64

_log = structlog.get_logger(__name__)


class Served:
    """One call of one edge, from its frame to its reply; see `pool.slots.Waiting`."""

    __slots__ = (
        "arrived_s", "call", "deadline_s", "device_us", "edge", "seq", "size_bytes", "slot",
        "span", "tensors", "ticket",
    )  # fmt: skip

    def __init__(
        self,
        edge: EdgePeer,
        call: data.Call,
        tensors: list[Tensor],
        size_bytes: int,
        slot: EngineSlot,
    ) -> None:
        self.edge = edge
        self.call = call
        self.tensors = tensors
        self.size_bytes = size_bytes
        self.slot = slot
        self.arrived_s = time.monotonic()
        self.deadline_s = self.arrived_s + call.time_left_us / 1e6
        self.ticket: Ticket | None = None
        self.seq = 0
        self.device_us = 0  # of the runs that it was part of
        self.span: Span | None = edge.begin_span(call, self.arrived_s)

    @property
    def insists(self) -> bool:
        """Tell whether no other worker is to be asked."""
        return self.call.insists

    def make_ticket(self, loaded: Loaded) -> Ticket:
        """Return the call's ticket; one that does not fit the engine is settled already."""
        call, tensors = self.call, self.tensors
        inputs: Tensors = {}
        problem: Failed | None = None
        try:
            for tensor in tensors:
                inputs[tensor.name] = to_array(tensor)
        except BadTensor as error:
            problem = Failed(400, str(error))
        if loaded.digest != call.digest:
            problem = Failed(503, "the worker has another artifact of this version")
        is_batched = loaded.manifest.rows_max > 1 and bool(tensors) and bool(tensors[0].shape)
        self.ticket = ticket = Ticket(
            rows=max(1, tensors[0].shape[0]) if is_batched else 1,
            # Nobody is of the shape of a call that is to run alone.
            shape_key=object() if call.alone else tuple([(t.name, t.shape[1:]) for t in tensors]),
            arrived_s=self.arrived_s,
            deadline_s=self.deadline_s,
            inputs=inputs,
            on_settled=self.settle,
            outputs=call.outputs,
            priority=call.priority or PRIORITY_DEFAULT,
            rows_max=call.rows_max or ROWS_UNBOUNDED,
            bytes=self.size_bytes,
            on_chunk=self._chunk if call.stream else None,
            tenant=call.tenant,
            share=call.share,
            on_alone=self._begin_alone if call.alone else None,
            on_device=self._has_had,
        )
        if self.span is not None and self.edge.tracing is not None:
            ticket.trace = Traced(self.edge.tracing, self.span)
        if problem is not None:
            ticket.settle(problem)
        return ticket

    def _has_had(self, device_us: int) -> None:
        """Take its part of a run; if it has ended before, the edge hears of that by itself."""
        self.device_us += device_us
        if self.ticket is None and device_us:
            call_id, wait_us = self.call.call_id, self.slot.wait_us
            late = data.Reply(call_id, GONE, wait_us=wait_us, device_us=device_us)
            self.edge.peer.send(data.encode(late))

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self.ticket is None:
            if self.slot.forget(self):
                self.settle(None)
        else:
            self.slot.cancel(self.ticket)

    def settle(self, outcome: Outcome | None) -> None:
        """Reply; None and a cancelled ticket need no reply."""
        # Call and ticket point at one another; left so, only the collector would free them.  And a
        # timer may know the call until its deadline, which must not keep its tensors.
        self.ticket = None
        tensors, self.tensors = self.tensors, []
        self.edge.ended(self)
        if self.span is not None:
            end_span(self.span, outcome)
        match outcome:
            case Answer():
                self._answer(outcome, tensors)
            case Failed(status, detail, retry_after_s):
                self.refuse(
                    status, detail, int(retry_after_s * 1000) if status in (429, 503) else 0
                )
            case Overdue(was_shed=True):
                self.refuse(503, "overloaded: the deadline cannot be met", RETRY_AFTER_MS)
            case Returned(why):
                self.refuse(503, why, RETRY_AFTER_MS, not_run=True)
            case Overdue():
                self.refuse(504, "the deadline passed while the call waited")

    def _begin_alone(self, begin: Begin) -> None:
        """Let a run begin once nothing else goes on in this process, and the edge can learn of it.

        Whatever becomes of this process then, the edge will know by which run.  Nothing else begins
        before the edge can know as well that it has ended.
        """
        peer, gate, call_id = self.edge.peer, self.edge.alone, self.call.call_id

        def say(is_only: bool, then: Callable[[], None]) -> None:
            peer.send(data.encode(data.Began(call_id, is_only)))
            peer.when_written(then)

        def over() -> None:
            if self.ticket is None:  # no answer will follow
                peer.send(data.encode(data.Began(call_id, is_only=False)))
            peer.when_written(gate.leave)

        gate.enter(
            Visitor(
                begin=lambda is_only: say(is_only, lambda: begin(over)),
                crowd=lambda then: say(False, then),
                patience_s=(self.deadline_s - time.monotonic()) / 2,
            )
        )

    def held(self, phase: str, left_s: float) -> None:
        """Tell the edge, if its client is to know, what a load is doing that the call waits for."""
        call = self.call
        if call.progress:
            progress = data.Progress(call.call_id, phase[:PHASE_CHARS_MAX], int(left_s * 1e6))
            self.edge.peer.send(data.encode(progress))

    def _answer(self, answer: Answer, inputs: list[Tensor]) -> None:
        slot, call_id = self.slot, self.call.call_id
        loaded = slot.loaded
        if loaded is None:
            self.refuse(503, "the engine was unloaded", RETRY_AFTER_MS)
            return
        try:
            tensors = to_tensors(answer.outputs, loaded.datatypes)
            reply = data.Reply(
                call_id,
                200,
                "",
                data.heads(tensors),
                int(answer.queue_s * 1e6),
                int(answer.infer_s * 1e6),
                answer.batch_rows,
                slot.wait_us,
                device_us=self.device_us,
            )
            buffers = data.encode(reply, tensors)
        except BadTensor as error:
            self.refuse(500, f"the model failed: {error}")
        except ValueError as error:  # larger than a frame may be
            self.refuse(500, f"the model's answer is too large: {error}")
        except Exception as error:
            # An engine may answer anything; whatever it was, the call must have its end.
            self.refuse(500, f"the model failed: {reason_of(error)}")
        else:
            self.edge.peer.send(buffers)
            if self.call.shadow and not self.call.stream:
                self.edge.shadows.offer(self.call, inputs, answer, loaded)

    def _chunk(self, outputs: Tensors) -> Awaitable[None] | None:
        """Send a part; return what the next ones must wait for."""
        loaded, ticket = self.slot.loaded, self.ticket
        if loaded is None or ticket is None:
            return None
        try:
            tensors = to_tensors(outputs, loaded.datatypes)
            chunk = data.Chunk(self.call.call_id, self.seq, data.heads(tensors))
            buffers = data.encode(chunk, tensors)
        except Exception as error:
            # As above; the stream ends here.
            self.refuse(500, f"the model failed: {reason_of(error)}")
            self.cancel()
            return None
        self.seq += 1
        self.edge.peer.send(buffers)
        return self.edge.peer.behind

    def refuse(
        self, status: int, detail: str, retry_after_ms: int = 0, *, not_run: bool = False
    ) -> None:
        """Reply without outputs."""
        reply = data.Reply(
            self.call.call_id,
            status,
            detail[:DETAIL_CHARS_MAX],
            wait_us=self.slot.wait_us,
            retry_after_ms=retry_after_ms,
            not_run=not_run,
            device_us=self.device_us,
        )
        self.edge.peer.send(data.encode(reply))


class EdgePeer:
    """A connected edge and the calls it waits for.

    Args:
        hello: this worker's first message.
        slot_of: finds the place of a version; raises `BadName`.
        inside: what all edges together have inside.
        turn: where the engines' queues put their next steps.
        shadows: takes calls that somebody else is to answer as well.
        on_lost: called when the connection is gone.
        tracing: where spans of traced calls go.
    """

    def __init__(
        self,
        peer: Peer,
        hello: data.Hello,
        slot_of: Callable[[str, str], EngineSlot],
        inside: Inside,
        turn: Turn,
        shadows: Shadows,
        on_lost: Callable[[EdgePeer], None],
        tracing: Tracing | None = None,
    ) -> None:
        self.peer = peer
        self._hello = hello
        self._slot_of = slot_of
        self._inside = inside
        self._turn = turn
        self.alone = turn.alone
        self.shadows = shadows
        self.tracing = tracing
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        # The whole mutable state: the calls that are not replied to yet, the memory that the edge
        # shares with us, and whether it is to send no more.
        self.calls: dict[int, Served] = {}
        self._arena: ArenaView | None = None
        self._is_leaving = False
        peer.on_frame = self._frame
        peer.on_read = turn.end
        peer.on_lost = self._lost

    def leave(self) -> None:
        """Ask the edge to send no more and to hang up once its calls are answered."""
        self._is_leaving = True
        self.peer.send(data.encode(data.Load(0, len(self.calls), draining=True)))

    def begin_span(self, call: data.Call, now_s: float) -> Span | None:
        """Begin the span of a call, as part of its edge's; None: it is not traced."""
        if self.tracing is None or not call.traceparent:
            return None
        return self.tracing.begin(
            "call",
            "server",
            call.traceparent,
            now_s,
            {"tidepool.model": call.model, "tidepool.version": call.version},
        )

    def ended(self, served: Served) -> None:
        """Take note that a call needs no place any more."""
        if self.calls.pop(served.call.call_id, None) is not None:
            self._inside.remove(served.call.tenant, served.size_bytes)

    def _lost(self, error: Exception | None) -> None:
        self._on_lost(self)
        for served in list(self.calls.values()):
            served.cancel()

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        if type(message) is data.Call:
            self._turn.begin()
            if message.arena_at:
                body = self._look(message)
            self._call(message, data.tensors(message.inputs, body))
        elif type(message) is data.Cancel:
            served = self.calls.get(message.call_id)
            if served is not None:
                served.cancel()
        elif type(message) is data.Hello:
            if message.wire != data.WIRE:
                raise WireError(f"this worker speaks wire {data.WIRE}, not {message.wire}")
            self._map_arena(message)
            taken_bytes = 0 if self._arena is None else self._arena.size_bytes
            hello = msgspec.structs.replace(self._hello, arena_bytes=taken_bytes)
            self.peer.send(data.encode(hello))
            if self._is_leaving:
                self.leave()  # again: only now does it send anything
        else:
            raise WireError(f"an edge does not send {type(message).__name__}")

    def _map_arena(self, hello: data.Hello) -> None:
        """Look into the memory that the edge offers, if that can be done."""
        pid = self.peer.local_pid
        if hello.arena_bytes == 0 or pid is None or self._arena is not None:
            return
        try:
            self._arena = ArenaView(pid, hello.arena_fd, hello.arena_bytes)
        except (OSError, WireError) as error:
            _log.info("arena_not_shared", edge=hello.id, reason=str(error))

    def _look(self, call: data.Call) -> Buffer:
        """Return a call's tensors as they lie in the arena."""
        if self._arena is None:
            raise WireError("a call refers to an arena, and none was taken")
        size_bytes = sum([padded(head.bytes) for head in call.inputs])
        return self._arena.look(call.arena_at, size_bytes, self._released_soon)

    def _released_soon(self) -> None:
        """Some place of the arena is free, as any thread may find out."""
        try:
            self._loop.call_soon_threadsafe(self._release)
        except RuntimeError:
            pass  # the loop has ended, and with it the connection

    def _release(self) -> None:
        places = () if self._arena is None else self._arena.take_released()
        if places:
            self.peer.send(data.encode(data.Release(places)))

    def _call(self, call: data.Call, tensors: list[Tensor]) -> None:
        if call.call_id in self.calls:
            raise WireError(f"call {call.call_id} is under way already")
        try:
            slot = self._slot_of(call.model, call.version)
        except BadName as error:
            self.peer.send(data.encode(data.Reply(call.call_id, 404, str(error))))
            return
        size_bytes = 0
        for tensor in tensors:
            size_bytes += len(tensor.data)
        inside = self._inside
        inside.arrivals += 1
        served = Served(self, call, tensors, size_bytes, slot)
        refusal = inside.refusal(call.tenant, size_bytes)
        if refusal:
            served.refuse(refusal, FULL[refusal], RETRY_AFTER_MS)
            return
        inside.add(call.tenant, size_bytes)
        self.calls[call.call_id] = served
        slot.submit(served)
