"""Random faults on a whole fleet: whatever happens, no answer is wrong, lost, late or doubled."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable

import pytest

from tests.simulation.engine import Costs
from tests.simulation.fleet import Edge, Fleet, fleet_of
from tests.simulation.world import World, simulate, until

FAULTS_S = 40.0
PAUSE_S = 2.0  # between two faults, on average
HEALED_S_MAX = 40.0  # a leader's lease and a pause after a load that failed
ENDINGS = {200, 502, 503, 504}


class Chaos:
    """What can go wrong in a fleet of two nodes, two controllers and two edges."""

    def __init__(self, fleet: Fleet, edges: list[Edge], dice: random.Random) -> None:
        self._fleet = fleet
        self._world = fleet.world
        self._edges = edges
        self._dice = dice
        self._faults: list[Callable[[], Awaitable[None]]] = [
            self._kill_a_worker,
            self._stop_a_worker,
            self._kill_a_controller,
            self._stop_a_controller,
            self._cut,
            self._registry_away,
            self._kill_a_sync,
            self._step_the_clock,
        ]

    async def run(self) -> None:
        """Let things go wrong for a while, some at the same time."""
        until_s = self._world.now_s + FAULTS_S
        faults = []
        while self._world.now_s < until_s:
            await asyncio.sleep(self._dice.expovariate(1 / PAUSE_S))
            faults.append(self._world.go(self._dice.choice(self._faults)()))
        await asyncio.gather(*faults)
        self._world.loop.network.heal()

    def _one_of(self, *beginnings: str) -> str:
        processes = self._world.loop.processes.values()
        living = [p.name for p in processes if p.state == "running"]
        return self._dice.choice([name for name in living if name.startswith(beginnings)] or [""])

    async def _stop(self, name: str, for_s: float) -> None:
        if name:
            process = self._fleet.named(name)
            process.kill(signal.SIGSTOP)
            await asyncio.sleep(for_s)
            process.kill(signal.SIGCONT)

    async def _kill_a_worker(self) -> None:
        name = self._one_of("n1-", "n2-")
        if name:
            self._fleet.named(name).kill()

    async def _stop_a_worker(self) -> None:
        await self._stop(self._one_of("n1-", "n2-"), self._dice.uniform(0.05, 5.0))

    async def _kill_a_controller(self) -> None:
        name = self._one_of("c1", "c2")
        if name:
            self._fleet.named(name).kill()
            await asyncio.sleep(self._dice.uniform(0.0, 5.0))
            self._fleet.controller(name)

    async def _stop_a_controller(self) -> None:
        await self._stop(self._one_of("c1", "c2"), self._dice.uniform(0.5, 30.0))

    async def _cut(self) -> None:
        names = [self._one_of("c1", "c2"), self._one_of("n1-", "n2-", "e")]
        if all(names):
            self._world.loop.network.cut(*map(self._fleet.named, names))
            await asyncio.sleep(self._dice.uniform(0.5, 10.0))
            self._world.loop.network.heal()

    async def _registry_away(self) -> None:
        self._fleet.store.is_away = True
        await asyncio.sleep(self._dice.uniform(0.5, 20.0))
        self._fleet.store.is_away = False

    async def _kill_a_sync(self) -> None:
        name = self._one_of("n1.sync", "n2.sync")
        if name:
            self._fleet.named(name).kill()

    async def _step_the_clock(self) -> None:
        self._world.step_wall_clock(self._dice.choice([-3600.0, 3600.0]))


async def life(world: World) -> None:
    """Let a fleet serve through faults, and then show that it has got over them."""
    with fleet_of(world) as fleet:
        fleet.put("busy", Costs(run_s=0.02), replicas_min=1)
        fleet.put("lazy", Costs(load_s=0.5), idle_s=3)
        fleet.controller("c1")
        fleet.controller("c2")
        fleet.pool("n1", workers=2, up_min=1, controller=None)
        fleet.pool("n2", workers=1, up_min=0, controller=None)
        edges = [fleet.edge(name, controller=None) for name in ("e1", "e2")]
        await until(lambda: all(e.knows("lazy") and e.routes_to("lazy") for e in edges))
        assert (await edges[0].ask("busy")).status == 200
        chaos = world.go(Chaos(fleet, edges, world.loop.dice).run())
        traffic = [
            world.go(fleet.traffic(edges, "busy", per_s=15, for_s=FAULTS_S, deadline_s=3.0)),
            world.go(fleet.traffic(edges, "lazy", per_s=0.3, for_s=FAULTS_S, deadline_s=8.0)),
        ]
        await until(lambda: chaos.done() and all(part.done() for part in traffic), 120.0)
        await asyncio.gather(chaos, *traffic)
        assert fleet.statuses().keys() <= ENDINGS, fleet.statuses()
        await asyncio.sleep(HEALED_S_MAX)
        for endpoint in ("busy", "lazy"):
            done = await fleet.traffic(edges, endpoint, per_s=10, for_s=3.0, deadline_s=5.0)
            assert {one.status for one in done} == {200}, endpoint
        fleet.check(may_repeat=True)


@pytest.mark.parametrize("seed", range(2))
def test_fleet_gets_over_whatever_happens(seed: int) -> None:
    simulate(life, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fleet_gets_over_whatever_happens_many_times() -> None:
    for seed in range(2, 50):
        print(f"seed {seed}")
        simulate(life, seed=seed)
