"""What holds of every life, whatever goes wrong in it."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any, Final

from edge.dispatching.dispatch import Pool
from edge.dispatching.quarantine import DEATHS_MAX
from pool.slots import EngineSlot
from pool.wire.control import Routes
from tests.simulation.engine import ledger
from tests.simulation.faults import Faults
from tests.simulation.front import GONE, Front, Told
from tests.simulation.observed import Observed
from tests.simulation.options import (
    POISON_EACH,
    SECOND_ADDS,
    SECOND_FAILS_EACH,
    Model,
    Options,
)
from tests.simulation.processes import Process
from tests.simulation.rollouts import NAME, Scene, check_line

LATE_S_MAX: Final = 0.1  # after its deadline a call has ended, one way or another
LOOK_S: Final = 0.1
RETRIES_FREE: Final = 3  # of an edge, besides its share
RETRY_SHARE: Final = 0.1
HEDGE_SHARE: Final = 0.05
HUNG_S_MAX: Final = 1.55  # 2.9 missing reports, of two a second, and what was on its way
HEARD_S_MAX: Final = 0.1  # a worker knows after so long that a caller has left
SENT_MAX: Final = 6  # once, again as the one of a batch who may be guilty, and for loads
# How a call may end while things go wrong; 500 only where the model fails.
ENDINGS: Final = frozenset((200, GONE, 422, 429, 500, 502, 503, 504))


class Holds:
    """The invariants of one life."""

    def __init__(self, options: Options, scene: Scene, faults: Faults, seen: Observed) -> None:
        self._options = options
        self._scene = scene
        self._world = scene.fleet.world
        self._faults = faults
        self._seen = seen
        self._models = {model.name: model for model in options.models}
        self._heard: dict[Process, tuple[int, int]] = {}  # what routes an edge went by last
        self._problems: list[str] = []

    # now

    async def look_forever(self) -> None:
        """Look again and again at what must hold at every moment."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._one_leads()
            self._bounds()
            self._routes_go_on()

    def _one_leads(self) -> None:
        leading = [p for p, one in self._seen.living(self._seen.controllers) if one._may_act()]
        if len(leading) > 1:
            self._problem(f"several lead: {leading}")

    def _bounds(self) -> None:
        for process, worker in self._seen.living(self._seen.workers):
            if worker.inside.bytes > worker.inside.bytes_max:
                self._problem(f"{process} has {worker.inside.bytes} bytes inside")
            if worker.inside.bytes < 0:
                self._problem(f"{process} has counted bytes twice: {worker.inside.bytes}")

    def _routes_go_on(self) -> None:
        scene = self._scene
        for front in scene.fronts.values():
            routes = _routes_of(front)
            if routes is not None:
                now = (routes.epoch, routes.seq)
                before = self._heard.get(front.process, (0, 0))
                if now < before and front.process.state == "running":
                    self._problem(f"{front.name} went back from routes {before} to {now}")
                self._heard[front.process] = now
            if front.is_running and self._options.rollout and front.knows(NAME):
                scene.see(front)

    def _problem(self, text: str) -> None:
        if not self._problems:
            self._problems.append(f"at {self._world.now_s:.3f}: {text}")

    # after healing

    def is_healed(self) -> bool:
        """Tell whether everybody lives, agrees, and every model is where it is to be."""
        fronts = list(self._scene.fronts.values())
        if len(fronts) < self._options.edges or not all(map(self._is_connected, fronts)):
            return False
        names = {p.name for p in self._world.loop.processes.values() if p.state == "running"}
        if not self._expected() <= names:
            return False
        leading = [c for _, c in self._seen.living(self._seen.controllers) if c._may_act()]
        if len(leading) != 1:
            return False
        first = _routes_of(fronts[0])
        for front in fronts:
            routes = _routes_of(front)
            if routes is None or first is None or routes.epoch != leading[0]._epoch():
                return False
            if (routes.engines, routes.workers) != (first.engines, first.workers):
                return False
        if self._options.has_dedicated and sum(self._options.nodes) > 1 and self._is_mixed(first):
            return False
        return all(self._is_warm(m, front) for m in self._models.values() for front in fronts)

    def _is_mixed(self, routes: Routes) -> bool:
        """Tell whether a worker has what is dedicated as well as something else."""
        name = self._options.models[-1].name
        own = {
            worker for engine in routes.engines if engine.model == name for worker in engine.warm
        }
        return any(not own.isdisjoint(e.warm) for e in routes.engines if e.model != name)

    def _is_connected(self, front: Front) -> bool:
        is_known = front.is_running and all(map(front.knows, self._models))
        return is_known and front.world.link.is_up

    def _is_warm(self, model: Model, front: Front) -> bool:
        if not front.routes_to(model.name):
            return False
        if not model.replicas_min:
            return True
        route = front.pool.route((model.name, "1"))
        conns = front.pool._conns
        warm = () if route is None else route.warm
        if any(name in self._options.helper_names for name in warm):
            return False  # they help out for a while only
        return any(w in conns and conns[w].is_up for w in warm) and all(map(self._is_true, warm))

    def _is_true(self, name: str) -> bool:
        """Tell whether a worker that routes name has something loaded."""
        living = self._seen.living(self._seen.workers)
        found = [worker for process, worker in living if process.name == name]
        return any(slot.state == "warm" for worker in found for slot in worker._slots.values())

    def _expected(self) -> set[str]:
        options = self._options
        names = {f"e{at}" for at in range(options.edges)}
        names |= {f"c{at}" for at in range(options.controllers)}
        names |= {*options.syncs, *options.helper_names}
        return names if options.supervised else names | set(options.workers)

    def is_over(self) -> bool:
        """Tell whether the rollout has come to its end, and every edge goes by that."""
        scene = self._scene
        if not self._options.rollout:
            return True
        if scene.phase not in ("promoted", "rolled_back"):
            return False
        weights = scene.history[-1].state.weights
        return all(front.weights(NAME) == weights for front in scene.fronts.values())

    def left(self) -> str:
        """Say what is left of calls; empty: every one has ended, and nothing is."""
        scene = self._scene
        for told in scene.told:
            if not told.status and told.edge.state != "dead":
                return f"lost, or not ended: {told}"
        for front in scene.fronts.values():
            if _left_at(front.pool):
                return f"{front.name} has calls that have ended"
        for process, worker in self._seen.living(self._seen.workers):
            if any(edge.calls for edge in worker.peers):
                return f"{process} has calls that have ended"
            if any(slot.calls or self._is_pausing(slot) for slot in worker._slots.values()):
                return f"{process} has calls in a queue that have ended"
            if worker.inside.bytes:
                return f"{process} has {worker.inside.bytes} bytes of calls that have ended"
        return ""

    def _is_pausing(self, slot: EngineSlot) -> bool:
        """Tell whether a load has failed so lately that another is not yet tried."""
        return slot.state == "failed" and self._world.now_s < slot._retry_at_s

    # in the end

    def check(self, after_s: float) -> None:
        """Check the whole life.

        Args:
            after_s: from when on every call must be answered.
        """
        assert not self._problems, self._problems
        assert not self._seen.problems, self._seen.problems
        assert not ledger.crowded, ledger.crowded
        self._check_ends(after_s)
        self._check_answers()
        self._check_runs()
        self._check_tenants()
        self._check_gone()
        self._check_hung()
        self._check_sends()
        self._check_quarantine()
        if self._options.rollout:
            self._check_rollout()

    def _check_ends(self, after_s: float) -> None:
        """Every call has ended, in time; those that nothing disturbed with an answer."""
        must_serve = self._options.is_gentle
        for told in self._scene.told:
            if not told.status:
                assert told.edge.state == "dead", f"lost: {told}"
                continue
            late_s = told.ended_s - told.at_s - told.timeout_s - self._stopped_s(told)
            assert late_s <= LATE_S_MAX, f"late by {late_s:.3f} s: {told}"
            assert told.status in ENDINGS, told
            is_poison = told.value % POISON_EACH == 0
            model = self._models[told.endpoint]
            if is_poison:
                assert told.status != 200, told
            elif told.at_s >= after_s or (must_serve and model.replicas_min):
                # A worker's death may be laid to who was in flight, twice: see `_check_quarantine`.
                assert told.status in (200, 500, 422, GONE), f"not answered: {told}"

    def _stopped_s(self, told: Told) -> float:
        """For how long a call's edge stood still after it had come."""
        stops = self._faults.stopped_s.get(told.edge, ())
        return sum(max(0.0, end_s - max(begin_s, told.at_s)) for begin_s, end_s in stops)

    def _check_answers(self) -> None:
        """Every answer is that of the version asked, for the very input that was sent."""
        for told in self._scene.told:
            model = self._models[told.endpoint]
            adds = model.costs.adds
            each = {adds: model.costs.fails_each}
            if self._options.rollout and model is self._options.models[0]:
                is_bad = self._options.rollout == "bad"
                each[adds + SECOND_ADDS] = SECOND_FAILS_EACH if is_bad else 0
            if told.status == 200:
                added = set(told.added)
                assert len(added) == 1, f"a wrong answer: {told}"
                assert added <= each.keys(), f"a wrong answer: {told}"
                assert not _fails(told, each[told.added[0]]), f"an answer for a failure: {told}"
            elif told.status == 500:
                assert any(_fails(told, one) for one in each.values()), f"failed: {told}"

    def _check_runs(self) -> None:
        """No run is larger than it may be, and none was done that nobody had sent."""
        for run in ledger.runs:
            assert len(run.values) <= self._models[run.model].rows_max, f"too many rows: {run}"
        sent: Counter[int] = Counter()
        for told in self._scene.told:
            sent.update(dict.fromkeys(told.values, self._seen.sent[told.id]))
        done = ledger.times_run()
        doubled = {value: count for value, count in done.items() if count > sent[value]}
        assert not doubled, f"run more often than sent: {doubled}"
        for told in self._scene.told:
            if told.status == 200:
                assert all(done[value] for value in told.values), f"nobody has run it: {told}"

    def _check_tenants(self) -> None:
        """Nobody was given what was computed for another tenant."""
        done = ledger.times_run()
        askers: dict[int, set[str]] = {}
        for told in self._scene.told:
            if told.status == 200:
                askers.setdefault(told.value, set()).add(told.key)
        for value, keys in askers.items():
            assert done[value] >= len(keys), f"another tenant's answer: {value} for {keys}"

    def _check_gone(self) -> None:
        """What nobody waits for is not run."""
        began = {value: run.at_s for run in ledger.runs for value in run.values}
        for told in self._scene.told:
            is_shared = told.value % POISON_EACH == 0 or self._models[told.endpoint].cached
            if told.status != GONE or is_shared:  # somebody else may have asked for it too
                continue
            at_s = began.get(told.value, 0.0)
            if at_s > told.ended_s + HEARD_S_MAX:
                is_calm = self._faults.is_calm(told.at_s, at_s, "cut", "slow", "stop", "registry")
                assert not is_calm, f"run at {at_s:.3f}, though its caller had left: {told}"

    def _check_hung(self) -> None:
        """Who stands still is sent nothing once that can be known."""
        for at_s, edge, worker, since_s in self._seen.hung:
            # What is on its way may come late, and an edge that stood still waits for longer.
            is_calm = self._faults.is_calm(since_s - 1.0, at_s, "cut_worker", "slow")
            if is_calm and not self._has_stood(edge, since_s):
                is_late = at_s - since_s > HUNG_S_MAX
                assert not is_late, f"{edge} sends at {at_s:.3f} to {worker}, hung at {since_s:.3f}"

    def _has_stood(self, name: str, since_s: float) -> bool:
        """Tell whether an edge has stood still since then."""
        stops = self._faults.stopped_s.items()
        return any(p.name == name and end_s >= since_s for p, ends in stops for _, end_s in ends)

    def _check_sends(self) -> None:
        """Of the calls that came a tenth was sent once more, besides a few, and 1 in 20 beside."""
        seen = self._seen
        for pid, count in seen.retried.items():
            budget = RETRIES_FREE + RETRY_SHARE * seen.calls[pid]
            assert count <= budget, f"{count} retries of {seen.calls[pid]} calls at {pid}"
        for pid, count in seen.hedged.items():
            assert count <= HEDGE_SHARE * seen.calls[pid], f"{count} hedges at {pid}"
        for name, count in seen.tries.items():
            assert count - seen.returned[name] <= SENT_MAX, f"{name} was sent {count} times"

    def _check_quarantine(self) -> None:
        """Only what killed is refused for it, and it kills no more than twice at each edge."""
        dead = {p.pid for p in self._world.loop.processes.values() if p.state == "dead"}
        killed = Counter(
            value
            for run in ledger.runs
            if not run.is_done and run.pid in dead
            for value in run.values
        )
        sent: Counter[int] = Counter()
        for told in self._scene.told:
            sent[told.value] += self._seen.sent[told.id]
        for told in self._scene.told:
            if told.status == 422:
                assert killed[told.value], f"in quarantine, and did nothing: {told}"
                assert sent[told.value] > 1, f"in quarantine after one death: {told}"
        versions = 2 if self._options.rollout else 1  # to each of which it is another request
        # An edge that is killed takes along what it only suspected.
        edges = len({told.edge.pid for told in self._scene.told})
        # And what a cut holds up is on its way already when the verdict comes.
        was_cut = not self._faults.is_calm(0.0, self._world.now_s, "cut_worker")
        for value, count in killed.items():
            if value % POISON_EACH == 0:
                most = (DEATHS_MAX + was_cut) * versions * edges
                assert count <= most, f"{value} has killed {count} workers"

    def _check_rollout(self) -> None:
        scene = self._scene
        check_line(scene.history)
        scene.check_edges()
        scene.check_counts()
        ends = {"good": "promoted", "bad": "rolled_back"}[self._options.rollout]
        assert scene.phase == ends, scene.history[-1]


def _routes_of(front: Front) -> Routes | None:
    return front.world._routes if front.is_running else None


def _left_at(pool: Pool) -> bool:
    conns: list[Any] = [*pool._conns.values(), *pool._leaving]
    return bool(pool._waiting) or any(conn.calls for conn in conns)


def _fails(told: Told, each: int) -> bool:
    return each > 0 and any(value % each == 0 for value in told.values)
