"""The controller: follows the registry, places engines, and tells edges and workers.

Edges and workers dial it; it dials nobody.  It is in no request's way: while it is gone they go on
with what they were told last.  All of its state can be had again: documents from the registry (a
copy of the last good ones lies under DATA), workers and edges by their registering anew.
Decides nothing itself: `placement` does, `leadership` says whether it may act.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping

import msgspec
import structlog

from pool import fallback, last_good, letting_go, placement, routing
from pool.build_orders import BuildOrders
from pool.learned import Learned
from pool.load_counts import LoadCounts
from pool.members import Edge, Worker
from pool.node_desk import Node, NodeDesk, needed_of
from pool.placement import Ref, WorkerView
from pool.quarantine_desk import QuarantineDesk
from pool.quota_desk import QuotaDesk
from pool.recent import Recent
from pool.registry_watch import RegistryWatch, Snapshot
from pool.rollouts.desk import RolloutDesk
from pool.scale_orders import ScaleOrders
from pool.state_times import StateTimes
from pool.status import EdgeStatus, WorkerStatus, rollout_figures, status
from pool.tally import Tally
from pool.unserved import Unserved
from pool.wire import control
from pool.wire.frames import Buffer, WireError
from pool.wire.peer import Peer
from registry_sync.documents import BadDocument
from registry_sync.local import LocalStore
from registry_sync.names import BadName
from registry_sync.stores import StoreError

HEARTBEAT_S = 0.5
WORKER_SILENCE_S_MAX = 1.5  # three heartbeats
KEEPALIVE_S = 1.0
EDGE_SILENCE_S_MAX = 5.0  # an edge reports every second
STALL_S = 1.0  # a round that comes so late says nothing about who was silent meanwhile
SETTLE_S = 3.0  # a new leader waits so long for the workers of the old one to dial it
COMMAND_AGAIN_S = 2.0  # a command is repeated until a heartbeat shows it done
COMMANDS_MAX = 256  # remembered of one worker; older ones are due again anyway
ACKS_S_MAX = 10.0

_log = structlog.get_logger()


class Controller:
    """One controller's whole state and its reactions; `controller_main` owns sockets and signals.

    Args:
        may_act: tells whether this process leads now; while it does not, nobody is answered.
        epoch: the epoch of that leadership.
        local: where the last good documents are kept.
        learned: where it is kept what was learned about demand; None: nowhere.
        time_scale: the scaling policies see time pass so many times faster.
    """

    def __init__(
        self,
        watch: RegistryWatch,
        *,
        may_act: Callable[[], bool],
        epoch: Callable[[], int],
        workers_expected: int,
        local: LocalStore,
        learned: Learned | None = None,
        time_scale: float = 1.0,
    ) -> None:
        self._watch = watch
        self._may_act = may_act
        self._epoch = epoch
        self._workers_expected = workers_expected
        self._local = local
        # The whole mutable state: who is registered, what they have counted, what was sent last.
        self._workers: dict[str, Worker] = {}
        self._edges: dict[str, Edge] = {}
        self._tally = Tally()
        self._recent = Recent()
        self._unserved = Unserved()
        self._state_times = StateTimes()
        self._let_go: dict[Ref, bool] = {}  # unloaded by request; see `letting_go`
        self._quotas = QuotaDesk(epoch)
        self._quarantine = QuarantineDesk(epoch)
        self._builds = BuildOrders(epoch, may_act, watch.wishes)
        self._nodes = NodeDesk(epoch, self.act)
        self._scale = ScaleOrders(self.act, learned, time_scale=time_scale)
        self._rollouts = RolloutDesk(
            watch.store,
            leads=self._is_same_reign,
            epoch=epoch,
            poll=self.poll,
            is_lagging=lambda seq: bool(self._lagging(seq)),
            warmth=self._scale.warmth,
        )
        self._loads = LoadCounts()
        self._seq = 0
        self._documents: control.Documents | None = None
        self._has_news = False  # of which nobody was told, because this process did not lead then
        self.lapsed = asyncio.Event()  # set: its documents are gone with a reign
        self._routes: control.Routes | None = None
        self._registry_error = ""
        self._read_s: float | None = None  # the registry, in full; at first, when that was begun
        self._acting_epoch = 0
        self._was_complete = False  # all expected workers have registered, once is enough
        self._acked = asyncio.Event()
        self._polling = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._acting_since_s: float | None = None

    # connections

    def on_peer(self, peer: Peer) -> None:
        """Take a new connection; its first message says who it is."""
        peer.on_frame = lambda header, body: self._first(peer, body)

    def _first(self, peer: Peer, body: Buffer) -> None:
        message = control.decode(body)
        if not self._may_act():
            raise WireError("this controller does not lead")
        wire = getattr(message, "wire", control.WIRE)
        if wire != control.WIRE:
            raise WireError(f"this controller speaks wire {control.WIRE}, not {wire}")
        match message:
            case control.RegisterWorker():
                self._add_worker(peer, message)
            case control.RegisterEdge():
                self._add_edge(peer, message)
            case control.RegisterNode():
                self._nodes.join(peer, message)
            case control.Ask():
                peer.on_frame = lambda header, body: self._client(peer, control.decode(body))
                self._client(peer, message)
            case _:
                raise WireError(f"expected a registration, not {type(message).__name__}")

    def _add_worker(self, peer: Peer, register: control.RegisterWorker) -> None:
        now_s = asyncio.get_running_loop().time()
        worker = Worker(peer, register, now_s, control.Heartbeat(0, 0, register.engines))
        old = self._workers.get(register.id)
        is_new = old is None or old.register.incarnation != register.incarnation
        if old is not None and not is_new:
            worker.loads = old.loads  # what it has told is not counted again
        else:
            self._loads.add_start(register.phases)
        if old is not None:
            # The same worker dialled again, or its successor: only one of them is true.
            old.peer.close(WireError("another connection of the same worker took over"))
        self._workers[register.id] = worker
        self._loads.add(worker, register.engines, self._watch.snapshot.manifests)
        peer.on_frame = lambda header, body: self._from_worker(worker, control.decode(body))
        peer.on_lost = lambda error: self._lost_worker(worker)
        peer.send(control.encode(control.Welcome(control.WIRE, self._epoch())))
        self._builds.join(peer, register)
        self._scale.join(register, is_new=is_new)
        _log.info("worker_registered", worker=register.id, worker_pid=register.pid)
        self.act()

    def _lost_worker(self, worker: Worker) -> None:
        """Take note of a lost connection.

        The worker stays in the routes for as long as one that is silent: edges notice by their own
        connections whether it lives, and it may dial again at once, itself or its successor.
        """
        worker.is_connected = False
        is_final = worker.heartbeat.draining
        self._builds.leave(worker.register.id, worker.peer, is_final=is_final)
        if is_final:
            self._drop_worker(worker, "it has ended", is_usual=True)

    def _drop_worker(self, worker: Worker, why: str, *, is_usual: bool = False) -> None:
        if self._workers.get(worker.register.id) is worker:
            del self._workers[worker.register.id]
            log = _log.info if is_usual else _log.warning
            log("worker_gone", worker=worker.register.id, why=why)
            self.act()

    def _from_worker(self, worker: Worker, message: control.Message) -> None:
        worker.heard_s = asyncio.get_running_loop().time()
        match message:
            case control.Heartbeat():
                self._loads.add(worker, message.engines, self._watch.snapshot.manifests)
                is_news = worker.take(message)
                self._scale.count(worker.register, message.engines)
                self._builds.run(worker.register.id, message.engines, is_draining=message.draining)
                if is_news:
                    self.act()
            case control.BuildReport():
                self._builds.on_report(worker.register.id, message)
            case control.ShadowReport():
                name = f"{worker.register.id}/{worker.register.incarnation}"
                self._rollouts.on_shadow(name, message)
            case _:
                raise WireError(f"a worker does not send {type(message).__name__}")

    def _add_edge(self, peer: Peer, register: control.RegisterEdge) -> None:
        edge = Edge(peer, register, asyncio.get_running_loop().time())
        name = f"{register.id}/{register.incarnation}"
        self._edges[name] = edge
        peer.on_frame = lambda header, body: self._from_edge(edge, control.decode(body))
        peer.on_lost = lambda error: self._drop_edge(edge)
        peer.send(control.encode(control.Welcome(control.WIRE, self._epoch())))
        self._quotas.join(name, peer, register)  # before the documents name keys
        self._quarantine.join(name, peer, register)  # and before the routes name workers
        if self._documents is not None:
            peer.send(control.encode(self._documents))
        if self._routes is not None:
            peer.send(control.encode(self._routes))
        _log.info("edge_registered", edge=register.id, edge_pid=register.pid)

    def _drop_edge(self, edge: Edge) -> None:
        name = f"{edge.register.id}/{edge.register.incarnation}"
        if self._edges.get(name) is edge:
            del self._edges[name]
            self._quotas.leave(name)
            self._quarantine.leave(name)
            self._acked.set()
            _log.info("edge_gone", edge=edge.register.id)

    def _from_edge(self, edge: Edge, message: control.Message) -> None:
        edge.heard_s = asyncio.get_running_loop().time()
        match message:
            case control.Ack(epoch, seq):
                if epoch == self._epoch():
                    edge.acked_seq = seq
                    self._acked.set()
            case control.Counters(incarnation, counts, in_flight):
                name = f"{edge.register.id}/{incarnation}"
                self._tally.report(name, counts)
                self._recent.report(name, counts, edge.heard_s)
                edge.in_flight, edge.waiting = in_flight, message.waiting
                edge.away = message.away
                ages_s = message.unserved_age_s
                self._unserved.report(name, message.unserved, ages_s, edge.heard_s)
                self._let_go = letting_go.unless_called(self._let_go, message.waiting)
            case control.Evidence(incarnation, arms):
                self._rollouts.report(f"{edge.register.id}/{incarnation}", arms)
            case control.QuotaDemand() | control.QuotaAck():
                name = f"{edge.register.id}/{edge.register.incarnation}"
                self._quotas.on_message(name, message)
            case control.Poison(quarantined):
                self._quarantine.learn(quarantined)
            case control.Resolve(model, version):
                self._later(self._resolve(edge.peer, model, version), edge.peer)
            case control.Ask():
                self._client(edge.peer, message)
            case _:
                raise WireError(f"an edge does not send {type(message).__name__}")

    def _client(self, peer: Peer, message: control.Message) -> None:
        if not isinstance(message, control.Ask):
            raise WireError(f"a client does not send {type(message).__name__}")
        if not self._may_act():
            raise WireError("this controller does not lead")
        match message.what:
            case control.HERE:
                peer.send(control.encode(control.Answer(True, "", b"{}", message.id)))
            case "status":
                data = msgspec.json.encode(self.status())
                peer.send(control.encode(control.Answer(True, "", data, message.id)))
            case "poke":
                self._later(self._poke(peer, message.id), peer)
            case "warm":
                detail = self._warm(message.argument)
                peer.send(control.encode(control.Answer(not detail, detail, b"{}", message.id)))
            case "why":
                peer.send(control.encode(self._why(message.argument, message.id)))
            case "unload":
                peer.send(control.encode(self._unload(message.argument, message.id)))
            case "rollout":
                peer.send(control.encode(self._rollout(message.argument, message.id)))
            case what:
                detail = f"unknown question {what!r}"
                peer.send(control.encode(control.Answer(False, detail, b"", message.id)))

    def _later(self, work: Coroutine[object, object, None], peer: Peer) -> None:
        async def answered() -> None:
            try:
                await work
            except Exception as error:
                # A bug must not leave the one who asked without an end.
                _log.exception("bug")
                peer.close(WireError(f"the controller failed: {type(error).__name__}"))

        task = asyncio.get_running_loop().create_task(answered())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, s_max: float) -> None:
        """Wait until what was asked is answered; nothing new may be."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=s_max)
        await self._rollouts.finish(s_max)
        if self._may_act():
            await self._scale.finish()

    # questions

    def status(self) -> dict[str, object]:
        """Return what `tidepool status` shows."""
        snapshot = self._watch.snapshot
        now_s = asyncio.get_running_loop().time()
        return status(
            epoch=self._epoch(),
            leader=self._may_act(),
            workers=self._worker_rows(),
            edges=[
                EdgeStatus(edge.register.id, edge.register.pid, edge.in_flight, edge.away)
                for edge in self._edges.values()
            ],
            specs=snapshot.specs,
            states=snapshot.states,
            counts=self._tally.totals(),
            recent=self._recent.rates(now_s),
            loads=self._loads.counts,
            rejected={**snapshot.rejected, **self._watch.wishes.rejected},
            builds=self._builds.rows(),
            build_outcomes=self._builds.outcomes,
            phases=self._loads.phases(),
            registry_error=self._registry_error,
            registry_age_s=None if self._read_s is None else now_s - self._read_s,
            nodes=self._nodes.status(),
            wanted={**self._scale.wanted(), **dict.fromkeys(self._let_go, 0)},
            routes=self._engine_routes(),
            state_s=self._state_times.seconds,
            instance_start_s=self._nodes.instance_start_s(),
            rollouts=self._rollout_views(self._rollouts.began()),
            signing=self._watch.trust.status(),
            quarantined=self._quarantine.rows(),
        )

    def _worker_rows(self) -> list[WorkerStatus]:
        workers = sorted(self._workers.items())
        return [worker.status() for _, worker in workers if worker.is_connected]

    def _rollout_views(self, endpoints: Iterable[str]) -> dict[str, dict[str, object]]:
        totals = self._tally.since(self._rollouts.began())
        recent = self._recent.rates(asyncio.get_running_loop().time())
        workers = self._worker_rows()
        views = {
            name: self._rollouts.view(
                name, lambda spec: rollout_figures(spec, totals, recent, workers)
            )
            for name in endpoints
        }
        return {name: found for name, found in views.items() if found is not None}

    def _rollout(self, endpoint: str, ask_id: int) -> control.Answer:
        if endpoint not in self._watch.snapshot.specs:
            return control.Answer(False, f"there is no endpoint {endpoint!r}", b"", ask_id)
        views = self._rollout_views([endpoint])
        if not views:
            return control.Answer(False, f"endpoint {endpoint!r} has no rollout", b"", ask_id)
        return control.Answer(True, "", msgspec.json.encode(views[endpoint]), ask_id)

    async def _poke(self, peer: Peer, ask_id: int) -> None:
        """Look at the registry now; answer when every live edge goes by what is there."""
        await self.poll(is_asked=True)
        seq = self._seq
        detail = f"the registry cannot be read: {self._registry_error}"
        if not self._registry_error:
            detail = ""
            try:
                async with asyncio.timeout(ACKS_S_MAX):
                    while self._lagging(seq):
                        self._acked.clear()
                        await self._acked.wait()
            except TimeoutError:
                lagging = ", ".join(self._lagging(seq))
                detail = f"not within {ACKS_S_MAX:.0f} s: edges {lagging}"
        rejected = self._watch.snapshot.rejected
        data = msgspec.json.encode(
            {"edges": len(self._edges), "error": self._registry_error, "rejected": rejected}
        )
        peer.send(control.encode(control.Answer(not detail, detail[:4000], data, ask_id)))

    def _lagging(self, seq: int) -> list[str]:
        return sorted(name for name, edge in self._edges.items() if edge.acked_seq < seq)

    async def _resolve(self, peer: Peer, model: str, version: str) -> None:
        found, detail = False, ""
        known = self._watch.snapshot
        try:
            async with self._polling:
                known = self._watch.snapshot
                found = await asyncio.to_thread(self._watch.resolve, model, version) is not None
        except (StoreError, BadDocument, BadName) as error:
            detail = str(error)
        if found and self._watch.snapshot is not known:
            self._publish_documents()
            self.act()
        peer.send(control.encode(control.Resolved(model, version, found, detail)))

    def _warm(self, endpoint: str) -> str:
        """Let every version of `endpoint` be loaded somewhere; return what is wrong with that."""
        spec = self._watch.snapshot.specs.get(endpoint)
        if spec is None:
            return f"there is no endpoint {endpoint!r}"
        if not self._places():
            return "there is no worker"
        for variant in spec.variants:
            self._let_go.pop((variant.model, variant.version), None)
        self._scale.warm(spec)
        self.act()
        return ""

    def _why(self, endpoint: str, ask_id: int) -> control.Answer:
        spec = self._watch.snapshot.specs.get(endpoint)
        if spec is None:
            return control.Answer(False, f"there is no endpoint {endpoint!r}", b"", ask_id)
        found = self._scale.why(spec, self._let_go, self._places(), self._engine_routes())
        return control.Answer(True, "", msgspec.json.encode(found), ask_id)

    def _unload(self, endpoint: str, ask_id: int) -> control.Answer:
        """Let the workers drop what `endpoint` alone names; answer with what that is."""
        specs = self._watch.snapshot.specs
        if endpoint not in specs:
            return control.Answer(False, f"there is no endpoint {endpoint!r}", b"", ask_id)
        refs = letting_go.refs_of(endpoint, specs)
        self._let_go.update(dict.fromkeys(refs, False))
        self._scale.let_go(endpoint)
        self.act()
        return control.Answer(True, "", msgspec.json.encode(refs), ask_id)

    # rounds

    async def poll(self, *, is_asked: bool = False) -> bool | None:
        """Look at the registry once and tell everybody what changed.

        Returns:
            Whether anything has; None: the registry did not answer, or not to all.
        """
        async with self._polling:
            known = self._watch.snapshot
            begun_s = asyncio.get_running_loop().time()
            self._read_s = begun_s if self._read_s is None else self._read_s
            try:
                changed = await asyncio.to_thread(self._watch.poll, is_asked=is_asked)
                self._registry_error, self._read_s = "", begun_s
            except StoreError as error:
                changed = self._watch.snapshot is not known  # what may no longer be used is gone
                if not self._registry_error:
                    _log.warning("registry_unreachable", error=str(error))
                self._registry_error = str(error)
            except Exception as error:
                # Our own bug must not end the rounds, and must be seen.
                changed = False
                _log.exception("bug")
                self._registry_error = f"{type(error).__name__}: {error}"
            specs = self._watch.snapshot.specs
            self._let_go = letting_go.unless_set(self._let_go, known.specs, specs)
            if self._watch.trust.is_required:
                gone = known.manifests.keys() - self._watch.snapshot.manifests.keys()
                self._let_go.update(dict.fromkeys(gone, False))
            found = None if self._registry_error or not self._watch.is_whole else changed
            self._has_news |= changed
        if not self._may_act():
            return found
        # What was never read is not empty: edges keep what they have until it is.
        is_first = self._documents is None and self._watch.is_known
        if self._has_news or is_first:
            self._publish_documents()
            self.act()
        return found

    async def tick_forever(self) -> None:
        """Notice who has gone silent, repeat what was not done, show that we live."""
        loop = asyncio.get_running_loop()
        spoke_s = looked_s = 0.0
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            if self._acting_since_s is not None and not self._is_same_reign():
                self._stand_down()
            now_s, before_s = loop.time(), looked_s
            looked_s = now_s
            if not self._may_act():
                continue
            if now_s - before_s > HEARTBEAT_S + STALL_S:
                for member in self._members():
                    member.heard_s = now_s  # this process stood still; they may have spoken
                self._scale.hold(2 * HEARTBEAT_S)
            self._drop_silent(now_s)
            if now_s - spoke_s >= KEEPALIVE_S:
                spoke_s = now_s
                self._tell_all(control.Welcome(control.WIRE, self._epoch()))
            self._quotas.round()
            self._builds.round()
            self._nodes.round(now_s)
            self._scale.save_if_due()
            self.act()

    def _drop_silent(self, now_s: float) -> None:
        """Drop edges that were not heard for long, and workers that were not while others were.

        If nobody is heard it is we who are deaf: workers work on, and routes without them would
        only keep calls from them.
        """
        heard_s = max([member.heard_s for member in self._members()], default=now_s)
        for edge in list(self._edges.values()):
            if now_s - edge.heard_s > EDGE_SILENCE_S_MAX:
                edge.peer.close(WireError("it has gone silent"))
                self._drop_edge(edge)
        for worker in list(self._workers.values()):
            until_s = heard_s if worker.is_connected else now_s
            if until_s - worker.heard_s > WORKER_SILENCE_S_MAX:
                why = "no heartbeat" if worker.is_connected else "connection lost"
                worker.peer.close(WireError(why))
                self._drop_worker(worker, why)

    def _is_same_reign(self) -> bool:
        """Tell whether this process leads, and has led without a break since it began to act."""
        return self._may_act() and self._epoch() == self._acting_epoch

    def _stand_down(self) -> None:
        """Somebody else leads, or may: let everybody find them."""
        _log.warning("leadership_lost")
        for member in self._members():
            member.peer.close()
        self._workers.clear()
        self._edges.clear()
        self._let_go.clear()
        self._unserved, self._state_times = Unserved(), StateTimes()
        self._quotas.reset()
        self._quarantine.reset()
        self._builds.reset()
        self._nodes.reset()
        self._scale.reset()
        self._rollouts.reset()
        self._documents = None
        self.lapsed.set()
        self._routes = None
        self._acting_since_s = None
        self._acked.set()

    def _members(self) -> list[Worker | Edge | Node]:
        return [*self._workers.values(), *self._edges.values(), *self._nodes.members()]

    def _is_settled(self) -> bool:
        """Tell whether whoever was there before this leader has had the time to register.

        Acting on half of the pool would take routes away that still work.
        """
        now_s = asyncio.get_running_loop().time()
        if self._acting_since_s is None:
            self._acting_since_s, self._acting_epoch = now_s, self._epoch()
        if 0 < self._workers_expected <= len(self._workers) + self._nodes.at_rest:
            return True
        return self._routes is not None or now_s - self._acting_since_s >= SETTLE_S

    def act(self) -> None:
        """Carry out what placement says, and push routes if they are others now."""
        if not self._may_act() or not self._is_settled() or self._documents is None:
            return
        snapshot = self._watch.snapshot
        views = self._nodes.views(self._seen())
        self._let_go = letting_go.still(self._let_go, views)
        waiting = [edge.waiting for edge in self._edges.values()]
        far_s = self._nodes.instance_start_s() or 0.0
        now_s = asyncio.get_running_loop().time()
        unserved = self._unserved.take(now_s) if self._scale.knows(views) else {}
        self._let_go = letting_go.unless_called(self._let_go, unserved)
        wanted = self._scale.demands(snapshot, views, waiting, unserved, far_s)
        wanted.update(letting_go.demands(self._let_go, wanted))
        for step in (*placement.plan(wanted, views), *fallback.plan(wanted, views)):
            self._command(step)
        whose = placement.owners(wanted, views)
        replicas = ((demand.owner, demand.replicas) for demand in wanted.values())
        self._nodes.act(
            needed_of(replicas, set(whose.values())),
            [ref for ref, demand in wanted.items() if demand.replicas],
            whose,
            self._scale.now_s(),
        )
        self._publish_routes(snapshot, self._nodes.views(self._seen()), wanted)
        self._rollouts.round()

    def _places(self) -> int:
        """Return how many workers there are for all, with those that have no process."""
        return sum(not view.is_fallback for view in self._nodes.views(self._seen()))

    def _engine_routes(self) -> dict[Ref, control.EngineRoute]:
        routes = () if self._routes is None else self._routes.engines
        return {(route.model, route.version): route for route in routes}

    def _seen(self) -> list[WorkerView]:
        return [worker.view() for worker in self._workers.values()]

    def _command(self, step: placement.Load | placement.Unload) -> None:
        worker = self._workers.get(step.worker)
        if worker is None:
            return
        op = "load" if isinstance(step, placement.Load) else "unload"
        now_s = asyncio.get_running_loop().time()
        if not worker.command(op, step.ref, now_s, again_s=COMMAND_AGAIN_S, most=COMMANDS_MAX):
            return
        is_elsewhere = isinstance(step, placement.Unload) and step.is_elsewhere
        command = control.Command(self._epoch(), op, *step.ref, is_elsewhere)
        worker.peer.send(control.encode(command))

    def _publish_routes(
        self, snapshot: Snapshot, views: list[WorkerView], wanted: Mapping[Ref, placement.Demand]
    ) -> None:
        # A worker that breaks later must not make every edge of the fleet unready.
        there = len(self._workers) + self._nodes.at_rest
        self._was_complete |= there >= self._workers_expected
        engines = routing.engine_routes(
            *(sorted(snapshot.manifests), views, wanted, self._let_go, self._scale),
            far_left_s=self._nodes.far_left_s,
        )
        self._state_times.look(engines, asyncio.get_running_loop().time())
        routes = control.Routes(
            epoch=self._epoch(),
            seq=0,
            workers=routing.worker_routes(self._workers, self._nodes.cold(), engines),
            engines=engines,
            ready=self._was_complete,
            edges=len(self._edges),
            far=sum(view.is_far for view in views),
        )
        last = self._routes
        if last is not None and msgspec.structs.replace(last, seq=0) == routes:
            return
        self._routes = msgspec.structs.replace(routes, seq=last.seq + 1 if last else 1)
        self._tell_edges(self._routes)

    def _publish_documents(self) -> None:
        self._has_news = False
        snapshot = self._watch.snapshot
        self._seq += 1
        self._documents = control.Documents(
            epoch=self._epoch(),
            seq=self._seq,
            specs=dict(snapshot.spec_bytes),
            states=dict(snapshot.state_bytes),
            manifests={f"{m}/{v}": data for (m, v), data in snapshot.manifest_bytes.items()},
            keys=snapshot.key_bytes,
            rejected=dict(snapshot.rejected),
        )
        self._tell_edges(self._documents)
        self._rollouts.on_documents(snapshot, self._seq)
        self._builds.on_documents(snapshot)
        last_good.save(self._local, self._documents)

    def _tell_edges(self, message: control.Message) -> None:
        buffers = control.encode(message)
        for edge in self._edges.values():
            edge.peer.send(buffers)

    def _tell_all(self, message: control.Message) -> None:
        buffers = control.encode(message)
        for member in self._members():
            member.peer.send(buffers)
