"""A worker process: one device slot, several engines, calls from edges in and answers out.

Owns the slots of its engines and its connection to the controller; `serving` does the talking with
edges.  What an engine does next is decided in `batching`; when an engine is loaded, by calls and by
the controller's commands.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets as random_secrets
import signal
import sys
import time
from pathlib import Path

import msgspec
import structlog
import uvloop

from pool.assembly import make_upgrades
from pool.config import WorkerConfig
from pool.controller_address import finder
from pool.copy_guard import CopyGuard
from pool.engine_states import state_of
from pool.engines import device
from pool.engines.base import Engine, PlanEngine
from pool.engines.registry import BadEngineName, find_engines, find_plan_engines
from pool.load_guard import LoadGuard, guard_folder
from pool.loaded import Loaded
from pool.loading import Loader
from pool.parking import Parking
from pool.phases import of_start, process_began_s
from pool.queueing.inside import Inside
from pool.room import Room
from pool.serving import EdgePeer
from pool.shadow import Shadows
from pool.slots import EngineSlot
from pool.succession import LAME_DUCK_S, LOOK_S, Succession
from pool.turn import Turn
from pool.wake_book import WakeBook
from pool.wire import control, data
from pool.wire.control import Command, EngineState, Heartbeat, RegisterWorker
from pool.wire.fleet_secret import load_secrets
from pool.wire.frames import WireError
from pool.wire.handshake import Secrets
from pool.wire.link import ControlLink
from pool.wire.listening import Server, serve
from pool.wire.peer import Address, Peer
from registry_sync.local import LocalStore
from registry_sync.logs import configure
from registry_sync.memory import calm_collector, map_large_blocks
from registry_sync.names import BadName, check_name, check_version
from registry_sync.scheduling import take_turns
from registry_sync.supervised import leave, say_draining, say_ready, until_told
from registry_sync.tracing import open_tracing

HEARTBEAT_S = 0.5
LOAD_REPORT_S = 0.1  # a load that has changed is told within this
LOAD_BEAT_S = 0.5  # and any load, so that edges know that we live
DRAIN_POLL_S = 0.02
TRACES_S_MAX = 1.0  # for the last spans to be sent
LAST_WORDS_S = 0.01  # for the loop to write what was sent
CLOSE_S_MAX = 1.0  # for a run that is under way when the time to drain is over
HANG_UP_S_MAX = 1.0  # an edge that owes us no call any more and does not hang up is left
SLOTS_MAX = 4096  # versions that one worker has ever been asked for

_log = structlog.get_logger()


class Worker:
    """The whole of one worker process."""

    def __init__(
        self,
        config: WorkerConfig,
        engines: tuple[Engine, ...],
        secrets: Secrets | None,
        plan_engines: tuple[PlanEngine, ...] = (),
    ) -> None:
        self.config = config
        self.secrets = secrets
        self.incarnation = random_secrets.token_hex(8)
        # The whole mutable state: edges, slots, the bytes of calls inside, and whether we drain.
        self.peers: set[EdgePeer] = set()
        self.tracing = open_tracing("tidepool-worker", config.id, is_wanted=config.sends_traces)
        self.inside = Inside(config.queue_bytes_max)
        self.is_draining = False
        self._slots: dict[tuple[str, str], EngineSlot] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reported_us = 0
        self._device = device.find(config.device)
        self.start_phases: dict[str, int] = {}
        self.up_s: float | None = None  # of a process that is started for a call, until that comes
        folder = guard_folder(Path(config.data), config.id)
        self.guard = LoadGuard(folder, self.incarnation)
        self.turn = Turn(self.guard)
        self.shadows = Shadows(
            lambda ref: self._slots.get(ref),
            self.is_idle,
            lambda: self.inside.arrivals,
            guard=CopyGuard(folder, self.incarnation),
        )
        self._wakes = WakeBook(folder)
        self.parking = Parking((*engines, *plan_engines))
        self._loader = Loader(config, engines, self.guard, self.parking)
        self._room = Room(self._device.name, config.memory_bytes_max, lambda: self._slots)
        self.succession = Succession(
            Path(config.data), config.id, config.notice_fd, config.slack_bytes
        )
        self.link = ControlLink(
            finder(config.controller, config.sync_socket),
            secrets,
            self._register,
            self._on_control,
        )
        self.upgrades = make_upgrades(config, secrets, plan_engines, self._loader, self.link)

    def hello(self) -> data.Hello:
        """Return this worker's first message to an edge."""
        return data.Hello(
            data.WIRE,
            "worker",
            self.config.id,
            self.incarnation,
            load_ms=int(LOAD_BEAT_S * 1000),
            device=device.label_of(self._device),
        )

    def slot(self, model: str, version: str) -> EngineSlot:
        """Return the slot of a version; raises `BadName`."""
        slot = self._slots.get((model, version))
        if slot is None:
            ref = (check_name("model", model), check_version(version))
            if len(self._slots) >= SLOTS_MAX:
                self._slots = {r: s for r, s in self._slots.items() if s.state != "cold"}
            slot = EngineSlot(
                *(*ref, self._load, self._changed, self.turn.soon, self._wakes, self._take_up_s),
                self.turn.alone,
            )
            self._slots[ref] = slot
        return slot

    def _take_up_s(self) -> float | None:
        up_s, self.up_s = self.up_s, None
        return up_s

    def is_idle(self) -> bool:
        """Tell whether nobody waits for anything here."""
        if any(edge.calls for edge in self.peers):
            return False
        return not any(slot.calls or slot.state == "loading" for slot in self._slots.values())

    def report_deadly(self) -> None:
        """Show as failed what this worker has died of so often that it does not load it now."""
        for what, why in self.guard.refused().items():
            if self._loader.is_portable(what.engine):
                self.slot(what.model, what.version).fail(why)

    def on_peer(self, peer: Peer) -> None:
        """Take a connection from an edge."""
        edge = EdgePeer(
            *(peer, self.hello(), self.slot, self.inside),
            *(self.turn, self.shadows, self.peers.discard, self.tracing),
        )
        self.peers.add(edge)
        if self.is_draining:  # it dialled just before the socket was closed
            edge.leave()

    async def _load(self, model: str, version: str) -> Loaded:
        """Bring a version to this node and make it runnable, by the best engine that is ready."""
        upgrades = self.upgrades
        return await self._loader.load(
            model, version, upgrades.best_here, upgrades.engine_name, self._room.taken
        )

    # the controller

    def _register(self) -> control.Message:
        self.upgrades.dialled()
        self.shadows.tell_again()
        return RegisterWorker(
            control.WIRE,
            self.config.id,
            self.incarnation,
            os.getpid(),
            self.config.advertise or self.config.listen,
            self._device.name,
            self._states(),
            self._device.device_class,
            self.upgrades.builds,
            self.start_phases,
            self.config.is_for_call,
            self._room.bytes_max,
            self.config.is_fallback,
        )

    def _states(self) -> tuple[EngineState, ...]:
        now_s = time.monotonic()
        return tuple(
            state_of(
                slot,
                size_bytes=self._room.bytes_of(ref),
                why=self.upgrades.why(slot),
                now_s=now_s,
            )
            for ref, slot in self._slots.items()
            if slot.state != "cold"
        )

    def _changed(self) -> None:
        """An engine's state is another one: routes depend on it, so say so now."""
        self._room.look()
        self._heartbeat()
        if not self.is_draining:
            self.upgrades.look(self._slots.values())

    def _heartbeat(self) -> None:
        calls = sum(slot.calls for slot in self._slots.values())
        beat = Heartbeat(
            self._wait_us(), calls, self._states(), self.is_draining, self.upgrades.refused
        )
        self.link.send(beat)

    def _wait_us(self) -> int:
        return max((slot.wait_us for slot in self._slots.values()), default=0)

    def _on_control(self, message: control.Message) -> None:
        if not self.is_draining:
            self.upgrades.on_message(message)
        if isinstance(message, Command):
            try:
                slot = self.slot(message.model, message.version)
            except BadName as error:
                raise WireError(str(error)) from None
            if message.op == "load" and not self.is_draining:
                slot.ensure()
            elif message.op == "unload":
                unload = slot.unload(is_elsewhere=message.is_elsewhere)
                task = asyncio.get_running_loop().create_task(unload)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    # rounds

    async def beat_forever(self) -> None:
        """Show the controller that we live."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            self._room.look()
            self._heartbeat()
            if found := self.shadows.report():
                self.link.send(found)

    async def report_forever(self) -> None:
        """Tell the edges a load that has changed, and now and then that we live."""
        told_s = -math.inf
        while True:
            await asyncio.sleep(LOAD_REPORT_S)
            wait_us = self._wait_us()
            now_s = time.monotonic()
            # Where it comes out a little early, a whole round later would be late.
            if wait_us != self._reported_us or now_s - told_s > LOAD_BEAT_S - LOAD_REPORT_S / 2:
                self._reported_us, told_s = wait_us, now_s
                calls = sum(slot.calls for slot in self._slots.values())
                for edge in self.peers:
                    edge.peer.send(data.encode(data.Load(wait_us, calls)))

    async def recycle_forever(self) -> None:
        """Have the process replaced when its memory does not come back."""
        while True:
            await asyncio.sleep(LOOK_S)
            self.succession.look(
                self._slots.values(),
                self.inside.bytes + self.shadows.bytes,
                is_draining=self.is_draining,
            )

    def ask_for_heir(self) -> None:
        """Have the process replaced now."""
        if not self.is_draining:
            self.succession.ask(list(self._slots.values()))

    async def drain(self, lame_duck_s: float, drain_s_max: float) -> None:
        """Leave the routes, keep serving for a while, then let the edges go.

        What is inside is answered; calls that wait for a load, and those whose turn has not come
        by the end, go back to their edges, which send them to another worker.
        """
        self.is_draining = True
        self.shadows.close()
        self.link.stay_lost()
        self._heartbeat()
        await self.upgrades.close()
        await asyncio.sleep(lame_duck_s)
        deadline_s = time.monotonic() + drain_s_max
        for edge in list(self.peers):
            edge.leave()
        for slot in self._slots.values():
            slot.stop_loading()
        busy_s = time.monotonic()
        while self.peers and (now_s := time.monotonic()) < deadline_s:
            if any(edge.calls for edge in self.peers):
                busy_s = now_s
            elif now_s > busy_s + HANG_UP_S_MAX:
                break
            await asyncio.sleep(DRAIN_POLL_S)
        for slot in self._slots.values():
            if slot.queue is not None:
                slot.queue.return_waiting()
        for edge in list(self.peers):
            edge.peer.close()
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await asyncio.gather(*(slot.close() for slot in self._slots.values()))
        except TimeoutError:
            _log.warning("run_cut_short", worker=self.config.id)


async def run(config: WorkerConfig, started_s: tuple[float, float]) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        started_s: when the process was made, and when it had imported what it needs.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    secrets = load_secrets(Path(config.data))
    plan_engines = find_plan_engines(config.engines, config.device, config.threads)
    engines = find_engines(config.engines, config.device)
    worker = Worker(config, engines, secrets, plan_engines)
    loop.add_signal_handler(signal.SIGUSR1, worker.ask_for_heir)
    if config.go_fd >= 0 and not await takes_over(worker, stop):
        worker.guard.close()
        leave(1)
    server: Server = await serve(
        Address.parse(config.listen), secrets, worker.on_peer, fds=config.listen_fds
    )
    if not config.advertise and server.address.port:
        worker.config = msgspec.structs.replace(config, advertise=str(server.address))
    worker.report_deadly()
    tasks = [
        loop.create_task(worker.link.run()),
        loop.create_task(worker.beat_forever()),
        loop.create_task(worker.report_forever()),
        loop.create_task(worker.recycle_forever()),
    ]
    formats = LocalStore(Path(config.data) / "store").formats
    parking = loop.create_task(worker.parking.park(formats, worker.is_idle))
    calm_collector()
    up_s = time.monotonic()
    worker.start_phases = of_start(config.asked_s, *started_s, up_s)
    worker.up_s = up_s if config.is_for_call else None
    if config.go_fd < 0:  # an heir has said so before
        say_ready(config.notice_fd)
    _log.info("worker_up", worker=config.id, address=str(server.address))
    stopped = loop.create_task(stop.wait())
    done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done - {stopped}:
        task.result()  # a round never ends but by a bug: better a new process than half of one
    _log.info("worker_draining", worker=config.id)
    await server.close()  # whoever dials now gets the successor
    say_draining(config.notice_fd)
    lame_duck_s = LAME_DUCK_S if worker.succession.has_asked else 0.0
    await worker.drain(max(config.lame_duck_s, lame_duck_s), config.drain_s_max)
    for task in (*tasks, parking):
        task.cancel()
    worker.guard.close()
    if worker.tracing is not None:
        worker.tracing.close(TRACES_S_MAX)
    _log.info("worker_down", worker=config.id)
    await asyncio.sleep(LAST_WORDS_S)
    leave()


async def takes_over(worker: Worker, stop: asyncio.Event) -> bool:
    """Get ready beside the predecessor; tell whether its place is ours, or we are to end."""
    config = worker.config

    async def get_ready() -> bool:
        if not await worker.succession.inherit(worker.slot):
            return False
        say_ready(config.notice_fd)
        await until_told(config.go_fd)
        return True

    ready = asyncio.get_running_loop().create_task(get_ready())
    stopped = asyncio.get_running_loop().create_task(stop.wait())
    await asyncio.wait([ready, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    ready.cancel()
    return not stop.is_set() and ready.result()


def main() -> None:
    """Start from the JSON in argv[1]."""
    started_s = (process_began_s(), time.monotonic())
    map_large_blocks()
    take_turns()  # before there are threads: they take it over
    config = msgspec.json.decode(sys.argv[1], type=WorkerConfig)
    configure("worker", config.log_level)
    try:
        uvloop.run(run(config, started_s))
    except (BadEngineName, ValueError, OSError) as error:
        _log.error("worker_cannot_start", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
