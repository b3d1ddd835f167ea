"""The controller's side of nodes: what places they have, and which of them are to be up.

Which, `scaling.fleet` decides.  A worker that is to rest is named as cold in the routes first, and
only then told to end: whoever dials it later than that has it started again, which costs a process
and no call.

A place is silent while it has a process of which the controller does not hear: it hangs, or cannot
reach us.  Whoever dials it may wait for ever, as the kernel accepts for it, so it is not named in
the routes until it registers again or has ended.

A node that is not heard of is forgotten, as whoever dials its places would wait in vain.  Where
they cannot be dialled, and a machine starts for each, the machines start on without it: it keeps
them for as long as that takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog

from pool.far_starts import FarStarts
from pool.placement import Ref, WorkerView
from pool.scaling import fleet
from pool.scaling.awaited import Inherited
from pool.scaling.fleet import Fleet, FleetState, NodeLimits, PlaceView
from pool.wire import control
from pool.wire.frames import WireError
from pool.wire.peer import Peer

NODE_SILENCE_S_MAX: Final = 5.0  # a node reports every second
ROUTES_FIRST_S: Final = 0.5  # so long before it is told to rest, edges know it as cold
AGAIN_S: Final = 2.0  # what was said is repeated until a report shows it done
UNHEARD_S_MAX: Final = 5.0  # a process that is up and not connected may take so long to be
START_S_MAX: Final = 20.0  # and one that starts

_log = structlog.get_logger()


@dataclass
class Node:
    """A registered node."""

    peer: Peer
    register: control.RegisterNode
    heard_s: float
    places: tuple[control.Place, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    trouble: str = ""
    is_connected: bool = True
    told: tuple[Collection[str], Collection[str]] | None = None  # see `Places`
    told_s: float = -float("inf")
    limits: NodeLimits = field(init=False)

    def __post_init__(self) -> None:
        register = self.register
        self.limits = NodeLimits(register.up_min, register.parked, register.rest_s)

    @property
    def is_far(self) -> bool:
        """Tell whether none of its places can be dialled."""
        return not any(place.address for place in self.places)


class NodeDesk:
    """All nodes that can start and end worker processes.

    Args:
        epoch: of the present leadership.
        on_change: called when a node has come, gone, or reported something new.
    """

    def __init__(self, epoch: Callable[[], int], on_change: Callable[[], None]) -> None:
        self._epoch = epoch
        self._on_change = on_change
        # The whole mutable state: the nodes, the workers as they were seen last, the policy's
        # memory and word, since when edges are told that a worker rests, and the last order; the
        # last pid of a worker while it was connected, and since when none is registered though its
        # place has a process, by worker and pid.
        self._nodes: dict[str, Node] = {}
        self._workers: dict[str, WorkerView] = {}
        self._state = FleetState()
        self._fleet = Fleet()
        self._resting_s: dict[str, float] = {}
        self._seq = 0
        self._pids: dict[str, int] = {}
        self._unheard_s: dict[tuple[str, int], float] = {}
        self._far, self._inherited = FarStarts(), Inherited()

    # nodes

    def members(self) -> list[Node]:
        """Return the nodes that are connected."""
        return [node for node in self._nodes.values() if node.is_connected]

    def join(self, peer: Peer, register: control.RegisterNode) -> None:
        """Take in a node."""
        now_s = asyncio.get_running_loop().time()
        node = Node(peer, register, now_s, register.places)
        old = self._nodes.get(register.id)
        if old is not None:
            old.peer.close(WireError("another connection of the same node took over"))
        self._nodes[register.id] = node
        peer.on_frame = lambda header, body: self._on_message(node, control.decode(body))
        peer.on_lost = lambda error: self._lost(node)
        peer.send(control.encode(control.Welcome(control.WIRE, self._epoch())))
        _log.info("node_registered", node=register.id, places=len(register.places))
        self._on_change()

    def _on_message(self, node: Node, message: control.Message) -> None:
        if not isinstance(message, control.NodeReport):
            raise WireError(f"a node does not send {type(message).__name__}")
        node.heard_s = asyncio.get_running_loop().time()
        node.counts, node.trouble = message.counts, message.trouble
        if message.places != node.places:
            node.places = message.places
            self._on_change()

    def _lost(self, node: Node) -> None:
        """Take note of a lost connection; whoever dials its places still has them started."""
        node.is_connected = False

    def round(self, now_s: float) -> None:
        """Forget who has been silent for too long."""
        for name, node in list(self._nodes.items()):
            silent_s = now_s - node.heard_s
            if silent_s <= NODE_SILENCE_S_MAX:
                continue
            node.peer.close(WireError("it has gone silent"))
            node.is_connected = False
            node.places = tuple(place for place in node.places if not place.address)
            if not node.places or silent_s > self._far.start_s(self._guess_s()):
                del self._nodes[name]
                _log.warning("node_gone", node=name)

    def reset(self) -> None:
        """Forget everything: somebody else leads."""
        for node in self._nodes.values():
            node.peer.close()
        self._nodes.clear()
        self._workers.clear()
        self._resting_s.clear()
        self._pids.clear()
        self._unheard_s.clear()
        self._state, self._fleet = FleetState(), Fleet()
        self._far, self._inherited = FarStarts(), Inherited()

    # what others go by

    @property
    def at_rest(self) -> int:
        """How many places may have no process, have none, and are dialled when one is needed.

        One that its node keeps up whatever the demand has none because it died, and is missed.
        One without an address is not dialled at all.
        """
        return sum(
            min(
                sum(place.state == "cold" and place.address != "" for place in node.places),
                max(0, len(node.places) - node.limits.up_min),
            )
            for node in self._nodes.values()
        )

    def views(self, workers: Sequence[WorkerView]) -> list[WorkerView]:
        """Return `workers` as placement is to take them, and the places that wait for a call.

        One that is being emptied gets nothing new, as if it drained; one that is about to rest
        counts as cold already.
        """
        # Fallback workers are always up, and no place is filled by one.
        self._workers = {worker.id: worker for worker in workers if not worker.is_fallback}
        self._listen()
        cold = self.cold()
        found = []
        for worker in workers:
            if worker.id in cold:
                continue
            if worker.id in self._fleet.leaving:
                worker = msgspec.structs.replace(worker, draining=True)
            found.append(worker)
        for name, address in cold.items():
            is_far, is_starting = not address, name in self._fleet.up
            found.append(
                WorkerView(name, False, {}, is_cold=True, is_far=is_far, is_starting=is_starting)
            )
        return sorted(found, key=lambda worker: worker.id)

    def _listen(self) -> None:
        """Note of which processes nothing is heard.

        One whose connection has gone silent is so itself at once; one whose connection was lost,
        or that never had one, is once it has had the time to dial us.
        """
        now_s = asyncio.get_running_loop().time()
        places = [place for node in self._nodes.values() for place in node.places]
        pids, unheard_s = {}, {}
        for worker, pid, state in ((p.worker, p.pid, p.state) for p in places if p.pid):
            seen = self._workers.get(worker)
            pids[worker] = self._pids.get(worker, 0)
            if seen is not None:
                pids[worker] = 0 if seen.draining else seen.pid
            elif state != "draining" or pids[worker] == pid or (worker, pid) in self._unheard_s:
                since_s = -float("inf") if pids[worker] == pid else now_s
                unheard_s[worker, pid] = self._unheard_s.get((worker, pid), since_s)
        self._pids, self._unheard_s = pids, unheard_s

    def _is_silent(self, place: control.Place) -> bool:
        if place.state == "starting" and not place.address:
            return False  # on another machine: who starts it says how long that may take
        now_s = asyncio.get_running_loop().time()
        since_s = self._unheard_s.get((place.worker, place.pid), now_s)
        return now_s - since_s > (START_S_MAX if place.state == "starting" else UNHEARD_S_MAX)

    def cold(self) -> dict[str, str]:
        """Return by worker the addresses that are to be dialled only with a call.

        An empty one cannot be: its machine is started first.  Whether a worker drains it says
        itself, and so does its node, sometimes first.
        """
        found = {}
        for place in (place for node in self._nodes.values() for place in node.places):
            if self._is_silent(place):
                continue
            worker = self._workers.get(place.worker)
            is_up = worker is not None and not worker.draining and place.state != "draining"
            is_back = worker is not None and place.state in ("starting", "up")
            if place.worker in self._resting_s or not (is_up or is_back):
                found[place.worker] = place.address
        return found

    def far_left_s(self, workers: Collection[str]) -> float:
        """Return how long it takes until one of these is there that have no machine, in seconds."""
        now_s = asyncio.get_running_loop().time()
        return self._far.left_s(self._guess_s(), now_s, workers)

    def instance_start_s(self) -> float | None:
        """Return how long a machine takes to start; None: no place has one of its own."""
        if all(place.address for node in self._nodes.values() for place in node.places):
            return None
        return self._far.start_s(self._guess_s())

    def _guess_s(self) -> float:
        return max((node.register.start_s for node in self._nodes.values()), default=0.0)

    def status(self) -> list[dict[str, Any]]:
        """Return what is shown of the nodes."""
        return [
            {
                "id": name,
                "pid": node.register.pid,
                "up_min": node.limits.up_min,
                "parked": node.limits.parked,
                "rest_s": node.limits.rest_s,
                "counts": dict(node.counts),
                "trouble": node.trouble,
                "places": [
                    {
                        "worker": place.worker,
                        "device": place.device,
                        "address": place.address,
                        "state": "silent" if self._is_silent(place) else place.state,
                        "pid": place.pid,
                        "up": self._fleet.up.get(place.worker, ""),
                    }
                    for place in node.places
                ],
            }
            for name, node in sorted(self._nodes.items())
            if node.is_connected
        ]

    # what is to be

    def act(
        self,
        needed: Mapping[str, int],
        wanted: Collection[Ref],
        whose: Mapping[str, str],
        now_s: float,
    ) -> None:
        """Decide which places are to be up, and tell the nodes if that is news.

        Args:
            needed: workers by owner.
            wanted: the versions of which some replica is wanted.
            whose: by worker the endpoint whose own it is; none: it is shared.
            now_s: monotonic.
        """
        stepped_s = asyncio.get_running_loop().time()
        nodes = {name: n for name, n in self._nodes.items() if n.is_connected or n.is_far}
        silent = {p.worker for node in nodes.values() for p in node.places if self._is_silent(p)}
        far = [p for n in nodes.values() for p in n.places if not p.address]
        awaited = self._inherited.look(
            starting=[place.worker for place in far if place.state == "starting"],
            asked=self._fleet.up,
            there=self._workers,
            far_s=self._far.start_s(self._guess_s()),
            now_s=stepped_s,
        )
        leaving = self._fleet.leaving
        places = [
            msgspec.structs.replace(place, is_awaited=place.worker in awaited)
            for place in _places(nodes, self._workers, leaving, silent, set(wanted), whose)
        ]
        limits = {name: node.limits for name, node in nodes.items()}
        before = self._fleet
        self._fleet, self._state = fleet.plan(places, needed, limits, self._state, now_s)
        if self._fleet.up.keys() != before.up.keys():
            _log.info("fleet", up=dict(self._fleet.up), leaving=sorted(self._fleet.leaving))
        for name in self._fleet.silent - before.silent:
            _log.warning("silent_worker_ended", worker=name)
        up = {place.worker for place in places if place.is_up and place.node}
        self._resting_s = {
            name: self._resting_s.get(name, stepped_s) for name in up - self._fleet.up.keys()
        }
        asked = {
            place.worker: place.state in ("cold", "starting")
            for place in far
            if place.worker in self._fleet.up and place.worker not in self._workers
        }
        self._far.look(asked, self._workers, stepped_s)
        not_yet = {n for n, s in self._resting_s.items() if stepped_s - s < ROUTES_FIRST_S}
        for node in self.members():
            self._tell(node, self._fleet.up.keys() | not_yet, stepped_s)

    def _tell(self, node: Node, up: Collection[str], now_s: float) -> None:
        told = (
            tuple(place.worker for place in node.places if place.worker in up),
            tuple(p.worker for p in node.places if p.worker in self._fleet.silent - set(up)),
        )
        is_done = all(
            (place.state in ("starting", "up")) == (place.worker in up) for place in node.places
        )
        if told == node.told and (is_done or now_s - node.told_s < AGAIN_S):
            return
        self._seq += 1
        node.told, node.told_s = told, now_s
        node.peer.send(control.encode(control.Places(self._epoch(), self._seq, *told)))


def _places(
    nodes: Mapping[str, Node],
    workers: Mapping[str, WorkerView],
    leaving: Collection[str],
    silent: Collection[str],
    wanted: Collection[Ref],
    whose: Mapping[str, str],
) -> list[PlaceView]:
    """Return every place, and every worker that has none, as the policy is to see them."""
    warm_at: dict[Ref, list[str]] = {}
    for worker in workers.values():
        for ref, engine in worker.engines.items():
            if engine.state == "warm" and worker.id not in leaving and not worker.draining:
                warm_at.setdefault(ref, []).append(worker.id)

    def view(
        name: str,
        node: str,
        device: str,
        *,
        is_up: bool,
        is_starting: bool = False,
        is_far: bool = False,
    ) -> PlaceView:
        worker = workers.get(name)
        engines = {} if worker is None or not is_up else worker.engines
        loaded = [ref for ref, e in engines.items() if e.state in ("warm", "loading")]
        return PlaceView(
            worker=name,
            node=node,
            device=device,
            owner=whose.get(name, ""),
            is_up=is_up,
            is_starting=is_starting and worker is None,
            is_far=is_far,
            engines=len(loaded),
            calls=sum(engine.calls for engine in engines.values()),
            is_sole=any(ref in wanted and not set(warm_at.get(ref, ())) - {name} for ref in loaded),
            is_silent=name in silent,
        )

    found = []
    for name, node in sorted(nodes.items()):
        for place in node.places:
            seen = workers.get(place.worker)
            is_up = place.state in ("starting", "up")
            is_up |= seen is not None and not seen.draining and place.state != "draining"
            flags = {
                "is_up": is_up,
                "is_starting": place.state == "starting",
                "is_far": not place.address,
            }
            found.append(view(place.worker, name, place.device, **flags))
    known = {place.worker for place in found}
    return found + [
        view(worker.id, "", "", is_up=True)
        for worker in workers.values()
        if worker.id not in known and not worker.draining
    ]


def needed_of(replicas: Iterable[tuple[str, int]], having: Collection[str]) -> dict[str, int]:
    """Return how many workers each owner needs.

    Args:
        replicas: of every version, after its owner.
        having: owners that have workers of their own; the others share.
    """
    found: dict[str, int] = {}
    for name, count in replicas:
        owner = name if name in having else ""
        found[owner] = max(count, found.get(owner, 0))
    return found
