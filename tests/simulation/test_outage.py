"""Minutes without the registry, while one node after the other is started again."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.simulation.engine import Costs, ledger
from tests.simulation.fleet import Edge, Fleet, fleet_of
from tests.simulation.world import World, simulate, until

CALLS_PER_S = 2.0
DEADLINE_S = 5.0


def start(fleet: Fleet, at: str) -> Edge:
    """Start all of a node; only its edge has somebody who calls it."""
    fleet.controller(f"c{at}")
    fleet.sync(f"n{at}")
    fleet.worker(f"w{at}", f"n{at}", controller=None)
    return fleet.edge(f"e{at}", controller=None)


async def restart(fleet: Fleet, edges: dict[str, Edge], at: str) -> None:
    """Let a whole node restart; nobody calls its edge meanwhile, as a load balancer has it."""
    del edges[at]
    await asyncio.sleep(DEADLINE_S)
    fleet.named(f"w{at}").kill(signal.SIGTERM)
    await asyncio.sleep(1.0)
    for name in (f"w{at}", f"n{at}.sync", f"c{at}", f"e{at}"):
        fleet.named(name).kill()
    await asyncio.sleep(20.0)
    edge = start(fleet, at)
    await until(lambda: edge.knows("m") and edge.pool.workers_up == 2)
    edges[at] = edge


@pytest.mark.rule("F12", "F27")
@pytest.mark.parametrize("away_min", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_dead_registry_fails_no_call_of_a_loaded_model_though_nodes_restart(away_min: int) -> None:
    for_s = 60.0 * away_min

    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(load_s=0.3), replicas_min=2)
            edges = {at: start(fleet, at) for at in ("1", "2")}
            await until(lambda: len(ledger.loads) == 2)
            await until(lambda: all(len(_warm(edge)) == 2 for edge in edges.values()))
            fleet.store.is_away = True
            away_s = world.now_s
            tasks: list[asyncio.Task[object]] = []

            async def traffic() -> None:
                while world.now_s < away_s + for_s:
                    await asyncio.sleep(world.loop.dice.expovariate(CALLS_PER_S))
                    edge = world.loop.dice.choice(list(edges.values()))
                    tasks.append(edge.ask("m", deadline_s=DEADLINE_S))

            calls = world.go(traffic())
            for at in ("1", "2"):
                await asyncio.sleep(for_s / 6)
                await restart(fleet, edges, at)
            await calls
            await asyncio.gather(*tasks)
            assert fleet.statuses() == {200: len(fleet.asked)}
            assert len(ledger.loads) == 4, "each worker has loaded it again, from its own disk"
            fleet.store.is_away = False
            await until(lambda: all(edge.world.link.is_up for edge in edges.values()))
            fleet.check()

    simulate(main)


@pytest.mark.rule("F12")
@pytest.mark.parametrize("away_s", [12, 13, 14, 15, 16])
@pytest.mark.parametrize("is_told", [False, True])
def test_reign_lost_and_won_again_costs_who_comes_no_minutes(
    away_s: float, monkeypatch: pytest.MonkeyPatch, *, is_told: bool
) -> None:
    """Though it happens between two looks, of which a queue that answers makes few."""
    monkeypatch.setattr("tests.simulation.store.GIVE_UP_S", 2.0)

    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.is_told = is_told
            fleet.put("m", Costs(load_s=0.3))
            fleet.controller(sync_interval_s=10.0)
            fleet.sync("n1")
            fleet.worker("w1", "n1")
            await fleet.ready(fleet.edge(), workers=1)
            await asyncio.sleep(60.0)
            fleet.store.is_away = True
            await asyncio.sleep(away_s)
            fleet.store.is_away = False
            await asyncio.sleep(1.0)
            edge = fleet.edge("e2")
            await until(lambda: edge.knows("m"), 5.0)

    simulate(main)


def _warm(edge: Edge) -> tuple[str, ...]:
    route = edge.pool.route(("m", "1")) if edge.knows("m") else None
    return () if route is None else route.warm
