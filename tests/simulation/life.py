"""The life that a seed stands for: things go wrong, then nothing does any more, and what holds."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from unittest import mock

from msgspec.structs import replace

from edge.dispatching import hedging
from registry_sync import endpoints, keys, rollout_orders
from registry_sync.documents import (
    Batch,
    Cache,
    EndpointSpec,
    Hedge,
    KeyRecord,
    Scale,
    Variant,
)
from registry_sync.keys import record_of
from registry_sync.rollout_terms import Guard
from tests.simulation.documents import put_model
from tests.simulation.engine import Costs, ledger
from tests.simulation.faults import Faults
from tests.simulation.fleet import Fleet, fleet_of
from tests.simulation.front import Told
from tests.simulation.invariants import Holds
from tests.simulation.loop import START_S
from tests.simulation.observed import observed
from tests.simulation.options import (
    HELPING,
    POISON_EACH,
    SECOND_ADDS,
    SECOND_FAILS_EACH,
    Model,
    Options,
    drawn,
)
from tests.simulation.processes import Process
from tests.simulation.rollouts import Scene
from tests.simulation.world import World, simulate, until

RESTART_S: Final = (0.1, 0.6)  # of what has died, by whoever keeps it
UP_S_MAX: Final = 60.0
HEALED_S_MAX: Final = 90.0  # a leader's lease, a minute's pause after loads that failed
QUIET_S_MAX: Final = 20.0
AFTER_S: Final = 1.0  # of calls that must all be answered
AFTER_PER_S: Final = 8.0
HEDGED_AFTER: Final = 10  # calls; a life is short
POISON_AGAIN_S: Final = 2.0
AFTER_TIMEOUT_S: Final = 5.0
LOOK_S: Final = 0.1
UNITS: Final = 20
CACHED_INPUTS: Final = 10
VALUE_MIN: Final = 1_000
STEPS: Final = (50.0,)
HOLD_S: Final = 1.0
GUARD: Final = Guard(outcomes_min=10)
ENDED: Final = ("promoted", "rolled_back")
ROLLOUT_S_MAX: Final = 120.0
CACHED_VALUE_MIN: Final = 500_000


@dataclass(frozen=True)
class Outcome:
    """What became of a seed."""

    digest: str  # of everything that was logged, answered and run
    statuses: Mapping[int, int]  # how many calls ended how; 0: with their edge
    virtual_s: float


class Life:
    """A fleet of the given options, from its start to its end."""

    def __init__(self, world: World, fleet: Fleet, options: Options) -> None:
        self.world, self.fleet, self.options = world, fleet, options
        self.dice = world.loop.dice
        self.scene = Scene(fleet, by=("header:x-user-id",))
        self.fronts, self.told = self.scene.fronts, self.scene.told
        self.faults = Faults(options, fleet)
        self.after_s = 0.0  # when nothing of all that was left; 0: it has not come
        self._next_value = VALUE_MIN

    # what there is

    def publish(self) -> None:
        """Put models, endpoints and keys into the registry."""
        store = self.fleet.store.behind
        for model in self.options.models:
            put_model(store, model.name, model.costs, "1", model.rows_max)
            if self.has_rollout(model):
                put_model(store, model.name, self.candidate(model), "2", model.rows_max)
            spec = EndpointSpec(
                model.name,
                (Variant("stable", model.name, "1", 100.0),),
                cache=Cache() if model.cached else None,
                batch=Batch(rows_max=model.rows_max),
                hedge=Hedge() if model.hedged else None,
                scale=Scale(
                    replicas_min=model.replicas_min,
                    replicas_max=model.replicas_max,
                    idle_s=model.idle_s,
                    dedicated=self.options.has_dedicated and model is self.options.models[-1],
                    fallback="cpu" if self.options.helpers else "none",
                ),
            )
            endpoints.set_spec(store, spec)
        for at, share in enumerate(self.options.tenants):
            keys.add_key(store, self._key(at, share))

    def _key(self, at: int, share: float) -> KeyRecord:
        return replace(record_of(self.key(at), f"t{at}", ("infer:*",)), share=share)

    def key(self, at: int) -> str:
        """The key of a tenant."""
        return f"a key of the simulation: {at}"

    def has_rollout(self, model: Model) -> bool:
        """Whether another version takes over from a model's first."""
        return bool(self.options.rollout) and model is self.options.models[0]

    def candidate(self, model: Model) -> Costs:
        """The costs of that version."""
        fails_each = SECOND_FAILS_EACH if self.options.rollout == "bad" else 0
        return replace(model.costs, adds=model.costs.adds + SECOND_ADDS, fails_each=fails_each)

    def start(self) -> None:
        """Start every process; whichever dies is started again."""
        options, fleet = self.options, self.fleet
        network = self.world.loop.network
        network.delay_s, network.pieces_share = options.delay_s, options.pieces_share
        fleet.store.answer_s = options.answer_s
        fleet.is_told = options.is_told
        for at in range(options.controllers):
            self._keep(lambda at=at: fleet.controller(f"c{at}"))
        for at, workers in enumerate(options.nodes):
            node = f"n{at}"
            if options.supervised:
                fleet.pool(node, workers=workers, up_min=0, rest_s=2.0, controller=None)
                continue
            self._keep(lambda node=node: fleet.sync(node))
            for name in [name for name in options.workers if name.startswith(node)]:
                self._keep(lambda name=name, node=node: self._worker(name, node))
        if options.helpers:
            self._keep(lambda: fleet.sync(HELPING))
        for name in options.helper_names:
            self._keep(lambda name=name: self._worker(name, HELPING, is_fallback=True))
        for at in range(options.edges):
            self._keep(lambda at=at: self.scene.front(f"e{at}").process)

    def _worker(self, name: str, node: str, *, is_fallback: bool = False) -> Process:
        bytes_max = self.options.queue_bytes_max
        return self.fleet.worker(
            name, node, controller=None, queue_bytes_max=bytes_max, is_fallback=is_fallback
        )

    def _keep(self, make: Callable[[], Process]) -> None:
        async def forever() -> None:
            while True:
                await make().ended
                await asyncio.sleep(self.dice.uniform(*RESTART_S))

        self.world.go(forever())

    # what is asked

    def _ask(self, model: Model, value: int, rows: int, *, priority: int = 0) -> None:
        """Call a model at some edge that runs."""
        dice = self.dice
        fronts = [front for front in self.fronts.values() if front.is_running]
        fronts = [front for front in fronts if front.knows(model.name)]
        if not fronts:
            return
        front, tenant = dice.choice(fronts), dice.randrange(len(self.options.tenants))
        told = Told(
            front.process,
            self.world.now_s,
            value,
            unit=f"u{dice.randrange(UNITS)}",
            number=len(self.told),
            endpoint=model.name,
            key=self.key(tenant),
            rows=rows,
            priority=priority,
            timeout_s=AFTER_TIMEOUT_S if self.after_s else model.timeout_s,
        )
        self.told.append(told)
        task = front.call(told)
        if model.left_share and not self.after_s and dice.random() < model.left_share:
            self.world.loop.call_later(dice.uniform(0.0, told.timeout_s / 2), self._leave, task)

    def _leave(self, task: asyncio.Task[None]) -> None:
        task.cancel()

    def _ask_something(self, model: Model) -> None:
        if model.cached:
            self._ask(model, CACHED_VALUE_MIN + self.dice.randrange(CACHED_INPUTS), 1)
            return
        rows = self.dice.choice((1, 1, 1, 2, 3)) if model.rows_max > 2 else 1
        value, self._next_value = self._next_value, self._next_value + rows
        self._ask(model, value, rows, priority=self.dice.choice((0, 0, 0, 1, 100)))

    async def _traffic(self, model: Model, per_s: float, is_over: Callable[[], bool]) -> None:
        while not is_over():
            await asyncio.sleep(self.dice.expovariate(per_s))
            self._ask_something(model)

    async def _poison(self, at: int, at_s: float) -> None:
        model = self.options.models[at % len(self.options.models)]
        for pause_s in (at_s, POISON_AGAIN_S):  # whoever sent it tries again
            await asyncio.sleep(pause_s)
            self._ask(model, POISON_EACH * (at + 1), 1)

    async def _rollout(self) -> None:
        await asyncio.sleep(self.options.rollout_at_s)
        name = self.options.models[0].name
        store = self.fleet.store.behind
        rollout_orders.start(store, name, "2", steps=STEPS, hold_s=HOLD_S, guard=GUARD)

    # its phases

    async def run(self, holds: Holds) -> None:
        """Live."""
        self.publish()
        self.start()
        await until(holds.is_healed, UP_S_MAX, LOOK_S)
        go, options = self.world.go, self.options
        go(holds.look_forever())
        began_s = self.world.now_s
        faults = go(self.faults.run())
        tasks = []
        for model in options.models:

            def is_over(model: Model = model) -> bool:
                is_rolling = self.has_rollout(model) and self.scene.phase not in ENDED
                return self.world.now_s > began_s + options.length_s and not is_rolling

            tasks.append(go(self._traffic(model, model.calls_per_s, is_over)))
        if options.rollout:
            tasks.append(go(self._rollout()))
        tasks += [go(self._poison(at, at_s)) for at, at_s in enumerate(options.poison_at_s)]
        await faults
        await until(holds.is_healed, HEALED_S_MAX, LOOK_S)
        await until(lambda: all(task.done() for task in tasks), ROLLOUT_S_MAX, LOOK_S)
        await asyncio.gather(*tasks)
        await self._until_quiet(holds)
        after_s = self.after_s = self.world.now_s
        until_s = after_s + AFTER_S
        await asyncio.gather(
            *(
                self._traffic(model, AFTER_PER_S, lambda: self.world.now_s > until_s)
                for model in options.models
            )
        )
        await self._until_quiet(holds)
        holds.check(after_s)

    async def _until_quiet(self, holds: Holds) -> None:
        until_s = self.world.now_s + QUIET_S_MAX
        while (left := holds.left()) or not holds.is_over():
            assert self.world.now_s < until_s, left or "the rollout does not end"
            await asyncio.sleep(LOOK_S)


def live(seed: int, options: Options | None = None) -> Outcome:
    """Let a seed live.

    What fails prints the seed's options, after its log.

    Args:
        options: others than the seed's own.

    Raises:
        AssertionError: something did not hold.
    """
    options = options or drawn(seed)

    async def main(world: World) -> Outcome:
        few = mock.patch.multiple(hedging, TIMES_MIN=HEDGED_AFTER, LOOK_EACH=1)
        with observed() as seen, fleet_of(world) as fleet, few:
            life = Life(world, fleet, options)
            holds = Holds(options, life.scene, life.faults, seen)
            await life.run(holds)
            trace = [*map(str, world.lines), *map(str, life.told), *map(str, ledger.runs)]
            text = "\n".join(trace).replace(str(fleet.folder), "")
            digest = hashlib.sha256(text.encode()).hexdigest()
            statuses = Counter(told.status for told in life.told)
            return Outcome(digest, statuses, world.now_s - START_S)

    try:
        return simulate(main, seed=seed)
    except BaseException:
        print(f"seed {seed} stood for:\n{options}")
        raise
