"""Worker processes by demand, in virtual time: real supervisors and node agents under a fleet."""

from __future__ import annotations

import asyncio
import signal

import pytest

from tests.simulation.engine import Costs, ledger
from tests.simulation.fleet import Fleet, fleet_of
from tests.simulation.world import World, simulate, until


def up(fleet: Fleet) -> list[str]:
    """Return the names of the workers that have a process."""
    processes = fleet.world.loop.processes.values()
    return [p.name for p in processes if p.state != "dead" and p.name.startswith("n1-")]


def test_node_without_demand_has_no_worker_and_a_call_starts_one() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=3)
            fleet.controller()
            fleet.pool("n1", workers=2, up_min=0, rest_s=5.0)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and edge.routes_to("m"))
            await until(lambda: not up(fleet))
            asked = await edge.ask("m")
            assert asked.status == 200, asked.detail
            assert len(up(fleet)) == 1
            await until(lambda: not up(fleet))
            # And again, from no process at all, many at once: one process, one load.
            done = await asyncio.gather(*(edge.ask("m") for _ in range(100)))
            assert {one.status for one in done} == {200}
            assert len(ledger.loads) == 2
            fleet.check()

    simulate(main)


def test_call_starts_a_worker_while_the_controller_stands_still() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=3)
            controller = fleet.controller()
            fleet.pool("n1", workers=2, up_min=0)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and edge.routes_to("m"))
            await until(lambda: not up(fleet))
            controller.kill(signal.SIGSTOP)
            await asyncio.sleep(30)
            done = await asyncio.gather(*(edge.ask("m") for _ in range(20)))
            assert {one.status for one in done} == {200}
            controller.kill(signal.SIGCONT)
            await until(lambda: not up(fleet))
            fleet.check()

    simulate(main)


def test_worker_killed_by_the_system_is_started_again_and_no_call_is_lost() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(run_s=0.02), replicas_min=1)
            fleet.controller()
            fleet.pool("n1", workers=2, up_min=2)
            edge = fleet.edge()
            await fleet.ready(edge, workers=2)
            assert (await edge.ask("m")).status == 200
            traffic = world.go(fleet.traffic([edge], "m", per_s=20, for_s=30))
            for _ in range(3):
                await asyncio.sleep(8)
                fleet.named(ledger.loads[-1][1]).kill()
            await traffic
            assert fleet.statuses() == {200: len(fleet.asked)}
            assert len(up(fleet)) == 2
            fleet.check(may_repeat=True)

    simulate(main)


def test_node_that_is_told_to_end_ends_its_workers_first() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m")
            fleet.controller()
            node = fleet.pool("n1", workers=2, up_min=2)
            edge = fleet.edge()
            await fleet.ready(edge, workers=2)
            asked = await edge.ask("m")
            assert asked.status == 200
            node.kill(signal.SIGTERM)
            assert await node.ended == 0
            assert not up(fleet)

    simulate(main)


def test_worker_that_nobody_needs_any_more_ends_once_and_stays_away() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", replicas_min=2)
            fleet.controller()
            fleet.pool("n1", workers=2, up_min=0, rest_s=5.0)
            edges = [fleet.edge("e1"), fleet.edge("e2")]
            await fleet.ready(*edges, workers=2)
            fleet.change("m", replicas_min=1, replicas_max=1, idle_s=2)
            traffic = world.go(fleet.traffic(edges, "m", per_s=5, for_s=80))
            await until(lambda: len(up(fleet)) == 1)
            before = len(world.loop.processes)
            await traffic
            assert len(world.loop.processes) == before, "processes come and go for nothing"
            assert fleet.statuses() == {200: len(fleet.asked)}
            fleet.check()

    simulate(main)


def test_worker_that_rests_is_not_started_by_an_edge_that_has_not_heard_of_it() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", replicas_min=2)
            controller = fleet.controller()
            fleet.pool("n1", workers=2, up_min=0, rest_s=5.0)
            edge, cut_off = fleet.edge("e1"), fleet.edge("e2")
            await fleet.ready(edge, cut_off, workers=2)
            await until(lambda: len(cut_off.pool.route(("m", "1")).warm) == 2)
            world.loop.network.cut(controller, cut_off.process)
            fleet.change("m", idle_s=2)
            await until(lambda: not up(fleet))
            before = len(world.loop.processes)
            await asyncio.sleep(60)
            assert len(world.loop.processes) == before, "a process has started without a call"
            assert cut_off.pool.route(("m", "1")).warm, "it goes by old routes"
            # A call goes through at once, and starts no more than the replicas that it knows of.
            done = await asyncio.gather(*(cut_off.ask("m") for _ in range(20)))
            assert {one.status for one in done} == {200}
            assert len(world.loop.processes) <= before + 2
            await until(lambda: not up(fleet))
            before = len(world.loop.processes)
            await asyncio.sleep(60)
            assert len(world.loop.processes) == before, "a process has started without a call"
            world.loop.network.heal()
            assert (await cut_off.ask("m")).status == 200
            fleet.check()

    simulate(main)


def test_worker_that_is_woken_while_sync_is_being_started_waits_for_it() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=3)
            fleet.controller()
            fleet.pool("n1", workers=1, up_min=1)
            edge = fleet.edge()
            await fleet.ready(edge, workers=1)
            fleet.named("n1.sync").kill()
            asked = await edge.ask("m")
            assert asked.status == 200, asked.detail
            assert asked.wait_s < 2.0
            fleet.check()

    simulate(main)


def test_worker_whose_heir_takes_its_place_costs_no_call() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", Costs(run_s=0.02), replicas_min=1)
            fleet.controller()
            fleet.pool("n1", workers=1, up_min=1)
            edges = [fleet.edge("e1"), fleet.edge("e2")]
            await fleet.ready(*edges, workers=1)
            assert (await edges[0].ask("m")).status == 200
            traffic = world.go(fleet.traffic(edges, "m", per_s=40, for_s=20, deadline_s=2.0))
            for number in range(1, 4):
                await asyncio.sleep(4)
                fleet.named("n1-0").kill(signal.SIGUSR1)
                await until(lambda number=number: len(world.log("worker_down")) == number)
            await traffic
            assert len(ledger.loads) == 4, "an heir loads what is hot before it takes over"
            assert fleet.statuses() == {200: len(fleet.asked)}
            fleet.check()

    simulate(main)


@pytest.mark.parametrize(("up_min", "parked"), [(0, 0), (0, 1), (2, 0)])
def test_call_is_answered_by_another_place_while_a_worker_stands_still(
    up_min: int, parked: int
) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=3)
            fleet.controller()
            fleet.pool("n1", workers=2, up_min=up_min, parked=parked, rest_s=60.0)
            edges = [fleet.edge("e1"), fleet.edge("e2")]
            await fleet.ready(*edges, workers=max(up_min, parked))
            await until(lambda: all(edge.routes_to("m") for edge in edges))
            assert (await edges[0].ask("m")).status == 200
            hung = fleet.named(ledger.loads[-1][1])
            hung.kill(signal.SIGSTOP)
            await asyncio.sleep(2.5)  # so long it may take until that is known
            done = await fleet.traffic(edges, "m", per_s=10, for_s=15, deadline_s=5.0)
            assert {one.status for one in done} == {200}
            assert hung.state == "stopped", "it may come back"
            hung.kill(signal.SIGCONT)
            await until(lambda: hung.name in edges[0].pool.route(("m", "1")).wake_at)
            done = await fleet.traffic(edges, "m", per_s=10, for_s=15, deadline_s=5.0)
            assert {one.status for one in done} == {200}
            assert hung.state == "running"
            fleet.check()

    simulate(main)


@pytest.mark.parametrize("after_s", [1.0, 1.4, 1.8])
def test_worker_that_hangs_when_it_is_about_to_rest_keeps_no_call(after_s: float) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=1)
            fleet.controller()
            fleet.pool("n1", workers=2, up_min=0, rest_s=0.2)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and edge.routes_to("m"))
            assert (await edge.ask("m")).status == 200
            hung = fleet.named(ledger.loads[-1][1])
            await asyncio.sleep(after_s)
            hung.kill(signal.SIGSTOP)
            await asyncio.sleep(2.5)
            assert hung.state == "stopped"
            done = await fleet.traffic([edge], "m", per_s=1, for_s=60, deadline_s=5.0)
            assert {one.status for one in done} == {200}
            assert hung.state == "dead"
            fleet.check()

    simulate(main)


def test_parked_worker_that_stands_still_is_replaced() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=3)
            fleet.controller()
            fleet.pool("n1", workers=2, up_min=0, parked=1)
            edge = fleet.edge()
            await fleet.ready(edge, workers=1)
            fleet.named("n1-0").kill(signal.SIGSTOP)
            await until(lambda: "n1-1" in up(fleet), 5.0)
            await until(lambda: edge.pool.workers_up == 1)
            asked = await edge.ask("m")
            assert (asked.status, ledger.loads[-1][1]) == (200, "n1-1")
            assert asked.wait_s < 1.0

    simulate(main)


@pytest.mark.parametrize("up_min", [0, 1])
def test_only_worker_that_stands_still_for_long_is_ended_and_a_call_starts_the_next(
    up_min: int,
) -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", replicas_min=1)
            fleet.controller()
            fleet.pool("n1", workers=1, up_min=up_min)
            edge = fleet.edge()
            await fleet.ready(edge, workers=1)
            assert (await edge.ask("m")).status == 200
            hung = fleet.named("n1-0")
            hung.kill(signal.SIGSTOP)
            await asyncio.sleep(2.5)
            asked = await edge.ask("m", deadline_s=120.0)
            assert asked.status == 200, asked.detail
            assert hung.state == "dead"
            assert asked.wait_s > 30.0
            fleet.check()

    simulate(main)


def test_call_whose_process_hangs_while_it_starts_is_answered_by_the_next_in_time() -> None:
    async def main(world: World) -> None:
        with fleet_of(world) as fleet:
            fleet.put("m", idle_s=3)
            fleet.controller()
            fleet.pool("n1", workers=2, up_min=0)
            edge = fleet.edge()
            await until(lambda: edge.knows("m") and edge.routes_to("m"))
            await until(lambda: not up(fleet))
            asking = edge.ask("m", deadline_s=10.0)
            await until(lambda: bool(up(fleet)))
            fleet.named(up(fleet)[0]).kill(signal.SIGSTOP)
            asked = await asking
            assert asked.status == 200, asked.detail
            done = await fleet.traffic([edge], "m", per_s=5, for_s=60, deadline_s=5.0)
            assert {one.status for one in done} == {200}
            fleet.check()

    simulate(main)
