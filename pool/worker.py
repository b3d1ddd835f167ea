"""A worker process: one device slot, several engines, calls from edges in and answers out.

Owns the data wire's server side, the slots of its engines, and its connection to the controller.
What an engine does next is decided in `batching`; when an engine is loaded, by calls and by the
controller's commands.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import secrets as random_secrets
import signal
import sys
import time
from pathlib import Path

import msgspec
import structlog
import uvloop

from pool.arrays import BadTensor, to_array, to_tensors
from pool.config import WorkerConfig
from pool.controller_address import finder
from pool.engines.base import Engine, EngineError, Tensors
from pool.engines.registry import BadEngineName, engine_for, find_engines
from pool.slots import CannotLoad, EngineSlot, Loaded, Waiting, load_session
from pool.ticket import Answer, Cancelled, Failed, Outcome, Overdue, Ticket
from pool.wire import control, data
from pool.wire.control import Command, EngineState, Heartbeat, RegisterWorker
from pool.wire.fleet_secret import load_secrets
from pool.wire.frames import Buffer, WireError
from pool.wire.handshake import Secrets
from pool.wire.link import ControlLink
from pool.wire.peer import Address, Peer, Server, serve
from registry_sync.client import SyncError, fetch_via
from registry_sync.local import LocalStore
from registry_sync.logs import configure
from registry_sync.names import BadName, check_name, check_version
from registry_sync.sync import present

HEARTBEAT_S = 0.5
LOAD_REPORT_S = 0.1
SWEEP_S = 0.02
SLOTS_MAX = 4096  # versions that one worker has ever been asked for
REJECT_RETRY_MS = 1000
STREAM_BYTES_MAX = 8 << 20  # unsent parts of a stream, after which its engine waits

_log = structlog.get_logger()


class _Served:
    """One call of one edge, from its frame to its reply."""

    __slots__ = ("call_id", "peer", "seq", "slot", "ticket", "waiting")

    def __init__(self, peer: _EdgePeer, call_id: int, slot: EngineSlot) -> None:
        self.peer = peer
        self.call_id = call_id
        self.slot = slot
        self.waiting: Waiting | None = None
        self.ticket: Ticket | None = None
        self.seq = 0

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        if self.ticket is not None:
            if self.slot.queue is not None:
                self.slot.queue.cancel(self.ticket)
        elif self.waiting is not None:
            self.slot.forget(self.waiting)


class _EdgePeer:
    """A connected edge and the calls it waits for."""

    def __init__(self, worker: Worker, peer: Peer) -> None:
        self._worker = worker
        self.peer = peer
        self.calls: dict[int, _Served] = {}
        peer.on_frame = self._frame
        peer.on_lost = self._on_lost

    def _on_lost(self, error: Exception | None) -> None:
        self._worker.peers.discard(self)
        calls, self.calls = self.calls, {}
        for served in calls.values():
            served.cancel()

    def _frame(self, header: bytes, body: Buffer) -> None:
        message = data.decode(header)
        if type(message) is data.Call:
            self._call(message, data.tensors(message.inputs, body))
        elif type(message) is data.Cancel:
            served = self.calls.pop(message.call_id, None)
            if served is not None:
                served.cancel()
        elif type(message) is data.Hello:
            if message.wire != data.WIRE:
                raise WireError(f"this worker speaks wire {data.WIRE}, not {message.wire}")
            self.peer.send(data.encode(self._worker.hello()))
        else:
            raise WireError(f"an edge does not send {type(message).__name__}")

    def _call(self, call: data.Call, tensors: list[data.Tensor]) -> None:
        if call.call_id in self.calls:
            raise WireError(f"call {call.call_id} is under way already")
        worker = self._worker
        size_bytes = sum([len(tensor.data) for tensor in tensors])
        try:
            slot = worker.slot(call.model, call.version)
        except BadName as error:
            self.refuse(call.call_id, 404, str(error))
            return
        if worker.bytes_inside + size_bytes > worker.config.queue_bytes_max:
            self.refuse(call.call_id, 503, "the worker's queues are full", REJECT_RETRY_MS)
            return
        served = _Served(self, call.call_id, slot)
        now_s = time.monotonic()
        waiting = Waiting(
            now_s,
            now_s + call.time_left_us / 1e6,
            lambda loaded: self._ticket(served, call, tensors, size_bytes, loaded),
            functools.partial(self._settled, served, size_bytes),
        )
        served.waiting = waiting
        self.calls[call.call_id] = served
        worker.bytes_inside += size_bytes
        slot.submit(waiting)

    def _ticket(
        self,
        served: _Served,
        call: data.Call,
        tensors: list[data.Tensor],
        size_bytes: int,
        loaded: Loaded,
    ) -> Ticket:
        """Make the ticket of a call whose engine is warm.

        What does not fit the engine becomes a ticket that was settled before it is submitted.
        """
        waiting = served.waiting
        assert waiting is not None
        inputs: Tensors = {}
        problem: Failed | None = None
        try:
            for tensor in tensors:
                inputs[tensor.name] = to_array(tensor)
        except BadTensor as error:
            problem = Failed(400, str(error))
        if loaded.digest != call.digest:
            problem = Failed(503, "the worker has another artifact of this version")
        first = tensors[0].shape if tensors else ()
        is_batched = loaded.manifest.rows_max > 1 and len(first) > 0
        ticket = Ticket(
            rows=max(1, first[0]) if is_batched else 1,
            shape_key=tuple([(t.name, t.shape[1:]) for t in tensors]),
            arrived_s=waiting.arrived_s,
            deadline_s=waiting.deadline_s,
            inputs=inputs,
            on_settled=waiting.settle,
            outputs=call.outputs,
            priority=call.priority,
            bytes=size_bytes,
            on_chunk=functools.partial(self._chunk, served) if call.stream else None,
        )
        served.ticket = ticket
        if problem is not None:
            ticket.settle(problem)
        return ticket

    def _settled(self, served: _Served, size_bytes: int, outcome: Outcome) -> None:
        self._worker.bytes_inside -= size_bytes
        self.calls.pop(served.call_id, None)
        if isinstance(outcome, Answer):
            self._answer(served, outcome)
        elif isinstance(outcome, Failed):
            retry_ms = REJECT_RETRY_MS if outcome.status == 503 else 0
            self.refuse(served.call_id, outcome.status, outcome.detail, retry_ms)
        elif isinstance(outcome, Overdue):
            if outcome.was_shed:
                self.refuse(
                    served.call_id, 503, "overloaded: the deadline cannot be met", REJECT_RETRY_MS
                )
            else:
                self.refuse(served.call_id, 504, "the deadline passed while the call waited")
        else:
            assert isinstance(outcome, Cancelled)

    def _answer(self, served: _Served, answer: Answer) -> None:
        loaded = served.slot.loaded
        if loaded is None:
            self.refuse(served.call_id, 503, "the engine was unloaded", REJECT_RETRY_MS)
            return
        datatypes = {spec.name: spec.datatype for spec in loaded.session.outputs}
        try:
            tensors = to_tensors(answer.outputs, datatypes)
        except BadTensor as error:
            self.refuse(served.call_id, 500, f"the model failed: {error}")
            return
        reply = data.Reply(
            served.call_id,
            200,
            "",
            data.heads(tensors),
            int(answer.queue_s * 1e6),
            int(answer.infer_s * 1e6),
            answer.batch_rows,
            served.slot.wait_us,
        )
        self._send(served.call_id, reply, tensors)

    def _chunk(self, served: _Served, outputs: Tensors) -> None:
        loaded = served.slot.loaded
        if loaded is None:
            return
        datatypes = {spec.name: spec.datatype for spec in loaded.session.outputs}
        tensors = to_tensors(outputs, datatypes)
        chunk = data.Chunk(served.call_id, served.seq, data.heads(tensors))
        served.seq += 1
        self.peer.send(data.encode(chunk, tensors))

    def _send(self, call_id: int, reply: data.Reply, tensors: list[data.Tensor]) -> None:
        try:
            buffers = data.encode(reply, tensors)
        except ValueError as error:  # larger than a frame may be
            self.refuse(call_id, 500, f"the model's answer is too large: {error}")
            return
        self.peer.send(buffers)

    def refuse(self, call_id: int, status: int, detail: str, retry_after_ms: int = 0) -> None:
        """Answer without outputs."""
        self.calls.pop(call_id, None)
        reply = data.Reply(call_id, status, detail[:4000], retry_after_ms=retry_after_ms)
        self.peer.send(data.encode(reply))


class Worker:
    """The whole of one worker process."""

    def __init__(
        self, config: WorkerConfig, engines: tuple[Engine, ...], secrets: Secrets | None
    ) -> None:
        self.config = config
        self.secrets = secrets
        self.incarnation = random_secrets.token_hex(8)
        # The whole mutable state: edges, slots, the bytes of calls inside, and whether we drain.
        self.peers: set[_EdgePeer] = set()
        self.bytes_inside = 0
        self.is_draining = False
        self._slots: dict[tuple[str, str], EngineSlot] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported_us = 0
        self._engines = engines
        self._local = LocalStore(Path(config.data) / "store")
        self.link = ControlLink(
            finder(config.controller, config.sync_socket),
            secrets,
            self._register,
            self._on_control,
        )

    def hello(self) -> data.Hello:
        """Return this worker's first message to an edge."""
        return data.Hello(data.WIRE, "worker", self.config.id, self.incarnation)

    def slot(self, model: str, version: str) -> EngineSlot:
        """Return the slot of a version; raises `BadName`."""
        slot = self._slots.get((model, version))
        if slot is None:
            ref = (check_name("model", model), check_version(version))
            if len(self._slots) >= SLOTS_MAX:
                self._slots = {r: s for r, s in self._slots.items() if s.state != "cold"}
            slot = self._slots[ref] = EngineSlot(*ref, self._load, self._changed)
        return slot

    def on_peer(self, peer: Peer) -> None:
        """Take a connection from an edge."""
        self.peers.add(_EdgePeer(self, peer))

    async def _load(self, model: str, version: str) -> Loaded:
        """Bring the artifact to this node and make it runnable."""
        manifest = await asyncio.to_thread(present, self._local, model, version)
        if manifest is None:
            try:
                await fetch_via(self.config.sync_socket, model, version)
            except (SyncError, OSError) as error:
                raise CannotLoad(str(error)) from None
            manifest = await asyncio.to_thread(present, self._local, model, version)
            if manifest is None:
                raise CannotLoad(f"{model} version {version} was brought and is not there")
        try:
            engine = engine_for(self._engines, manifest.format)
        except EngineError as error:
            raise CannotLoad(str(error)) from None
        found = manifest
        threads = self.config.threads

        def load() -> Loaded:
            folder = self._local.folder_of(found)
            session = load_session(lambda: engine.load(folder, found, threads))
            return Loaded(found, found.digest, session, engine.name)

        return await asyncio.to_thread(load)

    # the controller

    def _register(self) -> control.Message:
        return RegisterWorker(
            control.WIRE,
            self.config.id,
            self.incarnation,
            os.getpid(),
            self.config.advertise or self.config.listen,
            "cpu",
            self._states(),
        )

    def _states(self) -> tuple[EngineState, ...]:
        now_s = time.monotonic()
        return tuple(
            EngineState(
                slot.model,
                slot.version,
                slot.loaded.engine if slot.loaded else "",
                slot.state,
                slot.loaded.session.memory_bytes if slot.loaded else 0,
                slot.calls,
                0.0 if slot.calls else now_s - slot.used_s,
                slot.detail[:1000],
                slot.loads,
            )
            for slot in self._slots.values()
            if slot.state != "cold"
        )

    def _changed(self) -> None:
        """An engine's state is another one: routes depend on it, so say so now."""
        self._heartbeat()

    def _heartbeat(self) -> None:
        calls = sum(slot.calls for slot in self._slots.values())
        self.link.send(Heartbeat(self._wait_us(), calls, self._states(), self.is_draining))

    def _wait_us(self) -> int:
        return max((slot.wait_us for slot in self._slots.values()), default=0)

    def _on_control(self, message: control.Message) -> None:
        if isinstance(message, Command):
            try:
                slot = self.slot(message.model, message.version)
            except BadName as error:
                raise WireError(str(error)) from None
            if message.op == "load" and not self.is_draining:
                slot.ensure()
            elif message.op == "unload" and not slot.calls:
                task = asyncio.get_running_loop().create_task(slot.unload())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    # rounds

    async def beat_forever(self) -> None:
        """Show the controller that we live."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._heartbeat()

    async def sweep_forever(self) -> None:
        """End what waits too long for a load, and report a load that has changed."""
        next_report_s = 0.0
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = time.monotonic()
            for slot in self._slots.values():
                slot.expire(now_s)
            if now_s >= next_report_s:
                next_report_s = now_s + LOAD_REPORT_S
                wait_us = self._wait_us()
                if wait_us != self._reported_us:
                    self._reported_us = wait_us
                    calls = sum(slot.calls for slot in self._slots.values())
                    for edge in self.peers:
                        edge.peer.send(data.encode(data.Load(wait_us, calls)))

    async def drain(self, lame_duck_s: float, drain_s_max: float) -> None:
        """Leave the routes, keep serving for a while, let what is inside end."""
        self.is_draining = True
        self._heartbeat()
        await asyncio.sleep(lame_duck_s)
        deadline_s = time.monotonic() + drain_s_max
        while time.monotonic() < deadline_s and any(edge.calls for edge in self.peers):
            await asyncio.sleep(0.02)
        for edge in list(self.peers):
            edge.peer.close()
        for slot in self._slots.values():
            await slot.close()


async def run(config: WorkerConfig) -> None:
    """Serve until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    secrets = load_secrets(Path(config.data))
    worker = Worker(config, find_engines(config.engines), secrets)
    server: Server = await serve(Address.parse(config.listen), secrets, worker.on_peer)
    if not config.advertise and server.address.port:
        worker.config = msgspec.structs.replace(config, advertise=str(server.address))
    tasks = [
        loop.create_task(worker.link.run()),
        loop.create_task(worker.beat_forever()),
        loop.create_task(worker.sweep_forever()),
    ]
    gc.collect()
    gc.freeze()  # what start-up made is never garbage: do not walk it again
    _log.info("worker_up", worker=config.id, address=str(server.address))
    await stop.wait()
    await worker.drain(config.lame_duck_s, config.drain_s_max)
    await server.close()
    for task in tasks:
        task.cancel()
    _log.info("worker_down", worker=config.id)


def main() -> None:
    """Start from the JSON in argv[1]."""
    config = msgspec.json.decode(sys.argv[1], type=WorkerConfig)
    configure("worker", config.log_level)
    try:
        uvloop.run(run(config))
    except (BadEngineName, ValueError, OSError) as error:
        _log.error("worker_cannot_start", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
