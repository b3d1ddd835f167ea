"""Rollouts in the simulation: calls that take the whole way, and what holds of every history.

A history is every state that was written.  Whatever is killed, stopped, cut off or doubled, it is
one line of decisions, and what it says of the arms is no more than what was really answered.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from registry_sync import endpoints, keys, rollout_orders
from registry_sync.documents import EndpointSpec, EndpointState, read_state
from registry_sync.keys import ALL_SCOPES, record_of
from registry_sync.leader import look
from registry_sync.rollout_terms import ArmSeen, Guard, RolloutState, Wish
from tests.simulation.documents import put_model
from tests.simulation.engine import Costs
from tests.simulation.fleet import Fleet
from tests.simulation.front import KEY, Front, Told
from tests.simulation.processes import Process, current
from tests.simulation.world import until

NAME: Final = "m"
BASELINE, CANDIDATE = "stable", "canary"
COSTS: Final = Costs(load_s=0.3, run_s=0.002, row_s=0.0)
STEPS: Final = (20.0, 50.0)
HOLD_S: Final = 3.0
GUARD: Final = Guard(outcomes_min=20)
CALLS_PER_S: Final = 25.0
OUTCOMES: Final = frozenset({200, 422, 500, 502, 504})  # 422: it killed two workers
DOCUMENT_S_MAX: Final = 1.0  # from a decision to every live edge
UNITS: Final = 200
EDGES: Final = 2
WORKERS: Final = 2


@dataclass
class Written:
    """A state that was written."""

    at_s: float
    by: str
    state: EndpointState

    @property
    def rollout(self) -> RolloutState:
        """How far the rollout was."""
        assert self.state.rollout is not None
        return self.state.rollout


@dataclass
class Seen:
    """By which weights an edge went."""

    at_s: float
    edge: Process
    weights: Mapping[str, float]


@dataclass
class Scene:
    """A fleet with one endpoint, its traffic, and the history of its rollout."""

    fleet: Fleet
    fronts: dict[str, Front] = field(default_factory=dict)
    told: list[Told] = field(default_factory=list)
    history: list[Written] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    # Told of every state, before it is written and after.
    at_write: Callable[[EndpointState, bool], None] = lambda state, is_done: None
    by: tuple[str, ...] = ()  # what assigns

    def __post_init__(self) -> None:
        self.fleet.store.before = self._before
        self.fleet.store.after = self._after

    # documents

    def publish(self, baseline: Costs, candidate: Costs) -> None:
        """Publish two versions, and an endpoint of the first."""
        store = self.fleet.store.behind
        put_model(store, NAME, baseline)
        put_model(store, NAME, candidate, "2")
        assign = {"by": self.by} if self.by else {}
        endpoints.set_spec(
            store,
            msgspec.convert(
                {
                    "endpoint": NAME,
                    "variants": [{"name": BASELINE, "model": NAME, "version": "1", "weight": 100}],
                    "assign": assign,
                    "scale": {"replicas_min": 1, "replicas_max": 2},
                },
                EndpointSpec,
            ),
        )
        keys.add_key(store, record_of(KEY, "default", ALL_SCOPES))

    def begin(self, *, hold_s: float, guard: Guard) -> None:
        """Wish for a rollout to version 2."""
        store = self.fleet.store.behind
        rollout_orders.start(store, NAME, "2", steps=STEPS, hold_s=hold_s, guard=guard)

    def wish(self, wish: Wish) -> None:
        """Wish for something else."""
        rollout_orders.wish(self.fleet.store.behind, NAME, wish)

    def edit(self, **changes: Any) -> None:
        """Replace fields of the spec that have nothing to do with its rollout."""
        store = self.fleet.store.behind
        spec, _ = endpoints.get_spec(store, NAME)
        endpoints.set_spec(store, msgspec.structs.replace(spec, **changes))

    @property
    def state(self) -> EndpointState | None:
        """What is written."""
        found = endpoints.read_state(self.fleet.store.behind, NAME)
        return None if found is None else found[0]

    @property
    def phase(self) -> str:
        """How the rollout stands; empty before it has begun."""
        state = self.state
        return "" if state is None or state.rollout is None else state.rollout.state

    @property
    def step(self) -> int:
        """Its step; 0 before it has begun."""
        state = self.state
        return 0 if state is None or state.rollout is None else state.rollout.step

    @property
    def leader(self) -> str:
        """The controller that leads by the record; empty: none."""
        record = look(self.fleet.store.behind).record
        return "" if record is None else record.url.rpartition("/")[2].removesuffix(".s")

    # processes

    def front(self, name: str, controller: str | None = None) -> Front:
        """Start an edge; the last one of its name is the one that is called."""
        control = "" if controller is None else self.fleet.control(controller)
        made = self.fronts[name] = Front(self.fleet, name, control)
        return made

    async def up(self, controllers: Sequence[str]) -> None:
        """Start everything, and wait until it serves; traffic begins."""
        for name in controllers:
            self.fleet.controller(name)
        self.fleet.sync("n1")
        for number in range(WORKERS):
            self.fleet.worker(f"w{number}", controller=None)
        for number in range(EDGES):
            self.front(f"e{number}")
        await until(lambda: all(front.is_up_for(NAME) for front in self.fronts.values()))
        self.traffic = self.fleet.world.go(self._traffic())
        await until(lambda: sum(told.status == 200 for told in self.told) > 10)

    async def _traffic(self) -> None:
        dice = self.fleet.world.loop.dice
        while True:
            await asyncio.sleep(dice.expovariate(CALLS_PER_S))
            ready = [front for front in self.fronts.values() if front.is_up_for(NAME)]
            if ready:
                front = dice.choice(ready)
                unit = f"u{dice.randrange(UNITS)}" if self.by else ""
                number = len(self.told)
                told = Told(front.process, self.now_s, number, unit, number)
                self.told.append(told)
                front.call(told)
            for front in ready:
                self.see(front)

    def see(self, front: Front) -> None:
        """Note by which weights an edge goes now."""
        self.seen.append(Seen(self.now_s, front.process, front.weights(NAME)))

    @property
    def now_s(self) -> float:
        """The time."""
        return self.fleet.world.now_s

    async def ended(self, phase: str, s_max: float = 240.0) -> None:
        """Wait until the rollout has ended so, and every edge goes by it; and check it all."""
        await until(lambda: self.phase in ("promoted", "rolled_back"), s_max, 0.1)
        await asyncio.sleep(5.0)
        self.traffic.cancel()
        await until(self._is_quiet, 30.0)
        assert self.phase == phase, self.history[-1]
        self.check()

    def _is_quiet(self) -> bool:
        return all(told.status or told.edge.state == "dead" for told in self.told)

    # what is written

    def _before(self, name: str, *args: Any) -> None:
        state = _written(name, *args)
        if state is not None:
            self.at_write(state, False)

    def _after(self, name: str, *args: Any) -> None:
        state = _written(name, *args)
        if state is not None:
            process = current()
            by = "" if process is None else process.name
            if state.rollout is not None:
                self.history.append(Written(self.now_s, by, state))
            self.at_write(state, True)

    # what holds

    def check(self) -> None:
        """Check the whole history."""
        assert self.history
        check_line(self.history)
        self.check_edges()
        self.check_counts()
        bad = [told for told in self.told if told.status not in (200, 500) and told.status]
        wrong = [told for told in self.told if told.status == 200 and told.added != (1,)]
        assert not wrong, wrong[:3]
        assert not bad, bad[:3]

    def check_edges(self) -> None:
        """Every edge goes by weights that were written, never back, and soon."""
        weights = [dict(written.state.weights) for written in self.history]
        at: dict[int, int] = {}
        for seen in self.seen:
            found = [index for index, one in enumerate(weights) if one == seen.weights]
            past = at.get(seen.edge.pid, 0)
            now = [i for i in found if i >= past and self.history[i].at_s <= seen.at_s]
            is_begin = seen.weights.get(BASELINE) == 100 and not past
            assert now or is_begin, (seen, past, [(w.at_s, w.state.weights) for w in self.history])
            if now:
                at[seen.edge.pid] = now[0]
        for front in self.fronts.values():
            if front.process.state == "running":
                assert front.weights(NAME) == weights[-1]

    def check_counts(self) -> None:
        """No call is counted twice, whoever reported it to whom."""
        # Whoever was killed may have had an outcome that its caller was never told.
        untold = sum(not told.status for told in self.told)
        for arm in (BASELINE, CANDIDATE):
            seen = self.seen_of(arm)
            ended = [told for told in self.told if told.arm == arm and told.status in OUTCOMES]
            failed = [told for told in ended if told.status != 200]
            assert seen.calls <= len(ended) + untold, (arm, seen)
            assert seen.errors <= len(failed) + untold, (arm, seen)
            assert seen.failed_units <= seen.errors, (arm, seen)

    def check_undisturbed(self) -> None:
        """Check what nothing stood in the way of: everybody follows soon, most of it is counted."""
        ends_s = [written.at_s for written in self.history[1:]] + [math.inf]
        for seen in self.seen:
            weights = [
                written.state.weights
                for written, end_s in zip(self.history, ends_s, strict=True)
                if written.at_s <= seen.at_s < end_s + DOCUMENT_S_MAX
            ]
            assert not weights or seen.weights in weights, (seen, weights)
        watched = [written.at_s for written in self.history if written.rollout.step]
        done = [t for t in self.told if watched[0] < t.at_s < watched[-1] and t.status in OUTCOMES]
        counted = sum(self.seen_of(arm).calls for arm in (BASELINE, CANDIDATE))
        assert counted > 0.5 * len(done), (counted, len(done))  # edges report once a second

    def seen_of(self, arm: str) -> ArmSeen:
        """Return what the state says of an arm, all segments together."""
        found = [s.arms[arm] for s in self.history[-1].rollout.segments if arm in s.arms]
        return ArmSeen(
            calls=sum(seen.calls for seen in found),
            errors=sum(seen.errors for seen in found),
            failed_units=sum(seen.failed_units for seen in found),
        )


def check_line(history: Sequence[Written]) -> None:
    """Check that a history is one line of decisions, each of which was made once."""
    assert len({written.rollout.id for written in history}) == 1
    for written in history:
        assert abs(sum(written.state.weights.values()) - 100) < 1e-6
    for one, other in itertools.pairwise(history):
        before, after = one.rollout, other.rollout
        said = (before, after)
        assert _decided(before) != _decided(after), said
        assert after.segment - before.segment in (0, 1), said
        assert before.state != "rolled_back", said
        assert before.state != "promoted" or after.state == "rolled_back", said
        if after.segment == before.segment:
            assert one.state.weights == other.state.weights, said
            assert after.segments == before.segments, said
        else:
            # What was seen before is neither changed nor lost, and nothing is in it twice.
            assert after.segments[: len(before.segments)] == before.segments, said
            assert len(after.segments) <= len(before.segments) + 1, said
    steps = [w.rollout.step for w in history]
    moved = [b for a, b in itertools.pairwise(steps) if a != b]
    assert len(moved) == len(set(moved)), f"a step is decided once: {steps}"


def _decided(state: RolloutState) -> RolloutState:
    return msgspec.structs.replace(state, at="", evidence=None)


def _written(name: str, key: object = "", data: object = b"", *_: Any) -> EndpointState | None:
    if name in ("put_new", "put_if") and key == endpoints.state_key(NAME):
        assert isinstance(data, bytes)
        return read_state(data)
    return None


def kill_here() -> None:
    """End the process that runs this in a thread, as SIGKILL would, at this very point."""
    process = current()
    assert process is not None
    process.kill(signal.SIGKILL)
    time.sleep(1.0)  # it never ends
